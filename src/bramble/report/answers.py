"""The answers: who is best at what, CPU against NPU, which tasks suit which. Each sentence by its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bramble.records import changes
from bramble.report.compare import (
    FAST_LINK,
    THREE_B,
    Entry,
    differ,
    entry,
    per_joule,
    rank,
    slow_links,
)
from bramble.report.findings import (
    Findings,
    Subject,
    decode_entries,
    find_shortfall,
    joule_entries,
    main_value,
    quality_entries,
    trusted,
    ttft_entries,
)
from bramble.report.model import (
    Block,
    Cell,
    Charts,
    Note,
    Paragraph,
    Part,
    Section,
    Statement,
    Statements,
    Strong,
    Table,
    Text,
    Tone,
)
from bramble.report.reading import UNKNOWN, Measurement, derived, spread_text
from bramble.report.tables import categories, category_words, overview, percentiles, score_text, spread
from bramble.report.words import MEASURE, flat, joined, listed, say

BATCH_SOURCES = {"pmic": "of the board alone, without the HAT", "meter": "by meter"}
READING_SPEED = 5.0  # tok/s: about 4 words/s, what people read (Brysbaert 2019: 238 words/min), at 0.75 words a token.
# s until the first token: beyond two seconds a conversation loses its thread (Miller 1968).
CHAT_TTFT = 2.0
LONG_PROMPT = 2000  # tokens: some four pages.
REFERENCE_CPU, REFERENCE_NPU = "CPU 3B", "NPU 1.5B"
ONE_AND_A_HALF_B = re.compile(r"(?<![0-9.])1\.5b(?![a-z0-9])", re.IGNORECASE)
PMIC_BLIND = "the board's own sensor (PMIC) sees no current of the HAT, USB or fan"


def summarise(findings: Findings) -> tuple[Statement, ...]:
    """The answers, each by the figures that it rests on."""
    decode = decode_entries(findings)
    statement = conclude("Fastest decode", decode, lambda each: (*spread_text(each.measurement, "decode"), " tok/s"))
    if statement is not None and len({each.measurement.kind for each in decode}) > 1:
        mixed = " Some were measured over HTTP and some by llama-bench, which leaves HTTP out."
        statement = Statement((*statement.text, mixed), statement.tone)
    ttft = ttft_entries(findings, findings.prompt)
    answers = [
        statement,
        conclude("Shortest time to the first token", ttft, lambda each: (each.figure, " s"), lowest=True),
        joule_statement(findings),
        conclude("Best quality", quality_entries(findings), lambda each: score_text(each.measurement, "score")),
        reference_statement(findings),
        missing_statement(findings),
    ]
    found = [each for each in answers if each is not None]
    for subject in findings.subjects:
        problem = find_shortfall(findings, subject)
        if problem is not None:
            causes = flat(". Likely cause: ", joined(problem.causes), ".", stand_in(subject.measurements))
            found.append(say(Strong("Falls short"), f": {subject.name}: ", problem.reasons[0], causes, tone=Tone.BAD))
    links = [each for each in findings.usable if each.kind == "net_pair"]
    slow = [each for each in links if slow_links([each])]
    if slow:
        text = flat(
            f": {len(slow)} of {len(links)} pairs. ",
            joined(slow_links(slow[:2])),
            common_end(links, slow),
            stand_in(slow),
        )
        found.append(say(Strong(f"Links below {FAST_LINK:.0f} Mbit/s"), text, tone=Tone.BAD))
    return tuple(found)


def common_end(links: Sequence[Measurement], slow: Sequence[Measurement]) -> str:
    """The node that all slow pairs have in common, if other pairs are not slow."""
    ends = set.intersection(*({each.host, str(each.params.get("peer"))} for each in slow))
    if len(ends) == 1 and len(slow) < len(links):
        return f". All of them have {ends.pop()} at one end: look at its cable, port and switch."
    return "."


def conclude(
    label: str, entries: Sequence[Entry], show: Callable[[Entry], Text], *, lowest: bool = False
) -> Statement | None:
    """Who is first and who comes next, by which figures; None if nobody was measured."""
    ranking = rank(entries, lowest=lowest)
    if not ranking.best:
        return None
    if len(ranking.best) > 1:
        told = flat("no difference seen between ", together(ranking.best, show))
    else:
        told = together(ranking.best, show)
    seconds = rank(ranking.rest, lowest=lowest).best
    if seconds:
        told = flat(told, "; then ", together(seconds, show))
    elif len(ranking.best) == 1:
        told = flat(told, "; nothing else was measured that it could be held against")
    named = (*ranking.best, *seconds)
    return say(Strong(label), ": ", told, ".", *caveat(named), tone=doubt(named))


def together(entries: Sequence[Entry], show: Callable[[Entry], Text]) -> Text:
    """Names and figures; those of the same engine and model in one breath."""
    groups: dict[tuple[str, str | None], list[Entry]] = {}
    for each in entries:
        groups.setdefault((each.measurement.engine, each.measurement.model), []).append(each)
    told = []
    for (engine, model), group in groups.items():
        hosts = listed([(each.measurement.host,) for each in group])
        name = flat(f"{engine} on ", hosts, f" ({model})" if model else "")
        told.append(flat(name, " with ", listed([show(each) for each in group])))
    return listed(told)


def caveat(entries: Iterable[Entry]) -> Text:
    return stand_in(each.measurement for each in entries)


def stand_in(records: Iterable[Measurement]) -> Text:
    """A sentence to add if records are of stand-ins."""
    reasons = sorted({reason for each in records for reason in each.stand_ins})
    return (f" Stand-in: {', '.join(reasons)}.",) if reasons else ()


def doubt(entries: Iterable[Entry]) -> Tone:
    return Tone.WARNING if caveat(entries) else Tone.PLAIN


def joule_statement(findings: Findings) -> Statement | None:
    """Tokens per joule, with what the board's sensor does not see. The HAT is held against others by a meter only."""
    entries, apart = joule_entries(findings)

    def shown(each: Entry) -> Text:
        source = each.measurement.condition("power_source") or "unknown source"
        return (each.figure, f" tokens/J ({source}: ", each.measurement.figure("conditions.power_w") or UNKNOWN, " W)")

    statement = conclude("Most tokens per joule", entries, shown)
    remarks = [f"Not held against the others: {name}, for {reason}." for name, reason in sorted(apart.items())]
    if apart or any(each.measurement.condition("power_source") == "pmic" for each in entries):
        remarks.append(f"Mind that {PMIC_BLIND}.")
    if statement is None:
        return say(Strong("Tokens per joule"), ": ", " ".join(remarks)) if remarks else None
    return Statement(flat(statement.text, "".join(f" {each}" for each in remarks)), statement.tone)


