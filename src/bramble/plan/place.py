"""Where a model can run: placements that fit, each with its memory and its predicted speed.

A placement is one of
    replica  the whole model on one node, by llama-server
    rpc      its layers over several nodes, by llama-server and ggml-rpc-server
    tensor   each of its matrices over 2, 4 or 8 nodes, by distributed-llama
    npu      on a node's HAT, by hailo-ollama

Layers are given to nodes by dynamic programming over (node, layers placed so far), exact for the order of the nodes:
each layer has its own bytes, each node its own memory and bandwidth, each worker its way to the head."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from bramble.model.shape import ModelShape
from bramble.plan import memory, speed
from bramble.plan.cluster import GIB, Cluster, Node

MOST_WORKERS = 15
"""llama.cpp: `llama_max_devices()` is 16, and one of them is the head's own processor."""

PER_NODE = 1e6
"""Seconds that stand for one node more, where fewer nodes go before more speed: more than any token takes."""

BALANCE = 0.001
"""The share of a token's time that a node filled to the brim is worth: of splits that are about as fast, the one that
fills the nodes evenly goes first, since what a model really takes may be more than was foreseen."""

PROMPT = 0.001
"""Seconds of decoding that a second of computing a prompt is worth: of splits that decode about as fast, the one that
is faster with prompts goes first."""

EXHAUSTIVE_NODES = 10
"""Up to so many nodes, every set is looked at for distributed-llama: at most 2^10."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a model is asked to do: tokens of context in each of `slots` streams at once."""

    context: int
    slots: int = 1
    cache_type: str = "f16"


@dataclass(frozen=True, slots=True)
class Placement:
    """One way to run a model. `head` is where it answers; `layers` holds each node's, in the order of the model.

    With `tensor`, each node has a slice of every layer. `memory`: bytes that each node must have for it, peaks
    included. `parts`: seconds of one token, by node or by `output`, `network`, `compute`. `decode`, `prefill`: tokens/s
    of one stream. `measured`: `decode` is this model's own record on this node, and no prediction."""

    kind: str
    head: str
    layers: Mapping[str, range]
    memory: Mapping[str, int]
    parts: Mapping[str, float]
    decode: float
    prefill: float | None
    measured: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes, the head first."""
        return (self.head, *(name for name in self.layers if name != self.head))

    @property
    def workers(self) -> tuple[str, ...]:
        return self.nodes[1:]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no placement of a kind. `short`: bytes that are missing in all; 0 where memory is not the reason."""

    kind: str
    reason: str
    short: int = 0


def gib(amount: float) -> str:
    """Bytes for people."""
    return f"{amount / GIB:.2f} GiB"


# --- One node


def replicas(shape: ModelShape, cluster: Cluster, need: Need) -> list[Placement] | Refusal:
    """The model alone on each node that can hold it, the fastest first."""
    whole = range(shape.layers)
    wanted = memory.llama_server(
        shape, whole, context=need.context, slots=need.slots, cache_type=need.cache_type, remote=False
    ).peak
    found = []
    for node in cluster.nodes:
        if wanted <= node.usable:
            parts = speed.decode_layers(shape, cluster, node.name, {node.name: whole})
            record = node.decodes.get(shape.name)
            found.append(
                Placement(
                    kind="replica",
                    head=node.name,
                    layers={node.name: whole},
                    memory={node.name: wanted},
                    parts=parts,
                    decode=record or 1 / sum(parts.values()),
                    prefill=node.prefills.get(shape.name)
                    or 1 / speed.prefill_layers(shape, cluster, node.name, {node.name: whole}),
                    measured=record is not None,
                )
            )
    if found:
        order = {node.name: place for place, node in enumerate(cluster.nodes)}
        return sorted(found, key=lambda placement: (-placement.decode, order[placement.head]))
    largest = max(cluster.nodes, key=lambda node: node.usable, default=None)
    if largest is None:
        return Refusal("replica", "there are no nodes")
    return Refusal(
        "replica",
        f"it needs {gib(wanted)} on one node, and {largest.name} has the most: {gib(largest.usable)}",
        wanted - largest.usable,
    )


