#!/usr/bin/python
"""Ansible module: how well a model answers, by an exam that is marked by rules."""

from __future__ import annotations

DOCUMENTATION = r"""
module: quality_exam
short_description: Examine a model at an Ollama or OpenAI address
description:
  - Puts each item to the model, one after the other, at temperature 0 and with a fixed seed, marks the answers, and
    returns one partial benchmark record with the share of right ones, in all and by category, each with its 95 %
    interval (Wilson).
  - Nothing that the model writes is run. Habits of chat (bold, code fences, a full stop) are forgiven, except in the
    category V(format).
  - A request that fails counts as wrong and is named in the record's notes. When five in succession fail, the module
    fails and there is no record.
options:
  items:
    description:
      - The questions. Other fields than these are ignored.
    type: list
    elements: dict
    required: true
  exam:
    description: The exam's name. The record has it with eight hex digits of the items behind it.
    type: str
    default: bramble
  timeout:
    description: Seconds that a request may wait for its answer, and the loading of the model.
    type: int
    default: 600
extends_documentation_fragment: [board, llm_address]
attributes:
  check_mode:
    description: Checks the items, asks nothing and returns no records.
    support: partial
  diff_mode:
    description: Changes nothing.
    support: none
notes:
  - An item is a dict with C(id), C(category), C(prompt), C(max_tokens) and C(check). C(check.kind) is one of C(number),
    C(exact), C(one_of), C(contains_all), C(regex), C(json_equals), C(json_schema), C(lines), C(word_count) and
    C(python_result).
  - An Ollama loads the model, and drops another one for it if its memory takes only one.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Examine what the HAT serves
  quality_exam:
    url: http://127.0.0.1:8000
    model: qwen2.5-instruct:1.5b
    items: "{{ lookup('ansible.builtin.file', 'exam.json') | from_json }}"
  register: measured

- name: Ask one thing
  quality_exam:
    url: http://192.168.1.11:8080
    model: qwen2.5-3b-instruct-q4_k_m
    exam: trial
    items:
      - id: capital
        category: knowledge
        prompt: What is the capital of France? Reply with its name only.
        max_tokens: 16
        check: {kind: exact, value: Paris}
"""

RETURN = r"""
records:
  description: One partial benchmark record of kind C(quality); none in check mode.
  returned: always
  type: list
  elements: dict
  sample:
    - kind: quality
      started_at: "2026-11-21T12:00:00Z"
      engine: {name: hailo-ollama, commit: null, build_key: null, version: null}
      model: {name: "qwen2.5-instruct:1.5b", sha256: null, quant: Q4_0, bytes: 1640000000}
      params: {exam: bramble-0123abcd, items: 72, api: ollama}
      result:
        score: {value: 0.75, n: 72, unit: share, low: 0.6391, high: 0.8357}
        score_knowledge: {value: 0.9167, n: 12, unit: share, low: 0.6461, high: 0.9851}
      conditions: {power_w: 3.1, power_source: pmic, notes: []}
      duration_s: 140.2
raw:
  description: For each item its answer as it came and the verdict, one JSON object a line.
  returned: always
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.exam import ExamError, examine, raw_log, read_items
from ansible.module_utils.bramble.http_bench import Server
from ansible.module_utils.bramble.llama_bench import BenchError
from ansible.module_utils.bramble.options import board, llm_address


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "items": {"type": "list", "elements": "dict", "required": True},
            "exam": {"type": "str", "default": "bramble"},
            "timeout": {"type": "int", "default": 600},
            **llm_address(),
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    if options["timeout"] < 1 or not options["model"].strip():
        module.fail_json(msg="timeout must be 1 or more, and model must not be empty", records=[], raw="")
    try:
        items = read_items(options["items"])
        server = Server(options["url"], options["timeout"])
        if module.check_mode:
            module.exit_json(changed=False, records=[], raw="")
        record, raw = examine(
            server,
            options["api"],
            options["model"],
            items,
            Node(sysfs=Path(options["sysfs"]), device_tree=Path(options["device_tree"])),
            exam=options["exam"],
            builds=Path(options["build"]),
            engine=options["engine"],
            facts=options["model_facts"],
        )
    except ExamError as error:
        place = f"{options['url']}: model {options['model']}: " if error.verdicts else ""
        module.fail_json(msg=f"{place}{error}", records=[], raw=raw_log(error.verdicts))
    except BenchError as error:
        module.fail_json(msg=str(error), records=[], raw="")
    module.exit_json(changed=False, records=[record], raw=raw)


if __name__ == "__main__":
    main()
