"""How many bytes each engine's processes take for a model. Pure functions; nothing is measured here.

llama.cpp was read at 0c1e57098, distributed-llama at 8d624a7. Both are held against what their processes take, with the
command lines of roles/llama_service and roles/rpc_worker (tests/benchmarks/memory.py).

Not covered, and over-estimated: layers that keep no full KV cache (sliding windows, recurrent layers).
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from bramble.model.shape import CACHE_BYTES, ModelShape

MIB = 1 << 20

REPACKED_ON_PI5 = frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"})
"""Types whose matrices llama.cpp copies into another order where the CPU has dotprod and no i8mm
(ggml/src/ggml-cpu/repack.cpp, `ggml_repack_get_optimal_repack_type`)."""
REPACKED_ON_AVX2 = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
"""The same for x86-64-v3."""

# Measured: an idle process with its threads, and the pages of the programs and libraries that it runs.
_SERVER_PROGRAM, _SERVER_HEAP = 12 * MIB, 4 * MIB
_WORKER_PROGRAM, _WORKER_HEAP = 5 * MIB + MIB // 2, 3 * MIB // 4
_DLLAMA_PROGRAM = 4 * MIB
# Of each token: its text three times (src/llama-vocab.cpp: id_to_token, token_to_id, cache_token_to_piece), and its
# merge (bpe_ranks: two strings in a map's node); 32 bytes a string, more where the text is longer than there is room.
_TOKEN_BYTES = 280
# Of each token and slot: llama_token_data, which the sampler sorts.
_CANDIDATE_BYTES = 12
# Of each layer: about 30 tensors of 368 bytes in each of three graphs, and their places in the allocator.
_LAYER_GRAPH_BYTES = 100_000
# glibc takes blocks up to this size out of its heap once it has given one back, and keeps the heap
# (malloc/malloc.c, DEFAULT_MMAP_THRESHOLD_MAX).
_KEPT_BLOCK = 32 * MIB
_CONTEXT_STEP = 256  # src/llama-context.cpp pads each sequence's context to it.
_DLLAMA_BATCH = 32  # src/app.cpp, nBatches


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes of one process.

    Attributes:
        weights: that are read for each token.
        kv: the KV cache, whole from the start.
        compute: buffers of the computation.
        process: program, threads, vocabulary, what malloc keeps.
        loading: on top of the rest, for a moment, mostly while loading.
        reclaimable: pages of the model's file that are read once, or by rows: originals of what was copied into another
            order, the input embedding. They count as resident until the kernel wants them back; nobody must plan for
            them.
    """

    weights: int
    kv: int
    compute: int
    process: int
    loading: int = 0
    reclaimable: int = 0

    @property
    def steady(self) -> int:
        """While it serves."""
        return self.weights + self.kv + self.compute + self.process

    @property
    def peak(self) -> int:
        """At most."""
        return self.steady + self.loading

    @property
    def resident(self) -> int:
        """What `VmRSS` says while it serves, as long as nothing else wants the memory."""
        return self.steady + self.reclaimable


