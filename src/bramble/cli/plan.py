"""What `bramble plan` does: an inventory and its records in, a plan out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bramble.inventory import InventoryError, read_inventory
from bramble.model.dllama_entry import EntryError, read_entry
from bramble.model.known import known_shape
from bramble.model.shape import ModelShape, ShapeError
from bramble.plan import document as documents
from bramble.plan import inputs
from bramble.plan.choose import Plan, Preferences, Previous, Wish, choose
from bramble.plan.cluster import Cluster
from bramble.plan.explain import explain, rate
from bramble.plan.verify import PORTS, render, trials, verdict
from bramble.plan.what_if import WhatIfError, change
from bramble.records import figure

CATALOGUE = Path("roles/model_store/vars/catalogue.yml")


class PlanningError(Exception):
    """There is no plan. The message says why and what to change. `measured`: False if only a measurement is missing."""

    def __init__(self, message: str, *, measured: bool = True) -> None:
        super().__init__(message)
        self.measured = measured


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
    asked = question(root, inventory)
    plan = documents.as_document(asked.choose(documents.previous(_read(path))), asked.files)
    if what_if:
        changed = asked
        try:
            for text in what_if:
                changed = changed.changed(text)
        except WhatIfError as error:
            raise PlanningError(str(error)) from error
        other = documents.as_document(changed.choose(), asked.files)
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
        # What runs goes on until there is a plan for all that is wanted.
        if plan["unplaced"]:
            told = "left as it was, since not every model has a place"
        else:
            told = "written" if keep(path, documents.write(plan)) else "unchanged"
        if not as_json:
            console.print(f"{path}: {told}", soft_wrap=True)
    return not plan["unplaced"]


Play = Callable[[str, Mapping[str, object]], bool]
"""Runs a playbook with variables; whether it ended well."""

DEPLOY = "playbooks/phase2_distributed.yml"


def verify_plan(root: Path, inventory: Path, play: Play, *, tokens: int, console: Console) -> bool:
    """Run each planned model as planned and as its runners-up, measure, and go back to the plan; whether all ran.

    Raises:
        PlanningError: there is too little to plan from.
    """
    path = (inventory if inventory.is_dir() else inventory.parent) / documents.NAME
    asked = question(root, inventory)
    plan = asked.choose(documents.previous(_read(path)))
    if plan.unplaced:
        raise PlanningError(f"{plan.unplaced[0].wish.model} has no place: bramble plan --explain says why")
    output = root / ".bramble/plan_verify.json"
    output.parent.mkdir(exist_ok=True)
    well = True
    try:
        for chosen in plan.chosen:
            verdicts = []
            for trial in trials(chosen):
                document = documents.as_document(asked.with_wish(trial.wish).choose(), asked.files)
                model = next((one for one in document["models"] if one["model"] == trial.wish.model), None)
                if model is None:
                    continue  # Beside the other models' own places it has none.
                keep(path, documents.write(document))
                measured, failure = _measure(asked, model, play, output, tokens)
                well = well and measured is not None
                verdicts.append(verdict(model, measured, failure, chosen=trial.chosen))
            console.print(render(chosen.wish.model, verdicts))
            console.print()
    finally:
        keep(path, documents.write(documents.as_document(plan, asked.files)))
        well = play(DEPLOY, {"plan_frozen": True}) and well
    return well


def _measure(asked: Asked, model: Mapping[str, Any], play: Play, output: Path, tokens: int) -> tuple[float | None, str]:
    """Deploy what plan.json says and measure: tokens/s while decoding, or None and why not."""
    output.unlink(missing_ok=True)
    if not play(DEPLOY, {"plan_frozen": True}):
        return None, "did not start"
    head = model["head"]
    variables = {
        "plan_verify_host": head,
        "plan_verify_url": f"http://{asked.addresses[head]}:{asked.ports[head][PORTS[model['placement']]]}",
        "plan_verify_model": model["model"],
        "plan_verify_tokens": tokens,
        "plan_verify_output": str(output),
    }
    if not play("playbooks/plan_verify.yml", variables):
        return None, "did not answer"
    [record] = json.loads(output.read_text(encoding="utf-8"))
    return figure(record["result"]["decode"]).mean, ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return documents.read(path)
    except documents.PlanError as error:
        raise PlanningError(str(error)) from error


@dataclass(frozen=True, slots=True)
class Asked:
    """What the planner is asked.

    `files`: model → the file that tells of distributed-llama's files of it. `addresses`, `ports`: by host.
    """

    cluster: Cluster
    shapes: Mapping[str, ModelShape]
    wishes: Sequence[Wish]
    preferences: Preferences
    files: Mapping[str, str]
    addresses: Mapping[str, str]
    ports: Mapping[str, Mapping[str, int]]

    def choose(self, before: Previous | None = None) -> Plan:
        """The plan."""
        return choose(self.cluster, self.shapes, self.wishes, self.preferences, before, self.files)

    def with_wish(self, other: Wish) -> Asked:
        """With another wish for the same model."""
        return replace(self, wishes=[other if wish.model == other.model else wish for wish in self.wishes])

    def changed(self, text: str) -> Asked:
        """With a change of bramble.plan.what_if."""
        cluster, shapes, wishes = change(text, (self.cluster, self.shapes, self.wishes))
        return replace(self, cluster=cluster, shapes=shapes, wishes=wishes)


def question(root: Path, inventory: Path) -> Asked:
    """What the planner is asked, by an inventory and its records.

    Raises:
        PlanningError: the inventory does not say enough.
    """
    try:
        found = read_inventory(root, inventory, (*inputs.VARIABLES, *ADDRESSES, *PORTS.values()))
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
        catalogue = known_models(root, [found.variables[host].get("model_store_catalogue") or {} for host in hosts])
        shapes, unusable = known_shapes(catalogue)
        # First what the owner wrote: a mistake in it is told before the first measurement, too.
        wishes = inputs.wishes(wanted["plan_models"], hosts, shapes, unusable)
        preferences = inputs.preferences(wanted, hosts)
        files = {name: str(entry["dllama"]) for name, entry in catalogue.items() if entry.get("dllama")}
        _see_that_they_are_there(inventory, {wish.model: files[wish.model] for wish in wishes if wish.model in files})
        return Asked(
            cluster=inputs.cluster(hosts, found.variables, shapes),
            shapes=shapes,
            wishes=wishes,
            preferences=preferences,
            files=files,
            addresses={host: _address(found.variables[host], host) for host in hosts},
            ports={host: {name: found.variables[host].get(name, PORT[name]) for name in PORT} for host in hosts},
        )
    except inputs.InputError as error:
        raise PlanningError(
            f"{inventory}:\n{error}" if "\n" in str(error) else f"{inventory}: {error}",
            measured=not isinstance(error, inputs.NotMeasuredError),
        ) from error


def _see_that_they_are_there(inventory: Path, files: Mapping[str, str]) -> None:
    """Now, and not when a plan that names them is in force and no inventory can be read any more."""
    for model, path in files.items():
        try:
            read_entry(Path(path))
        except EntryError as error:
            raise PlanningError(f"{inventory}: model_store_catalogue.{model}.dllama: {error}") from error


ADDRESSES = ("cluster_network_address", "ansible_host")
PORT = {"llama_server_port": 8081, "rpc_head_port": 8080, "dllama_api_port": 9991}
"""The roles' defaults; a test holds them equal."""


def _address(variables: Mapping[str, Any], host: str) -> str:
    return str(next((variables[name] for name in ADDRESSES if variables.get(name)), host))


def known_models(root: Path, catalogues: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The entries of the role's catalogue and of the inventory's."""
    found: dict[str, Mapping[str, Any]] = {}
    own = yaml.safe_load((root / CATALOGUE).read_text(encoding="utf-8"))["__model_store_catalogue"]
    for catalogue in (own, *catalogues):
        found |= {str(name): entry for name, entry in catalogue.items() if isinstance(entry, Mapping)}
    return found


def known_shapes(catalogue: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, ModelShape], dict[str, str]]:
    """The models whose entries tell their widths; and of the others, what is wrong."""
    found: dict[str, ModelShape] = {}
    unusable: dict[str, str] = {}
    for name, entry in catalogue.items():
        try:
            found[name] = known_shape({**entry, "name": name})
        except ShapeError as error:
            unusable[name] = str(error)
    return found, unusable


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
