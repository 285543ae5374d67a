"""What `bramble plan` does: an inventory and its records in, a plan out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bramble.inventory import InventoryError, read_inventory
from bramble.model.known import known_shape
from bramble.model.shape import ModelShape, ShapeError
from bramble.plan import document as documents
from bramble.plan import inputs
from bramble.plan.choose import Preferences, Wish, choose
from bramble.plan.cluster import Cluster
from bramble.plan.explain import explain, rate
from bramble.plan.what_if import Question, WhatIfError, change

CATALOGUE = Path("roles/model_store/vars/catalogue.yml")


class PlanningError(Exception):
    """There is no plan. The message says why and what to change."""


def show_plan(
    root: Path,
    inventory: Path,
    *,
    details: bool,
    what_if: Sequence[str],
    write: bool,
    as_json: bool,
    console: Console,
) -> bool:
    """Print the plan of an inventory, and with `write` keep it; whether each wanted model has a place.

    Raises:
        PlanningError: the inventory or its records do not say enough, or a change that cannot be made was asked for.
    """
    directory = inventory if inventory.is_dir() else inventory.parent
    path = directory / documents.NAME
    cluster, shapes, wishes, preferences = question(root, inventory)
    try:
        before = documents.previous(documents.read(path))
    except documents.PlanError as error:
        raise PlanningError(str(error)) from error
    plan = documents.as_document(choose(cluster, shapes, wishes, preferences, before))
    if what_if:
        asked: Question = (cluster, shapes, wishes)
        try:
            for text in what_if:
                asked = change(text, asked)
        except WhatIfError as error:
            raise PlanningError(str(error)) from error
        other = documents.as_document(choose(*asked, preferences))
        if as_json:
            print(documents.write(other), end="")
        else:
            console.print(compared(plan, other, ", ".join(what_if)))
            console.print(explain(other, details=details))
        return not other["unplaced"]
    if as_json:
        print(documents.write(plan), end="")
    else:
        console.print(explain(plan, details=details))
    if write:
        changed = keep(path, documents.write(plan))
        if not as_json:
            console.print(f"{path}: {'written' if changed else 'unchanged'}", soft_wrap=True)
    return not plan["unplaced"]


def question(root: Path, inventory: Path) -> tuple[Cluster, dict[str, ModelShape], tuple[Wish, ...], Preferences]:
    """What the planner is asked: cluster, known models, wishes, preferences.

    Raises:
        PlanningError: the inventory does not say enough.
    """
    try:
        found = read_inventory(root, inventory, inputs.VARIABLES)
    except InventoryError as error:
        raise PlanningError(str(error)) from error
    hosts = list(found.groups.get("cluster", ()))
    if not hosts:
        raise PlanningError(f"{inventory}: the group cluster has no hosts")
    try:
        wanted = inputs.owners(hosts, found.variables)
        if not wanted.get("plan_models"):
            raise PlanningError(
                f"{inventory}: plan_models names no model. Say in group_vars/all/plan.yml which models are wanted, "
                "such as\n  plan_models: [{model: qwen2.5-3b-instruct-q4_k_m}]"
            )
        shapes = known_shapes(root, [found.variables[host].get("model_store_catalogue") or {} for host in hosts])
        cluster = inputs.cluster(hosts, found.variables, shapes)
        wishes = inputs.wishes(wanted["plan_models"], hosts, shapes)
        preferences = inputs.preferences(wanted, hosts)
    except inputs.InputError as error:
        raise PlanningError(f"{inventory}:\n{error}" if "\n" in str(error) else f"{inventory}: {error}") from error
    return cluster, shapes, wishes, preferences


def known_shapes(root: Path, catalogues: Sequence[Mapping[str, Any]]) -> dict[str, ModelShape]:
    """The models of the catalogues whose entries tell their widths."""
    own = yaml.safe_load((root / CATALOGUE).read_text(encoding="utf-8"))["__model_store_catalogue"]
    found: dict[str, ModelShape] = {}
    for catalogue in (own, *catalogues):
        for name, entry in catalogue.items():
            try:
                found[name] = known_shape({**entry, "name": name})
            except ShapeError:
                continue
    return found


def keep(path: Path, text: str) -> bool:
    """Write the file whole or not at all; whether it had other contents."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise PlanningError(f"{path}: cannot be written: {error.strerror or error}") from error
    return True


def compared(plan: Mapping[str, Any], other: Mapping[str, Any], change: str) -> RenderableType:
    """Each model as it is and as it would be."""
    table = Table(box=None, pad_edge=False)
    for name in ("model", "now", "", f"with {change}", ""):
        table.add_column(name)
    models = [model["model"] for model in plan["models"]] + [one["model"] for one in plan["unplaced"]]
    for name in models:
        table.add_row(name, *_placed(plan, name), *_placed(other, name))
    return Group(table, Text())


def _placed(plan: Mapping[str, Any], name: str) -> tuple[str, str]:
    for model in plan["models"]:
        if model["model"] == name:
            return f"{model['placement']} on {', '.join(model['nodes'])}", rate(model["decode"][model["head"]])
    return "no place", ""
