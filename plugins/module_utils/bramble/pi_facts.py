"""What a Raspberry Pi says of itself: board, firmware, throttling, temperature, supply, power, cooling, card, link.

Parsers are pure and take any text: what they do not understand is None or empty, never an error. Standard library only.
"""

from __future__ import annotations

import re
from typing import TypedDict

THROTTLED_BITS = {0: "under_voltage", 1: "frequency_capped", 2: "throttled", 3: "soft_temperature_limit"}
"""Bits of `vcgencmd get_throttled` that tell of now; 16 higher, of any time since boot (Raspberry Pi documentation)."""
SINCE_BOOT_SHIFT = 16


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


def _lines(pattern: str, text: str) -> list[tuple[str, ...]]:
    """The groups of each line that is as `pattern`, but for white space around it. Digits are ASCII digits."""
    matches = (re.fullmatch(pattern, line.strip(), re.ASCII) for line in text.splitlines())
    return [match.groups() for match in matches if match]


def _line(pattern: str, text: str) -> re.Match[str] | None:
    """The first line that is as `pattern`, but for white space around it."""
    matches = (re.fullmatch(pattern, line.strip(), re.ASCII) for line in text.splitlines())
    return next((match for match in matches if match), None)
