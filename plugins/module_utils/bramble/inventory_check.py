"""What is wrong with an inventory, found before anything connects to a node.

The authority on variables is each role's `meta/argument_specs.yml`; nothing here repeats a variable's type or choices.
What the specs cannot say, because it spans variables, hosts or groups, is written out below: addresses, ports, lower
bounds, entries of the catalogue of models, and who may be in which group together.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .nodes import node_address

PLACEHOLDER = "CHANGE_ME"
CLUSTER = "cluster"

GROUPS = (
    CLUSTER,
    *("dllama_api", "dllama_worker", "gateway", "hailo", "hailo_ollama"),
    *("llama_server", "ollama", "rpc_head", "rpc_worker"),
)
"""The groups that playbooks read. Other roles are applied to these, and have no group of their own."""

BUILT_IN_GROUPS = frozenset({"all", "ungrouped"})

FREE_PREFIX = "vault_"
"""Variables that no role reads: the secrets of an encrypted file, which the plain files refer to."""

FROM_PLUGINS = frozenset({"measured", "planned"})
"""Variables that nobody declares: the inventory plugin of the same name gives each host its records."""

PLAYBOOK_OPTIONS: Mapping[str, Any] = {
    "enroll_fingerprints": {"type": "list", "elements": "str"},
    "enroll_public_key": {"type": "path"},
    "plan_verify_host": {"type": "str"},
    "plan_verify_model": {"type": "str"},
    "plan_verify_output": {"type": "path"},
    "plan_verify_tokens": {"type": "int"},
    "plan_verify_url": {"type": "str"},
}
"""Variables of playbooks, not of roles: playbooks/enroll.yml, playbooks/plan_verify.yml."""

PLANNED_GROUPS = ("dllama_api", "dllama_worker", "llama_server", "rpc_head", "rpc_worker")
"""The groups that a plan puts hosts in."""

MAX_RPC_WORKERS = 15
"""llama.cpp: `llama_max_devices()` is 16, and one of them is the head's own CPU."""

DLLAMA_NODES = (1, 2, 4, 8)
"""distributed-llama gives each node an equal slice of each layer, in blocks of 32 (src/nn/nn-core.cpp, 8d624a7)."""

SSH_PORT = 22

Hosts = Mapping[str, Mapping[str, object]]
"""Host name → its variables, from every inventory source, already templated."""
Groups = Mapping[str, Sequence[str]]
"""Group name → host names."""
Options = Mapping[str, Any]
"""The `options` of a role's argument_specs: variable name → `{type, default, choices, elements, options, …}`."""
Specs = Mapping[str, Options]
"""Role name → its options."""
Catalogue = Mapping[str, Any]
"""Model → its entry: `{url or file, sha256, bytes, …}`, as in roles/model_store/vars/catalogue.yml."""
Places = Mapping[str, Mapping[str, str]]
"""Host name → variable → `file:line` where it is set, as far as known."""


@dataclass(frozen=True)
class Unresolved:
    """Stands for a value that could not be templated."""

    reason: str


@dataclass(frozen=True)
class _Finding:
    """A problem of one variable of one host; equal ones of several hosts become one line."""

    variable: str
    text: str
    place: str = ""


