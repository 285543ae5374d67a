"""Filters between the inventory and the roles: thin covers over `bramble.inventory_check` and `bramble.nodes`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
import yaml
from ansible import constants
from ansible.errors import AnsibleFilterError

_MODULE_UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if _MODULE_UTILS not in ansible.module_utils.__path__:
    # The module_utils setting of ansible.cfg reaches modules only, not plugins.
    ansible.module_utils.__path__.append(_MODULE_UTILS)

inventory_check = importlib.import_module("ansible.module_utils.bramble.inventory_check")
nodes = importlib.import_module("ansible.module_utils.bramble.nodes")

_CONNECTION = frozenset({"ansible_host", "ansible_port", "ansible_user"})
"""The variables of Ansible itself that are checked."""
_MAGIC = frozenset({*constants.INTERNAL_STATIC_VARS, "environment", "gather_subset", "module_setup", "omit", "vars"})


def inventory_problems(
    hostvars: Mapping[str, Any], groups: Mapping[str, Any], roles_path: str | Sequence[str]
) -> list[str]:
    """All problems of the inventory, one line each: of every host of `groups.all`, whatever the run is limited to."""
    specs, lines = role_specs([roles_path] if isinstance(roles_path, str) else roles_path)
    hosts: dict[str, dict[str, object]] = {}
    places: dict[str, dict[str, str]] = {}
    for host in groups.get("all", []):
        hosts[str(host)], places[str(host)] = {}, {}
        for name, value, place in _declared(hostvars[host]):
            hosts[str(host)][name] = value
            places[str(host)][name] = place
    members = {str(group): [str(host) for host in names] for group, names in groups.items()}
    return [*lines, *inventory_check.problems(hosts, members, specs, places)]


def _declared(variables: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """The variables that somebody set: name, plain value or `Unresolved`, `file:line`."""
    for key in variables:
        name = str(key)
        # Two underscores: a role's internals, registered earlier in the run.
        if name in _MAGIC or name.startswith("__") or (name.startswith("ansible_") and name not in _CONNECTION):
            continue
        place = _place(key)
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
    path = Path(origin.path)
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown}:{origin.line_num}" if origin.line_num else str(shown)


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


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except ValueError as error:
        raise AnsibleFilterError(f"{function.__name__}: {error}") from error


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "addresses": addresses,
            "build_host": build_host,
            "even_layers": even_layers,
            "inventory_problems": inventory_problems,
        }
