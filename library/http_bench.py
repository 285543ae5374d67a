#!/usr/bin/python
"""Ansible module: the speed of an address that speaks Ollama's or OpenAI's language."""

from __future__ import annotations

DOCUMENTATION = r"""
module: http_bench
short_description: Measure the speed of an Ollama or OpenAI address
description:
  - Has the model loaded and answer one request that is not counted, then streams O(requests) answers at each level of
    O(concurrency), times the arrival of their chunks, and returns one partial benchmark record for each level.
  - Each request has a prompt of its own, numbered anew in each run, so that no server can reuse what it computed for
    another.
  - While it runs, temperature, throttling and the power that the board's own meter sees are read about once a second,
    on the node that asks. Run it on the node that serves.
  - The rate of a stream is (n-1) / (t_last - t_first). Percentiles are interpolated linearly between the closest ranks.
options:
  prompts:
    description: Prompts to take instead of the ten built-in ones, of about 55 tokens each. Taken in turn.
    type: list
    elements: str
    default: []
  max_tokens:
    description: How many tokens an answer may have.
    type: int
    default: 128
  requests:
    description: How many answers are measured at each level of O(concurrency).
    type: int
    default: 5
  concurrency:
    description: How many clients ask at once, each level measured by itself. hailo-ollama answers one at a time.
    type: list
    elements: int
    default: [1]
  allow_few:
    description: Take fewer than five requests. For a trial; such a figure is not worth comparing.
    type: bool
    default: false
  timeout:
    description: Seconds that one request may take, and the loading of the model.
    type: int
    default: 600
  keep_alive:
    description: For how many seconds an Ollama is to keep the model after each request.
    type: int
    default: 300
  extra:
    description:
      - Fields to add to each request. They stand in the record's parameters.
      - "For example C({ignore_eos: true}) for a llama-server whose model ends its answers early."
    type: dict
    default: {}
extends_documentation_fragment: [board, llm_address]
attributes:
  check_mode:
    description: Asks nothing and returns no records.
    support: partial
  diff_mode:
    description: Changes nothing.
    support: none
notes:
  - An Ollama loads the model, and drops another one for it if its memory takes only one.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Measure what the HAT serves
  http_bench:
    url: http://127.0.0.1:8000
    model: qwen2.5-instruct:1.5b
    engine: {version: 5.1.1}
  register: measured

- name: Measure a llama-server for one client and for two
  http_bench:
    url: http://192.168.1.11:8080
    model: qwen2.5-3b-instruct-q4_k_m
    concurrency: [1, 2]
    requests: 10
  register: measured
"""

RETURN = r"""
records:
  description:
    - Partial benchmark records (C(kind) C(http_generate)), one for each level of concurrency; what was measured before
      a failure is returned with it. A figure that could not be had is left out; C(load) is there if the model was not
      loaded before, C(errors) if requests failed.
  returned: always
  type: list
  elements: dict
  sample:
    - kind: http_generate
      started_at: "2026-11-21T12:00:00Z"
      engine: {name: hailo-ollama, commit: null, build_key: null, version: 5.1.1}
      model: {name: "qwen2.5-instruct:1.5b", sha256: null, quant: Q4_0, bytes: 1640000000}
      params: {api: ollama, prompt_tokens: 54, max_tokens: 128, concurrency: 1, requests: 5, token_count: server}
      result:
        ttft: {mean: 0.41, sd: 0.01, n: 5, unit: s, p50: 0.41, p95: 0.43, min: 0.4, max: 0.43}
        decode: {mean: 6.9, sd: 0.02, n: 5, unit: tok/s, p50: 6.9, p95: 6.93, min: 6.87, max: 6.94}
        total: {mean: 18.9, sd: 0.05, n: 5, unit: s, p50: 18.9, p95: 18.97, min: 18.8, max: 18.98}
        throughput: {value: 6.7, unit: tok/s}
        load: {value: 9.2, unit: s}
      conditions: {power_w: 3.1, power_source: pmic, notes: []}
      duration_s: 94.6
raw:
  description: For each record a text with the times at which each answer's chunks arrived, one JSON object a line.
  returned: always
  type: list
  elements: str
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.http_bench import PROMPTS, Server, Wanted, check, measure
from ansible.module_utils.bramble.llama_bench import BenchError
from ansible.module_utils.bramble.options import board, llm_address


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "prompts": {"type": "list", "elements": "str", "default": []},
            "max_tokens": {"type": "int", "default": 128},
            "requests": {"type": "int", "default": 5},
            "concurrency": {"type": "list", "elements": "int", "default": [1]},
            "allow_few": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 600},
            "keep_alive": {"type": "int", "default": 300},
            "extra": {"type": "dict", "default": {}},
            **llm_address(),
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    prompts = options["prompts"] or PROMPTS
    counts = (options["max_tokens"], options["requests"])
    wanted = Wanted(options["model"], *counts, prompts, options["keep_alive"], options["extra"])
    records: list[dict[str, Any]] = []
    raw: list[str] = []
    try:
        check(wanted, options["concurrency"], options["timeout"], options["allow_few"])
        server = Server(options["url"], options["timeout"])
        measured = measure(
            server,
            options["api"],
            wanted,
            options["concurrency"],
            Node(sysfs=Path(options["sysfs"]), device_tree=Path(options["device_tree"])),
            salt=f"{time.time_ns() // 1_000_000 % 10**9:09d}",
            builds=Path(options["build"]),
            engine=options["engine"],
            model=options["model_facts"],
        )
        for record, log in [] if module.check_mode else measured:
            records.append(record)
            raw.append(log)
    except BenchError as error:
        module.fail_json(msg=str(error), records=records, raw=raw)
    module.exit_json(changed=False, records=records, raw=raw)


if __name__ == "__main__":
    main()
