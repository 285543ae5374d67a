"""Placements: never over memory, and as fast as the best of all that there are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import clusters, model, models, pi, pis

from bramble.model.shape import ModelShape
from bramble.plan import memory, place, speed
from bramble.plan.choose import Preferences, Wish, choose
from bramble.plan.cluster import Cluster, Link
from bramble.plan.document import as_document, defects, write
from bramble.plan.place import Need, Placement, Refusal

needs = st.builds(
    Need, st.sampled_from([512, 2048, 4096, 8192, 32768]), st.integers(1, 4), st.sampled_from(["f16", "q8_0"])
)


def fits(cluster: Cluster, placement: Placement) -> bool:
    return all(amount <= cluster.node(name).usable for name, amount in placement.memory.items())


@given(clusters(), models(), needs)
@settings(max_examples=500, deadline=None)
def test_nothing_is_ever_placed_over_memory_and_each_layer_lies_once(
    cluster: Cluster, shape: ModelShape, need: Need
) -> None:
    for kind in (place.replicas, place.rpc, place.tensor):
        found = kind(shape, cluster, need)
        if isinstance(found, Refusal):
            assert found.reason
            continue
        for placement in found:
            assert fits(cluster, placement)
            assert placement.decode > 0
            names = placement.nodes
            assert len(set(names)) == len(names)
            if placement.kind == "rpc":
                held = [number for layers in placement.layers.values() for number in layers]
                assert held == list(range(shape.layers))
                assert next(iter(placement.layers)) == placement.head
                assert all(placement.layers[name] for name in placement.workers)
                assert 1 <= len(placement.workers) <= place.MOST_WORKERS
            if placement.kind == "tensor":
                assert speed.tensor_refusal(shape, len(names)) is None


def every_split(shape: ModelShape, cluster: Cluster, need: Need, most: int) -> Iterator[tuple[int, float]]:
    """(nodes, seconds a token) of each split that fits: any head, any workers in any order, any numbers of layers."""
    names = [node.name for node in cluster.nodes]
    asked = {"context": need.context, "slots": need.slots, "cache_type": need.cache_type}
    for head in names:
        others = [name for name in names if name != head]
        for count in range(1, min(len(others), most) + 1):
            for workers in itertools.permutations(others, count):
                for cuts in itertools.combinations(range(shape.layers), count):
                    shares = {head: range(cuts[0])}
                    for worker, start, stop in zip(workers, cuts, (*cuts[1:], shape.layers), strict=True):
                        shares[worker] = range(start, stop)
                    if memory.llama_server(shape, shares[head], **asked, remote=True).peak > cluster.node(head).usable:
                        continue
                    if any(
                        memory.rpc_worker(shape, shares[name], **asked).peak > cluster.node(name).usable
                        for name in workers
                    ):
                        continue
                    yield 1 + count, sum(speed.decode_layers(shape, cluster, head, shares).values())


@given(clusters(2, 4), models(most_layers=6), st.sampled_from([Need(512), Need(4096, 2)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_split_is_as_fast_as_the_best_there_is(cluster: Cluster, shape: ModelShape, need: Need, fewest: bool) -> None:
    found = place.rpc(shape, cluster, need, fewest=fewest)
    every = list(every_split(shape, cluster, need, 3))
    if isinstance(found, Refusal):
        # Another order of the workers may fit where layers differ in size: the planner takes them in the inventory's.
        assert not every or len(set(shape.layer_bytes)) > 1
        return
    nodes = min(nodes for nodes, _ in every) if fewest else None
    if fewest:
        assert len(found[0].layers) == nodes or len(set(shape.layer_bytes)) > 1
    best = min(seconds for count, seconds in every if not fewest or count == len(found[0].layers))
    assert 1 / found[0].decode <= 1.02 * best


@given(clusters(2, 6), models(most_layers=40))
@settings(max_examples=60, deadline=None)
def test_slices_are_as_fast_as_the_best_set_there_is(cluster: Cluster, shape: ModelShape) -> None:
    need = Need(2048)
    found = place.tensor(shape, cluster, need)
    best = 0.0
    for count in speed.tensor_counts(shape, len(cluster.nodes)):
        root_need = memory.dllama_root(shape, count, context=need.context).peak
        worker_need = memory.dllama_worker(shape, count, context=need.context).peak
        for names in itertools.permutations([node.name for node in cluster.nodes], count):
            root, *workers = names
            if cluster.node(root).usable >= root_need and all(
                cluster.node(name).usable >= worker_need for name in workers
            ):
                best = max(best, 1 / sum(speed.decode_tensor(shape, cluster, root, workers).values()))
    assert (0.0 if isinstance(found, Refusal) else found[0].decode) == pytest.approx(best)


@given(clusters(), st.lists(models(), min_size=1, max_size=3), needs, st.sampled_from(["speed", "memory", "priority"]))
@settings(max_examples=100, deadline=None)
def test_the_same_question_has_the_same_answer_byte_for_byte(
    cluster: Cluster, shapes: list[ModelShape], need: Need, order: str
) -> None:
    known = {shape.name: shape for shape in shapes}
    wishes = [Wish(name, need) for name in known]
    preferences = Preferences(order, (cluster.nodes[-1].name,))
    plan = choose(cluster, known, wishes, preferences)
    taken: dict[str, int] = {}
    for chosen in plan.chosen:
        for placement in chosen.placements:
            for name, amount in placement.memory.items():
                taken[name] = taken.get(name, 0) + amount
    assert all(amount <= cluster.node(name).usable for name, amount in taken.items())
    text = write(as_document(plan))
    assert text == write(as_document(choose(cluster, dict(reversed(known.items())), wishes, preferences)))
    assert not list(defects(json.loads(text)))


def test_a_model_that_fits_nowhere_says_by_how_much() -> None:
    shape = model(layers=80, embedding=8192, feed_forward=28672, heads=64)
    alone = place.replicas(shape, pis(8, 8, 8), Need(4096))
    assert isinstance(alone, Refusal)
    assert "pi1 has the most" in alone.reason
    assert alone.short > 30 * 2**30
    together = place.rpc(shape, pis(8, 8, 8), Need(4096))
    assert isinstance(together, Refusal)
    assert together.short > 15 * 2**30
    sliced = place.tensor(shape, pis(8, 8, 8), Need(4096))
    assert isinstance(sliced, Refusal)
    assert "over 2 nodes the root needs" in sliced.reason


def test_distributed_llama_takes_2_of_3_nodes_and_says_why() -> None:
    found = place.tensor(model(), pis(8, 8, 8), Need(2048))
    assert not isinstance(found, Refusal)
    assert [len(placement.nodes) for placement in found] == [2]
    assert speed.tensor_refusal(model(), 3) == "distributed-llama divides a model over 1, 2, 4 or 8 nodes, not 3"
    assert "KV heads" in str(speed.tensor_refusal(model(kv_heads=2, heads=8), 4))
    other = place.tensor(model(architecture="gemma"), pis(8, 8), Need(2048))
    assert isinstance(other, Refusal)
    assert "gemma" in other.reason


def test_the_fast_node_gets_the_layers_and_the_far_one_none() -> None:
    cluster = Cluster((pi("slow", 8, 5e9), pi("fast", 8, 20e9), pi("far", 8, 20e9)), {("far", "fast"): Link(5e-3, 1e6)})
    found = place.rpc(model(layers=16), cluster, Need(2048), fewest=False)
    assert not isinstance(found, Refusal)
    assert found[0].head == "fast"
    assert len(found[0].layers["fast"]) == 15  # One worker there must be: the near one, with one layer.
    assert list(found[0].layers) == ["fast", "slow"]


def test_the_owners_order_goes_before_speed() -> None:
    shape = model(layers=40, embedding=5120, feed_forward=17408, heads=40)
    cluster = Cluster((pi("slow", 8, 5e9), pi("medium", 8, 9e9), pi("fast", 8, 20e9)))
    by_speed = place.rpc(shape, cluster, Need(2048))
    by_order = place.rpc(shape, cluster, Need(2048), prefer="order")
    assert not isinstance(by_speed, Refusal)
    assert not isinstance(by_order, Refusal)
    assert set(by_speed[0].layers) == {"medium", "fast"}
    assert set(by_order[0].layers) == {"slow", "medium"}
    assert by_order[0].head == "slow"


def test_what_was_measured_with_the_model_itself_goes_before_the_formula() -> None:
    shape = model("known", layers=16)
    cluster = Cluster((replace(pi("pi1"), decodes={"known": 4.25}), pi("pi2")))
    found = place.replicas(shape, cluster, Need(2048))
    assert not isinstance(found, Refusal)
    by_head = {placement.head: placement for placement in found}
    assert by_head["pi1"].decode == 4.25
    assert by_head["pi1"].measured
    assert not by_head["pi2"].measured
