"""Puts each host into the groups that the plan gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

try:
    from bramble.plan.document import NAME, PlanError, host_variables, read
except ImportError as error:
    MISSING: ImportError | None = error
else:
    MISSING = None

DOCUMENTATION = """
name: planned
short_description: who runs which model, by the plan
description:
  - Reads C(plan.json) beside its configuration file, which C(bramble plan --write) writes, and puts hosts into the
    groups C(llama_server), C(rpc_head), C(rpc_worker), C(dllama_api) and C(dllama_worker), with the variables that the
    roles of the same names want - the model, its context, the layers of each node.
  - Sets for each host the variable C(planned), a list of the groups that it is in by the plan.
  - It adds no hosts. Sources in a directory are read in the order of their names, so the hosts must come from files
    whose names sort before C(planned.yml), as C(hosts.yml) does.
  - A model that is placed on a host which the inventory no longer has is left out, with a warning, until the next plan.
  - Without C(plan.json) it does nothing.
options:
  plugin:
    description: Says that the file is for this plugin.
    type: str
    required: true
    choices: [planned]
"""

EXAMPLES = """
# inventory/<name>/planned.yml
plugin: planned
"""


class InventoryModule(BaseInventoryPlugin):
    """Ansible's entry point."""

    NAME = "planned"

    # Of the class above too, and to be kept so: a plan is data.
    trusted_by_default = False

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and Path(path).name in ("planned.yml", "planned.yaml")

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        if MISSING is not None:
            raise AnsibleParserError(
                f"the Python that runs Ansible has no package bramble ({MISSING}): run `make setup`, "
                "then `. .venv/bin/activate`"
            )
        try:
            document = read(Path(path).with_name(NAME))
        except PlanError as error:
            raise AnsibleParserError(str(error)) from error
        if document is None:
            return
        there = []
        for model in document["models"]:
            gone = [host for host in model["nodes"] if host not in inventory.hosts]
            if gone:
                self.display.warning(
                    f"{NAME}: {model['model']} is placed on {', '.join(gone)}, which the inventory no longer has: "
                    "it runs nowhere until the next plan"
                )
            else:
                there.append(model)
        groups, variables = host_variables({"models": there})
        planned: dict[str, list[str]] = {}
        for group, hosts in groups.items():
            inventory.add_group(group)
            for host in hosts:
                inventory.add_child(group, host)
                planned.setdefault(host, []).append(group)
        for host, names in planned.items():
            inventory.set_variable(host, "planned", names)
            for name, value in variables[host].items():
                inventory.set_variable(host, name, value)
