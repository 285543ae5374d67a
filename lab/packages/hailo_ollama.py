#!/usr/bin/python3 -I
"""EMULATION for the lab: hailo-ollama 5.1.1, its defects included.

It speaks HTTP to the byte as version 5.1.1 does (captured from that version's own server code with a stubbed NPU), and
takes its tokens from a real llama.cpp model: the blob that it pulled is a small GGUF, run by a child llama-server and
passed on at the rate of a Hailo-10H. What it does as the original: arguments are ignored; the configuration's search
path; 0.0.0.0:8000; a streamed pull is cut off, and kills the server when it fails; errors with status 200; oatpp's
error pages and escapes; one lock around the processor, not first come first served; after "Failed to create VDevice"
the next request for that model is a segmentation fault.

Where it differs: tokens come from another model; an answer ends after `answer_tokens` where the model does not end it
itself (random weights do not); a library on a loopback address is asked over plain HTTP, any other over TLS.

/etc/bramble-lab/hat.json changes the defaults of `Settings`. BRAMBLE_LAB_ROOT stands before the paths of the emulated
hardware (not before those of the configuration and the models); tests set it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import ipaddress
import json
import os
import queue
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

VERSION = "5.1.1"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOT = Path(os.environ.get("BRAMBLE_LAB_ROOT", "/"))
RUN = ROOT / "run/bramble-lab"
FAULTS = ROOT / "etc/bramble-lab/faults"
DEFAULT_KEEP_ALIVE = 300
NEVER = "1734-08-11T20:37:21.-669314532Z"
# A download reports each 1000 writes.
PULL_STEP = 3276800

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What stands in for the processor. Seconds and tokens per second; the processor's own load time is 4 to 13 s."""

    llama_server: str = "/opt/llama.cpp/current/bin/llama-server"
    tokens_per_second: float = 8.0
    first_token_seconds: float = 0.37
    load_seconds: float = 0.5
    switch_seconds: float = 0.0
    read_timeout_seconds: float = 10.0
    answer_tokens: int = 128
    context: int = 2048
    threads: int = 1


class Refused(Exception):  # noqa: N818 - what the original throws while it answers: its text is the page's first line
    """The request ends with oatpp's error page."""


class Terminated(Exception):  # noqa: N818 - what the original throws where nothing catches it
    """The server ends by SIGABRT, as an uncaught exception of C++ does."""


# --- What oatpp writes


def dumps(value: Any) -> str:
    """JSON as oatpp writes it: no spaces, null fields left out, `/` and all but ASCII escaped, in upper-case hex."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quote(key)}:{dumps(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list):
        return "[" + ",".join(dumps(item) for item in value) + "]"
    if isinstance(value, str):
        return _quote(value)
    return json.dumps(value)


_ESCAPES = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _quote(text: str) -> str:
    def escape(character: str) -> str:
        if character in _ESCAPES:
            return _ESCAPES[character]
        if " " <= character <= "~":
            return character
        units = character.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i] << 8 | units[i + 1]:04X}" for i in range(0, len(units), 2))

    return '"' + "".join(map(escape, text)) + '"'


def timestamp(nanoseconds: int) -> str:
    """`2026-11-20T21:09:16.471840093Z`."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(nanoseconds // 10**9))}.{nanoseconds % 10**9:09d}Z"


def log(level: str, text: str) -> None:
    """oatpp's log: level, time, microseconds, text, in colours."""
    colour = {"I": "32", "E": "41"}[level]
    now = time.time_ns()
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now // 10**9))
    print(f"\033[{colour}m {level} \033[0m|{shown} {now // 1000}| {text}", flush=True)


def hailort(text: str) -> None:
    print(f"[HailoRT] [error] {text}", file=sys.stderr, flush=True)


def error_page(status: int, first: str) -> bytes:
    """The text that oatpp answers where something was thrown."""
    lines = [f"  - {first}"]
    if status != 404:
        lines.append("  - [ApiController]: Error processing request")
    description = {404: "Not Found", 500: "Internal Server Error"}[status]
    head = ["server=oatpp/1.4.0", f"code={status}", f"description={description}", "stacktrace:"]
    return "\n".join([*head, *lines, "  - Error processing request", ""]).encode()


# --- What oatpp reads

