"""The few statistics that a benchmark record has. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean. Raises ValueError for no values."""
    if not values:
        raise ValueError("no values")
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation, with n-1 below the root; None for fewer than two values."""
    if len(values) < 2:
        return None
    # Their mean may be a rounding away from them, and the square root of that is no spread.
    if min(values) == max(values):
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` (0 to 100) of the values lie.

    Sorted values v[0] … v[n-1]; position (n-1)·percent/100, between two ranks by linear interpolation: definition 7
    of Hyndman and Fan (The American Statistician, 1996), the default of numpy and R. With five values p95 thus
    lies between the two greatest. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = min(int(position), len(ordered) - 2) if len(ordered) > 1 else 0
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summary(values: Sequence[float], unit: str) -> dict[str, Any]:
    """`mean`, `sd` (None for one value), `n`, `unit`, `p50`, `p95`, `min`, `max`. Raises ValueError for no values."""
    return {
        "mean": mean(values),
        "sd": deviation(values),
        "n": len(values),
        "unit": unit,
        "p50": percentile(values, 50),
        "p95": percentile(values, 95),
        "min": min(values),
        "max": max(values),
    }
