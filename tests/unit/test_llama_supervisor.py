"""The supervisor of llama-server: pure parts by table, the whole of it over an emulated llama-server and workers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from by_path import ROOT, load
from hypothesis import given
from hypothesis import strategies as st

PROGRAM = "roles/llama_service/files/llama_supervisor.py"
EMULATION = Path(__file__).with_name("llama_server_emulation.py")
DEADLINE_S = 10.0
ls = load(PROGRAM)

# /proc/net/tcp of Linux 6.12: a listener, an idle connection to 10.183.17.11:50052, one that sends again for the
# seventh time, one whose far end has closed.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1574 1 00000000349ab9e2 100 0 0 10 0
   1: 0111B70A:BD60 0B11B70A:C384 01 00000000:00000000 02:00099C2C 00000000   990        0 80421 2 0000000026bfea22 20 4 30 10 -1
   2: 0111B70A:BD61 0C11B70A:C384 01 000001A4:00000000 01:00000A1C 00000007   990        0 80422 2 0000000026bfea23 1600 4 30 1 7
   3: 0100007F:9C40 0100007F:C385 08 00000000:00000001 00:00000000 00000000   990        0 80423 1 0000000026bfea24 20 4 30 10 -1
"""  # noqa: E501
HEADER = TCP.splitlines()[0]

PI2 = ls.Worker("pi2", "10.183.17.11", 50052)
PI3 = ls.Worker("pi3", "10.183.17.12", 50052)
NEVER = ls.Connection("10.9.9.9", 50052, "01", 0)


def test_connections_of_a_table() -> None:
    assert ls.parse_connections(TCP) == [
        ls.Connection("0.0.0.0", 0, "0A", 0),
        ls.Connection("10.183.17.11", 50052, "01", 0),
        ls.Connection("10.183.17.12", 50052, "01", 7),
        ls.Connection("127.0.0.1", 50053, "08", 0),
    ]


@pytest.mark.parametrize("table", ["", HEADER, HEADER + "\n", HEADER + "\n   0: 0100007F:9C40"])
def test_a_table_without_connections(table: str) -> None:
    assert ls.parse_connections(table) == []


@given(address=st.ip_addresses(v=4), port=st.integers(0, 65535), again=st.integers(0, 255))
def test_each_connection_is_read_as_the_kernel_writes_it(address: IPv4Address, port: int, again: int) -> None:
    hexadecimal = f"{int.from_bytes(address.packed, 'little'):08X}:{port:04X}"
    line = f"  10: 0100007F:0016 {hexadecimal} 01 00000000:00000000 02:00099C2C {again:08X}     0        0 80421 2 0"
    assert ls.parse_connections(f"{HEADER}\n{line}\n") == [ls.Connection(str(address), port, "01", again)]


def test_the_kernels_own_table_holds_a_connection_that_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        own = [c for c in ls.connections() if (c.address, c.port) == server.getsockname()]
    assert own == [ls.Connection("127.0.0.1", server_port(own), "01", 0)]


def server_port(connections: list[Any]) -> int:
    return int(connections[0].port)


def to(worker: Any, state: str = "01", again: int = 0) -> Any:
    return ls.Connection(worker.address, worker.port, state, again)