_MAPPER = "[oatpp::data::mapping::TreeToObjectMapper"
_STRING, _NUMBER, _BOOLEAN = "string", "number", "boolean"
_OPTIONS = {
    "temperature": _NUMBER,
    "seed": _NUMBER,
    "top_k": _NUMBER,
    "top_p": _NUMBER,
    "frequency_penalty": _NUMBER,
    "num_predict": _NUMBER,
    "use_mlock": _BOOLEAN,
}
_MESSAGE = {"role": _STRING, "content": _STRING}
_GENERATE = {
    "model": _STRING,
    "prompt": _STRING,
    "suffix": _STRING,
    "images": [_STRING],
    "format": _STRING,
    "options": _OPTIONS,
    "template": _STRING,
    "stream": _BOOLEAN,
    "raw": _BOOLEAN,
    "keep_alive": _NUMBER,
}
_CHAT = {
    "model": _STRING,
    "messages": [_MESSAGE],
    # Fixed in 5.4.0: tools are declared as text, so that a list of them is refused.
    "tools": _STRING,
    "format": _STRING,
    "options": _OPTIONS,
    "stream": _BOOLEAN,
    "keep_alive": _NUMBER,
}
_COMPLETIONS = {
    "model": _STRING,
    "messages": [_MESSAGE],
    "tools": _STRING,
    "frequency_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "max_completion_tokens": _NUMBER,
    "max_tokens": _NUMBER,
    "temperature": _NUMBER,
    "seed": _NUMBER,
    "top_p": _NUMBER,
    "stream": _BOOLEAN,
    "n": _NUMBER,
}
_MODEL = {"model": _STRING}
_PULL = {"model": _STRING, "stream": _BOOLEAN}


def read_body(body: bytes, content_type: str | None, shape: Json) -> Json:
    """The request's object, with the fields that the original knows. Raises Refused with oatpp's words."""
    if content_type is not None and content_type.partition(";")[0].strip().lower() != "application/json":
        raise Refused("No suitable mapper found to deserialize the request body.")
    try:
        value = json.loads(body.decode("utf-8", "replace"), parse_constant=_no_constant)
    except (json.JSONDecodeError, RecursionError) as error:
        raise Refused(_syntax(error)) from error
    mapped = _map(value, shape)
    if not isinstance(mapped, dict):
        raise Refused(f"{_MAPPER}::mapObject()]: Node is NOT a MAP")
    return mapped


def _no_constant(text: str) -> NoReturn:
    raise json.JSONDecodeError("Expecting value", text, 0)


def _syntax(error: Exception) -> str:
    text = str(error)
    if text.startswith(("Expecting property name", "Illegal trailing comma")):
        return "[oatpp::json::Deserializer::deserializeMap()]: Item key name expected"
    if text.startswith("Expecting ':'"):
        return "[oatpp::json::Deserializer::deserializeMap()]: ':' expected"
    if text.startswith("Expecting ','"):
        return "[oatpp::json::Deserializer::deserializeMap()]: '}' expected"
    return "[json]: Unknown character."


def _map(value: Any, shape: Any) -> Any:
    if value is None:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            raise Refused(f"{_MAPPER}::mapObject()]: Node is NOT a MAP")
        return {name: _map(value.get(name), inner) for name, inner in shape.items()}
    if isinstance(shape, list):
        if not isinstance(value, list):
            raise Refused(f"{_MAPPER}::mapCollection()]: Node is NOT a VECTOR")
        return [_map(item, shape[0]) for item in value]
    if shape == _STRING:
        if not isinstance(value, str):
            raise Refused(f"{_MAPPER}::mapString()]: Node is NOT a STRING")
        return value
    if isinstance(value, (str, list, dict)):
        raise Refused(f"{_MAPPER}::mapPrimitive()]: Value is NOT a Primitive type")
    return bool(value) if shape == _BOOLEAN else value


def text_of(value: str | None) -> str:
    """A field that the original dereferences without looking."""
    if value is None:
        raise Refused("[oatpp::data::type::String::operator std::string() const]: Error. Null pointer.")
    return value


# --- Files


def directories(home: str, fallback: str, many: str, default: str) -> list[Path]:
    """The XDG base directories in the original's order."""
    first = os.environ.get(home) or (f"{os.environ['HOME']}/{fallback}" if os.environ.get("HOME") else "")
    rest = (os.environ.get(many) or default).split(":")
    return [Path(path) for path in [first, *rest] if path]


@dataclass(frozen=True, slots=True)
class Config:
    host: str
    port: int
    library_host: str
    library_port: int
    poll_seconds: float


