"""`bramble plan` on an inventory as a user writes it: Ansible's own code reads it, and the plugin `planned` reads the
plan back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from bramble.cli.plan import DEPLOY, PORT, verify_plan

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
MODEL = "qwen2.5-3b-instruct-q4_k_m"
HOSTS = """\
cluster:
  hosts:
    pi1: {ansible_host: 192.0.2.1}
    pi2: {ansible_host: 192.0.2.2}
    pi3: {ansible_host: 192.0.2.3}
"""
WANTED = f"plan_memory_bytes: 8450000000\nplan_models: [{{model: {MODEL}, placement: rpc, nodes: [pi1, pi2]}}]\n"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "group_vars/all").mkdir(parents=True)
    (tmp_path / "hosts.yml").write_text(HOSTS)
    (tmp_path / "group_vars/all/plan.yml").write_text(WANTED)
    for name in ("measured.yml", "planned.yml"):
        (tmp_path / name).write_text((ROOT / "inventory/pi" / name).read_text())
    return tmp_path


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ANSIBLE_NOCOLOR": "1", "COLUMNS": "1000"}
    return subprocess.run(
        [str(BIN / program), *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def bramble(inventory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("bramble", "plan", "--inventory", str(inventory), *arguments)


def listed(inventory: Path) -> dict[str, Any]:
    done = run("ansible-inventory", "-i", str(inventory), "--list")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_plan_is_written_once_and_puts_hosts_into_groups(inventory: Path) -> None:
    first, second = bramble(inventory, "--write"), bramble(inventory, "--write")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "plan.json: written" in first.stdout
    assert "plan.json: unchanged" in second.stdout
    plan = json.loads((inventory / "plan.json").read_text())["models"][0]
    groups = listed(inventory)
    assert groups["rpc_head"]["hosts"] == [plan["head"]]
    assert groups["rpc_worker"]["hosts"] == [name for name in plan["nodes"] if name != plan["head"]]
    head = groups["_meta"]["hostvars"][plan["head"]]
    assert head["rpc_head_model"] == {"__ansible_unsafe": MODEL}  # Data, never a template.
    assert head["rpc_head_layers"] == plan["layers"]
    assert sum(plan["layers"].values()) == 36
    assert head["planned"] == [{"__ansible_unsafe": "rpc_head"}]
    assert "llama_server" not in groups


def test_without_a_plan_there_are_no_groups(inventory: Path) -> None:
    assert "rpc_head" not in listed(inventory)


def test_a_node_that_left_takes_its_model_out_of_the_groups(inventory: Path) -> None:
    assert bramble(inventory, "--write").returncode == 0
    (inventory / "hosts.yml").write_text(HOSTS.replace("    pi2: {ansible_host: 192.0.2.2}\n", ""))
    done = run("ansible-inventory", "-i", str(inventory), "--list")
    assert "rpc_head" not in json.loads(done.stdout)
    assert "is placed on pi2, which the inventory no longer has" in done.stderr


@pytest.mark.parametrize("text", ["{", '{"schema": 9}'])
def test_a_file_that_is_no_plan_is_told(inventory: Path, text: str) -> None:
    (inventory / "plan.json").write_text(text)
    done = run("ansible-inventory", "-i", str(inventory), "--list")
    assert done.returncode != 0
    assert "plan.json" in done.stderr
    assert "remove it and plan again" in done.stderr
    planned = bramble(inventory)
    assert planned.returncode == 2
    assert "remove it and plan again" in planned.stderr
    assert "Traceback" not in planned.stderr


def test_files_of_distributed_llama_that_are_not_there_are_told_before_they_are_planned_with(inventory: Path) -> None:
    known = yaml.safe_load((ROOT / "roles/model_store/vars/catalogue.yml").read_text())["__model_store_catalogue"]
    entry = {**known[MODEL], "dllama": "/none.dllama.json"}
    (inventory / "group_vars/all/model_store.yml").write_text(json.dumps({"model_store_catalogue": {MODEL: entry}}))
    done = bramble(inventory, "--write")
    assert done.returncode == 2
    assert f"model_store_catalogue.{MODEL}.dllama: /none.dllama.json: No such file" in done.stderr
    assert not (inventory / "plan.json").exists()


def test_what_if_compares_and_writes_nothing(inventory: Path) -> None:
    done = bramble(inventory, "--what-if", "network=wifi", "--what-if", "context=8192")
    assert done.returncode == 0, done.stderr
    assert "with network=wifi, context=8192" in done.stdout
    assert not (inventory / "plan.json").exists()
    assert bramble(inventory, "--what-if", "context=8192", "--write").returncode == 2
    wrong = bramble(inventory, "--what-if", "colour=red")
    assert wrong.returncode == 2
    assert "There are add=8" in wrong.stderr


def test_explain_says_who_holds_what_and_why_not_otherwise(inventory: Path) -> None:
    out = bramble(inventory, "--explain").stdout
    assert "its layers fit on 2 nodes; the owner wants rpc" in out
    assert re.search(r"pi[12] +1-\d+ .*GiB", out)
    assert re.search(r"pi[12] +\d+-36 .*GiB", out)
    assert "one token: " in out
    assert "decode rate of pi1, pi2, pi3: assumed, not measured" in out
    assert json.loads(bramble(inventory, "--json").stdout)["schema"] == 1


def test_a_model_without_a_place_ends_with_1(inventory: Path) -> None:
    (inventory / "group_vars/all/plan.yml").write_text(
        f"plan_memory_bytes: 1500000000\nplan_models: [{{model: {MODEL}, context: 32768}}]\n"
    )
    done = bramble(inventory)
    assert done.returncode == 1
    assert "has no place" in done.stdout
    assert "would fit: " in done.stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("plan_models: []\n", "plan_models names no model"),
        ("plan_models: [{model: none}]\nplan_memory_bytes: 8000000000\n", "none is in no catalogue"),
        # Before the first measurement, too.
        ("plan_models: [{model: none}]\n", "none is in no catalogue"),
        (f"plan_models: [{MODEL}]\nplan_memory_bytes: 8e9\n", "pi1: plan_memory_bytes is '8e9'"),
        (f"plan_models: [{MODEL}]\nplan_memory_bytes: 8000000000\nplan_priority: [pi9]\n", "plan_priority"),
        ('plan_models: "{{ nothing }}"\n', "nothing"),
    ],
)
def test_too_little_to_plan_from_ends_with_2(inventory: Path, text: str, message: str) -> None:
    (inventory / "group_vars/all/plan.yml").write_text(text)
    done = bramble(inventory)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- Run and measured


def record(decode: float) -> str:
    return json.dumps([{"result": {"decode": {"mean": decode, "sd": 0.1, "n": 5, "unit": "tok/s"}}}])


def verified(inventory: Path, works: Callable[[dict[str, Any]], bool]) -> tuple[bool, str, list[dict[str, Any]]]:
    """`bramble plan --verify` with playbooks that only say what they were to do: the plans that were deployed."""
    deployed: list[dict[str, Any]] = []

    def play(playbook: str, variables: Mapping[str, object]) -> bool:
        if playbook == DEPLOY:
            assert variables == {"plan_frozen": True}
            deployed.append(json.loads((inventory / "plan.json").read_text())["models"][0])
            return works(deployed[-1])
        assert str(variables["plan_verify_url"]).startswith("http://192.0.2.")
        Path(str(variables["plan_verify_output"])).write_text(record(4.0))
        return True

    console = Console(file=StringIO(), width=200)
    well = verify_plan(ROOT, inventory, play, tokens=8, console=console)
    assert isinstance(console.file, StringIO)
    return well, console.file.getvalue(), deployed


def test_verify_runs_the_plan_and_what_lost_and_goes_back(inventory: Path) -> None:
    (inventory / "group_vars/all/plan.yml").write_text(f"plan_memory_bytes: 8450000000\nplan_models: [{MODEL}]\n")
    assert bramble(inventory, "--write").returncode == 0
    before = (inventory / "plan.json").read_text()
    well, said, deployed = verified(inventory, lambda _: True)
    assert well
    assert [plan["placement"] for plan in deployed] == ["replica", "rpc", "replica"]
    assert len(deployed[0]["nodes"]) == 1  # One stream is measured.
    assert (inventory / "plan.json").read_text() == before
    assert said.count("4 ") >= 2
    assert "the plan" in said


def test_a_placement_that_does_not_start_is_told_and_left(inventory: Path) -> None:
    (inventory / "group_vars/all/plan.yml").write_text(f"plan_memory_bytes: 8450000000\nplan_models: [{MODEL}]\n")
    well, said, deployed = verified(inventory, lambda plan: plan["placement"] != "rpc")
    assert not well
    assert "did not start" in said
    assert deployed[-1]["placement"] == "replica"


def test_the_ports_are_those_of_the_roles() -> None:
    for name, port in PORT.items():
        defaults = ROOT / "roles" / name.removesuffix("_port") / "defaults/main.yml"
        if defaults.exists():
            assert yaml.safe_load(defaults.read_text())[name] == port


def test_a_node_that_was_not_measured_ends_with_3(inventory: Path) -> None:
    (inventory / "group_vars/all/plan.yml").write_text(f"plan_models: [{MODEL}]\n")
    done = bramble(inventory)
    assert done.returncode == 3
    assert "pi1: its memory is not known" in done.stderr


# --- The role


@pytest.mark.parametrize(
    ("arguments", "returncode", "message"),
    [
        ((), 2, "pi1: its memory is not known"),
        (("--check",), 0, ""),
        (("-e", '{"plan_when_measured": true}'), 0, ""),
        (("-e", '{"plan_frozen": true}'), 0, ""),
    ],
)
def test_before_the_first_measurement_only_a_real_run_needs_a_plan(
    inventory: Path, arguments: tuple[str, ...], returncode: int, message: str
) -> None:
    hosts = HOSTS.replace("cluster:\n", "cluster:\n  vars: {ansible_user: pi}\n")
    (inventory / "hosts.yml").write_text(f"{hosts}gateway: {{hosts: {{pi1: }}}}\n")
    (inventory / "group_vars/all/plan.yml").write_text(f"plan_models: [{MODEL}]\n")
    done = run("ansible-playbook", "-i", str(inventory), "playbooks/plan.yml", *arguments)
    assert done.returncode == returncode, done.stdout + done.stderr
    assert message in done.stdout
    assert not (inventory / "plan.json").exists()


def test_a_mistake_is_told_before_the_first_measurement(inventory: Path) -> None:
    hosts = HOSTS.replace("cluster:\n", "cluster:\n  vars: {ansible_user: pi}\n")
    (inventory / "hosts.yml").write_text(f"{hosts}gateway: {{hosts: {{pi1: }}}}\n")
    (inventory / "group_vars/all/plan.yml").write_text("plan_models: [{model: nonsuch}]\n")
    done = run("ansible-playbook", "-i", str(inventory), "playbooks/plan.yml", "-e", '{"plan_when_measured": true}')
    assert done.returncode == 2
    assert "nonsuch is in no catalogue" in done.stdout
