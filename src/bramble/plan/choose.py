"""Which placement each wanted model gets, and why.

Pure: the same cluster, models, wishes, preferences and previous plan give the same plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from bramble.model.shape import ModelShape
from bramble.plan import place
from bramble.plan.cluster import Cluster, Node
from bramble.plan.place import Need, Placement, Refusal, gib

KINDS = ("replica", "rpc", "tensor", "npu")
GOALS = ("throughput", "latency")
ORDERS = ("speed", "memory", "priority")
NO_FILES = (
    "distributed-llama reads files of its own: `bramble model convert` makes them, `dllama` in the catalogue names them"
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that is wanted. All but the name may be left to the planner.

    `placement`: one of KINDS, or `auto`. `nodes`, `head`: only these. `copies`: replicas, 0 for as many as there is
    room. `least_decode`: tokens/s of one stream that it must reach. `goal`: `throughput` copies a model that fits on
    one node; `latency` takes what answers one stream fastest."""

    model: str
    need: Need
    placement: str = "auto"
    nodes: tuple[str, ...] = ()
    head: str = ""
    copies: int = 0
    least_decode: float = 0.0
    goal: str = "throughput"


@dataclass(frozen=True, slots=True)
class Preferences:
    """Which nodes go first. `order`: `speed` (what decodes fastest), `memory` (the largest first), or `priority` (the
    order of `priority`, the others after it). `keep`: a previous placement stays unless a new one is faster by this
    share."""

    order: str = "speed"
    priority: tuple[str, ...] = ()
    keep: float = 0.05


