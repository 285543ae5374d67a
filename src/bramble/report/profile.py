"""What the records of a token's time say: which strategy is fastest, where the time goes, what a link costs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bramble.report.answers import caveat, doubt, stand_in
from bramble.report.compare import Entry, differ, rank
from bramble.report.findings import trusted
from bramble.report.model import (
    Code,
    Figure,
    Statement,
    Strong,
    Text,
    Tone,
)
from bramble.report.reading import UNKNOWN, Measurement, derived, percent, spread_text
from bramble.report.strategies import (
    LATENCY,
    LEGEND_END,
    NETWORK,
    OTHER,
    OTHERS,
    PLACEMENTS,
    PLANNED,
    RATE,
    WAITING,
    WIRE,
    Known,
    Link,
    Run,
    shaped_rate,
)
from bramble.report.words import flat, joined, listed, say

COMMAND = "ansible-playbook playbooks/benchmark.yml --tags split_strategies"
MEASURE_STRATEGIES: Text = (Code(COMMAND), " measures it.")
MEASURE_PAIRS: Text = (Code("bramble bench --kind net_pair"), " measures it.")


@dataclass(frozen=True)
class Group:
    """The runs of one model, whatever its files' quantization: of each setting the newest, the fastest first.

    ``singles``: other records of its speed on one node.
    """

    model: str
    runs: tuple[Run, ...]
    singles: tuple[Measurement, ...]
    known: Known

    @property
    def plain(self) -> tuple[Run, ...]:
        """Those over links as they are."""
        return tuple(run for run in self.runs if not run.link)

    def entries(self, link: str = "") -> list[Entry]:
        return trusted(found for run in self.runs if run.link == link for found in run.decode)

    def run(self, found: Entry) -> Run:
        return next(run for run in self.runs if run.measurement is found.measurement)

    def fastest(self, *placements: str) -> Run | None:
        """The fastest of these placements over links as they are."""
        order = rank(found for found in self.entries() if self.run(found).placement in placements)
        return self.run(order.best[0]) if order.best else None


def summarise(group: Group) -> tuple[Statement, ...]:
    """What the records of a model say, each sentence by its figures."""
    best = group.fastest(*{run.placement for run in group.runs})
    splits = [run for run in (group.fastest("rpc"), group.fastest("tensor")) if run is not None]
    told = [best, *(run for run in splits if run is not best)] if best is not None else []
    found = [
        fastest_statement(group),
        *(time_statement(run, group.known) for run in told),
        *(link_statement(run, group.known) for run in splits),
        logits_statement(group),
        engines_statement(group),
        *(shaped_statement(group, link) for link in shaped_links(group)),
        surplus_statement(group),
        missing_statement(group),
    ]
    return tuple(each for each in found if each is not None)


def concluded(label: str, records: Iterable[Measurement], *parts: str | Text | Figure) -> Statement:
    """A sentence with its caveat, where its records are of stand-ins."""
    doubts = stand_in(records)
    return say(Strong(label), ": ", *parts, *doubts, tone=Tone.WARNING if doubts else Tone.PLAIN)


def fastest_statement(group: Group) -> Statement | None:
    """Which strategy is fastest, and by how much: than the next, than one node, than as even as it goes."""
    ranking = rank(group.entries())
    if not ranking.best:
        return None

    def shown(found: Entry) -> Text:
        run = group.run(found)
        return (f"{run.strategy} ({run.where}) with ", *spread_text(found.measurement, "decode"), " tok/s")

    told = listed([shown(found) for found in ranking.best])
    if len(ranking.best) > 1:
        told = ("no difference seen between ", *told)
    rivals: dict[Run, str] = {}
    for found in ranking.rest[:1]:
        rivals[group.run(found)] = "the next, "
    for found in ranking.rest:
        run = group.run(found)
        if run.placement == "replica" and not any(each.placement == "replica" for each in rivals):
            rivals.setdefault(run, "")
        if "even" in run.names:
            rivals.setdefault(run, "")
    top = ranking.best[0]
    compared: list[Text] = []
    for run, before in rivals.items():
        for found in run.decode:
            ratio, speed = times(top, found), spread_text(run.measurement, "decode")
            if ratio:
                compared.append((*ratio, f" times {before}{run.short} (", *speed, ")"))
    if compared:
        first = top.name if len(ranking.best) > 1 else "That"
        told = flat(told, f". {first} is ", listed(compared))
    elif len(ranking.best) == 1:
        told = flat(told, "; nothing else was measured that it could be held against")
    named = [*ranking.best, *(found for run in rivals for found in run.decode)]
    files = other_files(found.measurement for found in named)
    return say(Strong(f"Fastest for {group.model}"), ": ", told, ".", *files, *caveat(named), tone=doubt(named))


def other_files(records: Iterable[Measurement]) -> Text:
    """A sentence to add if not all were measured with the same file of the model."""
    files = sorted({f"{each.model or UNKNOWN} ({each.quant or UNKNOWN})" for each in records})
    return (f" The files differ: {' and '.join(files)}.",) if len(files) > 1 else ()


def times(one: Entry, other: Entry) -> Text:
    """How many times the other's figure the one's is; empty if that says nothing."""
    if one.figure.value <= 0 or other.figure.value <= 0:
        return ()
    return (derived([one.measurement, other.measurement], "ratio", one.figure.value / other.figure.value),)


def time_statement(run: Run, known: Known) -> Statement | None:
    """Where a token's time goes."""
    token, parts = run.token, run.parts(known)
    if token is None or token.value <= 0 or not parts:
        return None
    whole = math.fsum(part.figure.value for part in parts)

    def share(name: str, value: float) -> Figure:
        return percent(records, f"{name}_share_percent", 100 * value / whole)

    records = [run.measurement]
    computing = [part for part in parts if part.key not in LEGEND_END]
    told: list[Text] = []
    if computing:
        each = [(f"{part.key.short} ", part.figure) for part in computing]
        total = math.fsum(part.figure.value for part in computing)
        told.append((share("compute", total), " % computing (", *listed(each), " ms)"))
    words = {WAITING: "waiting for a core", NETWORK: "on the network", OTHER: "not accounted for"}
    told += [
        (share(part.key.look, part.figure.value), f" % {words[part.key]} (", part.figure, " ms)")
        for part in parts
        if part.key in words
    ]
    network = [part for part in parts if part.key in (WIRE, LATENCY, OTHERS)]
    if network and run.network is not None:
        split = listed([(part.figure, f" ms {part.key.name}") for part in network])
        total = math.fsum(part.figure.value for part in network)
        told.append((share("network", total), " % on the network (", run.network, " ms: ", *split, ")"))
    label = f"Where the time of {run.short} goes"
    surplus = run.surplus(known)
    more: Text = () if surplus is None else (" (its parts, measured one by one, are ", surplus, " ms more)")
    return concluded(label, records, "of ", token, " ms a token", more, ", ", joined(told), ".")