def npu(model: str, cluster: Cluster) -> list[Placement] | Refusal:
    """The model on each HAT that has it, the fastest first."""
    found = [
        Placement("npu", node.name, {}, {}, {}, node.npu[model], None, measured=True)
        for node in cluster.nodes
        if model in node.npu
    ]
    if not found:
        return Refusal("npu", "no HAT has a record of it")
    return sorted(found, key=lambda placement: -placement.decode)


# --- Layers over several nodes


@functools.lru_cache(maxsize=64)
def _worker_needs(shape: ModelShape, need: Need) -> npt.NDArray[np.float64]:
    """Bytes that a worker needs for layers start..stop, [start, stop]; infinite where it would hold none."""
    found = np.full((shape.layers + 1, shape.layers + 1), np.inf)
    for start in range(shape.layers):
        for stop in range(start + 1, shape.layers + 1):
            found[start, stop] = memory.rpc_worker(
                shape, range(start, stop), context=need.context, slots=need.slots, cache_type=need.cache_type
            ).peak
    return found


@functools.lru_cache(maxsize=64)
def _head_needs(shape: ModelShape, need: Need) -> npt.NDArray[np.float64]:
    """Bytes that the head needs for its first layers, [stop]."""
    return np.array(
        [
            memory.llama_server(
                shape,
                range(stop),
                context=need.context,
                slots=need.slots,
                cache_type=need.cache_type,
                remote=True,
            ).peak
            for stop in range(shape.layers + 1)
        ],
        dtype=np.float64,
    )


@functools.lru_cache(maxsize=64)
def _reads(shape: ModelShape, tokens: int) -> npt.NDArray[np.float64]:
    """Bytes that one token reads in layers start..stop, [start, stop]."""
    cache = tokens * shape.kv_bytes_per_token_per_layer()
    sums = np.concatenate([[0.0], np.cumsum(np.array(shape.layer_active_bytes, dtype=np.float64) + cache)])
    reads: npt.NDArray[np.float64] = sums[None, :] - sums[:, None]
    return reads


@functools.lru_cache(maxsize=64)
def _computed(shape: ModelShape) -> npt.NDArray[np.float64]:
    """Weights that one token of a prompt goes through in layers start..stop, [start, stop]."""
    sums = np.concatenate([[0.0], np.cumsum(np.array(shape.layer_parameters, dtype=np.float64))])
    computed: npt.NDArray[np.float64] = (sums[None, :] - sums[:, None]) * speed.active_share(shape)
    return computed


def split(
    shape: ModelShape,
    cluster: Cluster,
    need: Need,
    head: str,
    order: Sequence[str],
    *,
    fewest: bool,
) -> dict[str, range] | None:
    """The layers of each node that decode fastest with this head, the workers taken in `order`; None: it does not fit.

    At least one worker holds layers; the head may have none. `fewest`: fewer nodes go before more speed. Nodes that get
    nothing are left out.
    """
    layers = shape.layers
    reads = _reads(shape, speed.TYPICAL_TOKENS)
    own = cluster.node(head)
    worth = BALANCE * reads[0, layers] / max(node.bandwidth for node in cluster.nodes)
    prompts = PROMPT * _computed(shape)
    held = _head_needs(shape, need)
    # best[l]: the least cost with the first l layers placed on the nodes so far.
    best = np.where(
        held <= own.usable,
        reads[0] / own.bandwidth + prompts[0] / own.prefill + worth * (held / max(1, own.usable)) ** 2,
        np.inf,
    )
    best[layers] = np.inf  # Some worker has to hold the last one.
    steps: list[tuple[str, npt.NDArray[np.intp]]] = []
    workers = [name for name in order if name != head]
    needs = _worker_needs(shape, need)
    price = PER_NODE if fewest else 0.0
    for name in workers:
        node = cluster.node(name)
        cost = np.where(
            needs <= node.usable,
            reads / node.bandwidth
            + prompts * speed.PREFILL_REMOTE / node.prefill
            + worth * (needs / max(1, node.usable)) ** 2
            + (speed.hop(shape, cluster.link(head, name)) + price),
            np.inf,
        )
        # Without this worker: the layers stay where they are.
        np.fill_diagonal(cost, 0.0)
        through = best[:, None] + cost
        # Of equals, the one that leaves this worker the least: the nodes that come first are used first.
        came_from = layers - np.argmin(through[::-1], axis=0)
        best = through[came_from, np.arange(layers + 1)]
        steps.append((name, came_from))
    if not np.isfinite(best[layers]):
        return None
    found: dict[str, range] = {}
    stop = layers
    for name, came_from in reversed(steps):
        start = int(came_from[stop])
        if start < stop:
            found[name] = range(start, stop)
        stop = start
    shares = {head: range(stop)} | dict(reversed(found.items()))
    return shares if len(shares) <= MOST_WORKERS + 1 else None


