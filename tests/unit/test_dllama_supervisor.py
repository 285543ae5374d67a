"""What stands in front of dllama-api: what it lets through by table and property, the whole over the emulation."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from by_path import ROOT, load
from hypothesis import given
from hypothesis import strategies as st

FILES = ROOT / "roles/dllama_api/files"
EMULATION = ROOT / "lab/packages/dllama/dllama.py"
DEADLINE_S = 15.0
CONTEXT = 256
sys.path.insert(0, str(FILES))
ds = load("roles/dllama_api/files/dllama_supervisor.py")
tiny = load("tests/molecule/dllama/tiny_model.py")

HELLO = {"role": "user", "content": "Hello"}


def body(**changes: Any) -> bytes:
    return json.dumps({"messages": [HELLO], **changes}).encode()


# What is passed on.


@pytest.mark.parametrize(
    ("raw", "wanted", "stream"),
    [
        (body(), {}, False),
        (body(stream=True), {}, True),
        (body(stream=None, temperature=None, max_tokens=None), {}, False),
        (body(max_tokens=7), {"max_tokens": 7}, False),
        (body(max_completion_tokens=9, max_tokens=7), {"max_tokens": 9}, False),
        (body(max_tokens=100000), {"max_tokens": CONTEXT}, False),
        (body(seed=5), {"seed": 5}, False),
        (body(seed=-1), {}, False),
        (body(stop="x", temperature="warm", top_p=[], tools=[], user="me"), {}, False),
        (
            body(messages=[{**HELLO, "role": "developer", "name": "x"}]),
            {"messages": [{**HELLO, "role": "system"}]},
            False,
        ),
        (
            body(
                messages=[
                    {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}
                ]
            ),
            {},
            False,
        ),
    ],
)
def test_what_is_passed_on(raw: bytes, wanted: dict[str, Any], stream: bool) -> None:
    assert ds.read_request(raw, CONTEXT) == ({"messages": [HELLO], "stream": True, **wanted}, stream)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON: "),
        (b'{"messages": ', "the body is not JSON: "),
        (b'{"messages": "\xff"}', "the body is not JSON: "),
        (b"[" * 100000, "the body is not JSON: "),
        (b"[]", "the body must be a JSON object"),
        (b"{}", "messages: must be a list that is not empty"),
        (body(messages=[]), "messages: must be a list that is not empty"),
        (body(messages=["hi"]), "messages[0]: must be an object"),
        (
            body(messages=[HELLO, {"role": "tool", "content": "4"}]),
            "messages[1].role: must be one of assistant, system,",
        ),
        (body(messages=[{"role": ["user"], "content": "x"}]), "messages[0].role: must be one of"),
        (body(messages=[{"role": "user"}]), "messages[0].content: must be text, or a list of parts of type text"),
        (body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content: must be text"),
        (body(messages=[{"role": "user", "content": "a\0b"}]), "messages[0].content: holds a NUL character"),
        (body(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content: holds half of a surrogate pair"),
        (body(messages=[{**HELLO, "content": "a" * 8 * CONTEXT + "a"}]), "messages: do not fit into the 256 tokens"),
        (body(stream=1), "stream: must be true or false"),
        (body(max_tokens=0), "max_tokens: must be a whole number from 1 to"),
        (body(max_tokens=2**31), "max_tokens: must be a whole number from 1 to"),
        (body(max_tokens=True), "max_tokens: must be a whole number"),
        (body(seed=2**64), "seed: must be a whole number"),
        (body(seed=1.5), "seed: must be a whole number"),
        (body(tools=[{"type": "function"}]), "tools: this model's engine knows none"),
    ],
)
def test_what_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ds.RequestError) as caught:
        ds.read_request(raw, CONTEXT)
    assert caught.value.status == 400
    assert str(caught.value).startswith(message)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["messages", "stream", "max_tokens", "max_completion_tokens", "seed", "stop", "tools", "temperature"]
)


@given(raw=st.binary() | st.dictionaries(NAMES, VALUES).map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_only_what_the_engine_stands_is_passed_on(raw: bytes) -> None:
    try:
        wanted, _ = ds.read_request(raw, CONTEXT)
    except ds.RequestError:
        return
    assert wanted.keys() <= {"messages", "stream", "max_tokens", "seed"}
    assert wanted["stream"] is True
    assert all(m.keys() == {"role", "content"} and m["content"].encode() is not None for m in wanted["messages"])
    assert json.loads(json.dumps(wanted, allow_nan=False)) == wanted


# What comes back.

DELTA = b'data: {"choices": [{"index": 7, "finish_reason": "", "delta": {"role": "assistant", "content": "%s"}}]}'
LAST = b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}'


def test_the_pieces_of_an_answer() -> None:
    lines = [DELTA % b"Hi", b"\r\n", DELTA % b" you", b"", LAST, b"data: [DONE]"]
    assert list(ds.deltas(lines)) == ["Hi", " you"]


@pytest.mark.parametrize("lines", [[], [DELTA % b"Hi"], [LAST], [b"data: {"], [b"data: []"], [b'data: {"choices":[]}']])
def test_an_answer_that_breaks_off(lines: list[bytes]) -> None:
    with pytest.raises(ds.EngineError):
        list(ds.deltas(lines))


TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2708 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1574 1
   1: 0100007F:2709 0100007F:2708 01 00000000:00000000 00:00000000 00000000     0        0 1575 1
"""


