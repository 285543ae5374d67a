"""Runs a playbook with ansible-runner and tells what happens, for people and for programs.

The parts, from pure to not:

- `reduce` folds one ansible-runner event into a `Progress`. It reads no clock and no file: time is the event's own.
- `root_failures` picks, from all failures of a run, those that ended it; `advise` says what to try about one.
- `run_playbook` starts ``ansible-playbook``, feeds its events to `reduce` and a listener, keeps the log, and returns a
  `RunResult`.

Nothing here prints: `bramble.cli.progress` does.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

type Event = Mapping[str, Any]
type HostStatus = Literal["waiting", "running", "ok", "changed", "skipped", "failed", "unreachable"]
type RunStatus = Literal["ok", "failed", "interrupted"]
type Listener = Callable[["Progress", Event], None]

# How many lines of a command's output, and of Ansible's own words, are shown as a cause. The log has them all.
TAIL_LINES = 8
OUTPUT_LINES = 40
# After the first interrupt Ansible may end its own way; after this many seconds it is killed.
GRACE_SECONDS = 15.0
# How often ansible-runner looks whether it has been interrupted, in seconds.
POLL_SECONDS = 0.5
# So many logs are kept, the newest: `bramble status` writes one each time.
LOGS_KEPT = 200

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HIDDEN = "the result is hidden (no_log)"


class RunnerError(Exception):
    """The run could not start. The message says why and what to change."""


# --- What a run looks like


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a run: what it does now and what it has done. Counts are of tasks."""

    status: HostStatus = "waiting"
    ok: int = 0
    changed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """The task that runs now. ``path`` is ``file:line``; ``changed`` and ``failed`` name the hosts where it was so."""

    name: str
    path: str | None = None
    started: datetime | None = None
    hosts: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed on a host, or a host that could not be reached. Each of ``messages`` is one line."""

    host: str
    task: str
    path: str | None
    messages: tuple[str, ...]
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class HostStats:
    """A host's line of the recap: counts of tasks."""

    ok: int = 0
    changed: int = 0
    failures: int = 0
    unreachable: int = 0
    skipped: int = 0
    rescued: int = 0
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """All that is known of a run after some of its events.

    ``begun``: the names of the plays of which a host has started a task. Ansible announces plays that no host is left
    for, too, and a play that several playbooks import comes more than once.
    ``output``: the last lines said outside any task.
    """

    started: datetime | None = None
    now: datetime | None = None
    play: str | None = None
    begun: frozenset[str] = frozenset()
    task: Task | None = None
    hosts: Mapping[str, Host] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
    output: tuple[str, ...] = ()
    stats: Mapping[str, HostStats] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds from the first event to the last."""
        return seconds_between(self.started, self.now)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended. ``elapsed`` in seconds; ``command`` repeats the run by hand, from the project's root."""

    status: RunStatus
    playbook: str
    stats: Mapping[str, HostStats]
    failures: tuple[Failure, ...]
    output: tuple[str, ...]
    elapsed: float
    log: Path
    command: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def seconds_between(start: datetime | None, end: datetime | None) -> float:
    """Seconds from ``start`` to ``end``; 0 where one is not known."""
    return (end - start).total_seconds() if start and end else 0.0


