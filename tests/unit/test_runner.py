import json
import os
import signal
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bramble.runner import (
    Event,
    Failure,
    Host,
    HostStats,
    Progress,
    RunnerError,
    RunResult,
    advise,
    advise_output,
    cause,
    clock,
    descendants,
    error_lines,
    find_root,
    processes,
    reduce,
    repeat_command,
    root_failures,
    run_playbook,
)

START = datetime(2026, 11, 21, 2, 58, 9, tzinfo=UTC)


def event(kind: str, at: float = 0.0, *, stdout: str = "", **data: Any) -> dict[str, Any]:
    created = (START + timedelta(seconds=at)).isoformat()
    return {"event": kind, "created": created, "stdout": stdout, "event_data": data}


def after(events: Iterable[Event], progress: Progress | None = None) -> Progress:
    progress = progress or Progress()
    for each in events:
        progress = reduce(progress, each)
    return progress


# As ansible-runner 2.4.3 with ansible-core 2.21.5 tells them, less the keys that nobody reads.
PLAY = event("playbook_on_play_start", 0, stdout="\r\nPLAY [First] ****", name="First", pattern="cluster")
TASK = event("playbook_on_task_start", 1, name="Build", task="Build", task_path="/p/site.yml:7", role="llama_cpp")
RUNNING = [event("runner_on_start", 1, host=host, task="Build") for host in ("a", "b", "c", "d")]
FAILED = event(
    "runner_on_failed",
    4,
    host="a",
    task="Build",
    task_path="/p/site.yml:7",
    ignore_errors=False,
    res={
        "changed": True,
        "msg": "The command exited with a non-zero return code.",
        "rc": 2,
        "cmd": ["ls", "/no such"],
        "stdout": "",
        "stderr": "ls: cannot access '/no such': No such file or directory",
    },
)
UNREACHABLE = event(
    "runner_on_unreachable",
    3,
    host="d",
    task="Build",
    task_path="/p/site.yml:7",
    res={"unreachable": True, "msg": "Task failed: Failed to connect to the host via ssh: Connection refused"},
)


def test_a_task_on_four_hosts() -> None:
    progress = after(
        [
            PLAY,
            TASK,
            *RUNNING,
            event("runner_on_ok", 2, host="b", res={"changed": True}),
            event("runner_on_skipped", 2, host="c"),
            UNREACHABLE,
            FAILED,
        ]
    )
    assert progress.play == "First"
    assert progress.task is not None
    assert progress.task.name == "llama_cpp : Build"
    assert progress.task.changed == {"b"}
    assert progress.task.failed == {"a", "d"}
    assert progress.elapsed == 4.0
    assert progress.hosts == {
        "a": Host("failed", failed=1),
        "b": Host("changed", ok=1, changed=1),
        "c": Host("skipped"),
        "d": Host("unreachable", failed=1),
    }
    assert [(f.host, f.unreachable, f.path) for f in progress.failures] == [
        ("d", True, "/p/site.yml:7"),
        ("a", False, "/p/site.yml:7"),
    ]


def test_the_next_task_lets_hosts_rest_but_not_the_dead() -> None:
    progress = after([PLAY, TASK, *RUNNING, UNREACHABLE, event("runner_on_ok", 5, host="b", res={}), TASK])
    assert {name: host.status for name, host in progress.hosts.items()} == {
        "a": "waiting",
        "b": "waiting",
        "c": "waiting",
        "d": "unreachable",
    }


def test_an_ignored_failure_is_none() -> None:
    ignored = {**FAILED, "event_data": {**FAILED["event_data"], "ignore_errors": True}}
    progress = after([PLAY, TASK, *RUNNING, ignored])
    assert progress.failures == ()
    assert progress.hosts["a"] == Host("ok", ok=1)


def test_a_play_begins_when_a_host_starts_one_of_its_tasks() -> None:
    announced = after([PLAY, TASK])
    begun = after([RUNNING[0]], announced)
    assert (announced.begun, begun.begun) == (frozenset(), {"First"})


