"""Filters of the lab's role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
import yaml
from ansible.errors import AnsibleFilterError

# On the controller, the configured module_utils directory is no place that Python imports from.
ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "module_utils"))

from ansible.module_utils.bramble.lab import LabError, layout  # noqa: E402
from ansible.module_utils.bramble.network import in_networks  # noqa: E402
from ansible.module_utils.bramble.nodes import addresses  # noqa: E402

ROLES = Path(__file__).resolve().parents[2] / "roles"

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


def setting(hostvars: Mapping[str, Any], host: str, variable: str) -> Any:
    """What a host has for a role's variable: what the inventory says, else the role's default, which must be a plain value.

    For playbooks, which pass to one role where another one serves: hostvars know nothing of a role's defaults.
    """
    if variable in hostvars[host]:
        return hostvars[host][variable]
    for role in sorted((path.name for path in ROLES.iterdir()), key=len, reverse=True):
        if variable.startswith(f"{role}_"):
            defaults = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
            value = defaults.get(variable)
            if variable not in defaults or (isinstance(value, str) and "{{" in value):
                raise AnsibleFilterError(f"{variable}: role {role} has no plain default for it; set it for {host}")
            return value
    raise AnsibleFilterError(f"{variable}: no role has such a variable")


def endpoints(hosts: Sequence[str], role: str, hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where each host serves with a role: [{"host", "address", "port"}]."""
    return [
        {"host": str(host), "address": address, "port": setting(hostvars, host, f"{role}_port")}
        for host, address in zip(hosts, addresses(hosts, hostvars), strict=True)
    ]


def hosts_and_addresses(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, str]]:
    """The hosts as roles want them: [{"name", "address"}]."""
    return [{"name": str(host), "address": address} for host, address in zip(hosts, addresses(hosts, hostvars), strict=True)]


def catalogue_entry(hostvars: Mapping[str, Any], host: str, model: str) -> dict[str, Any]:
    """What a host's catalogue says of a model, with its "name" and the "path" that its file has on the host."""
    catalogue = yaml.safe_load((ROLES / "model_store" / "vars" / "catalogue.yml").read_text())["__model_store_catalogue"]
    catalogue |= setting(hostvars, host, "model_store_catalogue")
    if model not in catalogue:
        raise AnsibleFilterError(
            f"{model!r} is not in the catalogue of {host} (there are: {', '.join(sorted(catalogue))}); add it to model_store_catalogue"
        )
    path = f"{setting(hostvars, host, 'model_store_path')}/{model}.gguf"
    return {**catalogue[model], "name": model, "path": path}


def backends(hosts: Sequence[str], role: str, hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a gateway routes to: each host that serves a model with a role, as src/bramble/gateway/config.py wants it."""
    found = []
    for endpoint in endpoints(hosts, role, hostvars):
        host = endpoint["host"]
        entry = catalogue_entry(hostvars, host, setting(hostvars, host, f"{role}_model"))
        facts = {key: entry[key] for key in ("name", "bytes", "sha256", "family", "parameters", "quantization") if key in entry}
        found.append(
            {
                "name": f"{host}-{role.replace('_', '-')}",
                "kind": "llama_server",
                "url": f"http://{endpoint['address']}:{endpoint['port']}",
                "slots": setting(hostvars, host, f"{role}_slots"),
                "models": [{**facts, "context": setting(hostvars, host, f"{role}_context")}],
            }
        )
    return found


def add_layers(workers: Sequence[Mapping[str, Any]], layers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The workers, each with the number of layers that it holds."""
    return [{**worker, "layers": layers[worker["host"]]} for worker in workers]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"lab_layout": lab_layout, "in_networks": in_networks, "setting": setting, "endpoints": endpoints, "add_layers": add_layers, "hosts_and_addresses": hosts_and_addresses, "catalogue_entry": catalogue_entry, "backends": backends}
