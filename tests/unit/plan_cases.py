"""Models and clusters to plan with: of any size, and random ones."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import strategies as st

from bramble.model.shape import ModelShape
from bramble.plan.cluster import GIB, Cluster, Link, Node


def model(
    name: str = "model",
    *,
    layers: int = 32,
    embedding: int = 4096,
    feed_forward: int = 14336,
    heads: int = 32,
    kv_heads: int = 8,
    vocabulary: int = 128256,
    bits: float = 4.85,
    architecture: str = "llama",
    tied: bool = False,
    uneven: int = 0,
) -> ModelShape:
    """A dense model. `uneven`: a seed by which layers differ by up to a quarter, as in a mix of quantizations."""
    length = embedding // heads
    parameters = 2 * embedding * embedding + 2 * embedding * kv_heads * length + 3 * embedding * feed_forward
    dice = random.Random(uneven)
    per_layer = tuple(int(parameters * bits / 8 * (1 + (dice.random() / 4 if uneven else 0))) for _ in range(layers))
    end = int(vocabulary * embedding * bits / 8)
    return ModelShape(
        name=name,
        architecture=architecture,
        quantization="Q4_K_M",
        layers=layers,
        context=131072,
        embedding=embedding,
        feed_forward=feed_forward,
        heads=heads,
        kv_heads=kv_heads,
        key_length=length,
        value_length=length,
        vocabulary=vocabulary,
        experts=0,
        experts_used=0,
        tied=tied,
        parameters=layers * parameters + (1 if tied else 2) * vocabulary * embedding,
        bytes=sum(per_layer) + (1 if tied else 2) * end + 4096,
        embedding_bytes=end,
        output_bytes=0 if tied else end,
        other_bytes=4 * embedding,
        layer_bytes=per_layer,
        layer_parameters=(parameters,) * layers,
        layer_active_bytes=per_layer,
        largest_tensor_bytes=end,
        type_bytes=(("Q4_K", sum(per_layer) + (0 if tied else end)),),
    )


def pi(name: str, gib: float = 8, bandwidth: float = 10.3e9) -> Node:
    return Node(name, int(gib * GIB * 0.985), bandwidth=bandwidth)


def pis(*sizes: float) -> Cluster:
    """pi1, pi2, …: with so many GiB."""
    return Cluster(tuple(pi(f"pi{number}", size) for number, size in enumerate(sizes, 1)))


@st.composite
def clusters(draw: st.DrawFn, least: int = 1, most: int = 16) -> Cluster:
    """Nodes of 1 to 32 GiB, from a Pi 4 to an x86 box, with links from Wi-Fi to 10 Gbit/s."""
    count = draw(st.integers(least, most))
    nodes = tuple(
        replace(
            pi(f"n{number}", draw(st.sampled_from([1, 2, 4, 8, 16, 32]))),
            bandwidth=draw(st.sampled_from([3.5e9, 8e9, 10.3e9, 11.4e9, 20e9, 40e9])),
            prefill=draw(st.sampled_from([1e10, 4.8e10, 4e11])),
        )
        for number in range(count)
    )
    links = {
        (min(one.name, other.name), max(one.name, other.name)): Link(
            draw(st.sampled_from([5e-5, 2.1e-4, 1e-3, 3e-3])), draw(st.sampled_from([12e6, 117e6, 1.1e9])), False
        )
        for place, one in enumerate(nodes)
        for other in nodes[:place]
        if draw(st.booleans())
    }
    return Cluster(nodes, links)


@st.composite
def models(draw: st.DrawFn, most_layers: int = 80) -> ModelShape:
    heads = draw(st.sampled_from([8, 16, 32, 40, 64]))
    return model(
        f"m{draw(st.integers(0, 9))}",
        layers=draw(st.integers(2, most_layers)),
        embedding=heads * draw(st.sampled_from([64, 128])),
        feed_forward=draw(st.sampled_from([1024, 4096, 8192, 14336, 28672])),
        heads=heads,
        kv_heads=draw(st.sampled_from([2, 4, 8])),
        vocabulary=draw(st.sampled_from([1024, 32000, 151936])),
        bits=draw(st.sampled_from([2.7, 4.55, 4.85, 8.5, 16])),
        architecture=draw(st.sampled_from(["llama", "qwen2", "qwen3"])),
        tied=draw(st.booleans()),
        uneven=draw(st.integers(0, 5)),
    )