def llama_server(
    shape: ModelShape,
    own_layers: range,
    *,
    context: int,
    slots: int,
    cache_type: str = "f16",
    remote: bool,
    output_here: bool = True,
    ubatch: int = 512,
    batch: int = 512,
    repacked: Set[str] = REPACKED_ON_PI5,
) -> Need:
    """`llama-server`, alone or as head of RPC workers.

    Args:
        own_layers: the layers that it computes itself; the first ones, if `remote`.
        context: tokens of each slot.
        remote: it has workers, and runs with `--load-mode none`, so that it keeps only what it computes itself. Else it
            has the whole model, mapped.
        output_here: `--override-tensor '^(output|token_embd).*=CPU'`. The input embedding is always here.
        repacked: types of which it makes a copy in another order.

    Raises:
        ValueError: layers that the model has not, no slot, no token of context.
    """
    _check(shape, own_layers, context, slots)
    # A tied embedding is looked up by rows and multiplied with as output; only the second use can be repacked.
    embedding_copied = output_here and shape.tied and _embedding_type(shape) in repacked
    head = shape.head_bytes if output_here else 0
    own = sum(shape.layer_bytes[own_layers.start : own_layers.stop])
    weights = own + head + shape.other_bytes
    # What is only looked up by rows. In a mapped file that needs no memory of its own.
    rows_only = 0 if shape.tied and output_here and not embedding_copied else shape.embedding_bytes
    kv = _kv(shape, len(own_layers), context, slots, cache_type)
    rows = _rows(ubatch, batch, context, slots)
    compute = slots * shape.vocabulary * 4
    compute += rows * 4 * (_widths(shape, streams=4) if len(own_layers) else 2 * shape.embedding)
    compute += _mask(rows, context) + _work(shape, rows)
    process = _SERVER_PROGRAM + _SERVER_HEAP + shape.layers * _LAYER_GRAPH_BYTES
    process += shape.vocabulary * (_TOKEN_BYTES + slots * _CANDIDATE_BYTES)
    if not remote:
        copied = sum(stored for name, stored in shape.type_bytes if name in repacked)
        return Need(weights, kv, compute, process, reclaimable=copied + rows_only)
    weights += rows_only
    # Each tensor that goes to a worker is read into one block and put into a message in another
    # (src/llama-model-loader.cpp, `read_buf`; ggml-rpc.cpp, `serialize_set_tensor`).
    largest = largest_layer_tensor(shape)
    kept = 2 * largest if largest <= _KEPT_BLOCK else 0
    staged = 0 if kept else 2 * largest
    return Need(weights, kv, compute, process + kept, loading=max(0, staged - kv - compute))


def rpc_worker(
    shape: ModelShape,
    layers: range,
    *,
    context: int,
    slots: int,
    cache_type: str = "f16",
    ubatch: int = 512,
    batch: int = 512,
) -> Need:
    """`ggml-rpc-server` without a cache, with `layers` of a model whose output the head computes.

    Raises:
        ValueError: as of `llama_server`.
    """
    _check(shape, layers, context, slots)
    weights = sum(shape.layer_bytes[layers.start : layers.stop])
    kv = _kv(shape, len(layers), context, slots, cache_type)
    rows = _rows(ubatch, batch, context, slots)
    # The model's last layer computes its feed-forward part only for the rows that give an output.
    alone = len(layers) == 1 and layers.stop == shape.layers
    buffers = rows * 4 * (4 * shape.embedding if alone else _widths(shape, streams=2)) + _mask(rows, context)
    work = _work(shape, rows)
    # Each tensor arrives in a block of its own before it is copied to its place (ggml-rpc.cpp, `recv_msg`), a batch's
    # activations too. What malloc keeps of that is used again by later blocks that are no larger.
    message = rows * 4 * shape.embedding
    largest = largest_layer_tensor(shape)
    kept = 0
    if largest <= _KEPT_BLOCK:
        kept = max(0, largest - sum(block for block in (kv, buffers, work, message) if block <= largest))
    staged = largest if largest > _KEPT_BLOCK else 0
    compute = buffers + work + message
    # Seen with mixtures only: for a moment of each prompt, all experts' results once more.
    moment = rows * 4 * shape.experts_used * shape.embedding
    loading = max(moment, staged - kv - compute)
    return Need(weights, kv, compute, _WORKER_PROGRAM + _WORKER_HEAP + kept, loading=loading)


def dllama_root(shape: ModelShape, nodes: int, *, context: int) -> Need:
    """`dllama-api` or `dllama chat`, root of `nodes` nodes (itself one of them), with q40 weights and q80 buffers.

    Raises:
        ValueError: a number of nodes among which the model cannot be divided, no token of context.
    """
    return _dllama(shape, nodes, 0, context)


def dllama_worker(shape: ModelShape, nodes: int, *, context: int) -> Need:
    """`dllama worker`: the one that needs most, which is the last.

    Raises:
        ValueError: as of `dllama_root`; there is no worker among 1 node.
    """
    if nodes < 2:
        raise ValueError(f"nodes: {nodes} have no worker")
    return _dllama(shape, nodes, nodes - 1, context)


