"""The filters as templates call them, and the pure functions below them."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble.gateway.config import parse_config

ROOT = Path(__file__).resolve().parents[2]


def _load() -> dict[str, Callable[..., Any]]:
    # By its path: its name is that of the package in src/.
    spec = importlib.util.spec_from_file_location("bramble_filters", ROOT / "plugins/filter/bramble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filters: dict[str, Callable[..., Any]] = module.FilterModule().filters()
    return filters


FILTERS = _load()


def test_addresses_are_in_order_and_the_clusters_own_comes_first() -> None:
    hostvars = {
        "pi1": {"ansible_host": "192.0.2.11"},
        "pi2": {"ansible_host": "pi2.example", "cluster_network_address": "192.0.2.12"},
        "pi3": {"ansible_host": "192.0.2.13", "cluster_network_address": ""},
    }
    assert FILTERS["addresses"](["pi3", "pi2", "pi1"], hostvars) == ["192.0.2.13", "192.0.2.12", "192.0.2.11"]
    assert FILTERS["addresses"]([], hostvars) == []


@pytest.mark.parametrize(
    ("hostvars", "message"), [({}, "pi1 is not a host of the inventory"), ({"pi1": {}}, "pi1 has no address")]
)
def test_a_host_without_an_address_is_an_error(hostvars: dict[str, Any], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"addresses: {message}"):
        FILTERS["addresses"](["pi1"], hostvars)


@pytest.mark.parametrize(
    ("total", "hosts", "shares"),
    [
        (28, ["pi1", "pi2", "pi3"], {"pi1": 10, "pi2": 9, "pi3": 9}),
        (29, ["pi1", "pi2", "pi3"], {"pi1": 10, "pi2": 10, "pi3": 9}),
        (27, ["pi3", "pi1", "pi2"], {"pi3": 9, "pi1": 9, "pi2": 9}),
        (2, ["pi1", "pi2", "pi3"], {"pi1": 1, "pi2": 1, "pi3": 0}),
        (0, ["pi1"], {"pi1": 0}),
    ],
)
def test_even_layers(total: int, hosts: list[str], shares: dict[str, int]) -> None:
    assert FILTERS["even_layers"](total, hosts) == shares


@settings(deadline=None)
@given(total=st.integers(0, 1000), count=st.integers(1, 16))
def test_even_layers_are_all_there_and_differ_by_one_at_most(total: int, count: int) -> None:
    hosts = [f"pi{n}" for n in range(count)]
    shares = FILTERS["even_layers"](total, hosts)
    assert list(shares) == hosts
    assert sum(shares.values()) == total
    assert max(shares.values()) - min(shares.values()) <= 1
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.parametrize(
    ("total", "hosts", "message"),
    [
        (-1, ["pi1"], "a whole number from 0, not -1"),
        ("28", ["pi1"], "a whole number from 0, not '28'"),
        (True, ["pi1"], "a whole number from 0, not True"),
        (28, [], "no hosts to share layers among"),
        (28, ["pi1", "pi1"], "a host is named twice in pi1, pi1"),
    ],
)
def test_layers_that_cannot_be_shared_are_an_error(total: Any, hosts: list[str], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=f"even_layers: .*{message}"):
        FILTERS["even_layers"](total, hosts)


def _facts(release: str, memory: int, architecture: str = "aarch64") -> dict[str, Any]:
    facts = {"architecture": architecture, "distribution_major_version": release, "memtotal_mb": memory}
    return {"ansible_facts": facts}


BUILDS: list[tuple[str, dict[str, dict[str, Any]], str]] = [
    ("oldest release", {"pi1": _facts("13", 16000), "pi2": _facts("12", 4000)}, "pi2"),
    ("as a number", {"pi1": _facts("10", 4000), "pi2": _facts("9", 4000)}, "pi2"),
    ("then memory", {"pi1": _facts("12", 4000), "pi2": _facts("12", 8000)}, "pi2"),
    ("then order", {"pi1": _facts("12", 8000), "pi2": _facts("12", 8000)}, "pi1"),
    ("of the architecture", {"pc": _facts("11", 64000, "x86_64"), "pi2": _facts("13", 4000)}, "pi2"),
    ("testing is newest", {"pi1": _facts("testing/sid", 16000), "pi2": _facts("13", 4000)}, "pi2"),
    ("without facts", {"pi1": {"ansible_facts": {}}, "pi2": _facts("13", 4000)}, "pi2"),
    ("without any", {"pi1": {}, "pi2": _facts("13", 4000)}, "pi2"),
]


@pytest.mark.parametrize(("hostvars", "builder"), [case[1:] for case in BUILDS], ids=[case[0] for case in BUILDS])
def test_build_host(hostvars: dict[str, Any], builder: str) -> None:
    assert FILTERS["build_host"](list(hostvars), hostvars, "aarch64") == builder


def test_no_host_of_the_architecture_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(AnsibleFilterError, match=r"no host to build for armv7l \(pi1: aarch64, pi2: no facts\)"):
        FILTERS["build_host"](["pi1", "pi2"], {"pi1": _facts("13", 8000), "pi2": {}}, "armv7l")


class Templated(Mapping[str, Any]):
    """As hostvars are: a value is templated when it is read, which may fail."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if isinstance(value, Exception):
            raise value
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


