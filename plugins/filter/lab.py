"""Filters of the lab's role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

# On the controller, the configured module_utils directory is no place that Python imports from.
ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "module_utils"))

from ansible.module_utils.bramble.lab import LabError, layout  # noqa: E402
from ansible.module_utils.bramble.network import in_networks  # noqa: E402

DOCUMENTATION = """
name: lab_layout
short_description: Names and addresses of a lab's nodes
description: See C(plugins/module_utils/bramble/lab.py).
"""


def lab_layout(name: str, nodes: int, bystanders: int = 0, subnet: str = "") -> dict[str, Any]:
    try:
        return layout(str(name), int(nodes), int(bystanders), str(subnet))
    except (LabError, ValueError) as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"lab_layout": lab_layout, "in_networks": in_networks}
