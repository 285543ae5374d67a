"""What stands in the way before anything is changed: the problems of all nodes at once, each with its fix.

A pure function of what `pi_facts`, `hailo_facts` and Ansible's own facts say, and of what the nodes are to do. An error
is what would make the run fail or its figures worthless; what is not known is at most a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from .hailo_facts import find_problems

Severity = Literal["error", "warning", "note"]
_RANK: Mapping[str, int] = {"error": 0, "warning": 1, "note": 2}

DISTRIBUTIONS = ("Debian", "Raspbian", "Raspberry Pi OS")
CODENAMES = {"bookworm": 12, "trixie": 13}
WIDE = ("aarch64", "arm64", "x86_64", "amd64")

REQUIREMENTS: dict[str, Any] = {
    # What Raspberry Pi OS has, of either release: issue 3.
    "minimum_kernel": "6.12",
    # It brings the gain from the SDRAM's banks: issue 3.
    "minimum_bootloader_date": "2024-12-07",
    # What is sold as 16 GB holds 15.5e9 bytes and more.
    "minimum_card_bytes": 15_000_000_000,
    # A build of llama.cpp, the HAT's packages, a model of 2 GB.
    "minimum_free_bytes": 5_000_000_000,
    # Raspberry Pi's 27 W supply: 5 V, 5 A.
    "supply_ma": 5000,
    "releases": [12, 13],
    # hailo-h10-all is in the archive for Debian 13 only.
    "hailo_releases": [13],
    "minimum_link_mbps": 1000,
    # From here on the firmware slows the processor down: Raspberry Pi documentation.
    "temperature_limit_c": 80,
    # Checks, by the names in CHECKS, whose errors are warnings.
    "warn_only": [],
}

_HAILO_ERRORS = frozenset({"absent", "not_hailo_10h", "wrong_packages", "device_lost"})
"""What the role for the HAT cannot mend by installing packages; the rest is a warning."""
_HAILO_TO_COME = frozenset({"not_installed", "no_library"})
"""What the role for the HAT is there to change."""

_CAUSES = {"under_voltage": "supply", "soft_temperature_limit": "cooling"}
_THROTTLING_FIXES = {
    "supply": "use the 27 W supply with its own cable, and take power-hungry USB devices off",
    "cooling": "fit the Active Cooler, let air in, or lower the load",
    None: "look at the supply and at the cooling",
}


@dataclass(frozen=True)
class Problem:
    """One line. `check` is one of CHECKS; `fix` may be empty in a note."""

    host: str
    severity: Severity
    check: str
    what: str
    fix: str = ""


Found = Iterator[tuple[Severity, str, str]]
"""Severity, what is wrong, and the fix."""


def render(problem: Problem) -> str:
    """The problem as one line: host, what is wrong, what to do."""
    return " ".join(": ".join(filter(None, (problem.host, problem.what, problem.fix))).split())


def error_lines(problems: Iterable[Problem]) -> list[str]:
    return [render(problem) for problem in problems if problem.severity == "error"]


def warning_lines(problems: Iterable[Problem]) -> list[str]:
    return [render(problem) for problem in problems if problem.severity == "warning"]


def note_lines(problems: Iterable[Problem]) -> list[str]:
    return [render(problem) for problem in problems if problem.severity == "note"]


def preflight(nodes: Mapping[str, Mapping[str, Any]], requirements: Mapping[str, Any]) -> dict[str, list[str]]:
    """`preflight_problems` as lines: `errors`, `warnings`, `notes`. For a filter."""
    problems = preflight_problems(nodes, requirements)
    return {"errors": error_lines(problems), "warnings": warning_lines(problems), "notes": note_lines(problems)}


def preflight_node(facts: Mapping[str, Any], *, distributed: bool, hailo: bool) -> dict[str, Any]:
    """A node as `preflight_problems` wants it, from its `ansible_facts` and what it is to do."""
    return {
        "pi": facts.get("pi"),
        "hailo": facts.get("hailo"),
        "os": {
            "distribution": facts.get("distribution"),
            "version": facts.get("distribution_version"),
            "codename": facts.get("distribution_release"),
            "architecture": facts.get("architecture"),
            "userspace_bits": facts.get("userspace_bits"),
            "kernel": facts.get("kernel"),
        },
        "roles": {"distributed": distributed, "hailo": hailo},
    }


def preflight_problems(nodes: Mapping[str, Mapping[str, Any]], requirements: Mapping[str, Any]) -> list[Problem]:
    """All problems of all nodes, sorted by host, errors first; the same input gives the same list.

    A node: `pi` and `hailo`, the modules' facts or None; `os` with `distribution`, `version` or `codename`,
    `architecture`, `kernel`, and optionally `userspace_bits`; `roles` with `distributed` (it shares a model with others
    over the network) and `hailo`. `requirements` override REQUIREMENTS. ValueError: a requirement is wrong.
    """
    wanted = checked_requirements(requirements)
    problems = []
    for host, node in nodes.items():
        view = _Node(node)
        for name, check in _CHECKS.items():
            for severity, what, fix in check(view, wanted):
                relaxed = severity == "error" and name in wanted["warn_only"]
                problems.append(Problem(host, "warning" if relaxed else severity, name, what, fix))
        # Last: the checks have noted what they could not know.
        problems += [Problem(host, severity, "unknown", what, fix) for severity, what, fix in _unknown(view)]
    order = {name: place for place, name in enumerate(CHECKS)}
    return sorted(problems, key=lambda p: (_natural(p.host), p.host, _RANK[p.severity], order[p.check], p.what, p.fix))


def checked_requirements(requirements: Mapping[str, Any]) -> dict[str, Any]:
    """REQUIREMENTS with those that are given. ValueError: a name is unknown, or a value is not of its kind."""
    unknown = sorted(str(name) for name in requirements.keys() - REQUIREMENTS.keys())
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no such requirement; there are {', '.join(sorted(REQUIREMENTS))}")
    wanted = {**REQUIREMENTS, **requirements}
    wanted["minimum_kernel"] = str(wanted["minimum_kernel"])
    if _numbers(wanted["minimum_kernel"]) is None:
        raise ValueError(f"minimum_kernel is {wanted['minimum_kernel']!r}: write two numbers in quotes, as in '6.12'")
    wanted["minimum_bootloader_date"] = str(wanted["minimum_bootloader_date"])
    if _date(wanted["minimum_bootloader_date"]) is None:
        raise ValueError(f"minimum_bootloader_date is {wanted['minimum_bootloader_date']!r}: write it as 2024-12-07")
    for name in ("minimum_card_bytes", "minimum_free_bytes", "supply_ma", "minimum_link_mbps", "temperature_limit_c"):
        if _number(wanted[name]) is None:
            raise ValueError(f"{name} is {wanted[name]!r}: write a number")
    for name in ("releases", "hailo_releases"):
        releases = wanted[name] if isinstance(wanted[name], (list, tuple)) else []
        wanted[name] = [int(str(release)) for release in releases if re.fullmatch("[0-9]{1,3}", str(release))]
        if not releases or len(wanted[name]) != len(releases):
            raise ValueError(f"{name} is not a list of Debian's release numbers: write it as [12, 13]")
    relaxed = wanted["warn_only"]
    if not isinstance(relaxed, (list, tuple)) or any(name not in CHECKS for name in relaxed):
        raise ValueError(f"warn_only is {relaxed!r}: write a list of any of {', '.join(CHECKS)}")
    return wanted


class _Node:
    """A node's facts, by path. What is absent or of another type than asked for is None; `unknown` collects it."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        self._node = node
        self.unknown: list[str] = []

    def any(self, *path: str) -> Any:
        value: Any = self._node
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def text(self, *path: str) -> str | None:
        value = self.any(*path)
        return value if isinstance(value, str) and value.strip() else None

    def number(self, *path: str) -> float | None:
        return _number(self.any(*path))

    def truth(self, *path: str) -> bool | None:
        value = self.any(*path)
        return value if isinstance(value, bool) else None

    def names(self, *path: str) -> list[str]:
        value = self.any(*path)
        return [item for item in value if isinstance(item, str)] if isinstance(value, (list, tuple)) else []

    @property
    def is_pi5(self) -> bool:
        return self.truth("pi", "is_pi5") is True

    def miss(self, what: str) -> None:
        """Notes what a check could not know."""
        self.unknown.append(what)


