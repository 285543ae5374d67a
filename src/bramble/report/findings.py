"""What the records say, sorted by who is compared with whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bramble.report.compare import Entry, Shortfall, entry, per_joule, shortfall, wilson
from bramble.report.model import Figure
from bramble.report.reading import Measurement, Series, rounded


@dataclass(frozen=True)
class Subject:
    """An engine with a model on a host: what is compared. ``measurements``: the newest of each series, none suspect."""

    host: str
    engine: str
    model: str | None
    measurements: tuple[Measurement, ...]

    @property
    def name(self) -> str:
        return f"{self.engine} on {self.host}" + (f" ({self.model})" if self.model else "")

    def of(self, kind: str) -> tuple[Measurement, ...]:
        return tuple(each for each in self.measurements if each.kind == kind)

    @cached_property
    def bench(self) -> Measurement | None:
        """The llama-bench record of the shallowest and there fastest decode."""
        found = [each for each in self.of("llama_bench") if each.main("decode") is not None]
        order = sorted(found, key=lambda each: (each.value("params.depth") or 0, -main_value(each, "decode"), each.id))
        return order[0] if order else None

    @cached_property
    def prefill(self) -> Measurement | None:
        """The llama-bench record of the fastest prefill at the least depth."""
        found = [each for each in self.of("llama_bench") if each.main("prefill") is not None]
        order = sorted(found, key=lambda each: (each.value("params.depth") or 0, -main_value(each, "prefill"), each.id))
        return order[0] if order else None

    def alone(self, prompt: float | None) -> Measurement | None:
        """The record of requests one at a time, with prompts of so many tokens."""
        found = [each for each in self.of("http_generate") if (each.value("params.concurrency") or 1) == 1]
        found = [each for each in found if each.value("params.prompt_tokens") == prompt]
        order = sorted(found, key=lambda each: (-(each.value("params.max_tokens") or 0), str(each.params), each.id))
        return order[0] if order else None

    def decode(self, prompt: float | None) -> Measurement | None:
        """The record that speaks for its decode speed: over HTTP if there is one, else llama-bench."""
        over_http = self.alone(prompt)
        return over_http if over_http is not None and over_http.main("decode") is not None else self.bench

    def powered(self, prompt: float | None) -> Measurement | None:
        """The record that speaks for its decode speed and knows the power, in W, meanwhile."""
        for each in (self.alone(prompt), self.bench):
            if each is not None and each.main("decode") is not None and (each.value("conditions.power_w") or 0) > 0:
                return each
        return None


@dataclass(frozen=True)
class Findings:
    """The records, sorted for the sections."""

    usable: tuple[Measurement, ...]
    suspect: tuple[Measurement, ...]
    subjects: tuple[Subject, ...]
    prompt: float | None
    long_prompt: float | None

    @property
    def shown(self) -> tuple[Measurement, ...]:
        return tuple(sorted((*self.usable, *self.suspect), key=lambda each: (each.host, each.age)))


def sort_out(usable: Sequence[Measurement], suspect: Sequence[Measurement]) -> Findings:
    """The subjects, and the prompts at which they are compared: of the lengths that most have, the ends."""
    groups: dict[tuple[str, str, str | None], list[Measurement]] = {}
    for each in usable:
        if each.kind != "net_pair":
            groups.setdefault((each.host, each.engine, each.model), []).append(each)
    subjects = tuple(
        Subject(host, engine, model, tuple(found))
        for (host, engine, model), found in sorted(groups.items(), key=lambda item: tuple(map(str, item[0])))
    )
    lengths: dict[float, int] = {}
    for subject in subjects:
        own = {each.value("params.prompt_tokens") for each in subject.of("http_generate")}
        for length in own - {None}:
            if subject.alone(length) is not None:
                lengths[length or 0] = lengths.get(length or 0, 0) + 1
    most = max(lengths.values(), default=0)
    common = sorted(length for length, count in lengths.items() if count == most)
    long_prompt = common[-1] if len(common) > 1 else None
    return Findings(tuple(usable), tuple(suspect), subjects, common[0] if common else None, long_prompt)


def trusted(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of real hardware and models, if there is one; else all."""
    everything = list(entries)
    return [each for each in everything if not each.measurement.stand_ins] or everything