@pytest.mark.parametrize(
    ("connections", "why"),
    [
        pytest.param([to(PI2), to(PI3)], None, id="all well"),
        pytest.param([to(PI2), NEVER], "worker pi3 (10.183.17.12:50052) closed its connection", id="none"),
        pytest.param(
            [to(PI2, "08"), to(PI3)], "worker pi2 (10.183.17.11:50052) closed its connection", id="CLOSE_WAIT"
        ),
        pytest.param([to(PI2, "06"), to(PI3)], "worker pi2 (10.183.17.11:50052) closed its connection", id="TIME_WAIT"),
        pytest.param([to(PI2, again=5), to(PI3)], None, id="five retransmissions"),
        pytest.param(
            [to(PI2), to(PI3, again=6)],
            "worker pi3 (10.183.17.12:50052) does not answer any more",
            id="six retransmissions",
        ),
        pytest.param([to(PI2, again=9), to(PI2), to(PI3)], None, id="one of two connections works"),
        pytest.param([to(PI2, "08"), to(PI2), to(PI3)], None, id="an old connection beside the new one"),
        pytest.param(
            [to(PI2, again=6), to(PI2, again=7), to(PI3)],
            "worker pi2 (10.183.17.11:50052) does not answer any more",
            id="neither of two connections works",
        ),
        pytest.param(
            [to(PI2), ls.Connection(PI3.address, 22, "01", 0)],
            "worker pi3 (10.183.17.12:50052) closed its connection",
            id="another port of the worker",
        ),
    ],
)
def test_lost_worker(connections: list[Any], why: str | None) -> None:
    assert ls.lost_worker([PI2, PI3], iter(connections)) == why


def test_without_workers_none_is_lost() -> None:
    assert ls.lost_worker([], []) is None


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ([], {}),
        (["0.00.029.398 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)"], {}),
        (["0.00.029.398 I load_tensors:          CPU model buffer size =    28.62 MiB"], {"local": 30010245}),
        (["0.00.029.398 I load_tensors:   CPU_Mapped model buffer size =  1918.35 MiB"], {"local": 2011535770}),
        (
            [
                "load_tensors:   CPU_Mapped model buffer size =     1.00 MiB",
                "load_tensors:   CPU_REPACK model buffer size =     2.00 MiB",
            ],
            {"local": 3 << 20},
        ),
        (
            # All RPC devices are called RPC0 here: the address tells them apart.
            [
                "0.00.029.399 I load_tensors: RPC0[127.0.0.1:50152] model buffer size =    20.34 MiB\n",
                "0.00.029.400 I load_tensors: RPC0[127.0.0.1:50153] model buffer size =    15.26 MiB\n",
            ],
            {"127.0.0.1:50152": 21328036, "127.0.0.1:50153": 16001270},
        ),
        (["0.00.040.000 I llama_kv_cache: RPC0[127.0.0.1:50152] KV buffer size =    20.34 MiB"], {}),
    ],
)
def test_loaded_bytes(lines: list[str], held: dict[str, int]) -> None:
    assert ls.loaded_bytes(lines) == held


def config_of(**values: Any) -> Any:
    return ls.Config(
        **{
            "model": "m",
            "command": ["x"],
            "url": "http://127.0.0.1:1",
            "load_timeout_s": 1,
            "stall_timeout_s": 1,
            **values,
        }
    )


def test_placement() -> None:
    layers = [
        {"host": "pi1", "address": "10.183.17.10", "layers": 6},
        {"host": "pi2", "address": "10.183.17.11", "layers": 5},
        {"host": "pi3", "address": "10.183.17.12", "layers": 5},
    ]
    config = config_of(workers=[PI2, PI3], layers=layers)
    assert ls.placement(config, {"local": 30, "10.183.17.11:50052": 20}) == [
        {"host": "pi1", "address": "10.183.17.10", "layers": 6, "device": "CPU", "bytes": 30},
        {"host": "pi2", "address": "10.183.17.11", "layers": 5, "device": "RPC", "bytes": 20},
        {"host": "pi3", "address": "10.183.17.12", "layers": 5, "device": "RPC", "bytes": 0},
    ]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The condition's value once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} within {DEADLINE_S} s"
        time.sleep(0.01)
    return value


