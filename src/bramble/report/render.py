"""A report as a page: HTML by a template, Markdown and plain text by walking over it. Nothing is computed here."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bramble.report.charts import WIDE, WIDTH, draw, draw_stacked
from bramble.report.model import (
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Figure,
    Link,
    Note,
    PageLink,
    Paragraph,
    Part,
    Report,
    Section,
    StackedChart,
    Statement,
    Statements,
    Strong,
    Table,
    Text,
    Tone,
)

MARKDOWN_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")
TONE_WORDS = {Tone.BAD: "Attention", Tone.WARNING: "Note"}
BAR_LETTERS = 24
STACK_LETTERS = 48


def render_html(report: Report) -> str:
    """One page that loads nothing: its style is inside, it has no script, its charts are SVG."""
    return _environment().get_template("report.html.j2").render(report=report)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bramble.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "kind": lambda part: type(part).__name__,
        "target": target,
        "shown": printable,
        "plain": plain,
    }
    environment.globals |= {"draw": draw, "draw_stacked": draw_stacked, "widths": {"narrow": WIDTH, "wide": WIDE}}
    return environment


def render_markdown(report: Report) -> str:
    """The same in Markdown, as GitHub and pandoc read it."""
    lines = [f"# {escape(report.title)}", "", f"As of {escape(report.generated_at)}.", ""]
    for note in report.warnings:
        lines += [*_markdown_block(note), ""]
    lines += ["## In short", "", *_markdown_block(Statements(report.summary)), ""]
    for section in report.sections:
        lines += _markdown_section(section, 2)
    return "\n".join(lines).rstrip("\n") + "\n"


def plain(text: Text) -> str:
    """A text for a terminal: no control characters, whatever a record says."""
    return "".join(printable(part if isinstance(part, str) else part.text) for part in text)


def printable(text: str) -> str:
    """The text without control and direction characters, on one line."""
    return "".join(" " if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") else letter for letter in text)


def escape(text: str) -> str:
    """The text so that Markdown shows it as it is: no markup, no HTML, no table cell of its own."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", printable(text))


def target(text: str) -> str:
    """A link's target, quoted: a place on the page keeps its #, and a path can have no scheme."""
    return f"#{quote(text[1:], safe='-_')}" if text.startswith("#") else quote(text, safe="/.-_")


def _markdown_text(text: Text) -> str:
    return "".join(_markdown_part(part) for part in text)


def _markdown_part(part: Part) -> str:
    match part:
        case str():
            return escape(part)
        case Figure():
            return escape(part.text)
        case Strong(text=text):
            return f"**{escape(text)}**"
        case Code(text=text):
            return f"`{printable(text).replace('`', '')}`"
        case Link(text=text, target=place):
            return f"[{escape(text)}]({target(place)})"
        case PageLink(text=text, page=page):
            return f"[{escape(text)}]({target(page)}.md)"


def _markdown_section(section: Section, level: int) -> list[str]:
    lines = [f'<a id="{section.anchor}"></a>', "", f"{'#' * min(level, 6)} {escape(section.title)}", ""]
    for block in section.blocks:
        lines += [*_markdown_block(block), ""]
    for each in section.sections:
        lines += _markdown_section(each, level + 1)
    return lines


def _markdown_block(block: Block) -> list[str]:
    match block:
        case Paragraph(text=text):
            return [_markdown_text(text)]
        case Note(text=text):
            return [f"> {_markdown_text(text)}"]
        case Statements(items=items):
            return [f"- {_markdown_statement(each)}" for each in items]
        case Table():
            return _markdown_table(block)
        case Charts(items=charts):
            return [line for chart in charts for line in (*_markdown_chart(chart), "")][:-1]
        case StackedChart():
            return _markdown_stacked(block)


def _markdown_statement(statement: Statement) -> str:
    word = TONE_WORDS.get(statement.tone)
    return f"{word}: {_markdown_text(statement.text)}" if word else _markdown_text(statement.text)


def _markdown_table(table: Table) -> list[str]:
    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [f"*{escape(table.caption)}*", "", row(map(escape, table.columns)), row("---" for _ in table.columns)]
    return [*lines, *(row(map(_markdown_cell, cells)) for cells in table.rows)]


def _markdown_cell(cell: Cell) -> str:
    place = f'<a id="{cell.anchor}"></a>' if cell.anchor is not None else ""
    return place + _markdown_text(cell.text)


def _markdown_chart(chart: Chart) -> list[str]:
    """Bars of letters, each with its figures."""
    drawing = draw(chart)
    longest = max((bar.width for bar in drawing.bars), default=0) or 1
    width = max((len(printable(bar.label)) for bar in drawing.bars), default=0)
    notes = []
    if chart.limit is not None:
        notes.append(f"{chart.limit_name} {chart.limit.text}")
    if chart.band is not None:
        notes.append(f"{chart.band_name} {chart.band[0]:g} to {chart.band[1]:g}")
    head = f"{chart.title}, {chart.unit}" + (f" ({'; '.join(notes)})" if notes else "")
    lines = [f"*{escape(head)}*", "", "```text"]
    for bar in drawing.bars:
        spread = f" ± {bar.spread.text}" if bar.spread is not None else ""
        if bar.interval is not None:
            spread = f" ({' to '.join(end.text for end in bar.interval)})"
        mark = f" ({chart.mark_name} {bar.mark.text})" if bar.mark is not None else ""
        letters = "█" * max(round(BAR_LETTERS * bar.width / longest), 1 if bar.width > 0 else 0)
        label = printable(bar.label).replace("`", "'")
        lines.append(f"{label:<{width}}  {letters:<{BAR_LETTERS}}  {bar.figure.text}{spread}{mark}")
    return [*lines, "```"]


def _markdown_stacked(chart: StackedChart) -> list[str]:
    """A line for each bar and one for each of its parts, which begins where the one above it ends."""
    drawing = draw_stacked(chart)
    longest = max((sum(part.width for part in bar.slices) for bar in drawing.stacks), default=0.0) or 1.0
    scale = STACK_LETTERS / longest
    width = max((len(printable(key.name)) for key in chart.legend), default=0) + 2
    lines = [f"*{escape(f'{chart.title}, {chart.unit}')}*", "", "```text"]
    for bar in drawing.stacks:
        lines.append(f"{printable(bar.label).replace('`', chr(39))}: {bar.total.text}")
        for part in bar.slices:
            before = round(scale * (part.x - drawing.left))
            after = round(scale * (part.x - drawing.left + part.width))
            letters = " " * before + "█" * max(after - before, 1 if part.width > 0 else 0)
            name = "  " + printable(part.key.name).replace("`", "'")
            lines.append(f"{name:<{width}}  {letters:<{STACK_LETTERS + 1}}  {part.figure.text}")
    return [*lines, "```"]