def rpc(
    shape: ModelShape,
    cluster: Cluster,
    need: Need,
    *,
    prefer: str = "speed",
    heads: Sequence[str] = (),
    fewest: bool = True,
) -> list[Placement] | Refusal:
    """The layers over several nodes: the best split with each possible head, the best first.

    `prefer`: `speed` takes, of the sets with the fewest nodes, the one that decodes fastest. With `order`, nodes are
    taken in the cluster's order until the model fits, and the first that can be head is it. `heads`: only these may be
    head."""
    if shape.layers < 2:
        return Refusal("rpc", f"it has {shape.layers} layer, and each worker needs one")
    if len(cluster.nodes) < 2:
        return Refusal("rpc", "there is only one node")
    names = [node.name for node in cluster.nodes]
    sizes: Iterable[int] = range(2, len(names) + 1) if prefer == "order" else (len(names),)
    for size in sizes:
        within = cluster.only(names[:size])
        found = []
        for head in names[:size]:
            if heads and head not in heads:
                continue
            shares = split(shape, within, need, head, names[:size], fewest=fewest)
            if shares is not None:
                found.append(layered(shape, cluster, need, head, shares))
        if found and prefer == "order":
            return found
        if found:
            return sorted(
                found, key=lambda one: ((len(one.layers) if fewest else 0), -one.decode, names.index(one.head))
            )
    return _rpc_refusal(shape, cluster, need, heads)


def layered(shape: ModelShape, cluster: Cluster, need: Need, head: str, shares: Mapping[str, range]) -> Placement:
    """The placement with these layers, whether or not it fits."""
    needs = {
        name: int(
            _head_needs(shape, need)[held.stop] if name == head else _worker_needs(shape, need)[held.start, held.stop]
        )
        for name, held in shares.items()
    }
    parts = speed.decode_layers(shape, cluster, head, shares)
    return Placement(
        kind="rpc",
        head=head,
        layers=dict(shares),
        memory=needs,
        parts=parts,
        decode=1 / sum(parts.values()),
        prefill=1 / speed.prefill_layers(shape, cluster, head, shares),
    )


def _rpc_refusal(shape: ModelShape, cluster: Cluster, need: Need, heads: Sequence[str]) -> Refusal:
    """Why no split fits, with the largest node as head and layers wherever there is room."""
    candidates = [node for node in cluster.nodes if not heads or node.name in heads]
    if not candidates:
        return Refusal("rpc", f"{' and '.join(heads)} cannot be head: no such node is left")
    head = max(candidates, key=lambda node: node.usable)
    bare = int(_head_needs(shape, need)[0])
    if bare > head.usable:
        reason = f"the head alone needs {gib(bare)} for embedding, output and buffers"
        return Refusal("rpc", f"{reason}, and {head.name} has {gib(head.usable)}", bare - head.usable)
    cache = need.context * need.slots * shape.kv_bytes_per_token_per_layer(need.cache_type, need.cache_type)
    wanted = int(sum(shape.layer_bytes) + shape.layers * cache)
    fixed = int(max(0.0, _worker_needs(shape, need)[0, 1] - shape.layer_bytes[0] - cache))
    room = head.usable - bare + sum(max(0, node.usable - fixed) for node in cluster.nodes if node is not head)
    reason = f"its layers and their cache need {gib(wanted)}, and beside buffers {gib(room)} are left on all nodes"
    if wanted > room:
        return Refusal("rpc", reason, wanted - room)
    return Refusal("rpc", f"{reason}, too little on each for whole layers", 1)


