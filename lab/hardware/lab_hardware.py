#!/usr/bin/python3
"""EMULATION for the lab: what the firmware, the kernel and the HAT of a Raspberry Pi 5 show, laid out as files.

Usage: hardware boot | layout | fault NAME | mend | load MODULE | unload MODULE

    boot     at each boot: a staged EEPROM update takes effect, the installed driver is loaded, the link is shaped
    layout   lays out again what the switches in /etc/bramble-lab/faults say (one empty file a fault)
    fault    sets a switch and lays out again
    mend     clears all switches and lays out again
    load     what `modprobe MODULE` calls (the driver package's modprobe.d): there is no real module in a container

It writes /run/bramble-lab/: `device-tree/` as in /proc/device-tree, `sys/` as in /sys, `vcgencmd/` (what vcgencmd
answers), `eeprom/`, and the lock that the processor of the HAT is. BRAMBLE_LAB_ROOT stands before all paths; tests set
it.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FIRMWARE_FAULTS = (
    "under-voltage",
    "throttled",
    "hot",
    "weak-supply",
    "old-eeprom",
    "slow-link",
    "wifi",
    "small-card",
    "no-fan",
)
HAT_FAULTS = ("no-device", "version-mismatch", "device-lost", "busy", "slow")
FAULTS = FIRMWARE_FAULTS + HAT_FAULTS

PCI_ADDRESS = "0001:01:00.0"
# The driver that stayed loaded while another version of the library was installed.
OTHER_DRIVER_VERSION = "5.2.0"
# Bootloaders by the date that vcgencmd prints: (date, commit, timestamp). The old one lacks the memory banking gain.
NEW_BOOTLOADER = ("2025/05/08 15:13:17", "69471177f52eb7dc8ac2f3f7b6f1a3f3d4a3e1b2", 1746713597)
OLD_BOOTLOADER = ("2024/04/20 10:53:30", "d7e5e5a8b2e0ad1d7e3f5ac2b8a1c4f09d6b7e31", 1713606810)
# USB power delivery objects of the 27 W supply: 5 V 5 A, 9 V 3 A, 12 V 2.25 A, 15 V 1.8 A; the rest is empty.
SUPPLY_27W = (0x0A0191F4, 0x0002D12C, 0x0003C0E1, 0x0004B0B4, 0, 0, 0)
SECTORS_64GB = 124735488
SECTORS_8GB = 15523840

# Amperes and volts of the PMIC's rails: (rail, current channel, amperes, volt channel, volts). The order is vcgencmd's.
RAILS = (
    ("3V7_WL_SW", 0, 0.10247270, 8, 3.71091200),
    ("3V3_SYS", 1, 0.10832820, 9, 3.31078200),
    ("1V8_SYS", 2, 0.18540750, 10, 1.80512800),
    ("DDR_VDD2", 3, 0.25372340, 11, 1.11282300),
    ("DDR_VDDQ", 4, 0.05367640, 12, 0.61025900),
    ("1V1_SYS", 5, 0.19322290, 13, 1.11135800),
    ("0V8_SW", 6, 0.36590830, 14, 0.80463200),
    ("VDD_CORE", 7, 1.42880000, 15, 0.90659250),
    ("3V3_DAC", 17, 0.00042738, 20, 3.31078200),
    ("3V3_ADC", 18, 0.00036633, 21, 3.31078200),
    ("0V8_AON", 16, 0.00354120, 19, 0.80463200),
    ("HDMI", 22, 0.01575600, 23, 5.05716000),
)


@dataclass(frozen=True, slots=True)
class Node:
    """What is plugged, switched, installed and set on a node."""

    hat: bool = False
    faults: frozenset[str] = frozenset()
    # (module, version) of the loaded driver, None while there is none.
    driver: tuple[str, str] | None = None
    governor: str = "ondemand"
    interface: str = "eth0"
    # What config.txt said at boot: all of the USB current, also from a supply that offers 3 A.
    usb_max_current: bool = False


def layout(node: Node) -> dict[str, bytes | None]:
    """The files below /run/bramble-lab by their paths; None is an empty directory."""
    files: dict[str, bytes | None] = {}
    for part in (_device_tree, _sys, _vcgencmd):
        files.update(part(node))
    current = OLD_BOOTLOADER if "old-eeprom" in node.faults else NEW_BOOTLOADER
    files["eeprom/current"] = b"%d\n" % current[2]
    files["eeprom/latest"] = b"%d\n" % NEW_BOOTLOADER[2]
    return files


def visible(node: Node) -> bool:
    """Whether the HAT's processor is on the PCIe bus."""
    return node.hat and "no-device" not in node.faults


