"""Runs one llama-server, with or without RPC workers, and knows what llama-server itself does not tell.

llama-server with RPC workers hangs or aborts at the next request when a worker was lost, and answers /health with "ok" until then.
This program waits for each worker, starts llama-server, says that it is ready when it has generated a token, and ends (so that
systemd starts all of it again) as soon as a worker's connection is gone or a computation stands still.

It never probes a worker that is in use: a worker serves one client at a time, and a probe would wait in its queue. It reads the
kernel's table of connections instead.

Usage: llama_supervisor.py CONFIG.json      Runs on a node: standard library only, Python >= 3.11.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ESTABLISHED = "01"
# Retransmissions back off from 0.2 s by doubling: six of them are about 13 s without any answer.
LOST_AFTER_RETRANSMISSIONS = 6
WATCH_INTERVAL_S = 1.0
STALL_CHECK_INTERVAL_S = 10.0
_BUFFER = re.compile(r"load_tensors:\s+(\S+) model buffer size =\s+([0-9.]+) MiB")
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

    @classmethod
    def read(cls, path: Path) -> Config:
        """Raises ValueError or TypeError if the file is not what the role writes."""
        values = json.loads(path.read_text())
        values["workers"] = [Worker(**worker) for worker in values["workers"]]
        return cls(**values)


def parse_connections(table: str) -> list[Connection]:
    """The connections in the text of /proc/net/tcp. Addresses there are hexadecimal in the machine's (little) byte order."""
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
        {**entry, "device": "RPC" if entry["host"] in ports else "CPU", "bytes": held.get(ports.get(entry["host"], "local"), 0)}
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
    print(message, flush=True)


def request(url: str, body: dict[str, Any] | None, timeout: float) -> int:
    """The HTTP status, or 0 if no answer came in time."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=timeout
        ) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, TimeoutError):
        return 0


class Supervisor:
    """One llama-server, from waiting for its workers to its end."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.child: subprocess.Popen[str] | None = None
        self.lines: deque[str] = deque(maxlen=500)
        self.ready = False
        self.stopping = threading.Event()

    def state(self, state: str, **more: Any) -> None:
        """Writes what `bramble status` shows."""
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
        part.write_text(text + "\n")
        part.chmod(0o644)
        part.replace(path)
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
                        told = True
                    self.state("waiting", waiting_for=worker.host)
                    self.stopping.wait(1)

    def follow(self, stream: Iterable[str]) -> None:
        """Keeps llama-server's words while it loads; later only its warnings and errors reach the journal."""
        for line in stream:
            self.lines.append(line)
            if not self.ready or " E " in line[:20] or " W " in line[:20]:
                say(line.rstrip())

    def start(self) -> None:
        self.child = subprocess.Popen(
            self.config.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert self.child.stdout is not None
        threading.Thread(target=self.follow, args=(self.child.stdout,), daemon=True).start()

    def wait_until_it_generates(self) -> str | None:
        """None when it has generated a token, else why it will not."""
        assert self.child is not None
        deadline = time.monotonic() + self.config.load_timeout_s
        while time.monotonic() < deadline and not self.stopping.is_set():
            if self.child.poll() is not None:
                return f"llama-server ended with {self.child.returncode} while it loaded"
            if request(self.config.url + "/health", None, 2) == 200:
                break
            self.stopping.wait(0.2)
        else:
            return f"llama-server did not load within {self.config.load_timeout_s:.0f} s"
        # An answer from /health proves nothing about the workers; a token does.
        left = max(deadline - time.monotonic(), 10)
        status = request(self.config.url + "/completion", {"prompt": "a", "n_predict": 1, "cache_prompt": False}, left)
        return None if status == 200 else f"the first token did not come (HTTP status {status})"

    def watch(self, connections: Callable[[], list[Connection]]) -> str:
        """Returns when something is wrong, and what."""
        assert self.child is not None
        next_check = time.monotonic() + STALL_CHECK_INTERVAL_S
        while not self.stopping.wait(WATCH_INTERVAL_S):
            if self.child.poll() is not None:
                return f"llama-server ended with {self.child.returncode}"
            if why := lost_worker(self.config.workers, connections()):
                return why
            if time.monotonic() >= next_check:
                # Answered between two computations; one that waits for a frozen worker never ends.
                if request(self.config.url + "/slots", None, self.config.stall_timeout_s) == 0 and not self.stopping.is_set():
                    return f"a computation stood still for {self.config.stall_timeout_s:.0f} s"
                next_check = time.monotonic() + STALL_CHECK_INTERVAL_S
        return "asked to stop"

    def stop(self) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(3)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()

    def run(self) -> int:
        """0 if it was asked to stop, else 1."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())
        self.state("waiting")
        self.wait_for_workers()
        if self.stopping.is_set():
            return 0
        self.state("loading")
        self.start()
        try:
            why = self.wait_until_it_generates()
            if why is None:
                self.ready = True
                self.state("ready", layers=placement(self.config, loaded_bytes(self.lines)))
                notify("READY=1")
                say(f"ready: {self.config.model} at {self.config.url}")
                why = self.watch(lambda: parse_connections(Path("/proc/self/net/tcp").read_text()))
            if self.stopping.is_set():
                return 0
            say(f"stopping, to be started again: {why}")
            return 1
        finally:
            self.stop()
            self.state("stopped")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        config = Config.read(Path(sys.argv[1]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    return Supervisor(config).run()


if __name__ == "__main__":
    sys.exit(main())
