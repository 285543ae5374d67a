"""Memory of each engine's processes: against what they were seen to take, and how it grows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bramble.model import ModelShape, known_shape
from bramble.model.published import published_shape
from bramble.plan import memory
from bramble.plan.memory import (
    MIB,
    REPACKED_ON_AVX2,
    Need,
    dllama_root,
    dllama_worker,
    largest_layer_tensor,
    llama_server,
    rpc_worker,
)

EIGHT = published_shape("llama-3.1-8b")


def shape(architecture: str, quantization: str, *figures: int | bool, plain: bool = True, **changes: Any) -> ModelShape:
    """`figures`: layers, embedding, feed_forward, heads, kv_heads, key_length, vocabulary, tied.

    `plain`: input embedding and output are of the layers' type, as `bramble model synth` writes them.
    """
    names = ("layers", "embedding", "feed_forward", "heads", "kv_heads", "key_length", "vocabulary", "tied")
    entry = {"family": architecture, "quantization": quantization, "context": 8192}
    found = known_shape({**entry, **dict(zip(names, figures, strict=True)), **changes})
    if not plain or quantization in ("F16", "Q8_0"):
        return found
    same = found.vocabulary * found.embedding * 18 // 32
    types = tuple((name, size) for name, size in found.type_bytes if name != "Q6_K")
    output = 0 if found.tied else same
    return replace(
        found,
        embedding_bytes=same,
        output_bytes=output,
        type_bytes=tuple((name, size + output) for name, size in types),
        largest_tensor_bytes=max(same, found.embedding * found.feed_forward * 18 // 32),
    )


SMALL_Q8 = shape("llama", "Q8_0", 12, 768, 1536, 12, 3, 64, 2048, False)
SMALL_F16 = shape("llama", "F16", 6, 1280, 3840, 20, 5, 64, 2048, False)
MIDDLE_Q4 = shape("llama", "Q4_0", 16, 1024, 3072, 16, 4, 64, 2048, False)
DEEP_Q8 = shape("llama", "Q8_0", 24, 1024, 3072, 16, 4, 64, 2048, False)
WORDY = shape("llama", "Q4_K_M", 12, 1280, 3072, 20, 5, 64, 128256, False, plain=False)

# Resident MiB, as tests/benchmarks/memory.py saw it on x86-64 (results/memory-*.txt).
SERVERS: list[tuple[str, ModelShape, int, int, int, bool, float]] = [
    ("60m-q8 alone", SMALL_Q8, 12, 2048, 1, False, 116.8),
    ("60m-q8 head", SMALL_Q8, 4, 2048, 1, True, 66.5),
    ("120m-f16 alone", SMALL_F16, 6, 1024, 2, False, 295.0),
    ("120m-f16 head", SMALL_F16, 2, 1024, 2, True, 148.2),
    ("200m-q4 alone", MIDDLE_Q4, 16, 4096, 1, False, 321.0),
    ("200m-q4 head", MIDDLE_Q4, 4, 4096, 1, True, 93.0),
    ("300m-q8 alone", DEEP_Q8, 24, 2048, 4, False, 538.9),
    ("300m-q8 head", DEEP_Q8, 6, 2048, 4, True, 180.5),
    ("200m-q4km-128k alone", WORDY, 12, 1024, 1, False, 509.9),
    ("200m-q4km-128k head", WORDY, 6, 1024, 1, True, 363.1),
]
WORKERS: list[tuple[str, ModelShape, range, int, int, float]] = [
    ("60m-q8", SMALL_Q8, range(4, 12), 2048, 1, 75.8),
    ("120m-f16", SMALL_F16, range(2, 4), 1024, 2, 118.0),
    ("200m-q4", MIDDLE_Q4, range(4, 10), 4096, 1, 97.6),
    ("300m-q8", DEEP_Q8, range(6, 15), 2048, 4, 216.7),
    ("200m-q4km-128k", WORDY, range(6, 12), 1024, 1, 98.7),
]


@pytest.mark.parametrize(("name", "shape", "layers", "context", "slots", "remote", "seen"), SERVERS)
def test_llama_server(
    name: str, shape: ModelShape, layers: int, context: int, slots: int, remote: bool, seen: float
) -> None:
    repacked = REPACKED_ON_AVX2
    need = llama_server(shape, range(layers), context=context, slots=slots, remote=remote, repacked=repacked)
    assert need.resident / MIB == pytest.approx(seen, rel=0.1)
    assert max(need.peak, need.resident) / MIB > 0.95 * seen


@pytest.mark.parametrize(("name", "shape", "layers", "context", "slots", "seen"), WORKERS)
def test_rpc_worker(name: str, shape: ModelShape, layers: range, context: int, slots: int, seen: float) -> None:
    need = rpc_worker(shape, layers, context=context, slots=slots)
    assert need.steady / MIB == pytest.approx(seen, rel=0.1)
    assert need.peak / MIB > 0.95 * seen


@pytest.mark.parametrize(
    ("shape", "context", "root", "worker"), [(MIDDLE_Q4, 4096, 140.3, 140.7)], ids=["200m-q4, two nodes"]
)
def test_dllama(shape: ModelShape, context: int, root: float, worker: float) -> None:
    assert dllama_root(shape, 2, context=context).steady / MIB == pytest.approx(root, rel=0.1)
    assert dllama_worker(shape, 2, context=context).steady / MIB == pytest.approx(worker, rel=0.1)


def test_need() -> None:
    need = Need(weights=1, kv=2, compute=4, process=8, loading=16, reclaimable=32)
    assert (need.steady, need.peak, need.resident) == (15, 31, 47)


# llama.cpp's own log lines for models of these widths and two layers, 512 tokens of context: the head's compute buffer.
COMPUTE = [
    ("Llama 3.2 1B", (2048, 8192, 32, 8, 64), 64.51),
    ("Llama 3.2 3B", (3072, 8192, 24, 8, 128), 72.51),
    ("Qwen2.5 1.5B", (1536, 8960, 12, 2, 128), 65.01),
    ("Qwen2.5 3B", (2048, 11008, 16, 2, 128), 81.01),
    ("Llama 3.1 8B", (4096, 14336, 32, 8, 128), 116.51),
    ("Qwen3 8B", (4096, 12288, 32, 8, 128), 104.51),
]


@pytest.mark.parametrize(("name", "widths", "logged"), COMPUTE)
def test_compute_buffer(name: str, widths: tuple[int, ...], logged: float) -> None:
    model = shape("llama", "Q4_0", 2, *widths, 2048, True)
    need = llama_server(model, range(2), context=512, slots=1, remote=False)
    work = 512 * widths[1] * 292 // 256
    assert (need.compute - work - 4 * 2048) / MIB == pytest.approx(logged, abs=0.02)


def test_only_what_the_head_computes_is_in_its_memory() -> None:
    head = llama_server(EIGHT, range(4), context=4096, slots=1, remote=True)
    assert head.weights == sum(EIGHT.layer_bytes[:4]) + EIGHT.embedding_bytes + EIGHT.output_bytes + EIGHT.other_bytes
    worker = rpc_worker(EIGHT, range(4, 32), context=4096, slots=1)
    assert worker.weights == sum(EIGHT.layer_bytes[4:])
    assert head.kv + worker.kv == 4096 * 32 * EIGHT.kv_bytes_per_token_per_layer()
    without = llama_server(EIGHT, range(4), context=4096, slots=1, remote=True, output_here=False)
    assert head.weights - without.weights == EIGHT.output_bytes


def test_a_tied_embedding_is_there_twice_where_it_is_repacked() -> None:
    model = shape("llama", "Q4_K_M", 16, 2048, 8192, 32, 8, 64, 128256, True, plain=False)  # Llama 3.2 1B
    on_pi = llama_server(model, range(4), context=512, slots=1, remote=True)
    elsewhere = llama_server(model, range(4), context=512, slots=1, remote=True, repacked=REPACKED_ON_AVX2)
    assert on_pi.weights - elsewhere.weights == model.embedding_bytes


def test_originals_of_what_was_repacked_need_no_planning() -> None:
    need = llama_server(EIGHT, range(32), context=4096, slots=1, remote=False)
    assert need.weights + EIGHT.embedding_bytes == EIGHT.weight_bytes
    assert need.reclaimable == sum(size for name, size in EIGHT.type_bytes if name != "F32") + EIGHT.embedding_bytes
    plain = llama_server(EIGHT, range(32), context=4096, slots=1, remote=False, repacked=frozenset())
    assert plain.reclaimable == EIGHT.embedding_bytes
    assert plain.weights == need.weights


def test_a_worker_holds_a_large_tensor_twice_for_a_moment() -> None:
    assert largest_layer_tensor(EIGHT) == 4096 * 14336 * 210 // 256
    worker = rpc_worker(EIGHT, range(4, 8), context=256, slots=1, ubatch=32)
    assert worker.loading > 0
    assert worker.peak == worker.weights + worker.process + largest_layer_tensor(EIGHT)
    # By then the buffers of a long context are larger, and they come after.
    assert rpc_worker(EIGHT, range(4, 8), context=8192, slots=1).loading == 0


# The same of mixtures (embedding 2048 or 1024, three layers, 16 or 8 experts): that of the head, and of a worker.
MIXTURES = [
    ((2048, 768, 32, 4, 128), 16, 8, 89.0, 81.0),
    ((2048, 1536, 32, 4, 128), 8, 8, 93.0, 117.0),
    ((2048, 768, 32, 4, 128), 8, 4, 49.0, 49.0),
    ((1024, 1536, 16, 4, 64), 8, 2, 27.0, 25.0),
    ((1024, 256, 16, 4, 64), 8, 8, 37.0, 35.0),
]


@pytest.mark.parametrize(("widths", "experts", "used", "head", "worker"), MIXTURES)
def test_compute_buffer_of_a_mixture(
    widths: tuple[int, ...], experts: int, used: int, head: float, worker: float
) -> None:
    model = shape("qwen3moe", "Q4_0", 3, *widths, 2048, False, experts=experts, experts_used=used)
    # What one operation needs on top, and messages, are not in the log.
    work, message = memory._work(model, 512), 512 * 4 * model.embedding
    of_head = llama_server(model, range(1), context=1024, slots=1, remote=True).compute - work
    of_worker = rpc_worker(model, range(1, 3), context=1024, slots=1).compute - work - message
    assert head <= of_head / MIB < 1.35 * head
    assert worker <= of_worker / MIB < 1.35 * worker


def test_a_mixture_needs_all_experts() -> None:
    model = published_shape("qwen3-30b-a3b")
    assert rpc_worker(model, range(24, 48), context=4096, slots=1).weights > 0.45 * model.weight_bytes


def test_dllama_by_its_own_figures() -> None:
    """distributed-llama's own pages name 6.32 GB for the converted file of the 8B: F32 embedding and q40 the rest."""
    root = dllama_root(EIGHT, 1, context=256)
    assert root.weights / 1e9 == pytest.approx(6.32, rel=0.01)
    four = dllama_root(EIGHT, 4, context=4096)
    worker = dllama_worker(EIGHT, 4, context=4096)
    assert four.weights - worker.weights == 4 * EIGHT.vocabulary * EIGHT.embedding
    assert four.kv == worker.kv == 2 * 32 * 4096 * 1024 // 4 * 4


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layers": range(30, 33)}, "layers: range.30, 33. is not a run of the 32 layers"),
    ({"layers": range(0, 32, 2)}, "layers: "),
    ({"layers": range(5, 4)}, "layers: "),
    ({"context": 0}, "context: must be 1 or more, got 0"),
    ({"slots": 0}, "slots: must be 1 or more, got 0"),
    ({"cache_type": "q3"}, "cache_type: 'q3' is not one of f32"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"layers": range(4), "context": 512, "slots": 1} | changes
    layers = arguments.pop("layers")
    with pytest.raises(ValueError, match=message):
        rpc_worker(EIGHT, layers, **arguments)
    with pytest.raises(ValueError, match=message):
        llama_server(EIGHT, layers, remote=True, **arguments)