class EmulatedWorker:
    """A ggml-rpc-server as far as connections show it. It has its port before it listens, and refuses until then."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def listen(self) -> "EmulatedWorker":
        self.socket.listen()
        self.socket.settimeout(0)
        return self

    def clients(self) -> list[socket.socket]:
        """All that have connected so far, in their order."""
        try:
            while True:
                self.accepted.append(self.socket.accept()[0])
        except OSError:  # No more, or it does not listen (any more).
            return self.accepted

    def close(self) -> None:
        """As when its process is killed."""
        for client in self.clients():
            client.close()
        self.socket.close()


class Supervised:
    """The supervisor as systemd runs it, with the emulations around it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.control = directory / "control"
        self.control.mkdir()
        self.workers: list[EmulatedWorker] = []
        self.process: subprocess.Popen[str] | None = None
        self.systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.systemd.bind(str(directory / "notify"))
        self.systemd.settimeout(DEADLINE_S)
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port = reserved.getsockname()[1]

    def worker(self, *, listening: bool = True) -> EmulatedWorker:
        worker = EmulatedWorker()
        self.workers.append(worker)
        return worker.listen() if listening else worker

    def fault(self, name: str, text: str = "") -> Path:
        (self.control / name).write_text(text)
        return self.control / name

    def start(self, **values: Any) -> subprocess.Popen[str]:
        ports = [worker.port for worker in self.workers]
        addresses = [f"127.0.0.1:{port}" for port in ports]
        config = {
            "model": "tiny",
            "command": [sys.executable, "-S", str(EMULATION), str(self.port), str(self.control), *addresses],
            "url": f"http://127.0.0.1:{self.port}",
            "load_timeout_s": 30,
            "stall_timeout_s": 60,
            "watch_interval_s": 0.05,
            "stall_check_interval_s": 0.1,
            "workers": [{"host": f"pi{i}", "address": "127.0.0.1", "port": port} for i, port in enumerate(ports, 2)],
            "layers": [{"host": f"pi{i}", "address": "127.0.0.1", "layers": 4} for i in range(1, len(ports) + 2)],
            **values,
        }
        (self.directory / "config.json").write_text(json.dumps(config))
        # A proxy that does not exist: the supervisor must not send its questions there.
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / PROGRAM), str(self.directory / "config.json")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(self.directory / "notify"),
                "RUNTIME_DIRECTORY": str(self.directory),
                "http_proxy": "http://127.0.0.1:9",
                "no_proxy": "",
            },
        )
        return self.process

    def told_systemd(self, until: str) -> list[str]:
        """All messages up to this one."""
        told = [self.systemd.recv(4096).decode()]
        while told[-1] != until:
            told.append(self.systemd.recv(4096).decode())
        return told

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        return state

    def requests(self) -> list[str]:
        path = self.control / "requests"
        return path.read_text().splitlines() if path.exists() else []

    def server_pid(self) -> int:
        path = self.control / "pid"
        return int(wait_for(lambda: path.exists() and path.read_text(), "llama-server"))

    def end(self) -> tuple[int, str]:
        """Its exit code and all that it said. It has left no process behind."""
        assert self.process is not None
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        if (self.control / "pid").exists():
            with pytest.raises(ProcessLookupError):
                os.kill(self.server_pid(), 0)
        assert self.state()["state"] == "stopped"
        assert "Traceback" not in said
        return self.process.returncode, said

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
            if (self.control / "pid").exists():
                os.kill(self.server_pid(), signal.SIGKILL)
        for worker in self.workers:
            worker.close()
        self.systemd.close()


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    run = Supervised(tmp_path)
    yield run
    run.close()


def test_ready_only_after_a_token(supervised: Supervised) -> None:
    workers = [supervised.worker(), supervised.worker()]
    gate = supervised.fault("no-token")
    process = supervised.start()
    wait_for(lambda: "/completion" in supervised.requests(), "request for a token")
    assert supervised.state()["state"] == "loading"
    # systemd's queue so far: nothing in it says ready.
    assert supervised.told_systemd("STATUS=loading") == ["STATUS=waiting", "STATUS=loading"]
    supervised.systemd.settimeout(0)
    with pytest.raises(BlockingIOError):
        supervised.systemd.recv(4096)
    supervised.systemd.settimeout(DEADLINE_S)

    gate.unlink()
    assert supervised.told_systemd("READY=1") == ["STATUS=ready", "READY=1"]
    state = supervised.state()
    assert (state["state"], state["model"]) == ("ready", "tiny")
    assert state["layers"] == [
        {"host": "pi1", "address": "127.0.0.1", "layers": 4, "device": "CPU", "bytes": 30010245},
        {"host": "pi2", "address": "127.0.0.1", "layers": 4, "device": "RPC", "bytes": 21328036},
        {"host": "pi3", "address": "127.0.0.1", "layers": 4, "device": "RPC", "bytes": 21328036},
    ]
    # Others read it: the service's umask must not count.
    assert (supervised.directory / "state.json").stat().st_mode & 0o777 == 0o644
    # Two checks that it still computes, and it goes on.
    wait_for(lambda: supervised.requests().count("/lora-adapters") >= 2, "check that it computes")
    assert process.poll() is None
    assert [len(worker.clients()) for worker in workers] == [2, 2]

    process.send_signal(signal.SIGTERM)
    assert supervised.end()[0] == 0


