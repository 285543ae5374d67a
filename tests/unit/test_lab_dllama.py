"""The emulated distributed-llama fails in the ways of the original, which the product must withstand."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from ansible.module_utils.bramble.token_time import parse_inference
from by_path import ROOT, load

EMULATION = ROOT / "lab/packages/dllama/dllama.py"
ABORTED = -signal.SIGABRT
DEADLINE_S = 15.0
tiny = load("tests/molecule/dllama/tiny_model.py")


class Programs:
    """Started programs, each with a log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "tiny.m").write_bytes(tiny.model(Random(1)))
        (directory / "tiny.t").write_bytes(tiny.tokenizer())
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        path = self.directory / f"log{len(self.started)}"
        with path.open("wb") as log:
            process = subprocess.Popen([sys.executable, str(EMULATION), *arguments], stdout=log, stderr=log)
        self.started.append(process)
        return process, path

    def worker(self) -> tuple[subprocess.Popen[bytes], int, Path]:
        port = free_port()
        process, log = self.start("dllama", "worker", "--host", "127.0.0.1", "--port", str(port))
        until(lambda: "Listening" in log.read_text(), "the worker does not listen")
        return process, port, log

    def api(self, *workers: int, flags: tuple[str, ...] = ("--buffer-float-type", "q80")) -> tuple[Any, int, Path]:
        port = free_port()
        files = ("--model", str(self.directory / "tiny.m"), "--tokenizer", str(self.directory / "tiny.t"))
        others = ("--workers", *(f"127.0.0.1:{worker}" for worker in workers)) if workers else ()
        process, log = self.start("dllama-api", *files, "--host", "127.0.0.1", "--port", str(port), *flags, *others)
        return process, port, log

    def ready_api(self, *workers: int) -> tuple[Any, int, Path]:
        process, port, log = self.api(*workers)
        until(lambda: "Listening" in log.read_text(), "dllama-api does not listen")
        return process, port, log


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def http(port: int, *parts: bytes) -> bytes:
    """What comes back of these pieces, each a packet of its own."""
    content = b""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.sendall(part)
            time.sleep(0.05)
        try:
            while piece := client.recv(1 << 16):
                content += piece
        except ConnectionResetError:
            pass
    return content


def post(content: bytes, name: bytes = b"Content-Length") -> tuple[bytes, bytes]:
    return b"POST /v1/chat/completions HTTP/1.1\r\n%s: %d\r\n\r\n" % (name, len(content)), content


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(tmp_path)
    yield programs
    for process in programs.started:
        process.kill()
        process.wait()


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


def test_it_answers_over_two_workers(programs: Programs) -> None:
    _, one, _ = programs.worker()
    _, two, _ = programs.worker()
    model = (programs.directory / "tiny.m").read_bytes()
    heads = model.replace(b"\x06\0\0\0\x02\0\0\0", b"\x06\0\0\0\x03\0\0\0", 1)
    (programs.directory / "tiny.m").write_bytes(heads)
    _, port, _ = programs.ready_api(one, two)
    assert b'{"role": "assistant", "content": " word1 word2"}' in http(port, *post(json.dumps(CHAT).encode()))
    assert b'"tiny.m"' in http(port, b"GET /v1/models HTTP/1.1\r\n\r\n")
    streamed = http(port, *post(json.dumps({**CHAT, "stream": True}).encode()))
    assert streamed.endswith(b"data: [DONE]\r\n0000\r\n\r\n")
    assert http(port, b"GET /health HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    "spoilt",
    [
        (),
        post(b"{"),
        post(json.dumps({"messages": [{"role": "user", "content": [{"type": "text"}]}]}).encode()),
        post(json.dumps({**CHAT, "stop": "x"}).encode()),
        post(json.dumps({**CHAT, "max_tokens": None}).encode()),
        post(json.dumps({**CHAT, "stream": None}).encode()),
    ],
    ids=["a connection without a request", "not JSON", "parts", "stop", "max_tokens", "stream"],
)
def test_what_ends_dllama_api(programs: Programs, spoilt: tuple[bytes, ...]) -> None:
    process, port, _ = programs.ready_api()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"".join(spoilt))
        client.shutdown(socket.SHUT_WR)
        assert process.wait(DEADLINE_S) == ABORTED


def test_a_lower_case_length_loses_the_body(programs: Programs) -> None:
    _, port, log = programs.ready_api()
    assert http(port, *post(json.dumps(CHAT).encode(), b"content-length")).startswith(b"HTTP/1.1 200")
    assert "🔹🔸" in log.read_text()


def test_an_idle_connection_blocks_it(programs: Programs) -> None:
    _, port, _ = programs.ready_api()
    with (
        socket.create_connection(("127.0.0.1", port)) as idle,
        socket.create_connection(("127.0.0.1", port), timeout=0.5) as other,
    ):
        other.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            other.recv(1)
        idle.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        assert idle.recv(1)


