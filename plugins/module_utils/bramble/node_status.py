"""What a node can say of itself: machine, services, builds, models. Reads only, and takes absence for an answer.

All paths are under a ``root`` directory, so that a test can lay out a node. Standard library only.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

UNITS = "etc/systemd/system"
BUILD = "opt/llama.cpp/current/build.json"
MODELS = "var/lib/bramble/models"
HEAD_STATE = "run/bramble-rpc-head/state.json"

# The properties that `systemctl show` is asked for. systemd.directives(7) has their meaning.
PROPERTIES = ("Id", "ActiveState", "SubState", "Result", "Type", "UnitFileState", "NRestarts", "ActiveEnterTimestamp")

# Runs a command, returns (exit code, standard output). A command that does not exist gives a code that is not 0.
Run = Callable[[Sequence[str]], "tuple[int, str]"]


def parse_show(text: str) -> dict[str, dict[str, Any]]:
    """The output of ``systemctl show --timestamp=unix``, blocks of ``Key=value`` between empty lines, by unit."""
    services: dict[str, dict[str, Any]] = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if not values.get("Id"):
            continue
        restarts = values.get("NRestarts", "")
        services[values["Id"]] = {
            "active": values.get("ActiveState", "unknown"),
            "sub": values.get("SubState", "unknown"),
            "result": values.get("Result", "unknown"),
            "type": values.get("Type", "unknown"),
            "enabled": values.get("UnitFileState", "unknown"),
            "restarts": int(restarts) if restarts.isdigit() else 0,
            "since": parse_unix_timestamp(values.get("ActiveEnterTimestamp", "")),
        }
    return services


def parse_unix_timestamp(text: str) -> str | None:
    """``@1732156800`` → ``2024-11-21T02:40:00Z``; None for a unit that was never active."""
    if not text.startswith("@") or not text[1:].isdigit():
        return None
    return datetime.fromtimestamp(int(text[1:]), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_meminfo(text: str) -> dict[str, int | None]:
    """``/proc/meminfo`` → total and available memory in bytes."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            values[words[0]] = int(words[1]) * 1024  # The file says kB and means KiB: proc_meminfo(5).
    return {"total_bytes": values.get("MemTotal"), "available_bytes": values.get("MemAvailable")}


def parse_os_release(text: str) -> str | None:
    """``/etc/os-release`` → its PRETTY_NAME."""
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip().strip("\"'") or None
    return None


def parse_temperature(text: str) -> float | None:
    """A thermal zone's ``temp``, millidegrees Celsius → degrees."""
    try:
        return int(text) / 1000
    except ValueError:
        return None


class Reader:
    """Reads files of a node and remembers those that exist and may not be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unreadable: list[str] = []

    def text(self, path: str) -> str | None:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            # Permission denied, or a sysfs file whose device does not answer.
            self.unreadable.append(f"/{path}")
            return None

    def json(self, path: str) -> Any:
        text = self.text(path)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError:
            self.unreadable.append(f"/{path}")
            return None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError:
            self.unreadable.append(f"/{path}")
            return []


def unit_names(names: Sequence[str]) -> list[str]:
    """Of the file names in the units' directory, Bramble's services. Templates (``name@.service``) are no services."""
    return [n for n in names if n.startswith("bramble-") and n.endswith(".service") and not n.endswith("@.service")]


def read_services(reader: Reader, run: Run) -> dict[str, dict[str, Any]]:
    """Each of Bramble's services and its state; ``unknown`` where systemd cannot be asked."""
    units = unit_names(reader.names(UNITS))
    if not units:
        return {}
    code, output = run(["systemctl", "show", "--timestamp=unix", "--property", ",".join(PROPERTIES), "--", *units])
    known = parse_show(output) if code == 0 else {}
    blank = parse_show("Id=blank")["blank"]
    return {unit: known.get(unit, blank) for unit in units}


def read_node(run: Run, root: Path = Path("/")) -> dict[str, Any]:
    """All of it, as plain JSON values. ``unreadable`` names what exists and could not be read."""
    reader = Reader(root)
    models = []
    for name in reader.names(MODELS):
        if name.endswith(".json"):
            content = reader.json(f"{MODELS}/{name}")
            if isinstance(content, dict):
                models.append({"name": name[: -len(".json")], **content})
    load = (reader.text("proc/loadavg") or "").split()
    model = (reader.text("proc/device-tree/model") or reader.text("sys/class/dmi/id/product_name") or "").strip("\0\n ")
    build = reader.json(BUILD)
    head = reader.json(HEAD_STATE)
    return {
        "host": {
            "model": model or None,
            "arch": platform.machine(),
            "kernel": platform.release(),
            "os": parse_os_release(reader.text("etc/os-release") or ""),
            "memory": parse_meminfo(reader.text("proc/meminfo") or ""),
            "load": [float(value) for value in load[:3]],
            "temperature_c": parse_temperature(reader.text("sys/class/thermal/thermal_zone0/temp") or ""),
        },
        "services": read_services(reader, run),
        "llama_cpp": {"build": build if isinstance(build, dict) else None},
        "models": models,
        "rpc_head": head if isinstance(head, dict) else None,
        "unreadable": reader.unreadable,
    }
