"""What the kernel has counted of an engine: its threads' time, its connections, its interface. Standard library only.

An engine that gives its work to other nodes waits for them asleep, so the time that its computing thread was on a core
is what it computed itself. That holds for llama.cpp's RPC, not for distributed-llama, whose threads wait by spinning.
"""

from __future__ import annotations

import json
import pwd
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Callable[[Sequence[str]], "tuple[int, str]"]
"""Runs a command: (exit code, standard output). For one that does not exist the code is not 0."""

COUNTED = ("bytes_acked", "bytes_received", "data_segs_out", "data_segs_in")
"""Of `struct tcp_info` (linux/tcp.h), as `ss --info` names it. Missing means 0: it prints no zeros."""


class CountersError(Exception):
    """There is nothing to count. The message says what is missing."""


def parse_schedstat(text: str) -> tuple[int, int] | None:
    """`/proc/PID/task/TID/schedstat` → (ns on a core, ns ready and waiting for one).

    Source: the kernel's Documentation/scheduler/sched-stats.rst.
    """
    found = re.fullmatch(r"(\d{1,19}) (\d{1,19}) \d{1,19}\n?", text, re.ASCII)
    return (int(found[1]), int(found[2])) if found else None


def parse_start(text: str) -> int | None:
    """`/proc/PID/task/TID/stat` → when it started, in ticks after boot: field 22 of proc_pid_stat(5).

    The program's name, field 2, may hold spaces and brackets.
    """
    fields = text.rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and re.fullmatch(r"\d{1,19}", fields[19], re.ASCII) else None


_ENDS = re.compile(r"^\S+\s+\d+\s+\d+\s+(\S+):(\d{1,5})\s+(\S+):(\d{1,5})\s", re.ASCII)
_NUMBER = r"(\d{1,7}(?:\.\d{1,6})?)"


def parse_connections(text: str, peers: Collection[str]) -> list[dict[str, Any]]:
    """The connections to `peers` (`address:port`) in the output of `ss --tcp --info --numeric --no-header --oneline`.

    Each is {"peer", "port" (its own), "bytes_acked", "bytes_received", "data_segs_out", "data_segs_in",
    "retransmitted"} and, as far as told, "rtt_ms" (smoothed) and "least_rtt_ms".
    """
    found = []
    for line in text.splitlines():
        ends = _ENDS.match(line)
        if ends is None or f"{ends[3]}:{ends[4]}" not in peers:
            continue
        row: dict[str, Any] = {"peer": f"{ends[3]}:{ends[4]}", "port": int(ends[2])}
        for name in COUNTED:
            counted = re.search(rf"\s{name}:(\d{{1,19}})\b", line, re.ASCII)
            row[name] = int(counted[1]) if counted else 0
        again = re.search(r"\sretrans:\d{1,9}/(\d{1,9})\b", line, re.ASCII)
        row["retransmitted"] = int(again[1]) if again else 0
        for name, pattern in (("rtt_ms", rf"\srtt:{_NUMBER}/"), ("least_rtt_ms", rf"\sminrtt:{_NUMBER}\b")):
            time = re.search(pattern, line, re.ASCII)
            if time:
                row[name] = float(time[1])
        found.append(row)
    return sorted(found, key=lambda one: (one["peer"], one["port"]))


def parse_interface(text: str) -> str | None:
    """The name of the first interface in the output of `ip -json address show to ADDRESS`."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for row in rows if isinstance(rows, list) else []:
        name = row.get("ifname") if isinstance(row, dict) else None
        if isinstance(name, str) and re.fullmatch(r"[\w.@-]{1,40}", name, re.ASCII):
            return name.partition("@")[0]
    return None


def read(path: Path) -> str:
    """A file of the kernel's; an empty text if it is gone."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def threads(proc: Path, program: str, user: int) -> list[dict[str, int]]:
    """The threads of a user's processes of that program: {"process", "thread", "started", "ran_ns", "waited_ns"}.

    `program`: as in `/proc/PID/comm`, of which the kernel keeps 15 characters.
    """
    found = []
    for process in proc.glob("[0-9]*"):
        owner = re.search(r"^Uid:\t(\d{1,10})\t", read(process / "status"), re.MULTILINE | re.ASCII)
        if read(process / "comm").rstrip("\n") != program[:15] or owner is None or int(owner[1]) != user:
            continue
        for thread in process.glob("task/[0-9]*"):
            times, start = parse_schedstat(read(thread / "schedstat")), parse_start(read(thread / "stat"))
            if times is not None and start is not None:
                found.append(
                    {
                        "process": int(process.name),
                        "thread": int(thread.name),
                        "started": start,
                        "ran_ns": times[0],
                        "waited_ns": times[1],
                    }
                )
    return sorted(found, key=lambda one: (one["started"], one["thread"]))


def interface(run: Run, sysfs: Path, address: str) -> dict[str, Any] | None:
    """The interface with this address: {"name", "sent", "received"}, bytes since it came up. None: it has none."""
    code, text = run(["ip", "-json", "address", "show", "to", address])
    name = parse_interface(text) if code == 0 else None
    if name is None:
        return None
    counted = [read(sysfs / "class/net" / name / "statistics" / f"{way}_bytes").strip() for way in ("tx", "rx")]
    if not all(re.fullmatch(r"\d{1,20}", value, re.ASCII) for value in counted):
        return None
    return {"name": name, "sent": int(counted[0]), "received": int(counted[1])}


def snapshot(
    run: Run,
    *,
    service: str,
    program: str,
    address: str,
    peers: Collection[str],
    root: Path = Path("/"),
    find: Callable[[str], Any] = pwd.getpwnam,
) -> dict[str, Any]:
    """{"threads", "connections", "interface"} of one moment.

    `service`: as service_unit names it; its processes belong to the user `bramble-<service>`.

    Raises:
        CountersError: there is no such user, or none of its processes runs the program.
    """
    user = f"bramble-{service}"
    try:
        number = int(find(user).pw_uid)
    except KeyError:
        raise CountersError(f"there is no user {user}: the service {user} was never set up here") from None
    counted = threads(root / "proc", program, number)
    if not counted:
        raise CountersError(
            f"no thread of {program} by {user} can be read in {root / 'proc'}: does {user}.service run "
            "(systemctl status), and has this kernel /proc/self/schedstat?"
        )
    connections: list[dict[str, Any]] = []
    if peers:
        code, text = run(["ss", "--tcp", "--info", "--numeric", "--no-header", "--oneline"])
        if code != 0:
            raise CountersError("ss does not run: it comes with the package iproute2")
        connections = parse_connections(text, peers)
    return {
        "threads": counted,
        "connections": connections,
        "interface": interface(run, root / "sys", address) if address else None,
    }


def leader(*snapshots: Mapping[str, Any]) -> list[dict[str, int]]:
    """The thread that computes and asks the other nodes, as it is in each snapshot.

    That is the oldest of those that ran noticeably between the first and the last: it started its helpers, which spin
    for a while after each piece of work, and so are on a core longer than it is.

    Raises:
        CountersError: no thread is in all of them, as when the engine was started again.
    """
    known = [{(one["process"], one["thread"], one["started"]): one for one in each["threads"]} for each in snapshots]
    common = set(known[0]).intersection(*known[1:])
    if not common:
        raise CountersError("the engine was started again during the measurement: measure again")
    ran = {key: known[-1][key]["ran_ns"] - known[0][key]["ran_ns"] for key in common}
    most = max(ran.values())
    chosen = min((key for key in common if ran[key] * 10 >= most), key=lambda key: (key[2], key[1]))
    return [each[chosen] for each in known]
