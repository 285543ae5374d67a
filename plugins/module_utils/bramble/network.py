"""Questions about addresses that roles ask."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable


def in_networks(address: str, networks: Iterable[str]) -> bool:
    """Whether the address is one of these addresses or in one of these networks. ValueError: what is neither."""
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(network, strict=False) for network in networks)