def missing_statement(findings: Findings) -> Statement | None:
    """One sentence for all answers that no record gives."""
    joule, apart = joule_entries(findings)
    answers: tuple[tuple[str, Sequence[object]], ...] = (
        ("decode speed", decode_entries(findings)),
        ("the time to the first token", ttft_entries(findings, findings.prompt)),
        ("power, and with it tokens per joule", [*joule, *apart]),
        ("quality", quality_entries(findings)),
    )
    lacking: list[Text] = [(name,) for name, entries in answers if not entries]
    if not lacking:
        return None
    return say(Strong("Not measured yet"), ": ", listed(lacking), ". ", MEASURE, tone=Tone.WARNING)


def reference_subjects(findings: Findings) -> tuple[tuple[Subject, ...], tuple[Subject, ...]]:
    """llama.cpp with a 3B on each node, and hailo-ollama with a 1.5B; where there is none, what there is."""
    cpu = [each for each in findings.subjects if each.engine == "llama.cpp"]
    npu = [each for each in findings.subjects if each.engine.lower().startswith("hailo")]
    return _reference(cpu, THREE_B, "q4"), _reference(npu, ONE_AND_A_HALF_B, "instruct")


def _reference(subjects: Sequence[Subject], size: re.Pattern[str], word: str) -> tuple[Subject, ...]:
    """The subjects with one model: preferred by size, then Qwen2.5, then the word in its name, then by name."""

    def order(model: str) -> tuple[bool, bool, bool, bool, str]:
        name = model.lower()
        return not size.search(name), "qwen2.5" not in name, word not in name, "coder" in name, name

    names = sorted({each.model for each in subjects if each.model is not None}, key=order)
    return tuple(each for each in subjects if names and each.model == names[0])


