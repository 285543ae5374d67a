"""Benchmark records to test with: one that is valid, changes to it, and any."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

from bramble.records import KINDS, PARAMS
from bramble.records.schema import LARGEST, SMALLEST

PARTIAL: dict[str, Any] = {
    "started_at": "2026-11-21T12:00:00Z",
    "kind": "llama_bench",
    "engine": {"name": "llama.cpp", "commit": "0fcb3760b2b9", "build_key": "0fcb3760b2b9-1a2b3c4d", "version": None},
    "model": {"name": "qwen2.5-3b-instruct-q4_k_m", "sha256": "a" * 64, "quant": "Q4_K_M", "bytes": 2_104_932_768},
    "params": {"threads": 4, "n_prompt": 512, "n_gen": 128, "depth": 0, "repetitions": 5},
    "result": {
        "prefill": {"mean": 21.5, "sd": 0.2, "n": 5, "unit": "tok/s"},
        "decode": {"mean": 5.5, "sd": 0.05, "n": 5, "unit": "tok/s", "p50": 5.5, "p95": 5.56, "min": 5.44, "max": 5.57},
    },
    "conditions": {
        "temp_c": {"before": 48.2, "after": 67.1, "max": 68.0},
        "throttled": {"before": "0x0", "after": "0x50000"},
        "governor": "performance",
        "kernel": "6.12.47+rpt-rpi-2712",
        "bootloader": "2025-05-08",
        "board": "Raspberry Pi 5 Model B Rev 1.0",
        "power_w": None,
        "power_source": None,
        "notes": [],
    },
    "duration_s": 143.2,
}


def partial(**changes: Any) -> dict[str, Any]:
    """The valid partial record with changes. A name with two underscores is a path: `params__depth=4096`."""
    made = copy.deepcopy(PARTIAL)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made
        for parent in parents:
            place = place[parent]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return made


_SIZES = st.just(0.0) | st.floats(SMALLEST, LARGEST)
_NUMBERS = st.integers(-(2**53), 2**53) | _SIZES | _SIZES.map(lambda size: -size)
_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXTS, inner, max_size=2))


def _objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields)


_COUNTS = st.integers(1, 2**53)
_METRICS = _objects(unit=_TEXTS, value=_NUMBERS) | _objects(
    unit=_TEXTS, mean=_NUMBERS, sd=st.none() | _SIZES, n=_COUNTS
)
_BITS = st.none() | st.integers(0, 2**20).map(hex)


def _of_kind(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    told = st.fixed_dictionaries(dict.fromkeys(PARAMS[kind], _VALUES))
    return _objects(
        started_at=st.datetimes().map(lambda time: time.replace(microsecond=0).isoformat() + "Z"),
        kind=st.just(kind),
        engine=_objects(
            name=_TEXTS, commit=st.none() | _TEXTS, build_key=st.none() | _TEXTS, version=st.none() | _TEXTS
        ),
        model=st.none()
        | _objects(
            name=_TEXTS, sha256=st.none() | st.just("b" * 64), quant=st.none() | _TEXTS, bytes=st.none() | _COUNTS
        ),
        params=st.builds(lambda more, needed: more | needed, st.dictionaries(_TEXTS, _VALUES, max_size=2), told),
        result=st.dictionaries(_TEXTS, _METRICS, min_size=1, max_size=3),
        conditions=_objects(
            temp_c=_objects(before=st.none() | _NUMBERS, after=st.none() | _NUMBERS),
            throttled=_objects(before=_BITS, after=_BITS),
            governor=st.none() | _TEXTS,
            kernel=st.none() | _TEXTS,
            bootloader=st.none() | _TEXTS,
            board=st.none() | _TEXTS | st.just("Raspberry Pi 5 Model B Rev 1.0"),
            power_w=st.none() | _NUMBERS,
            power_source=st.sampled_from([None, "pmic", "meter"]),
            notes=st.lists(_TEXTS, max_size=2),
        ),
        duration_s=_SIZES,
    )


partials = st.sampled_from(KINDS).flatmap(_of_kind)
"""Any valid partial record."""
