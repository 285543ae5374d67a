"""The planner's formulas against what others measured on Pis; nothing here was measured by us.

The bandwidth that is assumed of a Pi 5 is itself the middle of what the rows of one node imply, and the factor for
mixtures of experts comes from the 30B rows: those rows check the formula's form, and the 8B rows over 2 and 4 nodes its
constants.

Each row: the model, its quantization, the engine and number of nodes, tokens/s, and where that was published. A row
that the prediction misses by more than a fifth says why. `bramble plan` predicts with figures measured on the nodes;
here it has none, and takes the bandwidth that it assumes of a Pi 5."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pytest

from bramble.model.known import known_shape
from bramble.model.published import published_shape
from bramble.model.shape import ModelShape
from bramble.plan import speed
from bramble.plan.choose import scaled
from bramble.plan.cluster import GIB, Cluster, Node

LLAMA_32_3B = known_shape(
    {
        "name": "llama-3.2-3b",
        "family": "llama",
        "quantization": "Q4_K_M",
        "layers": 28,
        "context": 131072,
        "embedding": 3072,
        "feed_forward": 8192,
        "heads": 24,
        "kv_heads": 8,
        "key_length": 128,
        "vocabulary": 128256,
        "tied": True,
    }
)
QWEN_25_14B = known_shape(
    {
        "name": "deepseek-r1-distill-qwen-14b",
        "family": "qwen2",
        "quantization": "Q4_K_M",
        "layers": 48,
        "context": 131072,
        "embedding": 5120,
        "feed_forward": 13824,
        "heads": 40,
        "kv_heads": 8,
        "key_length": 128,
        "vocabulary": 152064,
        "tied": False,
    }
)
# 9.58 GiB for 30.5e9 weights: 2.70 bits each, a mix that known_shape has no rule for.
QWEN3_30B_270 = scaled(published_shape("qwen3-30b-a3b"), 9.58 * GIB / published_shape("qwen3-30b-a3b").weight_bytes)


@dataclass(frozen=True)
class Row:
    shape: ModelShape
    engine: str
    nodes: int
    published: float
    source: str
    why: str = ""


OLD = "an older release: before v0.16 a synchronization took three to five times as long"

ROWS = (
    Row(LLAMA_32_3B, "llama.cpp", 1, 4.61, "Pi 5 8 GB, ollama: geerlingguy/ai-benchmarks issue 1"),
    Row(LLAMA_32_3B, "llama.cpp", 1, 4.88, "Pi 5 16 GB, ollama: geerlingguy/ai-benchmarks issue 7"),
    Row(LLAMA_32_3B, "llama.cpp", 1, 5.55, "Pi 500+, ollama: geerlingguy/ai-benchmarks issue 24"),
    Row(LLAMA_32_3B, "llama.cpp", 1, 6.07, "CM5, llama-bench b6319: geerlingguy/beowulf-ai-cluster issue 6"),
    Row(published_shape("llama-3.1-8b"), "llama.cpp", 1, 2.17, "Pi 5 16 GB, ollama: geerlingguy/ai-benchmarks issue 7"),
    Row(published_shape("llama-3.1-8b"), "llama.cpp", 1, 2.05, "the same, older firmware: Jeff Geerling's blog"),
    Row(published_shape("llama-2-13b", "Q4_0"), "llama.cpp", 1, 1.36, "Pi 5 16 GB, ollama: ai-benchmarks issue 7"),
    Row(QWEN_25_14B, "llama.cpp", 1, 1.20, "Pi 5 16 GB, ollama: ai-benchmarks, README"),
    Row(
        QWEN3_30B_270,
        "llama.cpp",
        1,
        7.99,
        "Pi 5 16 GB, llama-bench b7651: ai-benchmarks issue 47",
    ),
    Row(published_shape("tinyllama-1.1b", "Q8_0"), "llama.cpp", 1, 9.0, "Pi 5, llamafile 0.7: justine.lol, a copy"),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 2, 3.07, "PR 64", OLD),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 2, 3.54, "Seeed's wiki, v0.12", OLD),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 4, 4.08, "PR 64", OLD),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 4, 6.06, "Seeed's wiki, v0.12", OLD),
    Row(published_shape("deepseek-r1-distill-llama-8b"), "distributed-llama", 4, 6.43, "issue 162, v0.12.2", OLD),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 4, 7.18, "hellomatik's README, patched v0.16"),
    Row(published_shape("llama-3.1-8b"), "distributed-llama", 4, 8.36, "hellomatik, v0.16, 4 threads"),
    Row(published_shape("qwen3-30b-a3b"), "distributed-llama", 4, 13.04, "discussion 255, Pi 5 8 GB"),
    Row(published_shape("qwen3-30b-a3b"), "distributed-llama", 4, 13.15, "hellomatik's paper, v0.16"),
    Row(published_shape("qwen3-30b-a3b"), "distributed-llama", 4, 14.45, "hellomatik, tuned system, sustained"),
    Row(published_shape("tinyllama-1.1b"), "distributed-llama", 2, 16.86, "PR 64", OLD),
)


def predicted(row: Row) -> float:
    names = [f"pi{number}" for number in range(row.nodes)]
    cluster = Cluster(tuple(Node(name, 16 * GIB) for name in names))
    if row.engine == "distributed-llama":
        return 1 / sum(speed.decode_tensor(row.shape, cluster, names[0], names[1:]).values())
    return 1 / sum(speed.decode_layers(row.shape, cluster, "pi0", {"pi0": range(row.shape.layers)}).values())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.shape.name}-{row.engine}-{row.nodes}-{row.published}")
def test_a_miss_of_more_than_a_fifth_is_explained(row: Row) -> None:
    ratio = predicted(row) / row.published
    assert 0.8 <= ratio <= 1.2 or row.why
    assert 0.5 <= ratio <= 2


def test_half_of_the_predictions_are_within_a_fifth() -> None:
    assert statistics.median(abs(predicted(row) / row.published - 1) for row in ROWS) <= 0.2


if __name__ == "__main__":  # The table, for people.
    for row in ROWS:
        print(
            f"{row.shape.name:32} {row.engine:18} {row.nodes} {row.published:6.2f} {predicted(row):6.2f} "
            f"{predicted(row) / row.published:5.2f}  {row.source}{'; ' + row.why if row.why else ''}"
        )
