#!/usr/bin/python
"""Ansible module: the speed of a model on this node's processor."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_bench
short_description: Measure a model's speed with llama-bench
description:
  - Runs llama-bench once for each number of threads and each depth, and returns one partial benchmark record for each.
  - While it runs, temperature, throttling and the power that the board's own meter sees are read about once a second.
  - It installs and changes nothing. A long measurement says nothing until it ends; to see progress, loop over
    O(threads) or O(depths) in the play.
options:
  model:
    description:
      - The model's file, GGUF. What the model store wrote beside it, C(<name>.json), gives checksum and quantisation.
    type: path
    required: true
  program:
    description:
      - llama-bench. C(build.json) in the directory above its own tells the build.
    type: path
    default: /opt/llama.cpp/current/bin/llama-bench
  threads:
    description: Numbers of threads, each measured by itself. Empty for one a physical core.
    type: list
    elements: int
    default: []
  depths:
    description: How many tokens stand in the context before what is measured, each measured by itself.
    type: list
    elements: int
    default: [0]
  n_prompt:
    description: Tokens of the prompt, for RV(records) C(prefill). 0 leaves it out.
    type: int
    default: 512
  n_gen:
    description: Tokens to generate, for RV(records) C(decode). 0 leaves it out.
    type: int
    default: 128
  repetitions:
    description: How often each test is repeated, after llama-bench's own warm-up.
    type: int
    default: 5
  allow_few:
    description: Take fewer than five repetitions. For a trial; such a figure is not worth comparing.
    type: bool
    default: false
  timeout:
    description: Seconds after which one run of llama-bench is stopped, and the task fails.
    type: int
    default: 3600
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Measures nothing and returns no records.
    support: partial
  diff_mode:
    description: Changes nothing.
    support: none
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Measure the node's model
  llama_bench:
    model: /var/lib/bramble/models/qwen2.5-3b-instruct-q4_k_m.gguf
    depths: [0, 2048]
  register: measured

- name: Find the best number of threads
  llama_bench:
    model: /var/lib/bramble/models/qwen2.5-3b-instruct-q4_k_m.gguf
    threads: ["{{ item }}"]
    n_prompt: 0
  loop: [1, 2, 3, 4]
  register: measured
"""

RETURN = r"""
records:
  description:
    - Partial benchmark records (C(kind) C(llama_bench)), one for each number of threads and depth; what was measured
      before a failure is returned with it.
  returned: always
  type: list
  elements: dict
  sample:
    - kind: llama_bench
      started_at: "2026-11-21T12:00:00Z"
      engine: {name: llama.cpp, commit: 0c1e57098, build_key: 0c1e57098-5f0a6b7c8d, version: null}
      model: {name: qwen2.5-3b-instruct-q4_k_m, sha256: 626b…, quant: Q4_K_M, bytes: 2104932768}
      params: {threads: 4, n_prompt: 512, n_gen: 128, depth: 0, repetitions: 5}
      result:
        prefill: {mean: 15.1, sd: 0.05, n: 5, unit: tok/s}
        decode: {mean: 5.2, sd: 0.02, n: 5, unit: tok/s}
      conditions: {power_w: 6.9, power_source: pmic, notes: []}
      duration_s: 402.1
raw:
  description: For each record the command and all that it printed.
  returned: always
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.llama_bench import BenchError, measure, physical_cores, plan
from ansible.module_utils.bramble.options import board


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "model": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-bench"},
            "threads": {"type": "list", "elements": "int", "default": []},
            "depths": {"type": "list", "elements": "int", "default": [0]},
            "n_prompt": {"type": "int", "default": 512},
            "n_gen": {"type": "int", "default": 128},
            "repetitions": {"type": "int", "default": 5},
            "allow_few": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    records: list[dict[str, Any]] = []
    raw: list[str] = []
    try:
        threads = options["threads"] or [physical_cores(Path(options["sysfs"]))]
        numbers = (options["n_prompt"], options["n_gen"], options["repetitions"], options["allow_few"])
        runs = plan(threads, options["depths"], *numbers)
        node = Node(sysfs=Path(options["sysfs"]), device_tree=Path(options["device_tree"]))
        if not module.check_mode:
            for record, log in measure(
                Path(options["program"]), Path(options["model"]), runs, options["timeout"], node
            ):
                records.append(record)
                raw.append(log)
    except BenchError as error:
        module.fail_json(msg=str(error), records=records, raw=raw)
    module.exit_json(changed=False, records=records, raw=raw)


if __name__ == "__main__":
    main()
