"""What a report is made of. Both renderings only walk over it, so their numbers are equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Tone(StrEnum):
    """What a cell or a note says at a glance. It is never the only thing that says so: a word stands beside it."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it comes from.

    ``metric`` is the path of the number in the record, such as ``result.decode.mean``; ``derived.<name>`` if it was
    computed from numbers of the records in ``records``. ``text`` is ``value`` rounded for people, without unit.
    """

    records: tuple[str, ...]
    metric: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Strong:
    """A word to find the sentence by."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Something to type, or a literal."""

    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """A link: to another part of the page (``#…``) or to a file beside it. No others are made."""

    text: str
    target: str


@dataclass(frozen=True, slots=True)
class PageLink:
    """A link to another page of the report, by its name without suffix: to its HTML, and from the twin to its twin."""

    text: str
    page: str


type Part = str | Figure | Strong | Code | Link | PageLink
type Text = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence. One that claims something about the nodes holds the figures that it rests on."""

    text: Text
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: Text


@dataclass(frozen=True, slots=True)
class Note:
    """A paragraph that must not be overlooked."""

    text: Text
    tone: Tone = Tone.WARNING


@dataclass(frozen=True, slots=True)
class Statements:
    items: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    text: Text
    tone: Tone = Tone.PLAIN
    anchor: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """``rows``: the first cell of each is its header. ``columns`` are as many as a row has cells."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart: ``spread`` to both sides of its end or an ``interval`` around it, ``mark`` a second value."""

    label: str
    figure: Figure
    spread: Figure | None = None
    mark: Figure | None = None
    interval: tuple[Figure, Figure] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Horizontal bars over one axis from zero. ``limit`` is drawn as a line, ``band`` (from, to) as an area."""

    title: str
    unit: str
    bars: tuple[Bar, ...]
    mark_name: str = ""
    limit: Figure | None = None
    limit_name: str = ""
    band: tuple[float, float] | None = None
    band_name: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """What a part of a bar stands for. ``short`` is what fits into the part, ``look`` a class of the style."""

    name: str
    short: str
    look: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a bar; its figure is not below zero."""

    key: Key
    figure: Figure


@dataclass(frozen=True, slots=True)
class StackedBar:
    """A bar as long as ``total``, cut into its slices in proportion to their figures."""

    label: str
    total: Figure
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class StackedChart:
    """Horizontal bars over one axis from zero, each cut into its parts. ``legend``: the key of every part."""

    title: str
    unit: str
    legend: tuple[Key, ...]
    bars: tuple[StackedBar, ...]


@dataclass(frozen=True, slots=True)
class Charts:
    items: tuple[Chart, ...]


type Block = Paragraph | Note | Statements | Table | Charts | StackedChart


@dataclass(frozen=True, slots=True)
class Section:
    anchor: str
    title: str
    blocks: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """A page. ``used``: the ids of the records that it shows, in the order of its last table."""

    title: str
    generated_at: str
    warnings: tuple[Note, ...]
    summary: tuple[Statement, ...]
    sections: tuple[Section, ...]
    used: tuple[str, ...] = field(default=())


def walk(report: Report) -> Iterator[Figure]:
    """Every figure of the report, in the order of the page, charts included."""
    for note in report.warnings:
        yield from _figures(note.text)
    for statement in report.summary:
        yield from _figures(statement.text)
    for section in report.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[Figure]:
    for block in section.blocks:
        match block:
            case Paragraph(text=text) | Note(text=text):
                yield from _figures(text)
            case Statements(items=items):
                for statement in items:
                    yield from _figures(statement.text)
            case Table(rows=rows):
                for row in rows:
                    for cell in row:
                        yield from _figures(cell.text)
            case Charts(items=charts):
                for chart in charts:
                    for bar in chart.bars:
                        yield from (
                            each
                            for each in (bar.figure, bar.spread, bar.mark, *(bar.interval or ()))
                            if each is not None
                        )
                    if chart.limit is not None:
                        yield chart.limit
            case StackedChart(bars=stacks):
                for stack in stacks:
                    yield stack.total
                    yield from (each.figure for each in stack.slices)
    for each in section.sections:
        yield from _section(each)


def _figures(text: Text) -> Iterator[Figure]:
    return (part for part in text if isinstance(part, Figure))
