#!/usr/bin/python
"""Ansible module: how well a model predicts a text."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_perplexity
short_description: Measure a model's perplexity with llama-perplexity
description:
  - Runs llama-perplexity over the first chunks of a text and returns a partial benchmark record. Less is better. Values
    can be compared between models of the same tokenizer, on the same text and context only.
  - It installs and changes nothing, and says nothing until it ends.
options:
  model:
    description:
      - The model's file, GGUF. What the model store wrote beside it, C(<name>.json), gives checksum and quantisation.
    type: path
    required: true
  corpus:
    description: The text, a file on the node. Its name stands in the record.
    type: path
    required: true
  program:
    description:
      - llama-perplexity. C(build.json) in the directory above its own tells the build.
    type: path
    default: /opt/llama.cpp/current/bin/llama-perplexity
  context:
    description: Tokens of a chunk. The later half of each is what the model must predict.
    type: int
    default: 512
  chunks:
    description: How many chunks of the text are taken. A shorter text is taken whole.
    type: int
    default: 20
  threads:
    description: Number of threads. 0 for one a physical core.
    type: int
    default: 0
  allow_few:
    description: Take fewer than five chunks. For a trial; such a figure is not worth comparing.
    type: bool
    default: false
  timeout:
    description: Seconds after which llama-perplexity is stopped, and the task fails.
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
- name: Measure how well the model predicts a text
  llama_perplexity:
    model: /var/lib/bramble/models/qwen2.5-3b-instruct-q4_k_m.gguf
    corpus: /var/lib/bramble/corpora/prose.txt
  register: measured
"""

RETURN = r"""
records:
  description: One partial benchmark record (C(kind) C(perplexity)); none in check mode.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: perplexity
      params: {corpus: prose.txt, context: 512, chunks: 20}
      result:
        perplexity: {mean: 11.5, sd: 0.9, n: 20, unit: ppl}
raw:
  description: For each record the command and all that it printed.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.llama_bench import BenchError, physical_cores
from ansible.module_utils.bramble.options import board
from ansible.module_utils.bramble.perplexity import measure


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "model": {"type": "path", "required": True},
            "corpus": {"type": "path", "required": True},
            "program": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-perplexity"},
            "context": {"type": "int", "default": 512},
            "chunks": {"type": "int", "default": 20},
            "threads": {"type": "int", "default": 0},
            "allow_few": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 3600},
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    if module.check_mode:
        module.exit_json(changed=False, records=[], raw=[])
    sysfs = Path(options["sysfs"])
    try:
        record, raw = measure(
            Path(options["program"]),
            Path(options["model"]),
            Path(options["corpus"]),
            context=options["context"],
            chunks=options["chunks"],
            threads=options["threads"] or physical_cores(sysfs),
            limit=options["timeout"],
            allow_few=options["allow_few"],
            node=Node(sysfs=sysfs, device_tree=Path(options["device_tree"])),
        )
    except BenchError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, records=[record], raw=[raw])


if __name__ == "__main__":
    main()