# --- Slices over 2, 4 or 8 nodes


def tensor(shape: ModelShape, cluster: Cluster, need: Need, *, heads: Sequence[str] = ()) -> list[Placement] | Refusal:
    """Slices over nodes with distributed-llama: the fastest set for each number of nodes, the fastest of these
    first."""
    most = len(cluster.nodes)
    refusal = speed.tensor_refusal(shape, 2)
    if refusal is not None:
        return Refusal("tensor", refusal)
    if most < 2:
        return Refusal("tensor", "there is only one node")
    found = []
    for count in speed.tensor_counts(shape, most):
        root_need = memory.dllama_root(shape, count, context=need.context).peak
        worker_need = memory.dllama_worker(shape, count, context=need.context).peak
        roots = [node for node in cluster.nodes if node.usable >= root_need and (not heads or node.name in heads)]
        able = [node for node in cluster.nodes if node.usable >= worker_need]
        best = min(
            (
                _sliced(shape, cluster, root, workers, root_need, worker_need)
                for root, workers in _sets(roots, able, cluster, count)
            ),
            key=lambda one: -one.decode,
            default=None,
        )
        if best is not None:
            found.append(best)
    if not found:
        return _tensor_refusal(shape, cluster, need)
    return sorted(found, key=lambda one: (-one.decode, len(one.nodes)))


def _tensor_refusal(shape: ModelShape, cluster: Cluster, need: Need) -> Refusal:
    """Why it does not fit over the most nodes that the model can be divided over."""
    count = speed.tensor_counts(shape, len(cluster.nodes))[-1]
    root = memory.dllama_root(shape, count, context=need.context).peak
    worker = memory.dllama_worker(shape, count, context=need.context).peak
    rooms = sorted((node.usable for node in cluster.nodes), reverse=True)
    reason = f"over {count} nodes the root needs {gib(root)} and each worker {gib(worker)}"
    if rooms[0] < root:
        return Refusal("tensor", f"{reason}, and no node has more than {gib(rooms[0])}", root - rooms[0])
    able = sum(room >= worker for room in rooms)
    return Refusal("tensor", f"{reason}, and {able} have that much", max(1, worker - rooms[count - 1]))


def _sets(
    roots: Sequence[Node], able: Sequence[Node], cluster: Cluster, count: int
) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Roots and workers worth looking at: all of them on small clusters; else, for each root and each node taken as the
    slowest, the ones with the shortest round trip to the root."""
    for root in roots:
        others = [node for node in able if node.name != root.name]
        if len(cluster.nodes) <= EXHAUSTIVE_NODES:
            for workers in combinations(others, count - 1):
                yield root.name, tuple(node.name for node in workers)
            continue
        for slowest in sorted({node.bandwidth for node in others}):
            fast = [node for node in others if node.bandwidth >= slowest]
            if len(fast) >= count - 1:
                near = sorted((cluster.link(root.name, node.name).rtt, place) for place, node in enumerate(fast))
                yield root.name, tuple(fast[place].name for _, place in near[: count - 1])


def _sliced(
    shape: ModelShape,
    cluster: Cluster,
    root: str,
    workers: tuple[str, ...],
    root_need: int,
    worker_need: int,
) -> Placement:
    parts = speed.decode_tensor(shape, cluster, root, workers)
    return Placement(
        kind="tensor",
        head=root,
        layers={name: range(shape.layers) for name in (root, *workers)},
        memory={root: root_need} | dict.fromkeys(workers, worker_need),
        parts=parts,
        decode=1 / sum(parts.values()),
        prefill=1 / speed.prefill_tensor(shape, cluster, root, workers),
    )