def read_config() -> Config:
    """The first hailo-ollama.json of the search path. Raises Terminated."""
    for directory in directories("XDG_CONFIG_HOME", ".config", "XDG_CONFIG_DIRS", "/etc/xdg"):
        path = directory / "hailo-ollama/hailo-ollama.json"
        if path.is_file():
            try:
                found = json.loads(path.read_bytes())
                return Config(
                    str(found["server"]["host"]),
                    int(found["server"]["port"]),
                    str(found["library"]["host"]),
                    int(found["library"]["port"]),
                    int(found["main_poll_time_ms"]) / 1000,
                )
            except (ValueError, KeyError, TypeError, OSError) as error:
                raise Terminated(f"{path}: {error!r}") from error
    raise Terminated("hailo-ollama directory not found")


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    sha256: str
    manifest: Json


class Store:
    """Manifests and blobs of the first data directory that has a `hailo-ollama`."""

    def __init__(self) -> None:
        candidates = directories("XDG_DATA_HOME", ".local/share", "XDG_DATA_DIRS", "/usr/share:/usr/local/share")
        base = next((path / "hailo-ollama" for path in candidates if (path / "hailo-ollama").is_dir()), None)
        if base is None:
            raise Terminated("hailo-ollama directory not found")
        self.blobs = base / "models/blob"
        manifests = base / "models/manifests"
        try:
            names = sorted(manifests.iterdir())
            self.blobs.mkdir(exist_ok=True)
            self.models = {
                f"{tag.parent.parent.name}:{tag.parent.name}": tag
                for name in names
                for tag in sorted(name.glob("*/manifest.json"))
            }
            self.by_name = {name: _read_manifest(name, path) for name, path in sorted(self.models.items())}
        except (OSError, ValueError, KeyError) as error:
            raise Terminated(f"filesystem error: {error}") from error

    def blob(self, model: Model) -> Path:
        return self.blobs / f"sha256_{model.sha256}"

    def pulled(self, name: str) -> Model | None:
        model = self.by_name.get(name)
        return model if model is not None and self.blob(model).is_file() else None

    def pull(self, model: Model, config: Config, report: Callable[[Json], None]) -> None:
        """Fetches a model's blob. Raises Refused with the original's words."""
        path = self.blob(model)
        if path.is_file():
            report({"status": "success"})
            return
        digest = hashlib.sha256()
        with contextlib.closing(_library(config)) as connection:
            try:
                connection.request("GET", f"/blob/sha256_{model.sha256}")
                response = connection.getresponse()
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
                raise Refused(
                    "[oatpp::network::tcp::client::ConnectionProvider::getConnection()]: "
                    f"Error. Can't connect: {reason}"
                ) from error
            total = response.length or 0
            # One file whatever pulls at the same time, and no look at the status: as the original.
            partial = path.with_name(path.name + ".tmp")
            completed = reported = 0
            with partial.open("wb") as file:
                while piece := response.read(1 << 16):
                    file.write(piece)
                    digest.update(piece)
                    completed += len(piece)
                    while completed - reported >= PULL_STEP:
                        reported += PULL_STEP
                        report({"status": "pulling", "digest": model.sha256, "total": total, "completed": reported})
        report({"status": "verifying sha256 digest"})
        if digest.hexdigest() != model.sha256:
            partial.unlink(missing_ok=True)
            raise Refused("bad hash")
        partial.replace(path)
        report({"status": "success"})


def _read_manifest(name: str, path: Path) -> Model:
    manifest = json.loads(path.read_bytes())
    return Model(name, str(manifest["hef_h10h"]), manifest)


def _library(config: Config) -> http.client.HTTPConnection:
    with contextlib.suppress(ValueError):
        if config.library_host == "localhost" or ipaddress.ip_address(config.library_host).is_loopback:
            return http.client.HTTPConnection(config.library_host, config.library_port, timeout=60)
    context = ssl.create_default_context()
    return http.client.HTTPSConnection(config.library_host, config.library_port, timeout=60, context=context)


def read_settings() -> Settings:
    try:
        found = json.loads((ROOT / "etc/bramble-lab/hat.json").read_bytes())
    except (OSError, ValueError):
        return Settings()
    return Settings(**{item.name: found[item.name] for item in fields(Settings) if item.name in found})


# --- The processor


def fault(name: str) -> bool:
    return (FAULTS / name).exists()


