"""The lab's ollama: what it stores, pulls and answers, in Ollama's formats."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
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
from test_hailo_ollama_emulation import LLAMA_SERVER, free_port, until

ollama = load("lab/packages/ollama.py")
BLOB = b"GGUF" + bytes(3_000_000)
MODEL = "qwen2.5:3b"
Json = dict[str, Any]


class Server:
    """`ollama serve` with a library that has one blob."""

    def __init__(self, base: Path) -> None:
        self.port, self.library = free_port(), free_port()
        self.models = base / "models"
        (base / "root/etc/bramble-lab").mkdir(parents=True)
        (base / "root/etc/bramble-lab/hat.json").write_text(json.dumps({"llama_server": str(LLAMA_SERVER)}))
        environment = {
            "PATH": os.environ["PATH"],
            "BRAMBLE_LAB_ROOT": str(base / "root"),
            "BRAMBLE_LAB_OLLAMA_BLOB": f"http://127.0.0.1:{self.library}/ollama-model.gguf",
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
        }
        command = [sys.executable, str(ROOT / "lab/packages/ollama.py"), "serve"]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        until(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None
        with contextlib.suppress(OSError):
            return self.ask("GET", "/")[0] == 200
        return False

    def ask(self, method: str, path: str, body: Json | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, response.read().decode()

    def lines(self, path: str, body: Json) -> list[Json]:
        status, text = self.ask("POST", path, body)
        assert status == 200, text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("ollama"))

    class Library(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BLOB)))
            self.end_headers()
            self.wfile.write(BLOB)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    library = ThreadingHTTPServer(("127.0.0.1", made.library), Library)
    threading.Thread(target=library.serve_forever, daemon=True).start()
    yield made
    library.shutdown()
    library.server_close()
    made.process.terminate()
    assert made.process.wait(timeout=20) == 0


@pytest.fixture(scope="module")
def pulled(server: Server) -> Server:
    steps = server.lines("/api/pull", {"model": MODEL})
    assert steps[0] == {"status": "pulling manifest"}
    assert steps[-1] == {"status": "success"}
    assert {"status": "verifying sha256 digest"} in steps
    return server


def test_fixed_answers(server: Server) -> None:
    assert server.ask("GET", "/") == (200, "Ollama is running")
    assert server.ask("HEAD", "/") == (200, "")
    assert server.ask("GET", "/api/version") == (200, json.dumps({"version": ollama.VERSION}))
    assert server.ask("GET", "/api/nothing") == (404, "404 page not found")


def test_what_is_not_there(server: Server) -> None:
    for path in ("/api/show", "/api/generate", "/api/chat"):
        body = {"model": "nope", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
        assert server.ask("POST", path, body) == (404, json.dumps({"error": "model 'nope:latest' not found"}))
    steps = server.lines("/api/pull", {"model": "nope"})
    assert steps[-1] == {"error": "pull model manifest: file does not exist"}
    status, text = server.ask("POST", "/api/pull", {"model": "nope", "stream": False})
    assert (status, json.loads(text)) == (500, {"error": "pull model manifest: file does not exist"})
    assert server.ask("POST", "/api/show", {})[0] == 400
    assert server.ask("POST", "/api/generate", {"model": "../../etc/passwd"})[0] == 400


def test_models(pulled: Server) -> None:
    [entry] = json.loads(pulled.ask("GET", "/api/tags")[1])["models"]
    assert (entry["name"], entry["size"]) == (MODEL, len(BLOB))
    assert entry["digest"] == hashlib.sha256(BLOB).hexdigest()
    assert (pulled.models / f"blobs/sha256-{entry['digest']}").read_bytes() == BLOB
    assert (pulled.models / "manifests/registry.ollama.ai/library/qwen2.5/3b").is_file()
    shown = json.loads(pulled.ask("POST", "/api/show", {"model": MODEL})[1])
    assert shown["details"]["format"] == "gguf"
    assert shown["capabilities"] == ["completion"]


def test_generate_and_chat(pulled: Server) -> None:
    first, *_, last = pulled.lines("/api/generate", {"model": MODEL, "prompt": "hi"})
    assert (first["response"], first["done"]) == ("Hello", False)
    assert (last["response"], last["done"], last["done_reason"], last["eval_count"]) == ("", True, "stop", 7)
    assert {"total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"} <= set(
        last
    )
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "options": {"num_predict": 2},
    }
    [answer] = pulled.lines("/api/chat", body)
    assert answer["message"] == {"role": "assistant", "content": "Hello café"}
    assert (answer["done_reason"], answer["eval_count"]) == ("length", 2)


def test_openai(pulled: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    answer = json.loads(pulled.ask("POST", "/v1/chat/completions", body)[1])
    assert answer["choices"][0]["message"]["content"] == "Hello café"
    assert answer["model"] == MODEL
    streamed = pulled.ask("POST", "/v1/chat/completions", {**body, "stream": True})[1]
    assert streamed.endswith("data: [DONE]\n\n")
    assert '"content": "Hello"' in streamed


def test_load_and_unload(pulled: Server) -> None:
    assert pulled.lines("/api/generate", {"model": MODEL, "keep_alive": "1m"})[0]["done_reason"] == "load"
    [entry] = json.loads(pulled.ask("GET", "/api/ps")[1])["models"]
    until_expiry = (
        time.mktime(time.strptime(entry["expires_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - time.time()
    )
    assert 30 < until_expiry < 62
    assert pulled.lines("/api/generate", {"model": MODEL, "keep_alive": 0})[0]["done_reason"] == "unload"
    assert json.loads(pulled.ask("GET", "/api/ps")[1]) == {"models": []}


@pytest.mark.parametrize(
    ("text", "expected"), [("5m", 300.0), ("5m0s", 300.0), ("-1s", -1.0), ("300", 300.0), (-1, -1.0), ("1h30m", 5400.0)]
)
def test_durations(text: Any, expected: float) -> None:
    assert ollama.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "5x", None, [], True])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ollama.ApiError):
        ollama.seconds(text)
