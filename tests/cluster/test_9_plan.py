"""The plan decides: a model that is larger than any node's declared memory is placed, served, and moved."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import BIN, ROOT, Asker, Lab, other_inventory, recap, run

pytestmark = pytest.mark.lab
MODEL = "bramble-synth"
SLICED = "bramble-sliced"
# Bytes that the nodes may use. The model's file has 67 MB, its cache 19; the head also needs some 40 for itself.
ROOM = {"pi1": 80_000_000, "pi2": 60_000_000, "pi3": 40_000_000}


@pytest.fixture(scope="module")
def planned(cluster: Lab) -> Iterator[Lab]:
    """The cluster by another inventory: no node is in a group of an engine, and plan_models says what is wanted."""
    with other_inventory(cluster, "planned") as lab:
        write(lab, ROOM)
        yield lab


@pytest.fixture(scope="module")
def slices() -> dict[str, Any]:
    """Variables for a model that distributed-llama can cut in two, and for distributed-llama: the emulation, or the
    real one if DISTRIBUTED_LLAMA_GIT (an address or a path) is set."""
    state = ROOT / ".bramble"
    file = state / f"models/{SLICED}.gguf"
    if not file.with_suffix(".dllama.json").exists():
        bramble = str(BIN / "bramble")
        for command in (
            # 40M: 8 heads, of which 2 for keys and values. The stand-in of the other tests has 3.
            ("synth", "--output", str(file), "--name", SLICED, "--size", "40M", "--force"),
            ("convert", str(file), "--output", str(file.parent), "--force"),
        ):
            done = run(bramble, "model", *command)
            assert done.returncode == 0, done.stderr
    about = {name: json.loads((file.parent / f"{name}.json").read_text()) for name in (MODEL, SLICED)}
    about[SLICED]["dllama"] = str(file.with_suffix(".dllama.json"))
    variables: dict[str, Any] = {
        "model_store_catalogue": about,
        "distributed_llama_cache_path": str(state / "dllama-cache"),
        "distributed_llama_build_jobs": 1,
    }
    if os.environ.get("DISTRIBUTED_LLAMA_GIT"):
        return variables | {
            "distributed_llama_repository": "{{ lookup('ansible.builtin.env', 'DISTRIBUTED_LLAMA_GIT') }}"
        }
    repository = state / "dllama-emulation"
    done = run(str(ROOT / "tests/molecule/dllama/emulation.sh"), str(repository))
    assert done.returncode == 0, done.stderr
    commit = done.stdout.splitlines()[-1]
    return variables | {"distributed_llama_repository": str(repository), "distributed_llama_commit": commit}


def write(lab: Lab, room: dict[str, int], *, variables: dict[str, Any] | None = None, **wish: Any) -> None:
    """The inventory, with so much memory on each node, and these variables for all of them."""
    hosts = yaml.safe_load((ROOT / "inventory/lab-cluster/hosts.yml").read_text())
    groups = hosts["all"]["children"]
    for group in ("rpc_head", "rpc_worker"):
        groups[group] = {"hosts": {}}
    for host, memory in room.items():
        # Not for the group: the lab's group_vars would win.
        groups["cluster"]["hosts"][host] |= {"plan_memory_bytes": memory, **(variables or {})}
    groups["cluster"]["vars"] |= {
        # The gateway knows the head's address by phase 3, which these tests do not run.
        "plan_models": [{"model": MODEL, "context": 2048, "head": "pi1", **wish}],
        "plan_headroom": 0,
        "plan_reserved_bytes": 1,
    }
    lab.declare(hosts)


def plan_of(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / lab.inventory / "plan.json").read_text())["models"][0]
    return found


def layers(lab: Lab) -> dict[str, int]:
    """What the running head says of itself."""
    status = json.loads(lab.bramble("status", "--json").stdout)
    assert status["problems"] == []
    found: dict[str, int] = status["model"]["layers"]
    return found


def wait_until_ready(lab: Lab, timeout: float = 120) -> None:
    """Wait for the head to have loaded its model over its workers, as the plan says."""
    end = time.monotonic() + timeout
    while True:
        status = json.loads(lab.bramble("status", "--json").stdout)
        if status["ok"] and status["model"]["layers"] == plan_of(lab)["layers"]:
            return
        assert time.monotonic() < end, status["problems"]
        time.sleep(1)


def test_a_model_larger_than_any_node_is_placed_and_served(planned: Lab, url: str) -> None:
    entry = json.loads((ROOT / f".bramble/models/{MODEL}.json").read_text())
    refused = planned.bramble("plan", "--what-if", "remove=pi3")
    assert refused.returncode == 1
    assert "has no place" in refused.stdout
    with_plan = planned.play("playbooks/phase2_distributed.yml")
    assert with_plan.returncode == 0, with_plan.stdout[-3000:]
    plan = plan_of(planned)
    assert plan["placement"] == "rpc"
    assert plan["head"] == "pi1"
    assert set(plan["layers"]) == set(ROOM)
    assert sum(plan["layers"].values()) == 12
    assert plan["layers"]["pi3"] < plan["layers"]["pi2"]
    assert all(part["needed"] <= part["usable"] <= ROOM[host] for host, part in plan["memory"].items())
    assert max(ROOM.values()) < entry["bytes"] + 19_000_000
    assert layers(planned) == plan["layers"]
    asker = Asker(url, MODEL)
    asker.ask()
    code, _, text = asker.answers[0]
    assert code == 200
    assert json.loads(text)["done"] is True


def test_no_node_holds_more_than_was_planned(planned: Lab) -> None:
    # A worker goes on when the plan changes: the most that it ever held would be that of an earlier plan.
    for host in ("pi2", "pi3"):
        assert planned.shell(host, "systemctl restart bramble-rpc-worker").returncode == 0
    time.sleep(3)  # The supervisor sees it within about a second.
    wait_until_ready(planned)
    units = {"pi1": "llama-server", "pi2": "ggml-rpc-server", "pi3": "ggml-rpc-server"}
    for host, program in units.items():
        find = f"grep --files-with-matches --line-regexp {program} /proc/[0-9]*/comm | head -n 1"
        kilobytes = planned.shell(host, f"awk '/^VmHWM/ {{ print $2 }}' $(dirname $({find}))/status").stdout
        held = int(kilobytes) * 1024
        needed = plan_of(planned)["memory"][host]["needed"]
        # Less where no long prompt has come yet: a buffer that nothing was written to is no memory.
        assert 0.4 * needed < held < 1.05 * needed, f"{host}: {held} of {needed}"


def test_the_second_run_changes_nothing(planned: Lab) -> None:
    again = planned.play("playbooks/phase2_distributed.yml")
    assert again.returncode == 0, again.stdout[-3000:]
    assert all(counts["changed"] == 0 for counts in recap(again.stdout).values())


def test_a_group_that_is_declared_beside_a_plan_is_refused(planned: Lab) -> None:
    path = ROOT / planned.inventory / "hosts.yml"
    before = path.read_text()
    hosts = yaml.safe_load(before)
    hosts["all"]["children"]["rpc_worker"]["hosts"] = {"pi1": None}
    path.write_text(yaml.safe_dump(hosts, sort_keys=False))
    try:
        done = planned.play("playbooks/validate.yml")
    finally:
        path.write_text(before)
    assert done.returncode != 0
    assert "group rpc_worker: holds pi1 by hosts.yml, but plan_models is set" in done.stdout


def test_a_model_without_a_place_stops_the_run_and_leaves_the_plan_as_it_was(planned: Lab) -> None:
    plan = ROOT / planned.inventory / "plan.json"
    before = plan.read_text()
    write(planned, dict.fromkeys(ROOM, 20_000_000))
    try:
        done = planned.play("playbooks/plan.yml")
    finally:
        write(planned, ROOM)
    assert done.returncode != 0
    assert "has no place" in done.stdout
    assert plan.read_text() == before


def test_a_new_plan_moves_only_what_it_must_and_loses_no_request(planned: Lab, url: str) -> None:
    started = {
        host: planned.shell(host, f"systemctl show --property ActiveEnterTimestampMonotonic {unit}").stdout
        for host, unit in (("pi1", "bramble-gateway"), ("pi2", "bramble-rpc-worker"))
    }
    write(planned, {**ROOM, "pi2": 100_000_000}, nodes=["pi1", "pi2"])
    asker = Asker(url, MODEL)
    asker.start()
    moved = planned.play("playbooks/phase2_distributed.yml")
    asker.end()
    assert moved.returncode == 0, moved.stdout[-3000:]
    found = plan_of(planned)["layers"]
    assert set(found) == {"pi1", "pi2"}
    assert layers(planned) == found
    # The node that has nothing any more has no service either; who was not concerned went on.
    assert planned.shell("pi3", "systemctl cat bramble-rpc-worker").returncode != 0
    assert "rpc-worker" not in planned.shell("pi3", "nft list chain inet bramble services").stdout
    gateway = planned.shell("pi1", "systemctl show --property ActiveEnterTimestampMonotonic bramble-gateway").stdout
    assert gateway == started["pi1"]


# Prints the status and the answer of a GET, or of a POST of the second argument.
ASK = """
import sys, urllib.error, urllib.request as r
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
try:
    with r.urlopen(r.Request(sys.argv[1], data, {"Content-Type": "application/json"}), timeout=60) as response:
        print(response.status, response.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


def ask_root(lab: Lab, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """What the root of distributed-llama answers to the one node that may ask it: the gateway's."""
    arguments = [f"http://{lab.address('pi1')}:9991{path}", *([json.dumps(body)] if body else [])]
    told = lab.host("pi1").check_output("python3 -c %s" + " %s" * len(arguments), ASK, *arguments)
    status, _, answer = told.partition(" ")
    return int(status), json.loads(answer)


def left_of(lab: Lab, engine: str, ports: tuple[int, ...]) -> list[str]:
    """What an engine has on any node: units, files of openings, rules in force, listeners."""
    search = "|".join(f":{port}|dport {port}" for port in ports)
    return [
        f"{host}: {line}"
        for host in ROOM
        for line in lab.shell(
            host,
            f"ls /etc/systemd/system/bramble-{engine}* /etc/bramble/firewall.d/{engine}* 2>/dev/null;"
            f"systemctl list-units --all --plain --no-legend 'bramble-{engine}*';"
            "{ ss --no-header --listening --tcp --numeric; nft list chain inet bramble services; }"
            f"| grep --extended-regexp '({search})\\b'",
        ).stdout.splitlines()
    ]


RPC, DLLAMA = ("rpc-", (8080, 50052)), ("dllama-", (9990, 9991, 9992))


PHASES_2_AND_3 = ("playbooks/phase2_distributed.yml", "playbooks/phase3_gateway.yml")


def test_slices_are_served_by_two_of_three_nodes(planned: Lab, url: str, slices: dict[str, Any]) -> None:
    entry = slices["model_store_catalogue"][SLICED]
    room = dict.fromkeys(ROOM, 30_000_000)
    write(planned, room, model=SLICED, context=1024, placement="tensor", variables=slices)
    done = planned.play(*PHASES_2_AND_3)
    assert done.returncode == 0, done.stdout[-3000:]
    plan = plan_of(planned)
    assert (plan["model"], plan["placement"], plan["head"], len(plan["nodes"])) == (SLICED, "tensor", "pi1", 2)
    assert max(room.values()) < entry["bytes"]
    assert all(part["needed"] <= part["usable"] <= room[host] for host, part in plan["memory"].items())
    assert left_of(planned, *RPC) == []
    spare = (ROOM.keys() - set(plan["nodes"])).pop()
    assert not any(line.startswith(spare) for line in left_of(planned, *DLLAMA))
    assert ask_root(planned, "/v1/models")[1]["data"][0]["id"] == SLICED
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    status, told = ask_root(planned, "/v1/chat/completions", body)
    assert status == 200, told
    assert told["choices"][0]["finish_reason"] in ("length", "stop")
    asker = Asker(url, SLICED)
    asker.ask()
    assert asker.answers[0][0] == 200, asker.answers
    again = planned.play(*PHASES_2_AND_3)
    assert again.returncode == 0, again.stdout[-3000:]
    assert all(counts["changed"] == 0 for counts in recap(again.stdout).values()), again.stdout


def test_layers_again_leave_nothing_of_the_slices(planned: Lab, url: str, slices: dict[str, Any]) -> None:
    assert left_of(planned, *DLLAMA)
    write(planned, ROOM, variables=slices)
    done = planned.play(*PHASES_2_AND_3)
    assert done.returncode == 0, done.stdout[-3000:]
    assert left_of(planned, *DLLAMA) == []
    assert layers(planned) == plan_of(planned)["layers"]
    asker = Asker(url, MODEL)
    asker.ask()
    assert asker.answers[0][0] == 200, asker.answers


def test_without_wishes_the_groups_of_the_inventory_hold_again(planned: Lab, cluster: Lab) -> None:
    path = ROOT / planned.inventory / "hosts.yml"
    hosts = yaml.safe_load(path.read_text())
    hosts["all"]["children"]["cluster"]["vars"]["plan_models"] = []
    path.write_text(yaml.safe_dump(hosts, sort_keys=False))
    done = planned.play("playbooks/plan.yml")
    assert done.returncode == 0, done.stdout[-3000:]
    assert not (ROOT / planned.inventory / "plan.json").exists()
    back = cluster.play("playbooks/phase2_distributed.yml")
    assert back.returncode == 0, back.stdout[-3000:]
    assert layers(cluster) == {"pi1": 4, "pi2": 4, "pi3": 4}