def _device_tree(node: Node) -> dict[str, bytes | None]:
    weak = "weak-supply" in node.faults
    objects = (0,) * len(SUPPLY_27W) if weak else SUPPLY_27W
    files: dict[str, bytes | None] = {
        "device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
        "device-tree/system/linux,revision": struct.pack(">I", 0xD04170),
        "device-tree/chosen/power/max_current": struct.pack(">I", 3000 if weak else 5000),
        "device-tree/chosen/power/usbpd_power_data_objects": struct.pack(f">{len(objects)}I", *objects),
    }
    if node.hat:
        # The HAT's own EEPROM: it is read over I2C, so it is there whatever PCIe does.
        for name, text in (
            ("vendor", "Raspberry Pi Ltd."),
            ("product", "AI HAT+ 2"),
            ("product_id", "0x0003"),
            ("product_ver", "0x0001"),
            ("uuid", "00000000-0000-0000-0000-000000000010"),
        ):
            files[f"device-tree/hat/{name}"] = text.encode() + b"\0"
    return files


def _sys(node: Node) -> dict[str, bytes | None]:
    clock = 1500000 if "throttled" in node.faults else 2400000
    net = f"sys/class/net/{node.interface}"
    files: dict[str, bytes | None] = {
        "sys/class/thermal/thermal_zone0/temp": b"%d\n" % round(1000 * _temperature(node)),
        f"{net}/operstate": b"up\n",
        "sys/class/block/mmcblk0/size": b"%d\n" % (SECTORS_8GB if "small-card" in node.faults else SECTORS_64GB),
    }
    for core in range(4):
        frequency = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files[f"{frequency}/scaling_governor"] = node.governor.encode() + b"\n"
        files[f"{frequency}/scaling_available_governors"] = (
            b"conservative ondemand userspace powersave performance schedutil\n"
        )
        files[f"{frequency}/scaling_cur_freq"] = b"%d\n" % clock
        files[f"{frequency}/scaling_max_freq"] = b"2400000\n"
    if "wifi" in node.faults:
        # The kernel has no speed to tell of a wireless link: reading it is an error there, a missing file here.
        files[f"{net}/wireless"] = None
    else:
        files[f"{net}/speed"] = b"100\n" if "slow-link" in node.faults else b"1000\n"
        files[f"{net}/duplex"] = b"full\n"
    if "no-fan" not in node.faults:
        files["sys/class/hwmon/hwmon2/name"] = b"pwmfan\n"
        files["sys/class/hwmon/hwmon2/fan1_input"] = b"2820\n"
    if visible(node):
        device = f"sys/bus/pci/devices/{PCI_ADDRESS}"
        files[f"{device}/vendor"] = b"0x1e60\n"
        files[f"{device}/device"] = b"0x45c4\n"
        files[f"{device}/current_link_speed"] = b"8.0 GT/s PCIe\n"
        files[f"{device}/current_link_width"] = b"1\n"
    if node.driver is not None:
        module, version = node.driver
        shown = OTHER_DRIVER_VERSION if "version-mismatch" in node.faults else version
        files[f"sys/module/{module}/version"] = shown.encode() + b"\n"
        if visible(node) and module == "hailo1x_pci":
            files["sys/class/hailo_chardev/hailo0/board_location"] = PCI_ADDRESS.encode() + b"\n"
    return files


def _temperature(node: Node) -> float:
    return 86.2 if "hot" in node.faults else 48.8


def throttled(faults: frozenset[str]) -> int:
    """`get_throttled`: what is now in bits 0-3, what has been since boot in bits 16-19."""
    now = 0x1 * ("under-voltage" in faults) | 0x6 * ("throttled" in faults) | 0x8 * ("hot" in faults)
    return now | now << 16


