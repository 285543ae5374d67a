"""What `bramble report` does: read the inventory's records, write the two pages, print the answers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bramble.records import Record
from bramble.records.store import load
from bramble.report import TOKEN_TIME, Report, build, build_network, plain, render_html, render_markdown

BASELINE, NETWORK = "baseline", "network"


class ReportError(Exception):
    """The report could not be written. The message says where, why and what to change."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where a page and its twin are, what they hold, a sentence for each line of the files that is no record, and
    whether any page differs from the one that was there."""

    html: Path
    markdown: Path
    report: Report
    problems: tuple[str, ...]
    changed: bool


def show_report(
    inventory: Path, output: Path | None, *, network: bool = False, console: Console, errors: Console
) -> None:
    """Write the report, print its answers, or with ``network`` those of the page on the network, and where it is.

    Raises:
        ReportError: it could not be written.
    """
    written = write_report(inventory, output, network=network)
    for problem in written.problems:
        errors.print(f"[yellow]warning:[/] {escape(problem)}", soft_wrap=True)
    for note in written.report.warnings:
        console.print(escape(plain(note.text)), soft_wrap=True)
    for statement in written.report.summary:
        console.print(escape(plain(statement.text)), soft_wrap=True)
    told = "Report" if written.changed else "Report, unchanged"
    console.print(f"\n{told}:\n  {escape(str(written.html))}\n  {escape(str(written.markdown))}", soft_wrap=True)


def write_report(
    inventory: Path, output: Path | None = None, *, network: bool = False, now: datetime | None = None
) -> Written:
    """Write `baseline.html` and `baseline.md` from the inventory's records, and `network.html` and `network.md`, where
    there are records of the kind `token_time` or they are asked for: the pages link to each other.

    Args:
        inventory: the inventory's directory, or a file in it.
        output: the directory to write to; `report` in the inventory if None.
        network: whether the page on the network is asked for, and returned.
        now: the time that the pages give. If None, that of the newest record: the same records make the same pages.

    Raises:
        ReportError: a file or the directory could not be written.
    """
    directory = (inventory if inventory.is_dir() else inventory.parent).absolute()
    target = directory / "report" if output is None else output.absolute()
    measured = directory / "measured"
    records, problems = load(measured)
    profiled = any(record["kind"] == TOKEN_TIME for found in records.values() for record in found)
    reports = {
        page: make(
            records,
            generated_at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if now else newest(records),
            cluster=directory.name,
            measured=Path(os.path.relpath(measured.resolve(), target.resolve())).as_posix(),
            unreadable=len(problems),
        )
        for page, make in ((BASELINE, build), (NETWORK, build_network))
        if page == BASELINE or network or profiled
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{target}: cannot be made: {error.strerror}; name a directory with --output") from error
    changed = [
        _write(target / f"{page}.{suffix}", render(report))
        for page, report in reports.items()
        for suffix, render in (("html", render_html), ("md", render_markdown))
    ]
    page = NETWORK if network else BASELINE
    return Written(target / f"{page}.html", target / f"{page}.md", reports[page], tuple(problems), any(changed))


def newest(records: Mapping[str, Sequence[Record]]) -> str:
    """When the newest record began, in UTC; now if there is none."""
    times = [record["started_at"] for measured in records.values() for record in measured]
    return max(times, default=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


def _write(path: Path, text: str) -> bool:
    """Write a whole file or nothing: a reader never sees half of it. Whether it was another one before."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (OSError, UnicodeDecodeError):
        pass  # There is none, or none of ours.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ReportError(
            f"{path}: cannot be written: {error.strerror}; name another directory with --output"
        ) from error
    return True
