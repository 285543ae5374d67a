#!/usr/bin/python
"""Ansible module: what a Raspberry Pi says of itself."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pi_facts
short_description: Board, firmware, throttling, supply, power, cooling, card and link of a Raspberry Pi
description:
  - Reads the device tree and sysfs, and asks the firmware with C(vcgencmd) and C(rpi-eeprom-update), all at once.
  - Reads only, and does not fail because something is absent - what is not known is null. Each program has 5 seconds.
    If it does not answer, or with an error, that stands in RV(ansible_facts.pi.unreadable).
  - C(vcgencmd) needs root or the group C(video).
options:
  boot:
    description: Where the firmware's files are, C(cmdline.txt) among them.
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
- name: Read the board's state
  pi_facts:

- name: Name nodes that were throttled
  ansible.builtin.debug:
    msg: "{{ ansible_facts.pi.throttled.since_boot | join(', ') }}"
  when: ansible_facts.pi.throttled.since_boot | length > 0
"""

RETURN = r"""
ansible_facts:
  description: The facts, as C(ansible_facts.pi).
  returned: always
  type: dict
  contains:
    pi:
      description: What the board says of itself. A value that is absent or not known is null.
      returned: always
      type: dict
      contains:
        model:
          description: The board's name.
          type: str
          returned: always
          sample: Raspberry Pi 5 Model B Rev 1.1
        is_pi5:
          description: Whether it has the Pi 5's processor, as Compute Module 5 and Pi 500 do too.
          type: bool
          returned: always
        revision:
          description: The revision code, in hexadecimal digits.
          type: str
          returned: always
          sample: d04171
        memory_bytes:
          description: The memory that Linux has.
          type: int
          returned: always
        kernel:
          description: The running kernel's release.
          type: str
          returned: always
          sample: 6.18.50+rpt-rpi-2712
        page_size:
          description: Bytes of a page of memory, 16384 with the Pi 5's own kernel.
          type: int
          returned: always
        memory_cgroup:
          description: Whether the kernel can limit and count memory by service.
          type: bool
          returned: always
        memory_cgroup_next_boot:
          description: Whether C(cmdline.txt) asks for that.
          type: bool
          returned: always
        bootloader:
          description:
            - C(date), the day of its build, C(version), its hash, and C(update_available), whether the node's packages
              hold a newer one.
          type: dict
          returned: always
          sample:
            date: "2025-05-08"
            version: 69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2
            update_available: false
        throttled:
          description:
            - C(raw), the firmware's number, and its bits by name, C(now) and C(since_boot) - C(under_voltage),
              C(frequency_capped), C(throttled), C(soft_temperature_limit). If C(raw) is null, the lists say nothing.
          type: dict
          returned: always
          sample:
            raw: "0x50000"
            now: []
            since_boot: [under_voltage, throttled]
        temperature_c:
          description: The processor's temperature in degrees Celsius.
          type: float
          returned: always
        clock_arm_hz:
          description: The processor's clock as the firmware measures it, in Hz.
          type: int
          returned: always
        governor:
          description: What chooses the processor's clock.
          type: str
          returned: always
          sample: ondemand
        supply:
          description:
            - C(max_current_ma), what the firmware knows the supply to give. C(usb_power_delivery), whether the supply
              offered that itself. C(usb_max_current_enable), whether USB devices may draw the full current.
          type: dict
          returned: always
        power:
          description:
            - C(watts) over all C(rails), each with C(volts) and C(amperes), and C(input_volts), the voltage of the
              supply. C(blind_to) says what is not in it, the AI HAT+ 2 among others.
          type: dict
          returned: always
        cooling:
          description: C(fan), whether the firmware found one on the board's connector, and its C(rpm).
          type: dict
          returned: always
        storage:
          description: The C(device) of the root file system, its size in C(bytes), and the root's C(free_bytes).
          type: dict
          returned: always
        link:
          description:
            - The C(interface) of the default route, or of the first link that is up where there is no such route,
              whether it is C(wired), its C(speed_mbps) and C(duplex).
          type: dict
          returned: always
        unreadable:
          description: What is there and could not be read or understood, and why.
          type: list
          elements: str
          returned: always
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.bramble.options import board
from ansible.module_utils.bramble.pi_facts import Places, read_pi

ARGUMENTS = {
    **board(),
    "boot": {"type": "path", "default": "/boot/firmware"},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    places = Places(**{name: Path(module.params[name]) for name in ARGUMENTS})
    module.exit_json(changed=False, ansible_facts={"pi": read_pi(places)})


if __name__ == "__main__":
    main()