def clock(seconds: float) -> str:
    """``75`` → ``1:15``, ``3661`` → ``1:01:01``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- Events → progress


def reduce(progress: Progress, event: Event) -> Progress:
    """``progress`` after ``event``. Unknown events only move the time.

    Events are those of ansible-runner: ``{"event": name, "created": ISO time, "stdout": text, "event_data": {...}}``.
    """
    now = _time(event.get("created")) or progress.now
    progress = replace(progress, now=now, started=progress.started or now)
    kind = str(event.get("event"))
    if kind in _SAID:
        lines = [line.rstrip() for line in _plain(str(event.get("stdout") or "")).splitlines()]
        return replace(progress, output=(*progress.output, *lines)[-OUTPUT_LINES:])
    handler = _HANDLERS.get(kind)
    return handler(progress, event.get("event_data") or {}) if handler else progress


def _play_start(progress: Progress, data: Event) -> Progress:
    hosts = {name: replace(host, status=_resting(host)) for name, host in progress.hosts.items()}
    play = str(data.get("name") or data.get("pattern") or "")
    return replace(progress, play=play, task=None, hosts=hosts)


def _task_start(progress: Progress, data: Event) -> Progress:
    name = str(data.get("name") or data.get("task") or data.get("task_action") or "")
    # A role's task carries the role as a prefix in `name` for some callers and not for others.
    role = data.get("role")
    if role and not name.startswith(f"{role} :"):
        name = f"{role} : {name}"
    hosts = {name: replace(host, status=_resting(host)) for name, host in progress.hosts.items()}
    return replace(progress, task=Task(name, data.get("task_path"), progress.now), hosts=hosts)


def _resting(host: Host) -> HostStatus:
    return host.status if host.status in ("failed", "unreachable") else "waiting"


def _host_start(progress: Progress, data: Event) -> Progress:
    return _with_host(progress, data, "running")


def _host_ok(progress: Progress, data: Event) -> Progress:
    changed = bool((data.get("res") or {}).get("changed"))
    return _with_host(progress, data, "changed" if changed else "ok")


def _host_skipped(progress: Progress, data: Event) -> Progress:
    return _with_host(progress, data, "skipped")


def _host_failed(progress: Progress, data: Event) -> Progress:
    if data.get("ignore_errors"):
        return _with_host(progress, data, "ok")
    return _with_failure(_with_host(progress, data, "failed"), data, unreachable=False)


def _host_unreachable(progress: Progress, data: Event) -> Progress:
    return _with_failure(_with_host(progress, data, "unreachable"), data, unreachable=True)


def _with_host(progress: Progress, data: Event, status: HostStatus) -> Progress:
    name = str(data.get("host"))
    host = progress.hosts.get(name, Host())
    host = Host(
        status,
        ok=host.ok + (status in ("ok", "changed")),
        changed=host.changed + (status == "changed"),
        failed=host.failed + (status in ("failed", "unreachable")),
    )
    task = progress.task
    if task:
        task = replace(
            task,
            hosts=task.hosts | {name},
            changed=task.changed | {name} if status == "changed" else task.changed,
            failed=task.failed | {name} if status in ("failed", "unreachable") else task.failed,
        )
    begun = progress.begun | {progress.play} if progress.play else progress.begun
    return replace(progress, begun=begun, task=task, hosts={**progress.hosts, name: host})


def _with_failure(progress: Progress, data: Event, *, unreachable: bool) -> Progress:
    failure = Failure(
        host=str(data.get("host")),
        task=progress.task.name if progress.task else str(data.get("task") or ""),
        path=data.get("task_path"),
        messages=cause(data.get("res") or {}),
        unreachable=unreachable,
    )
    return replace(progress, failures=(*progress.failures, failure))


def _stats(progress: Progress, data: Event) -> Progress:
    keys = ("processed", "ok", "failures", "dark", "skipped")
    names: set[str] = set().union(*(data.get(key) or () for key in keys))
    stats = {
        name: HostStats(
            ok=_count(data, "ok", name),
            changed=_count(data, "changed", name),
            failures=_count(data, "failures", name),
            unreachable=_count(data, "dark", name),
            skipped=_count(data, "skipped", name),
            rescued=_count(data, "rescued", name),
            ignored=_count(data, "ignored", name),
        )
        for name in sorted(names)
    }
    return replace(progress, stats=stats, task=None)


def _count(data: Event, key: str, host: str) -> int:
    return int((data.get(key) or {}).get(host, 0))


# What Ansible says outside any task.
_SAID = frozenset({"verbose", "warning", "error", "playbook_on_no_hosts_matched"})
_HANDLERS: Mapping[str, Callable[[Progress, Event], Progress]] = {
    "playbook_on_play_start": _play_start,
    "playbook_on_task_start": _task_start,
    "playbook_on_handler_task_start": _task_start,
    "playbook_on_cleanup_task_start": _task_start,
    "playbook_on_stats": _stats,
    "runner_on_start": _host_start,
    "runner_on_ok": _host_ok,
    "runner_on_skipped": _host_skipped,
    "runner_on_failed": _host_failed,
    "runner_on_unreachable": _host_unreachable,
}


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def _plain(text: str) -> str:
    """``text`` without colours and carriage returns."""
    return _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


# --- Why it failed


def cause(result: Event) -> tuple[str, ...]:
    """The lines that say why a task failed, from its result. Hidden results (``no_log``) stay hidden.

    A message that is a list gives a line each; a loop gives its failed items; where the message only says that a
    command failed, the end of what the command said follows.
    """
    if "censored" in result or result.get("_ansible_no_log"):
        return (_HIDDEN,)
    items = result.get("results")
    if isinstance(items, list):
        lines: list[str] = []
        for item in items:
            if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable")):
                hidden = "censored" in item or item.get("_ansible_no_log")
                label = "" if hidden else str(item.get("_ansible_item_label", item.get("item", "")))
                lines += [f"[{label}] {line}" if label else line for line in cause(item)]
        if lines:
            return tuple(dict.fromkeys(lines))
    lines = _lines(result.get("msg"))
    arguments = _lines(result.get("argument_errors"))
    if arguments:
        # The message of argument validation is one long line that says these again.
        lines = [lines[0].partition(":")[0] + ":" if lines else "The arguments are not valid:", *arguments]
    text = " ".join(lines)
    if not lines or "non-zero return code" in text or "MODULE FAILURE" in text or "deserialization failed" in text:
        command = result.get("cmd")
        if isinstance(command, list):
            command = shlex.join(str(word) for word in command)
        said = _said_by(result)
        if command and "rc" in result:
            lines = [f"exit code {result['rc']}: {_shorten(str(command).splitlines()[0] if command else '')}"]
        lines += said[-TAIL_LINES:]
    return tuple(lines) or ("no reason given",)


def _said_by(result: Event) -> list[str]:
    for key in ("stderr", "module_stderr", "stdout", "module_stdout"):
        lines = _lines(result.get(key))
        if lines:
            return lines
    return []


def _lines(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [line for item in value for line in _lines(item)]
    text = _plain(str(value)).removeprefix("Task failed: ")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _shorten(text: str, width: int = 160) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def root_failures(progress: Progress) -> tuple[Failure, ...]:
    """The failures that ended the run on their host: not those that a ``rescue`` dealt with or the play allowed.

    The recap counts a host's unrescued failures. They are its last ones: a host that fails for good runs nothing more,
    except what ``always`` holds.
    """
    if progress.stats is None:
        return progress.failures
    kept: list[Failure] = []
    seen: dict[tuple[str, bool], int] = {}
    for failure in reversed(progress.failures):
        stats = progress.stats.get(failure.host, HostStats())
        key = (failure.host, failure.unreachable)
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= (stats.unreachable if failure.unreachable else stats.failures):
            kept.append(failure)
    return tuple(reversed(kept))


# First match wins, so the special comes before the general. Patterns are searched in the failure's messages.
_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key verification failed",
        "The host key of {host} is not the one on record. If the node was set up anew, remove the old key with "
        "`ssh-keygen -R <address>` (in the known_hosts file that the inventory names) and connect once with ssh.",
    ),
    (
        r"Permission denied \((?:publickey|password)|Too many authentication failures",
        "{host} refuses the login. Check ansible_user and the ssh key in the inventory: `ssh <user>@<address>` must "
        "work.",
    ),
    (
        r"Could not resolve hostname|Name or service not known|nodename nor servname",
        "The name of {host} does not resolve. Give its IP address as ansible_host in the inventory.",
    ),
    (
        r"[Mm]issing sudo password|sudo: a password is required|sudo: a terminal is required|Incorrect sudo password|"
        r"privilege escalation prompt|become password",
        "sudo on {host} wants a password. Repeat with --ask-become-pass (-K).",
    ),
    (
        r"No space left on device|not enough (?:free )?(?:disk )?space|Disk quota exceeded",
        "The disk of {host} is full. `df -h` there shows which file system; old builds are in /opt, models in "
        "/var/lib/bramble.",
    ),
    (
        r"Could not get lock|dpkg frontend lock|Failed to lock apt|dpkg was interrupted",
        "Another package manager runs on {host} (often unattended-upgrades after boot). Wait until it is done, then "
        "repeat.",
    ),
    (
        r"Temporary failure (?:in name )?resolv|Failed to fetch|Failed to update apt cache|urlopen error|"
        r"Could not connect to .*:80|Network is unreachable",
        "{host} cannot reach the network it downloads from. Check its route, its DNS and the time of day there.",
    ),
    (
        r"[Cc]hecksum|sha256|digest",
        "What was fetched is not what the project's checksums say. Do not use it; change the checksum only if you know "
        "why it differs.",
    ),
    (
        r"Validation of arguments failed|argument_errors|arguments are not valid|missing required argument",
        "Correct these variables in the inventory and repeat; nothing was changed by this task.",
    ),
    (
        r"No module named|/usr/bin/python3?: not found|python3?: command not found|interpreter was not found",
        "{host} has no usable Python. Install python3 there, or set ansible_python_interpreter in the inventory.",
    ),
    (
        r"Connection refused|Connection timed out|No route to host|Host is down|Connection closed by",
        "{host} does not answer on ssh. Is it on, at the address in the inventory (ansible_host), with sshd running?",
    ),
    (
        r"[Tt]imed? ?out|Timeout",
        "{host} took too long. If it is busy or slow, repeat: what is done is not done again.",
    ),
)
_UNREACHABLE_ADVICE = (
    "{host} cannot be reached by ssh. Is it on, is its address (ansible_host) right, is its host key known?"
)


# For what Ansible says outside any task: searched in `error_lines`.
_OUTPUT_ADVICE: tuple[tuple[str, str], ...] = (
    (
        r"failed to parse inventory",
        "The inventory cannot be read. Correct the file at the place named above; `ansible-inventory -i <inventory> "
        "--graph` shows when it can be.",
    ),
)


def advise(failures: Sequence[Failure]) -> tuple[str, ...]:
    """What to try about the failures of a known kind: each advice once, for all hosts that need it."""
    hosts: dict[str, list[str]] = {}
    for failure in failures:
        text = "\n".join(failure.messages)
        advice = _match(_ADVICE, text) or (_UNREACHABLE_ADVICE if failure.unreachable else None)
        if advice and failure.host not in hosts.setdefault(advice, []):
            hosts[advice].append(failure.host)
    return tuple(_addressed(advice, names) for advice, names in hosts.items())


def advise_output(lines: Sequence[str]) -> tuple[str, ...]:
    """What to try when no task failed, by the `error_lines`."""
    advice = _match(_OUTPUT_ADVICE, "\n".join(lines))
    return (advice,) if advice else ()


def _match(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((advice for pattern, advice in table if re.search(pattern, text)), None)


def _addressed(advice: str, hosts: Sequence[str]) -> str:
    """``advice`` for ``hosts``. It is worded for one: "each of" keeps that right for several."""
    if len(hosts) == 1:
        return advice.format(host=hosts[0])
    each = "Each" if advice.startswith("{host}") else "each"
    return advice.format(host=f"{each} of {', '.join(hosts[:-1])} and {hosts[-1]}")


def error_lines(output: tuple[str, ...]) -> tuple[str, ...]:
    """What Ansible said when no task failed (a syntax error): from its first ``[ERROR]`` on, else its last lines."""
    lines = [line for line in output if line.strip()]
    first = next((index for index, line in enumerate(lines) if line.startswith(("[ERROR]", "ERROR!"))), None)
    if first is None:
        return tuple(lines[-TAIL_LINES:])
    found = [line.removeprefix("[ERROR]: ").removeprefix("ERROR! ") for line in lines[first:]]
    if "failed to parse inventory" in found[0]:
        # Why is in the warnings above it: each plugin that tried says one, and the YAML plugin's is the one that helps.
        tried = "[WARNING]: Failed to parse inventory with 'yaml' plugin: "
        found += [line.removeprefix(tried) for line in lines if line.startswith((tried, "Origin: /"))]
    return tuple(dict.fromkeys(found))


# --- Running


def find_root(start: Path | None = None) -> Path:
    """The project's root: the nearest of ``start`` (default: the working directory) and its parents that has both
    ``site.yml`` and ``ansible.cfg``.

    Raises:
        RunnerError: there is none.
    """
    start = (start or Path.cwd()).absolute()
    for directory in (start, *start.parents):
        if (directory / "site.yml").is_file() and (directory / "ansible.cfg").is_file():
            return directory
    raise RunnerError(
        f"{start} is not inside a Bramble checkout: neither it nor a directory above it has site.yml and ansible.cfg."
    )


def run_playbook(
    playbook: str,
    *,
    root: Path,
    inventory: str | None = None,
    limit: str | None = None,
    tags: str | None = None,
    check: bool = False,
    extra_vars: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    passwords: Mapping[str, str] | None = None,
    verbosity: int = 0,
    require_hosts: bool = False,
    listener: Listener | None = None,
) -> RunResult:
    """Run ``playbook`` (a path relative to ``root``) and wait for its end.

    Args:
        root: the project's root (`find_root`); Ansible runs there with its ``ansible.cfg``.
        inventory: as for ``ansible-playbook -i``, relative to ``root``; None for the one in ``ansible.cfg``, ``","``
            for none at all (implicit localhost).
        check: predict and change nothing (``--check --diff``).
        extra_vars: these show in the process list, so no secrets.
        environment: variables for ``ansible-playbook``, over those of this process.
        passwords: prompt (a regular expression) → answer. Held in memory only.
        require_hosts: a run that touched no host is a failure.
        listener: called after each event with the progress and the event.

    A run that fails is a result, not an exception. The first interrupt (SIGINT, SIGTERM, SIGHUP) lets Ansible end; the
    second, or `GRACE_SECONDS`, kills it.

    Raises:
        RunnerError: the playbook is not there, or the log cannot be written.
    """
    # Imported here: ansible-runner takes a while to load, and `--help` should not.
    from ansible_runner import Runner
    from ansible_runner.config.runner import RunnerConfig

    if not (root / playbook).is_file():
        raise RunnerError(f"{root / playbook} does not exist.")
    if inventory and not inventory.endswith(",") and not (root / inventory).exists():
        raise RunnerError(f"The inventory {inventory} does not exist (looked in {root}).")
    arguments = ["--check", "--diff"] if check else []
    if passwords:
        arguments.append("--ask-become-pass")
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="bramble-") as private_data_dir,
        _open_log(root, Path(playbook).stem) as log,
        _Interrupts() as interrupts,
    ):
        config = RunnerConfig(
            private_data_dir=private_data_dir,
            project_dir=str(root),
            playbook=playbook,
            inventory=str(root / inventory) if inventory and (root / inventory).exists() else inventory,
            limit=limit,
            tags=tags,
            cmdline=" ".join(arguments),
            extravars=dict(extra_vars or {}),
            verbosity=verbosity,
            envvars={**_environment(root), **(environment or {})},
            passwords=dict(passwords or {}),
            settings={"pexpect_timeout": POLL_SECONDS, "suppress_output_file": True},
            suppress_env_files=True,
            # Any value but "jsonfile" leaves the cache to ansible.cfg.
            fact_cache_type="ansible.cfg",
            quiet=True,
        )
        config.prepare()
        command = repeat_command(config.command, root)
        log.write(f"# {command}\n")
        progress = Progress()

        def on_event(event: Event) -> bool:
            nonlocal progress
            interrupts.pid = event.get("pid", interrupts.pid)
            text = _plain(str(event.get("stdout") or ""))
            if text or event.get("event") == "verbose":
                log.write(text + "\n")
                log.flush()
            progress = reduce(progress, event)
            if listener:
                listener(progress, event)
            return False  # Not to be written to a file.

        def on_status(status: Event, runner_config: Any) -> None:
            # ansible-runner has written the command with its whole environment to a file. Nobody reads it.
            if status.get("status") == "running":
                (Path(runner_config.artifact_dir) / "command").unlink(missing_ok=True)

        runner = Runner(
            config, event_handler=on_event, status_handler=on_status, cancel_callback=interrupts.should_kill
        )
        runner.run()
        status: RunStatus = "ok" if runner.rc == 0 else "failed"
        output = progress.output
        stats = progress.stats or {}
        if interrupts.count:
            status = "interrupted"
        elif status == "ok" and require_hosts and not stats:
            status = "failed"
            where = inventory or "of ansible.cfg"
            output = (*output, f"[ERROR]: {playbook} found no host to work on in the inventory {where}.")
        return RunResult(
            status=status,
            playbook=playbook,
            stats=stats,
            failures=root_failures(progress),
            output=output,
            elapsed=time.monotonic() - began,
            log=Path(log.name),
            command=command,
        )


def repeat_command(command: list[str], root: Path) -> str:
    """The shell command that repeats a run from ``root``, with paths under it made relative."""
    program = Path(sys.executable).parent / "ansible-playbook"
    words = [str(program) if program.is_relative_to(root) else command[0], *command[1:]]
    return shlex.join(str(Path(word).relative_to(root)) if word.startswith(f"{root}/") else word for word in words)


def _environment(root: Path) -> dict[str, str]:
    """What ``ansible-playbook`` needs in its environment to behave as it does when called by hand in ``root``."""
    environment = {
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        # ansible-runner switches this off unless it is set.
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_NOCOLOR": "True",
        # The ansible-playbook of this virtual environment, and not resolved: a venv's python is a link.
        "PATH": os.pathsep.join(filter(None, (str(Path(sys.executable).parent), os.environ.get("PATH")))),
    }
    if os.environ.get("LC_ALL") in ("C", "POSIX"):
        environment["LC_ALL"] = "C.UTF-8"  # Ansible refuses to run in a locale that is not UTF-8.
    return environment


@contextmanager
def _open_log(root: Path, name: str) -> Iterator[TextIO]:
    """A new file ``.bramble/logs/<UTC time>-<name>.log``, for its owner's eyes."""
    directory = root / ".bramble" / "logs"
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{name}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in sorted(directory.glob("*.log"))[: -(LOGS_KEPT - 1)]:
            old.unlink(missing_ok=True)
        for number in range(1, 1000):
            path = directory / (f"{stem}.log" if number == 1 else f"{stem}-{number}.log")
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            break
        else:
            raise RunnerError(f"{directory} has a thousand logs of this second. Something starts runs in a loop.")
    except OSError as error:
        raise RunnerError(f"The log cannot be written in {directory}: {error.strerror}.") from error
    # `log.name` must be the path, so not os.fdopen.
    with open(path, "w", encoding="utf-8", opener=lambda *_: descriptor) as log:
        yield log


