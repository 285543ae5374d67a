"""What a report wants to know of a benchmark record, and how its numbers are written."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bramble.records import physics, query
from bramble.records.schema import Record
from bramble.report.model import Figure, Part, Text

STAND_IN_MODEL = "bramble-"  # What `bramble model synth` and the lab name their models: random weights.
PI5_BOARD = re.compile(r"Raspberry Pi (?:5|500\+?|Compute Module 5)(?: |$)")  # /proc/device-tree/model
# vcgencmd get_throttled (Raspberry Pi documentation, "vcgencmd"): the low bits are now, 16 higher since boot.
THROTTLED_BITS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
RAW_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
UNKNOWN = "-"

type Series = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """A benchmark record, with the questions that a report asks of it."""

    record: Record

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def host(self) -> str:
        return self.record["host"]

    @property
    def started_at(self) -> str:
        return self.record["started_at"]

    @property
    def kind(self) -> str:
        return self.record["kind"]

    @property
    def engine(self) -> str:
        return self.record["engine"]["name"]

    @property
    def build_key(self) -> str | None:
        return self.record["engine"]["build_key"]

    @property
    def model(self) -> str | None:
        model = self.record["model"]
        return None if model is None else model["name"]

    @property
    def quant(self) -> str | None:
        model = self.record["model"]
        return None if model is None else model["quant"]

    @property
    def params(self) -> Mapping[str, Any]:
        return self.record["params"]

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(self.record["conditions"]["notes"])

    @property
    def suspect(self) -> tuple[str, ...]:
        return tuple(self.record.get("suspect") or ())

    @property
    def age(self) -> tuple[str, str]:
        """What sorts records by time."""
        return self.started_at, self.id

    @property
    def series(self) -> Series:
        """What records of the same thing on different hosts have in common."""
        return tuple(query.series(self.record)[1:])

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Why its figures say nothing about real hardware or a real model; empty if they do."""
        reasons = []
        if self.model is not None and self.model.lower().startswith(STAND_IN_MODEL):
            reasons.append("random weights")
        if any("emulat" in note.lower() for note in self.notes):
            reasons.append("emulated hardware")
        return tuple(reasons)

    @property
    def is_pi5(self) -> bool:
        return bool(PI5_BOARD.match(self.condition("board") or ""))

    @property
    def on_hat(self) -> bool:
        """Whether the AI HAT's processor ran the model: its memory is its own, and the board does not see its power."""
        return self.engine.startswith("hailo")

    @property
    def decode_bound(self) -> float | None:
        """The tokens/s that the memory's bandwidth allows; None where it is not known, or the hardware is not real."""
        return None if "emulated hardware" in self.stand_ins else physics.bound(self.record)

    def condition(self, *path: str) -> str | None:
        """A condition in words; None if it is not known."""
        found = _at(self.record["conditions"], path)
        return None if found is None or isinstance(found, dict | list) else str(found)

    def value(self, metric: str) -> float | None:
        """The number at a path of the record, such as ``result.decode.mean``; None if there is no finite number."""
        return number(_at(self.record, metric.split(".")))

    def figure(self, metric: str) -> Figure | None:
        """The number at a path, with its source."""
        value = self.value(metric)
        if value is None:
            return None
        places = 2 if self.kind == "quality" and metric.startswith("result.") and metric[-2:] != ".n" else None
        if metric.endswith(".mean"):
            places = decimals(value)  # 5.00 beside its deviation of 0.04, not 5.
        return Figure((self.id,), metric, value, rounded(value, places))

    def main(self, name: str) -> Figure | None:
        """A result's main number, its mean or its value, with its source."""
        return self.figure(f"result.{name}.mean") or self.figure(f"result.{name}.value")

    def deviation(self, name: str) -> Figure | None:
        """A result's standard deviation, rounded as its mean is."""
        mean, spread = self.value(f"result.{name}.mean"), self.value(f"result.{name}.sd")
        if mean is None or spread is None:
            return None
        return Figure((self.id,), f"result.{name}.sd", spread, rounded(spread, decimals(mean)))


def latest(records: Iterable[Record]) -> tuple[Measurement, ...]:
    """The newest of each series, by host and time."""
    return tuple(sorted(map(Measurement, query.latest(records)), key=lambda each: (each.host, each.age)))


def number(value: object) -> float | None:
    """A finite number of JSON as it is; None for all else (a bool is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # An integer beyond the floats.
        return None


def decimals(value: float) -> int:
    """Digits after the point that leave about three significant ones."""
    size = abs(value)
    return 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3


def rounded(value: float, places: int | None = None) -> str:
    """A number for people: about three significant digits, a whole number whole. No exponent below 10^15."""
    if places is None:
        places = 0 if value == int(value) else decimals(value)
    return f"{value:.{places}f}" if abs(value) < 1e15 else f"{value:.3g}"


def derived(records: Iterable[Measurement], name: str, value: float) -> Figure:
    """A number that was computed from records."""
    return Figure(tuple(dict.fromkeys(each.id for each in records)), f"derived.{name}", value, rounded(value))


def percent(records: Iterable[Measurement], name: str, value: float) -> Figure:
    """A share in % that was computed from records: to one digit after the point below 10."""
    figure = derived(records, name, value)
    return replace(figure, text=rounded(value, 1 if abs(value) < 10 else 0))


def spread_text(measurement: Measurement, name: str) -> Text:
    """``5.10 ± 0.04``, or as much of it as there is."""
    main, spread = measurement.main(name), measurement.deviation(name)
    parts: tuple[Part, ...] = () if main is None else (main,)
    return ((*parts, " ± ", spread) if spread is not None else parts) or (UNKNOWN,)


def throttled_bits(raw: str | None) -> tuple[frozenset[str], frozenset[str]] | None:
    """What `vcgencmd get_throttled` says: (now, since boot); None if it is no number."""
    try:
        bits = int(raw or "", 16)
    except ValueError:
        return None
    now = frozenset(name for place, name in enumerate(THROTTLED_BITS) if bits >> place & 1)
    since = frozenset(name for place, name in enumerate(THROTTLED_BITS) if bits >> (place + 16) & 1)
    return now, since


def bootloader_date(text: str | None) -> str | None:
    """The date in a bootloader's version, as YYYY-MM-DD."""
    found = re.search(r"(\d{4})[-/](\d{2})[-/](\d{2})", text or "")
    return None if found is None else "-".join(found.groups())


def raw_path(raw: str | None) -> str | None:
    """The path of the kept log if it is a plain relative one, else None: a record must not lead a reader elsewhere."""
    return raw if raw is not None and RAW_PATH.fullmatch(raw) and ".." not in raw.split("/") else None


def _at(source: object, path: Sequence[str]) -> object:
    """What lies at a path; None if there is nothing. A name may have dots, as that of a host may, and spans parts."""
    if not path:
        return source
    if isinstance(source, Mapping):
        for end in range(1, len(path) + 1):
            found = _at(source.get(".".join(path[:end])), path[end:])
            if found is not None:
                return found
    return None
