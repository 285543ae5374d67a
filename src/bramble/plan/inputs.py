"""From an inventory's variables and records to what the planner works on: cluster, wishes, preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bramble.model.shape import CACHE_BYTES, ModelShape
from bramble.plan.choose import GOALS, KINDS, ORDERS, Preferences, Wish
from bramble.plan.cluster import (
    ASSUMED_BANDWIDTH,
    ASSUMED_PREFILL,
    HEADROOM,
    SYSTEM_BYTES,
    Cluster,
    Link,
    Node,
)
from bramble.plan.place import Need
from bramble.plan.speed import active_share
from bramble.records import Record, figure

MIB = 2**20

VARIABLES = (
    "plan_models",
    "plan_prioritize_by",
    "plan_priority",
    "plan_keep",
    "plan_headroom",
    "plan_memory_bytes",
    "plan_reserved_bytes",
    "model_store_catalogue",
    "measured",
)
"""What is read of each host."""

_PREFERENCES = ("plan_models", "plan_prioritize_by", "plan_priority", "plan_keep")


class InputError(ValueError):
    """The inventory does not say what the planner must know. One line for each problem."""


class NotMeasuredError(InputError):
    """Nothing is wrong, but what must be known of a node was not measured yet."""


# --- The cluster


def cluster(
    hosts: Sequence[str], variables: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, ModelShape]
) -> Cluster:
    """The nodes with what was measured on them, in the order of `hosts`.

    `variables`: host → those of VARIABLES that are set. `shapes`: known models, by which a record's tokens/s become
    bytes/s. The memory of each node must be known; all else is assumed where it was not measured.

    Raises:
        InputError: a variable of a node is wrong.
        NotMeasuredError: a node's memory is not known.
    """
    wrong = [line for host in hosts for line in _host_defects(host, variables.get(host, {}))]
    if wrong:
        raise InputError("\n".join(wrong))
    unknown = []
    nodes = []
    for host in hosts:
        declared = variables.get(host, {})
        records = list(declared.get("measured") or ())
        memory = declared.get("plan_memory_bytes") or MIB * _memory(records, "total")
        if not memory:
            unknown.append(
                f"{host}: its memory is not known: measure it (ansible-playbook playbooks/benchmark.yml), "
                "or set plan_memory_bytes"
            )
            continue
        nodes.append(_node(host, int(memory), declared, records, shapes))
    if unknown:
        raise NotMeasuredError("\n".join(unknown))
    links: dict[tuple[str, str], Link] = {}
    for host in hosts:
        for record in variables.get(host, {}).get("measured") or ():
            if record["kind"] == "net_pair" and record["params"]["peer"] in hosts:
                peer = str(record["params"]["peer"])
                link = _link(record)
                if link is not None:
                    links[min(host, peer), max(host, peer)] = link
    return Cluster(tuple(nodes), links)


def _host_defects(host: str, declared: Mapping[str, Any]) -> Iterable[str]:
    for name, limit in (("plan_memory_bytes", 2**50), ("plan_reserved_bytes", 2**50), ("plan_headroom", 1)):
        value = declared.get(name, 0)
        if not _is_of(value, (int, float)) or not 0 <= value <= limit:
            yield f"{host}: {name} is {_shown(value)}, not a number from 0 to {limit}"


def _node(
    host: str,
    memory: int,
    declared: Mapping[str, Any],
    records: Sequence[Record],
    shapes: Mapping[str, ModelShape],
) -> Node:
    assumed = []
    system = declared.get("plan_reserved_bytes") or MIB * _memory(records, "system")
    if not system:
        assumed.append("reserved")
    bandwidth, prefill = _rates(records, shapes)
    if bandwidth is None:
        assumed.append("bandwidth")
    if prefill is None:
        assumed.append("prefill")
    decodes: dict[str, float] = {}
    prefills: dict[str, float] = {}
    npu: dict[str, float] = {}
    for record in records:
        model = record["model"]
        if model is None:
            continue
        if record["kind"] == "llama_bench" and record["params"]["depth"] == 0:
            for name, kept in (("decode", decodes), ("prefill", prefills)):
                if name in record["result"]:
                    kept[model["name"]] = max(kept.get(model["name"], 0.0), figure(record["result"][name]).mean)
        elif (
            record["kind"] == "http_generate"
            and record["engine"]["name"] == "hailo-ollama"
            and record["params"]["concurrency"] == 1
            and "decode" in record["result"]
        ):
            npu[model["name"]] = figure(record["result"]["decode"]).mean
    return Node(
        name=host,
        memory=memory,
        reserved=int(system or SYSTEM_BYTES),
        headroom=float(declared.get("plan_headroom", HEADROOM)),
        bandwidth=bandwidth or ASSUMED_BANDWIDTH,
        prefill=prefill or ASSUMED_PREFILL,
        assumed=tuple(assumed),
        npu=npu,
        decodes=decodes,
        prefills=prefills,
    )


def _rates(records: Sequence[Record], shapes: Mapping[str, ModelShape]) -> tuple[float | None, float | None]:
    """Bytes/s while decoding, and parameters x tokens/s of a prompt, by the record of the largest model.

    The largest, because a small one is read out of caches. Of its records, the best: other numbers of threads are
    slower."""
    best: tuple[int, float, float | None] | None = None
    for record in records:
        model = record["model"]
        if record["kind"] != "llama_bench" or record["params"]["depth"] != 0 or model is None or not model["bytes"]:
            continue
        if "decode" not in record["result"]:
            continue
        shape = shapes.get(model["name"])
        decode = figure(record["result"]["decode"]).mean
        bandwidth = decode * (shape.active_bytes if shape else model["bytes"])
        prompt = record["result"].get("prefill")
        prefill = None
        if prompt is not None and shape is not None:
            prefill = figure(prompt).mean * sum(shape.layer_parameters) * active_share(shape)
        if bandwidth > 0 and (best is None or (model["bytes"], bandwidth) > (best[0], best[1])):
            best = (model["bytes"], bandwidth, prefill)
    return (best[1], best[2]) if best else (None, None)


def _memory(records: Iterable[Record], name: str) -> float:
    """MiB, of the record of the kind `memory`; 0 if there is none."""
    found = [
        figure(record["result"][name]).mean
        for record in records
        if record["kind"] == "memory" and name in record["result"]
    ]
    return found[-1] if found else 0.0


def _link(record: Record) -> Link | None:
    result = record["result"]
    speeds = [figure(result[name]).mean for name in ("send", "receive") if name in result]
    if "ping_avg" not in result or not speeds or min(speeds) <= 0:
        return None
    return Link(figure(result["ping_avg"]).mean / 1e3, min(speeds) * 1e6 / 8, assumed=False)


# --- What the owner wants

_WISH: Mapping[str, type | tuple[type, ...]] = {
    "model": str,
    "context": int,
    "slots": int,
    "cache_type": str,
    "placement": str,
    "nodes": list,
    "head": str,
    "copies": int,
    "least_decode": (int, float),
    "goal": str,
}


def wishes(
    value: object, hosts: Sequence[str], models: Iterable[str], unusable: Mapping[str, str] | None = None
) -> tuple[Wish, ...]:
    """`plan_models`: a list of {model, …}, or of names.

    `models`: those that can be planned with. `unusable`: those whose entry in the catalogue is not enough → why.

    Raises:
        InputError: what is wrong, a line for each problem.
    """
    if not isinstance(value, list):
        raise InputError(f"plan_models: is {_shown(value)}, not a list such as [{{model: qwen2.5-3b-instruct-q4_k_m}}]")
    known = list(models)
    problems: list[str] = []
    found: list[Wish] = []
    for number, item in enumerate(value):
        entry: Any = {"model": item} if isinstance(item, str) else item
        place = f"plan_models[{number}]"
        wrong = list(_wish_defects(place, entry, hosts, known, unusable or {}))
        problems += wrong
        if not wrong:
            found.append(
                Wish(
                    model=entry["model"],
                    need=Need(entry.get("context", 4096), entry.get("slots", 1), entry.get("cache_type", "f16")),
                    placement=entry.get("placement", "auto"),
                    nodes=tuple(entry.get("nodes", ())),
                    head=entry.get("head", ""),
                    copies=entry.get("copies", 0),
                    least_decode=float(entry.get("least_decode", 0)),
                    goal=entry.get("goal", "throughput"),
                )
            )
    names = [wish.model for wish in found]
    problems += [
        f"plan_models: {name} stands there {names.count(name)} times"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    if problems:
        raise InputError("\n".join(problems))
    return tuple(found)


def _wish_defects(
    place: str, entry: object, hosts: Sequence[str], models: Sequence[str], unusable: Mapping[str, str]
) -> Iterable[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        yield f"{place}: is {_shown(entry)}, not {{model: NAME, …}}"
        return
    fields: dict[str, Any] = entry
    for name, item in fields.items():
        kind = _WISH.get(name)
        if kind is None:
            yield f"{place}: has no field {name}; there are {', '.join(_WISH)}"
        elif not _is_of(item, kind):
            yield f"{place}.{name}: is {_shown(item)}, not of its type"
        elif name in ("context", "slots") and not 1 <= item <= 2**31:
            yield f"{place}.{name}: is {item}, not 1 or more"
        elif name in ("copies", "least_decode") and not 0 <= item < 1e9:
            yield f"{place}.{name}: is {item}, below 0 or beyond all use"
        elif name == "nodes" and not all(isinstance(host, str) for host in item):
            yield f"{place}.nodes: is not a list of names"
    choices = {"placement": ("auto", *KINDS), "goal": GOALS, "cache_type": tuple(CACHE_BYTES)}
    for name, allowed in choices.items():
        if isinstance(entry.get(name), str) and entry[name] not in allowed:
            yield f"{place}.{name}: is {entry[name]}, not one of {', '.join(allowed)}"
    if entry["model"] not in models and entry.get("placement") != "npu":
        why = unusable.get(entry["model"])
        yield (
            f"{place}.model: {entry['model']} cannot be planned with, by its entry in the catalogue: {why}"
            if why
            else f"{place}.model: {entry['model']} is in no catalogue: add it to model_store_catalogue (docs/phase2.md)"
        )
    listed = entry.get("nodes")
    for host in [*(listed if isinstance(listed, list) else ()), *([entry["head"]] if entry.get("head") else ())]:
        if isinstance(host, str) and host not in hosts:
            yield f"{place}: there is no node {host} in the cluster"


def _is_of(value: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def preferences(variables: Mapping[str, Any], hosts: Sequence[str]) -> Preferences:
    """`plan_prioritize_by`, `plan_priority`, `plan_keep`.

    Raises:
        InputError: what is wrong, a line for each problem.
    """
    problems = []
    priority = variables.get("plan_priority", [])
    order = variables.get("plan_prioritize_by", "priority" if priority else "speed")
    keep = variables.get("plan_keep", Preferences().keep)
    if order not in ORDERS:
        problems.append(f"plan_prioritize_by: is {_shown(order)}, not one of {', '.join(ORDERS)}")
    if not isinstance(priority, list) or any(host not in hosts for host in priority):
        problems.append(f"plan_priority: is {_shown(priority)}, not a list of nodes: {', '.join(hosts)}")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 <= keep <= 1:
        problems.append(f"plan_keep: is {_shown(keep)}, not a share between 0 and 1")
    if problems:
        raise InputError("\n".join(problems))
    return Preferences(order, tuple(priority), float(keep))


def owners(hosts: Sequence[str], variables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the owner wants of the cluster as a whole: the same on each host.

    Raises:
        InputError: hosts differ.
    """
    found: dict[str, Any] = {}
    for name in _PREFERENCES:
        values = [(host, variables[host][name]) for host in hosts if name in variables.get(host, {})]
        if not values:
            continue
        different = [host for host, value in values if value != values[0][1]]
        if different or len(values) != len(hosts):
            missing = [host for host in hosts if name not in variables.get(host, {})]
            others = ", ".join(different or missing)
            raise InputError(f"{name}: differs between {values[0][0]} and {others}: set it once, in group_vars/all")
        found[name] = values[0][1]
    return found


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