@pytest.mark.parametrize(("port", "found"), [(9992, True), (9993, False), (8, False)])
def test_a_listener_is_seen_in_the_kernels_table(port: int, found: bool) -> None:
    assert ds.listens(TABLE, port) is found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"url": "http://127.0.0.1"}, "url 'http://127.0.0.1': must be http://ADDRESS:PORT"),
        ({"engine_port": 0}, "engine_port 0: must be a number from 1 to 65535"),
        ({"context": None}, "context None: must be a number of tokens above 0"),
        ({"stall_timeout_s": -1}, "stall_timeout_s -1: must be a number of seconds above 0"),
        (
            {"workers": [{"host": "pi2", "address": "pi2", "port": 1}]},
            "worker pi2: address 'pi2' is not an IPv4 address",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    whole = {"model": "m", "command": ["x"], "url": "http://127.0.0.1:1", "engine_port": 2, "context": 8}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**whole, "load_timeout_s": 1, "stall_timeout_s": 1, **change}))
    done = subprocess.run(
        [sys.executable, str(FILES / "dllama_supervisor.py"), str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, f"{path}: {message}\n")


# The whole of it.


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


class Cluster:
    """One worker, and one supervisor with its engine, all on this machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for suffix, content in ((".m", tiny.model(tiny.random.Random(1))), (".t", tiny.tokenizer())):
            (directory / f"tiny{suffix}").write_bytes(content)
        self.worker_port, self.engine_port, self.port = free_port(), free_port(), free_port()
        self.started: list[subprocess.Popen[bytes]] = []
        self.worker = self.start_worker()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "RUNTIME_DIRECTORY": str(self.directory)},
                    start_new_session=True,
                )
            )
        return self.started[-1]

    def start_worker(self) -> subprocess.Popen[bytes]:
        address = ("--host", "127.0.0.1", "--port", str(self.worker_port))
        return self.start(str(EMULATION), "dllama", "worker", *address)

    def supervise(self, **changes: Any) -> subprocess.Popen[bytes]:
        worker = f"127.0.0.1:{self.worker_port}"
        files = ("--model", str(self.directory / "tiny.m"), "--tokenizer", str(self.directory / "tiny.t"))
        address = ("--host", "127.0.0.1", "--port", str(self.engine_port))
        flags = ("--buffer-float-type", "q80", "--max-seq-len", str(CONTEXT), "--workers", worker)
        config = {
            "model": "tiny",
            "command": [sys.executable, str(EMULATION), "dllama-api", *files, *address, *flags],
            "url": f"http://127.0.0.1:{self.port}",
            "engine_port": self.engine_port,
            "context": CONTEXT,
            "load_timeout_s": DEADLINE_S,
            "stall_timeout_s": DEADLINE_S,
            "watch_interval_s": 0.05,
            "workers": [{"host": "pi2", "address": "127.0.0.1", "port": self.worker_port}],
        }
        (self.directory / "config.json").write_text(json.dumps({**config, **changes}))
        return self.start(str(FILES / "dllama_supervisor.py"), str(self.directory / "config.json"))

    def ready(self) -> bool:
        try:
            return self.ask("GET", "/health")[0] == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, content: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request(method, path, content)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def chat(self, **changes: Any) -> tuple[int, bytes]:
        return self.ask("POST", "/v1/chat/completions", body(max_tokens=2, **changes))

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def close(self) -> None:
        for process in self.started:
            # With the engine that a supervisor started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def test_it_answers_and_nothing_ends_the_engine(cluster: Cluster) -> None:
    process = cluster.supervise()
    until(cluster.ready, "not ready")
    status, content = cluster.chat()
    answer = json.loads(content)
    assert (status, answer["object"], answer["model"]) == (200, "chat.completion", "tiny")
    [choice] = answer["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": " word1 word2"},
        "finish_reason": "length",
    }

    status, content = cluster.chat(stream=True)
    events = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line]
    assert (status, events[-1]) == (200, b"[DONE]")
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    assert [choice["delta"].get("content") for choice in choices] == [" word1", " word2", None]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]

    assert cluster.ask("GET", "/v1/models")[1].count(b'"tiny"') == 1
    assert cluster.ask("GET", "/nowhere")[0] == 404
    assert cluster.ask("POST", "/completion", b"{}")[0] == 404
    for spoilt in (b"", b"{", b"null", body(messages=[{"role": "user", "content": [{}]}]), body(max_tokens="two")):
        assert cluster.ask("POST", "/v1/chat/completions", spoilt)[0] == 400
    # What ends dllama-api: a connection without a request. And what blocks it: one that says nothing.
    socket.create_connection(("127.0.0.1", cluster.port)).close()
    with socket.create_connection(("127.0.0.1", cluster.port)):
        assert cluster.chat()[0] == 200
    # A lower-case header, the body in a packet of its own.
    with socket.create_connection(("127.0.0.1", cluster.port)) as client:
        content = body(max_tokens=1)
        client.sendall(f"POST /v1/chat/completions HTTP/1.0\r\ncontent-length: {len(content)}\r\n\r\n".encode())
        client.sendall(content)
        assert b"200 OK" in client.recv(100)
    assert cluster.ask("POST", "/v1/chat/completions", body(messages=[{**HELLO, "content": "a" * 1100}]))[0] == 400
    assert process.poll() is None
    assert cluster.worker.poll() is None
    assert cluster.log().count("ready: ") == 1
    # The prompts are nobody's business.
    assert "Hello" not in cluster.log()

    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def test_one_request_at_a_time_and_a_client_that_leaves(cluster: Cluster) -> None:
    cluster.supervise()
    until(cluster.ready, "not ready")
    content = body(stream=True, max_tokens=200)
    with socket.create_connection(("127.0.0.1", cluster.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(content) + content)
        assert client.recv(1 << 16)
        status, told = cluster.chat()
        assert (status, b"busy" in told) == (503, True)
        assert cluster.ask("GET", "/health")[0] == 200
    until(lambda: cluster.chat()[0] == 200, "the client's place was not free again")


def test_it_waits_for_its_worker_without_connecting_to_it_itself(cluster: Cluster) -> None:
    cluster.worker.kill()
    cluster.worker.wait()
    cluster.supervise()
    until(lambda: "Retrying" in cluster.log(), "did not try")
    assert cluster.ask("GET", "/health")[0] == 503
    assert cluster.chat()[0] == 503
    state = until(
        lambda: (found := json.loads((cluster.directory / "state.json").read_text())).get("waiting_for") and found,
        "no state",
    )
    assert (state["state"], state["waiting_for"]) == ("waiting", "pi2")
    worker = cluster.start_worker()
    until(cluster.ready, "not ready")
    # The worker would have ended at a connection that is not its root's.
    assert worker.poll() is None
    assert cluster.log().count("The root node has connected") == 1


def test_a_lost_worker_ends_it(cluster: Cluster) -> None:
    process = cluster.supervise()
    until(cluster.ready, "not ready")
    cluster.worker.kill()
    assert process.wait(DEADLINE_S) == 1
    assert f"worker pi2 (127.0.0.1:{cluster.worker_port}) closed its connection" in cluster.log()


def test_a_worker_that_stands_still_ends_it(cluster: Cluster) -> None:
    process = cluster.supervise(stall_timeout_s=0.5, watch_interval_s=0.5)
    until(cluster.ready, "not ready")
    cluster.worker.send_signal(signal.SIGSTOP)
    status, told = cluster.chat()
    assert (status, b"stood still for 0.5 s" in told) == (504, True)
    # Even if it goes on now, nothing begins that would be broken off.
    cluster.worker.send_signal(signal.SIGCONT)
    with contextlib.suppress(OSError):
        assert cluster.chat()[0] == 503
    assert process.wait(DEADLINE_S) == 1


def test_an_engine_that_ends_while_it_loads(cluster: Cluster) -> None:
    (cluster.directory / "tiny.t").write_bytes(b"\0" * 64)
    process = cluster.supervise()
    assert process.wait(DEADLINE_S) == 1
    assert "what():  Unsupported magic number" in cluster.log()
    assert "dllama-api was ended by signal 6 while it loaded" in cluster.log()