class _Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP while a run is under way, and passes the first on to Ansible.

    ``ansible-playbook`` runs on a terminal of its own, so Ctrl-C reaches this process only. ansible-runner would kill
    its process group, which leaves its workers behind: they are in sessions of their own.
    """

    def __init__(self) -> None:
        self.count = 0
        self.pid: int | None = None
        self._deadline: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1

    def should_kill(self) -> bool:
        """Called by ansible-runner every `POLL_SECONDS`: True has the run killed."""
        if not self.count:
            return False
        if self.pid is None:
            return True
        if self._deadline is None:
            self._deadline = time.monotonic() + GRACE_SECONDS
            _kill([self.pid], signal.SIGINT)
        if self.count == 1 and time.monotonic() < self._deadline:
            return False
        _kill(descendants(self.pid, processes()), signal.SIGKILL)
        return True


def descendants(pid: int, parents: Mapping[int, int]) -> list[int]:
    """The processes below ``pid``, nearest first. ``parents``: process → its parent."""
    found = [pid]
    for current in found:
        found += [child for child, parent in parents.items() if parent == current and child not in found]
    return found[1:]


def processes() -> dict[int, int]:
    """All processes of this machine: id → id of the parent."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
    return {int(pid): int(parent) for pid, parent in (line.split() for line in listing.splitlines())}


def _kill(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
