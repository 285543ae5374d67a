#!/usr/bin/python
"""Ansible module: how much memory a node has for models."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_memory
short_description: How much memory a node has, and how much of it the system takes
description:
  - Reads C(/proc/meminfo) and what the services that hold models take, and returns a benchmark record of the kind
    C(memory). The planner places models by it.
  - C(system) is what is neither available nor held by models - the system, and services that the plan does not place.
  - Reads only.
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Returns no record.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author: The Bramble authors
"""

EXAMPLES = r"""
- name: Read how much memory there is for models
  node_memory:
  register: measured
"""

RETURN = r"""
records:
  description: One partial benchmark record (C(kind) C(memory)); none in check mode.
  returned: success
  type: list
  elements: dict
  sample:
    - kind: memory
      params: {}
      result:
        total: {value: 8063.5, unit: MiB}
        available: {value: 7402.1, unit: MiB}
        models: {value: 0.0, unit: MiB}
        system: {value: 661.4, unit: MiB}
raw:
  description: What was read.
  returned: success
  type: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.node_memory import MemoryUnknownError, measure
from ansible.module_utils.bramble.options import board


def main() -> None:
    module: Any = AnsibleModule(argument_spec=board(), supports_check_mode=True)
    if module.check_mode:
        module.exit_json(changed=False, records=[], raw="")
    try:
        record, raw = measure(Node(sysfs=Path(module.params["sysfs"]), device_tree=Path(module.params["device_tree"])))
    except MemoryUnknownError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, records=[record], raw=raw)


if __name__ == "__main__":
    main()
