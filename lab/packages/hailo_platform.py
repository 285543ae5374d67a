"""EMULATION for the lab: as much of hailo_platform as reads the processor's temperature and identity."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "0001:01:00.0"
_ROOT = Path(os.environ.get("BRAMBLE_LAB_ROOT", "/"))
_SYS = _ROOT / "run/bramble-lab/sys"
_FAULTS = _ROOT / "etc/bramble-lab/faults"


class HailoRTException(Exception):  # noqa: N818 - the original's name
    """A call to the library failed."""


@dataclass(frozen=True)
class TemperatureInfo:
    """Degrees Celsius of the two sensors."""

    ts0_temperature: float
    ts1_temperature: float
    sample_count: int


class _Control:
    def get_chip_temperature(self) -> TemperatureInfo:
        hot = (_FAULTS / "hot").exists()
        return TemperatureInfo(71.2 if hot else 33.7, 71.5 if hot else 34.0, 1)


class Device:
    """The processor of the HAT."""

    @staticmethod
    def scan() -> list[str]:
        there = (_SYS / "class/hailo_chardev/hailo0").is_dir() and not (_FAULTS / "device-lost").exists()
        return [ADDRESS] if there else []

    def __init__(self, device_id: str | None = None) -> None:
        if not Device.scan():
            raise HailoRTException("libhailort failed with error: 36 (HAILO_DRIVER_OPERATION_FAILED)")
        driver = (_SYS / "module/hailo1x_pci/version").read_text(encoding="ascii")
        if driver != (_ROOT / "usr/lib/bramble-lab/libhailort").read_text(encoding="ascii"):
            raise HailoRTException("libhailort failed with error: 76 (HAILO_INVALID_DRIVER_VERSION)")
        self.device_id = device_id or ADDRESS
        self.control = _Control()

    def release(self) -> None:
        """Nothing: the emulation holds nothing."""