def decode_entries(findings: Findings) -> list[Entry]:
    found: list[Entry] = []
    for subject in findings.subjects:
        record = subject.decode(findings.prompt)
        if record is not None:
            found += entry(subject.name, record, "decode")
    return trusted(found)


def ttft_entries(findings: Findings, prompt: float | None) -> list[Entry]:
    found: list[Entry] = []
    for subject in findings.subjects:
        record = subject.alone(prompt)
        if record is not None:
            found += entry(subject.name, record, "ttft")
    return trusted(found)


def quality_entries(findings: Findings, metric: str = "score") -> list[Entry]:
    """By subject; of several exams the newest."""
    found: list[Entry] = []
    for subject in findings.subjects:
        exams = [each for each in subject.of("quality") if each.main(metric) is not None]
        for record in sorted(exams, key=lambda each: each.age)[-1:]:
            found += entry(subject.name, record, metric)
    return trusted(found)


def interval(record: Measurement, metric: str) -> tuple[Figure | None, Figure | None]:
    """The 95 % interval of a score: the record's, else Wilson's by its number of items."""
    low, high = record.figure(f"result.{metric}.low"), record.figure(f"result.{metric}.high")
    if low is not None and high is not None:
        return low, high
    share, count = record.main(metric), record.value(f"result.{metric}.n")
    limits = None if share is None or count is None else wilson(share.value, count)
    if limits is None:
        return None, None
    low, high = (
        Figure((record.id,), f"derived.wilson_{end}", value, rounded(value, 2))
        for end, value in zip(("low", "high"), limits, strict=True)
    )
    return low, high


def joule_entries(findings: Findings) -> tuple[list[Entry], dict[str, str]]:
    """Tokens per joule of those that can be held against each other; and of the others, by name, why not.

    A meter's watts and the board's own (PMIC) are not the same watts: if two have a meter's, those count. The HAT's are
    not among the board's own.
    """
    by_source: dict[str, list[Entry]] = {}
    apart: dict[str, str] = {}
    for subject in findings.subjects:
        record = subject.powered(findings.prompt)
        if record is None:
            continue
        source = record.condition("power_source") or "unknown source"
        if record.on_hat and source != "meter":
            apart[subject.name] = "only a meter sees what the HAT takes"
        else:
            by_source.setdefault(source, []).append(per_joule(subject.name, record, "decode")[0])
    return trusted(one_source(by_source, apart)), apart


def one_source(by_source: Mapping[str, list[Entry]], apart: dict[str, str]) -> list[Entry]:
    """The entries of the source that counts: a meter if it has two, else the one that has most. The others go apart."""

    def weight(source: str) -> tuple[bool, int, str]:
        return source == "meter" and len(by_source[source]) > 1, len(by_source[source]), source

    chosen = max(by_source, key=weight, default="")
    for source, entries in by_source.items():
        if source != chosen:
            apart.update({each.name: f"its watts are from another source ({source})" for each in entries})
    return by_source.get(chosen, [])


def find_shortfall(findings: Findings, subject: Subject) -> Shortfall | None:
    """How a subject falls short of expectation, bound and peers; None if it does not."""
    peers: dict[Series, list[Measurement]] = {}
    for each in findings.usable:
        peers.setdefault(each.series, []).append(each)
    links = [
        each
        for each in findings.usable
        if each.kind == "net_pair" and subject.host in (each.host, str(each.params.get("peer")))
    ]
    return shortfall(subject.measurements, subject.bench or subject.decode(findings.prompt), peers, links)


def main_value(record: Measurement, metric: str) -> float:
    figure = record.main(metric)
    return 0.0 if figure is None else figure.value
