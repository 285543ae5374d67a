"""What records of the kind `token_time` say: runs of one model under strategies of splitting, and a token's parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bramble.report.compare import Entry, entry
from bramble.report.model import Figure, Key, Slice, StackedBar, StackedChart
from bramble.report.reading import UNKNOWN, Measurement, derived

TOKEN_TIME = "token_time"
PLACEMENTS = {"replica": "one node", "rpc": "RPC", "tensor": "tensor parallel"}
NODE_LOOKS = 6  # As many as the style has.
# How a file's name tells its quantization: q4_k_m, Q4_0, q40, iq4_xs, f16.
QUANTIZATION = re.compile(r"(?<![a-z0-9])(?:i?q[1-8](?:0|(?:_[0-9a-z]{1,2})+)|b?f16|f32)(?![a-z0-9])")
RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG])bit/s", re.IGNORECASE)
DELAY = re.compile(r"\+\s*(\d+(?:\.\d+)?)\s*(ms|us|µs)")
MBIT = {"k": 1e-3, "m": 1.0, "g": 1e3}
PLANNED = "planned"
SAME_SPLIT = "the same split as: "  # How a record's note names other strategies that it speaks for.
LEAST_SHARE = 0.001  # A rest of the token's time that is less is rounding.

type Pairs = Mapping[tuple[str, str], Measurement]


@dataclass(frozen=True)
class Link:
    """Of a run, what one connection from its head carries for a token. ``wire``: ms, bytes over measured throughput.

    ``pair``: the record of that throughput. ``up`` is what the head sends, ``down`` what it receives, in Mbit/s.
    """

    peer: str
    sent: Figure | None
    received: Figure | None
    pair: Measurement | None = None
    up: Figure | None = None
    down: Figure | None = None
    wire: Figure | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """A record of the kind `token_time`, with what the page asks of it. Figures in ms and B per token.

    ``names``: of the strategies that it speaks for.
    """

    measurement: Measurement
    names: tuple[str, ...]

    @property
    def strategy(self) -> str:
        """All its names: of strategies that make the same split, one is measured."""
        return " = ".join(self.names)

    @property
    def short(self) -> str:
        """One of its names."""
        return self.names[0]

    @property
    def placement(self) -> str:
        return param(self.measurement, "placement")

    @property
    def link(self) -> str:
        """How the links were shaped; empty if they were as they are."""
        return param(self.measurement, "link")

    @property
    def logits(self) -> str:
        return param(self.measurement, "logits")

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that took part, the head or root first."""
        told = self.measurement.params.get("nodes")
        names = [each for each in told if isinstance(each, str) and each] if isinstance(told, list) else []
        return tuple(dict.fromkeys(names)) or (self.measurement.host,)

    @property
    def head(self) -> str:
        return self.nodes[0]

    def layers(self, node: str) -> Figure | None:
        return self.measurement.figure(f"params.layers.{node}")

    @property
    def where(self) -> str:
        """``RPC: pi1 14, pi2 14 layers``: the placement, the nodes, and how many layers each has. Of one, its name."""
        if self.placement == "replica":
            return self.head
        held = [(node, self.layers(node)) for node in self.nodes]
        names = ", ".join(node if figure is None else f"{node} {figure.text}" for node, figure in held)
        layers = " layers" if any(figure is not None for _, figure in held) else ""
        return f"{PLACEMENTS.get(self.placement, self.placement or UNKNOWN)}: {names}{layers}"

    @property
    def name(self) -> str:
        """The strategy, and how the links were shaped if they were."""
        return self.strategy + (f", {self.link}" if self.link else "")

    @property
    def engine(self) -> tuple[str, ...]:
        """What ran: the model, the engine, and how its nodes worked together."""
        return family(self.measurement.model), self.measurement.engine, self.placement

    def plain(self, other: Run) -> bool:
        """Whether the other is the same over links as they are."""
        return not other.link and self.engine == other.engine and not set(self.names).isdisjoint(other.names)

    def main(self, name: str, unit: str) -> Figure | None:
        """A result's main number in that unit; None if there is none, or in another unit."""
        metric = self.measurement.record["result"].get(name)
        return self.measurement.main(name) if metric is not None and metric["unit"] == unit else None

    @property
    def token(self) -> Figure | None:
        return self.main("token", "ms")

    @property
    def network(self) -> Figure | None:
        return self.main("network", "ms")

    @property
    def decode(self) -> tuple[Entry, ...]:
        """Its speed as a competitor: of one, or of none if it is not known."""
        return tuple(entry(self.short, self.measurement, "decode"))

    @property
    def time(self) -> tuple[Entry, ...]:
        """The time of a token as a competitor: of one, or of none."""
        return tuple(entry(self.short, self.measurement, "token")) if self.token is not None else ()

    def by_node(self, prefix: str, unit: str) -> dict[str, Figure]:
        """The figures whose names end with a node's: those of the run first, in their order, then others."""
        results = self.measurement.record["result"]
        named = {name.removeprefix(prefix) for name in results if name.startswith(prefix)}
        order = [*(node for node in self.nodes if node in named), *sorted(named - {*self.nodes, ""})]
        return {node: figure for node in order if (figure := self.main(prefix + node, unit)) is not None}

    def links(self, pairs: Pairs) -> tuple[Link, ...]:
        """Its connections. The engine of a tensor parallel run tells the root's bytes of all of them together."""
        sent, received = self.by_node("sent_", "B"), self.by_node("received_", "B")
        if self.placement == "tensor":
            return self._root(pairs)
        peers = dict.fromkeys([*self.nodes[1:], *sent, *received])
        return tuple(self._link(peer, sent.get(peer), received.get(peer), pairs) for peer in peers)

    def _link(self, peer: str, sent: Figure | None, received: Figure | None, pairs: Pairs) -> Link:
        pair, up, down = throughput(pairs, self.head, peer)
        wire = None
        if pair is not None and sent is not None and received is not None:
            # The head sends, the worker computes, the head receives: one after the other.
            parts = [self._transfer(sent, up), self._transfer(received, down)]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                wire = derived([self.measurement, pair], "link_wire_ms", sum(known))
        return Link(peer, sent, received, pair, up, down, wire)

    def _root(self, pairs: Pairs) -> tuple[Link, ...]:
        """All connections of the root as one, by the throughput of the slowest: they share its interface."""
        sent, received = self.main("sent", "B"), self.main("received", "B")
        if sent is None or received is None:
            return ()
        whole = []
        for peer in self.nodes[1:]:
            pair, up, down = throughput(pairs, self.head, peer)
            if pair is None or up is None or down is None:
                return (Link("all others", sent, received),)
            whole.append((pair, up, down))
        if not whole:
            return (Link("all others", sent, received),)
        pair, up, down = min(whole, key=lambda each: (min(each[1].value, each[2].value), each[0].id))
        # Every node sends its slice while it receives the others'.
        parts = [self._transfer(sent, up), self._transfer(received, down)]
        known = [part for part in parts if part is not None]
        wire = derived([self.measurement, pair], "link_wire_ms", max(known)) if len(known) == len(parts) else None
        return (Link("all others", sent, received, pair, up, down, wire),)

    def _transfer(self, amount: Figure, rate: Figure | None) -> float | None:
        """ms for so many bytes; None if the rate is not known. Of what was measured and what it was shaped to, the less
        is the rate."""
        limit = shaped_rate(self.link)
        if rate is None or limit is None:
            return None
        mbit = min(rate.value, limit)
        return max(amount.value, 0.0) * 8 / (mbit * 1e3) if mbit > 0 else None

    def wire(self, links: Sequence[Link]) -> Figure | None:
        """ms that a token's bytes take on the wire; None if a connection's is not known, or no network time is."""
        parts = [each.wire for each in links]
        known = [each.value for each in parts if each is not None]
        if self.network is None or not parts or len(known) < len(parts):
            return None
        sources = [self.measurement, *(each.pair for each in links if each.pair is not None)]
        return derived(sources, "wire_ms", min(math.fsum(known), max(self.network.value, 0.0)))

    def parts(self, known: Known) -> tuple[Slice, ...]:
        """`told` without what took no time."""
        return tuple(part for part in self.told(known) if part.figure.value > 0)

    def told(self, known: Known) -> tuple[Slice, ...]:
        """The parts of a token's time, in the order of the chart; one below zero counts as none.

        Their sum is the token's time, but where what was measured of the parts is more.
        """
        found = [Slice(known.key(node), figure) for node, figure in self.by_node("compute_", "ms").items()]
        waited = self.by_node("waited_", "ms")
        if waited:
            total = math.fsum(max(each.value, 0.0) for each in waited.values())
            found.append(Slice(WAITING, derived([self.measurement], "waited_ms", total)))
        links = self.links(known.pairs)
        wire = self.wire(links)
        if self.network is not None and wire is not None:
            rest = max(self.network.value - wire.value, 0.0)
            records = [self.measurement, *(each.pair for each in links if each.pair is not None)]
            left = OTHERS if self.placement == "tensor" else LATENCY
            found += [Slice(WIRE, wire), Slice(left, derived(records, "latency_ms", rest))]
        elif self.network is not None:
            found.append(Slice(NETWORK, self.network))
        found = [each for each in found if each.figure.value >= 0]
        if self.token is not None:
            rest = self.token.value - math.fsum(each.figure.value for each in found)
            if rest > LEAST_SHARE * self.token.value:
                found.append(Slice(OTHER, derived([self.measurement], "other_ms", rest)))
        return tuple(found)

    def surplus(self, known: Known) -> Figure | None:
        """ms by which the parts are more than the token's time, if that is more than rounding."""
        if self.token is None:
            return None
        over = math.fsum(each.figure.value for each in self.parts(known)) - self.token.value
        return derived([self.measurement], "surplus_ms", over) if over > LEAST_SHARE * self.token.value else None