GROUPS = {"all": ["pi1"], "cluster": ["pi1"], "gateway": ["pi1"]}


@pytest.fixture
def roles(tmp_path: Path) -> Path:
    meta = tmp_path / "gateway/meta"
    meta.mkdir(parents=True)
    specs = "argument_specs: {main: {options: {gateway_port: {type: int, default: 11434}}}}"
    (meta / "argument_specs.yml").write_text(specs)
    return tmp_path


def test_magic_variables_and_roles_internals_are_no_problems(roles: Path) -> None:
    variables = Templated(
        ansible_host="192.0.2.11",
        ansible_user="pi",
        ansible_check_mode=False,
        ansible_become_method=RuntimeError("is not even read"),
        ansible_facts={"x": 1},
        inventory_hostname="pi1",
        group_names=["cluster"],
        __gateway_key="registered",
        gateway_port=11434,
    )
    assert FILTERS["inventory_problems"]({"pi1": variables}, GROUPS, [str(roles)]) == []
    assert FILTERS["inventory_problems"]({"pi1": variables}, GROUPS, str(roles)) == []


def test_a_value_that_cannot_be_templated_is_a_line(roles: Path) -> None:
    variables = Templated(
        ansible_host="192.0.2.11", ansible_user="pi", gateway_port=ValueError("'x' is undefined\nand more.")
    )
    (line,) = FILTERS["inventory_problems"]({"pi1": variables}, GROUPS, [str(roles)])
    assert line.startswith("pi1: gateway_port cannot be evaluated: 'x' is undefined; ")


def test_the_causes_of_an_error_are_told_once(roles: Path) -> None:
    outer, inner = ValueError("lookup failed: no such file"), OSError("no such file")
    outer.__cause__, inner.__cause__ = inner, OSError("disk on fire")
    marker = RuntimeError("A captured exception marker was tripped.")
    marker.__cause__ = outer
    variables = Templated(ansible_host="192.0.2.11", ansible_user="pi", gateway_port=marker)
    (line,) = FILTERS["inventory_problems"]({"pi1": variables}, GROUPS, [str(roles)])
    assert "cannot be evaluated: lookup failed: no such file: disk on fire; correct" in line


@pytest.mark.parametrize("text", ["argument_specs: {", "argument_specs:", "- 1", "argument_specs: {other: {}}"])
def test_specs_that_cannot_be_read_are_a_line(roles: Path, text: str) -> None:
    file = roles / "broken/meta/argument_specs.yml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    hostvars = {"pi1": {"ansible_host": "192.0.2.11", "ansible_user": "pi"}}
    (line,) = FILTERS["inventory_problems"](hostvars, GROUPS, [str(roles)])
    assert line.startswith(f"{file}: holds no argument_specs.main that can be read: ")


def test_a_path_without_roles_is_a_line(tmp_path: Path) -> None:
    lines = FILTERS["inventory_problems"]({"pi1": NODE}, GROUPS, [str(tmp_path)])
    assert lines[0] == f"{tmp_path}: no roles found: run from a checkout, with its ansible.cfg"


NODE = {"ansible_host": "192.0.2.11", "ansible_user": "pi"}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ansible_usr", "ansible_user"),
        ("ansible_ssh_private_key_fil", "ansible_ssh_private_key_file"),
        ("ansible_becom_password", "ansible_become_password"),
        ("ansible_python_interpeter", "ansible_python_interpreter"),
        ("ansible_remote_tpm", "ansible_remote_tmp"),
    ],
)
def test_a_misspelt_variable_of_ansible_is_a_line(roles: Path, wrong: str, right: str) -> None:
    assert FILTERS["inventory_problems"]({"pi1": {**NODE, right: "x"}}, GROUPS, str(roles)) == []
    (line,) = FILTERS["inventory_problems"]({"pi1": {**NODE, wrong: "x"}}, GROUPS, str(roles))
    assert line == f"pi1: {wrong} is not a variable that Ansible knows: did you mean {right}?"