def test_stats() -> None:
    data = {"ok": {"a": 5}, "changed": {"a": 3}, "failures": {}, "dark": {"d": 1}, "processed": {"a": 1, "d": 1}}
    progress = after([PLAY, event("playbook_on_stats", 9, **data)])
    assert progress.stats == {"a": HostStats(ok=5, changed=3), "d": HostStats(unreachable=1)}


@pytest.mark.parametrize(
    "odd",
    [{}, {"event": "EOF"}, {"event": "runner_on_ok"}, {"event": "verbose", "created": "no time"}, {"event": "new_one"}],
)
def test_an_event_without_what_it_should_have_does_no_harm(odd: Event) -> None:
    progress = after([PLAY, TASK])
    assert reduce(progress, odd).play == "First"


@given(
    st.lists(st.sampled_from([PLAY, TASK, *RUNNING, FAILED, UNREACHABLE, event("runner_on_ok", 2, host="b", res={})]))
)
def test_counts_are_those_of_the_events(events: list[Event]) -> None:
    progress = after(events)
    assert sum(host.ok for host in progress.hosts.values()) == sum(e["event"] == "runner_on_ok" for e in events)
    assert len(progress.failures) == sum(host.failed for host in progress.hosts.values())
    assert len(progress.failures) == sum(e in (FAILED, UNREACHABLE) for e in events)


HIDDEN = {"censored": "the output has been hidden due to the fact that 'no_log: true' was specified for this result"}


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param({"msg": "plain"}, ["plain"], id="message"),
        pytest.param({"msg": ["one", "two\nthree"]}, ["one", "two", "three"], id="list"),
        pytest.param({"msg": "Task failed: it is so"}, ["it is so"], id="prefix"),
        pytest.param({"msg": "\x1b[31mred\x1b[0m\r\nnext"}, ["red", "next"], id="colours"),
        pytest.param({}, ["no reason given"], id="nothing"),
        pytest.param(
            FAILED["event_data"]["res"],
            ["exit code 2: ls '/no such'", "ls: cannot access '/no such': No such file or directory"],
            id="command",
        ),
        pytest.param(
            {"msg": "non-zero return code", "rc": 1, "cmd": "make", "stderr": "", "stdout": "\n".join("abcdefghij")},
            ["exit code 1: make", *"cdefghij"],
            id="the end of what it said",
        ),
        pytest.param(
            {"msg": "Module result deserialization failed: No start", "rc": 127, "module_stderr": "python3: not found"},
            ["Module result deserialization failed: No start", "python3: not found"],
            id="module did not start",
        ),
        pytest.param(
            {
                "msg": "Validation of arguments failed:\na is missing\nb is bad",
                "argument_errors": ["a is missing", "b is bad"],
            },
            ["Validation of arguments failed:", "a is missing", "b is bad"],
            id="arguments, not twice",
        ),
        pytest.param(HIDDEN, ["the result is hidden (no_log)"], id="hidden"),
        pytest.param({**HIDDEN, "msg": "secret"}, ["the result is hidden (no_log)"], id="hidden message"),
        pytest.param(
            {
                "msg": "One or more items failed",
                "results": [
                    {"failed": False, "msg": "fine", "item": "x"},
                    {"failed": True, "msg": "bad", "item": {"a": 1}, "_ansible_item_label": "label"},
                    {"failed": True, "item": "secret", "_ansible_no_log": True, "msg": "secret"},
                ],
            },
            ["[label] bad", "the result is hidden (no_log)"],
            id="loop",
        ),
    ],
)
def test_cause(result: dict[str, Any], expected: list[str]) -> None:
    assert cause(result) == tuple(expected)


def failure(messages: str | Sequence[str], *, unreachable: bool = False) -> Failure:
    return Failure("pi2", "t", None, (messages,) if isinstance(messages, str) else tuple(messages), unreachable)


