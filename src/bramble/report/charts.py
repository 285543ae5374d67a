"""Where the parts of a chart lie. The template draws them; nothing here knows markup.

A user unit is a pixel on a phone: the drawing is as wide as a narrow screen and grows with a wider one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from bramble.report.model import Chart, Figure, Key, StackedBar, StackedChart

WIDTH = 340.0
LABEL = 15.0
BAR = 14.0
GAP = 9.0
MARGIN = 6.0
VALUE_SPACE = 46.0  # For the number behind a bar.
FOOT = 34.0
LETTER = 6.5  # The width of one, at most and on average, of the size that labels have.
STACK = 24.0  # The height of a bar that is cut into parts.
STACK_GAP = 12.0
STACK_FOOT = 18.0
SLIT = 0.8  # Between two parts.
WIDE = 720.0  # For screens that are not narrow.


@dataclass(frozen=True, slots=True)
class DrawnBar:
    label: str
    shown_label: str
    figure: Figure
    spread: Figure | None
    mark: Figure | None
    interval: tuple[Figure, Figure] | None
    label_y: float
    y: float
    width: float
    spread_from: float
    spread_to: float
    mark_x: float
    value_x: float


@dataclass(frozen=True, slots=True)
class Tick:
    x: float
    text: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """All lengths in user units, from the top left."""

    width: float
    height: float
    left: float
    foot: float
    bars: tuple[DrawnBar, ...]
    ticks: tuple[Tick, ...]
    limit_x: float | None
    band: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class DrawnSlice:
    """``width`` reaches to the next part, ``shown_width`` leaves a slit. ``short``, ``number``: whether it fits in."""

    key: Key
    figure: Figure
    x: float
    width: float
    shown_width: float
    short: bool
    number: bool


@dataclass(frozen=True, slots=True)
class DrawnStack:
    label: str
    shown_label: str
    total: Figure
    label_y: float
    y: float
    value_x: float
    slices: tuple[DrawnSlice, ...]


@dataclass(frozen=True, slots=True)
class StackedDrawing:
    """All lengths in user units, from the top left."""

    width: float
    height: float
    left: float
    foot: float
    bar: float
    stacks: tuple[DrawnStack, ...]
    ticks: tuple[Tick, ...]


def step(largest: float, parts: int = 5) -> float:
    """The distance of round ticks (1, 2 or 5 times a power of ten): about `parts` of them reach `largest`."""
    if not 0 < largest < 1e300:
        return 1.0
    rough = max(largest / parts, 1e-300)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def reachable(largest: float) -> float:
    """How far an axis goes: to the largest value, where that is one that can be drawn."""
    return largest if 1e-300 < largest < 1e300 else 1.0


def ticks(top: float, x: Callable[[float], float]) -> tuple[Tick, ...]:
    """Round ticks from zero to `top`, where `x` puts them."""
    distance = step(top)
    return tuple(Tick(x(place * distance), f"{place * distance:g}") for place in range(int(top / distance + 1e-9) + 1))


def shorten(label: str, width: float) -> str:
    """As much of a label as fits over a bar."""
    letters = int((width - 2 * MARGIN) / LETTER)
    return label if len(label) <= letters else label[: letters - 1] + "…"


def draw(chart: Chart) -> Drawing:
    """The chart, laid out. Values below zero are drawn as zero."""
    reach = [0.0, *((chart.band or ())[1:])]
    for bar in chart.bars:
        reach.append(bar.figure.value + (bar.spread.value if bar.spread is not None else 0.0))
        reach += [each.value for each in (bar.mark, *(bar.interval or ())) if each is not None]
    if chart.limit is not None:
        reach.append(chart.limit.value)
    top = reachable(max(reach))
    scale = (WIDTH - 2 * MARGIN - VALUE_SPACE) / top

    def x(value: float) -> float:
        return round(MARGIN + scale * min(max(value, 0.0), top), 2)

    bars = []
    height = MARGIN
    for bar in chart.bars:
        low, high = bar.figure.value, bar.figure.value
        if bar.spread is not None:
            low, high = low - bar.spread.value, high + bar.spread.value
        if bar.interval is not None:
            low, high = (end.value for end in bar.interval)
        mark_x = x(bar.mark.value) if bar.mark is not None else 0.0
        bars.append(
            DrawnBar(
                bar.label,
                shorten(bar.label, WIDTH),
                bar.figure,
                bar.spread,
                bar.mark,
                bar.interval,
                label_y=height + LABEL - 4,
                y=height + LABEL,
                width=round(x(bar.figure.value) - MARGIN, 2),
                spread_from=x(low),
                spread_to=x(high),
                mark_x=mark_x,
                value_x=round(max(x(high), mark_x) + 6, 2),
            )
        )
        height += LABEL + BAR + GAP
    return Drawing(
        width=WIDTH,
        height=height + FOOT,
        left=MARGIN,
        foot=height,
        bars=tuple(bars),
        ticks=ticks(top, x),
        limit_x=x(chart.limit.value) if chart.limit is not None else None,
        band=(x(chart.band[0]), x(chart.band[1])) if chart.band is not None else None,
    )


def draw_stacked(chart: StackedChart, width: float = WIDTH) -> StackedDrawing:
    """The chart, laid out so wide. The parts of a bar fill it: their widths are in proportion to their figures."""
    top = reachable(max((bar.total.value for bar in chart.bars), default=0.0))
    scale = (width - 2 * MARGIN - VALUE_SPACE) / top

    def x(value: float) -> float:
        return round(MARGIN + scale * min(max(value, 0.0), top), 2)

    stacks = []
    height = MARGIN
    for bar in chart.bars:
        stacks.append(
            DrawnStack(
                bar.label,
                shorten(bar.label, width),
                bar.total,
                label_y=height + LABEL - 4,
                y=height + LABEL,
                value_x=round(x(bar.total.value) + 6, 2),
                slices=_slices(bar, x(bar.total.value) - MARGIN),
            )
        )
        height += LABEL + STACK + STACK_GAP
    return StackedDrawing(width, height + STACK_FOOT, MARGIN, height, STACK, tuple(stacks), ticks(top, x))


def _slices(bar: StackedBar, length: float) -> tuple[DrawnSlice, ...]:
    total = math.fsum(each.figure.value for each in bar.slices)
    found = []
    x = MARGIN
    for each in bar.slices:
        width = length * (each.figure.value / total) if total > 0 else 0.0
        room = (width - 4) / LETTER
        number = len(each.figure.text) <= room
        found.append(
            DrawnSlice(
                each.key,
                each.figure,
                x=round(x, 2),
                width=width,
                shown_width=round(max(width - SLIT, width / 2), 2),
                short=number and len(each.key.short) + 1 + len(each.figure.text) <= room,
                number=number,
            )
        )
        x += width
    return tuple(found)
