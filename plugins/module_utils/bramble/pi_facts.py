"""What a Raspberry Pi says of itself: board, firmware, throttling, temperature, supply, power, cooling, card, link.

Parsers are pure and take any text: what they do not understand is None or empty, never an error. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypedDict

from .probe import Answer, Ask, Files, Question, ask, first_line

THROTTLED_BITS = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
"""Bits of `vcgencmd get_throttled` that tell of now; 16 higher, of any time since boot (Raspberry Pi documentation)."""
SINCE_BOOT_SHIFT = 16

BLIND_TO = (
    "whatever is fed from 5 V: USB, the fan, the PCIe connector and with it the AI HAT+ 2. "
    "The PMIC has no current sensor there; a meter in the supply's cable sees it"
)

PROGRAM_SECONDS = 5.0
SECTOR_BYTES = 512  # of /sys/class/block/*/size, whatever the device has
_BCM2712 = 4  # the processor in bits 12 to 15 of a new-style revision code: Raspberry Pi documentation, raspi-config
_NEW_STYLE = 1 << 23


class Throttled(TypedDict):
    raw: str | None
    now: list[str]
    since_boot: list[str]


class Rail(TypedDict):
    volts: float
    amperes: float


class Power(TypedDict):
    watts: float | None
    rails: dict[str, Rail]
    input_volts: float | None


class Bootloader(TypedDict):
    date: str | None
    version: str | None


def parse_throttled(text: str) -> Throttled:
    """`vcgencmd get_throttled`, `throttled=0x50000` → the number as hex text and the names of its bits.

    Without such a line `raw` is None: then the empty lists mean unknown, not healthy.
    """
    found = _line(r"throttled=0x([0-9a-fA-F]{1,8})", text)
    if found is None:
        return {"raw": None, "now": [], "since_boot": []}
    bits = int(found[1], 16)
    return {
        "raw": hex(bits),
        "now": [name for bit, name in THROTTLED_BITS.items() if bits >> bit & 1],
        "since_boot": [name for bit, name in THROTTLED_BITS.items() if bits >> bit + SINCE_BOOT_SHIFT & 1],
    }


def parse_temperature(text: str) -> float | None:
    """`vcgencmd measure_temp`, `temp=42.8'C` → degrees Celsius. A line that was cut off is no temperature."""
    found = _line(r"temp=(-?[0-9]{1,3}(?:\.[0-9]{1,6})?)'C", text)
    return float(found[1]) if found else None


def parse_pmic(text: str) -> Power:
    """`vcgencmd pmic_read_adc`: lines such as `VDD_CORE_A current(7)=1.42880000A`, `VDD_CORE_V volt(15)=0.90659250V`.

    `rails`: those with both, volts and amperes. `watts`: their sum of volts times amperes; None where a current has no
    voltage beside it, as in an answer that was cut off: the sum would be too low. `input_volts`: EXT5V_V.
    """
    number = r"(-?[0-9]{1,6}(?:\.[0-9]{1,12})?)"
    currents = {name: float(value) for name, value in _lines(rf"(\w+)_A current\([0-9]+\)={number}A", text)}
    volts = {name: float(value) for name, value in _lines(rf"(\w+)_V volt\([0-9]+\)={number}V", text)}
    rails: dict[str, Rail] = {
        name: {"volts": volts[name], "amperes": amperes} for name, amperes in currents.items() if name in volts
    }
    whole = bool(rails) and len(rails) == len(currents)
    watts = sum(rail["volts"] * rail["amperes"] for rail in rails.values())
    return {"watts": round(watts, 3) if whole else None, "rails": rails, "input_volts": volts.get("EXT5V")}


def parse_clock(text: str) -> int | None:
    """`vcgencmd measure_clock arm`, `frequency(0)=2400000000` → Hz."""
    found = _line(r"frequency\([0-9]+\)=([0-9]{1,12})", text)
    return int(found[1]) if found else None


def parse_setting(text: str, name: str) -> bool | None:
    """`vcgencmd get_config NAME`, `NAME=1` → whether it is set; None if the firmware does not know it."""
    found = _line(rf"{re.escape(name)}=([01])", text)
    return found[1] == "1" if found else None


def parse_bootloader(text: str) -> Bootloader:
    """`vcgencmd bootloader_version`: a first line `2025/05/08 15:13:17`, and lines `version <hash> (release)`,
    `timestamp 1746713597` → the day of the build, YYYY-MM-DD, and the hash.
    """
    day = _line(r"([0-9]{4})/([0-9]{2})/([0-9]{2}) [0-9:]{8}", text)
    stamp = _line(r"timestamp ([0-9]{1,10})", text)
    version = _line(r"version ([0-9a-f]{7,64})\b.*", text)
    built = _day(day) or (unix_day(int(stamp[1])) if stamp else None)
    return {"date": built, "version": version[1] if version else None}


def _day(found: re.Match[str] | None) -> str | None:
    try:
        return date(*(int(part) for part in found.groups())).isoformat() if found else None
    except ValueError:  # such as the 31st of February
        return None


def unix_day(seconds: int) -> str | None:
    """Seconds since 1970 → YYYY-MM-DD in UTC. 0 is what a bootloader from before there was a time stamp says: None."""
    return datetime.fromtimestamp(seconds, tz=UTC).date().isoformat() if 0 < seconds < 1 << 32 else None


def parse_meminfo(text: str) -> int | None:
    """`/proc/meminfo` → the memory that Linux has, in bytes: what is soldered on, less what the firmware keeps."""
    found = _line(r"MemTotal:\s+([0-9]{1,15}) kB", text)
    return int(found[1]) * 1024 if found else None  # The file says kB and means KiB: proc_meminfo(5).


def parse_cgroups(text: str) -> bool | None:
    """`/proc/cgroups` → whether the memory controller is on. Kernels without cgroup v1 leave it out: None."""
    found = _line(r"memory\s+[0-9]+\s+[0-9]+\s+([01])", text)
    return found[1] == "1" if found else None


def parse_cmdline_cgroup(text: str | None) -> bool | None:
    """`cmdline.txt` → whether it asks for the memory controller, which the firmware of a Pi otherwise turns off."""
    return None if text is None else "cgroup_enable=memory" in text.split()


def parse_default_route(text: str) -> str | None:
    """`/proc/net/route` → the interface of the IPv4 default route; with several, of the one with the lowest metric."""
    best: tuple[int, str] | None = None
    for line in text.splitlines():
        # Iface Destination Gateway Flags RefCnt Use Metric Mask ...
        words = line.split()
        if len(words) < 8 or words[1] != "00000000" or words[7] != "00000000":
            continue
        flags, metric = re.fullmatch("[0-9A-Fa-f]{4}", words[3]), re.fullmatch("[0-9]{1,10}", words[6])
        up = flags is not None and int(flags[0], 16) & 1
        if up and metric and re.fullmatch(r"[^/\0]{1,15}", words[0]) and words[0] not in (".", ".."):
            best = min(best or (int(metric[0]), words[0]), (int(metric[0]), words[0]))
    return best[1] if best else None


def parse_root_disk(mountinfo: str) -> str | None:
    """`/proc/self/mountinfo` → the disk below `/` by its kernel name, such as mmcblk0; None for anything else."""
    disk = None
    for line in mountinfo.splitlines():
        mount, separator, source = line.partition(" - ")
        words, origin = mount.split(" "), source.split(" ")
        if separator and len(words) > 4 and words[4] == "/" and len(origin) > 1:
            found = re.fullmatch(r"/dev/(?:((?:mmcblk|nvme[0-9]+n)[0-9]+)(?:p[0-9]+)?|([sv]d[a-z]+)[0-9]*)", origin[1])
            disk = (found[1] or found[2]) if found else None  # The last mount on a place is the one that is seen.
    return disk


def _lines(pattern: str, text: str) -> list[tuple[str, ...]]:
    """The groups of each line that is as `pattern`, but for white space around it. Digits are ASCII digits."""
    matches = (re.fullmatch(pattern, line.strip(), re.ASCII) for line in text.splitlines())
    return [match.groups() for match in matches if match]


def _line(pattern: str, text: str) -> re.Match[str] | None:
    """The first line that is as `pattern`, but for white space around it."""
    matches = (re.fullmatch(pattern, line.strip(), re.ASCII) for line in text.splitlines())
    return next((match for match in matches if match), None)


@dataclass(frozen=True)
class Places:
    """Where a node's files are."""

    device_tree: Path = Path("/proc/device-tree")
    sysfs: Path = Path("/sys")
    boot: Path = Path("/boot/firmware")
    proc: Path = Path("/proc")
    root: Path = Path("/")