@dataclass(frozen=True, slots=True)
class Loser:
    """What was not chosen: a placement that would work, or a refusal, and why it lost."""

    kind: str
    nodes: tuple[str, ...]
    decode: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model's placements (several replicas, or one of another kind), why, and what else there was."""

    wish: Wish
    shape: ModelShape | None
    placements: tuple[Placement, ...]
    usable: Mapping[str, int]
    why: str
    losers: tuple[Loser, ...] = ()
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A model that runs nowhere: why, and what would have fitted."""

    wish: Wish
    refusals: tuple[Refusal, ...]
    would_fit: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    chosen: tuple[Chosen, ...]
    unplaced: tuple[Unplaced, ...]
    cluster: Cluster

    def of(self, model: str) -> Chosen | None:
        """What was chosen for a model; None: nothing."""
        return next((chosen for chosen in self.chosen if chosen.wish.model == model), None)


Previous = Mapping[str, Sequence[Placement]]
"""Model → its placements in the plan that is in force."""


def choose(
    cluster: Cluster,
    shapes: Mapping[str, ModelShape],
    wishes: Sequence[Wish],
    preferences: Preferences = Preferences(),
    previous: Previous | None = None,
    sliceable: Collection[str] | None = None,
) -> Plan:
    """A plan for all wishes, those that come first served first.

    `sliceable`: the models of which there are distributed-llama's files; None: all.

    A node's memory is shared by what is placed on it. One model is split by llama.cpp's RPC and one by
    distributed-llama at most, and a node holds one replica: a service of each kind is what a node has."""
    chosen: list[Chosen] = []
    unplaced: list[Unplaced] = []
    taken: dict[str, int] = {}
    with_replica: set[str] = set()
    for wish in wishes:
        left = cluster.without(taken)
        shape = shapes.get(wish.model)
        options = _options(left, shape, wish, preferences, with_replica, chosen, sliceable)
        found = _select(left, shape, wish, preferences, options, (previous or {}).get(wish.model, ()))
        if found is None:
            refusals = tuple(option for option in options if isinstance(option, Refusal))
            unplaced.append(Unplaced(wish, refusals, _would_fit(left, shape, wish)))
            continue
        # Those that come later get a copy each before this one gets its second.
        if found.placements[0].kind == "replica" and wish.copies == 0 and len(wishes) > 1:
            found = replace(found, placements=found.placements[:1])
        chosen.append(found)
        _take(found.placements, taken, with_replica)
    chosen = [_spread(one, cluster, shapes, taken, with_replica, preferences) for one in chosen]
    return Plan(tuple(chosen), tuple(unplaced), cluster)


def _take(placements: Sequence[Placement], taken: dict[str, int], with_replica: set[str]) -> None:
    for placement in placements:
        for name, amount in placement.memory.items():
            taken[name] = taken.get(name, 0) + amount
        if placement.kind == "replica":
            with_replica.add(placement.head)


def _spread(
    one: Chosen,
    cluster: Cluster,
    shapes: Mapping[str, ModelShape],
    taken: dict[str, int],
    with_replica: set[str],
    preferences: Preferences,
) -> Chosen:
    """With more copies on nodes that have room left, where the owner set no number."""
    if one.placements[0].kind != "replica" or one.wish.copies or one.wish.goal != "throughput":
        return one
    left = _ordered(_allowed(cluster.without(taken), one.wish), preferences)
    left = left.only([node.name for node in left.nodes if node.name not in with_replica])
    more = place.replicas(shapes[one.wish.model], left, one.wish.need)
    if isinstance(more, Refusal):
        return one
    more = [placement for placement in more if placement.decode >= one.wish.least_decode]
    _take(more, taken, with_replica)
    return replace(one, placements=(*one.placements, *more))


def _allowed(cluster: Cluster, wish: Wish) -> Cluster:
    if not wish.nodes:
        return cluster
    known = {node.name for node in cluster.nodes}
    return cluster.only([name for name in wish.nodes if name in known])


def _ordered(cluster: Cluster, preferences: Preferences) -> Cluster:
    """The cluster in the order in which nodes are to be used."""
    nodes = list(cluster.nodes)
    if preferences.order == "memory":
        nodes.sort(key=lambda node: (-node.usable, -node.bandwidth))
    elif preferences.order == "priority":
        rank = {name: place for place, name in enumerate(preferences.priority)}
        nodes.sort(key=lambda node: rank.get(node.name, len(rank)))
    return cluster.only([node.name for node in nodes])


def _options(
    cluster: Cluster,
    shape: ModelShape | None,
    wish: Wish,
    preferences: Preferences,
    with_replica: set[str],
    chosen: Sequence[Chosen],
    sliceable: Collection[str] | None,
) -> list[Placement | Refusal]:
    """The best placements of each kind that is allowed, or why there is none."""
    kinds = KINDS if wish.placement == "auto" else (wish.placement,)
    among = _ordered(_allowed(cluster, wish), preferences)
    heads = (wish.head,) if wish.head else ()
    served = {one.placements[0].kind: one.wish.model for one in chosen}
    found: list[Placement | Refusal] = []
    for kind in kinds:
        result: list[Placement] | Refusal
        if kind != "npu" and shape is None:
            continue
        if kind in ("rpc", "tensor") and kind in served:
            result = Refusal(kind, f"{served[kind]} has it already, and there is one such service")
        elif kind == "tensor" and sliceable is not None and wish.model not in sliceable:
            result = Refusal(kind, NO_FILES)
        elif kind == "npu":
            result = place.npu(wish.model, among)
            if isinstance(result, Refusal) and shape is not None and wish.placement == "auto":
                continue
        elif kind == "replica":
            names = [node.name for node in among.nodes if node.name not in with_replica]
            names = [name for name in names if not wish.head or name == wish.head]
            result = place.replicas(_known(shape), among.only(names), wish.need)
            if not isinstance(result, Refusal) and preferences.order != "speed":
                result.sort(key=lambda one: names.index(one.head))
        elif kind == "rpc":
            prefer = "speed" if preferences.order == "speed" else "order"
            result = place.rpc(_known(shape), among, wish.need, prefer=prefer, heads=heads)
            if not isinstance(result, Refusal) and result[0].decode < max(wish.least_decode, _latency(wish)):
                faster = place.rpc(_known(shape), among, wish.need, heads=heads, fewest=False)
                if not isinstance(faster, Refusal) and faster[0].decode > result[0].decode:
                    result = [faster[0], *result]
        else:
            result = place.tensor(_known(shape), among, wish.need, heads=heads)
        found += [result] if isinstance(result, Refusal) else result
    return found


def _latency(wish: Wish) -> float:
    return float("inf") if wish.goal == "latency" else 0.0


def _known(shape: ModelShape | None) -> ModelShape:
    assert shape is not None
    return shape


def _select(
    cluster: Cluster,
    shape: ModelShape | None,
    wish: Wish,
    preferences: Preferences,
    options: Sequence[Placement | Refusal],
    previous: Sequence[Placement],
) -> Chosen | None:
    """The placements that win, and why the others lost. None: there is no placement."""
    able = [option for option in options if isinstance(option, Placement)]
    if not able:
        return None
    quick = [placement for placement in able if placement.decode >= wish.least_decode]
    among = quick or able
    copies = [placement for placement in among if placement.kind == "replica"]
    if wish.goal == "throughput" and copies:
        winners = copies[: wish.copies] if wish.copies else copies
        why = (
            "it fits on one node, and copies answer several requests at once"
            if len(winners) > 1
            else "it fits on one node"
        )
    else:
        # Of each kind, what the order of nodes and the wish for few of them put first; for latency, any.
        firsts = among if wish.goal == "latency" else list({one.kind: one for one in reversed(among)}.values())
        best = max(firsts, key=lambda placement: (placement.decode, -len(placement.nodes)))
        winners = [best]
        why = _why(best, among, wish, cluster)
    if winners[0].kind == "replica" and len(winners) < wish.copies:
        why += f"; {wish.copies} copies are wanted, and there is room for {len(winners)}"
    if not quick:
        why += f"; no placement reaches the {wish.least_decode:g} tokens/s that are wanted"
    kept = _kept(cluster, shape, wish, preferences, winners, previous)
    if kept is not None:
        why = why if _same(kept, winners) else "it was here before, and nothing else is faster by enough to move it"
        winners = kept
    usable = {node.name: node.usable for node in cluster.nodes}
    losers = tuple(_losers(options, winners, wish))
    return Chosen(wish, shape, tuple(winners), usable, why, losers, kept is not None)


def _why(best: Placement, among: Sequence[Placement], wish: Wish, cluster: Cluster) -> str:
    if best.kind == "npu":
        return "it runs on the HAT"
    others = [placement for placement in among if placement.kind != best.kind]
    if best.kind == "replica":
        return "one stream is fastest on this node alone"
    reason = {
        "rpc": f"its layers fit on {len(best.layers)} nodes",
        "tensor": f"{len(best.nodes)} nodes compute each token together",
    }[best.kind]
    if wish.placement != "auto":
        return f"{reason}; the owner wants {wish.placement}"
    if not others:
        return f"{reason}, and it fits no other way" if len(cluster.nodes) > 1 else reason
    return f"{reason}, and that is faster than the other ways"


def _kept(
    cluster: Cluster,
    shape: ModelShape | None,
    wish: Wish,
    preferences: Preferences,
    winners: Sequence[Placement],
    previous: Sequence[Placement],
) -> list[Placement] | None:
    """The previous placements, with today's figures, if they still work and nothing is faster by enough; else None."""
    if not previous or shape is None or previous[0].kind not in ("rpc", "tensor"):
        return None
    old = previous[0]
    known = {node.name: node for node in _allowed(cluster, wish).nodes}
    if old.kind != winners[0].kind or any(name not in known for name in old.nodes) or wish.head not in ("", old.head):
        return None
    if old.kind == "rpc":
        if [number for held in old.layers.values() for number in held] != list(range(shape.layers)):
            return None
        now = place.layered(shape, cluster, wish.need, old.head, old.layers)
    else:
        again = place.tensor(shape, cluster.only(old.nodes), wish.need, heads=[old.head])
        if isinstance(again, Refusal) or set(again[0].nodes) != set(old.nodes):
            return None
        now = again[0]
    fits = all(amount <= known[name].usable for name, amount in now.memory.items())
    quick = now.decode >= min(wish.least_decode, winners[0].decode)
    return [now] if fits and quick and now.decode >= (1 - preferences.keep) * winners[0].decode else None


