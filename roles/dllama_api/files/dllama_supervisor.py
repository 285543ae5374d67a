"""Runs one dllama-api (distributed-llama) with its workers, and stands in front of it.

dllama-api ends at a connection without a request, at JSON that is not as it likes it and at numbers out of range; one
idle connection holds it up for ever; it has no /health. So it listens on the loopback only, and this program answers:

    GET  /health               200 when it has generated a token and has all its workers, else 503
    GET  /v1/models            the one model
    POST /v1/chat/completions  checked, written anew, one at a time (503 with Retry-After meanwhile)

It starts dllama-api, says that it is ready when that has generated a token, and ends (so that systemd starts all of it
again) as soon as a worker's connection is gone or a computation stands still. It never connects to a worker: a worker
ends at a connection that is not its root's. It reads the kernel's table of connections instead.

Exit code 0: it was asked to stop. 1: something went wrong, start it again. 2: the configuration cannot be used.

Usage: dllama_supervisor.py CONFIG.json      Runs on a node: standard library only, Python >= 3.11.
Facts on dllama-api: src/dllama-api.cpp, src/app.cpp and src/nn/nn-network.cpp of distributed-llama 8d624a7.
"""

from __future__ import annotations

import http.client
import json
import re
import select
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import llama_supervisor as ls

LISTEN = "0A"
ROLES = frozenset({"assistant", "system", "user"})
# Far more than fits into any context that a Pi has room for.
BODY_BYTES = 4 * 2**20
# Ordinary text has half as many. dllama-api tokenizes in time that grows with the square of the length, and only then
# looks whether it fits.
CHARACTERS_PER_TOKEN = 8
# Seconds for one request to arrive: a client that stands still must not hold a thread.
ARRIVAL_S = 30.0
RETRY_AFTER_S = 5
# Seconds to wait for one's turn: who has read an answer may ask again before its thread has ended.
TURN_S = 1.0
# Of what dllama-api prints only these reach the journal once it serves: it prints prompts and answers too.
_SAID = re.compile(
    r"(🚨 (Connection|Execution|Inference) error: |Socket error: |terminate called |  what\(\): ).{0,200}"
)

Json = dict[str, Any]


class RequestError(Exception):
    """A request that is not passed on, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EngineError(Exception):
    """dllama-api did not answer as it should."""


@dataclass(frozen=True)
class Config(ls.Config):
    """What the role writes. `url` is where this program answers, `engine_port` where dllama-api does on 127.0.0.1."""

    engine_port: int = 0
    context: int = 0

    def check(self) -> None:
        super().check()
        if urllib.parse.urlsplit(self.url).port is None:
            raise ValueError(f"url {self.url!r}: must be http://ADDRESS:PORT")
        if (
            isinstance(self.engine_port, bool)
            or not isinstance(self.engine_port, int)
            or not 0 < self.engine_port < 65536
        ):
            raise ValueError(f"engine_port {self.engine_port!r}: must be a number from 1 to 65535")
        if isinstance(self.context, bool) or not isinstance(self.context, int) or self.context < 1:
            raise ValueError(f"context {self.context!r}: must be a number of tokens above 0")


def listens(table: str, port: int) -> bool:
    """Whether the text of /proc/net/tcp holds a listener on this port."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(len(row) > 3 and row[3] == LISTEN and row[1].endswith(f":{port:04X}") for row in rows)


def _text(content: object, where: str) -> str:
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = (
            "".join(part for part in parts if isinstance(part, str)) if all(isinstance(p, str) for p in parts) else None
        )
    if not isinstance(content, str):
        raise RequestError(400, f"{where}.content: must be text, or a list of parts of type text")
    if "\0" in content:
        raise RequestError(400, f"{where}.content: holds a NUL character, at which the engine would cut it")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise RequestError(400, f"{where}.content: holds half of a surrogate pair, which is no character") from error
    return content


def _whole(body: Json, name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(400, f"{name}: must be a whole number from {low} to {high}")
    return value


def read_request(raw: bytes, context: int) -> tuple[Json, bool]:
    """The body for dllama-api, and whether the client wants a stream.

    Only what dllama-api reads and heeds is passed on, always as a stream: a whole answer that is not valid UTF-8 would
    end it. It ignores temperature, top_p and stop. Raises RequestError: which field cannot be, and what would.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RequestError(400, "the body must be a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages: must be a list that is not empty")
    passed = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise RequestError(400, f"{where}: must be an object")
        role = "system" if message.get("role") == "developer" else message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise RequestError(400, f"{where}.role: must be one of {', '.join(sorted(ROLES))}")
        passed.append({"role": role, "content": _text(message.get("content"), where)})
    if sum(len(message["content"]) for message in passed) > context * CHARACTERS_PER_TOKEN:
        raise RequestError(400, f"messages: do not fit into the {context} tokens of context")
    if body.get("tools"):
        raise RequestError(400, "tools: this model's engine knows none; leave them out")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError(400, "stream: must be true or false")
    wanted: Json = {"messages": passed, "stream": True}
    limits = [_whole(body, name, 1, 2**31 - 1) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((found for found in limits if found is not None), None)
    if limit is not None:
        wanted["max_tokens"] = min(limit, context)
    seed = _whole(body, "seed", -(2**63), 2**64 - 1)
    # Below 0: a random one, as without.
    if seed is not None and seed >= 0:
        wanted["seed"] = seed
    return wanted, bool(stream)


def deltas(lines: Iterable[bytes]) -> Iterator[str]:
    """The pieces of an answer, from the lines of dllama-api's stream. Raises EngineError if it does not end well."""
    for line in lines:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            return
        if not data:
            continue
        try:
            choice = json.loads(data)["choices"][0]
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"it streams {data[:80]!r}") from error
        if "delta" in choice:
            yield str(choice["delta"].get("content") or "")
    raise EngineError("its stream broke off")


