"""What a node says of its AI HAT+ 2 (Hailo-10H): device, driver, library, firmware, packages; and what is wrong.

Parsers are pure and take any text; so is `find_problems`, over the facts. Standard library only. Outputs and failures:
HailoRT 5.1.1's source and captures of Raspberry Pi OS. `scan` and `identify` exit with 0 without a device, so what they
print is what counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict

from .pi_facts import Places
from .probe import Answer, Ask, Files, Question, ask, first_line

HAILO_VENDOR = "0x1e60"
HAILO_10H = "1e60:45c4"
MODULES = ("hailo1x_pci", "hailo_pci")
"""Kernel modules: the first drives the Hailo-10H, the second the Hailo-8; old ones of the second claim the 10H too."""
CLASSES = ("hailo_chardev", "hailo1x")
"""sysfs classes of the device's node: /dev/hailo0 up to driver 5.2, /dev/h1x-0 from 5.3."""
DRIVER_PACKAGE = "h10-hailort-pcie-driver"
SERVER_PACKAGE = "hailo-gen-ai-model-zoo"
OTHER_LINE = {
    "hailo-all": "hailo-h10-all",
    "hailort": "h10-hailort",
    "hailort-pcie-driver": DRIVER_PACKAGE,
    "python3-hailort": "python3-h10-hailort",
}
"""Packages for the Hailo-8, and what takes their places for the Hailo-10H. They exclude each other."""
FULL_SPEED_GTS = 8.0  # PCIe Gen 3

HAILORTCLI_SECONDS = 10.0
DPKG_SECONDS = 5.0
QUESTIONS = {
    "version": Question(("hailortcli", "--version"), HAILORTCLI_SECONDS),
    "scan": Question(("hailortcli", "scan"), HAILORTCLI_SECONDS),
    "packages": Question(
        (
            "dpkg-query",
            "--show",
            "--showformat=${db:Status-Abbrev}\\t${Package}\\t${Version}\\n",
            *("dkms", "*hailo*"),
        ),
        DPKG_SECONDS,
    ),
}
IDENTIFY = Question(("hailortcli", "fw-control", "identify"), HAILORTCLI_SECONDS)

_POWER_CUT = "sudo poweroff, unplug the supply for 10 seconds, plug it in: a reboot does not reset the HAT"
_INSTALL = "sudo apt-get install dkms hailo-h10-all, then sudo reboot"
_REINSTALL = f"sudo apt-get install dkms && sudo apt-get install --reinstall {DRIVER_PACKAGE}, then sudo reboot"


class Identity(TypedDict):
    firmware_version: str | None
    architecture: str | None


class HailoProblem(NamedTuple):
    """`kind` is for programs; `seen` and `fix` are for people."""

    kind: str
    seen: str
    fix: str

    def __str__(self) -> str:
        return f"{self.seen}: {self.fix}"


def parse_version(text: str) -> str | None:
    """`hailortcli --version`, `HailoRT-CLI version 5.1.1` → `5.1.1`."""
    found = re.search(r"^HailoRT-CLI version ([0-9]{1,5}(?:\.[0-9]{1,5}){1,3})\s*$", text, re.MULTILINE | re.ASCII)
    return found[1] if found else None


def parse_scan(text: str) -> list[str] | None:
    """`hailortcli scan`: `Hailo Devices:` and lines `[-] Device: 0001:01:00.0` → the addresses.

    `Hailo devices not found` → an empty list. None: neither was printed.
    """
    lines = [line.strip() for line in text.splitlines()]
    found = [re.fullmatch(r"\[-\] Device: ([0-9A-Fa-f:.]{1,32})", line, re.ASCII) for line in lines]
    addresses = [match[1] for match in found if match]
    return addresses if addresses or {"Hailo Devices:", "Hailo devices not found"} & set(lines) else None


def parse_identify(text: str) -> Identity:
    """`hailortcli fw-control identify`: its lines `Firmware Version: 5.1.1 (release,app)`, `Device Architecture: …`."""
    firmware = re.search(r"^\s*Firmware Version: ([0-9]{1,5}(?:\.[0-9]{1,5}){1,3})\b", text, re.MULTILINE | re.ASCII)
    architecture = re.search(r"^\s*Device Architecture: (\w{1,32})\s*$", text, re.MULTILINE | re.ASCII)
    return {
        "firmware_version": firmware[1] if firmware else None,
        "architecture": architecture[1] if architecture else None,
    }


