"""What `bramble history`, `bramble compare` and `bramble bench` do: which records, and how they are shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bramble.cli.chat import printable
from bramble.records import (
    KINDS,
    Figure,
    Metric,
    Record,
    Row,
    Series,
    compare,
    figure,
    first,
    history,
    latest,
    load,
    regressions,
    series,
    until,
)

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_ID = re.compile(r"[0-9a-f]{4,16}")
SIDES = (
    "`first`, `latest`, a time such as 2026-11-21 or 2026-11-21T12:00 (UTC), a record's id, or a directory with records"
)


class MeasuredError(Exception):
    """There is nothing to show. The message says why and what to change."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison. `only`: it is one record, and nothing but its series is compared."""

    records: list[Record]
    only: Series | None = None


# --- The commands


def show_history(
    inventory: Path, host: str | None, kind: str | None, *, as_json: bool, console: Console, errors: Console
) -> None:
    """Print the inventory's records in the order in which they were measured.

    Raises:
        MeasuredError: there are none.
    """
    records, problems = read(measured_directory(inventory))
    warn(errors, problems)
    chosen = choose(records, host, kind)
    if as_json:
        print(json.dumps(chosen, indent=2))
    else:
        console.print(render_history(chosen))


def show_compare(
    inventory: Path, a: str, b: str, *, floor: float, as_json: bool, console: Console, errors: Console
) -> bool:
    """Print what differs between two sides; whether nothing became worse beyond noise.

    Raises:
        MeasuredError: a side means nothing, or they measure different things.
    """
    by_host, problems = load(measured_directory(inventory))
    records = [record for host in sorted(by_host) for record in by_host[host]]
    before, problems_a = side(a, records)
    after, problems_b = side(b, records)
    warn(errors, dict.fromkeys([*problems, *problems_a, *problems_b]))
    rows = compare_sides(before, after, floor=floor)
    if as_json:
        print(compare_json(rows))
    else:
        console.print(render_compare(rows))
        console.print()
        console.print(render_verdict(rows), soft_wrap=True)
    return not regressions(rows)


def warn(errors: Console, problems: Iterable[str]) -> None:
    """Say what was not read, a line each."""
    for problem in problems:
        errors.print(f"[yellow]warning:[/] {_safe(problem)}", soft_wrap=True)


# --- Which records


def measured_directory(inventory: Path) -> Path:
    """Where the records of an inventory are: it is a directory, or a file in one."""
    return (inventory if inventory.is_dir() else inventory.parent) / "measured"


def read(directory: Path) -> tuple[list[Record], list[str]]:
    """All records of a directory, and a sentence for each line that is none.

    Raises:
        MeasuredError: it has no records.
    """
    by_host, problems = load(directory)
    records = [record for host in sorted(by_host) for record in by_host[host]]
    if not records:
        raise MeasuredError("\n".join([f"{directory} has no records. `bramble bench` measures.", *problems]))
    return records, problems


def check_kind(kind: str | None) -> None:
    """Refuse a kind of record that there is not.

    Raises:
        MeasuredError: there is none of this name.
    """
    if kind is not None and kind not in KINDS:
        raise MeasuredError(f"There is no kind {kind!r} of record; there are {', '.join(KINDS)}.")


def choose(records: Sequence[Record], host: str | None, kind: str | None) -> list[Record]:
    """The records of one host and kind, where these are given, in the order in which they were measured.

    Raises:
        MeasuredError: there are none.
    """
    check_kind(kind)
    chosen = history(records, host=host, kind=kind)
    if not chosen:
        hosts = ", ".join(sorted({record["host"] for record in records}))
        kinds = ", ".join(sorted({record["kind"] for record in records}))
        wanted = " and ".join(part for part in (f"host {host}" if host else "", f"kind {kind}" if kind else "") if part)
        raise MeasuredError(f"There are no records of {wanted}. There are hosts {hosts} and kinds {kinds}.")
    return chosen