def largest_layer_tensor(shape: ModelShape) -> int:
    """Bytes of the largest tensor of any layer, as far as the shape tells: by the type with the most bytes a weight."""
    widest = max(shape.feed_forward, shape.heads * shape.key_length)
    weights = max(shape.embedding * widest, shape.experts * shape.embedding * shape.feed_forward)
    density = max(_TYPE_BYTES.get(name, 2.0) for name in _main_types(shape))
    return min(int(weights * density), shape.largest_tensor_bytes)


# --- llama.cpp

# Bytes of one weight (ggml/src/ggml-common.h), of the types that models are offered in.
_TYPE_BYTES = {
    "F32": 4.0,
    "F16": 2.0,
    "BF16": 2.0,
    "Q8_0": 34 / 32,
    "Q6_K": 210 / 256,
    "Q5_1": 24 / 32,
    "Q5_0": 22 / 32,
    "Q5_K": 176 / 256,
    "Q4_1": 20 / 32,
    "Q4_0": 18 / 32,
    "Q4_K": 144 / 256,
    "MXFP4": 17 / 32,
    "IQ4_NL": 18 / 32,
    "Q3_K": 110 / 256,
    "Q2_K": 84 / 256,
}


def _check(shape: ModelShape, layers: range, context: int, slots: int) -> None:
    if layers.step != 1 or not 0 <= layers.start <= layers.stop <= shape.layers:
        raise ValueError(f"layers: {layers} is not a run of the {shape.layers} layers of {shape.name}")
    for name, value in (("context", context), ("slots", slots)):
        if value < 1:
            raise ValueError(f"{name}: must be 1 or more, got {value}")