def create_vdevice() -> int:
    """Takes the processor for this program, as a file's lock. Raises Refused; what HailoRT says goes to stderr."""
    node = ROOT / "dev/hailo0"
    try:
        driver = (RUN / "sys/module/hailo1x_pci/version").read_text(encoding="ascii").strip()
        os.close(os.open(node, os.O_RDWR))
        lock = os.open(RUN / "npu.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        hailort("Failed to create vdevice. there are not enough free devices. requested: 1, found: 0")
        raise Refused("Failed to create VDevice") from None
    if driver != VERSION:
        hailort(f"CHECK failed - Driver version ({driver}) is different from library version ({VERSION})")
    elif fault("device-lost") or fault("no-device"):
        hailort("Device disconnected while opening device")
    elif fault("busy") or not _locked(lock):
        hailort("Failed to create vdevice. there are not enough free devices. requested: 1, found: 0")
    else:
        return lock
    os.close(lock)
    raise Refused("Failed to create VDevice")


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def die_with_parent() -> None:
    """For a child: it gets SIGKILL when the thread that started it ends. Hardened units forbid setpriv's capset."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Spawner:
    """Starts children on the main thread: they get a signal when the thread that started them ends."""

    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[tuple[list[str], Future[subprocess.Popen[bytes]]]] = queue.SimpleQueue()
        self.child: subprocess.Popen[bytes] | None = None

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        started: Future[subprocess.Popen[bytes]] = Future()
        self.jobs.put((command, started))
        return started.result()

    def serve(self) -> NoReturn:
        while True:
            command, started = self.jobs.get()
            try:
                self.child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    preexec_fn=die_with_parent,
                )
                started.set_result(self.child)
            except OSError as error:
                started.set_exception(error)

    def end(self) -> None:
        """Ends the child at once: it holds nothing that is worth keeping."""
        child, self.child = self.child, None
        if child is not None:
            child.kill()
            child.wait()


class Turn:
    """A lock that takes any of those who wait, not the first: the original's order was 2, 3, 1."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._busy = False
        self._waiting: list[threading.Event] = []

    def __enter__(self) -> None:
        with self._guard:
            if not self._busy:
                self._busy = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.pop(random.randrange(len(self._waiting))).set()
            else:
                self._busy = False


@dataclass
class Ended:
    """How a generation ended."""

    reason: str = "stop"
    tokens: int = 0


class Npu:
    """The one model that is loaded. All of it but `turn` is for whoever has the turn."""

    def __init__(self, settings: Settings, spawner: Spawner) -> None:
        self.turn = Turn()
        self.settings = settings
        self.spawner = spawner
        self.model: Model | None = None
        self.path: Path | None = None
        self.port: int | None = None
        self.expires: int | None = None
        self._vdevice: int | None = None

    def load(self, model: Model, path: Path, keep_alive: int | None) -> None:
        """Makes the model the loaded one. Raises Refused; ends the server where the original follows a null pointer."""
        seconds = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
        self.expires = None if seconds < 0 else time.time_ns() + seconds * 10**9
        if path == self.path:
            if self.port is None:
                # The path was noted before the device failed; the original goes on as if the model were loaded.
                die(signal.SIGSEGV)
            return
        loaded = self.port is not None
        self.reset()
        if loaded:
            time.sleep(self.settings.switch_seconds)
        log("I", f"GenerationThread:replacing model to {path}")
        self.model, self.path = model, path
        self.expires = None if seconds < 0 else time.time_ns() + seconds * 10**9
        self._vdevice = create_vdevice()
        time.sleep(self.settings.load_seconds * (10 if fault("slow") else 1))
        self.port = self._start(path)

    def _start(self, path: Path) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        settings = self.settings
        command = [settings.llama_server, "--model", str(path), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ctx-size", str(settings.context), "--threads", str(settings.threads), "--parallel", "1"]
        try:
            child = self.spawner.start(command)
        except OSError as error:
            print(f"EMULATION: {settings.llama_server} does not run: {error}", file=sys.stderr)
            raise Refused("Failed to create LLM") from None
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                with contextlib.closing(connection):
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return port
            time.sleep(0.05)
        print(f"EMULATION: {settings.llama_server} does not run: {child.poll()}", file=sys.stderr)
        self.spawner.end()
        hailort("CHECK_SUCCESS failed with status=HAILO_INTERNAL_FAILURE(8) - Failed to create LLM")
        raise Refused("Failed to create LLM")

    def reset(self) -> None:
        """Frees the processor: another program may use it."""
        self.spawner.end()
        if self._vdevice is not None:
            os.close(self._vdevice)
        self.model = self.path = self.port = self.expires = self._vdevice = None

    def expire(self) -> None:
        """Unloads what nobody wanted for long enough."""
        if self.path is not None and self.expires is not None and time.time_ns() >= self.expires:
            log("I", "generation_context:timeout expired")
            self.reset()
            log("I", "generation_context:reset issued")

    def generate(self, messages: list[Json], options: Json, ended: Ended) -> Generator[str, None, None]:
        """The answer's tokens at the processor's rate. The last token of a generation is never passed on."""
        limit = options.get("num_predict")
        limit = None if limit is None else int(limit) % 2**32
        if limit == 0:
            raise Refused("Failed to set max_generated_tokens")
        cut = limit is not None and limit <= self.settings.answer_tokens
        wanted = limit - 1 if limit is not None and cut else self.settings.answer_tokens
        log("I", f"GenerationThread:got prompt {messages}")
        slowness = 10 if fault("slow") else 1
        period = slowness / self.settings.tokens_per_second
        due = time.monotonic() + slowness * self.settings.first_token_seconds
        ended.reason = "length" if cut else "stop"
        with contextlib.closing(self._tokens(messages, options, wanted, ended)) as tokens:
            for token in tokens:
                self._wait(due)
                due += period
                ended.tokens += 1
                yield token
        self._wait(due)

    def _wait(self, due: float) -> None:
        while True:
            if fault("device-lost") or fault("no-device"):
                time.sleep(self.settings.read_timeout_seconds)
                raise Refused("read failed!")
            left = due - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.2))

    def _tokens(self, messages: list[Json], options: Json, wanted: int, ended: Ended) -> Generator[str, None, None]:
        """At most `wanted` pieces of llama-server's answer. Raises Refused when it fails."""
        body: Json = {"messages": messages, "stream": True, "max_tokens": max(wanted, 1)}
        body |= {key: options[key] for key in ("temperature", "seed", "top_k", "top_p") if options.get(key) is not None}
        if options.get("frequency_penalty") is not None:
            body["frequency_penalty"] = options["frequency_penalty"]
        count = 0
        assert self.port is not None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            try:
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                if response.status != 200:
                    hailort(f"generation failed: {response.read(300)!r}")
                    raise Refused("read failed!")
                while count < wanted and (line := response.readline()):
                    if not line.startswith(b"data: {"):
                        continue
                    choice = json.loads(line[6:])["choices"][0]
                    piece = choice["delta"].get("content")
                    if piece:
                        count += 1
                        yield piece
                    if choice.get("finish_reason") == "stop":
                        ended.reason = "stop"
                    if choice.get("finish_reason"):
                        return
            except (OSError, http.client.HTTPException, ValueError, KeyError, IndexError) as error:
                hailort(f"generation failed: {error!r}")
                raise Refused("read failed!") from error


