"""A root and a worker of distributed-llama: they answer, recover, and nobody but they ever connects to the worker.

With DISTRIBUTED_LLAMA_GIT in the environment it is the real engine, else the emulation.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from lab import ROOT as CHECKOUT
from lab import Lab, run

pytestmark = pytest.mark.lab
ROOT, WORKER = "bramble-dllama-api", "bramble-dllama-worker"
UNITS = [("pi1", ROOT), ("pi2", WORKER)]
BUILD = "/opt/distributed-llama/current/build.json"
PORT, ENGINE_PORT, WORKER_PORT = 9991, 9992, 9990
DEADLINE_S = 120
# Prints the HTTP status and the answer: GET, or POST of the second argument.
ASK = """
import sys, urllib.error, urllib.request as r
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
try:
    with r.urlopen(r.Request(sys.argv[1], data, {"Content-Type": "application/json"}), timeout=60) as response:
        print(response.status, response.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""


def ask(lab: Lab, path: str, body: Any = None) -> tuple[int, str]:
    """Asked from the one node that may ask it."""
    data = "" if body is None else body if isinstance(body, str) else json.dumps(body)
    host = lab.host("pi2")
    arguments = [f"http://{lab.address('pi1')}:{PORT}{path}", *([data] if body is not None else [])]
    status, _, answer = host.check_output("python3 -c %s" + " %s" * len(arguments), ASK, *arguments).partition(" ")
    return int(status), answer


def chat(lab: Lab, text: str = "Hello", **more: Any) -> tuple[int, str]:
    return ask(lab, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **more})


def property_of(lab: Lab, node: str, unit: str, name: str) -> str:
    return lab.host(node).check_output("systemctl show --property %s --value %s.service", name, unit).strip()


def journal(lab: Lab, node: str, unit: str, *conditions: str) -> str:
    told = lab.shell(node, f"journalctl --unit {unit}.service {' '.join(conditions)} --output cat --no-pager")
    assert told.returncode == 0, told.stderr
    return told.stdout


