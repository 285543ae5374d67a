#!/usr/bin/python
"""Ansible module: what a node says of its AI HAT+ 2."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hailo_facts
short_description: Device, driver, library, firmware and packages of the AI HAT+ 2, and what is wrong with them
description:
  - Reads sysfs and the device tree, and asks C(hailortcli) and C(dpkg-query). HailoRT's commands exit with 0 also when
    there is no device, so what they print is what counts.
  - Reads only, and does not fail because something is absent - what is not known is null. C(hailortcli) has 10 seconds
    for each answer. If it gives none, that stands in RV(ansible_facts.hailo.unreadable).
options:
  boot:
    description: Where the firmware's files are, C(config.txt) among them.
    type: path
    default: /boot/firmware
extends_documentation_fragment: [board]
attributes:
  check_mode:
    description: Runs as without check mode.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - Bramble
"""

EXAMPLES = r"""
- name: Read the HAT's state
  hailo_facts:

- name: Require a HAT that works
  ansible.builtin.assert:
    that: ansible_facts.hailo.problems | length == 0
    fail_msg: "{{ ansible_facts.hailo.problems | join('\n') }}"
"""

RETURN = r"""
ansible_facts:
  description: The facts, as C(ansible_facts.hailo).
  returned: always
  type: dict
  contains:
    hailo:
      description: What the node says of its HAT. A value that is absent or not known is null.
      returned: always
      type: dict
      contains:
        present:
          description: Whether a Hailo device is on the PCIe bus. It is there without a driver, too.
          type: bool
          returned: always
        pci_address:
          description: Where on the bus.
          type: str
          returned: always
          sample: "0001:01:00.0"
        pci_id:
          description: Vendor and device. The Hailo-10H is C(1e60:45c4).
          type: str
          returned: always
          sample: 1e60:45c4
        link_speed_gts:
          description: The speed of the PCIe link in GT/s, 8 with Gen 3.
          type: float
          returned: always
        link_width:
          description: The lanes of the PCIe link. The Pi 5 has one.
          type: int
          returned: always
        pcie_generation_set:
          description: The last C(dtparam=pciex1_gen) in C(config.txt), whatever section it stands in.
          type: int
          returned: always
        hat:
          description: The product name in the HAT's own EEPROM, which does not need PCIe.
          type: str
          returned: always
        driver:
          description: The kernel C(module), its C(version), and whether it is C(loaded).
          type: dict
          returned: always
          sample:
            module: hailo1x_pci
            version: 5.1.1
            loaded: true
        node:
          description: The device's file.
          type: str
          returned: always
          sample: /dev/hailo0
        devices:
          description: The addresses that C(hailortcli scan) lists. Null if it gave no answer.
          type: list
          elements: str
          returned: always
        library_version:
          description: The version of C(hailortcli), which is that of the library.
          type: str
          returned: always
          sample: 5.1.1
        firmware_version:
          description: The version of the firmware that the device runs.
          type: str
          returned: always
          sample: 5.1.1
        architecture:
          description: The device's architecture.
          type: str
          returned: always
          sample: HAILO10H
        identify_error:
          description: Why C(hailortcli fw-control identify) gave no answer. Null if it did, or was not asked.
          type: str
          returned: always
        temperature_c:
          description:
            - Always null. C(hailortcli) has no command for the temperature of a Hailo-10H, and sysfs does not show it.
              Only HailoRT's Python and C++ interfaces do, and they open the device for it.
          type: float
          returned: always
        packages:
          description: The versions of the installed packages whose names have C(hailo) in them, and of C(dkms).
          type: dict
          returned: always
          sample:
            dkms: 3.1.8-1
            h10-hailort: 5.1.1
            h10-hailort-pcie-driver: 5.1.1
        dkms:
          description: Whether C(dkms) is installed, which builds the driver's module again for each new kernel.
          type: bool
          returned: always
        problems:
          description: What stands between the node and its HAT - what was seen, and what to do. Empty if all is well.
          type: list
          elements: str
          returned: always
        unreadable:
          description: What is there and could not be read or understood, and why.
          type: list
          elements: str
          returned: always
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.hailo_facts import read_hailo
from ansible.module_utils.bramble.options import board
from ansible.module_utils.bramble.pi_facts import Places

ARGUMENTS = {
    **board(),
    "boot": {"type": "path", "default": "/boot/firmware"},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    places = Places(**{name: Path(module.params[name]) for name in ARGUMENTS})
    module.exit_json(changed=False, ansible_facts={"hailo": read_hailo(places)})


if __name__ == "__main__":
    main()