def _same(one: Sequence[Placement], other: Sequence[Placement]) -> bool:
    return [(p.kind, p.head, dict(p.layers)) for p in one] == [(p.kind, p.head, dict(p.layers)) for p in other]


def _losers(options: Sequence[Placement | Refusal], winners: Sequence[Placement], wish: Wish) -> list[Loser]:
    """The best of what was not chosen, of each kind and number of nodes, and the refusals."""
    found: list[Loser] = []
    best = winners[0]
    seen = {(best.kind, len(best.nodes))}
    for option in options:
        if isinstance(option, Refusal):
            found.append(Loser(option.kind, (), None, option.reason))
            continue
        key = (option.kind, len(option.nodes))
        if any(_same([option], [winner]) for winner in winners) or key in seen:
            continue
        seen.add(key)
        if option.decode < wish.least_decode <= best.decode:
            why = f"slower than the {wish.least_decode:g} tokens/s that are wanted"
        elif best.kind == "replica" and option.kind != "replica" and wish.goal == "throughput":
            why = "takes several nodes for one stream"
        elif option.kind == best.kind and len(option.nodes) > len(best.nodes):
            why = "takes more nodes"
        elif option.decode <= best.decode:
            share = round(100 * (1 - option.decode / best.decode))
            why = f"{share} % slower" if share else "no faster"
        else:
            why = "faster, but not by enough to move it"
        found.append(Loser(option.kind, option.nodes, option.decode, why))
    return found