def reference_statement(findings: Findings) -> Statement | None:
    """The best node's CPU against the HAT, figure by figure."""
    cpu, npu = reference_subjects(findings)
    if not cpu or not npu:
        return None

    def best(subjects: Sequence[Subject], entries: Sequence[Entry], *, lowest: bool = False) -> Entry | None:
        names = {each.name for each in subjects}
        ranking = rank([each for each in entries if each.name in names], lowest=lowest)
        return ranking.best[0] if ranking.best else None

    decode, ttft, joule, quality = (
        decode_entries(findings),
        ttft_entries(findings, findings.prompt),
        joule_entries(findings)[0],
        quality_entries(findings),
    )
    found: list[Text] = []
    entries: list[Entry] = []
    for label, unit, competitors, lowest in (
        ("decode", " tok/s", decode, False),
        ("first token after", " s", ttft, True),
        ("tokens per joule", "", joule, False),
        ("quality", "", quality, False),
    ):
        one, other = best(cpu, competitors, lowest=lowest), best(npu, competitors, lowest=lowest)
        if one is None or other is None:
            continue
        entries += [one, other]
        verdict = "no difference seen"
        if differ(one, other):
            verdict = f"the {'CPU' if (one.figure.value < other.figure.value) == lowest else 'NPU'} is ahead"
        found.append(flat(f"{label} ", one.figure, " against ", other.figure, f"{unit} ({verdict})"))
    if not found:
        return None
    heads = f"CPU ({cpu[0].model}, best node) against NPU ({npu[0].model})"
    return say(Strong(heads), ": ", joined(found), ".", *caveat(entries), tone=doubt(entries))


def reference_section(findings: Findings) -> Section:
    cpu, npu = reference_subjects(findings)
    blocks: list[Block] = []
    for name, subjects, engine in ((REFERENCE_CPU, cpu, "llama.cpp"), (REFERENCE_NPU, npu, "hailo-ollama")):
        size = THREE_B if name == REFERENCE_CPU else ONE_AND_A_HALF_B
        if not subjects:
            blocks.append(Note(flat(f"No record of {engine}, so {name} is missing here. ", MEASURE)))
        elif not size.search(subjects[0].model or ""):
            blocks.append(Note((f"{name} has not been measured; {subjects[0].model} stands in its place.",)))
    subjects = (*npu, *cpu)
    if subjects:
        rows: list[tuple[str, list[Text]]] = [
            ("Model", [(each.model or UNKNOWN,) for each in subjects]),
            ("Decode over HTTP, tok/s", [spread(each.alone(findings.prompt), "decode") for each in subjects]),
            ("Decode by llama-bench, tok/s", [spread(each.bench, "decode") for each in subjects]),
            ("First token, mean, s", [spread(each.alone(findings.prompt), "ttft") for each in subjects]),
            ("First token, p50 / p95, s", [percentiles(each.alone(findings.prompt), "ttft") for each in subjects]),
            ("Prefill by llama-bench, tok/s", [spread(each.prefill, "prefill") for each in subjects]),
            ("Quality, share right (95 %)", [_score(each) for each in subjects]),
            ("Power while decoding, W", [_power(each, findings.prompt) for each in subjects]),
            ("Tokens per joule", [_joules(each, findings.prompt) for each in subjects]),
        ]
        blocks.append(
            Table(
                f"{REFERENCE_CPU} on each node against {REFERENCE_NPU}",
                ("", *(f"{each.engine} on {each.host}" for each in subjects)),
                tuple((Cell((head,)), *(Cell(text) for text in texts)) for head, texts in rows),
            )
        )
        if findings.prompt is not None:
            record = next((each.alone(findings.prompt) for each in subjects if each.alone(findings.prompt)), None)
            figure = None if record is None else record.figure("params.prompt_tokens")
            if figure is not None:
                blocks.append(
                    Paragraph(("HTTP figures are of one request at a time with about ", figure, " prompt tokens."))
                )
        if any(each.powered(findings.prompt) for each in subjects):
            blocks.append(
                Paragraph((f"Power and what follows from it: {PMIC_BLIND}. A meter at the wall sees all of it.",))
            )
        charts = overview(findings, subjects)
        if charts:
            blocks.append(Charts(charts))
    return Section("cpu-npu", "CPU against NPU", tuple(blocks))


