"""The network between two nodes: ping and iperf3 from one to the other, and the matrix of what was measured.

The first half reads text and decides over values; the second half runs the programs. Standard library only.
"""

from __future__ import annotations

import ipaddress
import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

PING_INTERVAL = 0.2  # seconds; the least that every version of iputils lets an ordinary user ask for: ping(8), -i
PING_LONGEST = 65535  # packets; icmp_seq has 16 bits: RFC 792
ANSWER_WAIT = 2  # seconds that ping waits for the last answers: ping(8), -W
CONNECT_WAIT = 5  # seconds for iperf3's connection to the server
GRACE = 15  # seconds that a program may take beyond what it was asked for
BUSY_WAIT = 1.0  # seconds between two attempts at a server that is busy
BUSY_LIMIT = 15.0  # seconds for which a server may stay busy

Found = TypeVar("Found")


class NetworkError(Exception):
    """Something could not be measured; the message says what and why."""


class BusyError(NetworkError):
    """The server is at another test: one may try again."""


@dataclass(frozen=True)
class Peer:
    """The other end: its name in the inventory and the address at which it is measured."""

    name: str
    address: str

    def __post_init__(self) -> None:
        if not self.name:
            raise NetworkError(f"peers: the peer with address {self.address!r} has no name")
        require_address(self.address, f"peers: {self.name}")


@dataclass(frozen=True)
class Plan:
    """What to measure towards each peer.

    ``source``: own address, to which both programs bind, or "". ``port``: iperf3's. ``seconds``: of sending, in each
    direction. ``ping_count``: packets.
    """

    source: str = ""
    port: int = 5201
    seconds: int = 5
    ping_count: int = 50

    def __post_init__(self) -> None:
        if self.source:
            require_address(self.source, "address")
        for name, value, most in (
            ("port", self.port, 65535),
            ("seconds", self.seconds, 86400),  # iperf3 takes no more: iperf_api.h, MAX_TIME
            ("ping_count", self.ping_count, PING_LONGEST),
        ):
            if not 1 <= value <= most:
                raise NetworkError(f"{name}: must be between 1 and {most}, is {value}")


@dataclass(frozen=True)
class Ping:
    """What ping saw. Times in milliseconds, of the first answer to each packet; None where nothing was answered."""

    sent: int
    answered: int
    duplicates: int
    minimum: float | None
    average: float | None
    p99: float | None

    @property
    def loss(self) -> float:
        """Packets without an answer, in percent."""
        return 100 * (self.sent - self.answered) / self.sent


@dataclass(frozen=True)
class Transfer:
    """One direction of an iperf3 test: what arrived, in Mbit/s (10^6 bits), and segments sent again, where counted."""

    megabits: float
    retransmits: int | None
    version: str | None


@dataclass
class Measured:
    """What one peer's measurement gave: what each program found, None where it failed; its words; what failed."""

    ping: Ping | None = None
    send: Transfer | None = None
    receive: Transfer | None = None
    raw: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def anything(self) -> bool:
        return any((self.ping, self.send, self.receive))

    def notes(self) -> list[str]:
        """What the record's reader must know beside the figures."""
        duplicates = self.ping.duplicates if self.ping else 0
        return [*self.problems, *([f"{duplicates} duplicate answers to ping"] if duplicates else [])]


@dataclass(frozen=True)
class Done:
    """A program that ended: exit code, or None when it was stopped at its limit; what it wrote."""

    code: int | None
    output: str
    errors: str = ""


# Runs a command for at most so many seconds. It raises nothing: a program that is not there gives code 127.
Run = Callable[[Sequence[str], float], Done]


def require_address(text: str, place: str) -> None:
    """Raises NetworkError unless the text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError as error:
        raise NetworkError(f"{place}: {text!r} is no IP address; write one, such as 192.168.1.11") from error


# ping

_ANSWER = re.compile(r"icmp_seq=(\d{1,5})\b.*?\btime=(\d{1,9}(?:\.\d{1,9})?) ms(.*)", re.ASCII)
_SUMMARY = re.compile(r"^(\d{1,9}) packets transmitted, (\d{1,9}) received\b", re.ASCII)


def ping_command(address: str, plan: Plan) -> list[str]:
    """The ping of Debian's iputils-ping, whose lines ``parse_ping`` reads."""
    command = ["ping", "-n", "-c", str(plan.ping_count), "-i", str(PING_INTERVAL), "-W", str(ANSWER_WAIT)]
    return [*command, *(["-I", plan.source] if plan.source else []), address]


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the least value that at least this share (0..1] of the values do not exceed.

    Of fewer than 100 values the 99th percentile is the largest.
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def parse_ping(text: str) -> Ping:
    """The output of iputils' ping in the C locale.

    A duplicate, marked ``(DUP!)`` or of a number seen before, is counted and its time is not. What was sent is what the
    summary says; without a summary (ping was killed) it cannot be known, and NetworkError is raised.
    """
    times: dict[int, float] = {}
    duplicates = 0
    sent: int | None = None
    for line in text.splitlines():
        if answer := _ANSWER.search(line):
            number = int(answer[1])
            if "DUP!" in answer[3] or number in times:
                duplicates += 1
            else:
                times[number] = float(answer[2])
        elif summary := _SUMMARY.match(line):
            sent = int(summary[1])
    if sent is None:
        raise NetworkError("ping ended without its summary")
    if sent == 0:
        raise NetworkError("ping sent no packet")
    if len(times) > sent:
        raise NetworkError(f"ping shows {len(times)} answers to {sent} packets")
    values = list(times.values())
    return Ping(
        sent=sent,
        answered=len(values),
        duplicates=duplicates,
        minimum=min(values) if values else None,
        average=sum(values) / len(values) if values else None,
        p99=percentile(values, 0.99) if values else None,
    )


