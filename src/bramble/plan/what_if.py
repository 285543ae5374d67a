"""The same question on another cluster: a node more or less, another network, another context or quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bramble.model.shape import ModelShape
from bramble.plan.choose import BITS, Wish, scaled
from bramble.plan.cluster import GIB, Cluster, Link

NETWORKS: Mapping[str, Link] = {
    "gigabit": Link(0.21e-3, 117e6),
    "100mbit": Link(0.35e-3, 11.7e6),
    "wifi": Link(3e-3, 12e6),
}
"""Round trip and throughput: two Pi 5 on gigabit Ethernet; the same at 100 Mbit/s; a Pi's own 5 GHz Wi-Fi, some 100
Mbit/s with milliseconds of delay, which vary."""

SIZES = tuple(2**power for power in range(24))
"""GiB that boards are sold with."""

HELP = (
    "add=8 (a node like the largest, with that many GiB), remove=NODE, context=TOKENS, slots=NUMBER, quantization=NAME "
    f"({', '.join(BITS)}), network=NAME ({', '.join(NETWORKS)})"
)

Question = tuple[Cluster, Mapping[str, ModelShape], Sequence[Wish]]


class WhatIfError(ValueError):
    """A change that cannot be made. The message says what there is."""


def change(text: str, question: Question) -> Question:
    """The question with one change, such as `add=8` or `network=wifi`.

    Raises:
        WhatIfError: there is no such change.
    """
    cluster, shapes, wishes = question
    name, _, value = text.partition("=")
    if name == "add":
        return _added(cluster, value), shapes, wishes
    if name == "remove":
        if value not in [node.name for node in cluster.nodes]:
            raise WhatIfError(f"--what-if {text}: there is no node {value}")
        rest = cluster.only([node.name for node in cluster.nodes if node.name != value])
        freed = [
            replace(
                wish, nodes=tuple(n for n in wish.nodes if n != value), head="" if wish.head == value else wish.head
            )
            for wish in wishes
        ]
        return rest, shapes, freed
    if name in ("context", "slots") and re.fullmatch(r"[1-9][0-9]{0,8}", value):
        count = int(value)
        needs = [
            replace(wish.need, context=count) if name == "context" else replace(wish.need, slots=count)
            for wish in wishes
        ]
        return cluster, shapes, [replace(wish, need=need) for wish, need in zip(wishes, needs, strict=True)]
    if name == "quantization" and value in BITS:
        return cluster, {model: _quantized(shape, value) for model, shape in shapes.items()}, wishes
    if name == "network" and value in NETWORKS:
        return replace(cluster, links={}, default_link=NETWORKS[value]), shapes, wishes
    raise WhatIfError(f"--what-if {text}: there is no such change. There are {HELP}")


def _added(cluster: Cluster, value: str) -> Cluster:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", value) or not cluster.nodes:
        raise WhatIfError(f"--what-if add={value}: say how many GiB the node has, such as add=8")
    model = max(cluster.nodes, key=lambda node: node.memory)
    # Linux has less than what is soldered on, by the same share as on the node that this one is modelled on.
    soldered = next(size for size in SIZES if size * GIB >= model.memory)
    number = 1
    while any(node.name == f"new{number}" for node in cluster.nodes):
        number += 1
    node = replace(
        model, name=f"new{number}", memory=int(model.memory * int(value) / soldered), npu={}, decodes={}, prefills={}
    )
    return replace(cluster, nodes=(*cluster.nodes, node))


def _quantized(shape: ModelShape, name: str) -> ModelShape:
    bits = 8 * sum(shape.layer_bytes) / sum(shape.layer_parameters)
    return replace(scaled(shape, BITS[name] / bits), quantization=name)
