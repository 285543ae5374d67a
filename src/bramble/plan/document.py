"""`plan.json`: the plan as a file, the same bytes for the same plan, and what the roles and the next plan read of
it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bramble.model.dllama_entry import EntryError, read_entry
from bramble.plan.choose import Chosen, Plan
from bramble.plan.cluster import Cluster
from bramble.plan.place import Placement
from bramble.plan.speed import SPREAD

SCHEMA = 1

NAME = "plan.json"

ENGINES = {"replica": "llama.cpp", "rpc": "llama.cpp", "tensor": "distributed-llama", "npu": "hailo-ollama"}


class PlanError(ValueError):
    """A plan's file cannot be used. The message says where it is, what is wrong, and what to do."""


def as_document(plan: Plan, files: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The plan as JSON has it. Figures have four digits: more would only look exact.

    `files`: model → what `bramble model convert` says of distributed-llama's files of it.
    """
    models = [_model(chosen) for chosen in plan.chosen]
    for model in models:
        if model["placement"] == "tensor":
            model["files"] = (files or {}).get(model["model"])
    return {
        "schema": SCHEMA,
        "models": models,
        "unplaced": [
            {
                "model": one.wish.model,
                "context": one.wish.need.context,
                "why": {refusal.kind: refusal.reason for refusal in one.refusals},
                "would_fit": list(one.would_fit),
            }
            for one in plan.unplaced
        ],
        "assumed": assumed(plan.cluster),
    }


def write(document: Mapping[str, Any]) -> str:
    """The bytes of the file."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> dict[str, Any] | None:
    """The document in a file; None: there is no such file.

    Raises:
        PlanError: it is no plan of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read: {error}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: is no JSON ({error}); remove it and plan again") from error
    found = list(defects(document))
    if found:
        raise PlanError(f"{path}: {'; '.join(found[:3])}; remove it and plan again")
    assert isinstance(document, dict)
    return document


def previous(document: Mapping[str, Any] | None) -> dict[str, list[Placement]]:
    """The placements of a document, as far as `choose` wants to know them: kind, head, layers."""
    found: dict[str, list[Placement]] = {}
    for model in (document or {}).get("models", ()):
        if model["placement"] in ("rpc", "tensor"):
            layers: dict[str, range] = {}
            start = 0
            for name, count in model["layers"].items():
                if model["placement"] == "tensor":
                    layers[name] = range(count)
                else:
                    layers[name] = range(start, start + count)
                    start += count
            found[model["model"]] = [Placement(model["placement"], model["head"], layers, {}, {}, math.inf, None)]
    return found


def assumed(cluster: Cluster) -> list[str]:
    """What was not measured, in words."""
    lines = []
    for field, word in (
        ("memory", "memory"),
        ("reserved", "memory that the system takes"),
        ("bandwidth", "decode rate"),
        ("prefill", "prompt rate"),
    ):
        names = [node.name for node in cluster.nodes if field in node.assumed]
        if names:
            lines.append(f"{word} of {', '.join(names)}: assumed, not measured")
    pairs = [
        f"{one.name}-{other.name}"
        for place, one in enumerate(cluster.nodes)
        for other in cluster.nodes[place + 1 :]
        if cluster.link(one.name, other.name).assumed
    ]
    if pairs and not any(not link.assumed for link in cluster.links.values()):
        lines.append("network: assumed, not measured")
    elif pairs:
        shown = ", ".join(pairs[:6]) + (f" and {len(pairs) - 6} more" if len(pairs) > 6 else "")
        lines.append(f"network {shown}: assumed, not measured")
    return lines


def _model(chosen: Chosen) -> dict[str, Any]:
    first = chosen.placements[0]
    memory = {name: amount for placement in chosen.placements for name, amount in placement.memory.items()}
    layers = {name: len(held) for placement in chosen.placements for name, held in placement.layers.items()}
    return {
        "model": chosen.wish.model,
        "placement": first.kind,
        "engine": ENGINES[first.kind],
        "nodes": [name for placement in chosen.placements for name in placement.nodes],
        "head": first.head,
        "layers": layers,
        "context": chosen.wish.need.context,
        "slots": chosen.wish.need.slots,
        "cache_type": chosen.wish.need.cache_type,
        "memory": {name: {"needed": amount, "usable": chosen.usable[name]} for name, amount in memory.items()},
        "decode": {placement.head: _rate(placement.decode, placement.measured) for placement in chosen.placements},
        "prefill": {
            placement.head: _rate(placement.prefill, placement.measured)
            for placement in chosen.placements
            if placement.prefill is not None
        },
        "token_ms": {name: _rounded(1000 * seconds) for name, seconds in first.parts.items()},
        "why": chosen.why,
        "runners_up": [
            {
                "placement": loser.kind,
                "nodes": list(loser.nodes),
                "decode": None if loser.decode is None else _rounded(loser.decode),
                "why": loser.why,
            }
            for loser in chosen.losers
        ],
    }


def _rate(rate: float, measured: bool) -> dict[str, Any]:
    spread = 0 if measured else SPREAD
    return {
        "value": _rounded(rate),
        "low": _rounded(rate * (1 - spread)),
        "high": _rounded(rate * (1 + spread)),
        "unit": "tok/s",
        "measured": measured,
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


# --- Validation: what roles are given must be what the planner writes

_FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "model": str,
    "placement": str,
    "head": str,
    "nodes": list,
    "layers": dict,
    "context": int,
    "slots": int,
    "cache_type": str,
    "memory": dict,
}


def defects(document: object) -> Iterator[str]:
    """What is wrong with a document, each with its place."""
    if not isinstance(document, dict):
        yield "is not an object"
        return
    if document.get("schema") != SCHEMA:
        yield f"schema: is {document.get('schema')!r:.40}; this version of Bramble reads {SCHEMA}"
        return
    models = document.get("models")
    if not isinstance(models, list):
        yield "models: is not a list"
        return
    for number, model in enumerate(models):
        place = f"models[{number}]"
        if not isinstance(model, dict):
            yield f"{place}: is not an object"
            continue
        wrong = [
            f"{place}.{name}: is missing or not of its type"
            for name, kind in _FIELDS.items()
            if not isinstance(model.get(name), kind) or isinstance(model.get(name), bool)
        ]
        yield from wrong
        if wrong:
            continue
        if model["placement"] not in ENGINES:
            yield f"{place}.placement: is {model['placement']!r:.40}, not one of {', '.join(ENGINES)}"
        if not _names(model["nodes"]) or not _names(list(model["layers"])) or model["head"] not in model["nodes"]:
            yield f"{place}.nodes: must name hosts, the head among them"
        if not all(_count(count) for count in model["layers"].values()):
            yield f"{place}.layers: must be whole numbers"


def _names(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# --- What the roles get


def host_variables(document: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, dict[str, Any]]]:
    """The groups that a plan puts hosts in (group → hosts), and the variables that it gives them (host → variables).

    Raises:
        PlanError: distributed-llama's files of a model are not there any more.
    """
    groups: dict[str, list[str]] = {}
    variables: dict[str, dict[str, Any]] = {}

    def put(group: str, host: str, values: Mapping[str, Any]) -> None:
        groups.setdefault(group, []).append(host)
        variables.setdefault(host, {}).update(values)

    for model in document["models"]:
        head = model["head"]
        common = {"context": model["context"], "slots": model["slots"], "cache_type": model["cache_type"]}
        if model["placement"] == "replica":
            for host in model["nodes"]:
                put("llama_server", host, _prefixed("llama_server", {"model": model["model"], **common}))
        elif model["placement"] == "rpc":
            put(
                "rpc_head",
                head,
                _prefixed("rpc_head", {"model": model["model"], "layers": dict(model["layers"]), **common}),
            )
            for host in model["nodes"]:
                if host != head:
                    put("rpc_worker", host, {})
        elif model["placement"] == "tensor":
            try:
                # Clients ask for it by the catalogue's name, however the file is called.
                entry = read_entry(Path(str(model.get("files")))) | {"name": model["model"]}
            except EntryError as error:
                advice = f"bring it back, or remove {NAME} and plan again"
                raise PlanError(f"{NAME}: {model['model']}: {error}: {advice}") from error
            put("dllama_api", head, _prefixed("dllama_api", {"model_entry": entry, "context": model["context"]}))
            for host in model["nodes"]:
                if host != head:
                    put("dllama_worker", host, {})
    return groups, variables


def _prefixed(role: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{role}_{name}": value for name, value in values.items()}
