"""What changed between two sets of records, and whether by more than noise.

A difference counts if it is larger than the relative floor and either Welch's t-test finds it significant or, where the
spread is not known, it is larger than a wider floor.

Sources: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are
involved", Biometrika 34 (1947); for shares A. Agresti and B. Caffo, "Simple and effective confidence intervals for
proportions", The American Statistician 54 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bramble.records.query import Series, latest, series
from bramble.records.schema import Figure, Record, figure

type Verdict = Literal["regression", "improvement", "same", "not judged", "gone", "new"]

FLOOR = 0.05
"""Relative differences up to this are never told: a node varies so much from one day to the next."""

FLOOR_ALONE = 0.25
"""The floor for figures whose spread is not known (n of 1): there is nothing else to tell noise by."""

SIGNIFICANCE = 0.01
"""The p below which a difference is no noise: 1 % and not 5 %, as one comparison judges many figures."""

DIRECTIONS = {"tok/s": 1, "share": 1, "Mbit/s": 1, "s": -1, "ms": -1, "ppl": -1, "%": -1}
"""1: more is better; -1: less is better. Other units (a count of retransmits) are shown and not judged."""

LEAST = {"ms": 0.5, "%": 1.0}
"""Absolute differences up to this are never told: near 0, relative ones say nothing. % are percentage points."""

_NORMAL_FROM = 1000.0
"""From so many degrees of freedom the t distribution is taken as the normal one: the p differ by less than 0.0005."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one series, before and after.

    `change`: (b - a) / |a|, None if a is 0 or one of them is missing. `p`: of Welch's test, None where the spread is
    not known. `differs`: what else was different, such as the governor: it may be the cause. `suspect`: one of the two
    records says that its figures cannot be true.
    """

    series: Series
    metric: str
    unit: str
    a: Figure | None
    b: Figure | None
    change: float | None
    p: float | None
    verdict: Verdict
    differs: tuple[str, ...] = ()
    suspect: bool = False


def compare(
    before: Iterable[Record], after: Iterable[Record], *, floor: float = FLOOR, significance: float = SIGNIFICANCE
) -> list[Row]:
    """The newest record of each series of `before` against that of `after`, a row per metric.

    A series or metric that is on one side only is `gone` or `new`.
    """
    olds = {series(record): record for record in latest(before)}
    news = {series(record): record for record in latest(after)}
    rows = []
    for key in sorted(olds.keys() | news.keys()):
        old, new = olds.get(key), news.get(key)
        names = dict.fromkeys([*(old["result"] if old else ()), *(new["result"] if new else ())])
        told = differences(old, new) if old and new else ()
        suspect = any(record is not None and bool(record.get("suspect")) for record in (old, new))
        for name in names:
            a = figure(old["result"][name]) if old and name in old["result"] else None
            b = figure(new["result"][name]) if new and name in new["result"] else None
            rows.append(_row(key, name, a, b, told, suspect, floor, significance))
    return rows


def regressions(rows: Iterable[Row]) -> list[Row]:
    """The rows that became worse beyond noise."""
    return [row for row in rows if row.verdict == "regression"]


def _row(
    key: Series,
    name: str,
    a: Figure | None,
    b: Figure | None,
    differs: tuple[str, ...],
    suspect: bool,
    floor: float,
    significance: float,
) -> Row:
    if a is None or b is None:
        unit = (a or b or Figure(0, None, None, "")).unit
        return Row(key, name, unit, a, b, None, None, "new" if a is None else "gone", differs, suspect)
    change = (b.mean - a.mean) / abs(a.mean) if a.mean else math.inf
    p = welch(a, b)
    verdict = judge(a, b, p, floor=floor, significance=significance)
    return Row(key, name, b.unit, a, b, change if math.isfinite(change) else None, p, verdict, differs, suspect)


def judge(a: Figure, b: Figure, p: float | None, *, floor: float, significance: float) -> Verdict:
    """Whether b is worse than a, better, or the same but for noise. `p`: of Welch's test, None if there is none."""
    direction = DIRECTIONS.get(b.unit, 0)
    if direction == 0 or a.unit != b.unit:
        return "not judged"
    difference = b.mean - a.mean
    if abs(difference) <= max(floor * abs(a.mean), LEAST.get(b.unit, 0.0)):
        return "same"
    if p is None and abs(difference) <= FLOOR_ALONE * abs(a.mean):
        return "same"
    if p is not None and p >= significance:
        return "same"
    return "improvement" if difference * direction > 0 else "regression"


