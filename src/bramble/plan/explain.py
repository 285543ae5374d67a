"""A plan as people read it: who holds what, how fast that will be, and why nothing else was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bramble.plan.cluster import GIB

WIDTH = 40
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")

WORDS = {
    "replica": "whole, on {count}",
    "rpc": "layers over {count} (llama.cpp RPC)",
    "tensor": "slices over {count} (distributed-llama)",
    "npu": "on the HAT of {count}",
}


def explain(document: Mapping[str, Any], *, details: bool = True) -> RenderableType:
    """The document of a plan. `details`: with memory, milliseconds and what lost, and not the placement alone."""
    parts: list[RenderableType] = []
    for model in document["models"]:
        parts += [*_model(model, details=details), Text()]
    for one in document["unplaced"]:
        parts.append(
            Text.assemble((one["model"], "bold red"), f"  has no place, with {one['context']} tokens of context")
        )
        parts += [Padding(Text(f"{kind}: {why}"), (0, 0, 0, 2)) for kind, why in one["why"].items()]
        for line in one["would_fit"]:
            parts.append(Padding(Text.assemble(("would fit: ", "green"), line), (0, 0, 0, 2)))
        parts.append(Text())
    parts += [Text.assemble(("note: ", "yellow"), line) for line in document["assumed"]]
    return Group(*parts)


def _model(model: Mapping[str, Any], *, details: bool) -> list[RenderableType]:
    nodes = model["nodes"]
    count = nodes[0] if len(nodes) == 1 else f"{len(nodes)} nodes"
    kind = WORDS[model["placement"]].format(count=count)
    head = Text.assemble(
        (model["model"], "bold"), f"  {kind}, {model['context']} tokens of context, {model['slots']} at once"
    )
    lines: list[RenderableType] = [head, Padding(Text(f"because {model['why']}"), (0, 0, 0, 2))]
    lines.append(Padding(_nodes(model, details=details), (1, 0, 0, 2)))
    if model["placement"] in ("rpc", "tensor") and details:
        lines.append(Padding(_token(model["token_ms"]), (0, 0, 0, 2)))
    if details and model["runners_up"]:
        lines.append(Padding(_losers(model["runners_up"]), (1, 0, 0, 2)))
    return lines


def _nodes(model: Mapping[str, Any], *, details: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    timed = details and model["placement"] == "rpc"
    for name in (
        "node",
        "layers",
        "",
        *(("memory",) if details else ()),
        *(("one token",) if timed else ()),
        "tokens/s",
    ):
        table.add_column(name, no_wrap=True)
    total = max(1, max(sum(model["layers"].values()), 1))
    sliced = model["placement"] == "tensor"
    start = 0
    for number, host in enumerate(model["nodes"]):
        held = model["layers"].get(host, 0)
        begins = 0 if sliced or model["placement"] != "rpc" else start
        whole = held if sliced or model["placement"] != "rpc" else total
        start += held
        cells: list[RenderableType] = [host, _held(model["placement"], held, begins, len(model["nodes"]))]
        cells.append(_bar(begins, held, whole, COLOURS[number % len(COLOURS)]))
        if details:
            memory = model["memory"].get(host)
            cells.append(f"{memory['needed'] / GIB:.2f} of {memory['usable'] / GIB:.2f} GiB" if memory else "")
        if timed:
            cells.append(f"{model['token_ms'].get(host, 0):.1f} ms")
        cells.append(rate(model["decode"].get(host)))
        table.add_row(*cells)
    return table


def _held(placement: str, held: int, begins: int, nodes: int) -> str:
    if placement == "tensor":
        return f"1/{nodes} of each"
    if placement == "npu":
        return ""
    return f"{begins + 1}-{begins + held}" if held else "none"


def _bar(begins: int, held: int, whole: int, colour: str) -> Text:
    left = round(WIDTH * begins / whole) if whole else 0
    wide = max(1 if held else 0, round(WIDTH * (begins + held) / whole) - left) if whole else 0
    return Text.assemble(("·" * left, "dim"), ("█" * wide, colour), ("·" * max(0, WIDTH - left - wide), "dim"))


def rate(figures: Mapping[str, Any] | None) -> str:
    """A predicted or measured rate with its range."""
    if figures is None:
        return ""
    if figures["measured"]:
        return f"{figures['value']:.3g} measured"
    return f"{figures['value']:.3g} ({figures['low']:.3g} to {figures['high']:.3g})"


def _token(parts: Mapping[str, float]) -> Text:
    """One token's time as a bar: which node, the output, the network."""
    total = sum(parts.values()) or 1.0
    text = Text("one token: ")
    for number, milliseconds in enumerate(parts.values()):
        text.append("█" * round(WIDTH * milliseconds / total), COLOURS[number % len(COLOURS)])
    text.append(f" {total:.1f} ms: ")
    text.append(", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in parts.items()))
    return text


def _losers(losers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("what else there was", "nodes", "tokens/s", "why not"):
        table.add_column(name)
    for loser in losers:
        decode = "" if loser["decode"] is None else f"{loser['decode']:.3g}"
        table.add_row(loser["placement"], ", ".join(loser["nodes"]), decode, loser["why"])
    return table
