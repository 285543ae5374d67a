#!/usr/bin/python
"""Ansible module: have a llama-server generate tokens, and tell how long they took by its own word."""

from __future__ import annotations

DOCUMENTATION = r"""
module: token_time
short_description: Have a llama-server generate tokens, and tell how long they took by its own word
description:
  - Asks for O(requests) answers, one after the other, each of exactly O(generated_tokens) to a prompt of exactly
    O(prompt_tokens), of which nothing is reused.
  - Between two readings of the module C(engine_counters) it makes the tokens whose cost they tell.
  - While it runs, temperature, throttling and power are read about once a second, on the node that asks. Run it on the
    node that serves.
options:
  url:
    description: The address of the llama-server, C(http://address:port).
    type: str
    required: true
  requests:
    description: How many answers.
    type: int
    default: 5
  prompt_tokens:
    description: Tokens of each prompt.
    type: int
    default: 32
  generated_tokens:
    description: Tokens of each answer.
    type: int
    default: 64
  allow_few:
    description: Take fewer than five requests. For a trial; such a figure is not worth comparing.
    type: bool
    default: false
  timeout:
    description: Seconds that one request may take.
    type: int
    default: 600
  program:
    description: The server's program. Of its release is the record's C(engine).
    type: path
    default: /opt/llama.cpp/current/bin/llama-server
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Asks nothing and returns no timings.
    support: partial
  diff_mode:
    description: Changes nothing.
    support: none
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Generate short answers
  token_time:
    url: http://192.168.1.11:8080
    generated_tokens: 2
  register: short
"""

RETURN = r"""
timings:
  description: Of each answer, what llama-server says it took.
  returned: success
  type: list
  elements: dict
  sample: [{prompt_n: 32, prompt_ms: 1510.2, predicted_n: 64, predicted_ms: 12405.9}]
engine:
  description: The record's C(engine).
  returned: success
  type: dict
started_at:
  description: When it began, UTC.
  returned: success, not in check mode
  type: str
duration_s:
  description: Seconds that it took.
  returned: success, not in check mode
  type: float
conditions:
  description: What the node was like meanwhile.
  returned: success, not in check mode
  type: dict
raw:
  description: The timings, a JSON object a line.
  returned: success, not in check mode
  type: str
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.http_bench import Server
from ansible.module_utils.bramble.llama_bench import BenchError, read_engine
from ansible.module_utils.bramble.options import board
from ansible.module_utils.bramble.token_time import Wanted, generate


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "requests": {"type": "int", "default": 5},
            "prompt_tokens": {"type": "int", "default": 32},
            "generated_tokens": {"type": "int", "default": 64},
            "allow_few": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 600},
            "program": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    wanted = Wanted(
        options["requests"],
        options["prompt_tokens"],
        options["generated_tokens"],
        salt=f"{time.time_ns() // 1_000_000 % 10**9:09d}",
    )
    engine = read_engine(Path(options["program"]))
    try:
        wanted.check(allow_few=options["allow_few"])
        if module.check_mode:
            module.exit_json(changed=False, timings=[], engine=engine)
        node = Node(sysfs=Path(options["sysfs"]), device_tree=Path(options["device_tree"]))
        found = generate(Server(options["url"], options["timeout"]), wanted, node)
    except BenchError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, engine=engine, **found)


if __name__ == "__main__":
    main()
