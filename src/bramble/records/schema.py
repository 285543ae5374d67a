"""What a benchmark record is, and what makes one valid.

A record is a plain JSON object, the same in the file, as a host's variable and here: a `TypedDict`, checked by
`defects`. It is one measurement of one thing, appended to `measured/<host>.jsonl` and never edited.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast, get_args

SCHEMA = 1

SMALLEST, LARGEST = 1e-12, 1e18
"""Between these lies the size of each figure that is not 0, so that none becomes infinite in a quotient."""

type Kind = Literal["llama_bench", "http_generate", "net_pair", "quality", "perplexity", "memory", "token_time"]

KINDS: tuple[str, ...] = get_args(Kind.__value__)

PARAMS: Mapping[str, tuple[str, ...]] = {
    "llama_bench": ("threads", "n_prompt", "n_gen", "depth", "repetitions"),
    "http_generate": ("api", "prompt_tokens", "max_tokens", "concurrency", "requests"),
    "net_pair": ("peer", "peer_address", "seconds"),
    "quality": ("exam", "items", "api"),
    "perplexity": ("corpus", "context", "chunks"),
    "memory": (),
    "token_time": ("strategy", "placement", "nodes", "layers", "logits", "link", "n_prompt", "n_gen", "repetitions"),
}
"""The parameters that each kind must tell. It may tell more."""


class Engine(TypedDict):
    """What ran. `build_key`: the directory of the build; `commit`: of its source."""

    name: str
    commit: str | None
    build_key: str | None
    version: str | None


class Model(TypedDict):
    """Which model file. `bytes`: its size, which is what a token reads of the memory."""

    name: str
    sha256: str | None
    quant: str | None
    bytes: int | None


class Metric(TypedDict):
    """A figure and its unit: either `value`, or `mean` with `sd` (sample standard deviation, null if n is 1) and `n`.

    A `value` may have an `n` too: the number of exam items behind a share. `low` and `high`: its 95 % interval.
    """

    unit: str
    value: NotRequired[float]
    mean: NotRequired[float]
    sd: NotRequired[float | None]
    n: NotRequired[int]
    p50: NotRequired[float]
    p95: NotRequired[float]
    min: NotRequired[float]
    max: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]


class Temperature(TypedDict):
    """Of the processor, in °C."""

    before: float | None
    after: float | None
    max: NotRequired[float | None]


class Throttled(TypedDict):
    """The firmware's bits as `vcgencmd get_throttled` prints them, such as `0x50000`."""

    before: str | None
    after: str | None


class Conditions(TypedDict):
    """What the node was like meanwhile. What is not known is null."""

    temp_c: Temperature
    throttled: Throttled
    governor: str | None
    kernel: str | None
    bootloader: str | None
    board: str | None
    power_w: float | None
    power_source: Literal["pmic", "meter"] | None
    notes: list[str]


class Partial(TypedDict):
    """What a module that measures returns: a record without what only the controller knows."""

    started_at: str
    kind: Kind
    engine: Engine
    model: Model | None
    params: dict[str, Any]
    result: dict[str, Metric]
    conditions: Conditions
    duration_s: float


class Record(Partial):
    """One measurement. `raw`: the path of the kept output, relative to `measured/`; `suspect`: why not to trust it."""

    schema: int
    id: str
    host: str
    raw: str | None
    suspect: NotRequired[list[str]]


class RecordError(ValueError):
    """A record is not valid. The message names each field that is wrong."""


class Figure(NamedTuple):
    """A metric's central value with its spread, where that is known."""

    mean: float
    sd: float | None
    n: int | None
    unit: str


def figure(metric: Metric) -> Figure:
    """`mean` or `value` of a metric, with what is known of its spread."""
    central = metric["mean"] if "mean" in metric else metric["value"]
    return Figure(float(central), metric.get("sd"), metric.get("n"), metric["unit"])


# --- Identity


def canonical(value: Mapping[str, Any]) -> str:
    """The one way to write a JSON object: keys sorted, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def identify(record: Mapping[str, Any]) -> str:
    """A record's id: the first 16 hex digits of the SHA-256 over the canonical form of what was measured.

    Not part of that: `id` itself, `raw`, whose path holds the id, and `suspect`, which follows from the rest.
    """
    measured = {key: value for key, value in record.items() if key not in ("id", "raw", "suspect")}
    return hashlib.sha256(canonical(measured).encode("ascii")).hexdigest()[:16]


# --- Validation

_PARTIAL = ("started_at", "kind", "engine", "model", "params", "result", "conditions", "duration_s")
_WHOLE = ("schema", "id", "host", *_PARTIAL, "raw")
_CONDITIONS = ("temp_c", "throttled", "governor", "kernel", "bootloader", "board", "power_w", "power_source", "notes")

_ID = re.compile(r"[0-9a-f]{16}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# It becomes the name of a file and of a directory.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_BITS = re.compile(r"0x[0-9a-f]+")


def defects(value: object) -> list[str]:
    """What is wrong with a whole record, each with the field's name; nothing if it is valid."""
    return list(_record(value, _WHOLE))


