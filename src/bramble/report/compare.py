"""Which figure is better than another, which falls short, and what in the conditions may be why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bramble.records import changes, schema
from bramble.report.model import Figure, Part, Text
from bramble.report.reading import (
    Measurement,
    Series,
    bootloader_date,
    derived,
    throttled_bits,
)

WILSON_Z = 1.96  # 95 %.

PEER_SHARE = 0.10  # Slower than the fastest peer by more than this, and beyond noise.
BOUND_SHARE = 0.5
EXPECTED_DECODE = (4.0, 7.0)  # tok/s of a 3B Q4 on a Pi 5: issue 3.
FAST_LINK = 900.0  # Mbit/s. Gigabit Ethernet carries 941 of TCP payload at an MTU of 1500.
NEW_BOOTLOADER = "2024-12-07"  # Brings SDRAM banking: 6 to 8 % of decode (raspberrypi/documentation#4152).
HOT = 80.0  # °C, from which a Pi 5 slows down (Raspberry Pi documentation, "Frequency management and thermal control").
THREE_B = re.compile(r"(?<![0-9.])3b(?![a-z0-9])", re.IGNORECASE)
Q4 = re.compile(r"(?<![a-z0-9])q4", re.IGNORECASE)
BUSY = re.compile(r"busy|running|load|service", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A competitor: a figure under a name, and its mean with its spread."""

    name: str
    measurement: Measurement
    figure: Figure
    spread: schema.Figure


@dataclass(frozen=True, slots=True)
class Ranking:
    """``best``: the first, and all that cannot be told from it. ``rest``: the others. Both from the best on."""

    best: tuple[Entry, ...]
    rest: tuple[Entry, ...]


def entry(name: str, measurement: Measurement, metric: str) -> list[Entry]:
    """A result as a competitor, in a list; an empty one without that result."""
    figure = measurement.main(metric)
    return (
        []
        if figure is None
        else [Entry(name, measurement, figure, schema.figure(measurement.record["result"][metric]))]
    )


def per_joule(name: str, measurement: Measurement, metric: str) -> list[Entry]:
    """A speed in tok/s over the power in W of the same record: tokens/J. The power's own spread is not known."""
    power = measurement.value("conditions.power_w")
    if power is None or power <= 0:
        return []
    found = []
    for each in entry(name, measurement, metric):
        mean, sd, count, _ = each.spread
        spread = schema.Figure(mean / power, None if sd is None else sd / power, count, "tokens/J")
        found.append(Entry(name, measurement, derived([measurement], f"{metric}_per_joule", spread.mean), spread))
    return found


def differ(one: Entry, other: Entry) -> bool:
    """Whether two figures differ by more than noise, by the rules of `bramble.records.changes`. Symmetric."""
    gap = abs(one.spread.mean - other.spread.mean)
    larger = max(abs(one.spread.mean), abs(other.spread.mean))
    p = changes.welch(one.spread, other.spread)
    if p is None:
        return gap > changes.FLOOR_ALONE * larger
    return gap > changes.FLOOR * larger and p < changes.SIGNIFICANCE


def rank(entries: Iterable[Entry], *, lowest: bool = False) -> Ranking:
    """From the best on; the highest is the best, or the lowest."""
    sign = 1 if lowest else -1
    order = sorted(entries, key=lambda each: (sign * each.figure.value, each.name))
    best = tuple(each for each in order[1:] if not differ(order[0], each))
    rest = tuple(each for each in order[1:] if differ(order[0], each))
    return Ranking((*order[:1], *best), rest)


