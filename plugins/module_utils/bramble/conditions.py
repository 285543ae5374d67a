"""The conditions of a measurement: how warm the node is, whether it is throttled, what it draws, what else runs on it.

A figure without its conditions is no record. What cannot be read is None: nothing is assumed. Standard library only.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from .node_status import Reader, read_services
from .pi_facts import THROTTLED_BITS, parse_pmic, parse_temperature, parse_throttled

# Runs a command, returns (exit code, standard output); never raises. For a command that does not exist not 0.
Run = Callable[[Sequence[str]], "tuple[int, str]"]

COMMAND_LIMIT = 10.0  # seconds; vcgencmd answers in milliseconds, or hangs with the firmware
FIRST_SAMPLE = 0.2  # seconds after the beginning, so that a short measurement has one too
BUSY_LOAD = 0.5  # a load average from which on the node was not idle before the measurement
BUSY_SHARE = 0.05  # share of all cores that others may use beside a benchmark before it is noted


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """A :data:`Run` that runs the command. Module.run_command is not made for two threads at once."""
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_LIMIT,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 127, ""
    return done.returncode, done.stdout


def parse_bootloader(text: str) -> str | None:
    """The first line of ``vcgencmd bootloader_version``, ``2025/05/08 15:13:17`` → ``2025-05-08``."""
    found = re.match(r"\s*(\d{4})[/-](\d{2})[/-](\d{2})\b", text, re.ASCII)
    return "-".join(found.groups()) if found else None


def parse_load(text: str) -> float | None:
    """``/proc/loadavg`` → the average over the last minute."""
    found = re.match(r"(\d{1,6}\.\d{1,4}) ", text, re.ASCII)
    return float(found[1]) if found else None


def parse_busy(text: str) -> tuple[float, float] | None:
    """``/proc/stat`` → (seconds that all cores together were busy since boot, number of cores).

    Its line ``cpu``: user nice system idle iowait irq softirq steal guest …, in ticks: proc_stat(5).
    Guest is part of user; steal is not this machine's work.
    """
    fields: list[str] = []
    cores = 0
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["cpu"]:
            fields = words[1:8]
        elif words and re.fullmatch(r"cpu\d+", words[0], re.ASCII):
            cores += 1
    if len(fields) < 7 or not cores or not all(re.fullmatch(r"\d{1,18}", value, re.ASCII) for value in fields):
        return None
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK"), float(cores)


@dataclass
class Node:
    """What this machine can say of itself at any moment. ``root`` holds proc and etc."""

    run: Run = run_command
    sysfs: Path = Path("/sys")
    device_tree: Path = Path("/proc/device-tree")
    root: Path = Path("/")
    _silent: set[str] = field(default_factory=set)

    def _file(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip("\0\n\t ")
        except OSError:
            return ""

    def _firmware(self, *words: str) -> str:
        """What vcgencmd answers. It is not asked again for what it could not tell: each question starts a process."""
        if words[0] in self._silent:
            return ""
        code, output = self.run(["vcgencmd", *words])
        if code != 0:
            self._silent.add(words[0])
            return ""
        return output

    def temperature(self) -> float | None:
        """Of the processor, degrees Celsius."""
        text = self._file(self.sysfs / "class/thermal/thermal_zone0/temp")  # millidegrees
        if re.fullmatch(r"-?\d{1,6}", text, re.ASCII):
            return int(text) / 1000
        return parse_temperature(self._firmware("measure_temp"))

    def throttled(self) -> tuple[str | None, frozenset[str], frozenset[str]]:
        """The firmware's word as hex text or None, what holds now, what has been since boot."""
        parsed = parse_throttled(self._firmware("get_throttled"))
        return parsed["raw"], frozenset(parsed["now"]), frozenset(parsed["since_boot"])

    def watts(self) -> float | None:
        """What the rails that the power controller sees draw: not USB, fan and HAT."""
        return parse_pmic(self._firmware("pmic_read_adc"))["watts"]

    def governor(self) -> str | None:
        """Of all cores, joined by a comma where they differ."""
        files = sorted(self.sysfs.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"))
        return ",".join(sorted({text for file in files if (text := self._file(file))})) or None

    def board(self) -> str | None:
        return self._file(self.device_tree / "model") or None

    def bootloader(self) -> str | None:
        """The date of the bootloader, ``YYYY-MM-DD``."""
        return parse_bootloader(self._firmware("bootloader_version"))

    def load(self) -> float | None:
        return parse_load(self._file(self.root / "proc/loadavg"))

    def busy(self) -> tuple[float, float] | None:
        return parse_busy(self._file(self.root / "proc/stat"))

    def services(self) -> list[str]:
        """Bramble's services that run here."""
        services = read_services(Reader(self.root), self.run)
        return [name.removesuffix(".service") for name, state in services.items() if state["sub"] == "running"]


class Sampler:
    """Looks about once a second, from another thread, at what a node draws and how warm it is.

    ``with Sampler(node) as sampler: measure()``; then ``power_w`` is the mean of the samples, ``max_temp_c`` the
    greatest, ``throttled`` the names of what held at any of them. None and empty where nothing can be read.
    """

    def __init__(self, node: Node, interval: float = 1.0) -> None:
        self.node = node
        self.interval = interval
        self.samples = 0
        self.max_temp_c: float | None = None
        self.throttled: set[str] = set()
        self._watts: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sampler", daemon=True)

    @property
    def power_w(self) -> float | None:
        return round(sum(self._watts) / len(self._watts), 3) if self._watts else None

    def sample(self) -> None:
        watts, temperature = self.node.watts(), self.node.temperature()
        if watts is not None:
            self._watts.append(watts)
        if temperature is not None:
            self.max_temp_c = temperature if self.max_temp_c is None else max(self.max_temp_c, temperature)
        self.throttled |= self.node.throttled()[1]
        self.samples += 1

    def _loop(self) -> None:
        pause = min(FIRST_SAMPLE, self.interval)
        while not self._stop.wait(pause):
            self.sample()
            pause = self.interval

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


class Observation:
    """One measurement and its surroundings: ``with Observation(node) as seen: measure()``, then ``seen.conditions()``.

    ``started_at`` is UTC to the second, ``duration_s`` what the block took.
    """

    def __init__(self, node: Node, load: float | None = None, interval: float = 1.0) -> None:
        """`load`: the load average before the first of several measurements, as each is the load before the next."""
        self.node = node
        self.sampler = Sampler(node, interval)
        self.load = load
        self.started_at = ""
        self.duration_s = 0.0

    def __enter__(self) -> Observation:
        self._temperature = self.node.temperature()
        self._throttled = self.node.throttled()
        self._services = self.node.services()
        self._busy = self.node.busy()
        self._others: float | None = None
        self.started_at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._begin = time.monotonic()
        self.sampler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.duration_s = round(time.monotonic() - self._begin, 3)
        self._busy_after = self.node.busy()
        self.sampler.__exit__(kind, error, trace)
        self._temperature_after = self.node.temperature()
        self._throttled_after = self.node.throttled()

    def others(self, own_seconds: float) -> float | None:
        """How many cores others kept busy during the measurement, whose own processes used `own_seconds` of them."""
        if self._busy is None or self._busy_after is None or self.duration_s <= 0:
            return None
        return max(0.0, (self._busy_after[0] - self._busy[0] - own_seconds) / self.duration_s)

    def during(self) -> list[str]:
        """What of the firmware's throttling showed during the measurement, in the order of its bits.

        A bit that was set since boot before and after tells nothing of the time between; the samples do.
        """
        _, now_before, since_before = self._throttled
        _, now_after, since_after = self._throttled_after
        seen = now_before | now_after | self.sampler.throttled | (since_after - since_before)
        return [name for name in THROTTLED_BITS.values() if name in seen]

    def conditions(self, notes: Iterable[str] = (), own_seconds: float | None = None) -> dict[str, Any]:
        """The record's ``conditions``. `own_seconds`: processor time of the measured program, if known."""
        power = self.sampler.power_w
        temperatures = (self._temperature, self.sampler.max_temp_c, self._temperature_after)
        greatest = max((value for value in temperatures if value is not None), default=None)
        return {
            "temp_c": {"before": self._temperature, "after": self._temperature_after, "max": greatest},
            "throttled": {"before": self._throttled[0], "after": self._throttled_after[0]},
            "governor": self.node.governor(),
            "kernel": platform.release(),
            "bootloader": self.node.bootloader(),
            "board": self.node.board(),
            "power_w": power,
            "power_source": None if power is None else "pmic",
            "notes": [*self._notes(own_seconds), *notes],
        }

    def _notes(self, own_seconds: float | None) -> list[str]:
        notes = []
        if during := self.during():
            notes.append(f"throttled during the run: {', '.join(during)}")
        if self.load is not None and self.load >= BUSY_LOAD:
            notes.append(f"the load average was {self.load:.2f} before the run")
        others = None if own_seconds is None else self.others(own_seconds)
        if others is not None and self._busy is not None and others > BUSY_SHARE * self._busy[1]:
            notes.append(f"others used {others:.1f} of {self._busy[1]:.0f} cores during the run")
        if self._services:
            notes.append(f"services that ran on this node: {', '.join(self._services)}")
        return notes