# iperf3


def iperf_command(address: str, plan: Plan, reverse: bool = False) -> list[str]:
    """An iperf3 client: it sends, or with ``reverse`` it has the server send."""
    return [
        *("iperf3", "--client", address, "--port", str(plan.port), "--time", str(plan.seconds), "--json"),
        *("--connect-timeout", str(CONNECT_WAIT * 1000)),
        *(["--bind", plan.source] if plan.source else []),
        *(["--reverse"] if reverse else []),
    ]


def parse_iperf(text: str) -> Transfer:
    """The ``--json`` of an iperf3 client.

    The speed is the receiver's (``end.sum_received``), in either direction: what the sender counts lies partly in
    buffers. Raises BusyError if the server has another client, NetworkError for whatever else is no result.
    """
    start = text.find("{")  # Some versions write warnings in front.
    try:
        document = json.JSONDecoder().raw_decode(text, start)[0] if start >= 0 else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise NetworkError("iperf3 ended without a whole result")
    if (error := document.get("error")) is not None:
        # "error - unable to connect to server: Connection refused", "error - the server is busy running a test. …"
        words = re.sub(r"^error - ", "", str(error))[:300]
        raise (BusyError if "server is busy" in words else NetworkError)(f"iperf3: {words}")
    bits = _number(document, "end", "sum_received", "bits_per_second")
    if bits is None:
        raise NetworkError("iperf3's result lacks end.sum_received.bits_per_second")
    again = _number(document, "end", "sum_sent", "retransmits")
    version = _inner(document, "start", "version")
    return Transfer(
        megabits=bits / 1e6,
        retransmits=None if again is None else int(again),
        version=version.removeprefix("iperf ")[:40] if isinstance(version, str) else None,
    )