def test_waits_for_a_worker_and_connects_to_it_once(supervised: Supervised) -> None:
    worker = supervised.worker(listening=False)
    supervised.start()
    supervised.told_systemd("STATUS=waiting")
    supervised.told_systemd("STATUS=waiting")
    assert (supervised.state()["state"], supervised.state()["waiting_for"]) == ("waiting", "pi2")
    assert not (supervised.control / "pid").exists()

    worker.listen()
    supervised.told_systemd("READY=1")
    probe, server = worker.clients()
    assert probe.recv(1) == b""
    server.settimeout(0)
    with pytest.raises(BlockingIOError):
        server.recv(1)


def test_sigterm_while_it_waits_for_a_worker(supervised: Supervised) -> None:
    supervised.worker(listening=False)
    process = supervised.start(watch_interval_s=60)
    supervised.told_systemd("STATUS=waiting")
    supervised.told_systemd("STATUS=waiting")
    process.send_signal(signal.SIGTERM)
    code, said = supervised.end()
    assert code == 0
    assert said.startswith("waiting for worker pi2 (127.0.0.1:")
    assert not (supervised.control / "pid").exists()


@pytest.mark.parametrize("fault", ["", "beat-hangs"], ids=["idle", "while a computation stands still"])
def test_ends_when_a_worker_closes_its_connection(supervised: Supervised, fault: str) -> None:
    supervised.worker()
    worker = supervised.worker()
    if fault:
        supervised.fault(fault)
    supervised.start()
    supervised.told_systemd("READY=1")
    if fault:
        wait_for(lambda: "/lora-adapters" in supervised.requests(), "check that it computes")
    worker.close()
    code, said = supervised.end()
    assert code == 1
    assert said.endswith(f"stopping, to be started again: worker pi3 (127.0.0.1:{worker.port}) closed its connection\n")


def test_ends_when_a_worker_is_lost_before_the_first_token(supervised: Supervised) -> None:
    worker = supervised.worker()
    supervised.fault("no-token")
    supervised.start()
    wait_for(lambda: "/completion" in supervised.requests(), "request for a token")
    worker.close()
    code, said = supervised.end()
    assert code == 1
    assert "closed its connection before the first token" in said


def test_ends_when_the_server_aborts_and_passes_its_last_words_on(supervised: Supervised) -> None:
    supervised.start()
    supervised.told_systemd("READY=1")
    assert ls.request(f"http://127.0.0.1:{supervised.port}/abort", None, 5) == 0
    code, said = supervised.end()
    assert code == 1
    assert said.splitlines()[-2:] == [
        "ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response",
        "stopping, to be started again: llama-server was ended by signal 6",
    ]


def test_ends_when_the_server_does_not_load(supervised: Supervised) -> None:
    supervised.fault("fail")
    supervised.start()
    code, said = supervised.end()
    assert code == 1
    assert "E main: exiting due to model loading error" in said
    assert said.endswith("stopping, to be started again: llama-server ended with 3 while it loaded\n")


def test_ends_when_loading_takes_too_long(supervised: Supervised) -> None:
    supervised.start(load_timeout_s=0.5, command=["sleep", "60"])
    code, said = supervised.end()
    assert code == 1
    assert "llama-server did not load within" in said


