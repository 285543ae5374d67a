#!/usr/bin/python3 -I
"""EMULATION for the lab: `ollama serve`, as much of it as this project uses, in Ollama's formats.

Its tokens come from the llama-server that /etc/bramble-lab/hat.json names, at `ollama_tokens_per_second` of that file.
Any model of `LIBRARY` can be pulled: each is the same small GGUF from the node's file server. It honours OLLAMA_HOST,
OLLAMA_MODELS and OLLAMA_KEEP_ALIVE; it has no other command than `serve` and `--version`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import http.client
import json
import os
import queue
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

VERSION = "0.13.3"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOT = Path(os.environ.get("BRAMBLE_LAB_ROOT", "/"))
LIBRARY = re.compile(r"(qwen2\.5|qwen2\.5-coder|qwen3|llama3\.2|gemma3|smollm2|bramble-[a-z]+)(:[a-z0-9._-]+)?")
BLOB_URL = os.environ.get("BRAMBLE_LAB_OLLAMA_BLOB", "http://127.0.0.1:8099/ollama-model.gguf")
# Random weights do not end an answer by themselves.
ANSWER_TOKENS = 128
CONTEXT = 2048
# No more than a Pi's memory could feed a small model with.
TOKENS_PER_SECOND = 50.0

Json = dict[str, Any]


class ApiError(Exception):
    """A status and a text, as Ollama answers them."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def timestamp(nanoseconds: int) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(nanoseconds // 10**9))}.{nanoseconds % 10**9:09d}Z"


