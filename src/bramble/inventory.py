"""An inventory as a playbook sees it: hosts, groups, and variables with their templates resolved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class InventoryError(Exception):
    """The inventory cannot be read. The message is Ansible's."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`variables`: host → the wanted variables that are set for it. `groups`: group → hosts, in the inventory's
    order."""

    variables: Mapping[str, Mapping[str, Any]]
    groups: Mapping[str, Sequence[str]]


def read_inventory(root: Path, source: Path, wanted: Iterable[str]) -> Inventory:
    """The variables named in `wanted`, of all hosts of the inventory `source`, by Ansible's own code and `root`'s
    settings.

    Raises:
        InventoryError: it cannot be read, or a value cannot be templated.
    """
    # Read at import, and by nothing of ours before.
    os.environ["ANSIBLE_CONFIG"] = str(root / "ansible.cfg")
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import init_plugin_loader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    names = list(wanted)
    loader = DataLoader()
    try:
        init_plugin_loader()
        inventory = InventoryManager(loader=loader, sources=[str(source)])
        manager = VariableManager(loader=loader, inventory=inventory)
        found: dict[str, dict[str, Any]] = {}
        for host in inventory.get_hosts():
            known = manager.get_vars(host=host)
            templar = Templar(loader=loader, variables=known)
            found[host.name] = {name: _plain(templar.template(known[name])) for name in names if name in known}
        groups = {name: [host.name for host in inventory.get_hosts(name)] for name in sorted(inventory.list_groups())}
    except AnsibleError as error:
        raise InventoryError(f"{source}: {error}") from error
    return Inventory(found, groups)


def _plain(value: Any) -> Any:
    """Ansible's tagged texts, lists and dictionaries as Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