# --- HTTP


@dataclass
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """An answer with a body. `lines` in place of it: a stream, cut off after the last if `truncated`."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    lines: Generator[Json, None, None] | None = None
    truncated: bool = False


def answer_json(value: Json, status: int = 200) -> Answer:
    return Answer(status, dumps(value).encode(), "application/json")


class Server:
    def __init__(self, config: Config, store: Store, npu: Npu) -> None:
        self.config, self.store, self.npu = config, store, npu
        self.random = Rand()
        self.routes: dict[tuple[str, str], tuple[Callable[..., Answer], Json | None]] = {
            ("GET", "/"): (lambda: Answer(body=b"hailo-ollama is running"), None),
            # Constant: what tools compare with versions of Ollama.
            ("GET", "/api/version"): (lambda: answer_json({"version": "0.5.1"}), None),
            ("GET", "/api/tags"): (self.tags, None),
            ("GET", "/hailo/v1/list"): (lambda: answer_json({"models": list(self.store.by_name)}), None),
            ("GET", "/api/ps"): (self.running, None),
            ("POST", "/api/show"): (self.show, _MODEL),
            ("POST", "/api/pull"): (self.pull, _PULL),
            ("DELETE", "/api/delete"): (self.delete, _MODEL),
            ("POST", "/api/generate"): (self.generate, _GENERATE),
            ("POST", "/api/chat"): (self.chat, _CHAT),
            ("POST", "/v1/chat/completions"): (self.completions, _COMPLETIONS),
        }

    def handle(self, request: Request) -> Answer:
        path = request.target.partition("?")[0].rstrip("/") or "/"
        route = self.routes.get((request.method, path))
        if route is None:
            first = f"No mapping for HTTP-method: '{request.method}', URL: '{request.target}'"
            return Answer(404, error_page(404, first))
        handler, shape = route
        try:
            if shape is None:
                return handler()
            return handler(read_body(request.body, request.headers.get("content-type"), shape))
        except Refused as error:
            return Answer(500, error_page(500, str(error)))

    # What the original answers, route by route

    def entry(self, model: Model) -> Json:
        status = self.store.blob(model).stat()
        return {
            "name": model.name,
            "model": model.name,
            # The same file's time differs by nanoseconds from call to call.
            "modified_at": timestamp(status.st_mtime_ns - random.randrange(32)),
            "size": status.st_size,
            "details": self.details(model),
        }

    @staticmethod
    def details(model: Model) -> Json:
        found = model.manifest.get("details") or {}
        names = ("parent_model", "format", "family", "families", "parameter_size", "quantization_level")
        return {name: found.get(name) for name in names}

    def tags(self) -> Answer:
        pulled = [model for name in self.store.by_name if (model := self.store.pulled(name))]
        return answer_json({"models": [self.entry(model) for model in pulled]})

    def running(self) -> Answer:
        with self.npu.turn:
            model, expires = self.npu.model, self.npu.expires
            loaded = self.npu.port is not None
        if model is None or not loaded or not self.store.pulled(model.name):
            return answer_json({"models": []})
        shown = NEVER if expires is None else timestamp(expires)
        return answer_json({"models": [{**self.entry(model), "expires_at": shown}]})

    def show(self, body: Json) -> Answer:
        name = text_of(body["model"])
        model = self.store.pulled(name)
        if model is None:
            return not_found(name)
        stops = (model.manifest.get("generation_params") or {}).get("stop_tokens") or []
        template = (model.manifest.get("template_params") or {}).get("chat_template") or ""
        return answer_json(
            {
                "license": model.manifest.get("license") or "",
                "modelfile": "",
                "parameters": "\n".join(f'stop{" " * 29}"{stop}"' for stop in stops),
                "template": template,
                "details": self.details(model),
                "model_info": "",
                "modified_at": self.entry(model)["modified_at"],
            }
        )

    def pull(self, body: Json) -> Answer:
        name = text_of(body["model"])
        model = self.store.by_name.get(name)
        if model is None:
            return not_found(name)
        if body["stream"] is False:
            self.store.pull(model, self.config, lambda _: None)
            return answer_json({"status": "success"})
        return Answer(content_type="application/x-ndjson", lines=self.pulling(model), truncated=True)

    def pulling(self, model: Model) -> Generator[Json, None, None]:
        """A streamed pull. The original pulls on a thread where nothing catches what is thrown."""
        events: queue.SimpleQueue[Json | Exception | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self.store.pull(model, self.config, events.put)
                events.put(None)
            except Exception as error:  # whatever it is: it ends the server
                events.put(Terminated(str(error)))

        threading.Thread(target=work, daemon=True).start()
        while (event := events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event

    def delete(self, body: Json) -> Answer:
        model = self.store.pulled(text_of(body["model"]))
        if model is None:
            return answer_json({"code": "not_found", "error": "model not found"}, 404)
        self.store.blob(model).unlink()
        return Answer()

    def generate(self, body: Json) -> Answer:
        prompt = body["prompt"]
        messages = None if prompt is None else [{"role": "user", "content": prompt}]
        return self.complete(body, messages, lambda text: {"response": text})

    def chat(self, body: Json) -> Answer:
        return self.complete(body, body["messages"], lambda text: {"message": {"role": "assistant", "content": text}})

    def complete(self, body: Json, messages: list[Json] | None, said: Callable[[str], Json]) -> Answer:
        """/api/generate and /api/chat: they differ in where the text stands."""
        name = text_of(body["model"])
        model = self.store.pulled(name)
        if model is None:
            return not_found(name)
        keep_alive = body["keep_alive"]
        keep_alive = None if keep_alive is None else int(keep_alive)
        if messages is None:
            with self.npu.turn:
                if keep_alive == 0:
                    self.npu.reset()
                else:
                    self.npu.load(model, self.store.blob(model), keep_alive)
            reason = "unload" if keep_alive == 0 else "load"
            return answer_json(
                {
                    "model": name,
                    "created_at": timestamp(time.time_ns()),
                    **said(""),
                    "done": True,
                    "done_reason": reason,
                }
            )
        options = body["options"] or {}
        if body["stream"] is False:
            text, ended, nanoseconds = self.whole(model, messages, options, keep_alive)
            return answer_json({"model": name, **final(said(text), ended, nanoseconds)})
        return Answer(
            content_type="application/x-ndjson",
            lines=self.streamed(model, messages, options, keep_alive, said),
        )

    def whole(
        self, model: Model, messages: list[Json], options: Json, keep_alive: int | None
    ) -> tuple[str, Ended, int]:
        ended = Ended()
        with self.npu.turn:
            self.npu.load(model, self.store.blob(model), keep_alive)
            began = time.monotonic_ns()
            text = "".join(self.npu.generate(cleaned(messages), options, ended))
            nanoseconds = time.monotonic_ns() - began
            self.npu.expire()
        return text, ended, nanoseconds

    def streamed(
        self,
        model: Model,
        messages: list[Json],
        options: Json,
        keep_alive: int | None,
        said: Callable[[str], Json],
    ) -> Generator[Json, None, None]:
        """A stream's lines. The turn is kept until the last of them, or until the client is gone."""
        ended = Ended()
        with self.npu.turn:
            self.npu.load(model, self.store.blob(model), keep_alive)
            began = time.monotonic_ns()
            # Closed at once when the client is gone: llama-server then stops too.
            with contextlib.closing(self.npu.generate(cleaned(messages), options, ended)) as tokens:
                for token in tokens:
                    now = timestamp(time.time_ns())
                    yield {"model": model.name, "created_at": now, **said(token), "done": False}
            nanoseconds = time.monotonic_ns() - began
            self.npu.expire()
            yield {"model": model.name, **final(said(""), ended, nanoseconds)}

    def completions(self, body: Json) -> Answer:
        if body["messages"] is None:
            return answer_json({"error": "messages field is required"})
        if body["n"] not in (None, 1):
            return answer_json({"error": "only n == 1 is supported"})
        if body["stream"]:
            return answer_json({"error": "streaming not supported on this endpoint. Use /api/chat endpoint instead."})
        name = text_of(body["model"])
        model = self.store.pulled(name)
        if model is None:
            return not_found(name)
        options = {key: body[key] for key in ("temperature", "seed", "top_p", "frequency_penalty")}
        limit = body["max_completion_tokens"]
        options["num_predict"] = body["max_tokens"] if limit is None else limit
        text, ended, _ = self.whole(model, body["messages"], options, None)
        return answer_json(
            {
                "id": f"chatcmpl-{self.random.next()}",
                "object": "chat.completion",
                # Nanoseconds, where OpenAI has seconds.
                "created": time.time_ns(),
                "model": name,
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": ended.reason,
                    }
                ],
            }
        )


