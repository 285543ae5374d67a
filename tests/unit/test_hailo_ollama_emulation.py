"""The lab's hailo-ollama against exchanges captured from version 5.1.1's own server code."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from by_path import ROOT, load
from hypothesis import given
from hypothesis import strategies as st

hailo_ollama = load("lab/packages/hailo_ollama.py")
LLAMA_SERVER = ROOT / "tests/unit/llama_stream_emulation.py"
MODEL = "qwen2.5-instruct:1.5b"
OTHER = "qwen2:1.5b"
BIG = "tiny:1b"
BLOBS = {MODEL: b"GGUF one", OTHER: b"GGUF two", BIG: b"GGUF" + bytes(7_000_000)}
DETAILS = (
    '"details":{"parent_model":"","format":"hef","family":"qwen2.5","families":["qwen2.5"],"parameter_size":"1.5B",'
    '"quantization_level":"Q4_0"}'
)
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
ANSWER = r"Hello caf\u00E9 a\/b \"q\"\n done."
Json = dict[str, Any]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Emulation:
    """One server with its directories, its emulated hardware and its library."""

    def __init__(self, base: Path) -> None:
        self.root, self.data, self.config = base / "root", base / "data", base / "config"
        self.process: subprocess.Popen[str] | None = None
        self.port = free_port()
        self.library = free_port()
        self.write(self.root / "run/bramble-lab/sys/module/hailo1x_pci/version", "5.1.1\n")
        self.write(self.root / "run/bramble-lab/npu.lock", "")
        self.write(self.root / "usr/lib/bramble-lab/libhailort", "5.1.1\n")
        self.write(self.root / "etc/bramble-lab/faults/.keep", "")
        self.write(self.root / "dev/hailo0", "")
        settings = {"tokens_per_second": 200, "first_token_seconds": 0.01, "load_seconds": 0, "read_timeout_seconds": 0}
        self.settings = {"llama_server": str(LLAMA_SERVER), **settings}
        for name, blob in BLOBS.items():
            model, tag = name.split(":")
            manifest = {
                "hef_h10h": digest(blob),
                "template_params": {"chat_template": "{%- if tools %}</tools>"},
                "generation_params": {"stop_tokens": ["<|im_end|>", "<|endoftext|>"]},
                "license": None,
                "details": json.loads("{" + DETAILS + "}")["details"],
            }
            path = self.data / f"hailo-ollama/models/manifests/{model}/{tag}/manifest.json"
            self.write(path, json.dumps(manifest))
        (self.data / "hailo-ollama/models/blob").mkdir()
        self.put(MODEL)

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def blob(self, model: str) -> Path:
        return self.data / f"hailo-ollama/models/blob/sha256_{digest(BLOBS[model])}"

    def put(self, model: str) -> None:
        self.blob(model).write_bytes(BLOBS[model])

    def fault(self, name: str) -> None:
        (self.root / "etc/bramble-lab/faults" / name).touch()

    def mend(self, name: str) -> None:
        (self.root / "etc/bramble-lab/faults" / name).unlink()

    def start(self) -> None:
        server = {"host": "127.0.0.1", "port": self.port}
        config = {
            "server": server,
            "library": {"host": "127.0.0.1", "port": self.library},
            "main_poll_time_ms": 50,
        }
        self.write(self.config / "hailo-ollama/hailo-ollama.json", json.dumps(config))
        self.write(self.root / "etc/bramble-lab/hat.json", json.dumps(self.settings))
        self.run()
        until(self.listens)

    def run(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "BRAMBLE_LAB_ROOT": str(self.root),
            "XDG_CONFIG_HOME": str(self.config),
            "XDG_CONFIG_DIRS": str(self.config / "none"),
            "XDG_DATA_HOME": str(self.data),
            "XDG_DATA_DIRS": str(self.data / "none"),
        }
        command = [sys.executable, str(ROOT / "lab/packages/hailo_ollama.py"), *arguments]
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        return self.process

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.process.communicate()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def end(self) -> tuple[int, str, str]:
        """How the server ended: its return code, its log and its last words."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err

    def exchange(self, request: bytes) -> bytes:
        """What the server answers to these bytes, until it closes or a whole answer is there."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as client:
            client.sendall(request)
            answer = b""
            while piece := client.recv(65536):
                answer += piece
                head, found, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                if found and ((length and len(body) >= int(length[1])) or body.endswith(b"0\r\n\r\n")):
                    break
            return answer

    def ask(self, method: str, target: str, body: Json | None = None, content_type: str = "application/json") -> str:
        """An exchange as text, head and body."""
        content = b"" if body is None else json.dumps(body).encode()
        return self.send(method, target, content, content_type)

    def send(self, method: str, target: str, content: bytes, content_type: str = "application/json") -> str:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        head += f"Content-Type: {content_type}\r\n" if content_type else ""
        return self.exchange(head.encode() + b"\r\n" + content).decode()

    def body(self, method: str, target: str, body: Json | None = None) -> str:
        return self.ask(method, target, body).partition("\r\n\r\n")[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def emulation(tmp_path: Path) -> Iterator[Emulation]:
    made = Emulation(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.communicate()


@pytest.fixture
def server(emulation: Emulation) -> Emulation:
    emulation.start()
    return emulation


@pytest.fixture
def library(emulation: Emulation) -> Iterator[dict[str, bytes]]:
    """The library's blobs by their paths; what is not there is a 404 with a text."""
    blobs = {f"/blob/sha256_{digest(blob)}": blob for blob in BLOBS.values()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = blobs.get(self.path)
            self.send_response(404 if content is None else 200)
            content = b"not here" if content is None else content
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    http_server = ThreadingHTTPServer(("127.0.0.1", emulation.library), Handler)
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield blobs
    http_server.shutdown()
    http_server.server_close()


def page(status: int, first: str) -> str:
    reason = {404: "Not Found", 500: "Internal Server Error"}[status]
    controller = "  - [ApiController]: Error processing request\n" if status == 500 else ""
    text = (
        f"server=oatpp/1.4.0\ncode={status}\ndescription={reason}\nstacktrace:\n  - {first}\n{controller}"
        "  - Error processing request\n"
    )
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(text)}\r\nConnection: close\r\nServer: oatpp/1.4.0"
    return f"{head}\r\n\r\n{text}"


