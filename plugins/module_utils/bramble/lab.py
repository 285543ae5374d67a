"""Names and addresses of a lab: which container is which node."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Any

MAXIMUM_NODES = 100
_NAME = re.compile(r"lab(-[a-z0-9]{1,16})?")


class LabError(ValueError):
    """The lab cannot be laid out as asked; the message says what to change."""


def subnet_of(name: str) -> str:
    """A /24 that depends on the name alone, clear of podman's own 10.88/16 and of the usual home networks."""
    digest = hashlib.sha256(name.encode()).digest()
    return f"10.{101 + digest[0] // 2}.{digest[1]}.0/24"


def layout(name: str, nodes: int, bystanders: int = 0, subnet: str = "") -> dict[str, Any]:
    """The lab's network and nodes.

    Returns {"name", "subnet", "gateway" (the host's address on the bridge), "nodes": [{"name", "container", "address",
    "member"}]}; the members come first, pi1 … piN; bystanders belong to no cluster group. Raises LabError.
    """
    if not _NAME.fullmatch(name):
        raise LabError(f"lab_name {name!r}: use 'lab', or 'lab-' and up to 16 lower-case letters or digits")
    if not 1 <= nodes <= MAXIMUM_NODES:
        raise LabError(f"lab_nodes {nodes}: from 1 to {MAXIMUM_NODES}")
    if not 0 <= bystanders <= MAXIMUM_NODES:
        raise LabError(f"lab_bystanders {bystanders}: from 0 to {MAXIMUM_NODES}")
    try:
        network = ipaddress.IPv4Network(subnet or subnet_of(name))
    except ValueError as error:
        raise LabError(f"lab_subnet {subnet!r}: {error}") from error
    if network.prefixlen != 24:
        raise LabError(f"lab_subnet {subnet!r}: must be a /24")
    named = [(f"pi{i}", 10 + i, True) for i in range(1, nodes + 1)]
    named += [(f"outsider{i}", 120 + i, False) for i in range(1, bystanders + 1)]
    return {
        "name": name,
        "subnet": str(network),
        "gateway": str(network[1]),
        "nodes": [
            {"name": node, "container": f"{name}-{node}", "address": str(network[octet]), "member": member}
            for node, octet, member in named
        ],
    }
