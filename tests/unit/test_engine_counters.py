"""What the kernel has counted of an engine, by its own words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.bramble import engine_counters as counters
from hypothesis import given
from hypothesis import strategies as st

# iproute2 6.15 on a head that has generated; the second line is another service's.
SS = (
    "ESTAB     0      0      10.183.17.11:42332 10.183.17.12:50052 \t cubic wscale:7,7 rto:204 rtt:0.183/0.061 ato:40 "
    "mss:1448 pmtu:1500 rcvmss:1448 advmss:1448 cwnd:10 bytes_sent:70012 bytes_acked:70013 bytes_received:8208 "
    "segs_out:61 segs_in:40 data_segs_out:50 data_segs_in:30 send 633187978bps lastsnd:12 lastrcv:12 lastack:12 "
    "pacing_rate 1266292984bps delivery_rate 463359992bps delivered:51 app_limited busy:12ms retrans:0/2 "
    "rcv_space:14480 rcv_ssthresh:64088 minrtt:0.041 snd_wnd:64128\n"
    "ESTAB     0      0      10.183.17.11:22 10.183.17.1:50052 \t cubic rtt:9.5/1 bytes_acked:9\n"
    "LISTEN    0      128    0.0.0.0:22 0.0.0.0:*    \t cubic cwnd:10\n"
)
STAT = (
    "812 (rpc server (v) 7) S 1 812 812 0 -1 4194560 100 0 0 0 12 3 0 0 20 0 4 0 {start} 900 20 18446744073709551615\n"
)
PEER = "10.183.17.12:50052"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("91002003 40000 812\n", (91002003, 40000)),
        ("0 0 0", (0, 0)),
        ("", None),
        ("1 2\n", None),
        ("-1 2 3\n", None),
        ("1 2 3 4\n", None),
        ("a b c\n", None),
    ],
)
def test_schedstat(text: str, found: tuple[int, int] | None) -> None:
    assert counters.parse_schedstat(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [(STAT.format(start=5120), 5120), ("812 (x) S 1", None), ("", None), (STAT.format(start="?"), None)],
)
def test_start(text: str, found: int | None) -> None:
    assert counters.parse_start(text) == found


def test_connections_are_those_to_the_peers() -> None:
    assert counters.parse_connections(SS, [PEER]) == [
        {
            "peer": PEER,
            "port": 42332,
            "bytes_acked": 70013,
            "bytes_received": 8208,
            "data_segs_out": 50,
            "data_segs_in": 30,
            "retransmitted": 2,
            "rtt_ms": 0.183,
            "least_rtt_ms": 0.041,
        }
    ]
    assert counters.parse_connections(SS, []) == []


def test_what_ss_leaves_out_is_0_or_not_told() -> None:
    [found] = counters.parse_connections(f"ESTAB 0 0 10.0.0.1:1 {PEER} cubic cwnd:10\n", [PEER])
    assert found["bytes_received"] == found["retransmitted"] == 0
    assert "rtt_ms" not in found


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('[{"ifindex":2,"ifname":"eth0","addr_info":[]}]', "eth0"),
        ('[{},{"ifname":"end0"}]', "end0"),
        ('[{"ifname":"../../etc"}]', None),
        ("[]", None),
        ('{"ifname":"eth0"}', None),
        ("", None),
    ],
)
def test_interface(text: str, name: str | None) -> None:
    assert counters.parse_interface(text) == name


@given(st.text() | st.from_regex(r"(ESTAB 0 0 1\.1\.1\.1:\d+ 2\.2\.2\.2:1 (rtt:\S*|bytes_acked:\S*) ?){0,3}\n"))
def test_no_text_ends_in_a_traceback(text: str) -> None:
    counters.parse_schedstat(text)
    counters.parse_start(text)
    counters.parse_interface(text)
    for row in counters.parse_connections(text, ["2.2.2.2:1"]):
        assert all(row[name] >= 0 for name in counters.COUNTED)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two threads of the engine, its supervisor by the same user, and the same program by another."""
    for pid, name, user, threads in (
        (800, "python3", 991, (800,)),
        (812, "ggml-rpc-server", 991, (812, 815)),
        (900, "ggml-rpc-server", 0, (900,)),
    ):
        process = tmp_path / "proc" / str(pid)
        for thread in threads:
            (process / "task" / str(thread)).mkdir(parents=True)
            (process / "task" / str(thread) / "schedstat").write_text(f"{thread}000 {thread} 1\n")
            (process / "task" / str(thread) / "stat").write_text(STAT.format(start=thread - 100))
        (process / "status").write_text(f"Name:\t{name}\nUid:\t{user}\t{user}\t{user}\t{user}\n")
        (process / "comm").write_text(f"{name}\n")
    statistics = tmp_path / "sys/class/net/eth0/statistics"
    statistics.mkdir(parents=True)
    (statistics / "tx_bytes").write_text("120000\n")
    (statistics / "rx_bytes").write_text("4500000\n")
    return tmp_path


