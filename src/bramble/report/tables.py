"""The tables and charts of the report: nodes and engines, network, quality, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bramble.report.compare import EXPECTED_DECODE, FAST_LINK, Entry, expects_3b_on_pi5, slow_links, where
from bramble.report.findings import Findings, Subject, find_shortfall, interval, quality_entries
from bramble.report.model import (
    Bar,
    Block,
    Cell,
    Chart,
    Charts,
    Figure,
    Link,
    Note,
    Paragraph,
    Part,
    Section,
    Statements,
    Strong,
    Table,
    Text,
    Tone,
)
from bramble.report.reading import UNKNOWN, Measurement, derived, raw_path, spread_text
from bramble.report.words import (
    MEASURE,
    anchor,
    cell,
    flat,
    joined,
    reference,
    say,
    watts,
)

MOST_LINKS = 8  # Told one by one.
CATEGORY_WORDS = {
    "extraction": "Extraction",
    "format": "Output in a given format",
    "code": "Code",
    "arithmetic": "Arithmetic",
    "instructions": "Following instructions",
    "knowledge": "Knowledge",
}


def overview(findings: Findings, subjects: Sequence[Subject]) -> tuple[Chart, ...]:
    """Decode and first token, a bar for each subject."""
    decode = [drawn for each in subjects for drawn in bar(each.name, each.decode(findings.prompt), "decode")]
    ttft = [drawn for each in subjects for drawn in ttft_bar(each.name, each.alone(findings.prompt))]
    charts = [Chart("Decode", "tok/s", tuple(decode))] if decode else []
    if ttft:
        charts.append(Chart("Time to the first token", "s", tuple(ttft), mark_name="p95"))
    return tuple(charts)


def bar(label: str, record: Measurement | None, metric: str) -> list[Bar]:
    figure = None if record is None else record.main(metric)
    return [] if record is None or figure is None else [Bar(label, figure, record.deviation(metric))]


def score_bar(each: Entry) -> Bar:
    low, high = interval(each.measurement, "score")
    return Bar(each.name, each.figure, interval=None if low is None or high is None else (low, high))


def ttft_bar(label: str, record: Measurement | None) -> list[Bar]:
    if record is None:
        return []
    figure = record.figure("result.ttft.p50") or record.main("ttft")
    return [] if figure is None else [Bar(label, figure, mark=record.figure("result.ttft.p95"))]


def spread(record: Measurement | None, metric: str) -> Text:
    return (UNKNOWN,) if record is None else spread_text(record, metric)


def percentiles(record: Measurement | None, metric: str) -> Text:
    if record is None:
        return (UNKNOWN,)
    median, high = record.figure(f"result.{metric}.p50"), record.figure(f"result.{metric}.p95")
    return (UNKNOWN,) if median is None and high is None else (median or UNKNOWN, " / ", high or UNKNOWN)


def score_text(record: Measurement, metric: str) -> Text:
    """A score with its interval."""
    figure = record.main(metric)
    low, high = interval(record, metric)
    if figure is None:
        return (UNKNOWN,)
    return (figure,) if low is None or high is None else (figure, " (", low, " to ", high, ")")


def categories(exams: Iterable[Measurement]) -> tuple[str, ...]:
    """The exams' categories, by name."""
    names = {str(name) for each in exams for name in each.record["result"] if each.main(str(name)) is not None}
    return tuple(sorted(name.removeprefix("score_") for name in names if name.startswith("score_")))


def category_words(category: str) -> str:
    return CATEGORY_WORDS.get(category, category.replace("_", " ").capitalize())


def nodes_section(findings: Findings, *, all_compared: bool) -> Section:
    """A part for each host, and in it for each engine and model: tables, charts, and where it falls short.

    ``all_compared``: the charts of all subjects stand in another section already.
    """
    hosts = sorted({each.host for each in findings.usable if each.kind in ("llama_bench", "http_generate")})
    blocks: list[Block] = []
    for kind, what in (("llama_bench", "llama-bench"), ("http_generate", "requests over HTTP")):
        if not any(each.kind == kind for each in findings.usable):
            blocks.append(Note(flat(f"No record of {what} ({kind}) yet. ", MEASURE)))
    charts = overview(findings, findings.subjects)
    if charts and len(findings.subjects) > 1 and not all_compared:
        blocks.append(Charts(charts))
    return Section("nodes", "Nodes and engines", tuple(blocks), tuple(host_section(findings, host) for host in hosts))


