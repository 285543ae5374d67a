"""Questions about addresses that roles ask."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def in_networks(address: str, networks: Iterable[str]) -> bool:
    """Whether the address is one of these addresses or in one of these networks.

    Raises ValueError on an address or a network that is none, wherever in the list it stands.
    """
    where = ipaddress.ip_address(address)
    known = [ipaddress.ip_network(network, strict=False) for network in networks]
    return any(where in network for network in known)