def partial_defects(value: object) -> list[str]:
    """What is wrong with what a module that measures returned, each with the field's name; nothing if it is valid."""
    return list(_record(value, _PARTIAL))


def check(value: object) -> Record:
    """`value` as a record.

    Raises:
        RecordError: it is none.
    """
    found = defects(value)
    if found:
        raise RecordError("; ".join(found))
    return cast(Record, value)


def check_host(host: object) -> str:
    """`host` as a name of which a file can be made.

    Raises:
        RecordError: it is none.
    """
    if not isinstance(host, str) or not _HOST.fullmatch(host):
        raise RecordError(f"host: {host!r} is no name of a host: letters, digits, dots, hyphens and underscores")
    return host


def _record(value: object, keys: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"is {_shown(value)}, not an object"
        return
    known = {*keys, "suspect"} if keys is _WHOLE else {*keys}
    for key in value:
        if key not in known:
            kind = "a record" if keys is _WHOLE else "a partial record, as a measuring module returns it"
            yield f"{_name(key)}: is not a field of {kind}"
    missing = [key for key in keys if key not in value]
    yield from (f"{key}: is missing" for key in missing)
    for key in keys:
        if key in value:
            yield from _FIELDS[key](key, value[key])
    yield from _suspect(value)
    if not missing and value["kind"] in KINDS and isinstance(value["params"], dict):
        for name in PARAMS[value["kind"]]:
            if name not in value["params"]:
                yield f"params.{name}: is missing; a record of the kind {value['kind']} tells it"


def _suspect(value: Mapping[str, Any]) -> Iterator[str]:
    if "suspect" in value:
        yield from _texts("suspect", value["suspect"])


def _schema(path: str, value: object) -> Iterator[str]:
    if not _whole(value) or value != SCHEMA:
        yield f"{path}: is {_shown(value)}; this version of Bramble reads schema {SCHEMA}"


def _id(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        yield f"{path}: is {_shown(value)}, not 16 hex digits"


def _host(_path: str, value: object) -> Iterator[str]:
    try:
        check_host(value)
    except RecordError as error:
        yield str(error)


def _time(path: str, value: object) -> Iterator[str]:
    wrong = f"{path}: is {_shown(value)}, not a time in UTC such as 2026-11-21T12:00:00Z"
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        yield wrong
        return
    try:
        datetime.fromisoformat(value)
    except ValueError:
        yield wrong


def _kind(path: str, value: object) -> Iterator[str]:
    if value not in KINDS:
        yield f"{path}: is {_shown(value)}, not one of {', '.join(KINDS)}"


def _engine(path: str, value: object) -> Iterator[str]:
    optional = dict.fromkeys(("commit", "build_key", "version"), _text_or_null)
    yield from _object(path, value, {"name": _text, **optional})


def _model(path: str, value: object) -> Iterator[str]:
    if value is not None:
        fields = {"name": _text, "sha256": _sha256, "quant": _text_or_null, "bytes": _bytes}
        yield from _object(path, value, fields)


def _sha256(path: str, value: object) -> Iterator[str]:
    if value is not None and not (isinstance(value, str) and _SHA256.fullmatch(value)):
        yield f"{path}: is {_shown(value)}, not 64 hex digits or null"


def _bytes(path: str, value: object) -> Iterator[str]:
    if value is not None and not (_whole(value) and cast(int, value) > 0):
        yield f"{path}: is {_shown(value)}, not a whole number above 0 or null"


def _params(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: is {_shown(value)}, not an object"
        return
    yield from _plain(path, value)


def _result(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict) or not value:
        yield f"{path}: is {_shown(value)}, not an object with at least one metric"
        return
    for name, item in value.items():
        place = f"{path}.{_name(name)}"
        yield from _text(f"the name {place}", name)
        yield from _metric(place, item)


_DEPTH = 8
_METRIC = frozenset({"unit", "value", "mean", "sd", "n", "p50", "p95", "min", "max", "low", "high"})


def _metric(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: is {_shown(value)}, not an object"
        return
    yield from _more(path, value, _METRIC)
    if "unit" in value:
        yield from _text(f"{path}.unit", value["unit"])
    else:
        yield f"{path}.unit: is missing"
    if ("value" in value) == ("mean" in value):
        yield f"{path}: has {'both' if 'value' in value else 'neither'} value and mean; it tells one of them"
    for key in ("value", "mean", "p50", "p95", "min", "max", "low", "high"):
        if key in value and not _is_number(value[key]):
            yield from _number(f"{path}.{key}", value[key])
    if "mean" in value:
        yield from (f"{path}.{key}: is missing, and there is a mean" for key in ("sd", "n") if key not in value)
    if "n" in value and not (_whole(value["n"]) and value["n"] > 0):
        yield f"{path}.n: is {_shown(value['n'])}, not a whole number above 0"
    if value.get("sd") is not None:
        yield from _duration(f"{path}.sd", value["sd"])


def _conditions(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: is {_shown(value)}, not an object"
        return
    yield from _more(path, value, _CONDITIONS)
    for key in _CONDITIONS:
        if key not in value:
            yield f"{path}.{key}: is missing; what is not known is null"
    for key in ("governor", "kernel", "bootloader", "board"):
        yield from _text_or_null(f"{path}.{key}", value.get(key))
    if "temp_c" in value:
        number = {"before": _number_or_null, "after": _number_or_null}
        yield from _object(f"{path}.temp_c", value["temp_c"], number)
    if "throttled" in value:
        bits = {"before": _throttled, "after": _throttled}
        yield from _object(f"{path}.throttled", value["throttled"], bits)
    if value.get("power_w") is not None:
        yield from _number(f"{path}.power_w", value["power_w"])
    if value.get("power_source") not in ("pmic", "meter", None):
        yield f"{path}.power_source: is {_shown(value['power_source'])}, not pmic, meter or null"
    if "notes" in value:
        yield from _texts(f"{path}.notes", value["notes"])


def _throttled(path: str, value: object) -> Iterator[str]:
    if value is not None and not (isinstance(value, str) and _BITS.fullmatch(value)):
        yield f"{path}: is {_shown(value)}, not bits such as 0x50000 or null"


def _duration(path: str, value: object) -> Iterator[str]:
    wrong = list(_number(path, value))
    yield from wrong
    if not wrong and cast(float, value) < 0:
        yield f"{path}: is {_shown(value)}, below 0"


def _raw(path: str, value: object) -> Iterator[str]:
    yield from _text_or_null(path, value)
    if isinstance(value, str) and (value.startswith("/") or ".." in value.split("/")):
        yield f"{path}: is {_shown(value)}, which is not below measured/"


_FIELDS = {
    "schema": _schema,
    "id": _id,
    "host": _host,
    "started_at": _time,
    "kind": _kind,
    "engine": _engine,
    "model": _model,
    "params": _params,
    "result": _result,
    "conditions": _conditions,
    "duration_s": _duration,
    "raw": _raw,
}


def _object(path: str, value: object, fields: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: is {_shown(value)}, not an object"
        return
    yield from _more(path, value, fields)
    for key, defects_of in fields.items():
        if key in value:
            yield from defects_of(f"{path}.{key}", value[key])
        else:
            yield f"{path}.{key}: is missing; what is not known is null"


def _more(path: str, value: Mapping[Any, object], known: Iterable[object]) -> Iterator[str]:
    """A module may tell more than a record must: a measurement that took minutes is not thrown away for that."""
    more = value.keys() - known
    if more:
        yield from _plain(path, {key: item for key, item in value.items() if key in more})


def _number(path: str, value: object) -> Iterator[str]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        yield f"{path}: is {_shown(value)}, not a number"
    elif not _is_number(value):
        yield f"{path}: is not 0 and not between {SMALLEST:g} and {LARGEST:g}: nothing that is measured here is"


def _is_number(value: object) -> bool:
    try:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (value == 0 or SMALLEST <= abs(float(value)) <= LARGEST)
        )
    except OverflowError:
        return False


def _whole(value: object) -> bool:
    # Beyond 2^53 not every reader of JSON keeps a whole number as it is.
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53


def _number_or_null(path: str, value: object) -> Iterator[str]:
    if value is not None:
        yield from _number(path, value)


def _text(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, str) or not value:
        yield f"{path}: is {_shown(value)}, not a text"
    elif not _writable(value):
        yield f"{path}: holds half of a character (a lone surrogate)"


def _text_or_null(path: str, value: object) -> Iterator[str]:
    if value is not None:
        yield from _text(path, value)


def _texts(path: str, value: object) -> Iterator[str]:
    if not isinstance(value, list):
        yield f"{path}: is {_shown(value)}, not a list of texts"
        return
    for number, item in enumerate(value):
        yield from _text(f"{path}[{number}]", item)


def _is_usual(value: object) -> bool:
    """Whether the value is seen at a glance to be fine. Thousands of records are read at the start of each run."""
    if isinstance(value, str):
        return value.isascii()
    return value is None or (isinstance(value, int | float) and -1e15 < value < 1e15)


def _plain(path: str, value: object, depth: int = 0) -> Iterator[str]:
    """Text, number, truth value, null; lists and objects of those."""
    if depth > _DEPTH:
        yield f"{path}: is nested more than {_DEPTH} deep"
    elif isinstance(value, dict):
        for key, item in value.items():
            if not (isinstance(key, str) and key and _is_usual(key)):
                yield from _text(f"the name {path}.{_name(key)}", key)
            if not _is_usual(item):
                yield from _plain(f"{path}.{_name(key)}", item, depth + 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            if not _is_usual(item):
                yield from _plain(f"{path}[{number}]", item, depth + 1)
    elif isinstance(value, str):
        if not _writable(value):
            yield f"{path}: holds half of a character (a lone surrogate)"
    elif value is not None and not isinstance(value, bool):
        yield from _number(path, value)


def _writable(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON can escape half a character, which no file can hold."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _name(key: object) -> str:
    """A field's name in a message, whatever it is."""
    return str(key) if isinstance(key, str) and len(key) <= 60 and key.isidentifier() else _shown(key)


def _shown(value: object) -> str:
    """A value in a message: short, on one line, whatever it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