def link_statement(run: Run, known: Known) -> Statement | None:
    """Which link carries most, and whether bytes or waiting is what its time goes to."""
    links = [link for link in run.links(known.pairs) if link.sent is not None or link.received is not None]
    if not links:
        return None
    busiest = max(links, key=lambda link: (0.0 if link.wire is None else link.wire.value, amount(link), link.peer))
    records = [run.measurement, *(link.pair for link in links if link.pair is not None)]
    carried: Text = (derived([run.measurement], "link_kB", amount(busiest) / 1000), " kB a token")
    told: Text = (f"{run.head} → {busiest.peer} carries ", *carried)
    if busiest.wire is None or busiest.up is None or busiest.down is None:
        told = (*told, "; how long they take is not known, for no record tells this pair's throughput. ")
        return concluded(f"Busiest link of {run.short}", records, told, MEASURE_PAIRS)
    told = (*told, ", which take ", busiest.wire, " ms at ", busiest.up, " / ", busiest.down, " Mbit/s")
    parts = {part.key: part.figure for part in run.parts(known)}
    wire, latency = parts.get(WIRE), parts.get(LATENCY, parts.get(OTHERS))
    waiting = "latency and waking up" if LATENCY in parts else "latency and waiting for the other nodes"
    if wire is not None and run.network is not None:
        told = (*told, ". All bytes take ", wire, " of the ", run.network, " ms that the network takes")
    if latency is not None and (wire is None or latency.value > wire.value):
        told = (*told, "; the rest, ", latency, f" ms, is {waiting}, which faster links would not shorten")
    elif wire is not None:
        told = (*told, "; throughput is what it waits for most")
    return concluded(f"Busiest link of {run.short}", records, told, ".")