def settings() -> Json:
    """/etc/bramble-lab/hat.json; nothing if it is not there."""
    try:
        found = json.loads((ROOT / "etc/bramble-lab/hat.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds(value: Any) -> float:
    """A keep_alive: a number of seconds, or a duration such as 5m0s. Negative: for ever."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
        if re.fullmatch(r"-?(\d+(\.\d+)?(h|ms|m|s))+", value):
            parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|m|s)", value)
            total = sum(float(number) * units[unit] for number, unit in parts)
            return -total if value.startswith("-") else total
    raise ApiError(400, f'time: invalid duration "{value}"')


class Store:
    """Models below OLLAMA_MODELS, laid out as Ollama does: manifests that name blobs."""

    def __init__(self) -> None:
        home = os.environ.get("HOME") or "/usr/share/ollama"
        base = Path(os.environ.get("OLLAMA_MODELS") or f"{home}/.ollama/models")
        self.blobs = base / "blobs"
        self.manifests = base / "manifests/registry.ollama.ai/library"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.manifests.mkdir(parents=True, exist_ok=True)

    def manifest(self, name: str) -> Path:
        model, _, tag = name.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model) or not re.fullmatch(r"[A-Za-z0-9._-]*", tag):
            raise ApiError(400, "invalid model name")
        return self.manifests / model / (tag or "latest")

    def names(self) -> list[str]:
        return [f"{path.parent.name}:{path.name}" for path in sorted(self.manifests.glob("*/*"))]

    def blob(self, name: str) -> Path:
        try:
            digest = json.loads(self.manifest(name).read_bytes())["layers"][0]["digest"]
        except (OSError, ValueError, KeyError, IndexError):
            raise ApiError(404, f"model '{name}' not found") from None
        return self.blobs / str(digest).replace(":", "-")

    def pull(self, name: str) -> Generator[Json, None, None]:
        manifest = self.manifest(name)
        yield {"status": "pulling manifest"}
        if not LIBRARY.fullmatch(name):
            raise ApiError(500, "pull model manifest: file does not exist")
        partial = self.blobs / f"partial-{threading.get_ident()}"
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(BLOB_URL, timeout=60) as response, partial.open("wb") as file:
                total, completed = response.length or 0, 0
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    completed += len(piece)
                    yield {"status": "pulling model", "digest": "sha256:", "total": total, "completed": completed}
        except (urllib.error.URLError, OSError) as error:
            raise ApiError(500, f"pull model manifest: {error}") from error
        yield {"status": "verifying sha256 digest"}
        partial.replace(self.blobs / f"sha256-{digest.hexdigest()}")
        yield {"status": "writing manifest"}
        manifest.parent.mkdir(parents=True, exist_ok=True)
        layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest.hexdigest()}"}
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
        yield {"status": "success"}

    def entry(self, name: str) -> Json:
        blob = self.blob(name)
        status = blob.stat()
        return {
            "name": name,
            "model": name,
            "modified_at": timestamp(self.manifest(name).stat().st_mtime_ns),
            "size": status.st_size,
            "digest": blob.name.removeprefix("sha256-"),
            "details": DETAILS,
        }


DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "5.0M",
    "quantization_level": "Q8_0",
}


def die_with_parent() -> None:
    """For a child: it gets SIGKILL when the thread that started it ends. Hardened units forbid setpriv's capset."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Runner:
    """The one llama-server that runs. `lock` is for whoever uses it; children are started by the main thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: queue.SimpleQueue[tuple[list[str], Future[subprocess.Popen[bytes]]]] = queue.SimpleQueue()
        self.child: subprocess.Popen[bytes] | None = None
        self.name: str | None = None
        self.port = 0
        self.expires: float | None = None

    def load(self, name: str, blob: Path, keep_alive: float) -> int:
        """Loads a model; the nanoseconds that it took."""
        began = time.monotonic_ns()
        if self.name != name or self.child is None or self.child.poll() is not None:
            self.unload()
            self._start(blob)
            self.name = name
        self.expires = None if keep_alive < 0 else time.time() + keep_alive
        return time.monotonic_ns() - began

    def _start(self, blob: Path) -> None:
        server = str(settings().get("llama_server", "/opt/llama.cpp/current/bin/llama-server"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = [server, "--model", str(blob), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--ctx-size", str(CONTEXT), "--threads", "1", "--parallel", "1"]
        started: Future[subprocess.Popen[bytes]] = Future()
        self.jobs.put((command, started))
        try:
            self.child = started.result()
        except OSError as error:
            raise ApiError(500, f"llama runner process has terminated: {error}") from error
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.child.poll() is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        code = self.child.poll()
        self.unload()
        raise ApiError(500, f"llama runner process has terminated: exit status {code}")

    def unload(self) -> None:
        child, self.child, self.name = self.child, None, None
        if child is not None:
            child.kill()
            child.wait()

    def serve(self) -> NoReturn:
        while True:
            command, started = self.jobs.get()
            try:
                quiet = subprocess.DEVNULL
                started.set_result(
                    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, preexec_fn=die_with_parent)
                )
            except OSError as error:
                started.set_exception(error)

    def expire(self) -> NoReturn:
        while True:
            time.sleep(0.5)
            with self.lock:
                if self.name and self.expires is not None and time.time() >= self.expires:
                    self.unload()

    def ask(self, body: Json) -> Generator[bytes, None, None]:
        """The lines of llama-server's stream, or its one answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            try:
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                if response.status != 200:
                    raise ApiError(500, response.read(500).decode(errors="replace"))
                while line := response.readline():
                    yield line
            except (OSError, http.client.HTTPException) as error:
                raise ApiError(500, f"llama runner: {error}") from error


STORE: Store
RUNNER = Runner()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    started = False

    def log_message(self, *_: object) -> None:
        print(f'[GIN] {self.command} "{self.path}"', flush=True)

    def do_GET(self) -> None:
        self.started = False
        try:
            self.route()
        except ApiError as error:
            if self.started:
                self.chunk(json.dumps({"error": str(error)}).encode() + b"\n")
                self.chunk(b"")
            elif self.path.startswith("/v1/"):
                self.answer({"error": {"message": str(error), "type": "api_error"}}, error.status)
            else:
                self.answer({"error": str(error)}, error.status)
        except OSError:
            self.close_connection = True

    do_POST = do_HEAD = do_DELETE = do_GET  # noqa: N815

    def route(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        match (self.command, path):
            case ("GET" | "HEAD", "/"):
                self.text("Ollama is running")
            case ("GET" | "HEAD", "/api/version"):
                self.answer({"version": VERSION})
            case ("GET" | "HEAD", "/api/tags"):
                self.answer({"models": [STORE.entry(name) for name in STORE.names()]})
            case ("GET", "/v1/models"):
                data = [{"id": name, "object": "model", "owned_by": "library"} for name in STORE.names()]
                self.answer({"object": "list", "data": data})
            case ("GET", "/api/ps"):
                self.answer({"models": self.running()})
            case ("POST", "/api/show"):
                self.answer(self.show(self.body(raw)))
            case ("POST", "/api/pull"):
                self.pull(self.body(raw))
            case ("DELETE", "/api/delete"):
                name = full(self.body(raw))
                STORE.blob(name)
                STORE.manifest(name).unlink()
                self.text("")
            case ("POST", "/api/generate"):
                self.complete(self.body(raw), chat=False)
            case ("POST", "/api/chat"):
                self.complete(self.body(raw), chat=True)
            case ("POST", "/v1/chat/completions"):
                self.openai(self.body(raw))
            case _:
                self.text("404 page not found", 404)

    @staticmethod
    def body(raw: bytes) -> Json:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, str(error) if raw else "missing request body") from error
        if not isinstance(value, dict):
            raise ApiError(400, "json: cannot unmarshal into Go value")
        return value

    def running(self) -> list[Json]:
        name, expires = RUNNER.name, RUNNER.expires
        if name is None:
            return []
        entry = STORE.entry(name)
        del entry["modified_at"]
        # Ollama writes a time a century ahead for a model that stays.
        until = timestamp(round((expires if expires is not None else time.time() + 100 * 365 * 86400) * 10**9))
        return [{**entry, "expires_at": until, "size_vram": 0, "context_length": CONTEXT}]

    def show(self, body: Json) -> Json:
        entry = STORE.entry(full(body))
        return {
            "modelfile": "",
            "template": "{{ .Prompt }}",
            "details": DETAILS,
            "model_info": {"general.architecture": "llama", "llama.context_length": CONTEXT},
            "capabilities": ["completion"],
            "modified_at": entry["modified_at"],
        }

    def pull(self, body: Json) -> None:
        steps = STORE.pull(full(body))
        if body.get("stream", True):
            for step in steps:
                self.line(step)
            self.chunk(b"")
            return
        *_, last = steps
        self.answer(last)

    def complete(self, body: Json, *, chat: bool) -> None:
        name = full(body)
        blob = STORE.blob(name)
        keep_alive = seconds(body.get("keep_alive") or 0) if "keep_alive" in body else keep_alive_default()
        messages = body.get("messages") if chat else [{"role": "user", "content": body.get("prompt")}]
        nothing = not messages or (not chat and not body.get("prompt"))
        began = time.monotonic_ns()
        with RUNNER.lock:
            if nothing and keep_alive == 0:
                RUNNER.unload()
                self.answer({**self.said(name, "", chat), "done": True, "done_reason": "unload"})
                return
            load = RUNNER.load(name, blob, keep_alive)
            if nothing:
                self.answer({**self.said(name, "", chat), "done": True, "done_reason": "load"})
                return
            text, reason = "", "stop"
            timings: Json = {}
            request = self.wanted(messages, body.get("options") or {})
            rate = float(settings().get("ollama_tokens_per_second", TOKENS_PER_SECOND))
            first = 0
            with contextlib.closing(RUNNER.ask(request)) as lines:
                for line in lines:
                    if not line.startswith(b"data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    timings = chunk.get("timings") or timings
                    for choice in chunk["choices"]:
                        piece = choice["delta"].get("content") or ""
                        text += piece
                        first = first or time.monotonic_ns()
                        if piece:
                            time.sleep(1 / rate)
                        reason = choice.get("finish_reason") or reason
                        if piece and body.get("stream", True):
                            self.line({**self.said(name, piece, chat), "done": False})
            spent = time.monotonic_ns() - (first or time.monotonic_ns())
            if reason == "length" and not limited(body.get("options") or {}):
                reason = "stop"
        final = {
            "done": True,
            "done_reason": reason,
            "total_duration": time.monotonic_ns() - began,
            "load_duration": load,
            "prompt_eval_count": int(timings.get("prompt_n", 0)),
            "prompt_eval_duration": round(timings.get("prompt_ms", 0) * 1e6),
            "eval_count": int(timings.get("predicted_n", 0)),
            "eval_duration": spent,
        }
        if body.get("stream", True):
            self.line({**self.said(name, "", chat), **final})
            self.chunk(b"")
        else:
            self.answer({**self.said(name, text, chat), **final})

    @staticmethod
    def said(name: str, text: str, chat: bool) -> Json:
        spoken = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
        return {"model": name, "created_at": timestamp(time.time_ns()), **spoken}

    @staticmethod
    def wanted(messages: Any, options: Json) -> Json:
        body: Json = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        body["max_tokens"] = limited(options) or ANSWER_TOKENS
        for key in ("temperature", "seed", "top_k", "top_p", "stop"):
            if options.get(key) is not None:
                body[key] = options[key]
        return body

    def openai(self, body: Json) -> None:
        name = full(body)
        blob = STORE.blob(name)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or ANSWER_TOKENS
        with RUNNER.lock:
            RUNNER.load(name, blob, keep_alive_default())
            with contextlib.closing(RUNNER.ask({**body, "max_tokens": limit})) as lines:
                if not body.get("stream"):
                    answer = json.loads(b"".join(lines))
                    answer.pop("timings", None)
                    self.answer({**answer, "model": name})
                    return
                for line in lines:
                    if line.startswith(b"data: {"):
                        chunk = json.loads(line[6:])
                        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                            time.sleep(1 / float(settings().get("ollama_tokens_per_second", TOKENS_PER_SECOND)))
                        chunk.pop("timings", None)
                        line = b"data: " + json.dumps({**chunk, "model": name}).encode() + b"\n"
                    self.chunk(line, "text/event-stream")
                self.chunk(b"")

    def answer(self, value: Json, status: int = 200) -> None:
        self.text(json.dumps(value), status, "application/json; charset=utf-8")

    def text(self, text: str, status: int = 200, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def line(self, value: Json) -> None:
        self.chunk(json.dumps(value).encode() + b"\n")

    def chunk(self, content: bytes, kind: str = "application/x-ndjson") -> None:
        """A piece of a stream; the empty one ends it."""
        if not self.started:
            self.started = True
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
        self.wfile.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


def full(body: Json) -> str:
    """The model's name with its tag."""
    name = body.get("model") or body.get("name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "model is required")
    return name if ":" in name else f"{name}:latest"


def limited(options: Json) -> int | None:
    limit = options.get("num_predict")
    return limit if isinstance(limit, int) and limit > 0 else None


def keep_alive_default() -> float:
    return seconds(os.environ.get("OLLAMA_KEEP_ALIVE") or "5m")


def address() -> tuple[str, int]:
    """OLLAMA_HOST: `host`, `host:port`, `:port`, with or without http://."""
    text = (os.environ.get("OLLAMA_HOST") or "").strip().removeprefix("http://").rstrip("/")
    host, _, port = text.partition(":")
    return host or "127.0.0.1", int(port) if port.isdigit() else 11434


def stop(*_: object) -> NoReturn:
    RUNNER.unload()
    os._exit(0)


def main(arguments: list[str]) -> NoReturn:
    global STORE
    if arguments[:1] in (["--version"], ["-v"]):
        print(f"Warning: could not connect to a running Ollama instance\nWarning: client version is {VERSION}")
        sys.exit(0)
    if arguments[:1] != ["serve"]:
        print("Error: this EMULATION for the lab knows only `ollama serve` and `ollama --version`", file=sys.stderr)
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        STORE = Store()
        server = ThreadingHTTPServer(address(), Handler)
    except OSError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
    server.daemon_threads = True
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=RUNNER.expire, daemon=True).start()
    print(
        f'level=INFO msg="Listening on {":".join(map(str, server.server_address[:2]))} (version {VERSION})"', flush=True
    )
    RUNNER.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