def ok(text: str) -> str:
    """An answer in JSON."""
    return (
        f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\nContent-Type: application/json\r\n"
        f"Connection: keep-alive\r\nServer: oatpp/1.4.0\r\n\r\n{text}"
    )


STREAM = (
    "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nServer: oatpp/1.4.0\r\n"
    "Content-Type: application/x-ndjson\r\n\r\n"
)


def lines(stream: str) -> tuple[list[str], bool]:
    """The lines of a chunked stream, and whether it ended as it should."""
    assert stream.startswith(STREAM), stream
    rest, found = stream.removeprefix(STREAM), []
    while rest:
        size, _, rest = rest.partition("\r\n")
        if size == "0":
            assert rest == "\r\n"
            return found, True
        line, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        assert line.endswith("\r\n"), line
        found.append(line.removesuffix("\r\n"))
    return found, False


# --- What is asked, and answered to the byte

PRIMITIVE = "[oatpp::data::mapping::TreeToObjectMapper::mapPrimitive()]: Value is NOT a Primitive type"
NO_STRING = "[oatpp::data::mapping::TreeToObjectMapper::mapString()]: Node is NOT a STRING"
HI = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
EXACT: list[tuple[str, str, Json | None, str]] = [
    (
        "GET",
        "/",
        None,
        "HTTP/1.1 200 OK\r\nContent-Length: 23\r\nConnection: keep-alive\r\nServer: oatpp/1.4.0\r\n\r\n"
        "hailo-ollama is running",
    ),
    ("GET", "/api/version", None, ok('{"version":"0.5.1"}')),
    ("GET", "/api/version/", None, ok('{"version":"0.5.1"}')),
    ("GET", "/api/version?x=1", None, ok('{"version":"0.5.1"}')),
    ("GET", "/hailo/v1/list", None, ok('{"models":["qwen2.5-instruct:1.5b","qwen2:1.5b","tiny:1b"]}')),
    ("GET", "/api/ps", None, ok('{"models":[]}')),
    ("POST", "/api/show", {"model": "nope:1b"}, ok('{"error":"model \'nope:1b\' not found"}')),
    ("POST", "/api/show", {"model": OTHER}, ok(f'{{"error":"model \'{OTHER}\' not found"}}')),
    ("POST", "/api/pull", {"model": "nope:1b"}, ok('{"error":"model \'nope:1b\' not found"}')),
    ("POST", "/api/pull", {"model": MODEL, "stream": False}, ok('{"status":"success"}')),
    ("POST", "/api/generate", {"model": "qwen2.5-instruct"}, ok('{"error":"model \'qwen2.5-instruct\' not found"}')),
    ("GET", "/v1/models", None, page(404, "No mapping for HTTP-method: 'GET', URL: '/v1/models'")),
    ("POST", "/api/embed", {}, page(404, "No mapping for HTTP-method: 'POST', URL: '/api/embed'")),
    ("POST", "/api/delete", HI, page(404, "No mapping for HTTP-method: 'POST', URL: '/api/delete'")),
    ("HEAD", "/", None, page(404, "No mapping for HTTP-method: 'HEAD', URL: '/'")),
    ("OPTIONS", "/api/chat", None, page(404, "No mapping for HTTP-method: 'OPTIONS', URL: '/api/chat'")),
    ("POST", "/api/generate", {"model": MODEL, "prompt": "hi", "keep_alive": "5m"}, page(500, PRIMITIVE)),
    ("POST", "/api/generate", {"model": MODEL, "prompt": "hi", "format": {"type": "object"}}, page(500, NO_STRING)),
    ("POST", "/api/chat", {**HI, "tools": [{"type": "function"}]}, page(500, NO_STRING)),
    ("POST", "/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": [{}]}]}, page(500, NO_STRING)),
    (
        "POST",
        "/api/generate",
        {},
        page(500, "[oatpp::data::type::String::operator std::string() const]: Error. Null pointer."),
    ),
    (
        "POST",
        "/api/generate",
        {"model": MODEL, "prompt": "x", "options": {"num_predict": 0}},
        page(500, "Failed to set max_generated_tokens"),
    ),
    ("POST", "/v1/chat/completions", {"model": MODEL}, ok('{"error":"messages field is required"}')),
    ("POST", "/v1/chat/completions", {**HI, "n": 2}, ok('{"error":"only n == 1 is supported"}')),
    (
        "POST",
        "/v1/chat/completions",
        {**HI, "stream": True},
        ok(r'{"error":"streaming not supported on this endpoint. Use \/api\/chat endpoint instead."}'),
    ),
    (
        "DELETE",
        "/api/delete",
        {"model": OTHER},
        ok('{"code":"not_found","error":"model not found"}').replace("200 OK", "404 Not Found"),
    ),
    (
        "DELETE",
        "/api/delete",
        {"model": MODEL},
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nServer: oatpp/1.4.0\r\n\r\n",
    ),
]