def amount(link: Link) -> float:
    """B per token, both ways."""
    return math.fsum(max(each.value, 0.0) for each in (link.sent, link.received) if each is not None)


def logits_statement(group: Group) -> Statement | None:
    """What it saves to keep the output matrix on the head, by two records that differ in nothing else."""
    for worker in group.plain:
        if worker.logits != "worker":
            continue
        for head in sorted(group.plain, key=lambda run: PLANNED not in run.names):
            alike = ("placement", "nodes", "layers", "n_prompt", "n_gen")
            same = all(head.measurement.params.get(name) == worker.measurement.params.get(name) for name in alike)
            if head.logits == "head" and same and head.engine == worker.engine:
                return _logits(head, worker, group.known)
    return None


def _logits(head: Run, worker: Run, known: Known) -> Statement | None:
    records = [head.measurement, worker.measurement]
    told: list[Text] = []
    for kept in head.time:
        for moved in worker.time:
            gap = moved.figure.value - kept.figure.value
            size: Text = (derived(records, "logits_ms", abs(gap)), f" ms {'less' if gap >= 0 else 'more'}")
            noise = "" if differ(kept, moved) else ", which is not more than noise may be"
            told.append((kept.figure, " instead of ", moved.figure, " ms a token, ", *size, noise))
    ours, theirs = (run.links(known.pairs) for run in (head, worker))
    if ours and all(link.sent is not None and link.received is not None for link in (*ours, *theirs)):
        gap = math.fsum(map(amount, theirs)) - math.fsum(map(amount, ours))
        carried: Text = (derived(records, "logits_kB", abs(gap) / 1000), f" kB {'less' if gap >= 0 else 'more'}")
        before, after = (math.fsum(link.wire.value for link in links if link.wire) for links in (theirs, ours))
        if gap > 0 and all(link.wire is not None for link in (*ours, *theirs)):
            sources = [*records, *(link.pair for link in (*ours, *theirs) if link.pair is not None)]
            saved = derived(sources, "logits_wire_ms", before - after)
            carried = (*carried, ", which take ", saved, " ms on the wire")
        told.append(carried)
    return concluded("Logits kept on the head", records, joined(told), ".") if told else None


def engines_statement(group: Group) -> Statement | None:
    """Tensor parallel against RPC, by the fastest of each number of nodes."""
    tensor, rpc = ([run for run in by_count(group) if run.placement == kind] for kind in ("tensor", "rpc"))
    found = {run: run.decode[0] for run in (*tensor, *rpc) if run.decode}
    kept = trusted(found.values())
    tensor, rpc = ([run for run in runs if found.get(run) in kept] for runs in (tensor, rpc))
    if not tensor or not rpc:
        return None

    def shown(run: Run) -> Text:
        return (*spread_text(run.measurement, "decode"), " tok/s over ", count(run), f" nodes ({run.short})")

    best = found[max(tensor, key=lambda run: (found[run].figure.value, run.name))]
    other = found[max(rpc, key=lambda run: (found[run].figure.value, run.name))]
    told = flat(listed([shown(run) for run in tensor]), " against ", listed([shown(run) for run in rpc]))
    verdict: Text = ("no difference seen between the fastest of each",)
    ratio = times(best, other)
    if differ(best, other) and ratio:
        verdict = ("the fastest tensor parallel run is ", *ratio, " times the fastest over RPC")
    records = [run.measurement for run in (*tensor, *rpc)]
    return concluded("Tensor parallel against RPC", records, told, "; ", verdict, ".", other_files(records))


def by_count(group: Group) -> list[Run]:
    """Of each placement and number of nodes the fastest over links as they are."""
    found: dict[tuple[str, int], Run] = {}
    for run in sorted(group.plain, key=lambda each: -each.decode[0].figure.value if each.decode else math.inf):
        found.setdefault((run.placement, len(run.nodes)), run)
    order = {name: place for place, name in enumerate(PLACEMENTS)}
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[0], len(order)), key))]