def parse_packages(text: str) -> dict[str, str]:
    """`dpkg-query`: lines `ii <tab> name <tab> version` → versions of what is installed, by name."""
    packages = {}
    for line in text.splitlines():
        status, _, rest = line.partition("\t")
        name, _, version = rest.partition("\t")
        # The second letter is the state: i, installed. The first is what was wished for.
        if status[1:2] == "i" and re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name) and version.strip():
            packages[name] = version.strip()
    return packages


def parse_link_speed(text: str) -> float | None:
    """sysfs's `current_link_speed`, `8.0 GT/s PCIe` → 8.0."""
    found = re.match(r"([0-9]{1,3}(?:\.[0-9]{1,2})?) GT/s", text.strip(), re.ASCII)
    return float(found[1]) if found else None


def parse_pcie_generation(config: str) -> int | None:
    """`config.txt` → the last `dtparam=pciex1_gen=N` in it. Sections are not looked at: it is for an advice only."""
    found = re.findall(r"^[ \t]*dtparam=(?:[^#\n]*,)?pciex1_gen=([0-9])\b", config, re.MULTILINE | re.ASCII)
    return int(found[-1]) if found else None


def read_hailo(places: Places | None = None, ask: Ask = ask) -> dict[str, Any]:
    """All of it, as plain JSON values; None where a thing is absent or not known. `unreadable` names what failed."""
    places = places or Places()
    unreadable: list[str] = []
    tree, sysfs = Files(places.device_tree, unreadable), Files(places.sysfs, unreadable)
    answers = ask(QUESTIONS)
    devices = parse_scan(answers["scan"].output)
    # Where the scan finds nothing there is nobody to ask, and where it hangs this would hang too.
    identified = ask({"identify": IDENTIFY})["identify"] if devices else Answer()
    identity = parse_identify(identified.output)
    identify_error = _fault(identified, understood=identity["firmware_version"] is not None) if devices else None
    packages = parse_packages(answers["packages"].output)
    for question, fault in (
        (QUESTIONS["version"], _fault(answers["version"], parse_version(answers["version"].output) is not None)),
        (QUESTIONS["scan"], _fault(answers["scan"], devices is not None)),
        (IDENTIFY, identify_error),
        # dpkg-query exits with 1 if it knows none of a pattern.
        (Question(("dpkg-query",), DPKG_SECONDS), _fault(answers["packages"], answers["packages"].code in (0, 1))),
    ):
        if fault:
            unreadable.append(f"{question}: {fault}")
    facts: dict[str, Any] = {
        **_pci(sysfs),
        "hat": tree.text("hat/product"),
        "pcie_generation_set": parse_pcie_generation(Files(places.boot, unreadable).text("config.txt") or ""),
        "driver": _driver(sysfs),
        "node": _node(sysfs),
        "devices": devices,
        "library_version": parse_version(answers["version"].output),
        **identity,
        "identify_error": identify_error,
        "temperature_c": None,
        "packages": packages,
        "dkms": "dkms" in packages,
    }
    return {**facts, "problems": [str(problem) for problem in find_problems(facts)], "unreadable": unreadable}


def _fault(answer: Answer, understood: bool) -> str | None:
    """Why a program's answer is none; None if it is one, or the program is not there."""
    if answer.absent or (understood and not answer.fault):
        return None
    errors, output = first_line(answer.errors), first_line(answer.output)
    return answer.fault or f"exit code {answer.code}, {errors or output or 'and it printed nothing'}"