def host_section(findings: Findings, host: str) -> Section:
    newest = max((each for each in findings.usable if each.host == host), key=lambda each: each.age)
    words = [("board", ("board",)), ("kernel", ("kernel",)), ("governor", ("governor",))]
    facts = [
        f"{name} {told}"
        for name, path in (*words, ("bootloader", ("bootloader",)))
        if (told := newest.condition(*path))
    ]
    blocks: list[Block] = []
    if facts:
        blocks.append(Paragraph((f"{', '.join(facts)}.",)))
    sections = tuple(
        subject_section(findings, subject)
        for subject in findings.subjects
        if subject.host == host and (subject.of("llama_bench") or subject.of("http_generate"))
    )
    return Section(anchor("node", host), host, tuple(blocks), sections)


def subject_section(findings: Findings, subject: Subject) -> Section:
    blocks: list[Block] = []
    problem = find_shortfall(findings, subject)
    if problem is not None:
        blocks.append(
            Note(
                flat(
                    Strong("Falls short"),
                    ": ",
                    joined(problem.reasons),
                    ". ",
                    Strong("Likely cause"),
                    ": ",
                    joined(problem.causes),
                    ".",
                ),
                Tone.BAD,
            )
        )
    benches = sorted(
        subject.of("llama_bench"),
        key=lambda each: (
            each.value("params.depth") or 0,
            each.value("params.threads") or 0,
            str(each.params),
            each.id,
        ),
    )
    requests = sorted(
        subject.of("http_generate"),
        key=lambda each: (
            str(each.params.get("api")),
            each.value("params.prompt_tokens") or 0,
            each.value("params.concurrency") or 0,
            str(each.params),
            each.id,
        ),
    )
    if benches:
        blocks.append(bench_table(benches))
    if requests:
        blocks.append(request_table(requests))
    charts = (*bench_charts(benches), *request_charts(requests))
    if charts:
        blocks.append(Charts(charts))
    if any(each.decode_bound is not None for each in benches):
        blocks.append(
            Paragraph(
                ("The limit is the memory's bandwidth over the bytes of the weights: each token reads them all.",)
            )
        )
    title = f"{subject.engine}" + (f", {subject.model}" if subject.model else "")
    return Section(anchor("subject", subject.host, subject.engine, subject.model or ""), title, tuple(blocks))


def bench_table(records: Sequence[Measurement]) -> Table:
    rows = []
    for each in records:
        bound, decode = each.decode_bound, each.main("decode")
        share: Text = (UNKNOWN,)
        if bound is not None and decode is not None:
            share = (derived([each], "bound_share_percent", 100 * decode.value / bound), " %")
        rows.append(
            (
                reference(each),
                cell(each, "params.depth"),
                cell(each, "params.threads"),
                Cell((each.figure("params.n_prompt") or UNKNOWN, " / ", each.figure("params.n_gen") or UNKNOWN)),
                Cell(spread_text(each, "prefill")),
                Cell(spread_text(each, "decode")),
                Cell(share),
                cell(each, "result.decode.n"),
                Cell(watts(each)),
            )
        )
    columns = (
        *("Record", "Depth", "Threads", "Prompt / generated", "Prefill, tok/s", "Decode, tok/s", "Of the limit"),
        *("Runs", "Power, W"),
    )
    return Table("llama-bench: the engine alone, mean ± standard deviation", columns, tuple(rows))


def request_table(records: Sequence[Measurement]) -> Table:
    rows = tuple(
        (
            reference(each),
            Cell((str(each.params.get("api") or UNKNOWN),)),
            cell(each, "params.prompt_tokens"),
            cell(each, "params.max_tokens"),
            cell(each, "params.concurrency"),
            Cell(spread_text(each, "ttft")),
            Cell(percentiles(each, "ttft")),
            Cell(spread_text(each, "decode")),
            Cell((each.main("throughput") or UNKNOWN,)),
            Cell((each.main("total") or UNKNOWN,)),
            cell(each, "params.requests"),
            Cell(watts(each)),
        )
        for each in records
    )
    columns = (
        *("Record", "API", "Prompt tokens", "Most answer tokens", "At once", "First token, s", "p50 / p95, s"),
        *("Decode of a stream, tok/s", "All streams, tok/s", "Total, s", "Requests", "Power, W"),
    )
    return Table("Over HTTP: what a client sees, mean ± standard deviation", columns, rows)


