"""A wrong inventory ends `ansible-playbook` with one clear list, before anything connects to a node."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkout import ROOT, load, run

PI = ROOT / "inventory/pi"


@dataclass
class Inventory:
    """A copy of inventory/pi, filled in."""

    path: Path

    def hosts(self, change: Callable[[dict[str, Any]], object]) -> None:
        file = self.path / "hosts.yml"
        content = load(file)
        change(content)
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def variable(self, role: str, **values: Any) -> None:
        file = self.path / f"group_vars/all/{role}.yml"
        kept = [line for line in file.read_text().splitlines() if line.split(":")[0] not in values]
        file.write_text("\n".join(kept) + "\n" + yaml.safe_dump(values))

    def file(self, name: str, **values: Any) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))

    def validate(self, *options: str, cwd: Path = ROOT) -> tuple[int, list[str], str]:
        """Runs the playbook: exit code, problems as the message lists them, all output."""
        playbook = os.path.relpath(ROOT / "playbooks/validate.yml", cwd)
        done = run(
            "ansible-playbook", "-i", str(self.path), playbook, *options,
            cwd=cwd,
        )  # fmt: skip
        output = done.stdout + done.stderr
        assert "Traceback" not in output
        # What the user sees: a heading with the count, and a line for each.
        listed = re.search(r"msg: \|-\n +the inventory has problems \((\d+)\):\n((?: +- .*\n)+)", output)
        lines = [line.strip().removeprefix("- ") for line in listed[2].splitlines()] if listed else []
        assert not listed or int(listed[1]) == len(lines)
        return done.returncode, lines, output


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "pi"
    shutil.copytree(PI, path)
    hosts = path / "hosts.yml"
    text = hosts.read_text().replace("ansible_user: CHANGE_ME", "ansible_user: pi")
    for number in (1, 2, 3):
        text = text.replace("ansible_host: CHANGE_ME", f"ansible_host: 192.0.2.1{number}", 1)
    hosts.write_text(text)
    return Inventory(path)


def test_the_example_filled_in_is_right(inventory: Inventory) -> None:
    code, lines, output = inventory.validate()
    assert (code, lines) == (0, []), output
    assert output.count("ok=4 ") == 1  # one host for all, and each of them notes it
    assert "the inventory is complete and consistent: 3 hosts" in output


def test_what_a_host_registers_afterwards_is_its_own(inventory: Inventory, tmp_path: Path) -> None:
    # ansible-core 2.21 gives all hosts one dictionary where the first fact of a run is set by a task that runs once.
    playbook = tmp_path / "own.yml"
    playbook.write_text(
        yaml.safe_dump(
            [
                {"ansible.builtin.import_playbook": str(ROOT / "playbooks/validate.yml")},
                {
                    "hosts": "cluster",
                    "gather_facts": False,
                    "connection": "local",
                    "tasks": [
                        {"ansible.builtin.set_fact": {"own": "{{ inventory_hostname }}"}},
                        {"ansible.builtin.assert": {"that": "own == inventory_hostname"}},
                    ],
                },
            ]
        )
    )
    done = run("ansible-playbook", "-i", str(inventory.path), str(playbook))
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("All assertions passed") == 3


def test_the_untouched_example_says_what_to_fill_in() -> None:
    code, lines, output = Inventory(PI).validate()
    assert code != 0
    assert [re.sub(r".*hosts.yml:\d+: ", "", line) for line in lines] == [
        "all hosts: ansible_user is still the placeholder CHANGE_ME: write the user that ssh logs in as",
        *(
            f"{host}: ansible_host is still the placeholder CHANGE_ME: write the node's IPv4 address"
            for host in ("pi1", "pi2", "pi3")
        ),
    ], output


WRONG: list[tuple[str, Callable[[Inventory], object], str]] = [
    (
        "unknown variable",
        lambda i: i.variable("gateway", gateway_prot=1),
        r"{path}/group_vars/all/gateway.yml:\d+: all hosts: gateway_prot is not a variable of any role: "
        r"did you mean gateway_port\?",
    ),
    (
        "missing address",
        lambda i: i.hosts(lambda hosts: hosts["cluster"]["hosts"]["pi2"].clear()),
        r"pi2: ansible_host is missing: write the node's IPv4 address",
    ),
    (
        "duplicate address",
        lambda i: i.hosts(lambda hosts: hosts["cluster"]["hosts"]["pi3"].update(ansible_host="192.0.2.11")),
        r"pi1 \(.*hosts.yml:\d+\), pi3 \(.*hosts.yml:\d+\): have the same address 192.0.2.11: give each node its own",
    ),
    (
        "string for a number",
        lambda i: i.variable("rpc_head", rpc_head_slots="four"),
        r'{path}/group_vars/all/rpc_head.yml:\d+: all hosts: rpc_head_slots is the text "four", not a whole number: '
        r"write digits without quotes",
    ),
    (
        "two heads",
        lambda i: i.hosts(
            lambda hosts: (hosts["rpc_head"]["hosts"].update(pi2=None), hosts["rpc_worker"]["hosts"].pop("pi2"))
        ),
        r"group rpc_head: holds pi1, pi2, but an RPC worker serves one head only: leave one of them here",
    ),
    (
        "expression that cannot be evaluated",
        lambda i: i.variable("rpc_head", rpc_head_model="{{ nowhere.model }}"),
        r"{path}/group_vars/all/rpc_head.yml:\d+: all hosts: rpc_head_model cannot be evaluated: "
        r".*'nowhere' is undefined.*",
    ),
    (
        "boolean, which carries no line",
        lambda i: i.variable("rpc_head", rpc_head_slots=True),
        r"{path}/group_vars/all/rpc_head.yml:\d+: all hosts: rpc_head_slots is true, not a whole number: .*",
    ),
    (
        "unknown group",
        lambda i: i.hosts(lambda hosts: hosts.update(rpc_workers={"hosts": {"pi2": None}})),
        r"group rpc_workers: is not known, so its hosts would get nothing: did you mean rpc_worker\?",
    ),
    (
        "group of a role that has none",
        lambda i: i.hosts(lambda hosts: hosts.update(model_store={"hosts": {"pi2": None}})),
        r"group model_store: is not known, so its hosts would get nothing: "
        r"the groups are cluster, dllama_api, dllama_worker, gateway, hailo, hailo_ollama, llama_server, ollama, "
        r"rpc_head, rpc_worker",
    ),
    (
        "host in no group",
        lambda i: i.hosts(lambda hosts: hosts.update(all={"hosts": {"pi9": {"ansible_host": "192.0.2.19"}}})),
        r"pi9: is in no group, so it would get nothing: add it to cluster in hosts.yml, or remove it",
    ),
    (
        "file for a host that is not there",
        lambda i: i.file("host_vars/pi9.yml", gateway_port=1),
        r"{path}/host_vars/pi9.yml: there is no host pi9 in the inventory, so nothing would read it: "
        r"did you mean pi3\?",
    ),
    (
        "file for a group that is not there",
        lambda i: i.file("group_vars/gatewy/gateway.yml", gateway_port=1),
        r"{path}/group_vars/gatewy/: there is no group gatewy in the inventory, so nothing would read it: "
        r"did you mean gateway\?",
    ),
    (
        "missing user",
        lambda i: i.hosts(lambda hosts: hosts["cluster"].pop("vars")),
        r"all hosts: ansible_user is missing: write the user that ssh logs in as, .*",
    ),
    (
        "misspelt variable of Ansible",
        lambda i: i.hosts(lambda hosts: hosts["cluster"]["vars"].update(ansible_ssh_private_key_fil="~/.ssh/pi")),
        r"{path}/hosts.yml:\d+: all hosts: ansible_ssh_private_key_fil is not a variable that Ansible knows: "
        r"did you mean ansible_ssh_private_key_file\?",
    ),
    (
        "model of no catalogue",
        lambda i: i.variable("rpc_head", rpc_head_model="qwen2.5-3b"),
        r'{path}/group_vars/all/rpc_head.yml:\d+: pi1: rpc_head_model is "qwen2.5-3b", which is not in the catalogue: '
        r".* add your own to model_store_catalogue",
    ),
    (
        "layers that do not add up",
        lambda i: i.variable("rpc_head", rpc_head_layers={"pi1": 10, "pi2": 13, "pi3": 14}),
        r"{path}/group_vars/all/rpc_head.yml:\d+: pi1: rpc_head_layers are 37 together, "
        r"but qwen2.5-3b-instruct-q4_k_m has 36 layers: write numbers that sum to 36, or \{\} for an even split",
    ),
    (
        "entry with a wrong checksum",
        lambda i: i.variable(
            "model_store", model_store_catalogue={"m": {"url": "https://m.example/m", "sha256": "zz", "bytes": 1}}
        ),
        r"{path}/group_vars/all/model_store.yml:\d+: all hosts: model_store_catalogue.m.sha256 is the text \"zz\", "
        r"not 64 hex digits in lower case: .*",
    ),
    (
        "too few tokens",
        lambda i: i.variable("rpc_head", rpc_head_context=-5),
        r"{path}/group_vars/all/rpc_head.yml:\d+: all hosts: rpc_head_context is -5, which is too small: .*",
    ),
    (
        "clients that are no network",
        lambda i: i.variable("gateway", gateway_clients=["192.168.1.0/33"]),
        r"{path}/group_vars/all/gateway.yml:\d+: all hosts: gateway_clients\[0\] is the text \"192.168.1.0/33\", "
        r"not an IPv4 address or network: .*",
    ),
    (
        "no hosts",
        lambda i: (i.path / "hosts.yml").write_text("all: {hosts: {}}"),
        r"the inventory has no hosts: name the nodes in its hosts.yml, or pass the right directory with -i",
    ),
]


@pytest.mark.parametrize(("spoil", "line"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_inventory_gives_one_line_that_names_the_place(
    inventory: Inventory, spoil: Callable[[Inventory], object], line: str
) -> None:
    spoil(inventory)
    code, lines, output = inventory.validate()
    assert code != 0
    assert len(lines) == 1, output
    assert re.fullmatch(line.replace("{path}", re.escape(str(inventory.path))), lines[0]), lines[0]


@pytest.mark.parametrize("options", [("--limit", "pi1"), ("--check",), ("--tags", "gateway")], ids=" ".join)
def test_every_host_is_checked_whatever_the_run_is_limited_to(inventory: Inventory, options: tuple[str, ...]) -> None:
    inventory.hosts(lambda hosts: hosts["cluster"]["hosts"]["pi3"].update(gateway_port="1"))
    code, lines, output = inventory.validate(*options)
    assert code != 0
    assert len(lines) == 1, output
    assert ": pi3: gateway_port is the text" in lines[0]


def test_the_user_may_come_from_the_command_line(inventory: Inventory) -> None:
    inventory.hosts(lambda hosts: hosts["cluster"].pop("vars"))
    code, lines, output = inventory.validate("-u", "pi")
    assert (code, lines) == (0, []), output


def test_the_labs_own_values_are_right(inventory: Inventory) -> None:
    """What inventory/lab/group_vars sets, with a stand-in's entry such as `bramble model synth` writes it."""
    entry = {"file": "/m.gguf", "sha256": "0" * 64, "bytes": 1, "layers": 12}
    shutil.copytree(ROOT / "inventory/lab/group_vars", inventory.path / "group_vars", dirs_exist_ok=True)
    inventory.file("group_vars/all/model_store.yml", model_store_catalogue={"bramble-synth": entry})
    # As `bramble lab up` writes it: what the emulated file server has.
    served = ("hailo_gen_ai_model_zoo_5.1.1_arm64.deb", *(f"v0.13.3/ollama-linux-{a}.tgz" for a in ("amd64", "arm64")))
    files = inventory.path.parents[1] / ".bramble/labs" / inventory.path.name / "files.json"
    files.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(json.dumps(dict.fromkeys(served, "0" * 64)))
    code, lines, output = inventory.validate()
    assert (code, lines) == (0, []), output


def test_it_works_from_playbooks_too(inventory: Inventory) -> None:
    code, _, output = inventory.validate(cwd=ROOT / "playbooks")
    assert code == 0, output


def test_without_the_checkouts_configuration_it_says_where_to_run(inventory: Inventory, tmp_path: Path) -> None:
    code, _, output = inventory.validate(cwd=tmp_path)
    assert code != 0
    assert f"run from {ROOT} or its playbooks/" in output


def test_what_roles_register_is_not_checked_again(inventory: Inventory, tmp_path: Path) -> None:
    site = tmp_path / "site.yml"
    validate = {"import_playbook": str(ROOT / "playbooks/validate.yml")}
    fact = {"name": "Register", "ansible.builtin.set_fact": {"some_endpoint": "192.0.2.11:8081"}}
    play = {"name": "Register", "hosts": "pi1", "gather_facts": False, "tasks": [fact]}
    site.write_text(yaml.safe_dump([validate, play, validate], sort_keys=False))
    done = run(
        "ansible-playbook", "-i", str(inventory.path), str(site),

    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("the inventory is complete and consistent") == 1
