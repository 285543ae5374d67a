"""Ways to split one model over the nodes that have it, to be measured against each other. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bramble.model.shape import ModelShape
from bramble.plan import memory
from bramble.plan.cluster import Cluster
from bramble.plan.place import Need, gib

NAMES = (
    "even",
    "by memory",
    "by bandwidth",
    "head excluded",
    "logits from the worker",
    "two nodes",
    "one node",
    "tensor",
    "planned",
)
"""In the order in which they are measured. Of equal splits the first is measured, and says which it is too."""

LOGITS = ("head", "worker")


class StrategyError(ValueError):
    """A wish that cannot be understood. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A split. `layers`: the head first; of tensor none, since slices are equal. `logits`: where the output matrix is.

    `same_as`: names of other strategies that make the same split.
    """

    name: str
    placement: str
    nodes: tuple[str, ...]
    layers: Mapping[str, int]
    logits: str = "head"
    same_as: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As Ansible and the records have it."""
        return {
            "name": self.name,
            "placement": self.placement,
            "nodes": list(self.nodes),
            "layers": dict(self.layers),
            "logits": self.logits,
            "same_as": list(self.same_as),
        }


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is to split.

    `total`: the model's layers. `shape`, `cluster`: None as far as they are not known; `unknown` says why. `tensor`:
    the nodes of distributed-llama, the root first.
    """

    total: int
    head: str
    workers: tuple[str, ...]
    planned: Mapping[str, int]
    need: Need
    logits: str = "head"
    shape: ModelShape | None = None
    cluster: Cluster | None = None
    unknown: str = ""
    tensor: tuple[str, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.head, *self.workers)


def proportional(total: int, weights: Mapping[str, float], least: Mapping[str, int]) -> dict[str, int]:
    """`total` shared in proportion to `weights`, by largest remainders; of equal ones the first. No node gets less than
    its `least`.

    Raises:
        ValueError: `least` is more than `total`, or a weight is below 0.
    """
    if sum(least.get(name, 0) for name in weights) > total or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"{total} layers cannot be shared by {dict(weights)} with at least {dict(least)}")
    free, left = dict(weights), total
    held: dict[str, int] = {}
    while True:
        whole = sum(free.values())
        shares = {name: left * (weight / whole if whole else 1 / len(free)) for name, weight in free.items()}
        short = [name for name, share in shares.items() if share < least.get(name, 0)]
        if not short:
            break
        for name in short:
            held[name] = least.get(name, 0)
            left -= held[name]
            del free[name]
    counts = {name: int(share) for name, share in shares.items()}
    rest = left - sum(counts.values())
    for name in sorted(counts, key=lambda name: counts[name] - shares[name])[:rest]:
        counts[name] += 1
    return {name: {**counts, **held}[name] for name in weights}


def misfit(strategy: Strategy, ground: Ground) -> str:
    """Why the split does not fit the nodes' memory; nothing if it does, or if that is not known."""
    shape, cluster, need = ground.shape, ground.cluster, ground.need
    if shape is None or cluster is None or strategy.placement == "tensor":
        return ""
    head = strategy.nodes[0]
    start = strategy.layers[head]
    needs = {
        head: memory.llama_server(
            shape,
            range(start),
            context=need.context,
            slots=need.slots,
            cache_type=need.cache_type,
            remote=len(strategy.nodes) > 1,
            output_here=strategy.logits == "head",
        ).peak
    }
    for place, name in enumerate(strategy.nodes[1:], 2):
        stop = start + strategy.layers[name]
        needs[name] = memory.rpc_worker(
            shape, range(start, stop), context=need.context, slots=need.slots, cache_type=need.cache_type
        ).peak
        if strategy.logits == "worker" and place == len(strategy.nodes):
            needs[name] += shape.head_bytes + need.slots * shape.vocabulary * 4
        start = stop
    for name, wanted in needs.items():
        if wanted > cluster.node(name).usable:
            return f"{name} would need {gib(wanted)} and has {gib(cluster.node(name).usable)}"
    return ""


def strategies(wishes: Sequence[object], ground: Ground) -> tuple[list[Strategy], dict[str, str]]:
    """What is to be measured, and of the rest why not: (strategies, name → reason).

    `wishes`: names, or {name, layers, logits} of an owner's own; none for all of NAMES.

    Raises:
        StrategyError: a wish is none of these.
    """
    wanted = [_wish(wish, ground) for wish in wishes] or list(NAMES)
    found: list[Strategy] = []
    skipped: dict[str, str] = {}
    for wish in wanted:
        made = _made(wish, ground) if isinstance(wish, str) else wish
        if isinstance(made, str):
            skipped[str(wish)] = made
            continue
        why = misfit(made, ground)
        same = next((number for number, one in enumerate(found) if _key(one) == _key(made)), None)
        if why:
            skipped[made.name] = why
        elif same is not None:
            found[same] = replace(found[same], same_as=(*found[same].same_as, made.name))
            skipped[made.name] = f"the same split as {found[same].name}"
        else:
            found.append(made)
    return found, skipped