def test_files_for_hosts_and_groups_that_are_not_there_are_lines(roles: Path, tmp_path: Path) -> None:
    sources = tmp_path / "inventory"
    wrong = ["group_vars/gatewy.yml", "host_vars/qq9", "host_vars/qq9.yml"]
    right = ["hosts.yml", "group_vars/all/x.yml", "group_vars/gateway.yaml", "host_vars/pi1.yml", "host_vars/.kept"]
    for name in (*wrong, *right, "host_vars/notes.md", "host_vars/zz9.yml.orig"):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).touch()
    (sources / "group_vars/zzz").mkdir()
    for source in (sources, sources / "hosts.yml"):
        lines = FILTERS["inventory_problems"]({"pi1": NODE}, GROUPS, str(roles), [str(source), "a,b"])
        named = sorted(line.split(": ")[0].removeprefix(f"{sources}/") for line in lines)
        assert named == sorted([*wrong, "group_vars/zzz/"])


def test_a_catalogue_entry_is_the_hosts_own_or_the_roles() -> None:
    own = {"mine": {"layers": 3}}
    hostvars = {"pi1": {"model_store_catalogue": own, "model_store_path": "/m"}, "pi2": {}}
    assert FILTERS["catalogue_entry"](hostvars, "pi1", "mine") == {"layers": 3, "name": "mine", "path": "/m/mine.gguf"}
    assert FILTERS["catalogue_entry"](hostvars, "pi1", "qwen2.5-3b-instruct-q4_k_m")["layers"] == 36
    with pytest.raises(
        AnsibleFilterError, match=r"'mine' is not in the catalogue of pi2 .*add it to model_store_catalogue"
    ):
        FILTERS["catalogue_entry"](hostvars, "pi2", "mine")


def test_the_backends_of_a_gateway_are_what_its_configuration_takes() -> None:
    known = {"sha256": "0" * 64, "bytes": 5, "family": "llama", "parameters": 1_300_000_000, "quantization": "Q4_0"}
    hostvars = {
        "pi1": {
            "ansible_host": "192.0.2.11",
            "model_store_catalogue": {"mine": known},
            "rpc_head_model": "mine",
            "rpc_head_slots": 2,
            "dllama_api_model_entry": {"name": "mine", "model_bytes": 7, "model_sha256": "1" * 64},
            "dllama_api_context": 512,
        }
    }
    found = [backend for role in ("rpc_head", "dllama_api") for backend in FILTERS["backends"](["pi1"], role, hostvars)]
    split, sliced = parse_config(json.dumps({"backends": found})).backends
    assert (split.name, split.kind, split.url, split.slots) == (
        "pi1-rpc-head",
        "llama_server",
        "http://192.0.2.11:8080",
        2,
    )
    assert (split.models[0].parameters, split.models[0].context) == ("1.3B", 4096)
    assert (sliced.name, sliced.kind, sliced.url, sliced.slots) == (
        *("pi1-dllama-api", "dllama_api", "http://192.0.2.11:9991", 1),
    )
    assert (sliced.models[0].name, sliced.models[0].context, sliced.models[0].capabilities) == (
        "mine",
        512,
        ("completion",),
    )


def test_the_name_of_an_exam_is_that_in_its_records_and_follows_the_questions() -> None:
    exam = importlib.import_module("ansible.module_utils.bramble.exam")
    items = json.loads((ROOT / "roles/benchmark/files/exam.json").read_text())
    assert FILTERS["exam_name"](items) == exam.exam_name("bramble", exam.read_items(items))
    other = [{**items[0], "prompt": f"{items[0]['prompt']} Please."}, *items[1:]]
    assert FILTERS["exam_name"](other) != FILTERS["exam_name"](items)
    with pytest.raises(AnsibleFilterError, match=r"exam_name: items: .*prompt"):
        FILTERS["exam_name"]([{**items[0], "prompt": 7}])


DLLAMA = {
    "name": "my-model",
    "model": {"file": "my-model.m", "bytes": 7, "sha256": "ab" * 32},
    "tokenizer": {"file": "my-model.t", "bytes": 5, "sha256": "cd" * 32},
    "weights": "q40",
    "kv_heads": 8,
    "context": 4096,
}