def not_found(name: str) -> Answer:
    """Status 200, as the original has it before 5.4.0."""
    return answer_json({"error": f"model '{name}' not found"})


def final(said: Json, ended: Ended, nanoseconds: int) -> Json:
    return {
        "created_at": timestamp(time.time_ns()),
        **said,
        "done": True,
        "done_reason": ended.reason,
        "total_duration": nanoseconds,
        "eval_count": ended.tokens,
    }


def cleaned(messages: list[Json]) -> list[Json]:
    return [{"role": message["role"] or "user", "content": message["content"] or ""} for message in messages if message]


@dataclass
class Rand:
    """rand() of glibc with its first seed: random(3), type 3."""

    state: list[int] = field(default_factory=list)

    def next(self) -> int:
        if not self.state:
            state = [1]
            for _ in range(30):
                state.append(16807 * state[-1] % 2147483647)
            state += state[:3]
            for index in range(34, 344):
                state.append((state[index - 31] + state[index - 3]) % 2**32)
            self.state = state[-31:]
        value = (self.state[-31] + self.state[-3]) % 2**32
        self.state = [*self.state[1:], value]
        return value >> 1


REASONS = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}


class Connection:
    """One client: a thread of its own, request after request."""

    def __init__(self, server: Server, client: socket.socket) -> None:
        self.server, self.client = server, client
        self.file = client.makefile("rb")

    def serve(self) -> None:
        with contextlib.suppress(OSError, ValueError), self.client, self.file:
            while (request := self.read()) is not None:
                if not self.write(self.server.handle(request)) or request.headers.get("connection") == "close":
                    return

    def read(self) -> Request | None:
        line = self.file.readline(65537).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while (text := self.file.readline(65537).decode("latin-1").strip()) != "":
            name, _, value = text.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.file.readline().split(b";")[0], 16):
                body += self.file.read(size)
                self.file.readline()
            self.file.readline()
        else:
            body = self.file.read(int(headers.get("content-length") or 0))
        return Request(line[0], line[1], headers, body)

    def write(self, answer: Answer) -> bool:
        """Sends an answer; False if the connection is at its end."""
        if answer.lines is not None:
            return self.stream(answer)
        failed = answer.status != 200 and answer.content_type is None
        head = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}", f"Content-Length: {len(answer.body)}"]
        if answer.content_type:
            head.append(f"Content-Type: {answer.content_type}")
        head += [f"Connection: {'close' if failed else 'keep-alive'}", "Server: oatpp/1.4.0"]
        self.client.sendall("\r\n".join([*head, "", ""]).encode() + answer.body)
        return not failed

    def stream(self, answer: Answer) -> bool:
        assert answer.lines is not None
        head = ["HTTP/1.1 200 OK", "Connection: keep-alive", "Transfer-Encoding: chunked", "Server: oatpp/1.4.0"]
        waiting = "\r\n".join([*head, f"Content-Type: {answer.content_type}", "", ""]).encode()
        with contextlib.closing(answer.lines) as lines:
            try:
                for line in lines:
                    text = dumps(line).encode() + b"\r\n"
                    self.client.sendall(waiting + f"{len(text):X}\r\n".encode() + text + b"\r\n")
                    waiting = b""
            except Refused as error:
                # Before the first line there is still a page to answer with; after it the stream ends where it is.
                if waiting:
                    return self.write(Answer(500, error_page(500, str(error))))
                return False
            except Terminated as error:
                terminate(str(error))
        if answer.truncated:
            return False
        self.client.sendall(waiting + b"0\r\n\r\n")
        return True


