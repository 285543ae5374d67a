"""The page on the network: where the time of a generated token goes, by strategy of splitting a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bramble.records.schema import Record
from bramble.report.build import warn
from bramble.report.compare import rank
from bramble.report.findings import Findings, sort_out, trusted
from bramble.report.model import (
    Bar,
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Figure,
    Note,
    PageLink,
    Paragraph,
    Report,
    Section,
    Table,
    Text,
)
from bramble.report.profile import (
    COMMAND,
    MEASURE_STRATEGIES,
    Group,
    by_count,
    count,
    other_files,
    shaped_links,
    shaped_rows,
    summarise,
)
from bramble.report.reading import UNKNOWN, Measurement, derived, latest, percent, spread_text
from bramble.report.strategies import (
    LATENCY,
    LEGEND_END,
    OTHER,
    OTHERS,
    PLACEMENTS,
    TOKEN_TIME,
    WAITING,
    WIRE,
    Run,
    family,
    know,
    newest,
    stacked,
)
from bramble.report.tables import bar, conditions_section, network_section
from bramble.report.words import cell, flat, listed, reference, say

SINGLES = ("llama_bench", "http_generate")


def build_network(
    records_by_host: Mapping[str, Sequence[Record]],
    *,
    generated_at: str,
    cluster: str = "",
    measured: str = "../measured",
    unreadable: int = 0,
) -> Report:
    """The page on the network. Pure, with the arguments of `build`.

    Of each strategy over each link, by engine and model, the newest record that is not suspect counts.
    """
    everything = [record for host in sorted(records_by_host) for record in records_by_host[host]]
    usable = latest(record for record in everything if not record.get("suspect"))
    runs = newest(each for each in usable if each.kind == TOKEN_TIME)
    families = dict.fromkeys(family(run.measurement.model) for run in runs)

    def relevant(each: Measurement) -> bool:
        return each.kind == "net_pair" or (each.kind in SINGLES and family(each.model) in families)

    others = [each for each in usable if relevant(each)]
    distrusted = [
        *(run.measurement for run in newest(each for each in latest(everything) if each.kind == TOKEN_TIME)),
        *(each for each in latest(everything) if relevant(each)),
    ]
    findings = Findings(
        usable=(*(run.measurement for run in runs), *others),
        suspect=tuple(each for each in distrusted if each.suspect),
        subjects=(),
        prompt=None,
        long_prompt=None,
    )
    pairs = {(each.host, str(each.params.get("peer", "?"))): each for each in others if each.kind == "net_pair"}
    groups = []
    for name in families:
        own = [run for run in runs if family(run.measurement.model) == name]
        names = Counter(run.measurement.model or "a model without a name" for run in own)
        title = min(names, key=lambda each: (-names[each], each))
        singles = tuple(each for each in others if each.kind in SINGLES and family(each.model) == name)
        groups.append(Group(title, tuple(own), singles, know(own, pairs)))
    groups.sort(key=lambda group: group.model)
    back: Text = ("All other figures of these nodes: ", PageLink("baseline", "baseline"), ".")
    summary = tuple(statement for group in groups for statement in summarise(group))
    sections: tuple[Section, ...] = (network_section(findings), conditions_section(findings, measured))
    if groups:
        sections = (token_section(groups, back), *detail_sections(groups), *sections)
    else:
        nothing = "There is no record yet of where a token's time goes (token_time). "
        summary = (say(nothing, Code(COMMAND), " makes some."), say(*back))
    return Report(
        "Network profile" + (f" of {cluster}" if cluster else ""),
        generated_at,
        warn(findings, unreadable),
        summary,
        sections if findings.shown else (),
        tuple(each.id for each in findings.shown),
    )


def token_section(groups: Sequence[Group], back: Text) -> Section:
    blocks: list[Block] = [
        Paragraph(
            (
                "A bar is the time of one generated token. Computing: the node's busiest engine thread on a core. "
                "Waiting: that thread ready, and no core free. Network is what remains. Bytes on the wire are the part "
                "of it that each pair's measured throughput explains; the rest is latency, and threads that have to "
                "wake up. Of a tensor parallel run the engine tells of the root alone, whose network is also what it "
                "waits for other nodes that still compute.",
            )
        )
    ]
    for group in groups:
        marked = not all(run.measurement.stand_ins for run in group.runs)  # The box at the top says it of all.
        splits = [run for run in group.plain if len(run.nodes) > 1]
        charts = [
            stacked(f"{group.model}: links as they are", group.plain, group.known, mark=marked),
            stacked(f"{group.model}: without computing", splits, group.known, computing=False, mark=marked),
        ]
        compared = [run for row in shaped_rows(group) if any(row[1:]) for run in row if run is not None]
        charts.append(stacked(f"{group.model}: with shaped links", compared, group.known, mark=marked))
        blocks += [chart for chart in charts if chart is not None]
    blocks.append(Paragraph(back))
    return Section("token", "Where a token's time goes", tuple(blocks))


def detail_sections(groups: Sequence[Group]) -> tuple[Section, ...]:
    strategies: list[Block] = []
    traffic: list[Block] = []
    shaped: list[Block] = []
    engines: list[Block] = []
    for group in groups:
        # Each engine's tokenizer cuts a prompt its own way.
        sizes = {(*run.engine, *map(run.measurement.value, ("params.n_prompt", "params.n_gen"))) for run in group.runs}
        if len(sizes) > len({run.engine for run in group.runs}):
            text = "Not all of these were measured with prompts and answers of the same length: mind it when comparing."
            strategies.append(Note((text,)))
        strategies += [strategies_table(group), parts_table(group)]
        traffic += traffic_tables(group)
        if shaped_links(group):
            shaped.append(shaped_table(group))
        engines += engines_blocks(group)
    if not traffic:
        traffic.append(Note(flat("No record tells bytes. ", MEASURE_STRATEGIES)))
    if not shaped:
        shaped.append(Note(flat("No record of a shaped link yet. ", MEASURE_STRATEGIES)))
    return (
        Section("strategies", "Strategies", tuple(strategies)),
        Section("engines", "Engines side by side", tuple(engines)),
        Section("traffic", "Bytes and connections", tuple(traffic)),
        Section("shaped", "Shaped links", tuple(shaped)),
    )


def strategies_table(group: Group) -> Table:
    """What was run, and how fast it was."""
    best = rank(group.entries()).best[:1]
    rows = []
    for run in group.runs:
        each = run.measurement
        share: Text = (UNKNOWN,)
        for found in run.decode if best and best[0].figure.value > 0 else ():
            part = 100 * found.figure.value / best[0].figure.value
            share = (percent([each, best[0].measurement], "best_share_percent", part), " %")
        rows.append(
            (
                Cell((run.strategy,)),
                reference(each),
                Cell((run.link or "as they are",)),
                Cell((PLACEMENTS.get(run.placement, run.placement or UNKNOWN),)),
                Cell(layers_text(run)),
                Cell((run.logits or UNKNOWN,)),
                Cell(spread_text(each, "decode")),
                Cell(share),
                Cell(spread_text(each, "prefill")),
                Cell((each.figure("params.n_prompt") or UNKNOWN, " / ", each.figure("params.n_gen") or UNKNOWN)),
                cell(each, "params.repetitions"),
            )
        )
    columns = (
        *("Strategy", "Record", "Links", "Placement", "Nodes and layers", "Logits", "Decode, tok/s", "Of the best"),
        *("Prefill, tok/s", "Prompt / generated", "Runs"),
    )
    return Table(f"{group.model}: mean ± standard deviation", columns, tuple(rows))


def parts_table(group: Group) -> Table:
    """The numbers of the charts."""
    rows = []
    for run in group.runs:
        slices = run.told(group.known)
        computing = [(f"{part.key.short} ", part.figure) for part in slices if part.key not in LEGEND_END]
        parts = {part.key: part.figure for part in slices}
        rows.append(
            (
                Cell((run.name,)),
                reference(run.measurement),
                Cell(spread_text(run.measurement, "token")),
                Cell(listed(computing, ", ", ", ") or (UNKNOWN,)),
                *(Cell((parts.get(key, UNKNOWN),)) for key in (WAITING, WIRE)),
                Cell((parts.get(LATENCY, parts.get(OTHERS, UNKNOWN)),)),
                Cell((run.network or UNKNOWN,)),
                Cell((parts.get(OTHER, UNKNOWN),)),
            )
        )
    columns = (
        *("Strategy", "Record", "Token", "Computing", "Waiting for a core", "Bytes on the wire"),
        *("Rest of the network", "Network in all", "Not accounted for"),
    )
    return Table(f"{group.model}: ms per token", columns, tuple(rows))


def layers_text(run: Run) -> Text:
    held = [(node, run.layers(node)) for node in run.nodes]
    return listed([(node,) if figure is None else (f"{node} ", figure) for node, figure in held], ", ", ", ")


def traffic_tables(group: Group) -> list[Block]:
    connections = []
    interfaces = []
    for run in group.runs:
        each = run.measurement
        for link in run.links(group.known.pairs):
            counted = [each.main(f"{name}_{link.peer}") for name in ("messages", "rtt", "retransmitted")]
            if any(figure is not None for figure in (link.sent, link.received, *counted)):
                connections.append(
                    (
                        Cell((run.name,)),
                        reference(each),
                        Cell((f"{run.head} → {link.peer}",)),
                        *(Cell((figure or UNKNOWN,)) for figure in (link.sent, link.received, *counted)),
                        Cell((link.up or UNKNOWN, " / ", link.down or UNKNOWN)),
                        Cell((link.wire or UNKNOWN,)),
                    )
                )
        sent, received = run.by_node("interface_sent_", "B"), run.by_node("interface_received_", "B")
        for node in dict.fromkeys((*sent, *received)):
            ways = (Cell((way or UNKNOWN,)) for way in (sent.get(node), received.get(node)))
            interfaces.append((Cell((run.name,)), reference(each), Cell((node,)), *ways))
    blocks: list[Block] = []
    if connections:
        columns = (
            *("Strategy", "Record", "Connection", "Sent, B", "Received, B", "Data segments", "Round trip, ms"),
            *("Retransmitted", "Throughput, Mbit/s", "On the wire, ms"),
        )
        caption = f"{group.model}: per token and connection, as the head sends and receives"
        blocks.append(Table(caption, columns, tuple(connections)))
        text = "Retransmitted: segments in the whole run. Throughput: of the pair, measured by itself, sent / received."
        blocks.append(Paragraph((text,)))
    if interfaces:
        caption = f"{group.model}: B per token at each node's interface, with headers and all else that passed"
        blocks.append(Table(caption, ("Strategy", "Record", "Node", "Sent, B", "Received, B"), tuple(interfaces)))
    return blocks


def shaped_table(group: Group) -> Table:
    """Tokens/s, and the share of what the strategy does over links as they are."""
    rows = []
    for found in shaped_rows(group):
        first = next(run for run in found if run is not None)
        cells = []
        for run in found:
            if run is None or not run.decode:
                cells.append(Cell((UNKNOWN,)))
                continue
            share: Text = ()
            plain = found[0]
            if run is not plain and plain is not None and plain.decode and plain.decode[0].figure.value > 0:
                records = [run.measurement, plain.measurement]
                part = 100 * run.decode[0].figure.value / plain.decode[0].figure.value
                share = (", ", percent(records, "unshaped_share_percent", part), " %")
            cells.append(Cell(flat(spread_text(run.measurement, "decode"), share)))
        rows.append((Cell((f"{first.strategy} ({first.where})",)), *cells))
    caption = f"{group.model}: decode in tok/s, and of the same over links as they are"
    return Table(caption, ("Strategy \\ links", "as they are", *shaped_links(group)), tuple(rows))


def engines_blocks(group: Group) -> list[Block]:
    """One node, RPC and tensor parallel with the same model, each by the fastest of its number of nodes."""
    rows: list[tuple[str, Measurement, Figure, Figure | None]] = []
    for run in by_count(group):
        placement = PLACEMENTS.get(run.placement, run.placement or UNKNOWN)
        words = placement if run.short in placement else f"{placement}, {run.short}"
        rows.append((words, run.measurement, count(run), run.token))
    singles = sort_out(group.singles, ())
    for subject in singles.subjects:
        over_http, bench = subject.alone(singles.prompt), subject.bench
        for words, record in (("over HTTP", over_http), ("llama-bench", bench)):
            if record is not None and not record.params.get("peers"):
                rows.append((f"one node, {words}: {subject.host}", record, derived([record], "nodes", 1), None))
    alone = [found for run in group.plain if run.placement == "replica" for found in run.decode]
    base = rank(trusted(alone)).best[:1]
    cells = []
    for words, each, nodes, token in rows:
        figure = each.main("decode")
        ratio: Text = (UNKNOWN,)
        if base and figure is not None and base[0].figure.value > 0:
            ratio = (derived([each, base[0].measurement], "ratio", figure.value / base[0].figure.value),)
        version = each.record["engine"]["version"] or ""
        cells.append(
            (
                Cell((words,)),
                reference(each),
                Cell((f"{each.engine} {version}".strip(),)),
                Cell((nodes,)),
                Cell((each.model or UNKNOWN,)),
                Cell((each.quant or UNKNOWN,)),
                Cell(spread_text(each, "decode")),
                Cell(ratio),
                Cell(spread_text(each, "prefill")),
                Cell((token or UNKNOWN,)),
                Cell((each.figure("result.ttft.p50") or each.main("ttft") or UNKNOWN,)),
            )
        )
    columns = (
        *("Placement", "Record", "Engine", "Nodes", "Model", "Quantization", "Decode, tok/s", "Times one node"),
        *("Prefill, tok/s", "Token, ms", "First token, s"),
    )
    caption = f"{group.model}: the fastest of each placement and number of nodes"
    blocks: list[Block] = [Table(caption, columns, tuple(cells))]
    files = other_files(each for _, each, _, _ in rows)
    if files:
        blocks.append(Note((*files, " Of a difference, a part may be theirs.")))
    bars: list[Bar] = []
    for words, each, nodes, _ in rows:
        many = "" if nodes.value == 1 else f", {nodes.text} nodes"
        bars += bar(f"{each.engine}: {words}{many}", each, "decode")
    if bars:
        blocks.append(Charts((Chart(f"{group.model}: decode", "tok/s", tuple(bars)),)))
    return blocks