@pytest.mark.parametrize("nodes", [0, 3, 16])
def test_wrong_numbers_of_dllama_nodes(nodes: int) -> None:
    with pytest.raises(ValueError, match=f"nodes: {nodes} cannot divide 8 key heads"):
        dllama_root(EIGHT, nodes, context=512)


def test_no_dllama_worker_among_one() -> None:
    with pytest.raises(ValueError, match="nodes: 1 have no worker"):
        dllama_worker(EIGHT, 1, context=512)
    with pytest.raises(ValueError, match="context: must be 1"):
        dllama_worker(EIGHT, 2, context=0)


def below(less: Need, more: Need) -> bool:
    """What malloc keeps, and what loading adds to it, may shrink as buffers grow into it; no sum does."""
    return all(
        getattr(less, name) <= getattr(more, name)
        for name in ("weights", "kv", "compute", "steady", "peak", "resident")
    )


contexts, slot_counts, models = (
    st.integers(1, 32768),
    st.integers(1, 8),
    st.sampled_from([EIGHT, published_shape("qwen3-30b-a3b"), published_shape("tinyllama-1.1b", "Q8_0"), SMALL_F16]),
)


@given(models, st.data(), contexts, slot_counts, st.booleans())
def test_more_never_takes_less(model: ModelShape, data: st.DataObject, context: int, slots: int, remote: bool) -> None:
    own = data.draw(st.integers(1, model.layers - 1))
    base = llama_server(model, range(own), context=context, slots=slots, remote=remote)
    assert min(base.weights, base.kv, base.compute, base.process) > 0
    for more in (
        llama_server(model, range(own + 1), context=context, slots=slots, remote=remote),
        llama_server(model, range(own), context=2 * context, slots=slots, remote=remote),
        llama_server(model, range(own), context=context, slots=slots + 1, remote=remote),
    ):
        assert below(base, more)
    worker = rpc_worker(model, range(own - 1, own), context=context, slots=slots)
    for more in (
        rpc_worker(model, range(own - 1, own + 1), context=context, slots=slots),
        rpc_worker(model, range(own - 1, own), context=2 * context, slots=slots),
        rpc_worker(model, range(own - 1, own), context=context, slots=slots + 1),
    ):
        assert below(worker, more)


@given(models, contexts, st.sampled_from([1, 2, 4]))
def test_dllama_grows_with_context_and_shrinks_with_nodes(model: ModelShape, context: int, nodes: int) -> None:
    if model.kv_heads % (2 * nodes):
        return
    root = dllama_root(model, nodes, context=context)
    assert below(root, dllama_root(model, nodes, context=context + 1))
    more = dllama_root(model, 2 * nodes, context=context)
    assert more.weights < root.weights
    assert more.kv <= root.kv
    worker = dllama_worker(model, 2 * nodes, context=context)
    assert worker.weights < more.weights


@given(models, contexts, slot_counts)
def test_a_smaller_cache_type_takes_less(model: ModelShape, context: int, slots: int) -> None:
    sizes = [
        llama_server(model, range(4), context=context, slots=slots, cache_type=cache, remote=True).kv
        for cache in ("f32", "f16", "q8_0", "q4_0")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
