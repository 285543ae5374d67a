"""How much memory a node has, and how much of it the system takes: what is left for models. Standard library only."""

from __future__ import annotations

import platform
import pwd
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .conditions import Node, Observation

SERVICES = ("llama-server", "rpc-head", "rpc-worker", "dllama-api", "dllama-worker")
"""The services that hold models and are placed by the plan: what they take is not the system's. Each has a user of its
own."""

MIB = 1 << 20


class MemoryUnknownError(Exception):
    """The kernel does not say what it should. The message tells which file."""


def parse_meminfo(text: str) -> tuple[int, int]:
    """`/proc/meminfo` → (bytes that Linux has, bytes that it could give to programs without swapping).

    Raises MemoryUnknownError if one of them is missing.
    """
    found = {}
    for name in ("MemTotal", "MemAvailable"):
        match = re.search(rf"^{name}:\s+(\d{{1,15}}) kB$", text, re.MULTILINE | re.ASCII)
        if match is None:
            raise MemoryUnknownError(f"/proc/meminfo: has no line {name}: … kB")
        found[name] = int(match[1]) * 1024
    return found["MemTotal"], found["MemAvailable"]


def parse_status(text: str) -> tuple[int | None, int]:
    """`/proc/PID/status` → (user, bytes that are its own: not files, which the kernel can drop)."""
    user = re.search(r"^Uid:\t(\d{1,10})\t", text, re.MULTILINE | re.ASCII)
    kinds = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d{1,15}) kB$", text, re.MULTILINE | re.ASCII)
    return int(user[1]) if user else None, sum(map(int, kinds)) * 1024


def users(names: Iterable[str], find: Callable[[str], Any] = pwd.getpwnam) -> set[int]:
    """The numbers of those users that there are."""
    found = set()
    for name in names:
        try:
            found.add(find(name).pw_uid)
        except KeyError:
            continue
    return found


def held_by_models(proc: Path, services: set[int]) -> int:
    """Bytes that the processes of these users hold. A process that ends meanwhile counts as nothing."""
    total = 0
    for path in proc.glob("[0-9]*/status"):
        try:
            user, held = parse_status(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if user in services:
            total += held
    return total


def measure(node: Node, services: set[int] | None = None) -> tuple[dict[str, Any], str]:
    """The record (without host, id, schema and raw) and what was read. Raises MemoryUnknownError."""
    proc = node.root / "proc"
    with Observation(node, node.load()) as seen:
        try:
            text = (proc / "meminfo").read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise MemoryUnknownError(f"{proc / 'meminfo'}: cannot be read: {error.strerror}") from error
        models = held_by_models(proc, users(f"bramble-{name}" for name in SERVICES) if services is None else services)
    total, available = parse_meminfo(text)
    figures = {
        "total": total,
        "available": available,
        "models": models,
        "system": max(0, total - available - models),
    }
    record = {
        "started_at": seen.started_at,
        "kind": "memory",
        "engine": {"name": "linux", "commit": None, "build_key": None, "version": platform.release()},
        "model": None,
        "params": {},
        "result": {name: {"value": round(value / MIB, 1), "unit": "MiB"} for name, value in figures.items()},
        "conditions": seen.conditions(),
        "duration_s": seen.duration_s,
    }
    return record, f"# /proc/meminfo\n{text}\n# held by models: {models} bytes\n"
