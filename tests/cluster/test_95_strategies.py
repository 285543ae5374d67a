"""Where a token's time goes: strategies are measured on the link as it is and on a worse one, and all is as before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest

from bramble.records import defects
from lab import BIN, ROOT, Lab

pytestmark = pytest.mark.lab
HEAD, WORKERS = "pi1", ["pi2", "pi3"]
LOGITS = "logits from the worker"
EVEN = {
    "split_bench_strategies": ["even"],
    "split_bench_links": ["", "100 Mbit/s"],
    "split_bench_generated_tokens": 32,
}
BOTH = EVEN | {"split_bench_strategies": ["even", LOGITS], "split_bench_links": [""]}
DEADLINE_S = 60


def measure(cluster: Lab, asked: dict[str, Any]) -> None:
    tags = ("--tags", "split_strategies")
    done = cluster.play("playbooks/benchmark.yml", *tags, "--extra-vars", json.dumps(asked))
    assert done.returncode == 0, done.stdout[-3000:]


def records(cluster: Lab) -> list[dict[str, Any]]:
    path = ROOT / cluster.inventory / "measured" / f"{HEAD}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines if (record := json.loads(line))["kind"] == "token_time"]


def links(cluster: Lab) -> dict[str, str]:
    """The root queueing discipline of each node's interface: what stands for the cable, or for a worse one."""
    return {node: cluster.shell(node, "tc qdisc show dev eth0 root").stdout for node in (HEAD, *WORKERS)}


def command(cluster: Lab) -> str:
    return cluster.shell(HEAD, "cat /etc/bramble/rpc-head.json; nft list chain inet bramble services").stdout


def test_a_link_is_not_left_shaped_by_a_run_that_is_cut_off(cluster: Lab) -> None:
    before = links(cluster)
    # A timer that does not wait for an hour.
    variables = EVEN | {"split_bench_links": ["100 Mbit/s"], "split_bench_timeout": 10, "benchmark_again": True}
    run = subprocess.Popen(
        [
            *(str(BIN / "ansible-playbook"), "-i", cluster.inventory, "playbooks/benchmark.yml"),
            *("--tags", "split_strategies", "--extra-vars", json.dumps(variables)),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 3 * DEADLINE_S
        while not all("b7a1:" in text for text in links(cluster).values()):
            assert run.poll() is None, "it ended by itself"
            assert time.monotonic() < end, "it shaped nothing"
            time.sleep(0.2)
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    end = time.monotonic() + DEADLINE_S
    while links(cluster) != before:
        assert time.monotonic() < end, links(cluster)
        time.sleep(1)


@pytest.fixture(scope="module")
def measured(cluster: Lab) -> dict[tuple[str, str], dict[str, Any]]:
    """(strategy, link) → the record."""
    path = ROOT / cluster.inventory / "measured" / f"{HEAD}.jsonl"
    # Of an earlier run on the same lab.
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if '"token_time"' not in line))
    links_before = links(cluster)
    # Puts back what the run that was cut off has left.
    measure(cluster, EVEN)
    command_before = command(cluster)
    assert len(records(cluster)) == 2
    # What has a record is not measured again.
    measure(cluster, BOTH)
    assert command(cluster) == command_before
    assert links(cluster) == links_before
    status = json.loads(cluster.bramble("status", "--json").stdout)
    assert status["problems"] == []
    assert status["model"]["layers"] == dict.fromkeys([HEAD, *WORKERS], 4)
    found = records(cluster)
    assert all((ROOT / cluster.inventory / "measured" / record["raw"]).exists() for record in found)
    assert [line for record in found for line in defects(record)] == []
    return {(record["params"]["strategy"], record["params"]["link"]): record for record in found}


def value(record: dict[str, Any], name: str) -> float:
    metric = record["result"][name]
    return float(metric.get("mean", metric.get("value")))


def test_each_strategy_has_one_record_on_each_link(
    cluster: Lab, measured: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert set(measured) == {("even", ""), ("even", "100 Mbit/s"), (LOGITS, "")}
    assert len(records(cluster)) == 3
    for (strategy, _), record in measured.items():
        assert record["params"]["layers"] == dict.fromkeys([HEAD, *WORKERS], 4)
        assert record["params"]["logits"] == ("worker" if strategy == LOGITS else "head")


def test_the_parts_make_the_token(measured: dict[tuple[str, str], dict[str, Any]]) -> None:
    for record in measured.values():
        parts = sum(value(record, f"{kind}_{host}") for kind in ("compute", "waited") for host in (HEAD, *WORKERS))
        token = value(record, "token")
        assert value(record, "network") == pytest.approx(max(0.0, token - parts))
        computed = [value(record, f"compute_{host}") for host in (HEAD, *WORKERS)]
        assert min(computed) > 0
        # One after the other; what waited for a core may have done so at the same time as another computed.
        assert sum(computed) < 1.2 * token


def test_the_bytes_are_those_of_the_protocol(measured: dict[tuple[str, str], dict[str, Any]]) -> None:
    model = json.loads((ROOT / ".bramble/models/bramble-synth.json").read_text())
    width, words = 4 * model["embedding"] + 8, 4 * model["vocabulary"] + 8
    for (strategy, _), record in measured.items():
        assert value(record, "received_pi2") == width
        assert value(record, "received_pi3") == (words if strategy == LOGITS else width)
        for worker in WORKERS:
            assert value(record, f"sent_{worker}") > width
            assert value(record, f"messages_{worker}") >= 2
            assert value(record, f"interface_received_{worker}") > 0.5 * value(record, f"sent_{worker}")
            assert 0 < value(record, f"rtt_{worker}") < 1000