def _power(subject: Subject, prompt: float | None) -> Text:
    record = subject.powered(prompt)
    figure = None if record is None else record.figure("conditions.power_w")
    if record is None or figure is None:
        return ("not known",)
    source = record.condition("power_source") or "unknown source"
    return (figure, f" ({source}{', without the HAT' if source != 'meter' and record.on_hat else ''})")


def _score(subject: Subject) -> Text:
    exams = [each for each in subject.of("quality") if each.main("score") is not None]
    return score_text(max(exams, key=lambda each: each.age), "score") if exams else (UNKNOWN,)


def _joules(subject: Subject, prompt: float | None) -> Text:
    record = subject.powered(prompt)
    if record is None:
        return ("not known",)
    figure = per_joule(subject.name, record, "decode")[0].figure
    if record.on_hat and record.condition("power_source") != "meter":
        return ("below ", figure, ": the HAT's own power is missing in it")
    return (figure,)


def tasks_section(findings: Findings) -> Section:
    """Each sentence holds the figures that it rests on. What has no record is not said."""
    statements = [
        *chat_statements(findings),
        *long_prompt_statements(findings),
        *category_statements(findings),
        *batch_statements(findings),
    ]
    blocks: list[Block] = [
        Paragraph(
            (
                "Computed from the figures. Two of them differ if it is by more than "
                f"{100 * changes.FLOOR:.0f} % and chance explains it with less than {100 * changes.SIGNIFICANCE:.0f} % "
                f"(Welch's test), or, where no spread is on record, by more than {100 * changes.FLOOR_ALONE:.0f} %.",
            )
        )
    ]
    if statements:
        blocks.append(Statements(tuple(statements)))
    else:
        blocks.append(
            Note(
                flat(
                    "No record says anything about tasks yet: speed over HTTP, prefill and quality are missing. ",
                    MEASURE,
                )
            )
        )
    return Section("tasks", "Which tasks suit which", tuple(blocks))


