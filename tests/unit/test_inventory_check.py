"""Each mistake that an inventory can hold gives one line, which names the place, the fault and the remedy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ansible.module_utils.bramble.inventory_check import MAX_RPC_WORKERS, Unresolved, problems, unused_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SPECS: dict[str, dict[str, Any]] = {
    "cluster_network": {"cluster_network_address": {"type": "str"}},
    "dllama_api": {
        "dllama_api_model_entry": {"type": "dict", "default": {}},
        "dllama_api_port": {"type": "int", "default": 9991},
        "dllama_api_engine_port": {"type": "int", "default": 9992},
    },
    "dllama_worker": {"dllama_worker_port": {"type": "int", "default": 9990}},
    "gateway": {
        "gateway_port": {"type": "int", "default": 11434},
        "gateway_clients": {"type": "list", "elements": "str", "default": []},
        "gateway_open": {"type": "bool", "default": False},
        "gateway_timeout": {"type": "float", "default": 60.0},
        "gateway_title": {"type": "str"},
    },
    "hailo": {"hailo_version": {"type": "str", "default": "5.1.1"}},
    "hailo_ollama": {"hailo_ollama_version": {"type": "str", "default": "5.1.1"}},
    "llama_cpp": {"llama_cpp_source": {"type": "str", "choices": ["git", "sdist"], "default": "git"}},
    "llama_server": {
        "llama_server_model": {"type": "str", "default": "small"},
        "llama_server_port": {"type": "int", "default": 8080},
    },
    "model_store": {
        "model_store_models": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "size": {"type": "int"},
                "source": {"type": "dict", "options": {"url": {"type": "str"}, "path": {"type": "path"}}},
            },
        },
        "model_store_catalogue": {"type": "dict", "default": {}},
    },
    "os_base": {"os_base_tuning": {"type": "raw"}},
    "rpc_head": {
        "rpc_head_model": {"type": "str", "default": "large"},
        "rpc_head_port": {"type": "int", "default": 8081},
        "rpc_head_layers": {"type": "dict", "default": {}},
        "rpc_head_slots": {"type": "int", "default": 2},
    },
    "rpc_worker": {"rpc_worker_port": {"type": "int", "default": 50052}},
}

SHA256 = "0123456789abcdef" * 4
ENTRY = {"url": "https://models.example/m.gguf", "sha256": SHA256, "bytes": 1}
CATALOGUE: dict[str, Any] = {"large": {**ENTRY, "layers": 20}, "small": ENTRY}
CONNECTION = ("ansible_host", "ansible_port", "ansible_ssh_private_key_file", "ansible_ssh_user", "ansible_user")

ALL_LAYERS = {"pi1": 4, "pi2": 8, "pi3": 8}


@dataclass
class Inventory:
    """Right as it is; each case spoils one thing."""

    hosts: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {f"pi{n}": {"ansible_host": f"192.0.2.1{n}", "ansible_user": "pi"} for n in (1, 2, 3)}
    )
    groups: dict[str, list[str]] = field(
        default_factory=lambda: {
            "all": ["pi1", "pi2", "pi3"],
            "ungrouped": [],
            "cluster": ["pi1", "pi2", "pi3"],
            "rpc_head": ["pi1"],
            "rpc_worker": ["pi2", "pi3"],
            "llama_server": [],
            "gateway": ["pi1"],
            "hailo": ["pi1"],
        }
    )

    def everywhere(self, **variables: Any) -> None:
        for host in self.hosts.values():
            host.update(copy.deepcopy(variables))

    def problems(self) -> list[str]:
        found: list[str] = problems(self.hosts, self.groups, SPECS, catalogue=CATALOGUE, connection=CONNECTION)
        return found


def test_a_right_inventory_has_no_problems() -> None:
    inventory = Inventory()
    inventory.everywhere(
        ansible_python_interpreter="/usr/bin/python3",  # not in CONNECTION, and like none of them
        gateway_clients=["192.0.2.0/24", "192.0.2.7", "0.0.0.0/0"],
        gateway_open=True,
        gateway_timeout=30,  # a whole number is a number
        gateway_title=None,  # empty is "not set" where nothing is the default
        llama_cpp_source="sdist",
        model_store_models=[{"name": "a", "size": 1, "source": {"path": "/a"}}],
        model_store_catalogue={
            "my-model": {**ENTRY, "family": "llama", "layers": 1, "quantization": "Q8_0", "context": None},
            "other_1.5": {"file": "/m.gguf", "sha256": SHA256, "bytes": 2, "dllama": "/m.dllama.json"},
        },
        os_base_tuning=[1, "two", {}],
        rpc_head_layers=ALL_LAYERS,
        vault_token="secret",
        measured=[{"kind": "llama_bench"}],  # by the inventory plugin
    )
    assert inventory.problems() == []


def test_an_empty_inventory_says_so() -> None:
    assert problems({}, {"all": [], "ungrouped": []}, SPECS) == [
        "the inventory has no hosts: name the nodes in its hosts.yml, or pass the right directory with -i"
    ]


# A variable that is the same on all hosts, its value, and the line.
VALUES: list[tuple[str, Any, str]] = [
    ("gateway_prot", 1, "gateway_prot is not a variable of any role: did you mean gateway_port?"),
    ("zzz", 1, "zzz is not a variable of any role: remove it"),
    ("rpc_head_slots", "four", 'rpc_head_slots is the text "four", not a whole number: write digits without quotes'),
    ("rpc_head_slots", "4", 'rpc_head_slots is the text "4", not a whole number'),
    ("rpc_head_slots", 4.0, "rpc_head_slots is the number 4.0, not a whole number"),
    ("rpc_head_slots", True, "rpc_head_slots is true, not a whole number"),
    ("rpc_head_slots", [4], "rpc_head_slots is a list, not a whole number"),
    ("rpc_head_slots", None, "rpc_head_slots is empty: write a value, or remove the line to get the default"),
    ("gateway_open", "yes", 'gateway_open is the text "yes", not true or false: write true or false without quotes'),
    ("gateway_open", 1, "gateway_open is the number 1, not true or false"),
    ("gateway_timeout", "60", 'gateway_timeout is the text "60", not a number'),
    ("gateway_timeout", False, "gateway_timeout is false, not a number"),
    ("gateway_title", 5, "gateway_title is the number 5, not text: put it in quotes"),
    ("gateway_clients", "192.0.2.1", 'gateway_clients is the text "192.0.2.1", not a list'),
    ("gateway_clients", ["192.0.2.1", 5], "gateway_clients[1] is the number 5, not text"),
    ("gateway_clients", ["192.0.2.1", None], "gateway_clients[1] is empty"),
    ("gateway_port", 0, "gateway_port is 0, which is no TCP port: choose one from 1 to 65535"),
    ("gateway_port", 65536, "gateway_port is 65536, which is no TCP port"),
    (
        "llama_cpp_source",
        "gti",
        'llama_cpp_source is the text "gti", which is not one of git, sdist: did you mean git?',
    ),
    ("gateway_clients", ["192.0.2.1", "192.0.2.0/33"], 'gateway_clients[1] is the text "192.0.2.0/33", not an IPv4'),
    ("gateway_clients", ["laptop.local"], "not an IPv4 address or network: write one, such as 192.168.1.5"),
    ("gateway_clients", ["fd00::/8"], "not an IPv4 address or network"),
    ("gateway_clients", ["192.0.2.0/255.255.255.0"], "not an IPv4 address or network"),
    ("gateway_clients", ["192.0.2.0/"], "not an IPv4 address or network"),
    ("gateway_clients", [""], "not an IPv4 address or network"),
    ("rpc_head_slots", 0, "rpc_head_slots is 0, which is too small: write 1 or more"),
    ("rpc_head_slots", -5, "rpc_head_slots is -5, which is too small"),
    ("gateway_timeout", -1.5, "gateway_timeout is -1.5, which is too small"),
    ("ansible_usr", None, "ansible_usr is not a variable that Ansible knows: did you mean ansible_user?"),
    ("ansible_ssh_private_key_fil", None, "did you mean ansible_ssh_private_key_file?"),
    ("ansible_user", 5, "ansible_user is the number 5, not the name of a user: put it in quotes"),
    ("ansible_user", "", "ansible_user is missing: write the user that ssh logs in as"),
    ("ansible_user", None, "ansible_user is missing"),
    ("llama_cpp_source", "zip", "which is not one of git, sdist: choose one of these"),
    ("model_store_catalogue", ["a"], "model_store_catalogue is a list, not a mapping"),
    ("model_store_models", [{"name": "a"}, {"size": 1}], "model_store_models[1] lacks name: add it"),
    (
        "model_store_models",
        [{"name": "a", "sise": 1}],
        "model_store_models[0].sise is not known there: did you mean size?",
    ),
    (
        "model_store_models",
        [{"name": "a", "qqq": 1}],
        "model_store_models[0].qqq is not known there: it takes name, size",
    ),
    ("model_store_models", [{"name": "a", "source": {"path": 5}}], "model_store_models[0].source.path is the number 5"),
    ("model_store_models", ["a"], 'model_store_models[0] is the text "a", not a mapping'),
    *(
        ("model_store_catalogue", {"m": {**ENTRY, **changes}}, f"model_store_catalogue.m{text}")
        for changes, text in (
            (
                {"sha256": "zz"},
                '.sha256 is the text "zz", not 64 hex digits in lower case: write what sha256sum prints',
            ),
            ({"sha256": SHA256.upper()}, ".sha256 is the text"),
            ({"sha256": SHA256 + "0"}, ".sha256 is the text"),
            ({"sha256": 5}, ".sha256 is the number 5, not text"),
            ({"sha256": None}, ".sha256 is empty"),
            ({"bytes": "1"}, '.bytes is the text "1", not a whole number'),
            ({"bytes": 0}, ".bytes is 0, which is too small"),
            ({"layers": 0}, ".layers is 0, which is too small"),
            ({"context": -1}, ".context is -1, which is too small"),
            ({"layer": 1}, ".layer is not known there: did you mean layers?"),
            ({"url": None}, " lacks url or file: write url (where to download it), or file"),
            ({"file": "/m.gguf"}, " has both url and file"),
            ({"url": "models.example/m.gguf"}, '.url is the text "models.example/m.gguf", not a URL: write one that'),
            ({"url": None, "file": "m.gguf"}, '.file is the text "m.gguf", not an absolute path'),
            ({"dllama": "m.dllama.json"}, '.dllama is the text "m.dllama.json", not an absolute path'),
            ({"dllama": {"file": "/m.m"}}, ".dllama is a mapping, not a path"),
        )
    ),
    ("model_store_catalogue", {"m": {"url": ENTRY["url"], "bytes": 1}}, "model_store_catalogue.m lacks sha256: add it"),
    ("model_store_catalogue", {"m": {"url": ENTRY["url"], "sha256": SHA256}}, "model_store_catalogue.m lacks bytes"),
    ("model_store_catalogue", {"m": None}, "model_store_catalogue.m is empty, not a mapping"),
    ("model_store_catalogue", {"../m": ENTRY}, "model_store_catalogue.../m is no name of a file"),
    ("gateway_title", "CHANGE_ME", "gateway_title is still the placeholder CHANGE_ME: write your own value"),
    ("rpc_head_slots", "CHANGE_ME", "rpc_head_slots is still the placeholder CHANGE_ME"),
    ("gateway_clients", ["a", "x-CHANGE_ME"], "gateway_clients[1] is still the placeholder"),
    ("model_store_catalogue", {"a": {"url": "CHANGE_ME"}}, "model_store_catalogue.a.url is still the placeholder"),
    ("gateway_title", Unresolved("'x' is undefined"), "gateway_title cannot be evaluated: 'x' is undefined; correct"),
    (
        "ansible_user",
        "CHANGE_ME",
        "ansible_user is still the placeholder CHANGE_ME: write the user that ssh logs in as",
    ),
    (
        "rpc_head_layers",
        {"pi1": "8", "pi2": 8, "pi3": 8},
        'rpc_head_layers.pi1 is the text "8", not a number of layers',
    ),
    (
        "rpc_head_layers",
        {"pi1": -1, "pi2": 8, "pi3": 8},
        "rpc_head_layers.pi1 is the number -1, not a number of layers",
    ),
    (
        "rpc_head_layers",
        {"pi1": 1.5, "pi2": 8, "pi3": 8},
        "rpc_head_layers.pi1 is the number 1.5, not a number of layers",
    ),
    ("rpc_head_layers", {"pi1": True, "pi2": 8, "pi3": 8}, "rpc_head_layers.pi1 is true, not a number of layers"),
    ("rpc_head_layers", {"pi1": 8, "pi2": 0, "pi3": 8}, "rpc_head_layers.pi2 is the number 0, not a number of layers"),
    ("rpc_head_layers", {"pi1": 8, "pi3": 8}, "rpc_head_layers lacks pi2: give each host of rpc_head and rpc_worker"),
    (
        "rpc_head_layers",
        ALL_LAYERS | {"pj1": 8},
        "rpc_head_layers.pj1 names no host of the inventory: did you mean pi1?",
    ),
    ("rpc_head_layers", ALL_LAYERS | {"other": 8}, "rpc_head_layers.other names no host of the inventory: remove it"),
]


@pytest.mark.parametrize(("name", "value", "line"), VALUES, ids=[f"{name}={value!r}" for name, value, _ in VALUES])
def test_a_wrong_value_gives_one_line(name: str, value: Any, line: str) -> None:
    inventory = Inventory()
    inventory.everywhere(**{name: value})
    found = inventory.problems()
    assert len(found) == 1
    assert found[0].startswith("all hosts: ")
    assert line in found[0]


def _address(host: str, value: Any) -> Callable[[Inventory], None]:
    return lambda inventory: inventory.hosts[host].update(ansible_host=value)


def _group(name: str, *hosts: str) -> Callable[[Inventory], None]:
    return lambda inventory: inventory.groups.update({name: list(hosts)})


def _variable(host: str, **variables: Any) -> Callable[[Inventory], None]:
    return lambda inventory: inventory.hosts[host].update(variables)


def _many_workers(inventory: Inventory) -> None:
    names = [f"w{n}" for n in range(MAX_RPC_WORKERS + 1)]
    inventory.hosts.update(
        {name: {"ansible_host": f"198.51.100.{n}", "ansible_user": "pi"} for n, name in enumerate(names, start=1)}
    )
    inventory.groups["cluster"] += names
    inventory.groups["rpc_worker"] = names


def _layers_for_a_bystander(inventory: Inventory) -> None:
    inventory.groups["rpc_worker"] = ["pi2"]
    inventory.hosts["pi1"]["rpc_head_layers"] = ALL_LAYERS


DLLAMA_ENTRY: dict[str, Any] = {
    "name": "tiny",
    **{f"{kind}_path": f"/models/tiny.{kind[0]}" for kind in ("model", "tokenizer")},
    **{f"{kind}_sha256": SHA256 for kind in ("model", "tokenizer")},
    **{f"{kind}_bytes": 1 for kind in ("model", "tokenizer")},
    "kv_heads": 8,
}


def _dllama(nodes: int, **changes: object) -> Callable[[Inventory], object]:
    """A root and workers, on hosts of their own."""

    def change(inventory: Inventory) -> None:
        names = [f"d{n}" for n in range(nodes)]
        inventory.hosts.update(
            {name: {"ansible_host": f"198.51.100.{n}", "ansible_user": "pi"} for n, name in enumerate(names, start=1)}
        )
        inventory.groups["cluster"] += names
        inventory.groups["dllama_api"], inventory.groups["dllama_worker"] = names[:1], names[1:]
        inventory.hosts["d0"]["dllama_api_model_entry"] = {**DLLAMA_ENTRY, **changes}

    return change


def _and(*changes: Callable[[Inventory], object]) -> Callable[[Inventory], object]:
    return lambda inventory: [change(inventory) for change in changes]


STRUCTURES: list[tuple[str, Callable[[Inventory], object], str]] = [
    *(
        (
            f"{nodes} nodes of distributed-llama",
            _dllama(nodes),
            f"groups dllama_api and dllama_worker: hold {nodes} hosts together, but distributed-llama cuts each layer "
            f"into equal slices, for 1, 2, 4 or 8 nodes: take {more} out of dllama_worker, or add some",
        )
        for nodes, more in ((3, 1), (5, 1), (6, 2), (7, 3), (9, 1), (16, 8))
    ),
    (
        "more nodes than heads",
        _dllama(4, kv_heads=2),
        "d0: dllama_api_model_entry.kv_heads is 2, but dllama_api and dllama_worker hold 4 hosts, each of which needs",
    ),
    (
        "no model for dllama",
        _and(_dllama(2), lambda i: i.hosts["d0"].pop("dllama_api_model_entry")),
        "d0: dllama_api_model_entry is missing: write name, the files .m and .t with their sha256 and bytes",
    ),
    (
        "a relative path",
        _dllama(2, tokenizer_path="tiny.t"),
        'd0: dllama_api_model_entry.tokenizer_path is the text "tiny.t", not an absolute path',
    ),
    (
        "no heads",
        _dllama(2, kv_heads=0),
        "d0: dllama_api_model_entry.kv_heads is 0, which is too small: write 1 or more",
    ),
    ("an empty file", _dllama(2, model_bytes=0), "d0: dllama_api_model_entry.model_bytes is 0, which is too small"),
    (
        "no checksum",
        _dllama(2, model_sha256=SHA256.upper()),
        "d0: dllama_api_model_entry.model_sha256 is the text",
    ),
    ("no file name", _dllama(2, name="a/b"), "d0: dllama_api_model_entry.name is no name of a file: write letters"),
    (
        "two roots",
        _and(
            _dllama(2),
            _group("dllama_api", "d0", "pi2"),
            _variable("pi2", dllama_api_model_entry=DLLAMA_ENTRY),
        ),
        "group dllama_api: holds d0, pi2, but a worker serves one root only: leave one of them here",
    ),
    (
        "dllama workers without a root",
        _and(_dllama(2), _group("dllama_api")),
        "group dllama_worker: d1 without a root: put one host in dllama_api, or empty this one",
    ),
    (
        "a root that is its own worker",
        _and(_dllama(2), _group("dllama_worker", "d0", "d1")),
        "d0: is in dllama_api and in dllama_worker, but a root computes too: remove it from dllama_worker",
    ),
    (
        "two ports of one role",
        _and(_dllama(2), _variable("d0", dllama_api_engine_port=9991)),
        "d0: dllama_api_port and dllama_api_engine_port are all 9991 on one host",
    ),
    ("no address", lambda i: i.hosts["pi2"].pop("ansible_host"), "pi2: ansible_host is missing: write the node's IPv4"),
    ("empty address", _address("pi2", ""), "pi2: ansible_host is missing"),
    (
        "placeholder",
        _address("pi2", "CHANGE_ME"),
        "pi2: ansible_host is still the placeholder CHANGE_ME: write the node's",
    ),
    ("name", _address("pi2", "pi2.local"), 'pi2: ansible_host is the text "pi2.local", not an IPv4 address: llama.cpp'),
    ("IPv6", _address("pi2", "fd00::2"), 'pi2: ansible_host is the text "fd00::2", not an IPv4 address'),
    (
        "leading zero",
        _address("pi2", "192.0.2.012"),
        'pi2: ansible_host is the text "192.0.2.012", not an IPv4 address',
    ),
    ("number", _address("pi2", 19202), "pi2: ansible_host is the number 19202, not an IPv4 address"),
    ("loopback", _address("pi2", "127.0.0.1"), "pi2: ansible_host is 127.0.0.1, which no other node can reach"),
    ("duplicate", _address("pi3", "192.0.2.11"), "pi1, pi3: have the same address 192.0.2.11: give each node its own"),
    (
        "duplicate by override",
        _variable("pi3", cluster_network_address="192.0.2.11"),
        "pi1, pi3: have the same address 192.0.2.11",
    ),
    ("unresolved", _address("pi2", Unresolved("no")), "pi2: ansible_host cannot be evaluated: no"),
    (
        "unknown group",
        _group("rpc_workers", "pi2"),
        "group rpc_workers: is not known, so its hosts would get nothing: did",
    ),
    (
        "stray",
        _group("cluster", "pi1", "pi2"),
        "group rpc_worker: pi3 not in group cluster: add to cluster, or remove here",
    ),
    (
        "two heads",
        _group("rpc_head", "pi1", "pi4"),
        "group rpc_head: holds pi1, pi4, but an RPC worker serves one head only",
    ),
    ("no head", _group("rpc_head"), "group rpc_worker: pi2, pi3 without a head: put one host in rpc_head"),
    ("no workers", _group("rpc_worker"), "group rpc_head: pi1 without workers: put hosts in rpc_worker"),
    (
        "both",
        _group("rpc_worker", "pi1", "pi2"),
        "pi1: is in rpc_head and in rpc_worker, but a head computes layers too",
    ),
    ("no gateway", _group("gateway"), "group gateway: is empty, so nothing could be asked: put one host in it"),
    ("two gateways", _group("gateway", "pi1", "pi2"), "group gateway: holds pi1, pi2, but there is one address to ask"),
    ("too many workers", _many_workers, "group rpc_worker: holds 16 hosts, but llama.cpp takes 15: remove some"),
    (
        "an LLM on a HAT that is not there",
        _group("hailo_ollama", "pi2"),
        "group hailo_ollama: pi2 is not in group hailo, so it would have no driver: add it to hailo",
    ),
    (
        "server and driver of two versions",
        lambda i: (_group("hailo_ollama", "pi1")(i), i.hosts["pi1"].update(hailo_version="5.2.0")),
        "pi1: hailo_version is 5.2.0 and hailo_ollama_version is 5.1.1: they must be equal",
    ),
    ("no user", lambda i: i.hosts["pi2"].pop("ansible_user"), "pi2: ansible_user is missing: write the user that ssh"),
    (
        "group of a role that has none",
        _group("llama_service", "pi2"),
        "group llama_service: is not known, so its hosts would get nothing: did you mean llama_server?",
    ),
    (
        "group like none",
        _group("zzz", "pi2"),
        "group zzz: is not known, so its hosts would get nothing: "
        "the groups are cluster, dllama_api, dllama_worker, gateway, hailo, hailo_ollama, llama_server, ollama, "
        "rpc_head, rpc_worker",
    ),
    (
        "in no group",
        lambda i: i.hosts.update(pi9={"ansible_host": "192.0.2.19"}),
        "pi9: is in no group, so it would get nothing: add it to cluster in hosts.yml, or remove it",
    ),
    (
        "no such model",
        _variable("pi1", rpc_head_model="zzz"),
        'pi1: rpc_head_model is "zzz", which is not in the catalogue: there are large, small; add your own to ',
    ),
    (
        "misspelt model",
        _variable("pi1", rpc_head_model="larg"),
        'pi1: rpc_head_model is "larg", which is not in the catalogue: did you mean large? add your own to model',
    ),
    (
        "no such model on a node of its own",
        lambda i: (_group("llama_server", "pi3")(i), _variable("pi3", llama_server_model="zzz")(i)),
        'pi3: llama_server_model is "zzz", which is not in the catalogue',
    ),
    (
        "model of unknown layers",
        _variable("pi1", rpc_head_model="small"),
        "pi1: model_store_catalogue.small lacks layers",
    ),
    (
        "too many layers",
        _variable("pi1", rpc_head_layers=ALL_LAYERS | {"pi1": 5}),
        "pi1: rpc_head_layers are 21 together, but large has 20 layers: write numbers that sum to 20, or {}",
    ),
    (
        "too few layers for the host's own entry",
        _variable("pi1", rpc_head_layers=ALL_LAYERS, model_store_catalogue={"large": {**ENTRY, "layers": 30}}),
        "pi1: rpc_head_layers are 20 together, but large has 30 layers",
    ),
    (
        "set port",
        _variable("pi1", rpc_head_port=11434),
        "pi1: gateway_port and rpc_head_port are all 11434 on one host: give rpc_head_port another port",
    ),
    ("ssh's port", _variable("pi1", gateway_port=22), "pi1: ssh and gateway_port are all 22 on one host"),
    ("ssh's own port", _variable("pi2", ansible_port=50052), "pi2: ssh and rpc_worker_port are all 50052 on one host"),
    (
        "port of one host only",
        _variable("pi3", rpc_worker_port="50052"),
        'pi3: rpc_worker_port is the text "50052", not a whole number',
    ),
    (
        "layers for a host that has no part",
        _layers_for_a_bystander,
        "pi1: rpc_head_layers.pi3 is for a host in neither rpc_head nor rpc_worker",
    ),
]


@pytest.mark.parametrize(("spoil", "line"), [case[1:] for case in STRUCTURES], ids=[case[0] for case in STRUCTURES])
def test_a_wrong_structure_gives_its_line(spoil: Callable[[Inventory], object], line: str) -> None:
    inventory = Inventory()
    if "pi4" in line:
        inventory.hosts["pi4"] = {"ansible_host": "192.0.2.14", "ansible_user": "pi"}
        inventory.groups["cluster"].append("pi4")
    spoil(inventory)
    found = inventory.problems()
    assert len(found) == 1, found
    assert found[0].startswith(line)


@pytest.mark.parametrize("role", ["rpc_head", "llama_server"])
def test_ports_clash_by_their_defaults(role: str) -> None:
    specs = copy.deepcopy(SPECS)
    specs[role][f"{role}_port"]["default"] = specs["gateway"]["gateway_port"]["default"]
    inventory = Inventory()
    inventory.groups["llama_server"] = ["pi2"]
    found = problems(inventory.hosts, inventory.groups, specs, catalogue=CATALOGUE)
    # The gateway is on pi1: only a service of the same host clashes.
    assert [line.split(":")[0] for line in found] == (["pi1"] if role == "rpc_head" else [])


def test_an_address_of_its_own_allows_a_name_for_ssh() -> None:
    inventory = Inventory()
    inventory.hosts["pi2"].update(ansible_host="pi2.example", cluster_network_address="192.0.2.12")
    assert inventory.problems() == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda i: i.hosts["pi2"].update(ansible_ssh_user=i.hosts["pi2"].pop("ansible_user")),
        lambda i: (i.hosts["pi2"].pop("ansible_user"), i.hosts["pi2"].update(ansible_connection="local")),
        lambda i: i.hosts.update(here={"ansible_host": "192.0.2.19", "ansible_connection": "local"}),
        # Only who serves a model must have it.
        _variable("pi2", rpc_head_model="zzz", llama_server_model="zzz"),
        _variable("pi1", rpc_head_model="mine", model_store_catalogue={"mine": {**ENTRY, "layers": 3}}),
    ],
    ids=["ssh's own user", "local node", "local host of no group", "not served", "model of one's own"],
)
def test_a_right_structure_is_no_problem(spoil: Callable[[Inventory], object]) -> None:
    inventory = Inventory()
    spoil(inventory)
    assert inventory.problems() == []


def test_files_that_nothing_reads_are_lines() -> None:
    inventory = Inventory()
    files = [
        ("host_vars", "pi1", "host_vars/pi1.yml"),
        ("host_vars", "pi9", "host_vars/pi9.yml"),
        ("host_vars", "gateway", "host_vars/gateway.yml"),
        ("group_vars", "all", "group_vars/all/"),
        ("group_vars", "gatewy", "group_vars/gatewy/"),
    ]
    assert unused_files(files, inventory.hosts, inventory.groups) == [
        "host_vars/pi9.yml: there is no host pi9 in the inventory, so nothing would read it: did you mean pi3?",
        "host_vars/gateway.yml: there is no host gateway in the inventory, so nothing would read it: "
        "add the host to hosts.yml, or remove this",
        "group_vars/gatewy/: there is no group gatewy in the inventory, so nothing would read it: "
        "did you mean gateway?",
    ]


def test_all_problems_are_reported_at_once_and_named_by_the_widest_place() -> None:
    inventory = Inventory()
    inventory.everywhere(rpc_head_slots="4")
    for host in ("pi2", "pi3"):
        inventory.hosts[host]["rpc_worker_port"] = True
    inventory.hosts["pi3"]["gateway_open"] = "no"
    inventory.groups["gateway"] = []
    assert [line.split(": ")[0] for line in inventory.problems()] == [
        "all hosts",
        "group rpc_worker",
        "pi3",
        "group gateway",
    ]


def test_a_problem_starts_with_the_file_and_line_that_it_is_in() -> None:
    inventory = Inventory()
    inventory.everywhere(rpc_head_slots="4")
    places = {host: {"rpc_head_slots": "group_vars/all/rpc_head.yml:7"} for host in inventory.hosts}
    (line,) = problems(inventory.hosts, inventory.groups, SPECS, places, catalogue=CATALOGUE)
    assert line.startswith("group_vars/all/rpc_head.yml:7: all hosts: rpc_head_slots is")


def test_text_from_the_command_line_gets_its_reason() -> None:
    inventory = Inventory()
    inventory.everywhere(rpc_head_slots="4")
    places = {host: {"rpc_head_slots": "<CLI option '-e'>"} for host in inventory.hosts}
    (line,) = problems(inventory.hosts, inventory.groups, SPECS, places, catalogue=CATALOGUE)
    assert "-e '{\"name\": value}'" in line


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [name for options in SPECS.values() for name in options]
    + ["ansible_connection", "ansible_host", "ansible_port", "ansible_usr", "ansible_user", "x"]
)


# How long a busy machine takes to draw values says nothing.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(variables=st.dictionaries(names, json), host=st.sampled_from(["pi1", "pi2", "pi3"]))
def test_no_value_ends_in_a_traceback(variables: dict[str, Any], host: str) -> None:
    inventory = Inventory()
    inventory.hosts[host].update(variables)
    for line in inventory.problems():
        assert ": " in line


@patient
@given(value=json)
def test_a_count_is_right_exactly_if_it_is_a_whole_number_from_1(value: Any) -> None:
    inventory = Inventory()
    inventory.hosts["pi1"]["rpc_head_slots"] = value
    assert (inventory.problems() == []) == (type(value) is int and value >= 1)