WAITING = Key("waiting for a core", "core", "waiting")
WIRE = Key("bytes on the wire", "wire", "wire")
LATENCY = Key("rest of the network: latency, waking up", "latency", "latency")
OTHERS = Key("rest of the network, and waiting for the other nodes", "others", "others")
NETWORK = Key("network", "network", "network")
OTHER = Key("not accounted for", "other", "other")
LEGEND_END = (WAITING, WIRE, LATENCY, OTHERS, NETWORK, OTHER)


@dataclass(frozen=True)
class Known:
    """What a run is shown by: the records of pairs, and all nodes in an order, which gives each its look."""

    pairs: Pairs
    nodes: tuple[str, ...]

    def key(self, node: str) -> Key:
        place = self.nodes.index(node) if node in self.nodes else len(self.nodes)
        return Key(f"computing on {node}", node, f"node-{place % NODE_LOOKS}")


def know(runs: Sequence[Run], pairs: Pairs) -> Known:
    """The nodes in the order of the run that has the most of them, then the others'."""
    order = sorted(runs, key=lambda each: (-len(each.nodes), each.measurement.id))
    return Known(pairs, tuple(dict.fromkeys(node for run in order for node in run.nodes)))


def family(model: str | None) -> str:
    """What the files of one model have in common, whatever their quantization and engine: ``qwen3-8b-q4_0`` and
    ``Qwen3_8B_q40`` are ``qwen38b``."""
    name = (model or "").lower()
    return re.sub(r"[^a-z0-9.]", "", QUANTIZATION.sub("", name)) or name


