"""What the hardware allows at most, and which figures are suspect for it."""

from __future__ import annotations

import re

from bramble.records.schema import Record, figure

_BANDWIDTHS: tuple[tuple[re.Pattern[str], float], ...] = (
    # LPDDR4X-4267, 32 bit wide: 4267e6 transfers/s * 4 bytes = 17.07e9.
    (re.compile(r"Raspberry Pi (?:5|500\+?|Compute Module 5)(?: |$)"), 17.1e9),
    # LPDDR4-3200, 32 bit wide: 3200e6 transfers/s * 4 bytes.
    (re.compile(r"Raspberry Pi (?:4|400|Compute Module 4S?)(?: |$)"), 12.8e9),
)
"""Peak memory bandwidth by the board's name in the device tree. Source: the product briefs of Raspberry Pi Ltd."""

_IN_MAIN_MEMORY = frozenset({"llama.cpp", "ollama"})
"""Engines that keep the weights in the board's memory. The AI HAT+ 2 has memory of its own."""


EMULATION = "emulation"
"""How a note begins that says that the hardware is an emulation."""


def memory_bandwidth(board: str | None) -> float | None:
    """The peak memory bandwidth of a board in bytes/s, from its name (`/proc/device-tree/model`); None if unknown."""
    for pattern, bandwidth in _BANDWIDTHS:
        if board is not None and pattern.match(board):
            return bandwidth
    return None


def bound(record: Record) -> float | None:
    """The most tokens/s that one stream can be decoded with, or None where nothing is known to bound it.

    Each token reads all weights from memory once, so it is the memory's bandwidth / the model's bytes. It holds for a
    model split by layers over equal boards too: they work one after the other. It does not hold for a mixture of
    experts, which reads only some of its weights; records do not tell, so its records are flagged.
    """
    model = record["model"]
    if any(note.startswith(EMULATION) for note in record["conditions"]["notes"]):
        return None  # The board is one in name only.
    if record["kind"] not in ("llama_bench", "http_generate") or record["engine"]["name"] not in _IN_MAIN_MEMORY:
        return None
    bandwidth = memory_bandwidth(record["conditions"]["board"])
    if bandwidth is None or model is None or model["bytes"] is None:
        return None
    return bandwidth / model["bytes"]


def suspicions(record: Record) -> list[str]:
    """Why the record's figures cannot be true, one reason each."""
    limit = bound(record)
    metric = record["result"].get("decode")
    if limit is None or metric is None:
        return []
    decode = figure(metric)
    if decode.unit != "tok/s" or decode.mean <= limit:
        return []
    return [
        f"decode: {decode.mean:.1f} tok/s is more than the memory allows: "
        f"{limit:.1f} tok/s, its bandwidth / the model's bytes"
    ]