def count(run: Run) -> Figure:
    return derived([run.measurement], "nodes", len(run.nodes))


def shaped_links(group: Group) -> tuple[str, ...]:
    """The links that were shaped: the fastest first, then those with more delay, then what is not understood."""

    def order(link: str) -> tuple[bool, float, float, str]:
        rate = shaped_rate(link)
        number = re.search(r"\d+(?:\.\d+)?", link)
        delay = float(number[0]) if number is not None and RATE.search(link) is None else 0.0
        return rate is None, -(rate or 0.0) if rate != math.inf else 0.0, delay, link

    return tuple(sorted({run.link for run in group.runs if run.link}, key=order))


def shaped_rows(group: Group) -> list[list[Run | None]]:
    """Each strategy's runs: over links as they are, then over each of `shaped_links`; None where there is none."""
    rows: list[list[Run | None]] = [[run, *(None for _ in shaped_links(group))] for run in group.plain]
    for place, link in enumerate(shaped_links(group), 1):
        for run in (each for each in group.runs if each.link == link):
            row = next((row for row in rows if row[0] is not None and run.plain(row[0])), None)
            row = row or next((row for row in rows if row[0] is None and _alike(run, row)), None)
            if row is None or row[place] is not None:
                row = [None] * (1 + len(shaped_links(group)))
                rows.append(row)
            row[place] = run
    return rows


def _alike(run: Run, row: Sequence[Run | None]) -> bool:
    return any(each is not None and each.engine == run.engine and each.names == run.names for each in row)


def shaped_statement(group: Group, link: str) -> Statement | None:
    """What a shaped link costs each strategy, by its record over the link as it is."""
    told: list[Text] = []
    same: list[Text] = []
    records: list[Measurement] = []
    for run in (each for each in group.runs if each.link == link):
        for plain in (each for each in group.plain if run.plain(each)):
            for after, before in zip(run.decode, plain.decode, strict=False):
                if before.figure.value <= 0:
                    continue
                records += [run.measurement, plain.measurement]
                speeds: Text = (f"{run.short} ", after.figure, " instead of ", before.figure, " tok/s")
                if not differ(after, before):
                    same.append(speeds)
                    continue
                change = 100 * (after.figure.value / before.figure.value - 1)
                share = percent([run.measurement, plain.measurement], "change_percent", abs(change))
                told.append((*speeds, " (", share, f" % {'less' if change < 0 else 'more'})"))
    if same:
        told.append(("no difference seen: ", *listed(same)))
    return concluded(f"Shaped links, {link}", records, joined(told), ".") if told else None


def surplus_statement(group: Group) -> Statement | None:
    """The runs whose parts, measured one by one, are more than the whole."""
    found = [(run, figure) for run in group.runs if (figure := run.surplus(group.known)) is not None]
    if not found:
        return None
    told = listed([(f"{run.short}{f', {run.link}' if run.link else ''} by ", figure, " ms") for run, figure in found])
    text = ". Their bars are as long as the token took, and show the parts in proportion."
    return say(Strong("Parts that are more than the whole"), ": ", told, text, tone=Tone.WARNING)


def missing_statement(group: Group) -> Statement | None:
    """One sentence for all that no record tells."""
    wanted: list[tuple[str, Iterable[object]]] = [
        ("the plan's own split", (run for run in group.plain if PLANNED in run.names)),
        ("one node alone", (run for run in group.plain if run.placement == "replica")),
        ("RPC", (run for run in group.plain if run.placement == "rpc")),
        ("tensor parallel", (run for run in group.plain if run.placement == "tensor")),
        ("logits from the worker", (run for run in group.plain if run.logits == "worker")),
        ("a shaped link", shaped_links(group)),
    ]
    lacking: list[Text] = [(name,) for name, found in wanted if not list(found)]
    told: Text = ()
    if lacking:
        told = flat(listed(lacking), ". ", MEASURE_STRATEGIES)
    if not group.known.pairs:
        told = flat(told, " " if told else "", "The throughput of pairs of nodes. ", MEASURE_PAIRS)
    return say(Strong("Not measured yet"), ": ", told, tone=Tone.WARNING) if told else None