def run(command: Sequence[str]) -> tuple[int, str]:
    return 0, SS if command[0] == "ss" else json.dumps([{"ifname": "eth0"}])


def snapshot(root: Path, program: str = "ggml-rpc-server", **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"address": "10.183.17.11", "peers": [PEER], "root": root, "run": run}
    options |= {"find": lambda _: SimpleNamespace(pw_uid=991)} | changes
    return counters.snapshot(options.pop("run"), service="rpc-worker", program=program, **options)


def test_a_snapshot_has_the_engine_of_this_service_only(root: Path) -> None:
    found = snapshot(root)
    assert [(one["thread"], one["ran_ns"], one["waited_ns"]) for one in found["threads"]] == [
        (812, 812000, 812),
        (815, 815000, 815),
    ]
    assert [one["peer"] for one in found["connections"]] == [PEER]
    assert found["interface"] == {"name": "eth0", "sent": 120000, "received": 4500000}


def test_what_is_not_told_is_absent(root: Path) -> None:
    assert snapshot(root, address="", peers=[]) | {"threads": []} == {
        "threads": [],
        "connections": [],
        "interface": None,
    }
    (root / "sys/class/net/eth0/statistics/tx_bytes").unlink()
    assert snapshot(root)["interface"] is None


def test_without_the_engine_there_is_an_error(root: Path) -> None:
    def nobody(name: str) -> Any:
        raise KeyError(name)

    with pytest.raises(counters.CountersError, match="there is no user bramble-rpc-worker"):
        snapshot(root, find=nobody)
    with pytest.raises(counters.CountersError, match="no thread of llama-server by bramble-rpc-worker"):
        snapshot(root, "llama-server")
    with pytest.raises(counters.CountersError, match="ss does not run"):
        snapshot(root, run=lambda _: (127, ""))


def threads(*each: tuple[int, int, int]) -> dict[str, Any]:
    """(thread, started, ran_ns)."""
    return {
        "threads": [
            {"process": 1, "thread": thread, "started": started, "ran_ns": ran, "waited_ns": 0}
            for thread, started, ran in each
        ]
    }


@pytest.mark.parametrize(
    ("before", "after", "leader"),
    [
        # It leads: older than its helper, which span on after the work.
        (threads((7, 10, 0), (8, 20, 0)), threads((7, 10, 900), (8, 20, 990)), 7),
        # The oldest did next to nothing: it accepts connections.
        (threads((6, 5, 0), (7, 10, 0), (8, 20, 0)), threads((6, 5, 9), (7, 10, 900), (8, 20, 990)), 7),
        # Started in the same tick: the smaller number.
        (threads((7, 10, 0), (8, 10, 0)), threads((7, 10, 900), (8, 10, 990)), 7),
        # A thread that came meanwhile is not looked at.
        (threads((7, 10, 0)), threads((7, 10, 1), (9, 30, 500)), 7),
    ],
)
def test_the_leader_is_the_oldest_that_computes(before: dict[str, Any], after: dict[str, Any], leader: int) -> None:
    assert [one["thread"] for one in counters.leader(before, after)] == [leader] * 2


def test_an_engine_that_was_started_again_has_no_leader() -> None:
    with pytest.raises(counters.CountersError, match="started again"):
        counters.leader(threads((7, 10, 0)), threads((7, 99, 0)))