def _padded(context: int) -> int:
    return -(-context // _CONTEXT_STEP) * _CONTEXT_STEP


def _rows(ubatch: int, batch: int, context: int, slots: int) -> int:
    """Tokens that are computed at once."""
    return min(ubatch, batch, _padded(context) * slots)


def _inner(shape: ModelShape) -> int:
    """Width of the feed-forward part of one token: that of all its experts together."""
    return shape.feed_forward * max(1, shape.experts_used)


def _widths(shape: ModelShape, streams: int) -> int:
    """Values that the allocator sets aside for one token in the widest part of a layer, the feed-forward one.

    Its graph holds gate, up and their product, and the residual stream `streams` times: before, after, normalized; in a
    mixture also the result of each expert, and that times its weight (src/llama-graph.cpp, `build_ffn` and
    `build_moe_ffn`). ggml reuses what is free where it fits, so that these are the logged sizes of dense models whose
    feed-forward part is at least three times as wide as the stream. Of narrower ones and of mixtures it takes less.
    """
    dense = 3 * _inner(shape) + streams * shape.embedding
    if not shape.experts:
        return dense
    return max(dense, 2 * (shape.experts_used * shape.embedding + _inner(shape) + shape.embedding))


def _kv(shape: ModelShape, layers: int, context: int, slots: int, cache_type: str) -> int:
    """One stream for each slot, since the number of slots is given (`kv_unified = false`)."""
    if cache_type not in CACHE_BYTES:
        raise ValueError(f"cache_type: {cache_type!r} is not one of {', '.join(CACHE_BYTES)}")
    per_token = shape.kv_bytes_per_token_per_layer(cache_type, cache_type)
    return int(layers * slots * _padded(context) * per_token)


def _mask(rows: int, context: int) -> int:
    """F16, since flash attention is on: for each token those of its own slot (src/llama-graph.cpp)."""
    return rows * _padded(context) * 2


def _work(shape: ModelShape, rows: int) -> int:
    """One operation's input in the type that its matrix is multiplied with (ggml-cpu.c, `ggml_graph_plan`).

    That is F16 for a matrix of F16, else blocks of 8 bits: at most 292 bytes for 256 values.
    """
    wide = any(name in ("F32", "F16", "BF16") for name in _main_types(shape))
    values = max(_inner(shape), shape.embedding, shape.heads * shape.value_length)
    places = shape.experts * shape.experts_used * 8  # For each expert, which rows are its own.
    return int(rows * (values * (2.0 if wide else 292 / 256) + places))


def _main_types(shape: ModelShape) -> list[str]:
    """The types of the layers' large matrices: not that of a mixture's gates, which are F32 and small."""
    all_bytes = sum(size for _, size in shape.type_bytes)
    return [name for name, size in shape.type_bytes if size * 50 >= all_bytes] or ["F32"]


def _embedding_type(shape: ModelShape) -> str:
    """The type of the input embedding, from its size. Where two types have one size: the one that is repacked."""
    density = shape.embedding_bytes / (shape.vocabulary * shape.embedding)
    close = [name for name, size in _TYPE_BYTES.items() if abs(size - density) < 0.005]
    return next((name for name in close if name in REPACKED_ON_PI5), close[0] if close else "")


# --- distributed-llama


def _dllama(shape: ModelShape, nodes: int, index: int, context: int) -> Need:
    """src/llm.cpp, `buildLlmNet`. All buffers are locked into memory, so that they are there from the start."""
    if context < 1:
        raise ValueError(f"context: must be 1 or more, got {context}")
    if nodes < 1 or nodes > shape.kv_heads or any(size % nodes for size in (shape.kv_heads, shape.feed_forward // 32)):
        raise ValueError(
            f"nodes: {nodes} cannot divide {shape.kv_heads} key heads and a feed-forward width of {shape.feed_forward}"
        )
    width, queries, keys = shape.embedding, shape.heads * shape.key_length, shape.key_width
    experts, inner, used = max(1, shape.experts), shape.feed_forward, max(1, shape.experts_used)
    layer_matrices = 2 * width * queries + 2 * width * keys + 3 * width * inner * experts
    norms = 2 * width + (2 * shape.key_length if _falcon(shape) else 0) + width * shape.experts
    q40, q80 = 18 / 32, 34 / 32
    weights = (shape.layers * layer_matrices + shape.vocabulary * width) * q40 / nodes
    weights += 4 * (shape.layers * norms + width)
    if index == 0:
        weights += 4 * shape.vocabulary * width
    kv = 2 * shape.layers * context * keys // nodes * 4

    rope = shape.key_length if _falcon(shape) else ((index + 1) * queries - index * keys) // nodes
    of_a_token = 4 * (3 * width + queries + (queries + 2 * keys) / nodes)  # x, y, the pipe x; z; q, k, v
    of_a_token += q80 * (width + queries / nodes + width * nodes)  # q_y, q_z_slice, the pipe zq
    of_a_token += 4 * shape.vocabulary * (1 + 1 / nodes)  # the pipe of logits, and this node's share
    of_a_token += (2 * 4 + q80) * inner / nodes * (used + 1)  # d, l and q_d, and the same for each expert
    of_a_token += (4 + q80) * width * used  # moe_y
    of_a_token += 4 * shape.heads / nodes * context  # att
    compute = _DLLAMA_BATCH * of_a_token + 4 * context * rope
    # The largest slice, as it is cut at the root and as it arrives at a worker.
    slices = (width * inner, width * queries, shape.vocabulary * width)
    loading = max(slices) / nodes * q40 if nodes > 1 else 0
    # The root maps the file while it loads.
    return Need(round(weights), kv, round(compute), _DLLAMA_PROGRAM + _dllama_vocabulary(shape, index), round(loading))


def _falcon(shape: ModelShape) -> bool:
    """Whether its rotations are those of Qwen3 (`ROPE_FALCON`), which it also normalizes by head."""
    return shape.architecture.startswith("qwen3")


def _dllama_vocabulary(shape: ModelShape, index: int) -> int:
    """src/tokenizer.cpp: each token's text in a block of malloc, a pointer, a length, a score, and an index of them."""
    return 0 if index else shape.vocabulary * (32 + 8 + 4 + 4 + 16)
