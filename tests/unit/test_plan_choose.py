"""Which placement wins, why, and what a plan does to the next one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plan_cases import model, pi, pis

from bramble.plan.choose import Chosen, Plan, Preferences, Unplaced, Wish, choose
from bramble.plan.cluster import GIB, Cluster
from bramble.plan.document import PlanError, as_document, host_variables, previous
from bramble.plan.place import Need

SMALL = model("small", layers=28, embedding=3072, feed_forward=8192, heads=24, tied=True)
LARGE = model("large", layers=40, embedding=5120, feed_forward=17408, heads=40)
HUGE = model("huge", layers=80, embedding=8192, feed_forward=28672, heads=64)
KNOWN = {shape.name: shape for shape in (SMALL, LARGE, HUGE)}
NEED = Need(4096)


def only(plan: Plan) -> Chosen:
    assert not plan.unplaced
    assert len(plan.chosen) == 1
    return plan.chosen[0]


def nodes(chosen: Chosen) -> set[str]:
    return {name for placement in chosen.placements for name in placement.nodes}


def kind(chosen: Chosen) -> str:
    return chosen.placements[0].kind


def test_what_fits_on_one_node_is_copied_to_all() -> None:
    chosen = only(choose(pis(8, 8, 8), KNOWN, [Wish("small", NEED)]))
    assert kind(chosen) == "replica"
    assert nodes(chosen) == {"pi1", "pi2", "pi3"}
    assert {loser.kind for loser in chosen.losers} == {"rpc", "tensor"}


def test_copies_are_as_many_as_the_owner_says() -> None:
    assert len(only(choose(pis(8, 8, 8), KNOWN, [Wish("small", NEED, copies=2)])).placements) == 2


def test_copies_that_have_no_room_are_told() -> None:
    chosen = only(choose(pis(8, 8, 1), KNOWN, [Wish("small", NEED, copies=3)]))
    assert nodes(chosen) == {"pi1", "pi2"}
    assert "3 copies are wanted, and there is room for 2" in chosen.why


def test_latency_takes_what_answers_one_stream_fastest() -> None:
    chosen = only(choose(pis(8, 8), KNOWN, [Wish("small", NEED, goal="latency")]))
    assert kind(chosen) == "tensor"
    alone = only(choose(pis(8), KNOWN, [Wish("small", NEED, goal="latency")]))
    assert kind(alone) == "replica"


def test_what_fits_nowhere_alone_takes_the_fewest_nodes() -> None:
    chosen = only(choose(pis(8, 8, 8, 8), KNOWN, [Wish("large", NEED, placement="rpc")]))
    assert len(nodes(chosen)) == 2
    assert "rpc" in chosen.why


def test_a_speed_that_is_wanted_makes_it_take_another_way() -> None:
    cluster = pis(8, 8, 8, 8)
    slow = only(choose(cluster, KNOWN, [Wish("small", NEED)]))
    quick = only(choose(cluster, KNOWN, [Wish("small", NEED, least_decode=8)]))
    assert kind(slow) == "replica"
    assert kind(quick) == "tensor"
    assert "slower than the 8 tokens/s" in next(one.why for one in quick.losers if one.kind == "replica")
    never = only(choose(cluster, KNOWN, [Wish("small", NEED, least_decode=500)]))
    assert "no placement reaches the 500 tokens/s" in never.why


def test_models_share_the_memory_in_the_order_of_the_wishes() -> None:
    plan = choose(pis(8, 8, 8), KNOWN, [Wish("large", NEED, placement="rpc"), Wish("small", NEED)])
    large, small = plan.chosen
    assert kind(small) == "replica"
    used = dict.fromkeys(("pi1", "pi2", "pi3"), 0)
    for chosen in (large, small):
        for placement in chosen.placements:
            for name, amount in placement.memory.items():
                used[name] += amount
    assert all(used[node.name] <= node.usable for node in plan.cluster.nodes)


def test_one_split_model_and_one_replica_a_node() -> None:
    two = choose(
        pis(8, 8, 8, 8),
        {**KNOWN, "second": replace(LARGE, name="second")},
        [
            Wish("large", NEED, placement="rpc"),
            Wish("second", NEED, placement="rpc"),
        ],
    )
    assert [one.wish.model for one in two.unplaced] == ["second"]
    assert "large has it already" in two.unplaced[0].refusals[0].reason
    pair = choose(
        pis(16, 16), {**KNOWN, "other": replace(SMALL, name="other")}, [Wish("small", NEED), Wish("other", NEED)]
    )
    held = [placement.head for chosen in pair.chosen for placement in chosen.placements]
    assert sorted(held) == ["pi1", "pi2"]


def test_what_has_no_place_says_what_would_fit() -> None:
    plan = choose(pis(8, 8, 8), KNOWN, [Wish("huge", NEED)])
    assert isinstance(plan.unplaced[0], Unplaced)
    assert {refusal.kind for refusal in plan.unplaced[0].refusals} == {"replica", "rpc", "tensor"}
    assert any("more nodes with" in line for line in plan.unplaced[0].would_fit)
    long = choose(pis(4), KNOWN, [Wish("small", Need(131072))])
    assert long.unplaced[0].would_fit[0].startswith("a context of ")
    tight = choose(
        pis(4),
        {"fine": model("fine", layers=28, embedding=3072, feed_forward=8192, heads=24, bits=16)},
        [Wish("fine", Need(2048))],
    )
    assert any("quantized as" in line for line in tight.unplaced[0].would_fit)


def test_nodes_and_head_can_be_pinned() -> None:
    wish = Wish("large", NEED, placement="rpc", nodes=("pi3", "pi2"), head="pi2")
    chosen = only(choose(pis(8, 8, 8), KNOWN, [wish]))
    assert chosen.placements[0].head == "pi2"
    assert nodes(chosen) == {"pi2", "pi3"}


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        (Preferences("memory"), {"pi3", "pi4"}),
        (Preferences("priority", ("pi2", "pi4")), {"pi2", "pi4"}),
    ],
)
def test_the_owners_order_of_nodes(preferences: Preferences, expected: set[str]) -> None:
    chosen = only(choose(pis(8, 8, 16, 16), KNOWN, [Wish("large", NEED, placement="rpc")], preferences))
    assert nodes(chosen) == expected


# --- The next plan


def again(cluster: Cluster, wishes: list[Wish], before: Plan) -> Plan:
    return choose(cluster, KNOWN, wishes, previous=previous(as_document(before)))


def layers(chosen: Chosen) -> dict[str, int]:
    return {name: len(held) for name, held in chosen.placements[0].layers.items()}


def test_a_node_more_moves_nothing() -> None:
    wishes = [Wish("large", NEED, placement="rpc")]
    before = choose(pis(8, 8, 8), KNOWN, wishes)
    faster = Cluster((pi("pi0", 8, 10.5e9), *pis(8, 8, 8).nodes))
    after = again(faster, wishes, before)
    assert layers(only(after)) == layers(only(before))
    assert only(after).kept
    assert only(after).why.startswith("it was here before")


def test_a_much_faster_node_moves_it() -> None:
    wishes = [Wish("large", NEED, placement="rpc")]
    before = choose(pis(8, 8, 8), KNOWN, wishes)
    after = again(Cluster((pi("box", 32, 40e9), *pis(8, 8, 8).nodes)), wishes, before)
    assert "box" in nodes(only(after))
    assert not only(after).kept


def test_a_node_less_moves_only_what_was_on_it() -> None:
    wishes = [Wish("large", NEED, placement="rpc"), Wish("small", NEED, nodes=("pi4",))]
    before = choose(pis(8, 8, 8, 8), KNOWN, wishes)
    gone = before.chosen[0].placements[0].workers[0]
    left = [node.name for node in before.cluster.nodes if node.name != gone]
    after = again(before.cluster.only(left), wishes, before)
    assert gone not in nodes(after.chosen[0])
    assert nodes(after.chosen[1]) == nodes(before.chosen[1])


def test_slices_stay_too() -> None:
    wishes = [Wish("large", Need(2048), placement="tensor")]
    before = choose(pis(8, 8, 8, 8), KNOWN, wishes)
    after = again(Cluster((pi("pi0", 8, 10.4e9), *before.cluster.nodes)), wishes, before)
    assert nodes(only(after)) == nodes(only(before))


def test_a_larger_context_that_no_longer_fits_moves_it() -> None:
    before = choose(pis(8, 8, 8), KNOWN, [Wish("large", NEED, placement="rpc")])
    after = again(pis(8, 8, 8), [Wish("large", Need(32768), placement="rpc")], before)
    assert len(nodes(only(after))) == 3


# --- What the roles get


def test_the_groups_and_variables_of_a_plan() -> None:
    plan = choose(
        pis(8, 8, 8),
        KNOWN,
        [
            Wish("large", Need(2048, 2, "q8_0"), placement="rpc", nodes=("pi1", "pi2")),
            Wish("small", NEED, nodes=("pi3",)),
        ],
    )
    groups, variables = host_variables(as_document(plan))
    head = plan.chosen[0].placements[0].head
    worker = ({"pi1", "pi2"} - {head}).pop()
    assert groups == {"rpc_head": [head], "rpc_worker": [worker], "llama_server": ["pi3"]}
    assert variables["pi3"] == {
        "llama_server_model": "small",
        "llama_server_context": 4096,
        "llama_server_slots": 1,
        "llama_server_cache_type": "f16",
    }
    assert variables[head]["rpc_head_context"] == 2048
    assert variables[head]["rpc_head_slots"] == 2
    assert variables[head]["rpc_head_cache_type"] == "q8_0"
    assert sum(variables[head]["rpc_head_layers"].values()) == 40


def test_the_hat_is_a_place_too() -> None:
    cluster = Cluster((replace(pi("pi1"), npu={"qwen2.5-instruct:1.5b": 8.0}), pi("pi2")))
    chosen = only(choose(cluster, KNOWN, [Wish("qwen2.5-instruct:1.5b", NEED)]))
    assert kind(chosen) == "npu"
    assert chosen.placements[0].decode == 8.0
    document = as_document(Plan((chosen,), (), cluster))
    assert document["models"][0]["decode"]["pi1"] == {
        "value": 8.0,
        "low": 8.0,
        "high": 8.0,
        "unit": "tok/s",
        "measured": True,
    }
    assert pis(8).node("pi1").usable < 8 * GIB


def test_slices_need_files_of_their_own() -> None:
    without = choose(pis(8, 8), KNOWN, [Wish("small", NEED, goal="latency")], sliceable=())
    assert kind(only(without)) == "replica"
    assert "bramble model convert" in next(one.why for one in only(without).losers if one.kind == "tensor")
    assert kind(only(choose(pis(8, 8), KNOWN, [Wish("small", NEED, goal="latency")], sliceable={"small"}))) == "tensor"


def test_the_root_of_slices_gets_its_files(tmp_path: Path) -> None:
    path = tmp_path / "small.dllama.json"
    about: dict[str, Any] = {"name": "Small-Q4_0", "kv_heads": 8, "context": 4096}
    for part, file in (("model", "small.m"), ("tokenizer", "small.t")):
        about[part] = {"file": file, "sha256": "0" * 64, "bytes": 7}
    path.write_text(json.dumps(about))
    plan = choose(pis(8, 8), KNOWN, [Wish("small", NEED, placement="tensor")], sliceable={"small"})
    groups, variables = host_variables(as_document(plan, {"small": str(path)}))
    assert groups == {"dllama_api": ["pi1"], "dllama_worker": ["pi2"]}
    assert variables["pi1"]["dllama_api_model_entry"]["model_path"] == str(tmp_path / "small.m")
    assert variables["pi1"]["dllama_api_model_entry"]["name"] == "small"
    assert variables["pi1"]["dllama_api_context"] == 4096
    for text in ("{", "{}", '{"model": 7}'):
        path.write_text(text)
        with pytest.raises(PlanError, match="not what bramble model convert writes"):
            host_variables(as_document(plan, {"small": str(path)}))
    with pytest.raises(PlanError, match="No such file"):
        host_variables(as_document(plan, {"small": str(tmp_path / "none")}))
