"""The network between nodes: what ping and iperf3 print, what a record says of it, and the matrix."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.module_utils.bramble import net_bench as nb
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import net_bench as module

ROOT = Path(__file__).resolve().parents[2]

# iputils 20240905, `ping -n -c 5 -i 0.2 -W 2 192.168.1.11`, LC_ALL=C.
HEALTHY = """\
PING 192.168.1.11 (192.168.1.11) 56(84) bytes of data.
64 bytes from 192.168.1.11: icmp_seq=1 ttl=64 time=0.410 ms
64 bytes from 192.168.1.11: icmp_seq=2 ttl=64 time=0.190 ms
64 bytes from 192.168.1.11: icmp_seq=3 ttl=64 time=0.200 ms
64 bytes from 192.168.1.11: icmp_seq=4 ttl=64 time=1.20 ms
64 bytes from 192.168.1.11: icmp_seq=5 ttl=64 time=0.200 ms

--- 192.168.1.11 ping statistics ---
5 packets transmitted, 5 received, 0% packet loss, time 803ms
rtt min/avg/max/mdev = 0.190/0.440/1.200/0.388 ms
"""
DUPLICATED = """\
PING 192.168.1.11 (192.168.1.11) 56(84) bytes of data.
64 bytes from 192.168.1.11: icmp_seq=1 ttl=64 time=0.400 ms
64 bytes from 192.168.1.11: icmp_seq=1 ttl=64 time=9.00 ms (DUP!)
64 bytes from 192.168.1.11: icmp_seq=2 ttl=64 time=0.200 ms
64 bytes from 192.168.1.11: icmp_seq=2 ttl=64 time=8.00 ms

--- 192.168.1.11 ping statistics ---
2 packets transmitted, 2 received, +2 duplicates, 0% packet loss, time 201ms
rtt min/avg/max/mdev = 0.200/4.400/9.000/4.1 ms
"""
DEAD = """\
PING 192.168.1.99 (192.168.1.99) 56(84) bytes of data.
From 192.168.1.12 icmp_seq=1 Destination Host Unreachable
From 192.168.1.12 icmp_seq=2 Destination Host Unreachable

--- 192.168.1.99 ping statistics ---
4 packets transmitted, 0 received, +2 errors, 100% packet loss, time 613ms
pipe 2
"""
LOSSY = """\
PING 192.168.1.11 (192.168.1.11) 56(84) bytes of data.
64 bytes from 192.168.1.11: icmp_seq=1 ttl=64 time=123 ms
64 bytes from 192.168.1.11: icmp_seq=3 ttl=64 time=23.5 ms

--- 192.168.1.11 ping statistics ---
3 packets transmitted, 2 received, 33.3333% packet loss, time 409ms
rtt min/avg/max/mdev = 23.500/73.250/123.000/49.750 ms
"""
# The network before the test sends: a message from elsewhere, and a packet that came back damaged.
NOISY = """\
PING 192.168.1.11 (192.168.1.11) from 192.168.1.12 : 56(84) bytes of data.
64 bytes from 192.168.1.11: icmp_seq=1 ttl=64 time=0.500 ms (BAD CHECKSUM!)
From 192.168.1.1 icmp_seq=2 Redirect Host(New nexthop: 192.168.1.11)
64 bytes from 192.168.1.11: icmp_seq=2 ttl=64 time=0.300 ms

--- 192.168.1.11 ping statistics ---
2 packets transmitted, 2 received, +1 corrupted, 0% packet loss, time 200ms
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEALTHY, nb.Ping(5, 5, 0, 0.19, pytest.approx(0.44), 1.2)),
        (DUPLICATED, nb.Ping(2, 2, 2, 0.2, pytest.approx(0.3), 0.4)),
        (DEAD, nb.Ping(4, 0, 0, None, None, None)),
        (LOSSY, nb.Ping(3, 2, 0, 23.5, pytest.approx(73.25), 123.0)),
        (NOISY, nb.Ping(2, 2, 0, 0.3, pytest.approx(0.4), 0.5)),
    ],
    ids=["healthy", "duplicated", "dead", "lossy", "noisy"],
)
def test_parse_ping(text: str, expected: nb.Ping) -> None:
    assert nb.parse_ping(text) == expected


