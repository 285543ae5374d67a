"""Runs one llama-server, with or without RPC workers, and knows what llama-server itself does not tell.

llama-server with RPC workers hangs or aborts at the next request when a worker was lost, and answers /health with "ok"
until then. This program waits for each worker, starts llama-server, says that it is ready when it has generated a
token, and ends (so that systemd starts all of it again) as soon as a worker's connection is gone or a computation
stands still.

It never probes a worker that is in use: a worker serves one client at a time, and a probe would wait in its queue. It
reads the kernel's table of connections instead.

Exit code 0: it was asked to stop. 1: something went wrong, start it again. 2: the configuration cannot be used.

Usage: llama_supervisor.py CONFIG.json      Runs on a node: standard library only, Python >= 3.11.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

ESTABLISHED = "01"
# Retransmissions back off from 0.2 s by doubling: six of them are about 13 s without any answer.
LOST_AFTER_RETRANSMISSIONS = 6
# Answered between two computations only: one that waits for a frozen worker holds it up for ever. /slots and /metrics
# will not do: they are answered during one (process_single_task in tools/server/server-context.cpp at 0c1e57098).
BEAT = "/lora-adapters"
# llama-server's last words that were not worth a line in the journal until it ended.
KEPT_LINES = 30
_BUFFER = re.compile(r"load_tensors:\s+(\S+) model buffer size =\s+([0-9.]+) MiB")
# To llama-server itself, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_RPC_DEVICE = re.compile(r"RPC\d*\[([0-9.]+):(\d+)\]")


@dataclass(frozen=True)
class Worker:
    """One ggml-rpc-server. The address is an IPv4 literal: llama.cpp takes nothing else."""

    host: str
    address: str
    port: int


@dataclass(frozen=True)
class Connection:
    """One line of /proc/net/tcp: the far end, the state and how often the oldest unanswered segment was sent again."""

    address: str
    port: int
    state: str
    retransmissions: int


@dataclass(frozen=True)
class Config:
    """What the role writes."""

    model: str
    command: list[str]
    url: str
    load_timeout_s: float
    stall_timeout_s: float
    workers: list[Worker] = field(default_factory=list)
    # One entry a node, head first: {"host", "address", "layers"}.
    layers: list[dict[str, Any]] = field(default_factory=list)
    watch_interval_s: float = 1.0
    stall_check_interval_s: float = 10.0

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises OSError, or ValueError or TypeError if the file is not what the role writes."""
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError(f"must be an object, not {type(values).__name__}")
        config = cls(**{**values, "workers": [Worker(**worker) for worker in values.get("workers", [])]})
        config.check()
        return config

    def check(self) -> None:
        """Raises ValueError: which value cannot be, and what would."""
        if not (isinstance(self.command, list) and self.command and all(isinstance(w, str) for w in self.command)):
            raise ValueError(f"command {self.command!r}: must be a list of words that is not empty")
        if not (isinstance(self.url, str) and urllib.parse.urlsplit(self.url).scheme == "http"):
            raise ValueError(f"url {self.url!r}: must be http://ADDRESS:PORT")
        for name in ("load_timeout_s", "stall_timeout_s", "watch_interval_s", "stall_check_interval_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} {value!r}: must be a number of seconds above 0")
        for worker in self.workers:
            try:
                ipaddress.IPv4Address(str(worker.address))
            except ValueError as error:
                raise ValueError(f"worker {worker.host}: address {worker.address!r} is not an IPv4 address") from error
            if isinstance(worker.port, bool) or not isinstance(worker.port, int) or not 0 < worker.port < 65536:
                raise ValueError(f"worker {worker.host}: port {worker.port!r}: must be a number from 1 to 65535")
        if not (isinstance(self.layers, list) and all(isinstance(e, dict) and "host" in e for e in self.layers)):
            raise ValueError(f"layers {self.layers!r}: must be a list of objects, each with a host")


def parse_connections(table: str) -> list[Connection]:
    """The IPv4 connections in the text of /proc/net/tcp (proc_pid_net(5)).

    Addresses there are hexadecimal in the machine's byte order, which is little-endian on all that Bramble runs on.
    """
    connections = []
    for line in table.splitlines()[1:]:
        columns = line.split()
        if len(columns) < 7:
            continue
        address, port = columns[2].split(":")
        octets = bytes.fromhex(address)[::-1]
        connections.append(Connection(".".join(map(str, octets)), int(port, 16), columns[3], int(columns[6], 16)))
    return connections