def side(text: str, records: Sequence[Record]) -> tuple[Side, list[str]]:
    """What one side of `bramble compare` means, and what is wrong with its files. `records`: the inventory's.

    Raises:
        MeasuredError: it means nothing, or no records.
    """
    if text in ("first", "latest") or _DATE.match(text):
        if not records:
            raise MeasuredError(f"The inventory has no records for {text!r}. `bramble bench` measures.")
        if text == "first":
            return Side(first(records)), []
        return Side(latest(records) if text == "latest" else _as_of(text, records)), []
    path = Path(text)
    if path.is_dir():
        found, problems = read(path if any(path.glob("*.jsonl")) else measured_directory(path))
        return Side(latest(found)), problems
    if _ID.fullmatch(text):
        matches = {record["id"]: record for record in records if record["id"].startswith(text)}
        if len(matches) == 1:
            record = next(iter(matches.values()))
            return Side([record], series(record)), []
        if matches:
            raise MeasuredError(f"{len(matches)} records have an id that begins with {text}: write more of it.")
        raise MeasuredError(f"No record has the id {text}. `bramble history` lists them.")
    raise MeasuredError(f"{text!r} is nothing to compare: write {SIDES}.")


def _as_of(text: str, records: Sequence[Record]) -> list[Record]:
    try:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
        if _DATE.fullmatch(text):
            time += timedelta(days=1, seconds=-1)
    except (ValueError, OverflowError) as error:
        raise MeasuredError(f"{text!r} is no time; write one such as 2026-11-21 or 2026-11-21T12:00 (UTC).") from error
    found = until(records, time.isoformat(timespec="seconds").removesuffix("+00:00") + "Z")
    if not found:
        began = min(record["started_at"] for record in records)
        raise MeasuredError(f"Nothing was measured until {text}; the first record is of {began}.")
    return latest(found)


def compare_sides(a: Side, b: Side, *, floor: float) -> list[Row]:
    """The rows of the comparison. If a side is one record, only its series is compared.

    Raises:
        MeasuredError: the sides measure different things.
    """
    only = {one.only for one in (a, b) if one.only}
    rows = compare(a.records, b.records, floor=floor)
    if only:
        rows = [row for row in rows if row.series in only]
    if all(row.a is None or row.b is None for row in rows):
        raise MeasuredError(
            "The two sides have no series in common: the same host, kind, engine, model and parameters. "
            "`bramble history` lists what there is."
        )
    return rows


OWN_PLAYS = {"net_pair": "net_bench", "token_time": "split_strategies"}
"""Kinds of record that have a play of their own, and its tag."""


def bench_variables(kinds: Sequence[str], again: bool) -> dict[str, object]:
    """What `bramble bench` passes to the playbook. Without `kinds`, the inventory says what is measured.

    Raises:
        MeasuredError: there is no such kind.
    """
    for kind in kinds:
        check_kind(kind)
    variables: dict[str, object] = {"benchmark_again": True} if again else {}
    on_nodes = [kind for kind in dict.fromkeys(kinds) if kind not in OWN_PLAYS]
    return variables | ({"benchmark_kinds": on_nodes} if on_nodes else {})


def bench_tags(kinds: Sequence[str]) -> str | None:
    """The tags of the playbook's plays, or None for all but those that must be asked for (token_time)."""
    tags = {OWN_PLAYS.get(kind, "node_bench") for kind in kinds}
    return ",".join(sorted(tags)) or None


# --- How they are shown


def compare_json(rows: Sequence[Row]) -> str:
    """The comparison: `ok`, false if something became worse, and `rows` as in `bramble.records.Row`."""
    shown = [
        {
            **row.series._asdict(),
            "params": json.loads(row.series.params),
            "metric": row.metric,
            "unit": row.unit,
            "a": _figure_json(row.a),
            "b": _figure_json(row.b),
            "change": row.change,
            "p": row.p,
            "verdict": row.verdict,
            "differs": list(row.differs),
            "suspect": row.suspect,
        }
        for row in rows
    ]
    return json.dumps({"ok": not regressions(rows), "rows": shown}, indent=2)


def _figure_json(told: Figure | None) -> dict[str, Any] | None:
    return {"mean": told.mean, "sd": told.sd, "n": told.n} if told else None


