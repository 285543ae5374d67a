"""What is wrong with an inventory, found before anything connects to a node.

The authority on variables is each role's `meta/argument_specs.yml`; nothing here repeats a variable's type or choices.
What the specs cannot say, because it spans variables, hosts or groups, is written out below: addresses, ports, and who
may be in which group together.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .nodes import node_address

PLACEHOLDER = "CHANGE_ME"
CLUSTER = "cluster"

GROUPS_WITHOUT_ROLE = frozenset({CLUSTER, "hailo"})
"""Groups that are right although no role has their name: all nodes, and those whose role is still to come."""

BUILT_IN_GROUPS = frozenset({"all", "ungrouped"})

FREE_PREFIX = "vault_"
"""Variables that no role reads: the secrets of an encrypted file, which the plain files refer to."""

MAX_RPC_WORKERS = 15
"""llama.cpp: `llama_max_devices()` is 16, and one of them is the head's own CPU."""

SSH_PORT = 22

Hosts = Mapping[str, Mapping[str, object]]
"""Host name → its variables, from every inventory source, already templated."""
Groups = Mapping[str, Sequence[str]]
"""Group name → host names."""
Options = Mapping[str, Any]
"""The `options` of a role's argument_specs: variable name → `{type, default, choices, elements, options, …}`."""
Specs = Mapping[str, Options]
"""Role name → its options."""
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


def problems(hosts: Hosts, groups: Groups, specs: Specs, places: Places | None = None) -> list[str]:
    """All problems of an inventory, one line each: where, what is wrong, what to change. None: the empty list.

    Pure. `hosts` holds the roles' variables and of Ansible's own `ansible_host`, `ansible_port` and `ansible_user`.
    """
    if not hosts:
        return ["the inventory has no hosts: name the nodes in its hosts.yml, or pass the right directory with -i"]
    known = {name: option for options in specs.values() for name, option in options.items()}
    places = places or {}
    found: dict[_Finding, list[str]] = {}
    for host, variables in hosts.items():
        for name, value in variables.items():
            place = places.get(host, {}).get(name, "")
            for text in _variable(name, value, known, place):
                found.setdefault(_Finding(name, text, place), []).append(host)
        for finding in (*_address(variables, places.get(host, {})), *_ports(host, variables, groups, specs)):
            found.setdefault(finding, []).append(host)
        layers = variables.get("rpc_head_layers")
        if isinstance(layers, Mapping):
            place = places.get(host, {}).get("rpc_head_layers", "")
            for text in _layers(layers, hosts, groups):
                found.setdefault(_Finding("rpc_head_layers", text, place), []).append(host)
    lines = [_line(finding, where, hosts, groups) for finding, where in found.items()]
    return [*lines, *_duplicate_addresses(hosts, places), *_groups(groups, specs), *_topology(groups)]


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


def _variable(name: str, value: object, known: Options, place: str) -> Iterator[str]:
    if isinstance(value, Unresolved):
        yield f"{name} cannot be evaluated: {value.reason}; correct the expression, or write the value itself"
        return
    left = list(_placeholders(name, value))
    if left:
        yield from left
        return
    if name.startswith(("ansible_", FREE_PREFIX)):
        return
    if name not in known:
        close = _closest(name, known)
        advice = (
            f"did you mean {close}?" if close else "remove it, or look the name up in roles/*/meta/argument_specs.yml"
        )
        yield f"{name} is not a variable of any role: {advice}"
        return
    for text in _value(name, value, known[name]):
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
            yield from _value(f"{path}[{index}]", item, item_option)
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


# Addresses and ports.


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
        name = f"{role}_port"
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


def _groups(groups: Groups, specs: Specs) -> Iterator[str]:
    known = GROUPS_WITHOUT_ROLE | specs.keys()
    members = set(groups.get(CLUSTER, ()))
    for group, names in groups.items():
        if group in BUILT_IN_GROUPS or group == CLUSTER:
            continue
        if group not in known:
            close = _closest(group, known)
            advice = f"did you mean {close}?" if close else f"the groups are {_join(sorted(known))}"
            yield f"group {group}: is not known, so its hosts would get nothing: {advice}"
            continue
        outside = [name for name in names if name not in members]
        if outside:
            yield f"group {group}: {_join(outside)} not in group {CLUSTER}: add to {CLUSTER}, or remove here"


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
    if not gateways:
        yield "group gateway: is empty, so nothing could be asked: put one host in it"
    if len(gateways) > 1:
        yield f"group gateway: holds {_join(gateways)}, but there is one address to ask: leave one of them here"


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
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            yield f"{path} is {_describe(count)}, not a number of layers: write 1 or more, whole and without quotes"
    left_out = [host for host in taking_part if host not in layers]
    if layers and left_out:
        yield f"rpc_head_layers lacks {_join(left_out)}: give each host of rpc_head and rpc_worker some, or write {{}}"