def test_exact_exchanges(server: Emulation) -> None:
    for method, target, body, expected in EXACT:
        assert server.ask(method, target, body) == expected, (method, target, body)


def test_the_captured_lengths() -> None:
    # Lengths that the original sent: the pages above are its own, line ends included.
    assert "Content-Length: 148" in page(404, "No mapping for HTTP-method: 'GET', URL: '/v1/models'")
    assert "Content-Length: 243" in page(500, PRIMITIVE)
    assert "Content-Length: 211" in page(500, "No suitable mapper found to deserialize the request body.")


@pytest.mark.parametrize(
    ("content", "content_type", "first"),
    [
        (b'{"model":"x"}', "text/plain", "No suitable mapper found to deserialize the request body."),
        (b"model=x", "application/x-www-form-urlencoded", "No suitable mapper found to deserialize the request body."),
        (b"{bad json", "application/json", "[oatpp::json::Deserializer::deserializeMap()]: Item key name expected"),
        (b"", "application/json", "[json]: Unknown character."),
    ],
)
def test_bodies_that_are_refused(server: Emulation, content: bytes, content_type: str, first: str) -> None:
    assert server.send("POST", "/api/generate", content, content_type) == page(500, first)


def test_content_types_that_are_taken(server: Emulation) -> None:
    for content_type in ("", "Application/JSON", "application/json; charset=utf-8"):
        answer = server.send("POST", "/api/show", b'{"model":"nope:1b"}', content_type)
        assert answer == ok('{"error":"model \'nope:1b\' not found"}')