def _vcgencmd(node: Node) -> dict[str, bytes | None]:
    date, commit, timestamp = OLD_BOOTLOADER if "old-eeprom" in node.faults else NEW_BOOTLOADER
    clock = 1500000000 if "throttled" in node.faults else 2400000000
    usb = node.usb_max_current or "weak-supply" not in node.faults
    answers = {
        "get_throttled": f"throttled=0x{throttled(node.faults):x}\n",
        "measure_temp": f"temp={_temperature(node):.1f}'C\n",
        "get_config usb_max_current_enable": f"usb_max_current_enable={int(usb)}\n",
        "get_config total_mem": "total_mem=8192\n",
        "measure_clock arm": f"frequency(0)={clock}\n",
        "measure_volts": "volt=0.9066V\n",
        "measure_volts core": "volt=0.9066V\n",
        "bootloader_version": (
            f"{date}\nversion {commit} (release)\ntimestamp {timestamp}\nupdate-time {timestamp}\n"
            "capabilities 0x0000007f\n"
        ),
    }
    lines = [(f"{rail}_A current({channel})", f"{amperes:.8f}A") for rail, channel, amperes, _, _ in RAILS]
    lines += [(f"{rail}_V volt({channel})", f"{volts:.8f}V") for rail, _, _, channel, volts in RAILS]
    lines.append(("EXT5V_V volt(24)", "4.59216000V" if "under-voltage" in node.faults else "5.05716000V"))
    lines.append(("BATT_V volt(25)", "0.00000000V"))
    for name, value in lines:
        rail, channel = name.split(" ")
        line = f"{rail:>12} {channel}={value}\n"
        answers["pmic_read_adc"] = answers.get("pmic_read_adc", "") + line
        answers[f"pmic_read_adc {rail}"] = line
    return {f"vcgencmd/{command}": text.encode() for command, text in answers.items()}