def _pci(sysfs: Files) -> dict[str, Any]:
    """The first Hailo device on the bus, a Hailo-10H before others."""
    directory = "bus/pci/devices"
    found = {}
    for address in sysfs.names(directory) or []:
        if sysfs.text(f"{directory}/{address}/vendor") == HAILO_VENDOR:
            device = (sysfs.text(f"{directory}/{address}/device") or "").removeprefix("0x")
            found[address] = f"{HAILO_VENDOR.removeprefix('0x')}:{device}"
    address = min(found, key=lambda place: (found[place] != HAILO_10H, place), default="")
    device_directory = f"{directory}/{address}"
    return {
        "present": bool(found),
        "pci_address": address or None,
        "pci_id": found.get(address),
        "link_speed_gts": parse_link_speed(sysfs.text(f"{device_directory}/current_link_speed") or ""),
        "link_width": sysfs.number(f"{device_directory}/current_link_width"),
    }


def _driver(sysfs: Files) -> dict[str, Any]:
    module = next((name for name in MODULES if sysfs.has(f"module/{name}")), None)
    version = sysfs.text(f"module/{module}/version") if module else None
    return {"module": module, "version": version, "loaded": module is not None}


def _node(sysfs: Files) -> str | None:
    names = (name for group in CLASSES for name in sysfs.names(f"class/{group}") or [])
    return next((f"/dev/{name}" for name in names), None)


def find_problems(facts: Mapping[str, Any]) -> list[HailoProblem]:
    """What stands between the node and its HAT, the cause before what follows from it. Empty: all is well."""
    packages: Mapping[str, str] = facts["packages"]
    wrong = _wrong_line(packages)
    if not facts["present"]:
        return [_absent(facts), *wrong]
    if facts["pci_id"] != HAILO_10H:
        seen = f"the device at {facts['pci_address']} is {facts['pci_id']}, and a Hailo-10H is {HAILO_10H}"
        return [HailoProblem("not_hailo_10h", seen, "hailo-ollama runs on the AI HAT+ 2 only: take this node out")]
    found = [*wrong, *(_no_node(facts) if facts["node"] is None else _with_node(facts))]
    if DRIVER_PACKAGE in packages and not facts["dkms"] and not any(p.kind == "driver_lost" for p in found):
        seen = "dkms is not installed: the next kernel upgrade loses the driver's module"
        found.append(HailoProblem("no_dkms", seen, _REINSTALL))
    speed = facts["link_speed_gts"]
    if speed is not None and speed < FULL_SPEED_GTS:
        found.append(_slow(facts, speed))
    return found


def _wrong_line(packages: Mapping[str, str]) -> list[HailoProblem]:
    names = [name for name in OTHER_LINE if name in packages]
    if not names:
        return []
    seen = f"{', '.join(f'{name} {packages[name]}' for name in names)} is of the Hailo-8's line of packages"
    fix = f"sudo apt-get remove {' '.join(names)}; {_INSTALL}"
    return [HailoProblem("wrong_packages", seen, fix)]


def _absent(facts: Mapping[str, Any]) -> HailoProblem:
    if facts["hat"]:
        seen = f"the HAT ({facts['hat']}) is there, and no Hailo device is on the PCIe bus"
        fix = "switch off, press the PCIe ribbon cable home at both ends"
    else:
        seen = "no Hailo device is on the PCIe bus, and no HAT tells its name"
        fix = "switch off, fit the AI HAT+ 2 on all 40 pins and its PCIe ribbon cable at both ends"
    fix += f", switch on; if it stays away: sudo rpi-eeprom-update -a, then {_POWER_CUT}"
    return HailoProblem("absent", seen, fix)


def _no_node(facts: Mapping[str, Any]) -> list[HailoProblem]:
    driver, packages = facts["driver"], facts["packages"]
    on_bus = f"the Hailo-10H is on the PCIe bus ({facts['pci_address']})"
    loaded = " ".join(filter(None, (driver["module"], driver["version"])))
    if driver["module"] == MODULES[0]:
        seen = f"{on_bus}, its driver {loaded} is loaded, and made no node"
        fix = (
            "look for the reason with sudo dmesg | grep -i hailo; if the firmware did not come up: "
            f"sudo rpi-eeprom-update -a, then {_POWER_CUT}"
        )
        return [HailoProblem("no_node", seen, fix)]
    if driver["loaded"]:
        seen = f"{on_bus}, and the loaded driver is {loaded}: the Hailo-10H needs {MODULES[0]}"
        return [HailoProblem("wrong_driver", seen, _INSTALL)]
    if DRIVER_PACKAGE not in packages:
        seen = f"{on_bus}, and {DRIVER_PACKAGE} is not installed"
        return [HailoProblem("not_installed", seen, _INSTALL)]
    installed = f"{on_bus}, {DRIVER_PACKAGE} {packages[DRIVER_PACKAGE]} is installed, and no driver is loaded"
    if not facts["dkms"]:
        seen = f"{installed}: without dkms its module is lost when the kernel is upgraded"
        return [HailoProblem("driver_lost", seen, _REINSTALL)]
    fix = f"sudo modprobe {MODULES[0]} tells why; if dkms status does not list it for this kernel: {_REINSTALL}"
    return [HailoProblem("not_loaded", installed, fix)]


