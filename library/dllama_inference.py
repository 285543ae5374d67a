#!/usr/bin/python
"""Ansible module: have distributed-llama generate tokens in the foreground, and tell what it prints of each."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dllama_inference
short_description: Have distributed-llama generate tokens, and tell what it prints of each
description:
  - Runs C(dllama inference) O(requests) times with the arguments of the service C(bramble-dllama-api), as its user. It
    prints how long each token was computed and waited for, and how many bytes went over the network.
  - The service must be stopped before, and started again after it. A worker has one root only.
  - One more run goes before them, which is not counted; it tells how many tokens the prompt has.
options:
  config:
    description: The configuration of the service's supervisor, which holds the command line.
    type: path
    default: /etc/bramble/dllama-api.json
  user:
    description: The user who runs it.
    type: str
    default: bramble-dllama-api
  requests:
    description: How many runs. Each loads the model, and sends the workers their slices.
    type: int
    default: 5
  prompt_tokens:
    description: Tokens of the prompt, about - they are words.
    type: int
    default: 32
  generated_tokens:
    description: Tokens that are generated.
    type: int
    default: 64
  allow_few:
    description: Take fewer than five runs. For a trial; such a figure is not worth comparing.
    type: bool
    default: false
  timeout:
    description: Seconds that one run may take.
    type: int
    default: 1200
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Runs nothing.
    support: partial
  diff_mode:
    description: Changes nothing.
    support: none
notes:
  - Needs root.
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Measure distributed-llama
  dllama_inference:
  become: true
  register: measured
"""

RETURN = r"""
runs:
  description: What each run printed.
  returned: success
  type: list
  elements: str
engine:
  description: The record's C(engine).
  returned: success
  type: dict
started_at:
  description: When the first counted run began, UTC.
  returned: success, not in check mode
  type: str
duration_s:
  description: Seconds that they took.
  returned: success, not in check mode
  type: float
conditions:
  description: What the node was like meanwhile.
  returned: success, not in check mode
  type: dict
"""

import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.llama_bench import BenchError, execute, read_json, require_enough
from ansible.module_utils.bramble.options import board
from ansible.module_utils.bramble.token_time import TokenTimeError, dllama_engine, infer_all, unit_command


def main() -> None:
    module: Any = AnsibleModule(
        argument_spec={
            "config": {"type": "path", "default": "/etc/bramble/dllama-api.json"},
            "user": {"type": "str", "default": "bramble-dllama-api"},
            "requests": {"type": "int", "default": 5},
            "prompt_tokens": {"type": "int", "default": 32},
            "generated_tokens": {"type": "int", "default": 64},
            "allow_few": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 1200},
            **board(),
        },
        supports_check_mode=True,
    )
    options = module.params
    command = read_json(Path(options["config"])).get("command")
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        module.fail_json(msg=f"config: {options['config']} holds no command: the role dllama_api writes it")
    engine = dllama_engine(command)
    if module.check_mode:
        module.exit_json(changed=False, runs=[], engine=engine)
    try:
        require_enough(options["requests"], "requests", options["allow_few"])
        found = infer_all(
            command,
            unit_command(options["user"], options["timeout"]),
            options["requests"],
            (options["prompt_tokens"], options["generated_tokens"]),
            options["timeout"] + 30,
            Node(sysfs=Path(options["sysfs"]), device_tree=Path(options["device_tree"])),
            execute,
            time.sleep,
        )
    except (BenchError, TokenTimeError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, engine=engine, **found)


if __name__ == "__main__":
    main()
