#!/usr/bin/python3 -I
"""EMULATION for the lab: hailortcli @VERSION@.

It reads the emulated /sys and the fault switches (/usr/lib/bramble-lab/hardware) and prints what HailoRT's program
prints on a Raspberry Pi with an AI HAT+ 2, return codes included. BRAMBLE_LAB_ROOT stands before all paths; tests set
it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

VERSION = "@VERSION@"
ADDRESS = "0001:01:00.0"
ROOT = Path(os.environ.get("BRAMBLE_LAB_ROOT", "/"))
RUN = ROOT / "run/bramble-lab"
FAULTS = ROOT / "etc/bramble-lab/faults"
# hailo_status, HailoRT's hailort.h
DRIVER_OPERATION_FAILED, OUT_OF_PHYSICAL_DEVICES, INVALID_DRIVER_VERSION = 36, 74, 76


def fault(name: str) -> bool:
    return (FAULTS / name).exists()


def error(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def devices() -> bool:
    """Whether the driver shows the processor."""
    return (RUN / "sys/class/hailo_chardev/hailo0").is_dir()


def scan() -> int:
    if not devices() or fault("device-lost"):
        print("Hailo devices not found")
    else:
        print(f"Hailo Devices:\n[-] Device: {ADDRESS}")
    return 0


def opened() -> int:
    """Opens the device, as each command but `scan` does; 0, or the status that ends the program."""
    if VERSION.startswith("4."):
        error("[HailoRT] [error] Hailo1X Devices are only supported in versions 5.0.0 and above.")
        return INVALID_DRIVER_VERSION
    driver = (RUN / "sys/module/hailo1x_pci/version").read_text(encoding="ascii").strip()
    if driver != VERSION:
        error(
            f"[HailoRT] [error] CHECK failed - Driver version ({driver}) is different from library version ({VERSION})",
            "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_INVALID_DRIVER_VERSION(76)",
        )
        return INVALID_DRIVER_VERSION
    if fault("device-lost"):
        error(
            "[HailoRT] [error] Device disconnected while opening device",
            "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_DRIVER_OPERATION_FAILED(36)",
        )
        return DRIVER_OPERATION_FAILED
    return 0


def identify() -> int:
    # A lost device is still on the bus: the driver's node is there, and opening it fails.
    if not devices():
        return 0
    status = opened()
    if status:
        return status
    print(f"Executing on device: {ADDRESS}")
    print(f"Identifying board\nControl Protocol Version: 2\nFirmware Version: {VERSION} (release,app)")
    print("Logger Version: 0\nDevice Architecture: HAILO10H\n")
    return 0


def vdevice() -> int:
    """Creates a virtual device, which is one program's at a time: 0, or the status that ends the program."""
    if not devices():
        error(
            "[HailoRT] [error] Failed to create vdevice. there are not enough free devices. requested: 1, found: 0",
            "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_OUT_OF_PHYSICAL_DEVICES(74)",
        )
        return OUT_OF_PHYSICAL_DEVICES
    status = opened()
    if status:
        return status
    # The processor is a lock: whoever holds a model on it holds the lock. It is kept until this program ends.
    lock = os.open(RUN / "npu.lock", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        busy = fault("busy")
    except BlockingIOError:
        busy = True
    if busy:
        error(
            "[HailoRT] [error] Failed to create vdevice. there are not enough free devices. requested: 1, found: 0",
            "[HailoRT CLI] [error] CHECK_SUCCESS failed with status=HAILO_OUT_OF_PHYSICAL_DEVICES(74)",
        )
        return OUT_OF_PHYSICAL_DEVICES
    return 0


def measured(name: str) -> int:
    status = vdevice()
    if status:
        return status
    temperature = (RUN / "sys/class/thermal/thermal_zone0/temp").read_text(encoding="ascii")
    mean = 33.74 if float(temperature) < 80000 else 71.2
    if name == "benchmark":
        print("Measurement power is not supported\nMeasurement current is not supported")
    print("=======\nSummary\n=======")
    print(f"  temperature: mean={mean:.2f} min={mean - 1.89:.2f} max={mean + 0.95:.2f}")
    return 0


def main(arguments: list[str]) -> int:
    match arguments:
        case ["--version" | "-v", *_]:
            print(f"HailoRT-CLI version {VERSION}")
            return 0
        case ["scan", *_]:
            return scan()
        case ["fw-control", "identify", *_]:
            return identify()
        case ["run", *_]:
            error('[HailoRT CLI] [error] The "run" command is not supported for this device type! Use "run2" instead.')
            return 1
        case ["run2" | "benchmark" as name, *_]:
            return measured(name)
        case ["measure-power", *_]:
            status = vdevice()
            if status == 0:
                error("[HailoRT CLI] [error] Failed power measurement, status HAILO_NOT_SUPPORTED(59)")
            return status or 59
        case _:
            error(
                f"hailortcli {VERSION} (EMULATION for the lab): "
                "--version | scan | fw-control identify | run2 | benchmark | measure-power"
            )
            return 106
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