def _key(strategy: Strategy) -> tuple[object, ...]:
    return strategy.placement, strategy.nodes, tuple(sorted(strategy.layers.items())), strategy.logits


def _wish(wish: object, ground: Ground) -> str | Strategy:
    if isinstance(wish, str):
        if wish not in NAMES:
            raise StrategyError(f"there is no strategy {wish!r}; there are {', '.join(NAMES)}, and {{name, layers}}")
        return wish
    if not isinstance(wish, Mapping) or not isinstance(wish.get("name"), str) or not wish["name"]:
        raise StrategyError(f"{wish!r} is no strategy: write a name, or {{name: mine, layers: {{pi1: 10, pi2: 26}}}}")
    name, layers, logits = str(wish["name"]), wish.get("layers"), wish.get("logits", "head")
    if name in NAMES:
        raise StrategyError(f"{name}: means another split: give your own another name")
    if more := sorted(map(str, wish.keys() - {"name", "layers", "logits"})):
        raise StrategyError(f"{name}: has {', '.join(more)}, and only name, layers and logits mean something")
    if logits not in LOGITS:
        raise StrategyError(f"{name}: logits is {logits!r}, not head or worker")
    if not isinstance(layers, Mapping) or not all(
        isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in layers.values()
    ):
        raise StrategyError(f"{name}: layers is not {{host: number}}")
    counts = {str(host): int(count) for host, count in layers.items()}
    strange = [host for host in counts if host not in ground.nodes]
    if strange:
        raise StrategyError(f"{name}: {', '.join(strange)} is none of {', '.join(ground.nodes)}")
    if sum(counts.values()) != ground.total:
        raise StrategyError(f"{name}: gives {sum(counts.values())} layers, and the model has {ground.total}")
    return _layered(name, ground, counts, logits)


def _layered(name: str, ground: Ground, counts: Mapping[str, int], logits: str = "head") -> Strategy:
    """Of the head, and of the workers that have layers."""
    nodes = (ground.head, *(worker for worker in ground.workers if counts.get(worker, 0) > 0))
    layers = {node: counts.get(node, 0) for node in nodes}
    if len(nodes) == 1:
        return Strategy(name, "replica", nodes, layers)
    return Strategy(name, "rpc", nodes, layers, logits)


def _even(ground: Ground, nodes: Sequence[str]) -> dict[str, int]:
    least = {node: int(node != ground.head) for node in nodes}
    return proportional(ground.total, dict.fromkeys(nodes, 1.0), least)


def _made(name: str, ground: Ground) -> Strategy | str:
    """The strategy of that name, or why there is none."""
    if name == "tensor":
        if not ground.tensor:
            return "nobody is in the group dllama_api"
        return Strategy(name, "tensor", ground.tensor, {})
    if name == "one node":
        if ground.shape is None or ground.cluster is None:
            return f"whether the model fits {ground.head} alone is not known: {ground.unknown}"
        return _layered(name, ground, {ground.head: ground.total})
    if len(ground.workers) > ground.total:
        return f"{len(ground.workers)} workers cannot share {ground.total} layers"
    least = dict.fromkeys(ground.workers, 1)
    if name == "planned":
        return _layered(name, ground, ground.planned, ground.logits)
    if name == "head excluded":
        return _layered(name, ground, _even(ground, ground.workers))
    if name == "logits from the worker":
        return _layered(name, ground, _even(ground, ground.nodes), "worker")
    if name == "two nodes":
        if len(ground.workers) < 2:
            return "there are only two"
        return _layered(name, ground, _even(ground, (ground.head, _fastest(ground))))
    if name == "even":
        return _layered(name, ground, _even(ground, ground.nodes))
    if ground.cluster is None:
        return f"not measured: {ground.unknown}"
    members = [ground.cluster.node(node) for node in ground.nodes]
    if name == "by memory":
        return _layered(
            name, ground, proportional(ground.total, {one.name: float(one.usable) for one in members}, least)
        )
    assumed = [one.name for one in members if "bandwidth" in one.assumed]
    if assumed:
        return f"the decode rate of {', '.join(assumed)} was not measured (bramble bench --kind llama_bench)"
    return _layered(name, ground, proportional(ground.total, {one.name: one.bandwidth for one in members}, least))


def _fastest(ground: Ground) -> str:
    """The worker that decodes fastest; of equal ones, and where nothing is known, the first."""
    if ground.cluster is None:
        return ground.workers[0]
    cluster = ground.cluster
    return max(ground.workers, key=lambda name: cluster.node(name).bandwidth)