def differences(a: Record, b: Record) -> tuple[str, ...]:
    """What was different beside the figures, such as `governor: ondemand → performance`; only what both tell."""
    old, new = a["conditions"], b["conditions"]
    pairs: dict[str, tuple[str | None, str | None]] = {
        "governor": (old["governor"], new["governor"]),
        "throttled": (old["throttled"]["after"], new["throttled"]["after"]),
        "kernel": (old["kernel"], new["kernel"]),
        "bootloader": (old["bootloader"], new["bootloader"]),
        "board": (old["board"], new["board"]),
        "engine version": (a["engine"]["version"], b["engine"]["version"]),
        "engine commit": (a["engine"]["commit"], b["engine"]["commit"]),
        "engine build": (a["engine"]["build_key"], b["engine"]["build_key"]),
    }
    if a["model"] and b["model"]:
        pairs["model sha256"] = (a["model"]["sha256"], b["model"]["sha256"])
        pairs["model quant"] = (a["model"]["quant"], b["model"]["quant"])
    return tuple(
        f"{name}: {_short(was)} → {_short(is_)}"
        for name, (was, is_) in pairs.items()
        if was is not None and is_ is not None and was != is_
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}…"


# --- Statistics


def welch(a: Figure, b: Figure) -> float | None:
    """The two-sided p of Welch's t-test: how likely so large a difference is by chance. None without both spreads."""
    spreads = _squared_error(a), _squared_error(b)
    if spreads[0] is None or spreads[1] is None:
        return None
    (error_a, n_a), (error_b, n_b) = spreads[0], spreads[1]
    difference, error = abs(a.mean - b.mean), error_a + error_b
    if difference == 0 or math.isinf(error):
        return 1.0
    if error == 0:
        return 0.0
    share = error_a / error  # Welch and Satterthwaite's degrees of freedom, written so that nothing overflows
    freedom = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
    return two_sided_p(difference / math.sqrt(error), freedom)


def _squared_error(told: Figure) -> tuple[float, int] | None:
    """The squared standard error of a mean, and the n behind it."""
    if told.n is None:
        return None
    if told.sd is None and told.unit == "share" and 0 <= told.mean <= 1:
        # A share of n items: one more success and one more failure, so that all of 5 is not without error.
        share, n = (told.mean * told.n + 1) / (told.n + 2), told.n + 2
        return share * (1 - share) / n, n
    return (told.sd / told.n * told.sd, told.n) if told.sd is not None and told.n > 1 else None


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| >= t) of Student's t distribution with `freedom` degrees of freedom (at least 1, any real number).

    With t = sqrt(freedom) * tan(angle) the density becomes cos(angle)^(freedom - 1) but for a constant; it is
    integrated by Simpson's rule from the angle of t to the right one, and divided by the integral from 0.
    """
    if freedom >= _NORMAL_FROM or math.isinf(t):
        return math.erfc(t / math.sqrt(2))
    angle = math.atan(t / math.sqrt(freedom))
    whole = math.sqrt(math.pi) / 2 * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    steps = 400
    width = (math.pi / 2 - angle) / steps
    total = 0.0
    for step in range(steps + 1):
        weight = 1 if step in (0, steps) else 4 if step % 2 else 2
        total += weight * max(math.cos(angle + step * width), 0.0) ** (freedom - 1)
    return min(1.0, total * width / 3 / whole)