def throughput(pairs: Pairs, one: str, other: str) -> tuple[Measurement | None, Figure | None, Figure | None]:
    """The record of a pair, by whichever end, and what the one sends to and receives from the other, in Mbit/s."""
    pair = pairs.get((one, other))
    if pair is not None:
        return pair, pair.main("send"), pair.main("receive")
    pair = pairs.get((other, one))
    return (None, None, None) if pair is None else (pair, pair.main("receive"), pair.main("send"))


def shaped_rate(link: str) -> float | None:
    """Mbit/s that a link was shaped to; infinite if its rate was left as it is; None if the words are not known."""
    found = RATE.search(link)
    if found is not None:
        return float(found[1]) * MBIT[found[2].lower()]
    return math.inf if not link or DELAY.search(link) else None


def param(record: Measurement, name: str) -> str:
    """A parameter that is a text; empty if it is none."""
    value = record.params.get(name)
    return value if isinstance(value, str) else ""


def names_of(record: Measurement) -> tuple[str, ...]:
    """The strategies that a record speaks for: its own, and those that its notes call the same split. What is deployed
    comes first."""
    own = param(record, "strategy") or UNKNOWN
    same = [note.removeprefix(SAME_SPLIT).split(", ") for note in record.notes if note.startswith(SAME_SPLIT)]
    found = dict.fromkeys([own, *(name for names in same for name in names)])
    return tuple(sorted(found, key=lambda name: name != PLANNED))


def newest(records: Iterable[Measurement]) -> tuple[Run, ...]:
    """Of each strategy over each link, by engine and model, the newest: over links as they are first, and the fastest
    first."""
    kept: dict[tuple[str, ...], Measurement] = {}
    for record in sorted(records, key=lambda each: each.age):
        what = family(record.model), record.engine, param(record, "placement"), param(record, "link")
        kept |= {(*what, name): record for name in names_of(record)}
    spoken: dict[Measurement, set[str]] = {}
    for setting, record in kept.items():
        spoken.setdefault(record, set()).add(setting[-1])
    runs = [Run(each, tuple(name for name in names_of(each) if name in spoken[each])) for each in spoken]

    def order(run: Run) -> tuple[bool, float, str, str]:
        return bool(run.link), math.inf if run.token is None else run.token.value, run.name, run.measurement.id

    return tuple(sorted(runs, key=order))


def stacked(
    title: str, runs: Iterable[Run], known: Known, *, computing: bool = True, mark: bool = True
) -> StackedChart | None:
    """A bar for each run whose time is known; None if there is none.

    ``computing``: with the parts that are that, else the rest alone. ``mark``: say which runs are of stand-ins.
    """
    bars = []
    for run in runs:
        total, parts = run.token, run.parts(known)
        if total is None or total.value <= 0:
            continue
        if not computing:
            parts = tuple(part for part in parts if part.key in LEGEND_END)
            total = derived([run.measurement], "not_computing_ms", math.fsum(part.figure.value for part in parts))
        told = " (stand-in)" if mark and run.measurement.stand_ins else ""
        bars.append(StackedBar(f"{run.name}{told} · {run.where}", total, parts))
    if not any(bar.slices for bar in bars):
        return None
    keys = list(dict.fromkeys(part.key for bar in bars for part in bar.slices))
    nodes = sorted(
        (key for key in keys if key not in LEGEND_END),
        key=lambda key: (known.nodes.index(key.short) if key.short in known.nodes else len(known.nodes), key.short),
    )
    return StackedChart(title, "ms per token", (*nodes, *(key for key in LEGEND_END if key in keys)), tuple(bars))
