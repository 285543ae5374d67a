"""What a plan promised against what it does: which placements are tried, and how far off each prediction was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from bramble.plan.choose import Chosen, Wish

PORTS = {"replica": "llama_server_port", "rpc": "rpc_head_port", "tensor": "dllama_api_port"}
"""The variable of the port on which each kind of placement answers."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One placement to run: the wish that pins it, and whether it is the plan's own."""

    wish: Wish
    chosen: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """`measured`: tokens/s while decoding, None if it did not run; then `failure` says why."""

    kind: str
    nodes: tuple[str, ...]
    predicted: float
    low: float
    high: float
    measured: float | None
    failure: str = ""
    chosen: bool = False

    @property
    def ratio(self) -> float | None:
        """Predicted / measured."""
        return self.predicted / self.measured if self.measured else None


def trials(chosen: Chosen) -> list[Trial]:
    """The plan's own placement and its runners-up, each pinned to its nodes. A HAT's is left out: it has a record."""
    first = chosen.placements[0]
    if first.kind == "npu":
        return []
    losers = [loser for loser in chosen.losers if loser.decode is not None and loser.kind != "npu"]
    return [
        Trial(_pinned(chosen.wish, first.kind, first.nodes), True),
        *(Trial(_pinned(chosen.wish, loser.kind, loser.nodes), False) for loser in losers),
    ]


def _pinned(wish: Wish, kind: str, nodes: Sequence[str]) -> Wish:
    return replace(wish, placement=kind, nodes=tuple(nodes), head=nodes[0], copies=1, least_decode=0.0)


def verdict(model: Mapping[str, Any], measured: float | None, failure: str, *, chosen: bool) -> Verdict:
    """Of a model of a plan's document."""
    rate = model["decode"][model["head"]]
    return Verdict(
        model["placement"],
        tuple(model["nodes"]),
        rate["value"],
        rate["low"],
        rate["high"],
        measured,
        failure,
        chosen,
    )


def render(name: str, verdicts: Sequence[Verdict]) -> Table:
    """Predicted against measured, the plan's own first."""
    table = Table(box=None, pad_edge=False, title=f"{name}: tokens/s of one stream", title_justify="left")
    for column in ("placement", "nodes", "predicted", "measured", "predicted / measured", ""):
        table.add_column(column)
    for one in verdicts:
        table.add_row(
            one.kind,
            ", ".join(one.nodes),
            f"{one.predicted:.3g} ({one.low:.3g} to {one.high:.3g})",
            f"{one.measured:.3g}" if one.measured is not None else one.failure,
            f"{one.ratio:.2f}" if one.ratio is not None else "",
            "the plan" if one.chosen else "",
        )
    return table