def test_ends_when_the_first_token_fails(supervised: Supervised) -> None:
    supervised.fault("token-status", "500")
    supervised.start()
    code, said = supervised.end()
    assert code == 1
    assert "the first token did not come (HTTP status 500)" in said


def test_ends_when_there_is_no_such_program(supervised: Supervised) -> None:
    supervised.start(command=["/nowhere/llama-server"])
    code, said = supervised.end()
    assert code == 1
    assert said == "stopping, to be started again: [Errno 2] No such file or directory: '/nowhere/llama-server'\n"


def test_ends_when_a_computation_stands_still(supervised: Supervised) -> None:
    supervised.worker()
    supervised.start(stall_timeout_s=0.5)
    supervised.told_systemd("READY=1")
    supervised.fault("beat-hangs")
    code, said = supervised.end()
    assert code == 1
    assert said.endswith("stopping, to be started again: a computation stood still for 0.5 s\n")


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        ("no-token", signal.SIGTERM),
        ("beat-hangs", signal.SIGTERM),
        ("beat-hangs", signal.SIGINT),
        ("ignore-sigterm", signal.SIGTERM),
    ],
)
def test_ends_when_asked_to_whatever_hangs(supervised: Supervised, fault: str, number: signal.Signals) -> None:
    seen = "/completion" if fault == "no-token" else "/lora-adapters"
    supervised.worker()
    supervised.fault(fault)
    process = supervised.start()
    wait_for(lambda: seen in supervised.requests(), seen)
    process.send_signal(number)
    assert supervised.end()[0] == 0


GOOD = {
    "model": "m",
    "command": ["true"],
    "url": "http://127.0.0.1:8080",
    "load_timeout_s": 60,
    "stall_timeout_s": 60,
    "workers": [{"host": "pi2", "address": "10.0.0.2", "port": 50052}],
    "layers": [{"host": "pi1", "address": "10.0.0.1", "layers": 8}],
}


def test_a_good_configuration_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(GOOD))
    config = ls.Config.read(tmp_path / "c.json")
    assert config.workers == [ls.Worker("pi2", "10.0.0.2", 50052)]
    assert (config.watch_interval_s, config.stall_check_interval_s) == (1.0, 10.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "must be an object, not list"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "url"}), "'url'"),
        (json.dumps({**GOOD, "colour": "red"}), "'colour'"),
        (json.dumps({**GOOD, "command": "llama-server -m x"}), "must be a list of words"),
        (json.dumps({**GOOD, "command": []}), "must be a list of words"),
        (json.dumps({**GOOD, "url": "127.0.0.1:8080"}), "must be http://ADDRESS:PORT"),
        (json.dumps({**GOOD, "load_timeout_s": "600"}), "load_timeout_s '600': must be a number of seconds"),
        (json.dumps({**GOOD, "stall_timeout_s": 0}), "stall_timeout_s 0: must be a number of seconds"),
        (json.dumps({**GOOD, "workers": 3}), "not iterable"),
        (json.dumps({**GOOD, "workers": [{"host": "pi2"}]}), "'address' and 'port'"),
        (json.dumps({**GOOD, "workers": [{"host": "pi2", "address": "pi2.local", "port": 1}]}), "worker pi2: address"),
        (json.dumps({**GOOD, "workers": [{"host": "pi2", "address": "10.0.0.2", "port": "1"}]}), "worker pi2: port"),
        (json.dumps({**GOOD, "workers": [{"host": "pi2", "address": "10.0.0.2", "port": 65536}]}), "worker pi2: port"),
        (json.dumps({**GOOD, "layers": [{"layers": 8}]}), "each with a host"),
    ],
)
def test_a_wrong_configuration_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["llama_supervisor.py", str(path)])
    assert ls.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{path}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["/nowhere.json"], [], ["a", "b"]])
def test_wrong_arguments_end_with_2(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / PROGRAM), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("Usage: " if len(arguments) != 1 else "/nowhere.json: ") in done.stderr