# --- The process

SPAWNER = Spawner()


def die(number: signal.Signals) -> NoReturn:
    """Ends this program by a signal that it does not handle, and its child with it."""
    SPAWNER.end()
    sys.stdout.flush()
    sys.stderr.flush()
    signal.raise_signal(number)
    os._exit(128 + number)


def terminate(what: str) -> NoReturn:
    """How C++ ends a program that threw and did not catch."""
    print(
        f"terminate called after throwing an instance of 'std::runtime_error'\n  what():  {what}",
        file=sys.stderr,
        flush=True,
    )
    die(signal.SIGABRT)


def listen(config: Config) -> socket.socket:
    where = "[oatpp::network::tcp::server::ConnectionProvider::instantiateServer()]"
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        log("E", f"{where}:Error. Couldn't bind. {reason}")
        raise Terminated(f"{where}: Error. Couldn't bind {reason}") from error
    return listener


def accept(listener: socket.socket, server: Server) -> None:
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=Connection(server, client).serve, daemon=True).start()


def keep(npu: Npu, seconds: float) -> None:
    """Unloads the model when its time is over."""
    while True:
        time.sleep(seconds)
        with npu.turn:
            npu.expire()


def stop(*_: object) -> NoReturn:
    SPAWNER.end()
    os._exit(0)


def main() -> NoReturn:
    # A core of an emulation is of no use.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linked = ROOT / "usr/lib/bramble-lab/libhailort"
    if not linked.is_file() or linked.read_text(encoding="ascii").strip() != VERSION:
        library = f"libhailort.so.{VERSION}"
        print(
            f"hailo-ollama: error while loading shared libraries: {library}: cannot open shared object file: "
            "No such file or directory",
            file=sys.stderr,
        )
        sys.exit(127)
    try:
        config = read_config()
        store = Store()
        npu = Npu(read_settings(), SPAWNER)
        listener = listen(config)
    except Terminated as error:
        terminate(str(error))
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    threading.Thread(target=accept, args=(listener, Server(config, store, npu)), daemon=True).start()
    threading.Thread(target=keep, args=(npu, config.poll_seconds), daemon=True).start()
    log("I", f"MyApp:Server running on port {config.port}")
    SPAWNER.serve()


if __name__ == "__main__":
    main()