def lost_worker(workers: Iterable[Worker], connections: Iterable[Connection]) -> str | None:
    """Why a worker counts as lost, or None while each has a connection that works."""
    known = list(connections)
    for worker in workers:
        own = [c for c in known if (c.address, c.port) == (worker.address, worker.port) and c.state == ESTABLISHED]
        name = f"worker {worker.host} ({worker.address}:{worker.port})"
        if not own:
            return f"{name} closed its connection"
        if all(c.retransmissions >= LOST_AFTER_RETRANSMISSIONS for c in own):
            return f"{name} does not answer any more"
    return None


def loaded_bytes(lines: Iterable[str]) -> dict[str, int]:
    """Weights by device, from llama-server's log: {"local" or "address:port": bytes}."""
    held: dict[str, int] = {}
    for line in lines:
        if found := _BUFFER.search(line):
            device = _RPC_DEVICE.fullmatch(found[1])
            key = f"{device[1]}:{device[2]}" if device else "local"
            held[key] = held.get(key, 0) + round(float(found[2]) * 2**20)
    return held


def placement(config: Config, held: dict[str, int]) -> list[dict[str, Any]]:
    """The layers that each node holds, with the bytes that llama-server said it loaded there."""
    ports = {worker.host: f"{worker.address}:{worker.port}" for worker in config.workers}
    return [
        {
            **entry,
            "device": "RPC" if entry["host"] in ports else "CPU",
            "bytes": held.get(ports.get(entry["host"], "local"), 0),
        }
        for entry in config.layers
    ]


def notify(message: str) -> None:
    """Tells systemd (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.connect("\0" + path[1:] if path.startswith("@") else path)
        systemd.sendall(message.encode())


def say(message: str) -> None:
    # One write: two threads speak.
    print(message + "\n", end="", flush=True)


def request(url: str, body: dict[str, Any] | None, timeout: float) -> int:
    """The HTTP status, or 0 if no answer came in time, or none that is HTTP."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with _OPENER.open(
            urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=timeout
        ) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0


class Question(threading.Thread):
    """A request that may take minutes, beside the watch, which goes on. `status` is None until it is answered."""

    def __init__(self, url: str, body: dict[str, Any] | None, timeout: float) -> None:
        super().__init__(daemon=True)
        self.status: int | None = None
        self._arguments = (url, body, timeout)
        self.start()

    def run(self) -> None:
        self.status = request(*self._arguments)


def connections() -> list[Connection]:
    """The connections of this network namespace."""
    return parse_connections(Path("/proc/self/net/tcp").read_text())


