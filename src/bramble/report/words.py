"""Sentences and cells out of figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bramble.report.model import (
    Cell,
    Code,
    Link,
    Part,
    Statement,
    Text,
    Tone,
)
from bramble.report.reading import UNKNOWN, Measurement

MEASURE: Text = (Code("bramble bench"), " measures it.")


def say(*parts: Part | Text, tone: Tone = Tone.PLAIN) -> Statement:
    """A sentence out of parts and texts."""
    return Statement(flat(*parts), tone)


def flat(*parts: Part | Text) -> Text:
    """One text out of parts and texts."""
    found: list[Part] = []
    for part in parts:
        found += part if isinstance(part, tuple) else (part,)
    return tuple(found)


def listed(texts: Sequence[Text], separator: str = ", ", last: str = " and ") -> Text:
    """``a, b and c``."""
    found: list[Part] = []
    for place, text in enumerate(texts):
        if place:
            found.append(last if place == len(texts) - 1 else separator)
        found += text
    return tuple(found)


def joined(texts: Sequence[Text]) -> Text:
    """``a; b; c``: for texts that have commas."""
    return listed(texts, "; ", "; ")


def anchor(*words: str) -> str:
    """A name for a place on the page: letters, digits, hyphens. Other characters keep names apart by their number."""
    return "-".join(re.sub(r"[^A-Za-z0-9]", lambda found: f"_{ord(found[0]):x}", word) for word in words)


def reference(record: Measurement) -> Cell:
    """The record, by its first letters, with a link to its conditions."""
    return Cell((Link(record.id[:8], f"#{anchor('record', record.id)}"),))


def cell(record: Measurement, path: str) -> Cell:
    return Cell((record.figure(path) or UNKNOWN,))


def watts(record: Measurement) -> Text:
    figure = record.figure("conditions.power_w")
    return (UNKNOWN,) if figure is None else (figure, f" ({record.condition('power_source') or 'unknown source'})")