@pytest.mark.parametrize(("text", "loss"), [(HEALTHY, 0.0), (DEAD, 100.0), (LOSSY, pytest.approx(33.333, abs=0.001))])
def test_loss_is_what_was_not_answered(text: str, loss: float) -> None:
    assert nb.parse_ping(text).loss == loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "without its summary"),
        (HEALTHY.partition("---")[0], "without its summary"),
        ("0 packets transmitted, 0 received\n", "sent no packet"),
        (HEALTHY.replace("5 packets transmitted, 5", "2 packets transmitted, 2"), "5 answers to 2 packets"),
        # Another language: the module asks for the C locale, and does not guess.
        ("5 Pakete übertragen, 5 empfangen, 0% Paketverlust", "without its summary"),
    ],
)
def test_parse_ping_refuses(text: str, message: str) -> None:
    with pytest.raises(nb.NetworkError, match=message):
        nb.parse_ping(text)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([5.0], 0.99, 5.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 201)], 0.99, 198.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert nb.percentile(values, share) == expected


# iperf3 3.18, shortened.
def iperf(received: object = 941e6, sent: object = 943e6, retransmits: object = 3, **more: Any) -> dict[str, Any]:
    return {
        "start": {"connected": [{"socket": 5}], "version": "iperf 3.18", "test_start": {"duration": 5}},
        "intervals": [],
        "end": {
            "sum_sent": {"seconds": 5.0, "bits_per_second": sent, "retransmits": retransmits, "sender": True},
            "sum_received": {"seconds": 5.0, "bits_per_second": received, "sender": True},
        },
    } | more


BUSY = {"start": {}, "intervals": [], "end": {}, "error": "error - the server is busy running a test. try again later"}
REFUSED = {
    "start": {"connected": []},
    "intervals": [],
    "end": {},
    "error": "error - unable to connect to server - server may have stopped running or use a different port, firewall "
    "issue, etc.: Connection refused",
}


def test_parse_iperf_takes_what_arrived() -> None:
    assert nb.parse_iperf(json.dumps(iperf())) == nb.Transfer(941.0, 3, "3.18")


def test_parse_iperf_reads_behind_a_warning() -> None:
    text = "warning: this system does not seem to support MSS\n" + json.dumps(iperf()) + "\n"
    assert nb.parse_iperf(text).megabits == 941.0


def test_parse_iperf_without_counted_retransmits() -> None:
    document = iperf()
    del document["end"]["sum_sent"]
    document["start"] = "?"
    assert nb.parse_iperf(json.dumps(document)) == nb.Transfer(941.0, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "without a whole result"),
        ("iperf3: error - bad port", "without a whole result"),
        ("[]", "without a whole result"),
        (json.dumps(iperf())[:-20], "without a whole result"),
        ('{"a":' * 5000, "without a whole result"),
        (json.dumps({"start": {}, "intervals": [], "end": {}}), r"lacks end\.sum_received"),
        (json.dumps(iperf(received="fast")), r"lacks end\.sum_received"),
        (json.dumps(iperf(received=True)), r"lacks end\.sum_received"),
        (json.dumps(iperf(received=float("nan"))), r"lacks end\.sum_received"),
        (json.dumps(iperf(received=-1)), r"lacks end\.sum_received"),
        (json.dumps(iperf(received=10**400)), r"lacks end\.sum_received"),
        (json.dumps(REFUSED), r"^iperf3: unable to connect to server .*: Connection refused$"),
        (json.dumps(iperf(error="error - unable to receive results")), "unable to receive results"),
        (json.dumps(iperf(error={"odd": 1})), "odd"),
    ],
)
def test_parse_iperf_refuses(text: str, message: str) -> None:
    with pytest.raises(nb.NetworkError, match=message) as refused:
        nb.parse_iperf(text)
    assert not isinstance(refused.value, nb.BusyError)


def test_parse_iperf_tells_a_busy_server() -> None:
    with pytest.raises(nb.BusyError, match="server is busy"):
        nb.parse_iperf(json.dumps(BUSY))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["start", "end", "sum_received", "sum_sent", "bits_per_second", "version", "error", "x"]),
            inner,
            max_size=4,
        )
    ),
)
WORDS = st.sampled_from(
    [
        *("64 bytes from a: icmp_seq=", "1", "65536", " ttl=64 time=", "0.1", " ms", " (DUP!)", "\n", "٣", "²"),
        *(" packets transmitted, ", " received, ", "% packet loss", "-", "time=-0.1 ms", "1e9"),
    ]
)


@given(st.text() | st.lists(WORDS, max_size=40).map("".join))
def test_parse_ping_survives_any_text(text: str) -> None:
    try:
        ping = nb.parse_ping(text)
    except nb.NetworkError:
        return
    assert 0 <= ping.loss <= 100