def render_history(records: Sequence[Record]) -> RenderableType:
    """A row per record, the newest last."""
    table = _table("when (UTC)", "host", "kind", "engine", "model", "params", "figures", "id")
    for record in records:
        key = series(record)
        figures = [f"{name} {metric_text(metric)}" for name, metric in record["result"].items()]
        marks = [f"[yellow]suspect: {_safe(reason)}[/]" for reason in record.get("suspect", ())]
        table.add_row(
            _safe(record["started_at"].removesuffix("Z").replace("T", " ")),
            _safe(key.host),
            _safe(key.kind),
            _safe(key.engine),
            _safe(key.model or "-"),
            _safe(params_text(record["params"])),
            "\n".join([*map(_safe, figures), *marks]),
            _safe(record["id"]),
        )
    return table


_STYLES = {"regression": "red", "improvement": "green", "gone": "dim", "new": "dim", "not judged": "dim"}


def render_compare(rows: Sequence[Row]) -> RenderableType:
    """A row per metric that both sides have; below, what only one of them has."""
    table = _table("host", "kind", "engine", "model", "params", "metric", "A", "B", "change", "p", "verdict")
    for row in rows:
        if row.a is None or row.b is None:
            continue
        style = _STYLES.get(row.verdict)
        verdict = f"{row.verdict} (suspect)" if row.suspect else row.verdict
        table.add_row(
            *map(_safe, (row.series.host, row.series.kind, row.series.engine, row.series.model or "-")),
            _safe(params_text(json.loads(row.series.params))),
            _safe(row.metric),
            _safe(figure_text(row.a)),
            _safe(figure_text(row.b)),
            _safe(change_text(row.change)),
            _safe(p_text(row.p)),
            f"[{style}]{verdict}[/]" if style else verdict,
        )
    lines = []
    for side_, verdict in (("A", "gone"), ("B", "new")):
        only = sorted({row.series for row in rows if row.verdict == verdict})
        if only:
            names = "; ".join(dict.fromkeys(_what(key) for key in only))
            lines.append(f"[dim]Only in {side_}: {_safe(names)}[/]")
    return Group(table, *lines)


def render_verdict(rows: Sequence[Row]) -> str:
    """What became worse, a line each, in rich's markup."""
    lines = [f"[red]✗[/] {_safe(regression_text(row))}" for row in regressions(rows)]
    return "\n".join(lines) or "[green]Nothing became worse beyond noise.[/]"


def regression_text(row: Row) -> str:
    """One sentence about a row that became worse."""
    was = figure_text(row.a) if row.a else "-"
    now = figure_text(row.b) if row.b else "-"
    grounds = f"p {p_text(row.p)}" if row.p is not None else "spread not known"
    cause = f". Also different: {'; '.join(row.differs)}" if row.differs else ""
    params = params_text(json.loads(row.series.params))
    return f"{_what(row.series)} ({params}): {row.metric} {was} → {now} ({change_text(row.change)}, {grounds}){cause}"


def _what(key: Series) -> str:
    return " ".join(part for part in (key.host, key.kind, key.engine, key.model) if part)


def params_text(params: Mapping[str, Any]) -> str:
    """`{"threads": 4, "depth": 0}` → `threads=4 depth=0`."""
    return " ".join(f"{name}={value}" for name, value in params.items())


def metric_text(metric: Metric) -> str:
    """A metric with its spread: `5.50 ± 0.10 tok/s`."""
    return figure_text(figure(metric))


def figure_text(told: Figure) -> str:
    """A figure with its spread: `5.50 ± 0.10 tok/s`."""
    spread = f" ± {number_text(told.sd)}" if told.sd is not None else ""
    return f"{number_text(told.mean)}{spread} {told.unit}"


def number_text(value: float) -> str:
    """Three digits that matter, but no less than the whole number."""
    size = abs(value)
    if size >= 1e6:
        return f"{value:.3g}"
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 0.1
        else f"{value:.3g}"
    )


def change_text(change: float | None) -> str:
    """A relative change in per cent."""
    return "-" if change is None else f"{change * 100:+.1f} %"


def p_text(p: float | None) -> str:
    """A p value; very small ones as a bound."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _safe(text: str) -> str:
    """Text of a record for rich: nothing in it steers the terminal or is taken for markup."""
    return escape(printable(text))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in ("change", "p") else "left", overflow="fold")
    return table
