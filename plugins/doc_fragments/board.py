"""Documentation fragment: where a module finds the board. The arguments: board() in bramble/options.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  sysfs:
    description: Where the kernel's C(/sys) is.
    type: path
    default: /sys
  device_tree:
    description: Where the board's device tree is.
    type: path
    default: /proc/device-tree
"""