@given(st.text() | st.binary().map(lambda value: value.decode("utf-8", "replace")) | JSON.map(json.dumps))
def test_parse_iperf_survives_any_text(text: str) -> None:
    try:
        transfer = nb.parse_iperf(text)
    except nb.NetworkError:
        return
    assert transfer.megabits >= 0


# Plans and commands.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nb.Peer("pi1", "pi1.local"), "peers: pi1: 'pi1.local' is no IP address"),
        (lambda: nb.Peer("pi1", "-c1"), "is no IP address"),
        (lambda: nb.Peer("", "10.0.0.1"), "has no name"),
        (lambda: nb.Plan(source="eth0"), "address: 'eth0' is no IP address"),
        (lambda: nb.Plan(port=0), "port: must be between 1 and 65535, is 0"),
        (lambda: nb.Plan(seconds=0), "seconds: must be between 1 and"),
        (lambda: nb.Plan(ping_count=70000), "ping_count: must be between 1 and 65535"),
    ],
)
def test_what_cannot_be_measured_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(nb.NetworkError, match=message):
        make()


def test_both_programs_bind_to_the_own_address() -> None:
    plan = nb.Plan(source="10.0.0.2", port=5300, seconds=7, ping_count=9)
    ping, iperf3 = nb.ping_command("10.0.0.1", plan), nb.iperf_command("10.0.0.1", plan, reverse=True)
    assert ping[ping.index("-I") + 1] == iperf3[iperf3.index("--bind") + 1] == "10.0.0.2"
    assert ping[ping.index("-c") + 1] == "9"
    assert iperf3[iperf3.index("--port") + 1] == "5300"
    assert iperf3[iperf3.index("--time") + 1] == "7"
    assert "--reverse" in iperf3
    assert "--reverse" not in nb.iperf_command("10.0.0.1", plan)


# A measurement, with programs whose words are given.


PEER = nb.Peer("pi1", "192.168.1.11")
PLAN = nb.Plan(source="192.168.1.12", seconds=5)


class Programs:
    """Answers ping from one list and iperf3 from another; the time passes by one second a command."""

    def __init__(self, ping: list[nb.Done], iperf3: list[nb.Done]) -> None:
        self.answers = {"ping": ping, "iperf3": iperf3}
        self.asked: list[list[str]] = []
        self.time = 0.0

    def run(self, command: Sequence[str], limit: float) -> nb.Done:
        assert limit > 0
        self.asked.append(list(command))
        self.time += 1
        answers = self.answers[command[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def measure(self) -> nb.Measured:
        return nb.measure(
            PEER,
            PLAN,
            self.run,
            clock=lambda: self.time,
            sleep=self.sleep,
        )


def good(**more: Any) -> nb.Done:
    return nb.Done(0, json.dumps(iperf(**more)))


def test_a_record_says_all_that_was_measured() -> None:
    programs = Programs([nb.Done(0, HEALTHY)], [good(), good(received=935.5e6, retransmits=4)])
    measured = programs.measure()
    assert (measured.problems, measured.notes()) == ([], [])
    assert nb.record(PEER, PLAN, measured, "2026-11-21T12:00:00Z", 11.5, {"kernel": "6.12"}) == {
        "started_at": "2026-11-21T12:00:00Z",
        "kind": "net_pair",
        "engine": {"name": "iperf3", "commit": None, "build_key": None, "version": "3.18"},
        "model": None,
        "params": {"peer": "pi1", "peer_address": "192.168.1.11", "seconds": 5},
        "result": {
            "ping_min": {"value": 0.19, "unit": "ms"},
            "ping_avg": {"value": 0.44, "unit": "ms"},
            "ping_p99": {"value": 1.2, "unit": "ms"},
            "ping_loss": {"value": 0.0, "unit": "%"},
            "send": {"value": 941.0, "unit": "Mbit/s"},
            "receive": {"value": 935.5, "unit": "Mbit/s"},
            "retransmits": {"value": 7, "unit": "count"},
        },
        "conditions": {"kernel": "6.12"},
        "duration_s": 11.5,
    }
    assert [command[0] for command in programs.asked] == ["ping", "iperf3", "iperf3"]
    assert ["--reverse" in command for command in programs.asked] == [False, False, True]
    assert "icmp_seq=5" in measured.raw
    assert "sum_received" in measured.raw


def test_duplicates_are_noted() -> None:
    assert Programs([nb.Done(0, DUPLICATED)], [good()]).measure().notes() == ["2 duplicate answers to ping"]


def test_the_rest_stands_when_ping_is_filtered() -> None:
    measured = Programs([nb.Done(1, DEAD)], [good()]).measure()
    assert measured.problems == []
    found = nb.result(measured)
    assert found["ping_loss"] == {"value": 100.0, "unit": "%"}
    assert "ping_avg" not in found
    assert found["send"]["value"] == 941.0


def test_one_direction_that_fails_is_named_and_noted() -> None:
    measured = Programs([nb.Done(0, HEALTHY)], [good(), nb.Done(1, json.dumps(REFUSED))]).measure()
    found = nb.result(measured)
    assert "receive" not in found
    assert found["retransmits"]["value"] == 3
    [problem] = measured.problems
    assert problem.startswith("receiving from pi1 (192.168.1.11): iperf3: unable to connect")
    assert measured.notes() == [problem]


def test_a_busy_server_is_asked_again() -> None:
    busy = nb.Done(1, json.dumps(BUSY))
    programs = Programs([nb.Done(0, HEALTHY)], [busy, busy, good()])
    measured = programs.measure()
    assert measured.problems == []
    assert sum("--reverse" not in command for command in programs.asked) == 1 + 3


def test_a_server_that_stays_busy_is_given_up() -> None:
    programs = Programs([nb.Done(0, HEALTHY)], [nb.Done(1, json.dumps(BUSY))])
    measured = programs.measure()
    assert len(measured.problems) == 2
    assert "server is busy" in measured.problems[0]
    assert programs.time < nb.limit(PLAN)


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (nb.Done(127, ""), "iperf3 is not installed"),
        (nb.Done(None, '{"start":'), "did not end within 25 seconds"),
        (nb.Done(1, "", "usage\niperf3: parameter error\n"), "): iperf3: parameter error"),
        (nb.Done(-9, ""), "exit code -9"),
    ],
)
def test_programs_that_fail(done: nb.Done, words: str) -> None:
    measured = Programs([nb.Done(2, "", "ping: bind: Cannot assign requested address\n")], [done]).measure()
    assert not measured.anything
    assert measured.problems[0] == "ping to pi1 (192.168.1.11): ping: bind: Cannot assign requested address"
    assert all(words in problem for problem in measured.problems[1:])
    assert len(measured.problems) == 3


