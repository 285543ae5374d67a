"""From an inventory to the planner's question, and the errors that say what is missing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_cases import model

from bramble.plan import inputs
from bramble.plan.choose import Preferences, Wish
from bramble.plan.cluster import ASSUMED_BANDWIDTH, SYSTEM_BYTES
from bramble.plan.document import PlanError, defects, previous, read
from bramble.plan.place import Need
from bramble.plan.what_if import WhatIfError, change

SHAPES = {"known": model("known")}


def record(kind: str, result: dict[str, Any], *, engine: str = "llama.cpp", model: Any = None, **params: Any) -> Any:
    figures = {name: {"value": value, "unit": unit} for name, (value, unit) in result.items()}
    return {"kind": kind, "engine": {"name": engine}, "model": model, "params": params, "result": figures}


KNOWN = {"name": "known", "sha256": None, "quant": None, "bytes": 5_000_000_000}
TINY = {"name": "tiny", "sha256": None, "quant": None, "bytes": 1_000_000}
MEMORY = record("memory", {"total": (8000, "MiB"), "system": (600, "MiB")}, engine="linux")


def test_records_become_a_node() -> None:
    records = [
        record("llama_bench", {"decode": (900.0, "tok/s"), "prefill": (9000.0, "tok/s")}, model=TINY, depth=0),
        record("llama_bench", {"decode": (1.5, "tok/s"), "prefill": (6.0, "tok/s")}, model=KNOWN, depth=0, threads=2),
        record("llama_bench", {"decode": (2.0, "tok/s"), "prefill": (8.0, "tok/s")}, model=KNOWN, depth=0, threads=4),
        record("llama_bench", {"decode": (1.0, "tok/s")}, model=KNOWN, depth=4096),
        record(
            "http_generate",
            {"decode": (8.0, "tok/s")},
            engine="hailo-ollama",
            model={**TINY, "name": "npu"},
            concurrency=1,
        ),
        MEMORY,
    ]
    node = inputs.cluster(["pi1"], {"pi1": {"measured": records}}, SHAPES).nodes[0]
    assert node.memory == 8000 * 2**20
    assert node.reserved == 600 * 2**20
    assert node.bandwidth == pytest.approx(2.0 * SHAPES["known"].active_bytes)
    assert node.prefill == pytest.approx(8.0 * sum(SHAPES["known"].layer_parameters))
    assert node.npu == {"npu": 8.0}
    assert node.decodes == {"known": 2.0, "tiny": 900.0}
    assert node.assumed == ()


def test_what_was_not_measured_is_assumed_and_said() -> None:
    node = inputs.cluster(["pi1"], {"pi1": {"plan_memory_bytes": 10**9}}, SHAPES).nodes[0]
    assert (node.memory, node.reserved, node.bandwidth) == (10**9, SYSTEM_BYTES, ASSUMED_BANDWIDTH)
    assert node.assumed == ("reserved", "bandwidth", "prefill")


def test_memory_must_be_known() -> None:
    with pytest.raises(inputs.InputError, match=r"pi1: its memory is not known: .*benchmark\.yml.*\npi2"):
        inputs.cluster(["pi1", "pi2"], {"pi1": {"measured": []}, "pi2": {}}, SHAPES)


def test_links_come_from_pairs_in_the_slower_direction() -> None:
    pair = record(
        "net_pair",
        {"ping_avg": (0.2, "ms"), "send": (940, "Mbit/s"), "receive": (800, "Mbit/s")},
        engine="iperf3",
        peer="pi1",
    )
    silent = record("net_pair", {"ping_loss": (100, "%")}, engine="iperf3", peer="pi3")
    hosts = {"pi1": {"measured": [MEMORY]}, "pi2": {"measured": [MEMORY, pair, silent]}, "pi3": {"measured": [MEMORY]}}
    cluster = inputs.cluster(["pi1", "pi2", "pi3"], hosts, SHAPES)
    link = cluster.link("pi2", "pi1")
    assert (link.rtt, link.throughput, link.assumed) == (pytest.approx(2e-4), pytest.approx(1e8), False)
    assert cluster.link("pi2", "pi3").assumed


def test_wishes() -> None:
    found = inputs.wishes(["known", {"model": "npu", "placement": "npu"}], ["pi1"], SHAPES)
    assert found == (Wish("known", Need(4096)), Wish("npu", Need(4096), placement="npu"))
    [full] = inputs.wishes(
        [
            {
                "model": "known",
                "context": 8192,
                "slots": 2,
                "cache_type": "q8_0",
                "nodes": ["pi1"],
                "head": "pi1",
                "copies": 1,
                "least_decode": 3,
                "goal": "latency",
            }
        ],
        ["pi1"],
        SHAPES,
    )
    assert full == Wish("known", Need(8192, 2, "q8_0"), "auto", ("pi1",), "pi1", 1, 3.0, "latency")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("known", "not a list"),
        ([7], r"plan_models\[0\]: is 7, not \{model: NAME"),
        ([{"model": "known", "ctx": 1}], "has no field ctx; there are model, context"),
        ([{"model": "known", "context": "4k"}], "context: is '4k', not of its type"),
        ([{"model": "known", "context": 0}], "context: is 0, not 1 or more"),
        ([{"model": "known", "slots": True}], "slots: is True, not of its type"),
        ([{"model": "known", "placement": "gpu"}], "placement: is gpu, not one of auto, replica, rpc"),
        ([{"model": "known", "nodes": ["pi9"]}], "there is no node pi9"),
        ([{"model": "unknown"}], "unknown is in no catalogue"),
        (["known", "known"], "known stands there 2 times"),
    ],
)
def test_wishes_that_are_wrong(value: object, message: str) -> None:
    with pytest.raises(inputs.InputError, match=message):
        inputs.wishes(value, ["pi1"], SHAPES)


def test_a_model_whose_entry_is_not_enough_says_why() -> None:
    with pytest.raises(inputs.InputError, match=r"plan_models\[0\].model: half cannot be .*: heads: is missing"):
        inputs.wishes(["half"], ["pi1"], SHAPES, {"half": "heads: is missing"})


def test_preferences() -> None:
    assert inputs.preferences({}, ["pi1"]) == Preferences()
    assert inputs.preferences({"plan_priority": ["pi1"]}, ["pi1"]) == Preferences("priority", ("pi1",))
    assert inputs.preferences({"plan_prioritize_by": "memory", "plan_keep": 0}, ["pi1"]) == Preferences(
        "memory", (), 0.0
    )
    with pytest.raises(inputs.InputError, match=r"plan_prioritize_by: .*\nplan_priority: .*\nplan_keep: "):
        inputs.preferences({"plan_prioritize_by": "size", "plan_priority": ["x"], "plan_keep": 2}, ["pi1"])


def test_what_holds_for_the_cluster_is_the_same_on_each_host() -> None:
    same = {"plan_models": ["known"]}
    assert inputs.owners(["pi1", "pi2"], {"pi1": same, "pi2": same}) == same
    with pytest.raises(inputs.InputError, match="plan_models: differs between pi1 and pi2"):
        inputs.owners(["pi1", "pi2"], {"pi1": same, "pi2": {"plan_models": []}})
    with pytest.raises(inputs.InputError, match="differs between pi1 and pi2"):
        inputs.owners(["pi1", "pi2"], {"pi1": same, "pi2": {}})


# What anybody might write into the inventory or the file: a message, never a traceback.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "model",
                    "context",
                    "slots",
                    "nodes",
                    "head",
                    "placement",
                    "schema",
                    "models",
                    "layers",
                    "memory",
                    "known",
                    "cache_type",
                    "copies",
                    "goal",
                    "least_decode",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@given(anything)
@settings(max_examples=500, deadline=None)
def test_no_wish_ends_in_a_traceback(value: object) -> None:
    for wanted in (value, [value], [{"model": "known", "nodes": value, "head": value}]):
        with contextlib.suppress(inputs.InputError):
            inputs.wishes(wanted, ["pi1"], SHAPES)


@given(anything)
@settings(max_examples=500, deadline=None)
def test_no_document_ends_in_a_traceback(value: object) -> None:
    model_ = {
        "model": "m",
        "placement": "rpc",
        "head": "a",
        "nodes": ["a"],
        "layers": {"a": 1},
        "context": 1,
        "slots": 1,
        "cache_type": "f16",
        "memory": {},
    }
    assert not list(defects({"schema": 1, "models": [model_]}))
    for document in (
        value,
        {"schema": 1, "models": value},
        {"schema": 1, "models": [value]},
        {"schema": 1, "models": [{**model_, "layers": value, "nodes": value}]},
    ):
        if not list(defects(document)):
            assert isinstance(document, dict)
            previous(document)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "models": [7]}', "\udce4"])
def test_a_file_that_is_no_plan(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PlanError, match=r"plan\.json: "):
        read(path)
    assert read(tmp_path / "none.json") is None


# --- What if


def question() -> Any:
    cluster = inputs.cluster(["pi1", "pi2"], {name: {"measured": [MEMORY]} for name in ("pi1", "pi2")}, SHAPES)
    return cluster, SHAPES, [Wish("known", Need(4096), nodes=("pi1", "pi2"), head="pi2")]


def test_changes() -> None:
    cluster, _, _ = change("add=16", question())
    assert cluster.nodes[2].name == "new1"
    assert cluster.nodes[2].memory == pytest.approx(2 * cluster.nodes[0].memory, rel=0.01)
    cluster, _, [wish] = change("remove=pi2", question())
    assert [node.name for node in cluster.nodes] == ["pi1"]
    assert (wish.nodes, wish.head) == (("pi1",), "")
    _, _, [wish] = change("context=8192", question())
    assert wish.need.context == 8192
    _, shapes, _ = change("quantization=Q8_0", question())
    assert shapes["known"].weight_bytes == pytest.approx(SHAPES["known"].weight_bytes * 8.5 / 4.85, rel=0.01)
    cluster, _, _ = change("network=wifi", question())
    assert cluster.link("pi1", "pi2").rtt == pytest.approx(3e-3)


@pytest.mark.parametrize(
    "text", ["", "add", "add=x", "add=0", "remove=pi9", "context=-1", "quantization=Q1", "colour=red"]
)
def test_changes_that_there_are_not(text: str) -> None:
    with pytest.raises(WhatIfError, match="--what-if"):
        change(text, question())