def test_a_prompt_that_is_too_long_is_answered_with_nothing(programs: Programs) -> None:
    _, port, _ = programs.ready_api()
    content = json.dumps({"messages": [{"role": "user", "content": "a" * 4000}]}).encode()
    answer = http(port, *post(content))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"content": ""' in answer


def test_a_connection_ends_a_worker(programs: Programs) -> None:
    process, port, _ = programs.worker()
    socket.create_connection(("127.0.0.1", port)).close()
    assert process.wait(DEADLINE_S) == 1


def test_a_worker_listens_for_one_root_and_again_when_that_has_gone(programs: Programs) -> None:
    process, port, log = programs.worker()
    root, _, _ = programs.ready_api(port)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    root.kill()
    until(lambda: log.read_text().count("Listening") == 2, "it does not listen again")
    assert process.poll() is None


@pytest.mark.parametrize(
    ("workers", "flags", "message"),
    [
        (2, ("--buffer-float-type", "q80"), "more nodes than the number of KV heads"),
        (0, ("--buffer-float-type", "f32"), "only Q40 weights with Q80 sync type"),
        (0, ("--weights-float-type", "q40"), "Unknown option: --weights-float-type"),
        (0, ("--nthreads", "0"), "Number of threads must be at least 1"),
    ],
)
def test_what_it_refuses(programs: Programs, workers: int, flags: tuple[str, ...], message: str) -> None:
    process, _, log = programs.api(*(free_port() for _ in range(workers)), flags=flags)
    assert process.wait(DEADLINE_S) == ABORTED
    assert message in log.read_text()


def test_it_builds_as_the_original_does_and_says_what_it_is(tmp_path: Path) -> None:
    """By the role's own recipe, with the compiler that is here."""
    if os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("the recipe knows the instructions of two processors")
    for name in ("keepalive.cpp", "build.sh"):
        (tmp_path / name).write_bytes((ROOT / "roles/distributed_llama/files" / name).read_bytes())
    subprocess.run(["tar", "-czf", tmp_path / "source.tar.gz", "-C", ROOT / "lab/packages", "dllama"], check=True)
    target = {"x86_64": "-march=x86-64-v3", "aarch64": "-mcpu=cortex-a76"}[os.uname().machine]

    def build(flags: str) -> subprocess.CompletedProcess[str]:
        environment = {"PROCESSOR": os.uname().machine, "FLAGS": flags, "TARGETS": "dllama dllama-api"}
        return subprocess.run(
            ["sh", tmp_path / "build.sh", tmp_path, '{"key": "k"}', "1"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    # Without the processor's name the binary lacks what makes it fast.
    wrong = build("-std=c++11 -O3")
    assert wrong.returncode == 1
    assert re.match(
        r"dllama lacks the instructions of its processor .*: check distributed_llama_cpu_target\n", wrong.stderr
    )
    assert not (tmp_path / "build.tar.gz").exists()

    done = build(f"-std=c++11 -Werror -O3 {target}")
    assert (done.returncode, done.stderr) == (0, "")
    about = json.loads((tmp_path / "release/build.json").read_text())
    assert about["key"] == "k"
    assert about["sha256"].keys() == {"dllama", "dllama-api"}
    assert about["instructions"]["wanted"] > 0
    told = subprocess.run([tmp_path / "release/bin/dllama-api", "--help"], capture_output=True, text=True, check=True)
    assert told.stderr.startswith("EMULATION of distributed-llama")


def test_in_the_foreground_it_tells_each_tokens_time(programs: Programs) -> None:
    _, port, log = programs.worker()
    files = ("--model", str(programs.directory / "tiny.m"), "--tokenizer", str(programs.directory / "tiny.t"))
    words = ("--buffer-float-type", "q80", "--prompt", "one two three four", "--steps", "12")
    process, output = programs.start("dllama", "inference", *words, *files, "--workers", f"127.0.0.1:{port}")
    assert process.wait(DEADLINE_S) == 0
    found = parse_inference(output.read_text())
    # Four characters a token: 4 of 5 are evaluated, and up to the twelfth place are predicted.
    assert (found.prompt, found.predicted) == (5, 8)
    assert found.token >= 20
    assert found.compute is not None
    until(lambda: "Network is closed" in log.read_text(), "the worker does not see that its root is gone")
    gone, output = programs.start("dllama", "inference", *words, *files, "--workers", f"127.0.0.1:{free_port()}")
    assert gone.wait(DEADLINE_S) == 1
    assert "Cannot connect" in output.read_text()
    silent, _ = programs.start("dllama", "inference", *files)
    assert silent.wait(DEADLINE_S) == 1
