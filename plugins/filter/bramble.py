"""Filters between the inventory and the roles: thin covers over pure functions of `plugins/module_utils/bramble`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
import yaml
from ansible import constants, context
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # The module_utils setting of ansible.cfg reaches modules only, not plugins.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

exam = importlib.import_module("ansible.module_utils.bramble.exam")
inventory_check = importlib.import_module("ansible.module_utils.bramble.inventory_check")
lab = importlib.import_module("ansible.module_utils.bramble.lab")
network = importlib.import_module("ansible.module_utils.bramble.network")
nodes = importlib.import_module("ansible.module_utils.bramble.nodes")
preflight_check = importlib.import_module("ansible.module_utils.bramble.preflight")
token_time = importlib.import_module("ansible.module_utils.bramble.token_time")

ROLES = Path(__file__).resolve().parents[2] / "roles"

CATALOGUE = ROLES / "model_store" / "vars" / "catalogue.yml"

_CONNECTION = frozenset({"ansible_connection", "ansible_host", "ansible_port", "ansible_ssh_user", "ansible_user"})
"""The variables of Ansible itself whose values are checked. Of the others only the names are looked at."""
_MAGIC = frozenset(
    {
        *constants.INTERNAL_STATIC_VARS,
        *("ansible_check_mode", "ansible_local", "environment", "gather_subset", "module_setup", "omit", "vars"),
    }
)


def inventory_problems(
    hostvars: Mapping[str, Any],
    groups: Mapping[str, Any],
    roles_path: str | Sequence[str],
    sources: Sequence[str] = (),
) -> list[str]:
    """All problems of the inventory, one line each: of every host of `groups.all`, whatever the run is limited to.

    `sources`: what -i named. Beside them, or in them, are host_vars/ and group_vars/.
    """
    specs, lines = role_specs([roles_path] if isinstance(roles_path, str) else roles_path)
    hosts: dict[str, dict[str, object]] = {}
    places: dict[str, dict[str, str]] = {}
    for host in groups.get("all", []):
        hosts[str(host)], places[str(host)] = {}, {}
        for name, value, place in _declared(hostvars[host]):
            hosts[str(host)][name] = value
            places[str(host)][name] = place
        if context.CLIARGS.get("remote_user"):  # -u, or remote_user in ansible.cfg: then no variable is needed
            hosts[str(host)].setdefault("ansible_user", context.CLIARGS["remote_user"])
    members = {str(group): [str(host) for host in names] for group, names in groups.items()}
    lines += inventory_check.problems(
        hosts, members, specs, places, catalogue=_catalogue(), connection=_connection_variables()
    )
    return [*lines, *inventory_check.unused_files(_variable_files(sources), hosts, members)]


def _catalogue() -> dict[str, Any]:
    """The models that come with the role model_store."""
    return dict(yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))["__model_store_catalogue"])


@functools.cache
def _connection_variables() -> frozenset[str]:
    """The variables that tell Ansible how to reach a host: those of its core, and of its plugins for ssh and sudo."""
    names = {name for aliases in constants.MAGIC_VARIABLE_MAPPING.values() for name in aliases}
    options = list(constants.config.get_configuration_definitions().values())
    for module, text in (
        ("ansible.plugins.connection.ssh", "DOCUMENTATION"),
        ("ansible.plugins.become.sudo", "DOCUMENTATION"),
        ("ansible.plugins.shell.sh", "DOCUMENTATION"),
    ):
        documented = yaml.safe_load(getattr(importlib.import_module(module), text))
        options += (documented.get("options") or {}).values()
    fragment = importlib.import_module("ansible.plugins.doc_fragments.shell_common").ModuleDocFragment
    options += yaml.safe_load(fragment.DOCUMENTATION)["options"].values()
    names |= {variable["name"] for option in options for variable in option.get("vars") or ()}
    return frozenset(name for name in names if name.startswith("ansible_"))


def _variable_files(sources: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """What lies in the sources' host_vars/ and group_vars/: directory, name of the host or group, path."""
    # A source with a comma is a list of hosts, not a path.
    paths = [Path(source) for source in sources if "," not in source]
    for directory in dict.fromkeys(path if path.is_dir() else path.parent for path in paths):
        for kind in ("host_vars", "group_vars"):
            for path in sorted((directory / kind).glob("[!.]*")):
                # Others Ansible reads for a host of that very name only; they may be notes or copies.
                if path.is_dir():
                    yield kind, path.name, f"{_shown(path)}/"
                elif path.suffix in ("", *constants.YAML_FILENAME_EXTENSIONS):
                    yield kind, path.stem, _shown(path)


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _declared(variables: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """The variables that somebody set: name, plain value or `Unresolved`, `file:line`."""
    for key in variables:
        name = str(key)
        # Two underscores: a role's internals, registered earlier in the run.
        if name in _MAGIC or name.startswith("__"):
            continue
        place = _place(key)
        if name.startswith("ansible_") and name not in _CONNECTION:
            yield name, None, place
            continue
        try:
            raw = variables[key]
            place = _place(raw) or place
            value = _plain(raw)
        except Exception as error:  # whatever the expression raises, it is the inventory's fault and becomes a line
            value = inventory_check.Unresolved(_reason(error))
        yield name, value, place


def _plain(value: Any) -> object:
    """The value without Ansible's tags and lazy containers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def _reason(error: Exception) -> str:
    """The first lines of an error and of its causes, without Ansible's excerpt of the file and its repetitions."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        line = str(getattr(cause, "message", "") or cause).strip().split("\n")[0].rstrip(".")
        # Outer messages often hold the inner ones; the marker says only that there is an inner one.
        if line and "exception marker" not in line and not any(line in reason for reason in reasons):
            reasons.append(line)
        cause = cause.__cause__
    return ": ".join(reasons) or type(error).__name__


def _place(value: object) -> str:
    """`file:line` where a value was written, or nothing: Ansible tags what it reads, but not true, false and null."""
    try:
        # Private to ansible-core, which is pinned; without it a problem names host and variable only.
        from ansible._internal._datatag._tags import Origin
    except ImportError:
        return ""
    origin = Origin.get_tag(value)
    if origin is None:
        return ""
    if not origin.path:
        return origin.description or ""
    shown = _shown(Path(origin.path))
    return f"{shown}:{origin.line_num}" if origin.line_num else shown


def role_specs(roles_path: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Role → options of its `main` entry, from `<path>/<role>/meta/argument_specs.yml`; and problems of those files."""
    specs: dict[str, dict[str, Any]] = {}
    lines = []
    for path in roles_path:
        for file in sorted(Path(path).glob("*/meta/argument_specs.yml")):
            role = file.parents[1].name
            if role in specs:  # as in Ansible, the first path wins
                continue
            try:
                specs[role] = (
                    yaml.safe_load(file.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {}
                )
            except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
                specs[role] = {}
                lines.append(f"{file}: holds no argument_specs.main that can be read: {' '.join(str(error).split())}")
    if not specs:
        lines.append(f"{', '.join(roles_path)}: no roles found: run from a checkout, with its ansible.cfg")
    return specs, lines


def addresses(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """The addresses by which the other nodes reach `hosts`, in their order."""
    found: list[str] = _call(nodes.addresses, list(hosts), hostvars)
    return found


def even_layers(total: int, hosts: Sequence[str]) -> dict[str, int]:
    """`total` layers shared evenly, as host → layers; the first hosts get one more."""
    shares: dict[str, int] = _call(nodes.even_layers, total, [str(host) for host in hosts])
    return shares


def build_host(hosts: Sequence[str], hostvars: Mapping[str, Any], architecture: str) -> str:
    """The one of `hosts` that builds for all of `architecture`. Needs their facts."""
    facts = {str(host): hostvars[host].get("ansible_facts", {}) for host in hosts if host in hostvars}
    name: str = _call(nodes.build_host, [str(host) for host in hosts], facts, architecture)
    return name


def lab_layout(name: str, nodes: int, bystanders: int = 0, subnet: str = "") -> dict[str, Any]:
    """Names and addresses of a lab's nodes."""
    found: dict[str, Any] = _call(lab.layout, str(name), int(nodes), int(bystanders), str(subnet))
    return found


def setting(hostvars: Mapping[str, Any], host: str, variable: str) -> Any:
    """What a host has for a role's variable: the inventory's value, else the role's default, which must be plain.

    For playbooks, which pass to one role where another one serves: hostvars know nothing of a role's defaults.
    """
    if variable in hostvars[host]:
        return hostvars[host][variable]
    for role in sorted((path.name for path in ROLES.iterdir()), key=len, reverse=True):
        if variable.startswith(f"{role}_"):
            defaults = yaml.safe_load((ROLES / role / "defaults" / "main.yml").read_text())
            value = defaults.get(variable)
            if variable not in defaults or (isinstance(value, str) and "{{" in value):
                raise AnsibleFilterError(f"{variable}: role {role} has no plain default for it; set it for {host}")
            return value
    raise AnsibleFilterError(f"{variable}: no role has such a variable")


def same_setting(hosts: Sequence[str], hostvars: Mapping[str, Any], host: str, variable: str) -> list[str]:
    """The ones of `hosts` that have the same value of a role's variable as `host`, in their order."""
    wanted = setting(hostvars, host, variable)
    return [str(other) for other in hosts if setting(hostvars, other, variable) == wanted]


def endpoints(hosts: Sequence[str], role: str, hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where each host serves with a role: [{"host", "address", "port"}]."""
    return [
        {"host": str(host), "address": address, "port": setting(hostvars, host, f"{role}_port")}
        for host, address in zip(hosts, addresses(hosts, hostvars), strict=True)
    ]


def hosts_and_addresses(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, str]]:
    """The hosts as roles want them: [{"name", "address"}]."""
    return [
        {"name": str(host), "address": address} for host, address in zip(hosts, addresses(hosts, hostvars), strict=True)
    ]


def catalogue_entry(hostvars: Mapping[str, Any], host: str, model: str) -> dict[str, Any]:
    """What a host's catalogue says of a model, with its "name" and the "path" that its file has on the host."""
    catalogue = _catalogue() | setting(hostvars, host, "model_store_catalogue")
    if model not in catalogue:
        raise AnsibleFilterError(
            f"{model!r} is not in the catalogue of {host} (there are: {', '.join(sorted(catalogue))}); "
            "add it to model_store_catalogue"
        )
    path = f"{setting(hostvars, host, 'model_store_path')}/{model}.gguf"
    return {**catalogue[model], "name": model, "path": path}


def dllama_model(file: str) -> dict[str, Any]:
    """What dllama_api_model_entry is of files that `bramble model convert` wrote: from the .dllama.json beside them."""
    module = package("bramble.model.dllama_entry")
    try:
        found: dict[str, Any] = module.read_entry(Path(file))
    except module.EntryError as error:
        raise AnsibleFilterError(f"dllama_model: {error}") from error
    return found


def backends(hosts: Sequence[str], role: str, hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a gateway routes to: each host that serves a model with a role (src/bramble/gateway/config.py)."""
    return [
        {
            "name": f"{endpoint['host']}-{role.replace('_', '-')}",
            "kind": "dllama_api" if role == "dllama_api" else "llama_server",
            "url": f"http://{endpoint['address']}:{endpoint['port']}",
            # distributed-llama answers one request at a time.
            "slots": 1 if role == "dllama_api" else setting(hostvars, endpoint["host"], f"{role}_slots"),
            "models": [
                {
                    **_model_of(hostvars, endpoint["host"], role),
                    "context": setting(hostvars, endpoint["host"], f"{role}_context"),
                }
            ],
        }
        for endpoint in endpoints(hosts, role, hostvars)
    ]


def _model_of(hostvars: Mapping[str, Any], host: str, role: str) -> dict[str, Any]:
    """What a gateway is told of the model that a host serves with a role."""
    if role == "dllama_api":
        entry = setting(hostvars, host, "dllama_api_model_entry")
        # No checksum: its file is not the one that llama.cpp has of the same model.
        return {"name": entry["name"], "bytes": entry["model_bytes"], "capabilities": ["completion"]}
    entry = catalogue_entry(hostvars, host, setting(hostvars, host, f"{role}_model"))
    facts = {key: entry[key] for key in ("name", "bytes", "sha256", "family", "quantization") if key in entry}
    count = entry.get("parameters")
    if count:
        facts["parameters"] = f"{count / 1e6:.0f}M" if count < 1e9 else f"{count / 1e9:.1f}B"
    return facts


def served(hostvars: Mapping[str, Any], host: str, groups: Sequence[str]) -> list[dict[str, Any]]:
    """The models that a host serves by an Ollama interface of its own: [{"url", "api", "model", "about"}].

    "about" is what a benchmark record of it says: {"engine": {"name", "version"}, "model": {"name"}}.
    """
    found = []
    for role, engine in (("hailo_ollama", "hailo-ollama"), ("ollama", "ollama")):
        if role in groups:
            [endpoint] = endpoints([host], role, hostvars)
            version = setting(hostvars, host, f"{role}_version")
            found += [
                {
                    "url": f"http://{endpoint['address']}:{endpoint['port']}",
                    "api": "ollama",
                    "model": model,
                    "about": {"engine": {"name": engine, "version": version}, "model": {"name": model}},
                }
                for model in setting(hostvars, host, f"{role}_models")
            ]
    return found


def has_record(measured: Any, *about: Any) -> bool:
    """Whether a host's `measured` holds a record of this kind, engine, model and params (bramble.records)."""
    found: bool = package("bramble.records").has_record(measured, *about)
    return found


def without_record(
    values: Sequence[Any], measured: Any, kind: str, engine: Any, model: Any, params: Mapping[str, Any], varying: str
) -> list[Any]:
    """Those of `values` for the parameter `varying` of which `measured` holds no record."""
    return [v for v in values if not has_record(measured, kind, engine, model, {**params, varying: v})]


def split_strategies(
    hostvars: Mapping[str, Any], wishes: Sequence[Any], head: str, workers: Sequence[str], tensor: Sequence[str]
) -> dict[str, Any]:
    """The ways to split the head's model that are measured: {"strategies": […], "skipped": {name: why}}.

    `wishes`: names and own splits; none for all that there are. `tensor`: the nodes of distributed-llama, its root
    first. Without a head there is only that.
    """
    module, inputs = package("bramble.plan.strategies"), package("bramble.plan.inputs")
    if not head:
        found = [module.Strategy("tensor", "tensor", tuple(map(str, tensor)), {})] if tensor else []
        wanted = [one for one in found if not wishes or one.name in wishes]
        return {"strategies": [one.as_dict() for one in wanted], "skipped": {}}
    hosts = [str(head), *map(str, workers)]

    def own(name: str) -> Any:
        return _plain(setting(hostvars, head, f"rpc_head_{name}"))

    entry = _plain(catalogue_entry(hostvars, head, own("model")))
    shapes, unusable = package("bramble.cli.plan").known_shapes({**_catalogue(), entry["name"]: entry})
    variables = {
        host: {name: _plain(hostvars[host][name]) for name in inputs.VARIABLES if name in hostvars[host]}
        for host in hosts
    }
    cluster, unknown = None, ""
    try:
        cluster = inputs.cluster(hosts, variables, shapes)
    except inputs.InputError as error:
        unknown = "; ".join(str(error).splitlines())
    shape = shapes.get(entry["name"])
    if shape is None:
        unknown = f"the catalogue's entry of {entry['name']}: {unusable[entry['name']]}"
    ground = module.Ground(
        total=entry["layers"],
        head=hosts[0],
        workers=tuple(hosts[1:]),
        planned=own("layers") or nodes.even_layers(entry["layers"], hosts),
        need=package("bramble.plan.place").Need(own("context"), own("slots"), own("cache_type")),
        logits=own("logits"),
        shape=shape,
        cluster=cluster,
        unknown=unknown,
        tensor=tuple(map(str, tensor)),
    )
    try:
        strategies, skipped = module.strategies(_plain(list(wishes)), ground)
    except module.StrategyError as error:
        raise AnsibleFilterError(f"split_bench_strategies: {error}") from error
    return {"strategies": [one.as_dict() for one in strategies], "skipped": skipped}


def token_time_of_llama(about: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of bramble.token_time.llama_record by name → {"record", "raw"}."""
    return _recorded(token_time.llama_record, about)


def token_time_of_dllama(about: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of bramble.token_time.dllama_record by name → {"record", "raw"}."""
    return _recorded(token_time.dllama_record, about)


def _recorded(function: Callable[..., Any], about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record, raw = function(**{str(name): _plain(value) for name, value in about.items()})
    except token_time.TokenTimeError as error:
        raise AnsibleFilterError(str(error)) from error
    return {"record": record, "raw": raw}


def qdisc(link: str) -> list[str]:
    """A link such as 100 Mbit/s, as tc takes it."""
    try:
        found: list[str] = token_time.qdisc(str(link))
    except token_time.TokenTimeError as error:
        raise AnsibleFilterError(str(error)) from error
    return found


def exam_name(items: Sequence[Mapping[str, Any]], name: str = "bramble") -> str:
    """What the records of an exam of these items call it (module quality_exam, option exam)."""
    try:
        found: str = exam.exam_name(name, exam.read_items(items))
    except exam.ExamError as error:
        raise AnsibleFilterError(f"exam_name: {error}") from error
    return found


def package(name: str) -> Any:
    """A module of the command's own package, which an Ansible outside of the project's environment does not have."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise AnsibleFilterError(
            f"{error}: this Ansible is not the project's own. Run make in the checkout, then .venv/bin/ansible-playbook"
        ) from error


def preflight_node(facts: Mapping[str, Any], distributed: bool, hailo: bool) -> dict[str, Any]:
    """What the preflight judges of a node: its facts, and what it is to do."""
    found: dict[str, Any] = preflight_check.preflight_node(facts, distributed=distributed, hailo=hailo)
    return found


def preflight(found: Mapping[str, Mapping[str, Any]], requirements: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is wrong with the nodes, as lines: {"errors", "warnings", "notes"}."""
    lines: dict[str, list[str]] = _call(preflight_check.preflight, found, requirements)
    return lines


def add_layers(workers: Sequence[Mapping[str, Any]], layers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The workers, each with the number of layers that it holds."""
    return [{**worker, "layers": layers[worker["host"]]} for worker in workers]


def in_networks(address: str, networks: Sequence[str]) -> bool:
    """Whether the address is one of these addresses or in one of these networks."""
    found: bool = _call(network.in_networks, address, list(networks))
    return found


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        raise AnsibleFilterError(f"{function.__name__}: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "add_layers": add_layers,
            "addresses": addresses,
            "backends": backends,
            "build_host": build_host,
            "catalogue_entry": catalogue_entry,
            "dllama_model": dllama_model,
            "endpoints": endpoints,
            "even_layers": even_layers,
            "exam_name": exam_name,
            "has_record": has_record,
            "hosts_and_addresses": hosts_and_addresses,
            "in_networks": in_networks,
            "inventory_problems": inventory_problems,
            "lab_layout": lab_layout,
            "preflight": preflight,
            "preflight_node": preflight_node,
            "qdisc": qdisc,
            "same_setting": same_setting,
            "served": served,
            "setting": setting,
            "split_strategies": split_strategies,
            "token_time_of_dllama": token_time_of_dllama,
            "token_time_of_llama": token_time_of_llama,
            "without_record": without_record,
        }