# --- What would fit

BITS = {"Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.69, "Q4_K_M": 4.85, "Q4_0": 4.55, "Q3_K_M": 3.91, "Q2_K": 3.00}
"""Bits a weight, by name of the mix: llama.cpp tools/quantize/README.md, Llama 3.1 8B."""


def _fits(cluster: Cluster, shape: ModelShape, need: Need, wish: Wish) -> bool:
    among = _allowed(cluster, wish)
    heads = (wish.head,) if wish.head else ()
    kinds = KINDS if wish.placement == "auto" else (wish.placement,)
    return ("replica" in kinds and not isinstance(place.replicas(shape, among, need), Refusal)) or (
        "rpc" in kinds and not isinstance(place.rpc(shape, among, need, heads=heads), Refusal)
    )


def _would_fit(cluster: Cluster, shape: ModelShape | None, wish: Wish) -> tuple[str, ...]:
    """What the owner could change, the smallest change of each kind."""
    if shape is None or not cluster.nodes:
        return ()
    found = []
    context = wish.need.context // 2
    while context >= 512 and not _fits(cluster, shape, replace(wish.need, context=context), wish):
        context //= 2
    if context >= 512:
        found.append(f"a context of {context} tokens")
    bits = 8 * sum(shape.layer_bytes) / sum(shape.layer_parameters)
    for name, smaller in sorted(BITS.items(), key=lambda item: -item[1]):
        if smaller < 0.97 * bits and _fits(cluster, scaled(shape, smaller / bits), wish.need, wish):
            found.append(f"a file quantized as {name} ({smaller:g} bits a weight, and this has {bits:.1f})")
            break
    largest = max(cluster.nodes, key=lambda node: node.memory)
    for more in range(1, place.MOST_WORKERS):
        added = tuple(_copy(largest, f"{largest.name} {number}") for number in range(1, more + 1))
        if _fits(replace(cluster, nodes=cluster.nodes + added), shape, wish.need, replace(wish, nodes=())):
            found.append(
                f"{more} more {'node' if more == 1 else 'nodes'} with {gib(largest.memory)}, as {largest.name} has"
            )
            break
    return tuple(found)


def _copy(node: Node, name: str) -> Node:
    return replace(node, name=name, taken=0)


def scaled(shape: ModelShape, factor: float) -> ModelShape:
    """The same model in a file whose weights take that much less."""

    def less(amount: int) -> int:
        return max(1, round(amount * factor))

    return replace(
        shape,
        bytes=less(shape.bytes),
        embedding_bytes=less(shape.embedding_bytes),
        output_bytes=0 if shape.tied else less(shape.output_bytes),
        layer_bytes=tuple(map(less, shape.layer_bytes)),
        layer_active_bytes=tuple(map(less, shape.layer_active_bytes)),
        largest_tensor_bytes=less(shape.largest_tensor_bytes),
        type_bytes=tuple((name, less(amount)) for name, amount in shape.type_bytes),
    )
