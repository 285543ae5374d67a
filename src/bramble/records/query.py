"""Which records measure the same thing, and which of them are wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from bramble.records.schema import Record


class Series(NamedTuple):
    """What a record measures. Records of one series differ in when, and in what the node and the build were like.

    `params` in canonical JSON. The order of the fields is that in which series are listed.
    """

    host: str
    kind: str
    engine: str
    model: str
    params: str


def series(record: Record) -> Series:
    """The series that a record belongs to. A record without a model has an empty one."""
    model = record["model"]
    params = {name: _same_number(value) for name, value in record["params"].items()}
    return Series(
        str(record["host"]),
        str(record["kind"]),
        str(record["engine"]["name"]),
        str(model["name"]) if model else "",
        json.dumps(params, sort_keys=True),
    )


def _same_number(value: Any) -> Any:
    """10.0 as 10: the same parameter, however the module wrote it."""
    if isinstance(value, list):
        return [_same_number(item) for item in value]
    if isinstance(value, dict):
        return {key: _same_number(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def latest(records: Iterable[Record]) -> list[Record]:
    """The newest record of each series, suspect or not, in the order of the series. Of two that began in the same
    second, the one that comes later."""
    return _one_each(records, lambda kept, new: new["started_at"] >= kept["started_at"])


def first(records: Iterable[Record]) -> list[Record]:
    """The oldest record of each series, in the order of the series."""
    return _one_each(records, lambda kept, new: new["started_at"] < kept["started_at"])


def _one_each(records: Iterable[Record], better: Callable[[Record, Record], bool]) -> list[Record]:
    kept: dict[Series, Record] = {}
    for record in records:
        key = series(record)
        if key not in kept or better(kept[key], record):
            kept[key] = record
    return [kept[key] for key in sorted(kept)]


def until(records: Iterable[Record], time: str) -> list[Record]:
    """The records that began at `time` (UTC, as in `started_at`) or before."""
    return [record for record in records if record["started_at"] <= time]


def history(records: Iterable[Record], *, host: str | None = None, kind: str | None = None) -> list[Record]:
    """The records in the order in which they were measured; of one host or kind only, if that is given."""
    wanted = [record for record in records if host in (None, record["host"]) and kind in (None, record["kind"])]
    return sorted(wanted, key=lambda record: (record["started_at"], series(record)))


def has_record(
    measured: Sequence[Mapping[str, Any]] | None,
    kind: str,
    engine: Mapping[str, Any] | str,
    model: Mapping[str, Any] | str | None = None,
    params: Mapping[str, Any] | None = None,
) -> bool:
    """Whether a host's variable `measured` has a record of this kind, engine, model and params.

    Of `engine`, `model` and `params`, what is given is compared: `{"name": "llama.cpp", "build_key": key}` takes no
    notice of the commit. A text is a name. Without `model`, any model will do.
    """

    def agrees(told: Any, wanted: Any) -> bool:
        wanted = {"name": wanted} if isinstance(wanted, str) else wanted
        if not wanted:
            return True
        return isinstance(told, Mapping) and all(key in told and told[key] == wanted[key] for key in wanted)

    return any(
        record["kind"] == kind
        and agrees(record["engine"], engine)
        and agrees(record["model"], model)
        and agrees(record["params"], params)
        for record in measured or ()
    )