def chat_statements(findings: Findings) -> list[Statement]:
    """Interactive chat: the first token within two seconds, then faster than people read."""
    fit: list[Text] = []
    unfit: list[Text] = []
    entries: list[Entry] = []
    for own in ttft_entries(findings, findings.prompt):
        record, name = own.measurement, own.name
        speed = record.main("decode")
        if speed is None:
            continue
        entries.append(own)
        told = flat(name, " (first token after ", own.figure, " s, then ", spread_text(record, "decode"), " tok/s)")
        lacks = []
        if own.figure.value > CHAT_TTFT:
            lacks.append("starts late")
        if speed.value < READING_SPEED:
            lacks.append("is slower than one reads")
        if lacks:
            unfit.append(flat(told, f", which {' and '.join(lacks)}"))
        else:
            fit.append(told)
    if not entries:
        return []
    prompt = entries[0].measurement.figure("params.prompt_tokens") or UNKNOWN
    limits = (
        f"first token within {CHAT_TTFT:.0f} s, then at least {READING_SPEED:.0f} tok/s, about as fast as one reads"
    )
    parts: list[Part | Text] = [Strong("Interactive chat"), " (prompts of ", prompt, f" tokens; {limits}): "]
    parts += [listed(fit), "."] if fit else ["none of those measured."]
    if unfit:
        parts += [" Not: ", joined(unfit), "."]
    return [say(*parts, *caveat(entries), tone=doubt(entries))]


def long_prompt_statements(findings: Findings) -> list[Statement]:
    """Long prompts: by prefill, and over HTTP by the first token after the longest prompt that most were given."""
    found: list[Statement] = []
    entries = trusted(
        own
        for subject in findings.subjects
        if subject.prefill is not None
        for own in entry(subject.name, subject.prefill, "prefill")
    )

    def prefill(each: Entry) -> Text:
        wait = LONG_PROMPT / each.figure.value if each.figure.value > 0 else None
        told: Text = (*spread_text(each.measurement, "prefill"), " tok/s")
        if wait is None:
            return told
        return (
            *told,
            f", so {LONG_PROMPT} tokens take about ",
            derived([each.measurement], "long_prompt_seconds", wait),
            " s",
        )

    statement = conclude("Long prompts, by llama-bench", entries, prefill)
    if statement is not None:
        found.append(statement)
    if findings.long_prompt is not None:
        others = ttft_entries(findings, findings.long_prompt)

        def wait(each: Entry) -> Text:
            tokens = each.measurement.figure("params.prompt_tokens")
            return (each.figure, " s to the first token of ", tokens or "?", " prompt tokens")

        statement = conclude("Long prompts, over HTTP", others, wait, lowest=True)
        if statement is not None:
            found.append(statement)
    return found


def category_statements(findings: Findings) -> list[Statement]:
    """For each category of the exam, who scores best."""
    found = []
    for category in categories(each for each in findings.usable if each.kind == "quality"):
        show = partial(scored, metric=f"score_{category}")
        statement = conclude(category_words(category), quality_entries(findings, f"score_{category}"), show)
        if statement is not None:
            found.append(statement)
    return found


def scored(each: Entry, metric: str) -> Text:
    return score_text(each.measurement, metric)


def batch_statements(findings: Findings) -> list[Statement]:
    """Batches: the most tokens for the energy, at the concurrency that gives most; else the most in a second."""
    by_source: dict[str, list[Entry]] = {}
    fastest: list[Entry] = []
    for subject in findings.subjects:
        loads = [each for each in subject.of("http_generate") if each.main("throughput") is not None]
        if not loads:
            continue
        record = max(loads, key=lambda each: (main_value(each, "throughput"), each.id))
        fastest += entry(subject.name, record, "throughput")
        source = record.condition("power_source") or "unknown source"
        if source == "meter" or not record.on_hat:
            by_source.setdefault(source, []).extend(per_joule(subject.name, record, "throughput"))

    def load(each: Entry) -> Text:
        streams = each.measurement.figure("params.concurrency")
        return () if streams is None else (" (streams: ", streams, ")")

    def joules(each: Entry) -> Text:
        return flat(each.figure, " tokens/J", load(each))

    def speed(each: Entry) -> Text:
        return flat(each.figure, " tok/s", load(each))

    statements = [
        conclude(f"Batches, by joule ({BATCH_SOURCES.get(source, source)})", trusted(entries), joules)
        for source, entries in sorted(by_source.items())
    ]
    statements.append(conclude("Batches, by time", trusted(fastest), speed))
    return [each for each in statements if each is not None]