def until(condition: Callable[[], object], what: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < DEADLINE_S, what
        time.sleep(0.5)
    return time.monotonic() - began


def records(lab: Lab) -> list[dict[str, Any]]:
    path = CHECKOUT / lab.inventory / "measured/pi1.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines if (record := json.loads(line))["kind"] == "token_time"]


def test_nothing_but_the_root_connected_to_the_worker(lab: Lab) -> None:
    """Roles ran four times before this. Whatever else connects to a waiting worker ends it: a test below shows that."""
    assert property_of(lab, "pi2", WORKER, "NRestarts") == "0"
    assert property_of(lab, "pi1", ROOT, "NRestarts") == "0"
    # Of the process that runs now.
    own = f"_SYSTEMD_INVOCATION_ID={property_of(lab, 'pi2', WORKER, 'InvocationID')}"
    said = journal(lab, "pi2", WORKER, own)
    assert "The root node has connected" in said
    assert "Critical error" not in said


def test_where_a_tokens_time_goes_is_measured_and_the_service_is_back(lab: Lab) -> None:
    before = records(lab)
    done = lab.play("tests/molecule/dllama/measure.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    assert property_of(lab, "pi1", ROOT, "ActiveState") == "active"
    assert chat(lab)[0] == 200
    new = records(lab)[len(before) :]
    assert [record["params"]["link"] for record in new] == ["", "100 Mbit/s"]
    for record in new:
        result, params = record["result"], record["params"]
        assert (params["strategy"], params["placement"], params["nodes"]) == ("tensor", "tensor", ["pi1", "pi2"])
        assert params["n_gen"] == 8
        assert result["token"]["mean"] * result["decode"]["mean"] == pytest.approx(1000, rel=0.5)
        parts = [result[name]["value"] for name in ("compute_pi1", "network") if name in result]
        assert not parts or sum(parts) == pytest.approx(result["token"]["mean"], rel=0.01)
        assert {"sent", "received"} <= set(result)
    for node in ("pi1", "pi2"):
        assert "b7a1:" not in lab.shell(node, "tc qdisc show").stdout


@pytest.mark.parametrize(("node", "unit"), UNITS)
def test_the_service_runs_and_not_as_root(lab: Lab, node: str, unit: str) -> None:
    host = lab.host(node)
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled
    assert host.check_output("ps -o user:32= -p %s", property_of(lab, node, unit, "MainPID")).strip() == unit


@pytest.mark.parametrize(("node", "unit"), UNITS)
def test_the_unit_is_confined(lab: Lab, node: str, unit: str) -> None:
    last = lab.host(node).check_output("systemd-analyze security --no-pager %s", f"{unit}.service").splitlines()[-1]
    print(f"{unit}: {last}")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", last)
    assert found is not None, last
    assert float(found[1]) <= 3.0


def test_both_nodes_run_the_same_binaries(lab: Lab) -> None:
    one, other = (lab.host(node).file(BUILD).content_string for node in ("pi1", "pi2"))
    assert one == other
    build = json.loads(one)
    assert build["instructions"]["wanted"] > 0
    assert build["instructions"]["beyond"] == 0
    for node in ("pi1", "pi2"):
        for name, wanted in build["sha256"].items():
            assert lab.host(node).file(f"/opt/distributed-llama/current/bin/{name}").sha256sum == wanted
    assert not lab.host("pi2").exists("g++")


def test_the_engine_listens_on_the_loopback_only(lab: Lab) -> None:
    """Seen in the kernel's table: a look at the port itself would end it."""
    listing = lab.shell("pi1", f"ss --no-header --listening --tcp --numeric sport = :{ENGINE_PORT}").stdout
    assert [line.split()[3] for line in listing.splitlines()] == [f"127.0.0.1:{ENGINE_PORT}"]


def test_the_worker_is_open_to_its_root_only(lab: Lab) -> None:
    rules = lab.shell("pi2", "nft list chain inet bramble services").stdout
    own = [line for line in rules.splitlines() if f"dport {WORKER_PORT}" in line]
    assert len(own) == 1, rules
    assert f"ip saddr {lab.address('pi1')} tcp dport {WORKER_PORT} accept" in own[0]
    assert not any(f"dport {ENGINE_PORT}" in line for line in rules.splitlines())


def test_it_answers(lab: Lab) -> None:
    assert ask(lab, "/health")[0] == 200
    assert json.loads(ask(lab, "/v1/models")[1])["data"][0]["id"] == "dllama-tiny"
    status, told = chat(lab)
    assert status == 200, told
    choice = json.loads(told)["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("length", "stop")
    status, told = chat(lab, stream=True)
    assert status == 200, told
    assert told.strip().endswith("data: [DONE]")


def test_only_its_client_reaches_it(lab: Lab) -> None:
    assert run("bash", "-c", f"timeout 3 bash -c 'exec 3<>/dev/tcp/{lab.address('pi1')}/{PORT}'").returncode != 0


def test_what_would_end_the_engine_does_not(lab: Lab) -> None:
    """Each of these, sent to dllama-api itself, aborts it or blocks it."""
    before = property_of(lab, "pi1", ROOT, "MainPID"), journal(lab, "pi1", ROOT).count("Listening on")
    probe = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{lab.address('pi1')}/{PORT}'"
    assert lab.shell("pi2", probe).returncode == 0
    message = {"role": "user", "content": "x"}
    for spoilt in (
        "{",
        "",
        {"messages": [{**message, "content": [{"type": "image_url"}]}]},
        {"messages": [message], "seed": 1e400},
    ):
        assert ask(lab, "/v1/chat/completions", spoilt)[0] == 400
    assert chat(lab, stop="x", temperature=None)[0] == 200
    assert chat(lab, "too long " * 200)[0] == 400
    after = property_of(lab, "pi1", ROOT, "MainPID"), journal(lab, "pi1", ROOT).count("Listening on")
    assert after == before


def test_prompts_do_not_reach_the_journal(lab: Lab) -> None:
    assert chat(lab, "xylophone")[0] == 200
    assert "xylophone" not in journal(lab, "pi1", ROOT)
    assert "xylophone" not in journal(lab, "pi2", WORKER)


def test_a_worker_that_dies_comes_back_and_the_service_with_it(lab: Lab) -> None:
    assert lab.shell("pi2", f"systemctl kill --signal KILL {WORKER}.service").returncode == 0
    until(lambda: ask(lab, "/health")[0] != 200, "the loss was not noticed")
    print(f"recovered after {until(lambda: chat(lab)[0] == 200, 'no answer'):.0f} s")


def test_a_root_that_dies_comes_back(lab: Lab) -> None:
    assert lab.shell("pi1", f"systemctl kill --signal KILL {ROOT}.service").returncode == 0
    print(f"recovered after {until(lambda: chat(lab)[0] == 200, 'no answer'):.0f} s")


def test_a_worker_that_stands_still_is_noticed(lab: Lab) -> None:
    pid = property_of(lab, "pi2", WORKER, "MainPID")
    lab.shell("pi2", f"kill -STOP {pid}")
    try:
        status, told = chat(lab)
    finally:
        lab.shell("pi2", f"kill -CONT {pid}")
    assert (status, "stood still" in told) == (504, True), told
    print(f"recovered after {until(lambda: chat(lab)[0] == 200, 'no answer'):.0f} s")


def test_a_root_that_lost_its_power_does_not_hold_its_worker(lab: Lab) -> None:
    """Its end of the connection is gone and nobody said so: only keepalive tells the worker."""
    seen = journal(lab, "pi2", WORKER).count("Network error")
    lab.break_("cut", "pi1")
    try:
        lab.shell("pi1", f"systemctl kill --signal KILL {ROOT}.service; systemctl stop {ROOT}.service")
        took = until(lambda: journal(lab, "pi2", WORKER).count("Network error") > seen, "the worker waits for ever")
    finally:
        lab.break_("mend", "pi1")
    print(f"noticed after {took:.0f} s")
    assert lab.shell("pi1", f"systemctl start {ROOT}.service", timeout=DEADLINE_S).returncode == 0
    until(lambda: chat(lab)[0] == 200, "no answer")


def test_a_connection_to_a_waiting_worker_would_have_been_seen(lab: Lab) -> None:
    """The one that the tests above find none of."""
    lab.shell("pi1", f"systemctl stop {ROOT}.service")
    listening = f"ss --no-header --listening --tcp --numeric sport = :{WORKER_PORT}"
    until(lambda: lab.shell("pi2", listening).stdout, "the worker does not listen")
    before = int(property_of(lab, "pi2", WORKER, "NRestarts"))
    lab.shell("pi1", f"timeout 3 bash -c 'exec 3<>/dev/tcp/{lab.address('pi2')}/{WORKER_PORT}'")
    until(lambda: int(property_of(lab, "pi2", WORKER, "NRestarts")) > before, "it did not end")
    assert lab.shell("pi1", f"systemctl start {ROOT}.service", timeout=DEADLINE_S).returncode == 0
    until(lambda: chat(lab)[0] == 200, "no answer")