def _inner(document: object, *keys: str) -> object:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _number(document: object, *keys: str) -> float | None:
    """A number of the document that is finite and not negative, or None."""
    value = _inner(document, *keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


# The record


def result(measured: Measured) -> dict[str, dict[str, Any]]:
    """The metrics of kind ``net_pair``; what was not measured is not there.

    ``send``: this host to the peer; ``receive``: back. ``retransmits``: of both directions, as far as counted.
    """
    found: dict[str, tuple[float | None, str]] = {}
    if ping := measured.ping:
        found["ping_min"] = (ping.minimum, "ms")
        found["ping_avg"] = (None if ping.average is None else round(ping.average, 4), "ms")
        found["ping_p99"] = (ping.p99, "ms")
        found["ping_loss"] = (round(ping.loss, 3), "%")
    if measured.send:
        found["send"] = (round(measured.send.megabits, 3), "Mbit/s")
    if measured.receive:
        found["receive"] = (round(measured.receive.megabits, 3), "Mbit/s")
    transfers = [transfer for transfer in (measured.send, measured.receive) if transfer]
    counted = [transfer.retransmits for transfer in transfers if transfer.retransmits is not None]
    found["retransmits"] = (sum(counted) if counted else None, "count")
    return {name: {"value": value, "unit": unit} for name, (value, unit) in found.items() if value is not None}


def record(
    peer: Peer, plan: Plan, measured: Measured, started_at: str, duration_s: float, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """A benchmark record but for ``schema``, ``id``, ``host``, ``raw`` and ``suspect``."""
    versions = [transfer.version for transfer in (measured.send, measured.receive) if transfer and transfer.version]
    return {
        "started_at": started_at,
        "kind": "net_pair",
        "engine": {
            "name": "iperf3",
            "commit": None,
            "build_key": None,
            "version": versions[0] if versions else None,
        },
        "model": None,
        "params": {"peer": peer.name, "peer_address": peer.address, "seconds": plan.seconds},
        "result": result(measured),
        "conditions": dict(conditions),
        "duration_s": duration_s,
    }


def measure(
    peer: Peer,
    plan: Plan,
    run: Run,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Measured:
    """Ping, then iperf3 there, then back, against a peer whose iperf3 server runs. Raises nothing."""
    measured = Measured()
    raw: list[str] = []

    def attempt(command: list[str], limit: float) -> str:
        done = run(command, limit)
        raw.append(f"$ {' '.join(command)}\n{done.output}{done.errors}[exit code {done.code}]\n")
        if done.code == 127:
            raise NetworkError(f"{command[0]} is not installed on this node")
        if done.code is None:
            raise NetworkError(f"{command[0]} did not end within {limit:g} seconds")
        # Both tell a failure in their output too; where they do not, their last words do.
        if done.code != 0 and not done.output.strip():
            words = done.errors.strip().splitlines()
            raise NetworkError(words[-1][:300] if words else f"{command[0]} ended with exit code {done.code}")
        return done.output

    def ping() -> Ping:
        limit = plan.ping_count * PING_INTERVAL + ANSWER_WAIT + GRACE
        return parse_ping(attempt(ping_command(peer.address, plan), limit))

    def transfer(reverse: bool) -> Transfer:
        until = clock() + BUSY_LIMIT
        while True:
            try:
                command = iperf_command(peer.address, plan, reverse)
                return parse_iperf(attempt(command, plan.seconds + CONNECT_WAIT + GRACE))
            except BusyError:
                if clock() >= until:
                    raise
                sleep(BUSY_WAIT)

    def tried(what: str, act: Callable[[], Found]) -> Found | None:
        try:
            return act()
        except NetworkError as error:
            measured.problems.append(f"{what} {peer.name} ({peer.address}): {error}")
            return None

    measured.ping = tried("ping to", ping)
    measured.send = tried("sending to", lambda: transfer(False))
    measured.receive = tried("receiving from", lambda: transfer(True))
    measured.raw = "\n".join(raw)
    return measured


def limit(plan: Plan) -> float:
    """The longest that ``measure`` may take, in seconds: what keeps a server up must last that long for each client."""
    ping = plan.ping_count * PING_INTERVAL + ANSWER_WAIT + GRACE
    # An attempt that begins just before the limit of waiting still runs to its end.
    transfer = BUSY_LIMIT + BUSY_WAIT + plan.seconds + CONNECT_WAIT + GRACE
    return ping + 2 * transfer


def run_command(command: Sequence[str], limit: float) -> Done:
    """Runs a program in the C locale, whose output the parsers know."""
    environment = os.environ | {"LC_ALL": "C", "LANGUAGE": "C"}
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as stopped:
        return Done(None, _text(stopped.stdout), _text(stopped.stderr))
    except FileNotFoundError:
        return Done(127, "")
    except OSError as error:
        return Done(126, "", str(error))
    return Done(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(written: bytes | str | None) -> str:
    return written.decode("utf-8", "replace") if isinstance(written, bytes) else written or ""


# The matrix


def matrix(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of all ordered pairs of the nodes that appear in records of kind ``net_pair`` (those with ``host``).

    Each row: ``source``, ``destination``, ``megabits`` (Mbit/s from one to the other), ``ping_avg``, ``ping_p99`` (ms),
    ``ping_loss`` (%), ``at`` (``started_at``), ``record`` (its id); None where nobody measured, or it failed. One
    record holds both directions. A pair's latest gives all figures of its two rows.
    """
    pairs = [record for record in records if _is_pair(record)]
    names = sorted({str(name) for record in pairs for name in (record["host"], record["params"]["peer"])})
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for record in sorted(pairs, key=lambda record: str(record.get("started_at") or "")):
        host, peer = str(record["host"]), str(record["params"]["peer"])
        pings = {name: _number(record, "result", name, "value") for name in ("ping_avg", "ping_p99", "ping_loss")}
        for metric, way in (("send", (host, peer)), ("receive", (peer, host))):
            megabits = _number(record, "result", metric, "value")
            found[way] = {"megabits": megabits, **pings, "at": record.get("started_at"), "record": record.get("id")}
    blank = dict.fromkeys(("megabits", "ping_avg", "ping_p99", "ping_loss", "at", "record"))
    return [
        {"source": source, "destination": destination, **blank, **found.get((source, destination), {})}
        for source in names
        for destination in names
        if source != destination
    ]


def _is_pair(record: Mapping[str, Any]) -> bool:
    peer = _inner(dict(record), "params", "peer")
    return record.get("kind") == "net_pair" and bool(record.get("host")) and bool(peer) and record["host"] != peer


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The matrix as text: a line per sender, a column per receiver, in each field Mbit/s and the average ping in ms.

    ``?``: not measured. Loss is named below, if there is any.
    """
    if not rows:
        return "No pair of nodes was measured.\n"
    names = sorted({str(row["source"]) for row in rows} | {str(row["destination"]) for row in rows})
    fields = {(str(row["source"]), str(row["destination"])): _field(row) for row in rows}
    table = [["from \\ to", *names]]
    table += [[source, *("-" if source == to else fields.get((source, to), "?") for to in names)] for source in names]
    widths = [max(len(line[column]) for line in table) for column in range(len(names) + 1)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lost = [
        f"{row['source']} to {row['destination']}: {row['ping_loss']:g} % of the pings lost"
        for row in rows
        if row.get("ping_loss")
    ]
    return "\n".join(["Mbit/s, and the average ping in ms", *lines, *lost]) + "\n"


def _field(row: Mapping[str, Any]) -> str:
    megabits, ping = row.get("megabits"), row.get("ping_avg")
    if megabits is None and ping is None:
        return "?"
    return f"{'?' if megabits is None else f'{megabits:.0f}'} / {'?' if ping is None else f'{ping:.2f}'}"