def test_a_converted_models_entry_has_what_the_role_takes(tmp_path: Path) -> None:
    (tmp_path / "my-model.dllama.json").write_text(json.dumps(DLLAMA))
    entry = FILTERS["dllama_model"](str(tmp_path / "my-model.dllama.json"))
    assert entry == {
        "name": "my-model",
        "model_path": f"{tmp_path}/my-model.m",
        "model_bytes": 7,
        "model_sha256": "ab" * 32,
        "tokenizer_path": f"{tmp_path}/my-model.t",
        "tokenizer_bytes": 5,
        "tokenizer_sha256": "cd" * 32,
        "kv_heads": 8,
        "context": 4096,
    }
    specs = yaml.safe_load((ROOT / "roles/dllama_api/meta/argument_specs.yml").read_text())
    assert entry.keys() == specs["argument_specs"]["main"]["options"]["dllama_api_model_entry"]["options"].keys()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {}, "tokenizer": {}}', json.dumps({**DLLAMA, "model": "m"})]
)
def test_what_is_no_converted_models_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(AnsibleFilterError, match=r"x\.json is not what bramble model convert writes"):
        FILTERS["dllama_model"](str(tmp_path / "x.json"))
    with pytest.raises(AnsibleFilterError, match=r"none\.json: No such file or directory"):
        FILTERS["dllama_model"](str(tmp_path / "none.json"))


def _memory(total: float) -> dict[str, Any]:
    result = {name: {"value": value, "unit": "MiB"} for name, value in (("total", total), ("system", 600.0))}
    return {"kind": "memory", "model": None, "params": {}, "engine": {"name": "linux"}, "result": result}


def test_strategies_are_of_the_heads_model_and_what_was_measured() -> None:
    hostvars: dict[str, dict[str, Any]] = {
        "pi1": {"rpc_head_layers": {"pi1": 2, "pi2": 20, "pi3": 14}, "measured": [_memory(16000)]},
        "pi2": {"measured": [_memory(8000)]},
        "pi3": {"measured": [_memory(4000)]},
    }
    found = FILTERS["split_strategies"](hostvars, [], "pi1", ["pi2", "pi3"], [])
    layers = {one["name"]: one["layers"] for one in found["strategies"]}
    assert layers["even"] == {"pi1": 12, "pi2": 12, "pi3": 12}
    assert layers["by memory"] == {"pi1": 21, "pi2": 10, "pi3": 5}
    assert layers["planned"] == {"pi1": 2, "pi2": 20, "pi3": 14}
    assert layers["one node"] == {"pi1": 36}
    assert set(found["skipped"]) == {"by bandwidth", "tensor"}
    del hostvars["pi2"]["measured"]
    unknown = FILTERS["split_strategies"](hostvars, ["by memory"], "pi1", ["pi2", "pi3"], [])
    assert unknown["strategies"] == []
    assert "pi2: its memory is not known" in unknown["skipped"]["by memory"]
    with pytest.raises(AnsibleFilterError, match="split_bench_strategies: there is no strategy 'evn'"):
        FILTERS["split_strategies"](hostvars, ["evn"], "pi1", ["pi2", "pi3"], [])


def test_without_a_head_there_is_only_the_other_engine() -> None:
    found = FILTERS["split_strategies"]({}, [], "", [], ["pi1", "pi2"])
    assert [(one["name"], one["nodes"]) for one in found["strategies"]] == [("tensor", ["pi1", "pi2"])]
    assert FILTERS["split_strategies"]({}, ["even"], "", [], ["pi1", "pi2"])["strategies"] == []
    assert FILTERS["split_strategies"]({}, [], "", [], [])["strategies"] == []


def test_a_link_that_cannot_be_is_an_error() -> None:
    assert FILTERS["qdisc"]("100 Mbit/s")[0] == "tbf"
    with pytest.raises(AnsibleFilterError, match="the link '100' is not known"):
        FILTERS["qdisc"]("100")


def test_counters_that_make_no_record_are_an_error() -> None:
    about = {
        "strategy": {"nodes": ["pi1"], "name": "one node", "placement": "replica", "layers": {}, "logits": "head"},
        "link": "",
        "counted": {"pi1": [{"failed": True}] * 3},
        "short": {},
        "long": {},
        "peers": {},
        "about": {},
    }
    with pytest.raises(AnsibleFilterError, match="the counters of pi1 were not read"):
        FILTERS["token_time_of_llama"](about)
    dllama = {"strategy": about["strategy"], "link": "", "runs": ["nothing"], "seen": {}, "about": {}}
    with pytest.raises(AnsibleFilterError, match="dllama printed no tokens"):
        FILTERS["token_time_of_dllama"](dllama)