def test_models_that_are_there(server: Emulation) -> None:
    entry = rf'{{"name":"{MODEL}","model":"{MODEL}","modified_at":"{TIME}","size":8,{re.escape(DETAILS)}'
    assert re.fullmatch(rf'{{"models":\[{entry}}}\]}}', server.body("GET", "/api/tags"))
    shown = server.body("POST", "/api/show", {"model": MODEL})
    stops = r"stop<29>\"<|im_end|>\"\nstop<29>\"<|endoftext|>\"".replace("<29>", " " * 29)
    head = f'{{"license":"","modelfile":"","parameters":"{stops}","template":"{{%- if tools %}}<\\/tools>",{DETAILS}'
    assert re.fullmatch(re.escape(f'{head},"model_info":"","modified_at":"') + TIME + '"}', shown)
    assert json.loads(server.body("POST", "/api/generate", {"model": MODEL}))["done_reason"] == "load"
    assert re.fullmatch(rf'{{"models":\[{entry},"expires_at":"{TIME}"}}\]}}', server.body("GET", "/api/ps"))


def test_load_and_unload(server: Emulation) -> None:
    began = time.time()
    loaded = server.body("POST", "/api/generate", {"model": MODEL, "keep_alive": 60})
    expected = rf'{{"model":"{MODEL}","created_at":"{TIME}","response":"","done":true,"done_reason":"load"}}'
    assert re.fullmatch(expected, loaded)
    expires = json.loads(server.body("GET", "/api/ps"))["models"][0]["expires_at"]
    assert abs(time.mktime(time.strptime(expires[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - began - 60) < 5
    unloaded = server.body("POST", "/api/chat", {"model": MODEL, "keep_alive": 0})
    message = '"message":{"role":"assistant","content":""}'
    expected = rf'{{"model":"{MODEL}","created_at":"{TIME}",{message},"done":true,"done_reason":"unload"}}'
    assert re.fullmatch(expected, unloaded)
    assert server.body("GET", "/api/ps") == '{"models":[]}'
    server.body("POST", "/api/generate", {"model": MODEL, "keep_alive": -1})
    assert '"expires_at":"1734-08-11T20:37:21.-669314532Z"' in server.body("GET", "/api/ps")


def test_a_model_is_unloaded_when_its_time_is_over(server: Emulation) -> None:
    server.body("POST", "/api/generate", {"model": MODEL, "keep_alive": 1})
    assert server.body("GET", "/api/ps") != '{"models":[]}'
    until(lambda: server.body("GET", "/api/ps") == '{"models":[]}')


# --- Answers


def test_generate(server: Emulation) -> None:
    whole = server.body("POST", "/api/generate", {"model": MODEL, "prompt": "", "stream": False})
    head = rf'{{"model":"{MODEL}","created_at":"{TIME}",'
    tail = r'"done":true,"done_reason":"stop","total_duration":\d+,"eval_count":7}'
    assert re.fullmatch(head + re.escape(f'"response":"{ANSWER}",') + tail, whole)
    assert "HTTP/1.1 500" not in whole
    streamed, complete = lines(server.ask("POST", "/api/generate", {"model": MODEL, "prompt": "hi"}))
    assert complete
    assert len(streamed) == 8
    assert re.fullmatch(head + '"response":"Hello","done":false}', streamed[0])
    assert re.fullmatch(head + re.escape(r'"response":" caf\u00E9","done":false}'), streamed[1])
    assert re.fullmatch(head + '"response":"",' + tail, streamed[-1])


def test_chat(server: Emulation) -> None:
    head = rf'{{"model":"{MODEL}","created_at":"{TIME}","message":{{"role":"assistant","content":'
    options = {"num_predict": 3, "temperature": 0, "num_ctx": 4096, "stop": ["x"]}
    whole = server.body("POST", "/api/chat", {**HI, "stream": False, "options": options})
    # The last token of a generation is not passed on.
    tail = r'},"done":true,"done_reason":"length","total_duration":\d+,"eval_count":2}'
    assert re.fullmatch(head + re.escape(r'"Hello caf\u00E9"') + tail, whole)
    streamed, complete = lines(server.ask("POST", "/api/chat", HI))
    assert complete
    assert re.fullmatch(head + r'"Hello"},"done":false}', streamed[0])
    assert re.fullmatch(
        head + r'""},"done":true,"done_reason":"stop","total_duration":\d+,"eval_count":7}', streamed[-1]
    )
    asked = [json.loads(line) for line in Path(f"{server.blob(MODEL)}.asked").read_text().splitlines()]
    assert asked[0]["messages"] == HI["messages"]
    assert asked[0]["temperature"] == 0


@pytest.mark.parametrize(("limit", "tokens", "reason"), [(1, 0, "length"), (2, 1, "length"), (-1, 7, "stop")])
def test_limits(server: Emulation, limit: int, tokens: int, reason: str) -> None:
    body = {"model": MODEL, "prompt": "x", "stream": False, "options": {"num_predict": limit}}
    answer = json.loads(server.body("POST", "/api/generate", body))
    assert (answer["eval_count"], answer["done_reason"]) == (tokens, reason)


def test_the_openai_endpoint(server: Emulation) -> None:
    answers = [server.body("POST", "/v1/chat/completions", HI) for _ in range(2)]
    # rand() with its first seed, and nanoseconds.
    for number, answer in zip((1804289383, 846930886), answers, strict=True):
        head = f'{{"id":"chatcmpl-{number}","object":"chat.completion","created":'
        message = f'{{"index":0,"message":{{"role":"assistant","content":"{ANSWER}"}},"finish_reason":"stop"}}'
        tail = f',"model":"{MODEL}","choices":[{message}]}}'
        assert re.fullmatch(re.escape(head) + r"\d{19}" + re.escape(tail), answer)
    short = json.loads(server.body("POST", "/v1/chat/completions", {**HI, "max_tokens": 3}))
    assert short["choices"][0]["finish_reason"] == "length"


def test_the_rate(emulation: Emulation) -> None:
    emulation.settings |= {"tokens_per_second": 20, "first_token_seconds": 0.2}
    emulation.start()
    answer = json.loads(emulation.body("POST", "/api/generate", {"model": MODEL, "prompt": "x", "stream": False}))
    # 0.2 s to the first of seven tokens, 1/20 s for each that follows and for the one that is not passed on.
    assert answer["total_duration"] / 1e9 == pytest.approx(0.2 + 7 / 20, abs=0.15)


def test_one_at_a_time(emulation: Emulation) -> None:
    emulation.settings |= {"tokens_per_second": 10}
    emulation.start()
    emulation.body("POST", "/api/generate", {"model": MODEL})
    ended: dict[str, float] = {}

    def ask(name: str, method: str, target: str, body: Json | None) -> None:
        emulation.ask(method, target, body)
        ended[name] = time.monotonic()

    asked = {"model": MODEL, "prompt": "x", "stream": False}
    first = threading.Thread(target=ask, args=("generate", "POST", "/api/generate", asked))
    first.start()
    until(lambda: Path(f"{emulation.blob(MODEL)}.asked").exists())
    began = time.monotonic()
    others = [
        threading.Thread(target=ask, args=(path, "GET", path, None))
        for path in ("/api/ps", "/api/version", "/api/tags", "/hailo/v1/list")
    ]
    for thread in others:
        thread.start()
    for thread in [first, *others]:
        thread.join()
    assert ended["/api/ps"] >= ended["generate"] - 0.05
    assert all(ended[path] - began < 0.5 for path in ("/api/version", "/api/tags", "/hailo/v1/list"))


def test_a_client_that_goes_away_frees_the_processor(emulation: Emulation) -> None:
    emulation.settings |= {"tokens_per_second": 2}
    emulation.start()
    connection = http.client.HTTPConnection("127.0.0.1", emulation.port, timeout=20)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/api/generate", json.dumps({"model": MODEL, "prompt": "x"}), headers)
    response = connection.getresponse()
    assert response.readline()
    response.close()
    connection.close()
    began = time.monotonic()
    emulation.body("GET", "/api/ps")
    # Seven tokens would take 3.5 s; the next writes fail.
    assert time.monotonic() - began < 2.5


# --- Pulls


def test_a_streamed_pull_is_cut_off(server: Emulation, library: dict[str, bytes]) -> None:
    steps, complete = lines(server.ask("POST", "/api/pull", {"model": BIG}))
    pulling = f'{{"status":"pulling","digest":"{digest(BLOBS[BIG])}","total":{len(BLOBS[BIG])},"completed":'
    assert steps == [
        f"{pulling}3276800}}",
        f"{pulling}6553600}}",
        '{"status":"verifying sha256 digest"}',
        '{"status":"success"}',
    ]
    assert not complete
    assert lines(server.ask("POST", "/api/pull", {"model": BIG})) == (['{"status":"success"}'], False)
    assert server.blob(BIG).read_bytes() == BLOBS[BIG]


def test_a_pull_in_one_answer(server: Emulation, library: dict[str, bytes]) -> None:
    assert server.ask("POST", "/api/pull", {"model": OTHER, "stream": False}) == ok('{"status":"success"}')
    assert server.blob(OTHER).read_bytes() == BLOBS[OTHER]
    library.clear()
    assert server.ask("POST", "/api/pull", {"model": BIG, "stream": False}) == page(500, "bad hash")
    assert not server.blob(BIG).exists()
    assert server.ask("GET", "/api/version") == ok('{"version":"0.5.1"}')


def test_a_streamed_pull_that_fails_kills_the_server(server: Emulation, library: dict[str, bytes]) -> None:
    library.clear()
    answer = server.ask("POST", "/api/pull", {"model": OTHER})
    assert lines(answer) == (['{"status":"verifying sha256 digest"}'], False)
    code, _, err = server.end()
    assert code == -signal.SIGABRT
    assert "terminate called after throwing an instance of 'std::runtime_error'\n  what():  bad hash\n" in err


def test_a_library_that_cannot_be_reached(server: Emulation) -> None:
    refused = "[oatpp::network::tcp::client::ConnectionProvider::getConnection()]: Error. Can't connect: "
    expected = page(500, refused + "Connection refused")
    assert server.ask("POST", "/api/pull", {"model": OTHER, "stream": False}) == expected
    assert server.ask("POST", "/api/pull", {"model": OTHER}) == ""
    assert server.end()[0] == -signal.SIGABRT


# --- The device


@pytest.mark.parametrize("fault", ["device-lost", "no-device", "busy", "version", "node", "other"])
def test_no_vdevice_then_a_segmentation_fault(emulation: Emulation, fault: str) -> None:
    held = None
    match fault:
        case "version":
            emulation.write(emulation.root / "run/bramble-lab/sys/module/hailo1x_pci/version", "5.2.0\n")
        case "node":
            (emulation.root / "dev/hailo0").unlink()
        case "other":
            # Another program has the processor, as rpicam's stages would.
            lock = shutil.which("flock")
            assert lock is not None
            held = subprocess.Popen([lock, str(emulation.root / "run/bramble-lab/npu.lock"), "sleep", "60"])
            time.sleep(0.2)
        case _:
            emulation.fault(fault)
    emulation.start()
    body = {"model": MODEL, "prompt": "x", "stream": False}
    assert emulation.ask("POST", "/api/generate", body) == page(500, "Failed to create VDevice")
    assert emulation.body("GET", "/api/ps") == '{"models":[]}'
    assert emulation.ask("POST", "/api/generate", body) == ""
    code, _, err = emulation.end()
    assert code == -signal.SIGSEGV
    if fault == "version":
        assert "CHECK failed - Driver version (5.2.0) is different from library version (5.1.1)" in err
    if held is not None:
        held.kill()
        held.wait()


def test_a_device_that_is_lost_while_a_model_is_loaded(emulation: Emulation) -> None:
    emulation.settings |= {"tokens_per_second": 4}
    emulation.start()
    body = {"model": MODEL, "prompt": "x"}
    connection = http.client.HTTPConnection("127.0.0.1", emulation.port, timeout=20)
    connection.request("POST", "/api/generate", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert b"Hello" in response.readline()
    emulation.fault("device-lost")
    with pytest.raises(http.client.IncompleteRead):
        response.read()
    assert emulation.ask("POST", "/api/generate", {**body, "stream": False}) == page(500, "read failed!")
    emulation.mend("device-lost")
    emulation.settings |= {"tokens_per_second": 200}
    assert '"done":true' in emulation.body("POST", "/api/generate", {**body, "stream": False})


def test_slow_is_a_tenth(emulation: Emulation) -> None:
    emulation.settings |= {"tokens_per_second": 100}
    emulation.fault("slow")
    emulation.start()
    answer = json.loads(emulation.body("POST", "/api/generate", {"model": MODEL, "prompt": "x", "stream": False}))
    assert answer["total_duration"] / 1e9 == pytest.approx(0.1 + 7 / 10, abs=0.2)


def test_what_stands_in_for_the_processor_is_not_there(emulation: Emulation) -> None:
    emulation.settings["llama_server"] = "/nowhere/llama-server"
    emulation.start()
    assert emulation.ask("POST", "/api/generate", {"model": MODEL}) == page(500, "Failed to create LLM")


def test_what_stands_in_for_the_processor_ends(server: Emulation) -> None:
    body = {"model": MODEL, "prompt": "die", "stream": False}
    assert server.ask("POST", "/api/generate", body) == page(500, "read failed!")
    assert server.ask("GET", "/api/version") == ok('{"version":"0.5.1"}')


# --- The process


def test_it_ends_cleanly_and_its_child_with_it(server: Emulation) -> None:
    server.body("POST", "/api/generate", {"model": MODEL})
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    assert len(children) == 1
    server.process.terminate()
    code, out, _ = server.end()
    assert code == 0
    assert f"MyApp:Server running on port {server.port}" in out
    assert not Path(f"/proc/{children[0]}").exists()


def test_arguments_are_ignored_so_a_second_one_aborts_on_the_port(server: Emulation) -> None:
    first, second = server.process, server.run("pull", MODEL)
    _, err = second.communicate(timeout=20)
    assert second.returncode == -signal.SIGABRT
    assert "ConnectionProvider::instantiateServer()]: Error. Couldn't bind Address already in use" in err
    server.process = first
    assert server.listens()


@pytest.mark.parametrize("missing", ["config", "data", "key", "manifests"])
def test_without_its_files_it_aborts(emulation: Emulation, missing: str) -> None:
    config: Json = {
        "server": {"host": "127.0.0.1", "port": emulation.port},
        "library": {"host": "127.0.0.1", "port": 1},
    }
    if missing != "key":
        config["main_poll_time_ms"] = 200
    if missing != "config":
        emulation.write(emulation.config / "hailo-ollama/hailo-ollama.json", json.dumps(config))
    if missing in ("data", "manifests"):
        shutil.rmtree(emulation.data / "hailo-ollama" / ("models/manifests" if missing == "manifests" else ""))
    emulation.run()
    code, _, err = emulation.end()
    assert code == -signal.SIGABRT
    assert "terminate called after throwing" in err


def test_without_its_library_it_does_not_start(emulation: Emulation) -> None:
    emulation.write(emulation.root / "usr/lib/bramble-lab/libhailort", "5.2.0\n")
    emulation.run()
    code, _, err = emulation.end()
    assert code == 127
    assert "libhailort.so.5.1.1: cannot open shared object file" in err


# --- Its parts


@given(st.text())
def test_any_text_is_written_so_that_json_reads_it(text: str) -> None:
    written = hailo_ollama.dumps({"a": text, "b": None, "c": [True, 1]})
    assert written.isascii()
    assert json.loads(written) == {"a": text, "c": [True, 1]}


@given(st.binary())
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(hailo_ollama.Refused):
        assert isinstance(hailo_ollama.read_body(body, None, hailo_ollama._CHAT), dict)


def test_rand_is_glibcs() -> None:
    rand = hailo_ollama.Rand()
    assert [rand.next() for _ in range(5)] == [1804289383, 846930886, 1681692777, 1714636915, 1957747793]
