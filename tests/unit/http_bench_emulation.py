"""Emulations of llama-server, Ollama and hailo-ollama for the benchmark's tests, on a clock that stands still by itself.

Only the server moves the clock, by the delay that its script has before each chunk, and only when the client has read
what was sent before: so figures are exact, and nothing waits. Fields, line ends and errors as the real ones have them:
llama.cpp 0c1e57098, Ollama's documentation, hailo-ollama 5.1.1.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LIMIT = 20.0  # seconds that anything may take before the test fails
MODEL = "tiny:1b"
OATPP_500 = b"""server=oatpp/1.4.0
code=500
description=Internal Server Error
stacktrace:
  - No suitable mapper found to deserialize the request body.
  - [ApiController]: Error processing request
  - Error processing request
"""


class Clock:
    """Gives the time, and counts how often it was asked."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reads = 0
        self._changed = threading.Condition()

    def __call__(self) -> float:
        with self._changed:
            self.reads += 1
            self._changed.notify_all()
            return self.now

    def advance(self, seconds: float) -> None:
        with self._changed:
            self.now += seconds

    def wait_for(self, reads: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.reads >= reads, LIMIT), "the client did not read"


@dataclass
class Script:
    """How an answer goes: (delay in seconds, bytes) for each chunk, and how it ends."""

    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 200
    body: bytes | None = None  # an answer that is no stream
    cut: bool = False  # the connection ends without the stream's end
    hang: float = 0.0  # real seconds before anything is sent


def ndjson(*lines: dict[str, Any], end: str = "\n") -> list[bytes]:
    return [(json.dumps(line) + end).encode() for line in lines]


def ollama(*pieces: str, delays: tuple[float, ...] = (0.5, 0.1), end: str = "\n", **last: Any) -> Script:
    """One chunk a piece: the first after `delays[0]`, the others and the closing one after `delays[1]`."""
    lines = [{"model": MODEL, "message": {"role": "assistant", "content": piece}, "done": False} for piece in pieces]
    final = {
        "model": MODEL,
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
    } | last
    chunks = ndjson(*lines, final, end=end)
    return Script([(delays[0] if number == 0 else delays[1], chunk) for number, chunk in enumerate(chunks)])


def openai(*pieces: str, delays: tuple[float, ...] = (0.5, 0.1), **last: Any) -> Script:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None}]
    deltas += [{"content": piece} for piece in pieces]
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    if last:
        events.append({"choices": [], **last})
    chunks = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    return Script(
        [(delays[0] if number == 1 else 0 if number == 0 else delays[1], c) for number, c in enumerate(chunks)]
    )


@dataclass
class Emulation:
    """A server. `kind`: llama-server, ollama or hailo-ollama. `scripts`: used up one by one; the last one stays."""

    kind: str = "ollama"
    clock: Clock | None = None
    scripts: list[Script] = field(default_factory=list)
    loaded: bool = False
    load_seconds: float = 2.0
    together: int = 1  # generations that must be at work at once before any is answered
    owner: str = "llamacpp"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    barrier: threading.Barrier | None = None
    url: str = ""

    @contextmanager
    def serving(self) -> Iterator[Emulation]:
        self.barrier = threading.Barrier(self.together)
        emulation = self

        class Bound(Handler):
            server_emulation = emulation

        server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        server.daemon_threads = True
        # A client that stops reading is part of the tests.
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def script(self) -> Script:
        with self.lock:
            return self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_emulation: Emulation

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def plain(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def json(self, content: object) -> None:
        self.plain(200, json.dumps(content).encode())

    def do_GET(self) -> None:
        own = self.server_emulation
        own.paths.append(self.path)
        listed = {
            "name": MODEL,
            "model": MODEL,
            "size": 1640000000,
            "details": {"quantization_level": "Q4_0"},
        }
        if own.kind == "llama-server":
            data = [{"id": MODEL, "owned_by": own.owner, "meta": {"size": 67341312, "ftype": "Q8_0"}}]
            answers: dict[str, Any] = {
                "/v1/models": {"object": "list", "data": data},
                "/props": {"build_info": "b0-0c1e57098"},
            }
        else:
            version = "0.5.1" if own.kind == "hailo-ollama" else "0.12.3"
            answers = {"/api/version": {"version": version}, "/api/tags": {"models": [listed]}}
            answers["/api/ps"] = {"models": [listed] if own.loaded else []}
            if own.kind == "ollama":
                answers["/v1/models"] = {"object": "list", "data": [{"id": MODEL, "owned_by": "library"}]}
        if self.path == "/" and own.kind != "llama-server":
            self.plain(200, f"{own.kind if own.kind == 'hailo-ollama' else 'Ollama'} is running".encode())
        elif self.path in answers:
            self.json(answers[self.path])
        else:
            self.plain(404, b"server=oatpp/1.4.0\ncode=404\n")

    def do_POST(self) -> None:
        own = self.server_emulation
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if own.kind == "hailo-ollama" and self.headers["Content-Type"] != "application/json":
            self.plain(500, OATPP_500)
            return
        content = json.loads(body)
        with own.lock:
            own.paths.append(self.path)
            own.bodies.append(content)
        if content["model"] != MODEL:
            error = json.dumps({"error": f"model '{content['model']}' not found"}).encode()
            self.plain(200 if own.kind == "hailo-ollama" else 404, error)
        elif self.path == "/api/generate" and "prompt" not in content:
            if own.clock:
                own.clock.advance(own.load_seconds)
            self.json({"model": MODEL, "response": "", "done": True, "done_reason": "load"})
        else:
            self.generate(own)

    def generate(self, own: Emulation) -> None:
        if own.barrier is not None and len(own.bodies) > 1:  # the first one is the warm-up, or loads the model
            own.barrier.wait(LIMIT)
        script = own.script()
        if script.hang:
            time.sleep(script.hang)
        if script.body is not None:
            self.plain(script.status, script.body)
            return
        reads = own.clock.reads if own.clock else 0
        self.send_response(script.status)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, (delay, chunk) in enumerate(script.chunks):
            if own.clock:
                own.clock.wait_for(reads + 1 + number)
                own.clock.advance(delay)
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.flush()
        if not script.cut:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