def problems(
    hosts: Hosts,
    groups: Groups,
    specs: Specs,
    places: Places | None = None,
    *,
    catalogue: Catalogue | None = None,
    connection: Collection[str] = (),
) -> list[str]:
    """All problems of an inventory, one line each: where, what is wrong, what to change. None: the empty list.

    Pure. `hosts` holds the roles' variables and Ansible's own that somebody set: of `ansible_host`, `ansible_port`,
    `ansible_user` and `ansible_connection` the value, of others the name only. `catalogue` is the role's own, to which
    a host's `model_store_catalogue` adds; `connection` are the names of variables that Ansible itself knows.
    """
    if not hosts:
        return ["the inventory has no hosts: name the nodes in its hosts.yml, or pass the right directory with -i"]
    known = {**PLAYBOOK_OPTIONS} | {name: option for options in specs.values() for name, option in options.items()}
    places = places or {}
    found: dict[_Finding, list[str]] = {}
    for host, variables in hosts.items():
        for name, value in variables.items():
            place = places.get(host, {}).get(name, "")
            for text in _variable(name, value, known, connection, place):
                found.setdefault(_Finding(name, text, place), []).append(host)
        for finding in (
            *_login(host, variables, groups, places.get(host, {})),
            *_address(variables, places.get(host, {})),
            *_ports(host, variables, groups, specs),
            *_models(host, variables, groups, specs, catalogue or {}, places.get(host, {})),
            *_dllama_model(host, variables, groups, places.get(host, {})),
        ):
            found.setdefault(finding, []).append(host)
        layers = variables.get("rpc_head_layers")
        if isinstance(layers, Mapping):
            place = places.get(host, {}).get("rpc_head_layers", "")
            for text in _layers(layers, hosts, groups):
                found.setdefault(_Finding("rpc_head_layers", text, place), []).append(host)
    lines = [_line(finding, where, hosts, groups) for finding, where in found.items()]
    return [
        *lines,
        *_duplicate_addresses(hosts, places),
        *_groups(groups),
        *_hosts_without_group(hosts, groups),
        *_topology(groups),
        *_hailo_versions(hosts, groups, specs),
        *_planned(hosts, groups),
    ]


def unused_files(files: Iterable[tuple[str, str, str]], hosts: Hosts, groups: Groups) -> list[str]:
    """One line for each file that Ansible skips in silence, since there is no such host or group.

    `files`: `(directory, name, path)`, such as `("host_vars", "pi9", "inventory/pi/host_vars/pi9.yml")`.
    """
    lines = []
    for directory, name, path in files:
        kind, names = ("host", hosts.keys()) if directory == "host_vars" else ("group", groups.keys() | BUILT_IN_GROUPS)
        if name not in names:
            close = _closest(name, names)
            advice = f"did you mean {close}?" if close else f"add the {kind} to hosts.yml, or remove this"
            lines.append(f"{path}: there is no {kind} {name} in the inventory, so nothing would read it: {advice}")
    return lines


def _line(finding: _Finding, where: Sequence[str], hosts: Hosts, groups: Groups) -> str:
    place = f"{finding.place}: " if finding.place else ""
    return f"{place}{_where(where, hosts, groups)}: {finding.text}"


def _where(affected: Sequence[str], hosts: Hosts, groups: Groups) -> str:
    """Names a set of hosts as shortly as it can: `all hosts`, one group, or their names."""
    if len(affected) > 1:
        if len(affected) == len(hosts):
            return "all hosts"
        for group, members in groups.items():
            if group not in BUILT_IN_GROUPS and set(members) == set(affected):
                return f"group {group}"
    return _join(affected)


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _closest(name: str, candidates: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.6)), None)


# One variable: its name, its value against its option.


def _variable(name: str, value: object, known: Options, connection: Collection[str], place: str) -> Iterator[str]:
    if isinstance(value, Unresolved):
        yield f"{name} cannot be evaluated: {value.reason}; correct the expression, or write the value itself"
        return
    left = list(_placeholders(name, value))
    if left:
        yield from left
        return
    if name.startswith("ansible_"):
        # Other names may belong to a plugin that is not known here: only what looks misspelt is told.
        close = next(iter(difflib.get_close_matches(name, sorted(connection), n=1, cutoff=0.85)), None)
        if close and name not in connection:
            yield f"{name} is not a variable that Ansible knows: did you mean {close}?"
        return
    if name.startswith(FREE_PREFIX) or name in FROM_PLUGINS:
        return
    if name not in known:
        close = _closest(name, known)
        advice = (
            f"did you mean {close}?" if close else "remove it, or look the name up in roles/*/meta/argument_specs.yml"
        )
        yield f"{name} is not a variable of any role: {advice}"
        return
    texts = list(_value(name, value, known[name]))
    if not texts and name == "model_store_catalogue" and isinstance(value, Mapping):
        texts = list(_catalogue(name, value))
    for text in texts:
        on_command_line = place.startswith("<CLI") and isinstance(value, str)
        yield text + (
            " (-e name=value is always text; -e '{\"name\": value}' keeps the type)" if on_command_line else ""
        )