class Engine:
    """dllama-api on the loopback. It serves one connection after the other, each for one request."""

    def __init__(self, port: int, timeout: float) -> None:
        self.port = port
        self.timeout = timeout
        self.lock = threading.Lock()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)

    def models(self) -> None:
        """Raises EngineError, or TimeoutError."""
        with closing(self._connection()) as connection:
            try:
                connection.request("GET", "/v1/models")
                response = connection.getresponse()
                json.loads(response.read())
            except TimeoutError:
                raise
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise EngineError(f"GET /v1/models: {error}") from error
            if response.status != 200:
                raise EngineError(f"GET /v1/models: HTTP status {response.status}")

    def ask(self, wanted: Json) -> Iterator[str]:
        """The pieces of its answer. Closing the iterator ends the computation at the next token.

        Raises EngineError, or TimeoutError when a piece did not come in time.
        """
        with closing(self._connection()) as connection:
            try:
                # It reads a body only by a Content-Length of this spelling.
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(wanted), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                if response.status != 200:
                    raise EngineError(f"HTTP status {response.status}")
                yield from deltas(response)
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException) as error:
                raise EngineError(f"{type(error).__name__}: {error}") from error


class Front(ThreadingHTTPServer):
    """What clients ask."""

    daemon_threads = True

    def __init__(self, config: Config) -> None:
        parts = urllib.parse.urlsplit(config.url)
        super().__init__((parts.hostname or "", parts.port or 0), Handler)
        self.config = config
        self.engine = Engine(config.engine_port, config.stall_timeout_s)
        self.state = "starting"
        # Why the engine must be started again.
        self.broken: str | None = None

    def server_bind(self) -> None:
        """Not HTTPServer's, which asks for the name of the address and waits where no name server answers."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, *_: object) -> None:
        """Nothing: it was the client's connection."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = ARRIVAL_S
    server: Front

    def log_message(self, *_: object) -> None:
        """Nothing: who asked what is nobody's business."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.close_connection = True
        self.fail(RequestError(int(code), message or explain or "the request cannot be read"))

    def do_GET(self) -> None:
        if self.path == "/health":
            state = self.server.state
            self.answer(200 if state == "ready" else 503, {"status": "ok" if state == "ready" else state})
        elif self.path == "/v1/models":
            model = {"id": self.server.config.model, "object": "model", "created": 0, "owned_by": "bramble"}
            self.answer(200, {"object": "list", "data": [model]})
        else:
            self.fail(RequestError(404, f"there is no {self.path[:80]}"))

    def do_POST(self) -> None:
        try:
            length = self.headers.get("Content-Length") or ""
            if not (length.isascii() and length.isdigit()):
                self.close_connection = True
                raise RequestError(411, "a Content-Length is needed")
            if int(length) > BODY_BYTES:
                self.close_connection = True
                raise RequestError(413, f"the body is larger than {BODY_BYTES} bytes")
            raw = self.rfile.read(int(length))
            if self.path != "/v1/chat/completions":
                raise RequestError(404, f"there is no {self.path[:80]}")
            wanted, stream = read_request(raw, self.server.config.context)
            if self.server.state != "ready":
                raise RequestError(503, f"the model is {self.server.state}")
            if not self.server.engine.lock.acquire(timeout=TURN_S):
                raise RequestError(503, "the model is busy: it answers one request at a time")
            try:
                self.relay(wanted, stream)
            finally:
                self.server.engine.lock.release()
        except RequestError as error:
            self.fail(error)
        except OSError:
            # The client is gone.
            self.close_connection = True

    def relay(self, wanted: Json, stream: bool) -> None:
        """Asks the engine and passes its answer on.

        Raises RequestError before the answer began, OSError when the client is gone.
        """
        text: list[str] = []
        pieces = self.server.engine.ask(wanted)
        try:
            for piece in self.watched(pieces):
                if self.gone():
                    raise ConnectionResetError("the client is gone")
                if stream and not text:
                    self.begin()
                text.append(piece)
                if stream:
                    self.event({"role": "assistant", "content": piece}, None)
        except RequestError as error:
            if not stream or not text:
                raise
            self.chunk(b"data: " + json.dumps(self.error(error)).encode() + b"\n\n")
            self.close_connection = True
            return
        finally:
            pieces.close()  # type: ignore[attr-defined]
        size = sum(len(message["content"].encode()) for message in wanted["messages"])
        if not text and size >= self.server.config.context:
            raise RequestError(400, f"the messages do not fit into the {self.server.config.context} tokens of context")
        # One piece is one token or more. dllama-api itself says "stop" always.
        reason = "length" if len(text) >= wanted.get("max_tokens", self.server.config.context) else "stop"
        if not stream:
            message = {"role": "assistant", "content": "".join(text)}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            self.answer(200, {**self.head("chat.completion"), "choices": [choice]})
            return
        if not text:
            self.begin()
        self.event({}, reason)
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def gone(self) -> bool:
        """Whether the client has closed the connection: nobody waits for the rest."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        return not self.connection.recv(1, socket.MSG_PEEK)

    def watched(self, pieces: Iterator[str]) -> Iterator[str]:
        """The pieces. Raises RequestError, and has the engine started again if it stands still."""
        try:
            yield from pieces
        except TimeoutError as error:
            self.server.broken = f"a computation stood still for {self.server.config.stall_timeout_s:g} s"
            # It is about to be ended: the next one is not to begin.
            self.server.state = "stopping"
            raise RequestError(504, self.server.broken) from error
        except EngineError as error:
            raise RequestError(502, f"dllama-api broke off: {error}") from error

    def head(self, kind: str) -> Json:
        return {
            "id": f"chatcmpl-{time.monotonic_ns()}",
            "object": kind,
            "created": int(time.time()),
            "model": self.server.config.model,
        }

    def event(self, delta: Json, reason: str | None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        value = {**self.head("chat.completion.chunk"), "choices": [choice]}
        self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, content: bytes) -> None:
        """A piece of a stream; the empty one ends it."""
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")

    @staticmethod
    def error(error: RequestError) -> Json:
        kind = "invalid_request_error" if error.status < 500 else "api_error"
        return {"error": {"message": str(error), "type": kind, "code": error.status}}

    def fail(self, error: RequestError) -> None:
        self.answer(error.status, self.error(error))

    def answer(self, status: int, value: Json) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        self.end_headers()
        self.wfile.write(content)