def bench_charts(records: Sequence[Measurement]) -> tuple[Chart, ...]:
    """Decode, with the limit and the expectation where they apply, and prefill."""
    charts = []
    for metric, title in (("decode", "Decode by depth and threads"), ("prefill", "Prefill by depth and threads")):
        bars = [drawn for each in records for drawn in bar(_label(each), each, metric)]
        if not bars:
            continue
        limits = [each for each in records if metric == "decode" and each.decode_bound is not None]
        limit = derived(limits[:1], "decode_bound", limits[0].decode_bound or 0) if limits else None
        expected = EXPECTED_DECODE if metric == "decode" and any(map(expects_3b_on_pi5, records)) else None
        charts.append(
            Chart(
                f"{title}",
                "tok/s",
                tuple(bars),
                limit=limit,
                limit_name="memory's limit",
                band=expected,
                band_name="expected of a 3B Q4",
            )
        )
    return tuple(charts)


def request_charts(records: Sequence[Measurement]) -> tuple[Chart, ...]:
    """The first token with its p95, and what all streams get together, by load."""
    ttft = [drawn for each in records for drawn in ttft_bar(_label(each), each)]
    throughput = [drawn for each in records for drawn in bar(_label(each), each, "throughput")]
    charts = [Chart("Time to the first token", "s", tuple(ttft), mark_name="p95")] if ttft else []
    if throughput:
        charts.append(Chart("All streams together", "tok/s", tuple(throughput)))
    return tuple(charts)


def _label(record: Measurement) -> str:
    """Which series of its subject a bar is: the words of `where`, without figures, for they would be no results."""
    words = "".join(part.text if isinstance(part, Figure) else str(part) for part in where(record)).strip(" ()")
    api = record.params.get("api")
    return f"{api}, {words}" if api else words or record.kind


def network_section(findings: Findings) -> Section:
    """Each pair both ways: rows ask (the client), columns answer."""
    pairs = {
        (each.host, str(each.params.get("peer", "?"))): each for each in findings.usable if each.kind == "net_pair"
    }
    if not pairs:
        return Section("network", "Network", (Note(flat("No record of a pair of nodes (net_pair) yet. ", MEASURE)),))
    names = sorted({name for pair in pairs for name in pair})
    slow = slow_links(pairs[pair] for pair in sorted(pairs))
    lossy = [
        flat(f"{each.host} → {each.params.get('peer', '?')} loses ", figure, " % of the pings")
        for _, each in sorted(pairs.items())
        if (figure := each.main("ping_loss")) is not None and figure.value > 0
    ]
    problems = [*(flat(text, f", less than {FAST_LINK:.0f}") for text in slow), *lossy]
    blocks: list[Block] = []
    if problems:
        blocks.append(Statements(tuple(say(text, ".", tone=Tone.BAD) for text in problems[:MOST_LINKS])))
        if len(problems) > MOST_LINKS:
            blocks.append(Paragraph((f"And {len(problems) - MOST_LINKS} more, marked in the tables.",)))
    else:
        rates = [figure for each in pairs.values() for way in ("send", "receive") if (figure := each.main(way))]
        if rates:
            least = min(rates, key=lambda figure: (figure.value, figure.records))
            blocks.append(
                Paragraph(
                    (f"No measured link carries less than {FAST_LINK:.0f} Mbit/s; the slowest carries ", least, ".")
                )
            )
    missing = [f"{one} → {other}" for one in names for other in names if one != other and (one, other) not in pairs]
    if missing:
        blocks.append(Note(flat(f"Not measured: {', '.join(missing)}. ", MEASURE)))

    def matrix(caption: str, show: Callable[[Measurement], Cell]) -> Table:
        rows = []
        for one in names:
            cells = [Cell((UNKNOWN,)) if (one, other) not in pairs else show(pairs[one, other]) for other in names]
            rows.append((Cell((one,)), *cells))
        return Table(caption, ("From \\ to", *names), tuple(rows))

    blocks += [
        matrix("Throughput in Mbit/s, sent / received, as the row's node sees it", _rates),
        matrix("Round trip in ms, average / p99, and pings lost", _latency),
    ]
    return Section("network", "Network", tuple(blocks))


def _rates(record: Measurement) -> Cell:
    figures = [record.main("send"), record.main("receive")]
    known = [figure.value for figure in figures if figure is not None]
    if not known:
        return Cell((UNKNOWN,))
    tone = Tone.GOOD if min(known) >= FAST_LINK else Tone.WARNING if min(known) >= FAST_LINK / 2 else Tone.BAD
    words = () if tone is Tone.GOOD else (" slow",)
    return Cell((figures[0] or UNKNOWN, " / ", figures[1] or UNKNOWN, *words), tone)


