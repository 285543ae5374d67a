"""Questions about several nodes at once: their addresses, shares of layers, which of them builds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def node_address(variables: Mapping[str, object]) -> tuple[str, object]:
    """The variable that holds the address by which the other nodes reach a node, and its value (None: not set).

    `cluster_network_address` is for nodes that the controller reaches another way: `ansible_host` may then be a name.
    """
    name = "cluster_network_address" if variables.get("cluster_network_address") else "ansible_host"
    return name, variables.get(name)


def addresses(hosts: Sequence[str], hostvars: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The addresses of `hosts`, in their order. ValueError: a host is unknown or has none."""
    found = []
    for host in hosts:
        if host not in hostvars:
            raise ValueError(f"{host} is not a host of the inventory")
        _, value = node_address(hostvars[host])
        if not value:
            raise ValueError(f"{host} has no address: set ansible_host in the inventory")
        found.append(str(value))
    return found


def even_layers(total: int, hosts: Sequence[str]) -> dict[str, int]:
    """`total` layers shared as evenly as whole numbers allow; the first hosts get one more. Sums to `total`.

    The largest-remainder method with equal weights. ValueError: no hosts, a host named twice, fewer than 0 layers.
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise ValueError(f"the number of layers is a whole number from 0, not {total!r}")
    if not hosts:
        raise ValueError("there are no hosts to share layers among")
    if len(set(hosts)) != len(hosts):
        raise ValueError(f"a host is named twice in {', '.join(hosts)}")
    share, rest = divmod(total, len(hosts))
    return {host: share + (index < rest) for index, host in enumerate(hosts)}


def build_host(hosts: Sequence[str], facts: Mapping[str, Mapping[str, Any]], architecture: str) -> str:
    """The host that builds for all of `architecture`: oldest system release, then most memory, then first in `hosts`.

    Oldest, because a binary runs with its build machine's C library or a newer one, not with an older. Release numbers
    of different distributions do not compare (Debian 13 is newer than Ubuntu 24.04): a cluster has one distribution.

    `facts`: host → its `ansible_facts`. Hosts without facts take no part: a run limited to others does not reach them.
    ValueError: no host of the architecture.
    """
    candidates = [host for host in hosts if facts.get(host, {}).get("architecture") == architecture]
    if not candidates:
        seen = (
            ", ".join(f"{host}: {facts.get(host, {}).get('architecture', 'no facts')}" for host in hosts) or "no hosts"
        )
        raise ValueError(
            f"no host to build for {architecture} ({seen}): gather facts first, or set a host of this architecture"
        )
    return min(candidates, key=lambda host: (_release(facts[host]), -int(facts[host].get("memtotal_mb", 0))))


def _release(facts: Mapping[str, Any]) -> float:
    """The major release as a number; a system without one (testing, unstable) is newer than all that have one."""
    try:
        return float(facts.get("distribution_major_version", ""))
    except (TypeError, ValueError):
        return math.inf