def questions(temperature_known: bool) -> dict[str, Question]:
    """The programs that are asked. The firmware need not be asked for a temperature that sysfs has."""
    commands = {
        "throttled": ("vcgencmd", "get_throttled"),
        "clock": ("vcgencmd", "measure_clock", "arm"),
        "pmic": ("vcgencmd", "pmic_read_adc"),
        "bootloader": ("vcgencmd", "bootloader_version"),
        "usb_current": ("vcgencmd", "get_config", "usb_max_current_enable"),
        "update": ("rpi-eeprom-update",),
    }
    if not temperature_known:
        commands["temperature"] = ("vcgencmd", "measure_temp")
    return {name: Question(command, PROGRAM_SECONDS) for name, command in commands.items()}


def vcgencmd_fault(answer: Answer) -> str | None:
    """Why the answer holds no value; None if it may hold one. The firmware's refusals come with exit code 0."""
    refused = _line(r'error=-?[0-9]+ error_msg="(.*?)"?', answer.output)
    if answer.fault:
        return answer.fault
    if refused:
        return f"the firmware refused: {refused[1]}"
    if answer.code:
        return f"exit code {answer.code}: {first_line(answer.errors) or first_line(answer.output) or 'no message'}"
    return None


def read_pi(places: Places | None = None, ask: Ask = ask) -> dict[str, Any]:
    """All of it, as plain JSON values; None where a thing is absent or not known. `unreadable` names what failed."""
    places = places or Places()
    unreadable: list[str] = []
    tree, sysfs, proc = (Files(root, unreadable) for root in (places.device_tree, places.sysfs, places.proc))
    zone = sysfs.number("class/thermal/thermal_zone0/temp")
    asked = questions(temperature_known=zone is not None)
    answers = ask(asked)

    def value(name: str, parse: Callable[[str], Any], understood: Callable[[Any], bool]) -> Any:
        """The parsed output. A value that is no value is noted, unless the program is not there."""
        answer = answers[name]
        fault = None if answer.absent else vcgencmd_fault(answer)
        parsed = parse("" if fault else answer.output)
        if not answer.absent and not fault and not understood(parsed):
            said = first_line(answer.output)
            fault = f"not understood: {said!r}" if said else "it printed nothing"
        if fault:
            unreadable.append(f"{asked[name]}: {fault}")
        return parsed

    def known(parsed: object) -> bool:
        return parsed is not None

    throttled = value("throttled", parse_throttled, lambda parsed: known(parsed["raw"]))
    clock = value("clock", parse_clock, known)
    power = value("pmic", parse_pmic, lambda parsed: known(parsed["watts"]))
    bootloader = value("bootloader", parse_bootloader, lambda parsed: known(parsed["date"]))
    usb_current = value("usb_current", lambda text: parse_setting(text, "usb_max_current_enable"), lambda _: True)
    temperature = zone / 1000 if zone is not None else value("temperature", parse_temperature, known)
    current_khz = sysfs.number("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    revision = _cell(tree.content("system/linux,revision"))
    model = tree.text("model")
    stamp = _cell(tree.content("chosen/bootloader/build-timestamp"))
    return {
        "model": model,
        "is_pi5": is_pi5(model, revision),
        "revision": f"{revision:x}" if revision else None,
        "memory_bytes": parse_meminfo(proc.text("meminfo") or ""),
        "kernel": os.uname().release,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "memory_cgroup": _memory_cgroup(sysfs, proc),
        "memory_cgroup_next_boot": parse_cmdline_cgroup(Files(places.boot, unreadable).text("cmdline.txt")),
        "bootloader": {
            "date": bootloader["date"] or unix_day(stamp or 0),
            "version": bootloader["version"],
            "update_available": _update_available(answers["update"], str(asked["update"]), unreadable),
        },
        "throttled": throttled,
        "temperature_c": temperature,
        "clock_arm_hz": clock if clock is not None or current_khz is None else current_khz * 1000,
        "governor": sysfs.text("devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "supply": {
            "max_current_ma": _cell(tree.content("chosen/power/max_current")) or None,
            "usb_power_delivery": _any_bit(tree.content("chosen/power/usbpd_power_data_objects")),
            "usb_max_current_enable": usb_current,
        },
        "power": {**power, "blind_to": BLIND_TO},
        "cooling": _cooling(sysfs),
        "storage": _storage(places, sysfs, proc, unreadable),
        "link": _link(sysfs, parse_default_route(proc.text("net/route") or "") or _first_up(sysfs)),
        "unreadable": unreadable,
    }


def is_pi5(model: str | None, revision: int | None) -> bool:
    """Whether the board has the Pi 5's processor, BCM2712: also Compute Module 5 and Pi 500."""
    if revision is not None and revision & _NEW_STYLE:
        return revision >> 12 & 15 == _BCM2712
    return bool(model) and str(model).startswith("Raspberry Pi 5 ")


def _cell(content: bytes | None) -> int | None:
    """A cell of the device tree: 4 bytes, big endian."""
    return int.from_bytes(content, "big") if content is not None and len(content) == 4 else None


def _any_bit(content: bytes | None) -> bool | None:
    return any(content) if content else None


def _memory_cgroup(sysfs: Files, proc: Files) -> bool | None:
    controllers = sysfs.content("fs/cgroup/cgroup.controllers")
    return b"memory" in controllers.split() if controllers is not None else parse_cgroups(proc.text("cgroups") or "")


def _update_available(answer: Answer, command: str, unreadable: list[str]) -> bool | None:
    """rpi-eeprom-update exits with 0 if the bootloader is current, with 1 if there is a newer one (its source)."""
    if answer.code in (0, 1):
        return answer.code == 1
    if not answer.absent:
        said = first_line(answer.errors) or first_line(answer.output) or "no message"
        unreadable.append(f"{command}: {answer.fault or f'exit code {answer.code}: {said}'}")
    return None


def _cooling(sysfs: Files) -> dict[str, Any]:
    """The fan on the board's connector. Linux shows one only if the firmware found it; one on GPIO pins is not seen."""
    names = sysfs.names("class/hwmon") or []
    fans = [name for name in names if sysfs.text(f"class/hwmon/{name}/name") == "pwmfan"]
    rpm = sysfs.number(f"class/hwmon/{fans[0]}/fan1_input") if fans else None
    return {"fan": bool(fans) if sysfs.has("class") else None, "rpm": rpm}


def _storage(places: Places, sysfs: Files, proc: Files, unreadable: list[str]) -> dict[str, Any]:
    """The disk of `/` and its size; without one, the board's card or SSD; without these, the file system's size."""
    size, free = None, None
    try:
        system = os.statvfs(places.root)
        size, free = system.f_blocks * system.f_frsize, system.f_bavail * system.f_frsize
    except OSError as error:
        unreadable.append(f"{places.root}: {error.strerror}")
    disk = parse_root_disk(proc.text("self/mountinfo") or "")
    for candidate in (disk, "mmcblk0", "nvme0n1"):
        sectors = sysfs.number(f"class/block/{candidate}/size") if candidate else None
        if sectors:
            return {"device": candidate, "bytes": sectors * SECTOR_BYTES, "free_bytes": free}
    return {"device": disk, "bytes": size, "free_bytes": free}


def _first_up(sysfs: Files) -> str | None:
    """The first interface that is up. An isolated network has no default route."""
    names = [name for name in sysfs.names("class/net") or [] if name != "lo"]
    return next((name for name in names if sysfs.text(f"class/net/{name}/operstate") == "up"), None)


def _link(sysfs: Files, interface: str | None) -> dict[str, Any]:
    link: dict[str, Any] = {"interface": interface, "wired": None, "speed_mbps": None, "duplex": None}
    directory = f"class/net/{interface}"
    if interface is None or not sysfs.has(directory):
        return link
    link["wired"] = not any(sysfs.has(f"{directory}/{name}") for name in ("wireless", "phy80211"))
    speed = sysfs.number(f"{directory}/speed")
    link["speed_mbps"] = speed if speed is not None and speed > 0 else None  # -1: not known
    duplex = sysfs.text(f"{directory}/duplex")
    link["duplex"] = duplex if duplex in ("full", "half") else None
    return link