def _latency(record: Measurement) -> Cell:
    loss = record.main("ping_loss")
    lost: Text = () if loss is None else (", ", loss, " %")
    tone = Tone.BAD if loss is not None and loss.value > 0 else Tone.PLAIN
    return Cell((record.main("ping_avg") or UNKNOWN, " / ", record.main("ping_p99") or UNKNOWN, *lost), tone)


def quality_section(findings: Findings) -> Section:
    exams = [each for each in findings.usable if each.kind == "quality"]
    texts = [each for each in findings.usable if each.kind == "perplexity"]
    blocks: list[Block] = []
    if exams:
        names = categories(exams)
        rows = tuple(
            (
                Cell((f"{each.engine} on {each.host} ({each.model or UNKNOWN})",)),
                reference(each),
                Cell((str(each.params.get("exam") or UNKNOWN),)),
                *(
                    Cell(flat(score_text(each, metric), _count(each, metric)))
                    for metric in ("score", *(f"score_{name}" for name in names))
                ),
            )
            for each in sorted(exams, key=lambda each: (each.engine, each.model or "", each.host, each.id))
        )
        columns = ("Engine", "Record", "Exam", "All", *map(category_words, names))
        blocks.append(Table("Share of the exam's items answered right (95 % interval), and items", columns, rows))
        bars = tuple(score_bar(each) for each in quality_entries(findings))
        blocks.append(Charts((Chart("Exam, all categories", "share right", bars),)))
    else:
        blocks.append(Note(flat("No record of an exam (quality) yet. ", MEASURE)))
    if texts:
        rows = tuple(
            (
                Cell((f"{each.engine} on {each.host} ({each.model or UNKNOWN})",)),
                reference(each),
                Cell((str(each.params.get("corpus") or UNKNOWN),)),
                cell(each, "params.context"),
                cell(each, "params.chunks"),
                Cell(spread_text(each, "perplexity")),
            )
            for each in sorted(texts, key=lambda each: (each.engine, each.model or "", each.host, each.id))
        )
        columns = ("Engine", "Record", "Corpus", "Context", "Chunks", "Perplexity")
        blocks += [
            Table("Perplexity: lower is better", columns, rows),
            Paragraph(("Comparable with the same corpus, context and tokenizer only.",)),
        ]
    else:
        blocks.append(Note(flat("No record of perplexity yet. ", MEASURE)))
    return Section("quality", "Quality", tuple(blocks))


def _count(record: Measurement, metric: str) -> Text:
    figure = record.figure(f"result.{metric}.n")
    return () if figure is None else (", ", figure)


def conditions_section(findings: Findings, measured: str) -> Section:
    columns = (
        *("Record", "Host", "Started (UTC)", "Kind", "Engine", "Build", "Model", "°C before → after"),
        *("Throttled before → after", "Governor", "Kernel", "Bootloader", "Board", "Power, W", "Notes", "Raw log"),
    )
    rows = tuple(condition_row(each, measured) for each in findings.shown)
    text = "Every record that this page shows: the newest of each series on each host. A hyphen means: not known."
    return Section("conditions", "Conditions and raw logs", (Paragraph((text,)), Table("Records", columns, rows)))


def condition_row(record: Measurement, measured: str) -> tuple[Cell, ...]:
    engine = record.record["engine"]
    build_key = record.build_key or (engine["commit"] or "")[:10] or UNKNOWN
    flags = [f"SUSPECT: {reason}" for reason in record.suspect] + [f"stand-in: {reason}" for reason in record.stand_ins]
    tone = Tone.BAD if record.suspect else Tone.WARNING if flags else Tone.PLAIN
    kept = record.record["raw"]
    path = raw_path(kept)
    raw: Part = UNKNOWN if kept is None else kept if path is None else Link("log", f"{measured}/{path}")
    before, after = (record.figure(f"conditions.temp_c.{when}") or UNKNOWN for when in ("before", "after"))
    throttled = " → ".join(record.condition("throttled", when) or UNKNOWN for when in ("before", "after"))
    return (
        Cell((record.id,), tone, anchor("record", record.id)),
        Cell((record.host,)),
        Cell((record.started_at or UNKNOWN,)),
        Cell((record.kind,)),
        Cell((f"{record.engine} {engine['version'] or ''}".strip(),)),
        Cell((build_key,)),
        Cell((record.model or UNKNOWN,)),
        Cell((before, " → ", after)),
        Cell((throttled,)),
        *(Cell((record.condition(name) or UNKNOWN,)) for name in ("governor", "kernel", "bootloader", "board")),
        Cell(watts(record)),
        Cell(("; ".join([*flags, *record.notes]) or UNKNOWN,), tone),
        Cell((raw,)),
    )
