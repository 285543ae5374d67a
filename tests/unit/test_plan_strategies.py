"""Ways to split a model: each adds up, fits, and is measured once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import clusters, model, pis

from bramble.plan.cluster import Cluster
from bramble.plan.place import Need
from bramble.plan.strategies import NAMES, Ground, Strategy, StrategyError, misfit, proportional, strategies

SHAPE = model(layers=32, embedding=2048, feed_forward=8192, heads=32)


def ground(cluster: Cluster | None = None, **changes: Any) -> Ground:
    """Three nodes of 8 GiB, and a model that fits each of them."""
    nodes = cluster or pis(8, 8, 8)
    names = [node.name for node in nodes.nodes]
    options: dict[str, Any] = {
        "total": SHAPE.layers,
        "head": names[0],
        "workers": tuple(names[1:]),
        "planned": {names[0]: 2, names[1]: 20, names[2]: 10} if len(names) > 2 else {names[0]: 2, names[1]: 30},
        "need": Need(2048),
        "shape": SHAPE,
        "cluster": nodes,
    }
    return Ground(**options | changes)


def layers(found: list[Strategy]) -> dict[str, dict[str, int]]:
    return {one.name: dict(one.layers) for one in found}


def test_all_that_there_are() -> None:
    uneven = pis(16, 8, 4)
    faster = replace(uneven, nodes=(*uneven.nodes[:2], replace(uneven.nodes[2], bandwidth=20.6e9)))
    found, skipped = strategies([], ground(faster, tensor=("pi1", "pi2")))
    assert layers(found) == {
        "even": {"pi1": 11, "pi2": 11, "pi3": 10},
        "by memory": {"pi1": 19, "pi2": 9, "pi3": 4},
        "by bandwidth": {"pi1": 8, "pi2": 8, "pi3": 16},
        "head excluded": {"pi1": 0, "pi2": 16, "pi3": 16},
        "logits from the worker": {"pi1": 11, "pi2": 11, "pi3": 10},
        "two nodes": {"pi1": 16, "pi3": 16},
        "one node": {"pi1": 32},
        "tensor": {},
        "planned": {"pi1": 2, "pi2": 20, "pi3": 10},
    }
    assert skipped == {}
    kinds = {one.name: (one.placement, one.logits) for one in found}
    assert kinds["one node"] == ("replica", "head")
    assert kinds["tensor"] == ("tensor", "head")
    assert kinds["logits from the worker"] == ("rpc", "worker")
    assert {kinds[name] for name in ("even", "two nodes", "planned")} == {("rpc", "head")}


def test_an_equal_split_is_measured_once_and_says_so() -> None:
    found, skipped = strategies([], ground(planned={"pi1": 11, "pi2": 11, "pi3": 10}))
    [even] = [one for one in found if one.name == "even"]
    assert even.same_as == ("by memory", "by bandwidth", "planned")
    assert skipped["planned"] == "the same split as even"
    assert "planned" not in layers(found)


def test_what_is_not_known_is_not_assumed() -> None:
    found, skipped = strategies([], replace(ground(), shape=None, cluster=None, unknown="pi1: its memory is not known"))
    assert set(layers(found)) == {"even", "head excluded", "logits from the worker", "two nodes", "planned"}
    assert skipped["one node"] == "whether the model fits pi1 alone is not known: pi1: its memory is not known"
    assert skipped["by memory"] == "not measured: pi1: its memory is not known"
    assert skipped["tensor"] == "nobody is in the group dllama_api"
    guessed = pis(8, 8, 8)
    guessed = replace(guessed, nodes=(*guessed.nodes[:2], replace(guessed.nodes[2], assumed=("bandwidth",))))
    assert "the decode rate of pi3 was not measured" in strategies(["by bandwidth"], ground(guessed))[1]["by bandwidth"]


def test_what_does_not_fit_is_left_out() -> None:
    large = model(layers=32)  # 8B: 4.9 GB
    found, skipped = strategies([], ground(pis(4, 8, 1), shape=large))
    assert "pi1 would need" in skipped["one node"]
    assert "pi3 would need" in skipped["even"]
    assert "even" not in layers(found)
    assert "pi1" in layers(found)["by memory"]


def test_two_nodes_are_no_strategy_of_two() -> None:
    assert strategies(["two nodes"], ground(pis(8, 8)))[1] == {"two nodes": "there are only two"}


def test_an_owner_may_name_some_and_add_one() -> None:
    own = {"name": "mine", "layers": {"pi1": 30, "pi3": 2}, "logits": "worker"}
    found, _ = strategies(["one node", own], ground())
    assert [one.as_dict() for one in found] == [
        {
            "name": "one node",
            "placement": "replica",
            "nodes": ["pi1"],
            "layers": {"pi1": 32},
            "logits": "head",
            "same_as": [],
        },
        {
            "name": "mine",
            "placement": "rpc",
            "nodes": ["pi1", "pi3"],
            "layers": {"pi1": 30, "pi3": 2},
            "logits": "worker",
            "same_as": [],
        },
    ]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("evn", "there is no strategy 'evn'; there are even, by memory"),
        (3, "3 is no strategy"),
        ({"layers": {}}, "is no strategy"),
        ({"name": "even", "layers": {"pi1": 32}}, "even: means another split"),
        ({"name": "mine"}, "mine: layers is not"),
        ({"name": "mine", "layers": {"pi1": True}}, "mine: layers is not"),
        ({"name": "mine", "layers": {"pi1": -1}}, "mine: layers is not"),
        ({"name": "mine", "layers": {"pi1": 31}}, "mine: gives 31 layers, and the model has 32"),
        ({"name": "mine", "layers": {"pi9": 32}}, "mine: pi9 is none of pi1, pi2, pi3"),
        ({"name": "mine", "layers": {"pi1": 32}, "logits": "moon"}, "mine: logits is 'moon'"),
        ({"name": "mine", "layers": {"pi1": 32}, "nodes": []}, "mine: has nodes, and only"),
    ],
)
def test_a_wrong_wish_is_told(wish: object, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        strategies([wish], ground())


@settings(deadline=None)
@given(
    total=st.integers(1, 200),
    weights=st.lists(st.floats(0, 1e12), min_size=1, max_size=8),
    least=st.integers(0, 1),
)
def test_shares_add_up_and_follow_the_weights(total: int, weights: list[float], least: int) -> None:
    named = {f"n{number}": weight for number, weight in enumerate(weights)}
    floors = dict.fromkeys(named, least)
    if least * len(named) > total:
        with pytest.raises(ValueError, match="cannot be shared"):
            proportional(total, named, floors)
        return
    found = proportional(total, named, floors)
    assert list(found) == list(named)
    assert sum(found.values()) == total
    assert min(found.values()) >= least
    for one, first in named.items():
        for other, second in named.items():
            assert first <= second or found[one] >= found[other] - 1


@settings(deadline=None, max_examples=50)
@given(cluster=clusters(2, 6))
def test_every_strategy_adds_up_and_fits(cluster: Cluster) -> None:
    here = ground(cluster)
    found, skipped = strategies([], here)
    assert {one.name for one in found} | set(skipped) == set(NAMES)
    for one in found:
        assert sum(one.layers.values()) == SHAPE.layers
        assert tuple(one.layers) == one.nodes
        assert one.nodes[0] == here.head
        assert all(one.layers[name] > 0 for name in one.nodes[1:])
        assert misfit(one, here) == ""
    splits = [(one.placement, one.nodes, tuple(one.layers.values()), one.logits) for one in found]
    assert len(set(splits)) == len(splits)