class Stop:
    """Whether a signal asked to stop.

    Not threading.Event: its lock is not reentrant. A signal handler that sets it hangs for ever if it interrupts the
    thread where that was about to wait for it.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        os.write(self._write, b"!")

    def wait(self, timeout: float) -> bool:
        """Whether it was set, within so many seconds."""
        return bool(select.select([self._read], [], [], timeout)[0])

    def is_set(self) -> bool:
        return self.wait(0)


class Supervisor:
    """One llama-server, from waiting for its workers to its end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.child: subprocess.Popen[str] | None = None
        self.follower: threading.Thread | None = None
        self.buffer_lines: list[str] = []
        self.unsaid: deque[str] = deque(maxlen=KEPT_LINES)
        self.ready = False
        self.stopping = Stop()

    def state(self, state: str, **more: Any) -> None:
        """Writes what `bramble status` shows. A full disk is no reason to stop serving."""
        text = json.dumps(
            {
                "state": state,
                "model": self.config.model,
                "url": self.config.url,
                "since": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "layers": [],
                **more,
            }
        )
        path = Path(os.environ.get("RUNTIME_DIRECTORY", ".")) / "state.json"
        part = path.with_suffix(".part")
        try:
            part.write_text(text + "\n")
            part.chmod(0o644)
            part.replace(path)
        except OSError as error:
            say(f"cannot write the state: {error}")
        notify(f"STATUS={state}")

    def wait_for_workers(self) -> None:
        """Connects once to each worker, which must be idle: a worker in use lets nobody else in."""
        for worker in self.config.workers:
            told = False
            while not self.stopping.is_set():
                try:
                    socket.create_connection((worker.address, worker.port), timeout=3).close()
                    break
                except OSError as error:
                    if not told:
                        say(f"waiting for worker {worker.host} ({worker.address}:{worker.port}): {error}")
                        self.state("waiting", waiting_for=worker.host)
                        told = True
                    self.stopping.wait(self.config.watch_interval_s)

    def follow(self, stream: Iterable[str]) -> None:
        """Passes llama-server's words on while it loads; later only its warnings and errors reach the journal."""
        for line in stream:
            if _BUFFER.search(line):
                self.buffer_lines.append(line)
            if not self.ready or " E " in line[:20] or " W " in line[:20]:
                say(line.rstrip())
            else:
                self.unsaid.append(line.rstrip())

    def start(self) -> None:
        """Raises OSError if there is no such program."""
        self.child = subprocess.Popen(
            self.config.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert self.child.stdout is not None
        self.follower = threading.Thread(target=self.follow, args=(self.child.stdout,), daemon=True)
        self.follower.start()

    def ended(self) -> str | None:
        """How llama-server ended, or None while it runs."""
        assert self.child is not None
        code = self.child.poll()
        if code is None:
            return None
        return f"llama-server ended with {code}" if code >= 0 else f"llama-server was ended by signal {-code}"

    def wait_until_it_generates(self) -> str | None:
        """None when it has generated a token, else why it will not."""
        deadline = time.monotonic() + self.config.load_timeout_s
        late = f"llama-server did not load within {self.config.load_timeout_s:.0f} s"
        while request(self.config.url + "/health", None, 2) != 200:
            if self.stopping.wait(0.2):
                return "asked to stop"
            if why := self.ended():
                return f"{why} while it loaded"
            if time.monotonic() >= deadline:
                return late
        # An answer from /health proves nothing about the workers; a token does.
        left = max(deadline - time.monotonic(), 10)
        body = {"prompt": "a", "n_predict": 1, "cache_prompt": False}
        token = Question(self.config.url + "/completion", body, left)
        while token.status is None:
            if self.stopping.wait(0.1):
                return "asked to stop"
            if why := self.ended() or lost_worker(self.config.workers, connections()):
                return f"{why} before the first token"
        return None if token.status == 200 else f"the first token did not come (HTTP status {token.status})"

    def watch(self) -> str:
        """Returns when something is wrong, and what."""
        next_check = time.monotonic() + self.config.stall_check_interval_s
        beat: Question | None = None
        while not self.stopping.wait(self.config.watch_interval_s):
            if why := self.ended() or lost_worker(self.config.workers, connections()):
                return why
            if beat is not None and beat.status == 0:
                return f"a computation stood still for {self.config.stall_timeout_s:g} s"
            if beat is not None and beat.status is not None:
                beat = None
                next_check = time.monotonic() + self.config.stall_check_interval_s
            if beat is None and time.monotonic() >= next_check:
                beat = Question(self.config.url + BEAT, None, self.config.stall_timeout_s)
        return "asked to stop"

    def stop(self) -> None:
        """Ends llama-server, if it runs, and lets its last words reach the journal."""
        if self.child is None or self.follower is None:
            return
        self.child.terminate()
        try:
            self.child.wait(3)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        # Not for ever: a process that it started may hold the other end of the pipe.
        self.follower.join(2)

    def run(self) -> int:
        """0 if it was asked to stop, else 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        why: str | None = None
        try:
            self.state("waiting")
            self.wait_for_workers()
            if not self.stopping.is_set():
                self.state("loading")
                self.start()
                why = self.wait_until_it_generates()
            if why is None and not self.stopping.is_set():
                self.ready = True
                self.state("ready", layers=placement(self.config, loaded_bytes(self.buffer_lines)))
                notify("READY=1")
                say(f"ready: {self.config.model} at {self.config.url}")
                why = self.watch()
        except OSError as error:
            why = str(error)
        finally:
            self.stop()
            self.state("stopped")
        if self.stopping.is_set():
            return 0
        for line in list(self.unsaid):
            say(line)
        say(f"stopping, to be started again: {why}")
        return 1


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        config = Config.read(Path(sys.argv[1]))
    except (OSError, ValueError, TypeError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    return Supervisor(config).run()


if __name__ == "__main__":
    sys.exit(main())