def _with_node(facts: Mapping[str, Any]) -> list[HailoProblem]:
    mismatch = _mismatch(facts)
    node, error = facts["node"], facts["identify_error"]
    if facts["devices"] == []:
        seen = f"{node} is there, and hailortcli scan finds no device: the device is lost"
        return [*mismatch, HailoProblem("device_lost", seen, _POWER_CUT)]
    if mismatch:
        return mismatch  # With it, whatever opens the device fails.
    if facts["library_version"] is None:
        seen = f"{node} is there, and no hailortcli answers: HailoRT is not installed, or broken"
        return [HailoProblem("no_library", seen, "sudo apt-get install --reinstall h10-hailort")]
    if facts["devices"] is None:
        seen = "hailortcli scan gives no answer"
        return [HailoProblem("no_answer", seen, f"stop what uses {node} (sudo fuser -v {node}); else {_POWER_CUT}")]
    if error and re.search(r"not enough free devices|IN_USE|OUT_OF_PHYSICAL_DEVICES", error):
        fix = f"one program at a time has it: sudo fuser -v {node} names it, stop that one"
        return [HailoProblem("busy", f"another program holds {node} ({error})", fix)]
    if error:
        seen = f"hailortcli fw-control identify fails ({error})"
        return [HailoProblem("no_answer", seen, f"stop what uses {node} (sudo fuser -v {node}); else {_POWER_CUT}")]
    return []


def _release(version: object) -> str | None:
    """`5.1.1-1` → `5.1.1`: the numbers that must be equal, without what a package adds."""
    found = re.match(r"[0-9]+(?:\.[0-9]+){0,2}", version, re.ASCII) if isinstance(version, str) else None
    return found[0] if found else None


def _mismatch(facts: Mapping[str, Any]) -> list[HailoProblem]:
    versions = {
        "library": _release(facts["library_version"]),
        "driver": _release(facts["driver"]["version"]),
        "firmware": _release(facts["firmware_version"]),
    }
    named = ", ".join(f"{name} {version or 'not known'}" for name, version in versions.items())
    found = []
    if len(set(versions.values()) - {None}) > 1:
        fix = (
            f"bring the packages to one version (sudo apt-get install --reinstall h10-hailort {DRIVER_PACKAGE}), then "
            "sudo poweroff and switch on again: the loaded driver and the firmware change only then"
        )
        found.append(HailoProblem("version_mismatch", f"the versions differ: {named}", fix))
    server, library = _release(facts["packages"].get(SERVER_PACKAGE)), versions["library"]
    if server and library and server != library:
        seen = f"hailo-ollama ({SERVER_PACKAGE}) is of version {server}, and the library of {library}"
        found.append(HailoProblem("server_mismatch", seen, f"install {SERVER_PACKAGE} {library}"))
    return found


def _slow(facts: Mapping[str, Any], speed: float) -> HailoProblem:
    seen = f"PCIe runs at {speed:g} GT/s, and the AI HAT+ 2 is made for {FULL_SPEED_GTS:g} (Gen 3)"
    if facts["pcie_generation_set"] == 3:
        fix = "config.txt asks for Gen 3: sudo reboot if that is new, else reseat or replace the PCIe ribbon cable"
    else:
        fix = "write dtparam=pciex1_gen=3 below [all] in /boot/firmware/config.txt, then sudo reboot"
    return HailoProblem("slow_link", seen, fix)
