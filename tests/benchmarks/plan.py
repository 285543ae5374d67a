#!/usr/bin/env python3
"""The planner on random clusters and models: is anything over memory, how far from the best, how long does it take?

    .venv/bin/python tests/benchmarks/plan.py [--clusters N] [--seed N]

Each question is one model on 1 to 16 nodes with mixed memory, bandwidth and links. Small ones are also answered by
trying every head, every order of workers and every cut; the ratio is (our seconds a token) / (the best of all). Writes
what it prints to tests/benchmarks/results/. Asserts nothing: tests/unit/test_plan_place.py does.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import statistics
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/unit"))

from plan_cases import model, pi  # noqa: E402

from bramble.model.published import published_shape  # noqa: E402
from bramble.model.shape import ModelShape  # noqa: E402
from bramble.plan import place, speed  # noqa: E402
from bramble.plan.choose import Wish, choose  # noqa: E402
from bramble.plan.cluster import Cluster, Link  # noqa: E402
from bramble.plan.document import as_document, write  # noqa: E402
from bramble.plan.place import Need, Refusal  # noqa: E402


def random_cluster(dice: random.Random, most: int) -> Cluster:
    nodes = tuple(
        replace(
            pi(f"n{number}", dice.choice([1, 2, 4, 8, 16, 32])),
            bandwidth=dice.choice([3.5e9, 8e9, 10.3e9, 11.4e9, 20e9, 40e9]),
        )
        for number in range(dice.randint(1, most))
    )
    links = {
        (min(one.name, other.name), max(one.name, other.name)): Link(
            dice.choice([5e-5, 2.1e-4, 1e-3, 3e-3]), dice.choice([12e6, 117e6, 1.1e9]), assumed=False
        )
        for one, other in itertools.combinations(nodes, 2)
    }
    return Cluster(nodes, links)


def random_model(dice: random.Random, most_layers: int) -> ModelShape:
    heads = dice.choice([8, 16, 32, 40, 64])
    return model(
        layers=dice.randint(2, most_layers),
        embedding=heads * dice.choice([64, 128]),
        feed_forward=dice.choice([1024, 4096, 8192, 14336, 28672]),
        heads=heads,
        kv_heads=dice.choice([2, 4, 8]),
        vocabulary=dice.choice([1024, 32000, 151936]),
        bits=dice.choice([2.7, 4.55, 4.85, 8.5, 16]),
        tied=dice.random() < 0.5,
        uneven=dice.randint(0, 5),
    )


def best_of_all(shape: ModelShape, cluster: Cluster, need: Need) -> float:
    """Seconds of a token of the fastest split that fits; infinite if none does."""
    best = float("inf")
    names = [node.name for node in cluster.nodes]
    for head in names:
        for count in range(1, len(names)):
            for workers in itertools.permutations([name for name in names if name != head], count):
                for cuts in itertools.combinations(range(shape.layers), count):
                    shares = {head: range(cuts[0])}
                    for worker, start, stop in zip(workers, cuts, (*cuts[1:], shape.layers), strict=True):
                        shares[worker] = range(start, stop)
                    found = place.layered(shape, cluster, need, head, shares)
                    if all(held <= cluster.node(name).usable for name, held in found.memory.items()):
                        best = min(best, sum(speed.decode_layers(shape, cluster, head, shares).values()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    lines = [
        f"# {datetime.now(UTC):%Y-%m-%dT%H:%MZ}, {platform.machine()}, seed {arguments.seed}, "
        f"{arguments.clusters} random clusters of 1 to 16 nodes, each with a random model"
    ]
    over = placed = 0
    for _ in range(arguments.clusters):
        cluster, shape = random_cluster(dice, 16), random_model(dice, 80)
        plan = choose(cluster, {shape.name: shape}, [Wish(shape.name, Need(dice.choice([512, 4096, 16384])))])
        assert write(as_document(plan))
        for chosen in plan.chosen:
            placed += 1
            for one in chosen.placements:
                over += any(held > cluster.node(name).usable for name, held in one.memory.items())
    lines.append(f"placed {placed} of {arguments.clusters}; placements over memory: {over}")

    ratios, worse = [], 0
    while len(ratios) < 100:
        cluster, shape, need = random_cluster(dice, 4), random_model(dice, 7), Need(2048)
        found = place.rpc(shape, cluster, need, fewest=False)
        best = best_of_all(shape, cluster, need)
        if isinstance(found, Refusal) != (best == float("inf")):
            worse += 1  # Only another order of the workers fits.
        elif not isinstance(found, Refusal):
            ratios.append(1 / found[0].decode / best)
    lines.append(
        f"100 small clusters (up to 4 nodes, 7 layers) against every split: median {statistics.median(ratios):.4f}, "
        f"worst {max(ratios):.4f} times the best; refused though another order fits: {worse}"
    )

    shape, need = published_shape("llama-3.3-70b"), Need(4096)
    times = []
    for _ in range(9):
        for cached in (place._worker_needs, place._head_needs, place._reads, place._computed):
            cached.cache_clear()
        cluster = Cluster(tuple(pi(f"pi{number}", dice.choice([4, 8, 16])) for number in range(16)))
        began = time.perf_counter()
        choose(cluster, {shape.name: shape}, [Wish(shape.name, need)])
        times.append(time.perf_counter() - began)
    middle, most = 1000 * statistics.median(times), 1000 * max(times)
    lines.append(f"16 nodes, 80 layers, from cold: median {middle:.0f} ms, worst {most:.0f} ms")
    print("\n".join(lines))
    path = ROOT / f"tests/benchmarks/results/plan-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.txt"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