def _number(value: object) -> float | None:
    """A number that can be compared and shown."""
    ordinary = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18
    return value if ordinary else None  # type: ignore[return-value]


def _numbers(version: str) -> tuple[int, int] | None:
    """`6.12.25+rpt-rpi-2712` → (6, 12)."""
    found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", version.strip())
    return (int(found[1]), int(found[2])) if found else None


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII) else None
    except ValueError:
        return None


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts pi2 before pi10."""
    parts = re.split(r"([0-9]{1,9})", text)
    return [(0, int(part), "") if re.fullmatch("[0-9]+", part) else (1, 0, part) for part in parts if part]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _board(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    if node.any("pi") is None:
        yield "note", "pi_facts has not been read: board, firmware, supply and link are not checked", ""
    elif not node.is_pi5:
        model = node.text("pi", "model") or "what it is, it does not say"
        yield "note", f"is no Raspberry Pi 5 ({model}): firmware and supply are not checked", ""


def _release(node: _Node, wanted: Mapping[str, Any]) -> Found:
    hailo = node.truth("roles", "hailo") is True
    allowed = wanted["hailo_releases" if hailo else "releases"]
    distribution, number = node.text("os", "distribution"), _release_number(node)
    architecture, bits = node.text("os", "architecture"), str(node.any("os", "userspace_bits"))
    needed = f"Debian {' or '.join(map(str, allowed))}"
    newest = max(allowed)
    fix = f"write the card anew with Raspberry Pi OS Lite (64-bit), the one based on Debian {newest}"
    if distribution is None:
        node.miss("operating system")
    elif distribution not in DISTRIBUTIONS:
        yield "error", f"runs {distribution}, and {needed} is needed", fix
    elif number is None:
        node.miss("release of the operating system")
    elif number not in allowed:
        reason = f"the AI HAT+ 2 needs {needed}" if hailo else f"{needed} is needed"
        yield "error", f"runs Debian {number}, and {reason}", fix
    if architecture is None:
        node.miss("architecture")
    elif architecture not in WIDE or bits == "32":
        shown = f"{architecture} with 32-bit programs" if architecture in WIDE else architecture
        yield "error", f"runs a 32-bit system ({shown}), and a 64-bit one is needed", fix


def _release_number(node: _Node) -> int | None:
    found = re.match(r"[0-9]{1,3}(?![0-9])", str(node.any("os", "version")))
    return int(found[0]) if found else CODENAMES.get(node.text("os", "codename") or "")


def _kernel(node: _Node, wanted: Mapping[str, Any]) -> Found:
    kernel = node.text("os", "kernel") or node.text("pi", "kernel")
    version = _numbers(kernel) if kernel else None
    if version is None:
        node.miss("kernel")
    elif version < (_numbers(wanted["minimum_kernel"]) or version):
        what = f"runs kernel {kernel}, and {wanted['minimum_kernel']} or newer is needed"
        yield "error", what, "sudo apt-get update && sudo apt-get full-upgrade, then sudo reboot"


def _bootloader(node: _Node, wanted: Mapping[str, Any]) -> Found:
    if not node.is_pi5:
        return
    text = node.text("pi", "bootloader", "date")
    built, least = _date(text) if text else None, _date(wanted["minimum_bootloader_date"])
    if built is None:
        node.miss("bootloader's date")
    elif least is not None and built < least:
        what = f"the bootloader is of {built}, and that of {least} or a newer one is needed for full memory speed"
        first = "" if node.truth("pi", "bootloader", "update_available") else "sudo apt-get full-upgrade, then "
        yield "error", what, f"{first}sudo rpi-eeprom-update -a, then sudo reboot"


def _card(node: _Node, wanted: Mapping[str, Any]) -> Found:
    if node.any("pi") is None:
        return
    size, free = node.number("pi", "storage", "bytes"), node.number("pi", "storage", "free_bytes")
    device = node.text("pi", "storage", "device") or "the disk"
    if size is not None and size < wanted["minimum_card_bytes"]:
        what = f"{device} has {_gigabytes(size)}, and {_gigabytes(wanted['minimum_card_bytes'])} are needed"
        yield "error", what, "use a card or an SSD of 32 GB or more"
    elif free is not None and free < wanted["minimum_free_bytes"]:
        what = f"{device} has {_gigabytes(free)} free, and {_gigabytes(wanted['minimum_free_bytes'])} are needed"
        yield "error", what, "remove what is not needed (sudo apt-get clean, old builds in /opt), or use a larger card"
    if size is None:
        node.miss("size of the card")
    if free is None:
        node.miss("free space")


def _supply(node: _Node, wanted: Mapping[str, Any]) -> Found:
    if not node.is_pi5:
        return
    offered = node.number("pi", "supply", "max_current_ma")
    if offered is None:
        node.miss("supply")
    elif offered < wanted["supply_ma"]:
        what = f"the supply gives {offered:g} mA as far as the firmware knows, and {wanted['supply_ma']:g} are needed"
        fix = "use Raspberry Pi's 27 W supply"
        if node.truth("pi", "supply", "usb_power_delivery") is not True:
            # Power over Ethernet and the pins do not negotiate: the owner has to say what they give.
            fix += "; if yours gives that and cannot say so: sudo rpi-eeprom-config -e, PSU_MAX_CURRENT=5000"
        yield "error", what, fix


def _throttled(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    if not node.is_pi5:
        return
    now = node.names("pi", "throttled", "now")
    if node.text("pi", "throttled", "raw") is None:
        node.miss("throttling")
    elif now:
        what = f"the firmware holds the processor back now ({_named(now)}{_measured(node, now)})"
        yield "error", what, _throttling_fix(now)


def _throttled_before(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    now = node.names("pi", "throttled", "now")
    before = [name for name in node.names("pi", "throttled", "since_boot") if name not in now]
    if now:
        # What follows from a cause that acts now has been told; another cause has not.
        before = [name for name in before if name in _CAUSES]
    if node.is_pi5 and node.text("pi", "throttled", "raw") is not None and before:
        yield "warning", f"the processor was held back since boot ({_named(before)})", _throttling_fix(before)


def _named(names: Iterable[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)


def _measured(node: _Node, names: list[str]) -> str:
    """The figures beside the causes."""
    volts, temperature = node.number("pi", "power", "input_volts"), node.number("pi", "temperature_c")
    shown = f"; {volts:.2f} V come in" if volts is not None and "under_voltage" in names else ""
    heat = temperature is not None and "under_voltage" not in names
    return shown + (f"; {temperature:.0f} °C" if heat else "")


def _throttling_fix(names: list[str]) -> str:
    causes = {_CAUSES[name] for name in names if name in _CAUSES}
    return "; ".join(_THROTTLING_FIXES[cause] for cause in sorted(causes)) or _THROTTLING_FIXES[None]


def _temperature(node: _Node, wanted: Mapping[str, Any]) -> Found:
    if not node.is_pi5:
        return
    temperature, limit = node.number("pi", "temperature_c"), wanted["temperature_limit_c"]
    told = bool(node.names("pi", "throttled", "now")) and node.text("pi", "throttled", "raw") is not None
    if temperature is None:
        node.miss("temperature")
    elif temperature >= limit and not told:
        yield "error", f"the processor has {temperature:.0f} °C, the limit is {limit:g}", _THROTTLING_FIXES["cooling"]


def _cooling(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    if not node.is_pi5:
        return
    fan = node.truth("pi", "cooling", "fan")
    if fan is None:
        node.miss("cooling")
    elif not fan:
        fix = "fit the Active Cooler; nothing is to be done if the board is cooled otherwise"
        yield "warning", "the firmware finds no fan on the board's connector", fix


def _memory_cgroup(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    if node.any("pi") is None:
        return
    active = node.truth("pi", "memory_cgroup")
    if active is None:
        node.miss("memory controller")
    elif not active:
        fix = "add cgroup_enable=memory to the line of /boot/firmware/cmdline.txt, then sudo reboot"
        if node.truth("pi", "memory_cgroup_next_boot"):
            fix = "sudo reboot: cmdline.txt asks for it already"
        yield "warning", "the kernel's memory controller is off: no limit of a service's memory works", fix


def _link(node: _Node, wanted: Mapping[str, Any]) -> Found:
    if node.any("pi") is None:
        return
    distributed = node.truth("roles", "distributed") is True
    severity: Severity = "error" if distributed else "warning"
    because = ", and it shares a model with others over it" if distributed else ""
    interface = node.text("pi", "link", "interface") or "its link"
    wired, speed = node.truth("pi", "link", "wired"), node.number("pi", "link", "speed_mbps")
    least = wanted["minimum_link_mbps"]
    if wired is None:
        node.miss("link")
    elif not wired:
        fix = "connect it by an Ethernet cable, and give the inventory the address that it has there"
        yield severity, f"is connected by Wi-Fi ({interface}){because}", fix
    elif speed is None:
        node.miss("speed of the link")
    elif speed < least:
        fix = "use a cable with all 8 wires (Cat 5e or better) and a gigabit port of the switch"
        yield severity, f"{interface} runs at {speed:g} Mbit/s, less than {least:g}{because}", fix


def _hailo(node: _Node, _wanted: Mapping[str, Any]) -> Found:
    facts = node.any("hailo")
    if node.truth("roles", "hailo") is not True:
        if node.truth("hailo", "present"):
            yield "note", "has a Hailo device, and is not to use it", ""
        return
    if not isinstance(facts, Mapping):
        yield "note", "hailo_facts has not been read: the AI HAT+ 2 is not checked", ""
        return
    for problem in find_problems(_typed_hailo(node)):
        if problem.kind not in _HAILO_TO_COME:
            yield "error" if problem.kind in _HAILO_ERRORS else "warning", problem.seen, problem.fix


def _typed_hailo(node: _Node) -> dict[str, Any]:
    """The facts that `find_problems` reads, each of its type or None."""
    packages, devices = node.any("hailo", "packages"), node.any("hailo", "devices")
    texts = ("pci_address", "pci_id", "hat", "node", "library_version", "firmware_version", "identify_error")
    return {
        **{name: node.text("hailo", name) for name in texts},
        **{name: node.number("hailo", name) for name in ("link_speed_gts", "pcie_generation_set")},
        "present": node.truth("hailo", "present") is True,
        "dkms": node.truth("hailo", "dkms") is True,
        "devices": list(devices) if isinstance(devices, (list, tuple)) else None,
        "packages": {str(name): str(version) for name, version in packages.items()}
        if isinstance(packages, Mapping)
        else {},
        "driver": {
            "module": node.text("hailo", "driver", "module"),
            "version": node.text("hailo", "driver", "version"),
            "loaded": node.truth("hailo", "driver", "loaded") is True,
        },
    }


def _unknown(node: _Node) -> Found:
    unreadable = [*node.names("pi", "unreadable"), *node.names("hailo", "unreadable")]
    parts = []
    if node.unknown:
        parts.append(f"not known: {', '.join(node.unknown)}")
    if unreadable:
        parts.append(f"could not be read: {'; '.join(unreadable)}")
    if parts:
        yield "note", "; ".join(parts), "check it by hand"


_CHECKS: Mapping[str, Callable[[_Node, Mapping[str, Any]], Found]] = {
    "board": _board,
    "release": _release,
    "kernel": _kernel,
    "bootloader": _bootloader,
    "card": _card,
    "supply": _supply,
    "throttled": _throttled,
    "throttled_before": _throttled_before,
    "temperature": _temperature,
    "cooling": _cooling,
    "memory_cgroup": _memory_cgroup,
    "link": _link,
    "hailo": _hailo,
}

CHECKS = (*_CHECKS, "unknown")
"""What is checked, in the order in which the problems of a host are told."""