def _placeholders(path: str, value: object) -> Iterator[str]:
    if isinstance(value, str) and PLACEHOLDER in value:
        what = {"ansible_host": "the node's IPv4 address", "ansible_user": "the user that ssh logs in as"}
        yield f"{path} is still the placeholder {PLACEHOLDER}: write {what.get(path, 'your own value')}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _placeholders(f"{path}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _placeholders(f"{path}[{index}]", item)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Type:
    noun: str
    accepts: Callable[[object], bool]
    advice: str


# The types of argument_specs, without Ansible's coercion: a role gets the inventory's value as it is.
_TYPES: Mapping[str, _Type] = {
    "str": _Type("text", lambda value: isinstance(value, str), "put it in quotes"),
    "path": _Type("a path", lambda value: isinstance(value, str), 'write a path in quotes, such as "/srv/models"'),
    "int": _Type("a whole number", _is_int, "write digits without quotes"),
    "float": _Type(
        "a number", lambda value: _is_int(value) or isinstance(value, float), "write a number without quotes"
    ),
    "bool": _Type("true or false", lambda value: isinstance(value, bool), "write true or false without quotes"),
    "list": _Type("a list", lambda value: isinstance(value, list), "write each item on a line of its own after a dash"),
    "dict": _Type(
        "a mapping", lambda value: isinstance(value, Mapping), "write indented lines of the form name: value"
    ),
}


# By convention the last word of a variable's name says what it counts or lists.
_AT_LEAST_ONE = re.compile(r"([_.](context|layers|slots|threads|timeout)|[.](bytes|parameters))$")
_SOURCES = re.compile(r"[_.](clients|sources)$")


