#!/usr/bin/python
"""Ansible module: settings in Raspberry Pi's config.txt and cmdline.txt."""

from __future__ import annotations

DOCUMENTATION = r"""
module: boot_config
short_description: Settings in Raspberry Pi's config.txt and cmdline.txt
description:
  - Brings settings into force in C(config.txt) and kernel parameters in C(cmdline.txt), and leaves every other byte
    as it is.
  - Knows filters such as C([all]) and C([pi5]), includes, that the last line wins, and that C(dtparam) lines belong to
    the overlay above them. Which filters hold, it reads from the device tree.
  - If a setting is in force already, nothing changes. If a line that counts on this board sets another value, the last
    such line is edited. If there is none, one is added at the end, below C([all]) if another filter is in force there.
    Comments stay comments.
  - Lines below filters that only the firmware can judge, such as C([gpio4=1]), are left alone and told.
  - What cannot be understood is refused, with file and line.
options:
  path:
    description: The C(config.txt).
    type: path
    default: /boot/firmware/config.txt
  settings:
    description: Settings for O(path).
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description:
          - A name, such as V(usb_max_current_enable), or V(dtparam=name) for a parameter of the base device tree.
        type: str
        required: true
      value:
        description: What shall stand behind C(=). Quote V('on'), which YAML would make a boolean.
        type: str
      state:
        description: V(absent) removes the lines that set it on this board.
        type: str
        choices: [present, absent]
        default: present
      section:
        description:
          - V(all), or a model filter such as V(pi5), below which it shall be in force.
          - For V(all) a line below a filter that holds on this board counts too, and may be edited.
        type: str
        default: all
  cmdline:
    description: Parameters for the kernel's command line.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The name, such as V(cgroup_enable). What finds the root file system, as C(root), is refused.
        type: str
        required: true
      value:
        description:
          - Its value; without, the bare name.
          - With O(cmdline[].state=absent) the value to remove; without, all of that name.
          - A controller in C(cgroup_enable) is removed from C(cgroup_disable), and the other way round.
        type: str
      state:
        description: Whether it shall be there.
        type: str
        choices: [present, absent]
        default: present
  cmdline_path:
    description:
      - The file with the kernel's command line. By default the one that O(path) names, mostly C(cmdline.txt) beside it.
    type: path
  device_tree:
    description: Where the device tree is, for the board's type and serial number.
    type: path
    default: /proc/device-tree
  stamp:
    description:
      - A file that notes that this boot does not run with these settings yet. Written only if something is to be
        changed, and before it is.
      - In C(/run) it vanishes at the boot that brings them into force.
    type: path
attributes:
  check_mode:
    description: Says what it would change, and writes nothing.
    support: full
  diff_mode:
    description: Shows each file before and after.
    support: full
  idempotent:
    description: A second run does nothing.
    support: full
author:
  - Bramble
"""

EXAMPLES = r"""
- name: Run the external PCIe link at 8 GT/s and account for memory
  boot_config:
    settings:
      - {name: dtparam=pciex1_gen, value: "3"}
      - {name: arm_freq, state: absent}
    cmdline:
      - {name: cgroup_enable, value: memory}
    stamp: /run/bramble/reboot.d/boot-config
"""

RETURN = r"""
changes:
  description: One sentence for each change - file, line, what.
  returned: success
  type: list
  elements: str
  sample: ["config.txt, line 31 (below [pi5]): dtparam=pciex1_gen from 2 to 3"]
notes:
  description: What may thwart a setting and was left alone. Each is a warning too.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.boot_config import BootConfigError, apply, parameters_from, settings_from

STATE: dict[str, Any] = {"type": "str", "choices": ["present", "absent"], "default": "present"}
ITEM: dict[str, Any] = {"name": {"type": "str", "required": True}, "value": {"type": "str"}, "state": STATE}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "path": {"type": "path", "default": "/boot/firmware/config.txt"},
    "settings": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {**ITEM, "section": {"type": "str", "default": "all"}},
        "required_if": [("state", "present", ("value",))],
    },
    "cmdline": {"type": "list", "elements": "dict", "default": [], "options": ITEM},
    "cmdline_path": {"type": "path"},
    "device_tree": {"type": "path", "default": "/proc/device-tree"},
    "stamp": {"type": "path"},
}


def main() -> None:
    module: Any = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    params = module.params
    try:
        outcome = apply(
            Path(params["path"]),
            settings_from(params["settings"]),
            parameters_from(params["cmdline"]),
            cmdline=Path(params["cmdline_path"]) if params["cmdline_path"] else None,
            device_tree=Path(params["device_tree"]),
            stamp=Path(params["stamp"]) if params["stamp"] else None,
            dry_run=module.check_mode,
        )
    except BootConfigError as error:
        module.fail_json(msg=str(error))
    for note in outcome.notes:
        module.warn(note)
    module.exit_json(changed=bool(outcome.after), changes=outcome.changes, notes=outcome.notes, diff=outcome.diff)


if __name__ == "__main__":
    main()