class Supervisor(ls.Supervisor):
    """One dllama-api, from its start to its end."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.front: Front | None = None
        self.said: set[str] = set()

    def state(self, state: str, **more: Any) -> None:
        if self.front is not None:
            self.front.state = state
        super().state(state, **more)

    def wait_for_workers(self) -> None:
        """Leaves it to dllama-api, which tries every 3 s: any other connection would end a worker."""
        self.front = Front(self.config)
        threading.Thread(target=self.front.serve_forever, daemon=True).start()

    def follow(self, stream: Iterable[str]) -> None:
        """Passes its words on while it loads, each once; later only its errors reach the journal."""
        for line in stream:
            text = line.rstrip()
            if self.ready:
                if _SAID.fullmatch(text):
                    ls.say(text)
            elif text and text not in self.said:
                self.said.add(text)
                ls.say(text)

    def ended(self) -> str | None:
        why = super().ended()
        return why and why.replace("llama-server", "dllama-api")

    def wait_until_it_generates(self) -> str | None:
        """None when it has generated a token, else why it will not."""
        deadline = time.monotonic() + self.config.load_timeout_s
        told: str | None = None
        # It listens when the weights are on all nodes, and not before.
        while not listens(Path("/proc/self/net/tcp").read_text(), self.config.engine_port):
            known = ls.connections()
            missing = next((w.host for w in self.config.workers if ls.lost_worker([w], known)), None)
            if missing and missing != told:
                self.state("waiting", waiting_for=missing)
            elif told and not missing:
                self.state("loading")
            told = missing
            if self.stopping.wait(0.2):
                return "asked to stop"
            if why := self.ended():
                return f"{why} while it loaded"
            if time.monotonic() >= deadline:
                late = f"dllama-api did not load within {self.config.load_timeout_s:.0f} s"
                return f"{late}: there is no connection to worker {missing}" if missing else late
        first = threading.Thread(target=self.first_token, daemon=True)
        first.start()
        while first.is_alive():
            if self.stopping.wait(0.1):
                return "asked to stop"
            if why := self.ended() or ls.lost_worker(self.config.workers, ls.connections()):
                return f"{why} before the first token"
        assert self.front is not None
        return self.front.broken

    def first_token(self) -> None:
        assert self.front is not None
        try:
            self.front.engine.models()
            for _ in self.front.engine.ask(
                {"messages": [{"role": "user", "content": "a"}], "stream": True, "max_tokens": 1}
            ):
                pass
        except (EngineError, TimeoutError) as error:
            self.front.broken = f"the first token did not come: {error}"

    def watch(self) -> str:
        """Returns when something is wrong, and what."""
        assert self.front is not None
        while not self.stopping.wait(self.config.watch_interval_s):
            if why := self.ended() or ls.lost_worker(self.config.workers, ls.connections()) or self.front.broken:
                return why
        return "asked to stop"


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
