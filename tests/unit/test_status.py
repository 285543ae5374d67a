import json
from typing import Any

import httpx
import pytest
from rich.console import Console

from bramble.cli.status import (
    Collector,
    NodeFacts,
    build_report,
    fetch_gateway,
    find_problems,
    last_tokens_per_second,
    render,
    render_verdict,
    url,
)
from bramble.runner import Progress

URL = "http://10.1.1.11:11434"


def service(active: str = "active", sub: str = "running", **more: Any) -> dict[str, Any]:
    return {"active": active, "sub": sub, "result": "success", "type": "exec", "restarts": 0, **more}


def node(role: str, key: str = "k1", **state: Any) -> NodeFacts:
    services = {f"bramble-{role.replace('_', '-')}.service": service()}
    content = {"services": services, "llama_cpp": {"build": {"key": key}}, "models": [], "rpc_head": None, **state}
    return NodeFacts(address="10.1.1.1", groups=("cluster", role), state=content)


def head(state: str = "ready") -> dict[str, Any]:
    layers = [
        {"host": "pi1", "device": "CPU", "layers": 4, "bytes": 40},
        {"host": "pi2", "device": "RPC0", "layers": 3, "bytes": 30},
        {"host": "pi2", "device": "RPC1", "layers": 2, "bytes": 20},
        {"host": "pi3", "device": "RPC2", "layers": 3, "bytes": 30},
    ]
    return {"state": state, "model": "bramble-synth", "url": "http://10.1.1.11:8080", "layers": layers}


def cluster() -> dict[str, NodeFacts]:
    return {
        "pi3": node("rpc_worker"),
        "pi1": node("rpc_head", rpc_head=head(), models=[{"name": "bramble-synth"}]),
        "pi2": node("rpc_worker"),
    }


def gateway(**more: Any) -> dict[str, Any]:
    backend = {"name": "pi1", "last": {"tokens_per_second": 21.5, "at": "2026-11-21T02:40:00Z"}}
    return {"url": URL, "reachable": True, "version": "0.1.0", "backends": [backend], "error": None, **more}


def test_a_healthy_cluster_has_no_problem_and_the_promised_shape() -> None:
    report = build_report(cluster(), gateway())
    assert report["ok"] is True
    assert report["problems"] == []
    assert list(report["nodes"]) == ["pi1", "pi2", "pi3"]
    assert report["model"]["name"] == "bramble-synth"
    assert report["model"]["layers"] == {"pi1": 4, "pi2": 5, "pi3": 3}
    assert {name: facts["layers"] for name, facts in report["nodes"].items()} == {"pi1": 4, "pi2": 5, "pi3": 3}
    assert report["build_keys"] == ["k1"]
    assert report["last_tokens_per_second"] == 21.5
    assert {"reachable", "address", "services", "build_key", "models", "layers"} <= set(report["nodes"]["pi1"])
    assert json.loads(json.dumps(report)) == report


def worker(**more: Any) -> dict[str, Any]:
    return {"bramble-rpc-worker.service": service(**more)}


@pytest.mark.parametrize(
    ("changes", "gateway_changes", "expected"),
    [
        pytest.param(
            {"pi2": node("rpc_worker", services=worker(active="failed", sub="failed", result="signal", restarts=3))},
            {},
            ["pi2: bramble-rpc-worker.service is failed (failed, signal, 3 restarts)"],
            id="unit failed",
        ),
        pytest.param(
            {"pi2": node("rpc_worker", services=worker(active="activating", sub="auto-restart"))},
            {},
            ["pi2: bramble-rpc-worker.service is activating (auto-restart, 0 restarts)"],
            id="unit restarts",
        ),
        pytest.param(
            {"pi2": node("rpc_worker", services=worker(active="inactive", sub="dead", type="oneshot"))},
            {},
            [],
            id="oneshot that has done its work",
        ),
        pytest.param(
            {"pi2": node("rpc_worker", services=worker(active="inactive", sub="dead"))},
            {},
            ["pi2: bramble-rpc-worker.service is inactive (dead, 0 restarts)"],
            id="stopped service",
        ),
        pytest.param(
            {"pi3": node("rpc_worker", key="k2")},
            {},
            ["The nodes have different builds of llama.cpp: k1 on pi1, pi2; k2 on pi3."],
            id="builds differ",
        ),
        pytest.param(
            {"pi1": node("rpc_head", rpc_head=head("loading"))},
            {},
            ["The RPC head is not ready: loading (model bramble-synth)"],
            id="head loads",
        ),
        pytest.param({"pi1": node("rpc_head")}, {}, ["pi1: the RPC head has not said what it loads"], id="silent head"),
        pytest.param(
            {"pi2": NodeFacts(address="10.1.1.12", error="No route to host", reachable=False)},
            {},
            ["pi2 (10.1.1.12): cannot be reached: No route to host"],
            id="node unreachable",
        ),
        pytest.param(
            {"pi2": NodeFacts(address="10.1.1.12", error="Timed out after 30 second(s).")},
            {},
            ["pi2: its state cannot be read: Timed out"],
            id="module failed",
        ),
        pytest.param(
            {"pi2": node("rpc_worker", services={})},
            {},
            ["pi2: none of Bramble's services is installed"],
            id="new node",
        ),
        pytest.param({"pi4": NodeFacts(groups=("cluster",), state={"services": {}})}, {}, [], id="node without a role"),
        pytest.param(
            {"pi2": node("rpc_worker", unreadable=["/run/x"])},
            {},
            ["pi2: /run/x cannot be read or understood"],
            id="unreadable file",
        ),
        pytest.param(
            {},
            {"reachable": False, "error": "Connection refused", "backends": []},
            [f"The gateway {URL} does not answer: Connection refused"],
            id="gateway unreachable",
        ),
        pytest.param(
            {"pi2": NodeFacts(address="a", error="e", reachable=False), "pi3": node("rpc_worker", key="k2")},
            {"reachable": False, "error": "x", "backends": []},
            ["pi2 (a): cannot", "The nodes have different builds", "The gateway"],
            id="several, each of them",
        ),
    ],
)
def test_each_problem_is_one_sentence_that_names_its_place(
    changes: dict[str, NodeFacts], gateway_changes: dict[str, Any], expected: list[str]
) -> None:
    report = build_report({**cluster(), **changes}, gateway(**gateway_changes))
    problems = report["problems"]
    assert len(problems) == len(expected), problems
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)
        assert "\n" not in problem
    assert report["ok"] is not bool(expected)
    assert find_problems(report) == problems


