"""How fast a model runs where: seconds for one token, from bytes that are read and bytes that travel.

Decoding reads every weight once for each token, so memory bandwidth rules it; a prompt is computed in batches, so
arithmetic rules that. Engines split by layers (RPC) work one node after the other and add up; engines split by tensors
(distributed-llama) work at the same time and wait for the slowest, and for each other.

Checked against published measurements in tests/unit/test_plan_published.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bramble.model.shape import ModelShape
from bramble.plan.cluster import Cluster, Link, Node

SPREAD = 0.20
"""How far off a prediction may be, as a share: what published runs of one board and model differ by."""

TYPICAL_TOKENS = 256
"""Tokens in the KV cache at which decoding is predicted: the middle of a short conversation."""

HOP = 0.15e-3
"""Seconds that a remote worker costs beside the network: both sides' handling of the request (llama.cpp's RPC)."""

HOP_ROUND_TRIPS = 1.5
"""Round trips for one worker's turn: the activations one way, the result back, half of them overlapped."""

PREFILL_REMOTE = 1.9
"""How much slower an RPC worker computes a prompt than the same node alone: its tensors lie in plain buffers, not
repacked for the processor (llama.cpp PR 19356: 1.86 to 1.91 on a Pi 5)."""

SYNC_PER_NODE = 1.5e-8
"""Seconds x width⁻¹ x nodes⁻¹ for one synchronization of distributed-llama on a tuned gigabit network; at least half of
a round trip. Untuned systems took three to five times as long."""

MOE_TENSOR = 0.8
"""The share of the computed speed that mixtures of experts reached with distributed-llama (13 to 15 of 17.5
tokens/s)."""

Q40_PER_WEIGHT = 18 / 32
"""Bytes a weight of distributed-llama's q40: 32 weights in 16 bytes and a half-precision scale."""


def layers_decode(shape: ModelShape, node: Node, layers: range, *, tokens: int = TYPICAL_TOKENS) -> float:
    """Seconds that a node takes for these layers of one token."""
    weights = sum(shape.layer_active_bytes[layers.start : layers.stop])
    cache = len(layers) * tokens * shape.kv_bytes_per_token_per_layer()
    return (weights + cache) / node.bandwidth


def hop(shape: ModelShape, link: Link) -> float:
    """Seconds that the way to a remote worker and back costs for one token: its activations, F32, in and out."""
    return HOP_ROUND_TRIPS * link.rtt + 2 * shape.embedding * 4 / link.throughput + HOP


def decode_layers(
    shape: ModelShape, cluster: Cluster, head: str, layers: Mapping[str, range], *, tokens: int = TYPICAL_TOKENS
) -> dict[str, float]:
    """Seconds for one token by part: each node's name, `output` (on the head), `network`. One node: the model alone."""
    parts = {
        name: layers_decode(shape, cluster.node(name), held, tokens=tokens) for name, held in layers.items() if held
    }
    parts["output"] = shape.head_bytes / cluster.node(head).bandwidth
    parts["network"] = sum(hop(shape, cluster.link(head, name)) for name in parts.keys() & layers.keys() - {head})
    return parts


def prefill_layers(shape: ModelShape, cluster: Cluster, head: str, layers: Mapping[str, range]) -> float:
    """Seconds for one token of a long prompt. The nodes take their turns (llama.cpp computes a prompt in a pipeline
    only where the head holds no layers itself)."""
    total = 0.0
    for name, held in layers.items():
        node = cluster.node(name)
        share = sum(shape.layer_parameters[held.start : held.stop]) * active_share(shape) / node.prefill
        remote = name != head and len(held) > 0
        total += share * (PREFILL_REMOTE if remote else 1)
        if remote:
            total += 2 * shape.embedding * 4 / cluster.link(head, name).throughput
    return total


def active_share(shape: ModelShape) -> float:
    """The share of its layers' weights that one token uses: below 1 for a mixture of experts."""
    return sum(shape.layer_active_bytes) / sum(shape.layer_bytes)


def decode_tensor(
    shape: ModelShape, cluster: Cluster, root: str, workers: Sequence[str], *, tokens: int = TYPICAL_TOKENS
) -> dict[str, float]:
    """Seconds for one token with distributed-llama by part: `compute` (of the slowest node), `network`.

    Two synchronizations a layer and two more; the logits come to the root. Weights are q40, the KV cache F32.
    """
    names = [root, *workers]
    nodes = [cluster.node(name) for name in names]
    weights = sum(shape.layer_parameters) * active_share(shape) + shape.vocabulary * shape.embedding
    cache = shape.layers * tokens * shape.kv_bytes_per_token_per_layer("f32", "f32")
    read = weights * Q40_PER_WEIGHT + cache
    compute = read / len(nodes) / min(node.bandwidth for node in nodes)
    if shape.experts:
        compute /= MOE_TENSOR
    if not workers:
        return {"compute": compute, "network": 0.0}
    links = [cluster.link(one, other) for i, one in enumerate(names) for other in names[:i]]
    rtt = max(link.rtt for link in links)
    throughput = min(link.throughput for link in links)
    sync = max(0.5 * rtt, SYNC_PER_NODE * shape.embedding * len(nodes))
    logits = shape.vocabulary * 4 * len(workers) / len(nodes) / throughput
    return {"compute": compute, "network": (2 * shape.layers + 2) * sync + logits}


def prefill_tensor(shape: ModelShape, cluster: Cluster, root: str, workers: Sequence[str]) -> float:
    """Seconds for one token of a long prompt with distributed-llama: batches of 32 tokens, no repacked weights."""
    names = [root, *workers]
    slowest = min(cluster.node(name).prefill for name in names)
    compute = sum(shape.layer_parameters) * active_share(shape) * PREFILL_REMOTE / len(names) / slowest
    throughput = min(
        (cluster.link(one, other).throughput for i, one in enumerate(names) for other in names[:i]),
        default=float("inf"),
    )
    # Each node sends its slice of each of 2 sums a layer to the others, in q80: 34 bytes for 32 values.
    return compute + 2 * shape.layers * len(workers) * shape.embedding * 34 / 32 / throughput


def tensor_counts(shape: ModelShape, most: int) -> tuple[int, ...]:
    """The numbers of nodes, from 2 to `most`, over which distributed-llama can divide this model
    (src/nn/nn-core.cpp)."""
    return tuple(count for count in (2, 4, 8, 16) if count <= most and tensor_refusal(shape, count) is None)


def tensor_refusal(shape: ModelShape, nodes: int) -> str | None:
    """Why distributed-llama cannot divide the model over so many nodes; None: it can."""
    if shape.architecture not in ("llama", "qwen3", "qwen3moe"):
        return f"distributed-llama knows llama and qwen3 models, and this is {shape.architecture}"
    if nodes & (nodes - 1):
        return f"distributed-llama divides a model over 1, 2, 4 or 8 nodes, not {nodes}"
    if nodes > shape.kv_heads:
        return f"the model has {shape.kv_heads} KV heads, and each node needs one: {nodes} nodes are too many"
    widths = {
        "KV width": shape.kv_heads * shape.key_length,
        "query width": shape.heads * shape.key_length,
        "feed-forward width": shape.feed_forward,
        "vocabulary": shape.vocabulary,
    }
    for name, width in widths.items():
        if width % nodes or (name != "vocabulary" and (width // nodes) % 32):
            return f"the model's {name}, {width}, cannot be divided by {nodes} into blocks of 32"
    return None