@pytest.mark.parametrize(("seconds", "count"), [(1, 1), (5, 50), (60, 1000), (10, 3)])
def test_the_role_keeps_its_server_up_for_as_long_as_a_client_may_take(seconds: int, count: int) -> None:
    variables = yaml.safe_load((ROOT / "roles/net_bench/vars/main.yml").read_text(encoding="utf-8"))
    template = jinja2.Template(variables["__net_bench_pair_limit"])
    served = float(template.render(net_bench_seconds=seconds, net_bench_ping_count=count))
    assert served > nb.limit(nb.Plan(seconds=seconds, ping_count=count)) + 20  # what Ansible takes between two


# The module, with programs on PATH that emulate ping and iperf3.


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def install(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    return install


def run(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    merged = {"peers": [{"name": "pi1", "address": "127.0.0.1"}], **arguments}
    with patch_module_args(merged), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_module_measures(capsys: pytest.CaptureFixture[str], programs: Callable[[str, str], None]) -> None:
    # It answers in the C locale only.
    programs("ping", f'[ "$LC_ALL" = C ] && cat <<"END"\n{HEALTHY}END')
    programs("iperf3", f"cat <<'END'\n{json.dumps(iperf())}\nEND")
    answer = run(capsys)
    assert (answer["changed"], answer["problems"]) == (False, [])
    assert answer["records"][0]["result"]["receive"] == {"value": 941.0, "unit": "Mbit/s"}
    assert "$ ping -n -c 50" in answer["raw"]
    assert answer["records"][0]["started_at"].endswith("Z")
    assert answer["records"][0]["conditions"]["kernel"] == os.uname().release


def test_module_keeps_the_good_peer_and_fails_for_the_bad(
    capsys: pytest.CaptureFixture[str], programs: Callable[[str, str], None]
) -> None:
    programs("ping", f'case "$*" in *127.0.0.2) exit 2;; esac\ncat <<"END"\n{HEALTHY}END')
    programs("iperf3", "exit 1")
    answer = run(capsys, peers=[{"name": "a", "address": "127.0.0.1"}, {"name": "b", "address": "127.0.0.2"}])
    assert answer["failed"] is True
    assert [record["params"]["peer"] for record in answer["records"]] == ["a"]
    assert "ping to b (127.0.0.2): ping ended with exit code 2" in answer["msg"]


def test_module_measures_nothing_in_check_mode(
    capsys: pytest.CaptureFixture[str], programs: Callable[[str, str], None], tmp_path: Path
) -> None:
    programs("ping", f"touch {tmp_path}/ran")
    programs("iperf3", f"touch {tmp_path}/ran")
    answer = run(capsys, _ansible_check_mode=True)
    assert (answer["changed"], answer["records"], answer["problems"]) == (False, [], [])
    assert not (tmp_path / "ran").exists()


def test_module_refuses_a_name_for_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    answer = run(capsys, peers=[{"name": "pi1", "address": "pi1.local"}])
    assert answer["failed"] is True
    assert "'pi1.local' is no IP address" in answer["msg"]


def test_a_program_that_hangs_is_stopped_and_its_words_are_kept(programs: Callable[[str, str], None]) -> None:
    programs("ping", "echo begun; exec sleep 60")
    done = nb.run_command(["ping"], 0.5)
    assert (done.code, done.output) == (None, "begun\n")


@pytest.mark.parametrize(("command", "code"), [(["no-such-program"], 127), (["/"], 126)])
def test_a_program_that_cannot_run(command: list[str], code: int) -> None:
    assert nb.run_command(command, 1).code == code


# The matrix.


def record(host: str, peer: str, at: str, **values: float) -> dict[str, Any]:
    return {
        "kind": "net_pair",
        "id": f"{host}-{peer}-{at}",
        "host": host,
        "started_at": at,
        "params": {"peer": peer, "peer_address": "10.0.0.1", "seconds": 5},
        "result": {name: {"value": value, "unit": "?"} for name, value in values.items()},
    }


def test_matrix_has_every_pair_in_both_directions() -> None:
    rows = nb.matrix(
        [
            record("pi2", "pi1", "2026-11-20T00:00:00Z", send=10, receive=20, ping_avg=1, ping_p99=2, ping_loss=0),
            record("pi2", "pi1", "2026-11-21T00:00:00Z", send=940, receive=930, ping_avg=0.2, ping_p99=0.4),
            record("pi3", "pi1", "2026-11-21T00:00:00Z", send=94.1, ping_avg=0.5, ping_p99=1, ping_loss=2.5),
            {"kind": "quality", "host": "pi9"},
        ]
    )
    assert [(row["source"], row["destination"], row["megabits"]) for row in rows] == [
        ("pi1", "pi2", 930.0),
        ("pi1", "pi3", None),
        ("pi2", "pi1", 940.0),
        ("pi2", "pi3", None),
        ("pi3", "pi1", 94.1),
        ("pi3", "pi2", None),
    ]
    assert rows[0]["ping_avg"] == rows[2]["ping_avg"] == 0.2
    assert rows[2] == {
        "source": "pi2",
        "destination": "pi1",
        "megabits": 940.0,
        "ping_avg": 0.2,
        "ping_p99": 0.4,
        "ping_loss": None,
        "at": "2026-11-21T00:00:00Z",
        "record": "pi2-pi1-2026-11-21T00:00:00Z",
    }
    assert nb.render(rows) == (
        "Mbit/s, and the average ping in ms\n"
        "from \\ to  pi1         pi2         pi3\n"
        "pi1        -           930 / 0.20  ? / 0.50\n"
        "pi2        940 / 0.20  -           ?\n"
        "pi3        94 / 0.50   ?           -\n"
        "pi1 to pi3: 2.5 % of the pings lost\n"
        "pi3 to pi1: 2.5 % of the pings lost\n"
    )


def test_matrix_of_nothing() -> None:
    assert nb.matrix([]) == []
    assert nb.render([]) == "No pair of nodes was measured.\n"


NAMES = st.sampled_from(["pi1", "pi2", "pi3", "pi4"])


@given(st.lists(st.tuples(NAMES, NAMES, st.floats(0, 1e5)), max_size=12))
def test_matrix_is_square(pairs: list[tuple[str, str, float]]) -> None:
    rows = nb.matrix([record(a, b, "t", send=speed, ping_avg=speed) for a, b, speed in pairs])
    names = {name for a, b, _ in pairs if a != b for name in (a, b)}
    assert {(row["source"], row["destination"]) for row in rows} == {(a, b) for a in names for b in names if a != b}
    lines = nb.render(rows).splitlines()
    assert len(lines) == (2 + len(names) if names else 1)


@given(st.lists(st.dictionaries(st.sampled_from(["kind", "host", "params", "result", "started_at", "id"]), JSON)))
def test_matrix_survives_what_is_no_record(records: list[dict[str, Any]]) -> None:
    nb.render(nb.matrix([{**record, "kind": "net_pair"} for record in records]))
