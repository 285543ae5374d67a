"""What `bramble report` does: read the inventory's records, write the two pages, print the answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from bramble.records.store import load
from bramble.report import Report, build, plain, render_html, render_markdown

HTML, MARKDOWN = "baseline.html", "baseline.md"


class ReportError(Exception):
    """The report could not be written. The message says where, why and what to change."""


@dataclass(frozen=True, slots=True)
class Written:
    """Where the two pages are, what they hold, and a sentence for each line of the files that is no record."""

    html: Path
    markdown: Path
    report: Report
    problems: tuple[str, ...]


def show_report(inventory: Path, output: Path | None, *, console: Console, errors: Console) -> None:
    """Write the report, print its answers and where it is.

    Raises:
        ReportError: it could not be written.
    """
    written = write_report(inventory, output)
    for problem in written.problems:
        errors.print(f"[yellow]warning:[/] {escape(problem)}", soft_wrap=True)
    for note in written.report.warnings:
        console.print(escape(plain(note.text)), soft_wrap=True)
    for statement in written.report.summary:
        console.print(escape(plain(statement.text)), soft_wrap=True)
    console.print(f"\nReport:  {escape(str(written.html))}\n         {escape(str(written.markdown))}", soft_wrap=True)


def write_report(inventory: Path, output: Path | None = None, *, now: datetime | None = None) -> Written:
    """Write `baseline.html` and `baseline.md` from the inventory's records.

    Args:
        inventory: the inventory's directory, or a file in it.
        output: the directory to write to; `report` in the inventory if None.
        now: the time that the pages give; that of the clock if None.

    Raises:
        ReportError: a file or the directory could not be written.
    """
    directory = (inventory if inventory.is_dir() else inventory.parent).absolute()
    target = directory / "report" if output is None else output.absolute()
    measured = directory / "measured"
    records, problems = load(measured)
    report = build(
        records,
        generated_at=(now or datetime.now(UTC)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        cluster=directory.name,
        measured=Path(os.path.relpath(measured.resolve(), target.resolve())).as_posix(),
        unreadable=len(problems),
    )
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(f"{target}: cannot be made: {error.strerror}; name a directory with --output") from error
    for name, text in ((HTML, render_html(report)), (MARKDOWN, render_markdown(report))):
        _write(target / name, text)
    return Written(target / HTML, target / MARKDOWN, report, tuple(problems))


def _write(path: Path, text: str) -> None:
    """Write a whole file or nothing: a reader never sees half of it."""
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