def _describe(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the text "{value}"'
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _value(path: str, value: object, option: Mapping[str, Any]) -> Iterator[str]:
    """Problems of one value against its option, nested ones included; `path` names it, such as `models[0].sha256`."""
    if value is None:
        # As in Ansible: empty counts as not set where nothing is the default.
        if option.get("required") or option.get("default") is not None:
            yield f"{path} is empty: write a value, or remove the line to get the default"
        return
    kind = _TYPES.get(option.get("type", "str"))
    if kind is None:  # raw and the types of size or JSON: whatever the role makes of it
        return
    if not kind.accepts(value):
        yield f"{path} is {_describe(value)}, not {kind.noun}: {kind.advice}"
        return
    if isinstance(value, list):
        item_option = {**option, "type": option.get("elements", "raw"), "required": True}
        for index, item in enumerate(value):
            texts = list(_value(f"{path}[{index}]", item, item_option))
            if not texts and _SOURCES.search(path) and isinstance(item, str) and not _is_source(item):
                texts = [
                    f"{path}[{index}] is {_describe(item)}, not an IPv4 address or network: "
                    "write one, such as 192.168.1.5 or 192.168.1.0/24"
                ]
            yield from texts
        return
    choices = option.get("choices")
    if choices and value not in choices:
        allowed = _join(str(choice) for choice in choices)
        close = _closest(str(value), map(str, choices))
        yield f"{path} is {_describe(value)}, which is not one of {allowed}: " + (
            f"did you mean {close}?" if close else "choose one of these"
        )
    if path.endswith("_port") and isinstance(value, int) and not 1 <= value <= 65535:
        yield f"{path} is {value}, which is no TCP port: choose one from 1 to 65535"
    if _AT_LEAST_ONE.search(path) and isinstance(value, int | float) and value < 1:
        yield f"{path} is {value}, which is too small: write 1 or more"
    if isinstance(value, Mapping) and option.get("options"):
        yield from _mapping(path, value, option["options"])


def _mapping(path: str, value: Mapping[str, object], options: Options) -> Iterator[str]:
    for key, item in value.items():
        if key in options:
            yield from _value(f"{path}.{key}", item, options[key])
        else:
            close = _closest(str(key), options)
            advice = f"did you mean {close}?" if close else f"it takes {_join(options)}"
            yield f"{path}.{key} is not known there: {advice}"
    for key, option in options.items():
        if option.get("required") and key not in value:
            yield f"{path} lacks {key}: add it"


# Models: the entries of a catalogue, and what a node serves.

_ENTRY: Options = {
    "url": {"type": "str"},
    "file": {"type": "str"},
    "sha256": {"type": "str", "required": True},
    "bytes": {"type": "int", "required": True},
    "family": {"type": "str"},
    "layers": {"type": "int"},
    "context": {"type": "int"},
    "parameters": {"type": "int"},
    "quantization": {"type": "str"},
    "embedding": {"type": "int"},
    "feed_forward": {"type": "int"},
    "heads": {"type": "int"},
    "kv_heads": {"type": "int"},
    "key_length": {"type": "int"},
    "value_length": {"type": "int"},
    "vocabulary": {"type": "int"},
    "tied": {"type": "bool"},
    "experts": {"type": "int"},
    "experts_used": {"type": "int"},
    "dllama": {"type": "path"},
}
# The same forms as in roles/model_store/tasks/validate.yml.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_URL = re.compile(r"(https?|file)://.+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def _catalogue(path: str, catalogue: Catalogue) -> Iterator[str]:
    for model, entry in catalogue.items():
        where = f"{path}.{model}"
        if not _MODEL_NAME.fullmatch(model):
            yield f"{where} is no name of a file: write letters, digits, dots, dashes and underscores only"
        if not isinstance(entry, Mapping):
            yield f"{where} is {_describe(entry)}, not a mapping: write url or file, sha256 and bytes below it"
            continue
        wrong = list(_mapping(where, entry, _ENTRY))
        yield from wrong
        if wrong:
            continue
        url, file = entry.get("url"), entry.get("file")
        if (url is None) == (file is None):
            has = "lacks url or file" if url is None else "has both url and file"
            yield f"{where} {has}: write url (where to download it), or file (its path on the controller)"
        if url is not None and not _URL.fullmatch(url):
            yield f"{where}.url is {_describe(url)}, not a URL: write one that starts with https://, http:// or file://"
        if file is not None and not file.startswith("/"):
            yield f"{where}.file is {_describe(file)}, not an absolute path: write the path from / on the controller"
        dllama = entry.get("dllama")
        if dllama is not None and not dllama.startswith("/"):
            yield f"{where}.dllama is {_describe(dllama)}, not an absolute path: write it from / on the controller"
        if not _SHA256.fullmatch(entry["sha256"]):
            text = _describe(entry["sha256"])
            yield f"{where}.sha256 is {text}, not 64 hex digits in lower case: write what sha256sum prints for the file"


def _models(
    host: str,
    variables: Mapping[str, object],
    groups: Groups,
    specs: Specs,
    catalogue: Catalogue,
    places: Mapping[str, str],
) -> Iterator[_Finding]:
    """What a node serves must be in its catalogue, and a split model's layers must all be on some node.

    By convention a role that serves a model takes its name from `<role>_model`.
    """
    own = variables.get("model_store_catalogue", {})
    if not isinstance(own, Mapping):
        return  # said already
    models = {**catalogue, **own}
    for role in ("rpc_head", "llama_server"):
        name = f"{role}_model"
        model = variables.get(name, specs.get(role, {}).get(name, {}).get("default"))
        if host not in groups.get(role, ()) or not isinstance(model, str) or PLACEHOLDER in model:
            continue
        if model not in models:
            close = _closest(model, models)
            offer = f"did you mean {close}?" if close else f"there are {_join(sorted(models)) or 'none'};"
            text = f'{name} is "{model}", which is not in the catalogue: {offer} add your own to model_store_catalogue'
            yield _Finding(name, text, places.get(name, ""))
        elif role == "rpc_head":
            yield from _all_layers(model, models[model], variables.get("rpc_head_layers"), groups, places)


def _all_layers(
    model: str, entry: object, layers: object, groups: Groups, places: Mapping[str, str]
) -> Iterator[_Finding]:
    if not isinstance(entry, Mapping):
        return  # said already
    total = entry.get("layers")
    if total is None:
        text = (
            f"model_store_catalogue.{model} lacks layers, which tell how to split it: add the number that the model has"
        )
        yield _Finding("model_store_catalogue", text, places.get("model_store_catalogue", ""))
        return
    taking_part = {*groups.get("rpc_head", ()), *groups.get("rpc_worker", ())}
    if not isinstance(layers, Mapping) or not layers or set(layers) != taking_part or not _is_int(total):
        return  # as even as it goes, or said already
    counts = [count for count in layers.values() if isinstance(count, int) and _is_int(count) and count >= 1]
    if len(counts) == len(layers) and sum(counts) != total:
        text = (
            f"rpc_head_layers are {sum(counts)} together, but {model} has {total} layers: "
            f"write numbers that sum to {total}, or {{}} for an even split"
        )
        yield _Finding("rpc_head_layers", text, places.get("rpc_head_layers", ""))


def _dllama_model(
    host: str, variables: Mapping[str, object], groups: Groups, places: Mapping[str, str]
) -> Iterator[_Finding]:
    """The root's model has its files named, and as many heads for keys and values as there are nodes."""
    name = "dllama_api_model_entry"
    entry = variables.get(name, {})
    if host not in groups.get("dllama_api", ()) or not isinstance(entry, Mapping):
        return  # said already
    place = places.get(name, "")
    if not entry:
        text = f"{name} is missing: write name, the files .m and .t with their sha256 and bytes, and kv_heads"
        yield _Finding(name, text, place)
        return
    model = entry.get("name")
    if isinstance(model, str) and PLACEHOLDER not in model and not _MODEL_NAME.fullmatch(model):
        text = f"{name}.name is no name of a file: write letters, digits, dots, dashes and underscores only"
        yield _Finding(name, text, place)
    for kind in ("model", "tokenizer"):
        path, size, checksum = (entry.get(f"{kind}_{what}") for what in ("path", "bytes", "sha256"))
        if isinstance(path, str) and PLACEHOLDER not in path and not path.startswith("/"):
            text = f"{name}.{kind}_path is {_describe(path)}, not an absolute path: write it from / on the controller"
            yield _Finding(name, text, place)
        if isinstance(size, int) and _is_int(size) and size < 1:
            yield _Finding(name, f"{name}.{kind}_bytes is {size}, which is too small: write 1 or more", place)
        if isinstance(checksum, str) and PLACEHOLDER not in checksum and not _SHA256.fullmatch(checksum):
            text = f"{name}.{kind}_sha256 is {_describe(checksum)}, not 64 hex digits in lower case: "
            text += "write what sha256sum prints for the file"
            yield _Finding(name, text, place)
    nodes = len({*groups.get("dllama_api", ()), *groups.get("dllama_worker", ())})
    heads = entry.get("kv_heads")
    if not isinstance(heads, int) or not _is_int(heads):
        return  # said already
    if heads < 1:
        yield _Finding(name, f"{name}.kv_heads is {heads}, which is too small: write 1 or more", place)
    elif nodes in DLLAMA_NODES and heads < nodes:
        text = (
            f"{name}.kv_heads is {heads}, but dllama_api and dllama_worker hold {nodes} hosts, each of which needs at "
            "least one: take hosts out of dllama_worker, or another model"
        )
        yield _Finding(name, text, place)


# Logging in, addresses and ports.


def _login(host: str, variables: Mapping[str, object], groups: Groups, places: Mapping[str, str]) -> Iterator[_Finding]:
    if host not in groups.get(CLUSTER, ()) or variables.get("ansible_connection") == "local":
        return
    name = "ansible_ssh_user" if "ansible_ssh_user" in variables else "ansible_user"
    if name not in variables or variables[name] in (None, ""):
        text = "ansible_user is missing: write the user that ssh logs in as, made when the SD card was written"
        yield _Finding("ansible_user", text, places.get(name, ""))
    elif not isinstance(variables[name], str | Unresolved):
        text = f"{name} is {_describe(variables[name])}, not the name of a user: put it in quotes"
        yield _Finding(name, text, places.get(name, ""))


def _is_source(text: str) -> bool:
    """Whether a firewall rule can take it: an IPv4 address, or a network with the length of its prefix."""
    _, slash, prefix = text.partition("/")
    try:
        ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        return False
    return not slash or (prefix.isascii() and prefix.isdigit())


def _address(variables: Mapping[str, object], places: Mapping[str, str]) -> Iterator[_Finding]:
    name, value = node_address(variables)
    place = places.get(name, "")
    if isinstance(value, Unresolved) or (isinstance(value, str) and PLACEHOLDER in value):
        return  # said already
    if value is None or value == "":
        yield _Finding(name, "ansible_host is missing: write the node's IPv4 address", place)
    elif _ipv4(value) is None:
        why = "llama.cpp's RPC resolves no names; write the node's IPv4 address, such as 192.168.1.11"
        if name == "ansible_host":
            why += ", here or as cluster_network_address"
        yield _Finding(name, f"{name} is {_describe(value)}, not an IPv4 address: {why}", place)
    elif not _is_a_nodes(_ipv4(value)):
        yield _Finding(name, f"{name} is {value}, which no other node can reach: write the node's own address", place)


def _ipv4(value: object) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _is_a_nodes(address: ipaddress.IPv4Address | None) -> bool:
    return address is not None and not (address.is_loopback or address.is_multicast or address.is_unspecified)


def _duplicate_addresses(hosts: Hosts, places: Places) -> Iterator[str]:
    owners: dict[ipaddress.IPv4Address, list[tuple[str, str]]] = {}
    for host, variables in hosts.items():
        name, value = node_address(variables)
        address = _ipv4(value)
        if address is not None:
            owners.setdefault(address, []).append((host, places.get(host, {}).get(name, "")))
    for address, sharing in owners.items():
        if len(sharing) > 1:
            who = _join(f"{host} ({place})" if place else host for host, place in sharing)
            yield f"{who}: have the same address {address}: give each node its own"


def _ports(host: str, variables: Mapping[str, object], groups: Groups, specs: Specs) -> Iterator[_Finding]:
    """Two services of one host on one port. By convention a role that serves something listens on `<role>_port`."""
    ssh_port = variables.get("ansible_port", SSH_PORT)
    listeners: dict[object, list[str]] = {ssh_port: ["ssh"]} if _is_int(ssh_port) else {}
    for role, options in specs.items():
        for name in (f"{role}_port", f"{role}_engine_port"):
            if host in groups.get(role, ()) and name in options:
                port = variables.get(name, options[name].get("default"))
                if _is_int(port):
                    listeners.setdefault(port, []).append(name)
    for port, names in listeners.items():
        if len(names) > 1:
            yield _Finding(
                names[-1], f"{' and '.join(names)} are all {port} on one host: give {names[-1]} another port"
            )


# Groups: who may be where together.


def _groups(groups: Groups) -> Iterator[str]:
    members = set(groups.get(CLUSTER, ()))
    for group, names in groups.items():
        if group in BUILT_IN_GROUPS or group == CLUSTER:
            continue
        if group not in GROUPS:
            close = _closest(group, GROUPS)
            advice = f"did you mean {close}?" if close else f"the groups are {_join(GROUPS)}"
            yield f"group {group}: is not known, so its hosts would get nothing: {advice}"
            continue
        outside = [name for name in names if name not in members]
        if outside:
            yield f"group {group}: {_join(outside)} not in group {CLUSTER}: add to {CLUSTER}, or remove here"


def _hosts_without_group(hosts: Hosts, groups: Groups) -> Iterator[str]:
    grouped = {name for group, names in groups.items() if group not in BUILT_IN_GROUPS for name in names}
    for host, variables in hosts.items():
        if host not in grouped and variables.get("ansible_connection") != "local":
            yield f"{host}: is in no group, so it would get nothing: add it to {CLUSTER} in hosts.yml, or remove it"


def _topology(groups: Groups) -> Iterator[str]:
    heads, workers = list(groups.get("rpc_head", ())), list(groups.get("rpc_worker", ()))
    gateways = list(groups.get("gateway", ()))
    if len(heads) > 1:
        yield f"group rpc_head: holds {_join(heads)}, but an RPC worker serves one head only: leave one of them here"
    if workers and not heads:
        yield f"group rpc_worker: {_join(workers)} without a head: put one host in rpc_head, or empty rpc_worker"
    if heads and not workers:
        yield f"group rpc_head: {_join(heads)} without workers: put hosts in rpc_worker, or move to llama_server"
    for host in heads:
        if host in workers:
            yield f"{host}: is in rpc_head and in rpc_worker, but a head computes layers too: remove it from rpc_worker"
    if len(workers) > MAX_RPC_WORKERS:
        yield f"group rpc_worker: holds {len(workers)} hosts, but llama.cpp takes {MAX_RPC_WORKERS}: remove some"
    yield from _dllama(groups)
    for host in groups.get("hailo_ollama", ()):
        if host not in groups.get("hailo", ()):
            yield f"group hailo_ollama: {host} is not in group hailo, so it would have no driver: add it to hailo"
    if not gateways:
        yield "group gateway: is empty, so nothing could be asked: put one host in it"
    if len(gateways) > 1:
        yield f"group gateway: holds {_join(gateways)}, but there is one address to ask: leave one of them here"


def _planned(hosts: Hosts, groups: Groups) -> Iterator[str]:
    """Where there is a plan, it alone says who runs which model (plugins/inventory/planned.py)."""
    for group in PLANNED_GROUPS:
        declared = [
            host
            for host in groups.get(group, ())
            if hosts.get(host, {}).get("plan_models") and group not in _names(hosts[host].get("planned"))
        ]
        if declared:
            yield (
                f"group {group}: holds {_join(declared)} by hosts.yml, but plan_models is set, and the plan says who "
                "runs which model: empty this group, or pin the model's nodes in plan_models, or remove plan_models"
            )


def _names(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _dllama(groups: Groups) -> Iterator[str]:
    roots, workers = list(groups.get("dllama_api", ())), list(groups.get("dllama_worker", ()))
    if len(roots) > 1:
        yield f"group dllama_api: holds {_join(roots)}, but a worker serves one root only: leave one of them here"
    if workers and not roots:
        yield f"group dllama_worker: {_join(workers)} without a root: put one host in dllama_api, or empty this one"
    both = [host for host in roots if host in workers]
    for host in both:
        yield f"{host}: is in dllama_api and in dllama_worker, but a root computes too: remove it from dllama_worker"
    nodes = len(roots) + len(workers)
    if len(roots) == 1 and not both and nodes not in DLLAMA_NODES:
        allowed = ", ".join(map(str, DLLAMA_NODES[:-1])) + f" or {DLLAMA_NODES[-1]}"
        fewer = max(count for count in DLLAMA_NODES if count < nodes)
        yield (
            f"groups dllama_api and dllama_worker: hold {nodes} hosts together, but distributed-llama cuts each layer "
            f"into equal slices, for {allowed} nodes: take {nodes - fewer} out of dllama_worker, or add some"
        )


def _hailo_versions(hosts: Hosts, groups: Groups, specs: Specs) -> Iterator[str]:
    """hailo-ollama is linked to one version of the driver's library, to the last digit (HailoRT checks it)."""
    for host in groups.get("hailo_ollama", ()):
        driver, server = (
            hosts.get(host, {}).get(f"{role}_version", specs.get(role, {}).get(f"{role}_version", {}).get("default"))
            for role in ("hailo", "hailo_ollama")
        )
        if driver != server:
            yield f"{host}: hailo_version is {driver} and hailo_ollama_version is {server}: they must be equal"


def _layers(layers: Mapping[str, object], hosts: Hosts, groups: Groups) -> Iterator[str]:
    taking_part = [*groups.get("rpc_head", ()), *groups.get("rpc_worker", ())]
    for host, count in layers.items():
        path = f"rpc_head_layers.{host}"
        if host not in hosts:
            close = _closest(str(host), hosts)
            yield f"{path} names no host of the inventory: " + (f"did you mean {close}?" if close else "remove it")
        elif host not in taking_part:
            yield f"{path} is for a host in neither rpc_head nor rpc_worker: add it to rpc_worker, or remove it here"
        if isinstance(count, str) and PLACEHOLDER in count:
            continue  # said already
        least = 0 if host in groups.get("rpc_head", ()) else 1
        if not isinstance(count, int) or isinstance(count, bool) or count < least:
            yield (
                f"{path} is {_describe(count)}, not a number of layers: write {least} or more, whole and without quotes"
            )
    left_out = [host for host in taking_part if host not in layers]
    if layers and left_out:
        yield f"rpc_head_layers lacks {_join(left_out)}: give each host of rpc_head and rpc_worker some, or write {{}}"