@pytest.mark.parametrize(
    ("message", "unreachable", "word"),
    [
        ("Failed to connect to the host via ssh: ssh: connect to host x port 22: Connection refused", True, "sshd"),
        ("Connection timed out during banner exchange", True, "sshd"),
        ("Failed to connect to the host via ssh: Host key verification failed.", True, "ssh-keygen -R"),
        ("pi@x: Permission denied (publickey).", True, "ansible_user"),
        ("ssh: Could not resolve hostname pi2: Name or service not known", True, "IP address"),
        ("something new about ssh", True, "host key known"),
        ("OSError: [Errno 28] No space left on device", False, "df -h"),
        ("Missing sudo password", False, "-K"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", False, "package manager"),
        ("The checksum for /x did not match abc", False, "checksum"),
        ("Failed to fetch http://x", False, "network"),
        ("Timeout when waiting for 10.1.1.12:50052", False, "took too long"),
        ("/bin/sh: 1: /usr/bin/python3: not found", False, "python3"),
        ("Validation of arguments failed:", False, "inventory"),
    ],
)
def test_advice_for_known_causes(message: str, unreachable: bool, word: str) -> None:
    (advice,) = advise([failure(message, unreachable=unreachable)])
    assert word in advice
    assert "{" not in advice


def test_no_advice_for_unknown_causes() -> None:
    assert advise([failure("the moon is full")]) == ()


def test_equal_advice_is_given_once_for_all_its_hosts() -> None:
    off = [Failure(host, "t", None, ("Connection refused",), unreachable=True) for host in ("pi1", "pi2", "pi1", "Pi3")]
    full = [Failure(host, "t", None, ("No space left on device",)) for host in ("pi4", "pi5")]
    first, second = advise([*off, *full])
    assert first.startswith("Each of pi1, pi2 and Pi3 does not answer on ssh.")
    assert second.startswith("The disk of each of pi4 and pi5 is full.")


def test_advice_for_an_inventory_that_cannot_be_read() -> None:
    (advice,) = advise_output(("Completely failed to parse inventory source /p/hosts.yml",))
    assert "ansible-inventory" in advice
    assert advise_output(("something else",)) == ()


def test_root_failures_leave_out_what_was_rescued_and_what_was_allowed() -> None:
    rescued, final = failure("rescued"), failure("final")
    allowed = Failure("pi3", "t", None, ("ignored",), unreachable=True)
    stats = {"pi2": HostStats(failures=1, rescued=1), "pi3": HostStats(ignored=1)}
    assert root_failures(Progress(failures=(rescued, allowed, final), stats=stats)) == (final,)
    assert root_failures(Progress(failures=(rescued, final))) == (rescued, final)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            ("[WARNING]: w", "[ERROR]: YAML parsing failed", "Origin: /p:6:1", ""),
            ("YAML parsing failed", "Origin: /p:6:1"),
        ),
        (("words", ""), ("words",)),
        (
            (
                "[WARNING]: Failed to parse inventory with 'yaml' plugin: YAML parsing failed: odd",
                "Origin: /p/hosts.yml:4:1",
                "[WARNING]: Failed to parse inventory with 'ini' plugin: misleading",
                "[ERROR]: Completely failed to parse inventory source /p/hosts.yml",
            ),
            (
                "Completely failed to parse inventory source /p/hosts.yml",
                "YAML parsing failed: odd",
                "Origin: /p/hosts.yml:4:1",
            ),
        ),
        ((), ()),
    ],
)
def test_error_lines(output: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert error_lines(output) == expected


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (75, "1:15"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_descendants() -> None:
    assert descendants(1, {2: 1, 3: 2, 4: 3, 5: 9, 1: 1}) == [2, 3, 4]
    assert descendants(7, {}) == []


def test_repeat_command_is_relative_to_the_root(tmp_path: Path) -> None:
    command = ["ansible-playbook", "-i", f"{tmp_path}/inventory/lab", "-e", '{"a":1}', "site.yml"]
    assert repeat_command(command, tmp_path) == """ansible-playbook -i inventory/lab -e '{"a":1}' site.yml"""


def test_find_root(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "a" / "ansible.cfg").touch()  # Not enough: playbooks/ has one, too.
    with pytest.raises(RunnerError, match="not inside a Bramble checkout"):
        find_root(deep)
    (tmp_path / "ansible.cfg").touch()
    (tmp_path / "site.yml").touch()
    assert find_root(deep) == tmp_path


# --- Real runs, on this machine

INVENTORY = """
[nodes]
here ansible_connection=local ansible_python_interpreter="{{ ansible_playbook_python }}"
[dead]
gone ansible_host=127.0.0.1 ansible_port=1
"""
SUCCESS = """
- name: Good
  hosts: nodes
  gather_facts: false
  tasks:
    - name: Show the environment
      ansible.builtin.debug:
        msg:
          host_key_checking: "{{ lookup('ansible.builtin.config', 'HOST_KEY_CHECKING') }}"
          fact_cache: "{{ lookup('ansible.builtin.config', 'CACHE_PLUGIN_CONNECTION') }}"
          private: "{{ lookup('ansible.builtin.env', 'AWX_ISOLATED_DATA_DIR') }}"
          extra: "{{ extra }}"
    - name: Change
      ansible.builtin.command: "true"
"""
FAILURE = """
- name: Bad
  hosts: nodes
  gather_facts: false
  tasks:
    - name: Hide
      ansible.builtin.command: ls /hidden-secret
      no_log: true
      ignore_errors: true
    - name: Break
      ansible.builtin.command: ls /not-there
"""
DEAD = """
- name: Dead
  hosts: dead
  gather_facts: false
  tasks:
    - name: Knock
      ansible.builtin.ping:
"""
SLOW = """
- name: Slow
  hosts: nodes
  gather_facts: false
  tasks:
    - name: Wait
      ansible.builtin.command: sleep 300
"""
NOBODY = "- name: Nobody\n  hosts: nobody\n  tasks: []\n"
SYNTAX = "- hosts: [nodes\n  tasks: {\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "ansible.cfg").write_text(
        "[defaults]\ninventory = hosts\nfact_caching = jsonfile\nfact_caching_connection = .bramble/facts\n"
        "[ssh_connection]\nretries = 0\nssh_args = -o BatchMode=yes\n"
    )
    (tmp_path / "hosts").write_text(INVENTORY)
    return tmp_path


def run(project: Path, playbook: str, **options: Any) -> tuple[RunResult, list[Event]]:
    (project / "site.yml").write_text(playbook)
    events: list[Event] = []
    result = run_playbook("site.yml", root=project, listener=lambda _, e: events.append(e), **options)
    return result, events


def test_a_run_that_goes_well(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAMBLE_TEST_SECRET", "hush")
    left: list[Path] = []

    def on_event(_: Progress, each: Event) -> None:
        message = ((each.get("event_data") or {}).get("res") or {}).get("msg")
        if isinstance(message, dict):
            told.update(message)
            left.extend(path for path in Path(message["private"]).parents[1].rglob("*") if path.is_file())
            contents.extend(path.read_text(errors="replace") for path in left)
            modes.append(stat.S_IMODE(Path(message["private"]).parents[1].stat().st_mode))

    told: dict[str, Any] = {}
    contents: list[str] = []
    modes: list[int] = []
    (project / "site.yml").write_text(SUCCESS)
    result = run_playbook(
        "site.yml", root=project, extra_vars={"extra": {"n": 3}}, require_hosts=True, listener=on_event
    )
    assert result.ok, result
    assert result.stats == {"here": HostStats(ok=2, changed=1)}
    assert result.failures == ()
    # Settings are those of a run by hand, not ansible-runner's.
    assert told["host_key_checking"] is True
    assert told["fact_cache"] == ".bramble/facts"
    assert told["extra"] == {"n": 3}
    # The runner's directory is private, holds no environment, and is gone.
    assert modes == [0o700]
    assert not any("hush" in text for text in contents)
    assert not Path(told["private"]).parents[1].exists()
    # The log is whole, plain and private.
    log = result.log.read_text()
    assert stat.S_IMODE(result.log.stat().st_mode) == 0o600
    assert log.startswith("# ")
    assert "TASK [Change]" in log
    assert "PLAY RECAP" in log
    assert "\x1b" not in log
    assert "\r" not in log


def test_a_run_that_fails(project: Path) -> None:
    result, events = run(project, FAILURE)
    assert json.loads(json.dumps(events)) == events
    assert result.status == "failed"
    assert result.stats["here"].failures == 1
    (only,) = result.failures
    assert (only.host, only.task, only.unreachable) == ("here", "Break", False)
    assert only.path == f"{project}/site.yml:10"
    assert only.messages[0] == "exit code 2: ls /not-there"
    assert "hidden-secret" not in result.log.read_text()


def test_a_host_that_cannot_be_reached(project: Path) -> None:
    result, _ = run(project, DEAD)
    assert result.status == "failed"
    (only,) = result.failures
    assert (only.host, only.unreachable) == ("gone", True)
    assert "Connection refused" in " ".join(only.messages)


def test_a_playbook_that_is_no_yaml(project: Path) -> None:
    result, _ = run(project, SYNTAX)
    assert result.status == "failed"
    assert result.failures == ()
    lines = error_lines(result.output)
    assert "YAML" in lines[0]
    assert any(f"{project}/site.yml" in line for line in lines)


def test_a_run_that_should_touch_a_host_and_touches_none_is_a_failure(project: Path) -> None:
    refused, _ = run(project, NOBODY, require_hosts=True)
    assert refused.status == "failed"
    assert "no host" in error_lines(refused.output)[0]


def test_an_interrupt_ends_ansible_and_its_workers(project: Path) -> None:
    (project / "site.yml").write_text(SLOW)
    before = signal.getsignal(signal.SIGINT)
    pids: list[int] = []

    def interrupt(main: int) -> None:
        # The task's command is the last of the tree to appear.
        while not any("sleep 300" in command for command in commands(descendants(main, processes()))):
            time.sleep(0.05)
        pids.extend([main, *descendants(main, processes())])
        os.kill(os.getpid(), signal.SIGINT)

    def on_event(_: Progress, each: Event) -> None:
        if each["event"] == "runner_on_start":
            # In another thread, so that the signal's handler runs while the runner waits, as it does for a terminal.
            threading.Thread(target=interrupt, args=(each["pid"],), daemon=True).start()

    result = run_playbook("site.yml", root=project, listener=on_event)
    assert result.status == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert len(pids) >= 3  # ansible-playbook, its worker, the command at least.
    deadline = time.monotonic() + 10
    while remaining := set(pids) & set(processes()):
        assert time.monotonic() < deadline, commands(list(remaining))
        time.sleep(0.05)


def commands(pids: list[int]) -> list[str]:
    return [path.read_text().replace("\0", " ") for pid in pids if (path := Path(f"/proc/{pid}/cmdline")).exists()]


@pytest.mark.parametrize(
    ("playbook", "inventory", "message"),
    [("none.yml", None, "none.yml does not exist"), ("site.yml", "inventory/none", "inventory/none does not exist")],
)
def test_what_is_not_there_is_named_before_anything_starts(
    project: Path, playbook: str, inventory: str | None, message: str
) -> None:
    (project / "site.yml").write_text(SUCCESS)
    with pytest.raises(RunnerError, match=message):
        run_playbook(playbook, root=project, inventory=inventory)
    assert not (project / ".bramble").exists()