@pytest.mark.parametrize(
    ("backends", "expected"),
    [
        ([], None),
        ([{"last": None}, {}], None),
        ([{"last": {"tokens_per_second": 0.0, "at": "2026-01-01T00:00:00Z"}}], 0.0),
        (
            [
                {"last": {"tokens_per_second": 9.0, "at": "2026-01-01T00:00:01Z"}},
                {"last": {"tokens_per_second": 5.0, "at": "2026-01-01T00:00:02Z"}},
                {"last": {"tokens_per_second": None, "at": "2026-01-01T00:00:03Z"}},
            ],
            5.0,
        ),
    ],
)
def test_the_last_rate_is_the_newest_backends(backends: list[dict[str, Any]], expected: float | None) -> None:
    assert last_tokens_per_second(backends) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("10.1.1.11", "http://10.1.1.11:80"), ("pi1", "http://pi1:80"), ("fd00::1", "http://[fd00::1]:80")],
)
def test_url(host: str, expected: str) -> None:
    assert url(host, "80") == expected


def client(answer: httpx.Response | Exception) -> httpx.Client:
    def handle(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == f"{URL}/bramble/status"
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.Client(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.ConnectError("Connection refused"), "Connection refused"),
        (httpx.ReadTimeout(""), "ReadTimeout"),
        (httpx.Response(503), "HTTP status 503"),
        (httpx.Response(200, text="<html>"), "no valid answer"),
        (httpx.Response(200, json=[]), "no valid answer: not a JSON object"),
    ],
)
def test_a_gateway_that_does_not_answer_is_part_of_the_report(answer: httpx.Response | Exception, error: str) -> None:
    report = fetch_gateway(URL, client(answer))
    assert report["reachable"] is False
    assert report["error"].startswith(error)
    assert report["backends"] == []


def test_a_gateways_answer_is_taken_over() -> None:
    report = fetch_gateway(URL, client(httpx.Response(200, json={"version": "1", "backends": [{"name": "b"}]})))
    assert report == {"url": URL, "reachable": True, "version": "1", "backends": [{"name": "b"}], "error": None}


def test_no_gateway_in_the_inventory() -> None:
    assert fetch_gateway(None)["error"] == "the inventory has no host in the group gateway"


def event(kind: str, host: str, action: str, result: dict[str, Any]) -> dict[str, Any]:
    return {"event": kind, "event_data": {"host": host, "task_action": action, "res": result}}


def test_the_collector_takes_the_two_tasks_results_and_nothing_else() -> None:
    def told(address: str, *groups: str) -> dict[str, Any]:
        return {"address": address, "groups": groups, "gateway": {"address": "10.1.1.11", "port": 11434}}

    collector = Collector()
    for each in (
        {"event": "playbook_on_start", "event_data": {}},
        {"event": "verbose", "stdout": "x"},
        event("runner_on_ok", "pi1", "ansible.builtin.debug", {"msg": {"bramble_node": told("10.1.1.11", "gateway")}}),
        event("runner_on_ok", "pi2", "ansible.builtin.debug", {"msg": {"bramble_node": told("10.1.1.12")}}),
        event("runner_on_ok", "pi3", "ansible.builtin.debug", {"msg": {"bramble_node": told("10.1.1.13")}}),
        event("runner_on_ok", "pi1", "node_status", {"services": {"a": 1}}),
        event(
            "runner_on_unreachable", "pi2", "node_status", {"msg": "Task failed: No route to host", "unreachable": True}
        ),
        event("runner_on_failed", "pi3", "node_status", {"msg": "Timed out"}),
    ):
        collector(Progress(), each)
    assert collector.gateway_url == URL
    assert collector.nodes == {
        "pi1": NodeFacts("10.1.1.11", ("gateway",), state={"services": {"a": 1}}),
        "pi2": NodeFacts("10.1.1.12", (), error="No route to host", reachable=False),
        "pi3": NodeFacts("10.1.1.13", (), error="Timed out", reachable=True),
    }


def test_people_see_nodes_layers_and_each_problem_as_one_line() -> None:
    nodes = {**cluster(), "pi2": NodeFacts(address="10.1.1.12", error="[bold] " + "x" * 200, reachable=False)}
    report = build_report(nodes, gateway())
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render(report))
        console.print(render_verdict(report), soft_wrap=True)
    text = captured.get()
    assert "not reachable" in text
    assert "21.5 tokens/s" in text
    assert f"✗ pi2 (10.1.1.12): cannot be reached: [bold] {'x' * 200}" in text
