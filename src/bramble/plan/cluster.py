"""What the planner knows of the hardware: nodes, the links between them, and where each figure comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

GIB = 2**30

ASSUMED_BANDWIDTH = 10.3e9
"""Bytes/s that a Pi 5 reads of weights while it decodes, where nothing was measured: back-computed from published
decode rates, which lie between 9.8e9 and 12.2e9 (Pi 5 and CM5; the peak of its memory is 17.07e9)."""

ASSUMED_PREFILL = 15.08 * 3.21e9
"""Parameters x tokens/s of a prompt, where nothing was measured: a CM5 with Llama 3.2 3B Q4_K_M, llama-bench pp512
(geerlingguy/beowulf-ai-cluster issue 6)."""

ASSUMED_RTT = 0.21e-3
ASSUMED_THROUGHPUT = 117e6
"""Round trip in s, and bytes/s, of two Pi 5 on gigabit Ethernet, where nothing was measured."""

SYSTEM_BYTES = 700 * 2**20
"""Memory that the system takes on a node on which nothing of ours runs, where nothing was measured: Raspberry Pi OS
Lite without a desktop takes 0.5 to 0.8 GiB."""

HEADROOM = 0.10
"""The share of what is left that stays free: page cache, peaks, growth."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `memory`: what Linux has; `reserved`: what the system and services outside the plan take; `taken`: what
    models that were placed before take; bytes.

    `bandwidth`: bytes/s of weights while decoding. `prefill`: parameters x tokens/s of a prompt. `assumed`: the names
    of fields whose value was not measured. `npu`: model → decode tokens/s on the node's HAT. `decodes` and `prefills`:
    (model, depth 0) → tokens/s of llama.cpp on this node, measured with that very model."""

    name: str
    memory: int
    reserved: int = SYSTEM_BYTES
    taken: int = 0
    headroom: float = HEADROOM
    bandwidth: float = ASSUMED_BANDWIDTH
    prefill: float = ASSUMED_PREFILL
    architecture: str = "aarch64"
    assumed: tuple[str, ...] = ()
    npu: Mapping[str, float] = field(default_factory=dict)
    decodes: Mapping[str, float] = field(default_factory=dict)
    prefills: Mapping[str, float] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Bytes that models may take."""
        return max(0, int((self.memory - self.reserved) * (1 - self.headroom)) - self.taken)


@dataclass(frozen=True, slots=True)
class Link:
    """Between two nodes: round trip in s, and bytes/s in the slower direction."""

    rtt: float = ASSUMED_RTT
    throughput: float = ASSUMED_THROUGHPUT
    assumed: bool = True


@dataclass(frozen=True, slots=True)
class Cluster:
    """Nodes in the inventory's order, and links by their two names in alphabetical order."""

    nodes: tuple[Node, ...]
    links: Mapping[tuple[str, str], Link] = field(default_factory=dict)
    default_link: Link = Link()

    def node(self, name: str) -> Node:
        """The node of that name. KeyError: there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def link(self, one: str, other: str) -> Link:
        """The link between two nodes; of a node to itself, one that costs nothing."""
        if one == other:
            return Link(0.0, float("inf"), assumed=False)
        return self.links.get((min(one, other), max(one, other)), self.default_link)

    def without(self, taken: Mapping[str, int]) -> Cluster:
        """The cluster with that much less room, in bytes by node."""
        nodes = (replace(node, taken=node.taken + taken.get(node.name, 0)) for node in self.nodes)
        return replace(self, nodes=tuple(nodes))

    def only(self, names: Sequence[str]) -> Cluster:
        """The cluster without the other nodes, in the order of `names`."""
        return replace(self, nodes=tuple(self.node(name) for name in names))