def wilson(share: float, count: float) -> tuple[float, float] | None:
    """The 95 % interval of a share of ``count`` trials (Wilson 1927); None if that is no share of any."""
    if not 0 <= share <= 1 or count < 1:
        return None
    square = WILSON_Z**2
    centre = share + square / (2 * count)
    half = WILSON_Z * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    scale = 1 + square / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def expects_3b_on_pi5(measurement: Measurement) -> bool:
    """Whether the expectation for a 3B Q4 on a Pi 5 is about this record."""
    name = f"{measurement.model or ''} {measurement.quant or ''}"
    return (
        measurement.is_pi5
        and not measurement.stand_ins
        and not measurement.on_hat
        and bool(THREE_B.search(measurement.model or ""))
        and bool(Q4.search(name))
    )


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One subject that is slower than it should be: by which figures, and what may be why."""

    reasons: tuple[Text, ...]
    causes: tuple[Text, ...]


def shortfall(
    measurements: Sequence[Measurement],
    decode: Measurement | None,
    peers: Mapping[Series, Sequence[Measurement]],
    links: Sequence[Measurement],
) -> Shortfall | None:
    """How a subject falls short; None if it does not.

    ``measurements``: all of the subject. ``decode``: its record of the shallowest and fastest decode. ``peers``: the
    usable records by series, all hosts. ``links``: the network's records that touch the subject's host.
    """
    reasons: list[Text] = []
    concerned: list[Measurement] = []
    slower_than: list[Measurement] = []
    figure = None if decode is None else decode.main("decode")
    if decode is not None and figure is not None:
        if expects_3b_on_pi5(decode) and figure.value < EXPECTED_DECODE[0]:
            low, high = (f"{value:.0f}" for value in EXPECTED_DECODE)
            reasons.append(("decodes ", figure, f" tok/s, where a 3B Q4 on a Pi 5 is expected at {low} to {high}"))
        bound = decode.decode_bound
        if bound is not None and figure.value < BOUND_SHARE * bound:
            share = derived([decode], "bound_share_percent", 100 * figure.value / bound)
            limit = derived([decode], "decode_bound", bound)
            reasons.append(
                (
                    "decodes ",
                    figure,
                    " tok/s, ",
                    share,
                    " % of the ",
                    limit,
                    " tok/s that the memory's bandwidth allows",
                )
            )
        if reasons:
            concerned.append(decode)
    for name, words, lowest, unit in (
        ("decode", "decode", False, "tok/s"),
        ("prefill", "prefill", False, "tok/s"),
        ("ttft", "first token", True, "s"),
    ):
        behind: list[tuple[float, Entry, Entry]] = []
        for each in measurements:
            rivals = [
                one
                for other in peers.get(each.series, ())
                if other.host != each.host
                for one in entry(other.host, other, name)
            ]
            for own in entry(each.host, each, name):
                for top in rank(rivals, lowest=lowest).best[:1]:
                    lost = slower_by(own, top, lowest=lowest)
                    if lost > PEER_SHARE:
                        behind.append((lost, own, top))
        if behind:
            _, own, top = max(behind, key=lambda each: (each[0], each[1].measurement.id))
            seen: Text = (f"{words} ", own.figure, f" {unit} against ", top.figure, f" on {top.name}")
            more: Text = (f" and {len(behind) - 1} more like it",) if len(behind) > 1 else ()
            reasons.append((*seen, *where(own.measurement), *more))
            concerned += [own.measurement for _, own, _ in behind]
            slower_than += [top.measurement for _, _, top in behind]
    if not reasons:
        return None
    causes = find_causes(concerned, slower_than, links)
    return Shortfall(_unique(reasons), _unique(causes) or (("no cause seen in the conditions",),))


def slower_by(own: Entry, top: Entry, *, lowest: bool) -> float:
    """By which share of the better figure the own one is worse; 0 if it is better or the difference is noise."""
    gap = own.spread.mean - top.spread.mean if lowest else top.spread.mean - own.spread.mean
    return gap / abs(top.spread.mean) if gap > 0 and top.spread.mean and differ(own, top) else 0.0


def where(measurement: Measurement) -> Text:
    """Which of a subject's series this is, in brackets: depth and threads, or prompt and concurrency."""
    if measurement.kind == "llama_bench":
        words = (("depth ", "params.depth", ""), ("", "params.threads", " threads"))
    else:
        words = (("", "params.prompt_tokens", " prompt tokens"), ("", "params.concurrency", " at once"))
    parts: list[Part] = []
    for before, path, after in words:
        figure = measurement.figure(path)
        if figure is not None:
            parts += [f"{', ' if parts else ' ('}{before}", figure, *([after] if after else [])]
    return (*parts, ")") if parts else ()


def find_causes(
    concerned: Sequence[Measurement], slower_than: Sequence[Measurement], links: Sequence[Measurement]
) -> list[Text]:
    """What in the conditions of slow records is known to make a node slow."""
    causes: list[Text] = []
    for each in concerned:
        before = throttled_bits(each.condition("throttled", "before"))
        after = throttled_bits(each.condition("throttled", "after"))
        now, earlier = (set[str](), set[str]()) if before is None else map(set, before)
        if after is not None:
            now |= after[0] | (after[1] - earlier)
        if now:
            causes.append((f"{_words(now)} during the run: check the supply and the cooling",))
        if earlier - now:
            causes.append((f"{_words(earlier - now)} since boot, before the run: check the supply and the cooling",))
    temperatures = [figure for each in concerned if (figure := each.figure("conditions.temp_c.after")) is not None]
    hottest = max(temperatures, key=lambda figure: figure.value, default=None)
    if hottest is not None and hottest.value >= HOT:
        causes.append((hottest, f" °C at the end: a Pi 5 slows down from {HOT:.0f} °C on"))
    for each in concerned:
        governor = each.condition("governor")
        if governor is not None and governor != "performance":
            causes.append((f"the governor is {governor}, not performance",))
        date = bootloader_date(each.condition("bootloader"))
        if date is not None and date < NEW_BOOTLOADER and each.is_pi5:
            causes.append((f"the bootloader of {date} is older than {NEW_BOOTLOADER}, which speeds up the memory",))
        causes += [(f"noted: {note}",) for note in each.notes if BUSY.search(note) and "emulat" not in note.lower()]
        others = sorted(
            {
                f"{peer.build_key} on {peer.host}"
                for peer in slower_than
                if peer.series == each.series and peer.build_key and each.build_key and peer.build_key != each.build_key
            }
        )
        if others:
            causes.append((f"another build of {each.engine}: {each.build_key}, and {', '.join(others)}",))
        if each.params.get("peers"):
            causes += slow_links(links)
    return causes


def slow_links(links: Iterable[Measurement]) -> list[Text]:
    """One sentence for each pair that carries less, in a direction, than a good gigabit link does."""
    found: list[Text] = []
    for each in links:
        ways = [(word, figure) for word in ("send", "receive") if (figure := each.main(word)) is not None]
        if any(figure.value < FAST_LINK for _, figure in ways):
            parts: list[Part] = [f"{each.host} to {each.params.get('peer', '?')}:"]
            for word, figure in ways:
                parts += [f"{',' if len(parts) > 1 else ''} {word}s ", figure]
            found.append((*parts, " Mbit/s"))
    return found


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _unique(texts: Iterable[Text]) -> tuple[Text, ...]:
    return tuple(dict.fromkeys(texts))