class Machine:
    """A node's file system below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run/bramble-lab"
        self.switches = root / "etc/bramble-lab/faults"
        self.boot_files = root / "boot/firmware"
        self.driver_record = self.run / "driver"
        self.device = root / "dev/hailo0"

    def faults(self) -> frozenset[str]:
        """The switches that are set; a file of another name is none."""
        if not self.switches.is_dir():
            return frozenset()
        return frozenset(path.name for path in self.switches.iterdir()) & frozenset(FAULTS)

    def hat(self) -> bool:
        """Whether the container was started with the HAT plugged: BRAMBLE_LAB_HAT=1 in the environment of its init."""
        return b"BRAMBLE_LAB_HAT=1" in self._read("proc/1/environ").split(b"\0")

    def installed_driver(self) -> tuple[str, str] | None:
        """The module and version that the driver package put there."""
        words = self._read("usr/src/hailort-pcie-driver/MODULE").decode().split()
        return (words[0], words[1]) if len(words) == 2 else None

    def _read(self, path: str) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError:
            return b""

    def lay_out(self) -> None:
        """Writes what `layout` says, and removes what it no longer says."""
        words = self._read("run/bramble-lab/driver").decode().split()
        governor = self._read("run/bramble-lab/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").decode().strip()
        node = Node(
            hat=self.hat(),
            faults=self.faults(),
            driver=(words[0], words[1]) if len(words) == 2 else None,
            governor=governor or self._governor_at_boot(),
            interface=self._interface(),
            usb_max_current=(self.run / "usb-max-current").exists(),
        )
        files = layout(node)
        for name, content in files.items():
            self._put(self.run / name, content)
        for part in ("device-tree", "sys", "vcgencmd", "eeprom"):
            _prune(self.run / part, {self.run / name for name in files})
        self._put(self.run / "npu.lock", b"")
        self._device_node(f"{self.run.relative_to(self.root)}/sys/class/hailo_chardev/hailo0/board_location")

    def _governor_at_boot(self) -> str:
        """What cmdline.txt asks the kernel for, else Raspberry Pi OS's own."""
        cmdline = self._read("boot/firmware/cmdline.txt").decode(errors="replace")
        asked = re.findall(r"(?:^|\s)cpufreq\.default_governor=(\S+)", cmdline)
        return asked[-1] if asked else "ondemand"

    @staticmethod
    def _put(path: Path, content: bytes | None) -> None:
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != content:
            # Written in place: a program that holds the lock's file or reads a value keeps its file.
            path.write_bytes(content)
            path.chmod(0o644)

    def _device_node(self, condition: str) -> None:
        there = self.device.is_symlink() or self.device.exists()
        if (self.root / condition).exists():
            if not there:
                self.device.parent.mkdir(parents=True, exist_ok=True)
                # A container may not make device nodes; opening this one works, as with the driver's 0666.
                self.device.symlink_to("/dev/null")
        elif there:
            self.device.unlink()

    def _interface(self) -> str:
        """The container's interface: the one beside the loopback and what tunnel modules put into each namespace."""
        directory = self.root / "sys/class/net"
        names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
        return next((name for name in names if name.startswith("eth")), "eth0")

    def boot(self) -> None:
        """What happens once at a boot."""
        update = self.boot_files / "pieeprom.upd"
        if update.exists():
            update.unlink()
            (self.switches / "old-eeprom").unlink(missing_ok=True)
        for name in ("driver", "usb-max-current"):
            (self.run / name).unlink(missing_ok=True)
        governor = self.run / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
        governor.unlink(missing_ok=True)
        # The firmware reads config.txt at boot only.
        config = self._read("boot/firmware/config.txt").decode(errors="replace")
        if re.search(r"(?m)^\s*usb_max_current_enable=1\s*$", config):
            self._put(self.run / "usb-max-current", b"")
        driver = self.installed_driver()
        # 4.x drivers do not claim the Hailo-10H.
        if driver and driver[0] == "hailo1x_pci" and self.hat() and "no-device" not in self.faults():
            self._put(self.driver_record, " ".join(driver).encode())
        self.lay_out()

    def load(self, module: str) -> bool:
        """modprobe: the version that is installed now stays loaded until `unload` or a boot. False: not installed."""
        driver = self.installed_driver()
        if driver is None or driver[0] != module:
            return False
        if not self.driver_record.exists():
            self._put(self.driver_record, " ".join(driver).encode())
            self.lay_out()
        return True

    def unload(self) -> None:
        self.driver_record.unlink(missing_ok=True)
        self.lay_out()

    def fault(self, name: str) -> None:
        self.switches.mkdir(parents=True, exist_ok=True)
        (self.switches / name).touch()
        if name == "old-eeprom":
            (self.boot_files / "pieeprom.upd").unlink(missing_ok=True)
        self.lay_out()

    def mend(self) -> None:
        for name in self.faults():
            (self.switches / name).unlink()
        self.lay_out()


def _prune(directory: Path, keep: set[Path]) -> None:
    if not directory.is_dir():
        return
    for path in sorted(directory.rglob("*"), reverse=True):
        if path in keep:
            continue
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()


def shape_link(root: Path, environment: Mapping[str, str]) -> None:
    """Shapes the node's link as roles/lab noted it: a container that starts again has a new, unshaped one."""
    try:
        rate = (root / "etc/bramble-lab/link-rate").read_text().strip()
    except OSError:
        return
    if rate:
        command = ["tc", "qdisc", "replace", "dev", "eth0", "root", "handle", "1:", "tbf", "rate", rate]
        subprocess.run([*command, "burst", "256kb", "latency", "50ms"], env=dict(environment), check=False)


def main(arguments: list[str]) -> int:
    root = Path(os.environ.get("BRAMBLE_LAB_ROOT", "/"))
    machine = Machine(root)
    match arguments:
        case ["boot"]:
            machine.boot()
            shape_link(root, os.environ)
        case ["layout"]:
            machine.lay_out()
        case ["fault", name] if name in FAULTS:
            machine.fault(name)
        case ["fault", name]:
            print(f"hardware: there is no fault {name!r}; there are {', '.join(FAULTS)}", file=sys.stderr)
            return 2
        case ["mend"]:
            machine.mend()
        case ["load", module]:
            if not machine.load(module):
                print(f"modprobe: FATAL: Module {module} not found.", file=sys.stderr)
                return 1
        case ["unload", _]:
            machine.unload()
        case _:
            print(
                "usage: hardware boot | layout | fault NAME | mend | load MODULE | unload MODULE\n"
                f"faults: {' '.join(FAULTS)}",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
