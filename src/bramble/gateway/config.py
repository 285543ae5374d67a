"""The gateway's configuration: one JSON file, checked as a whole, every problem named with its place.

The dataclasses below are the one place where keys, defaults and limits are written down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

BACKEND_KINDS = ("dllama_api", "llama_server")
CAPABILITIES = ("completion", "tools", "vision", "thinking")

Check = Callable[[Any], Any]
T = TypeVar("T")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` are sentences of the form `place: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _WrongValueError(Exception):
    """What a check has against a value; the reader adds the place."""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(*, empty: bool = False) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or (not value.strip() and not empty):
            raise _WrongValueError(f"must be a {'' if empty else 'non-empty '}string, not {_shown(value)}")
        return value

    return check


def _integer(low: int, high: int | None = None) -> Check:
    def check(value: Any) -> int:
        wanted = f"an integer from {low} to {high}" if high is not None else f"an integer of at least {low}"
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            raise _WrongValueError(f"must be {wanted}, not {_shown(value)}")
        return value

    return check


def _seconds(high: float) -> Check:
    def check(value: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= high:
            raise _WrongValueError(f"must be a number of seconds above 0 and at most {high:g}, not {_shown(value)}")
        return float(value)

    return check


def _one_of(words: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise _WrongValueError(f"must be one of {', '.join(words)}, not {_shown(value)}")
        return str(value)

    return check


def _words(words: tuple[str, ...]) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or any(word not in words for word in value):
            raise _WrongValueError(f"must be a list of some of {', '.join(words)}, not {_shown(value)}")
        return tuple(value)

    return check


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or (
        value != "" and (len(value) != 64 or any(digit not in "0123456789abcdef" for digit in value))
    ):
        raise _WrongValueError(f"must be 64 lower-case hexadecimal digits, not {_shown(value)}")
    return value


def _base_url(value: Any) -> str:
    wanted = "must be a base URL such as http://10.1.1.11:8080"
    if not isinstance(value, str):
        raise _WrongValueError(f"{wanted}, not {_shown(value)}")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise _WrongValueError(f"{wanted}, not {_shown(value)}: {error}") from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or extra or " " in value:
        raise _WrongValueError(f"{wanted}, not {_shown(value)}")
    return f"{parts.scheme}://{parts.netloc}"


def _key(check: Check, **options: Any) -> Any:
    return field(metadata={"check": check}, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the gateway listens."""

    host: str = _key(_text(), default="127.0.0.1")
    port: int = _key(_integer(1, 65535), default=11434)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A model that a backend has loaded. `context`: tokens one request may use. The rest is shown to clients.

    capabilities: what the model can really do, in Ollama's words; a request that needs another one is refused with 400.
    """

    name: str = _key(_text())
    context: int = _key(_integer(1))
    bytes: int = _key(_integer(0), default=0)
    sha256: str = _key(_sha256, default="")
    family: str = _key(_text(), default="llama")
    parameters: str = _key(_text(empty=True), default="")
    quantization: str = _key(_text(empty=True), default="")
    capabilities: tuple[str, ...] = _key(_words(CAPABILITIES), default=("completion", "tools"))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """An inference server. `slots`: requests that it may have at the same time; the others wait in the gateway."""

    name: str = _key(_text())
    kind: str = _key(_one_of(BACKEND_KINDS))
    url: str = _key(_base_url)
    slots: int = _key(_integer(1, 1024), default=1)
    models: tuple[ModelConfig, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """max_waiting: requests in the queue, more get 503 at once; max_wait_s: time one request may spend in it;
    max_attempts: backends tried before the first token."""

    max_waiting: int = _key(_integer(0), default=64)
    max_wait_s: float = _key(_seconds(3600), default=60.0)
    max_attempts: int = _key(_integer(1, 10), default=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits on silence, never on the whole: a long answer from a slow board is no error.

    first_token_s includes reading the prompt, which takes minutes on a Pi when the prompt is long.
    """

    connect_s: float = _key(_seconds(60), default=3.0)
    first_token_s: float = _key(_seconds(86400), default=300.0)
    between_tokens_s: float = _key(_seconds(3600), default=60.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """body_bytes: largest request body."""

    body_bytes: int = _key(_integer(1024), default=4 * 1024 * 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole file. Only `backends` has no default; without any, there are no models."""

    backends: tuple[BackendConfig, ...]
    listen: Listen = Listen()
    queue: QueueConfig = QueueConfig()
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()


class _Reader:
    """Fills the dataclasses from parsed JSON and collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def problem(self, place: str, what: str) -> None:
        self.problems.append(f"{place}: {what}")

    def read(self, kind: type[T], data: Any, place: str, **nested: Callable[[Any, str], Any]) -> T | None:
        """`data` as a `kind`; None when it has problems. `nested` reads the keys that are no plain values."""
        if not isinstance(data, dict):
            self.problem(place or "file", f"must be an object, not {_shown(data)}")
            return None
        before = len(self.problems)
        known = {spec.name: spec for spec in fields(kind)}  # type: ignore[arg-type]
        for key in data:
            if key not in known:
                self.problem(self._at(place, key), f"unknown key; known are {', '.join(known)}")
        values: dict[str, Any] = {}
        for key, spec in known.items():
            here = self._at(place, key)
            if key not in data:
                if spec.default is MISSING:
                    self.problem(here, "is required")
            elif key in nested:
                values[key] = nested[key](data[key], here)
            else:
                try:
                    values[key] = spec.metadata["check"](data[key])
                except _WrongValueError as error:
                    self.problem(here, str(error))
        return kind(**values) if len(self.problems) == before else None

    def read_list(
        self, data: Any, place: str, read: Callable[[Any, str], T | None], *, empty: bool = False
    ) -> tuple[T, ...]:
        """A list, which may be empty if `empty` says so."""
        if not isinstance(data, list) or not (data or empty):
            wanted = "a list" if empty else "a list with at least one entry"
            self.problem(place, f"must be {wanted}, not {_shown(data)}")
            return ()
        entries = [(f"{place}[{index}]", read(entry, f"{place}[{index}]")) for index, entry in enumerate(data)]
        return tuple(entry for _, entry in entries if entry is not None)

    @staticmethod
    def _at(place: str, key: str) -> str:
        return f"{place}.{key}" if place else key

    def model(self, data: Any, place: str) -> ModelConfig | None:
        return self.read(ModelConfig, data, place)

    def backend(self, data: Any, place: str) -> BackendConfig | None:
        return self.read(BackendConfig, data, place, models=lambda value, here: self.read_list(value, here, self.model))

    def config(self, data: Any) -> Config | None:
        return self.read(
            Config,
            data,
            "",
            backends=lambda value, here: self.read_list(value, here, self.backend, empty=True),
            listen=lambda value, here: self.read(Listen, value, here),
            queue=lambda value, here: self.read(QueueConfig, value, here),
            timeouts=lambda value, here: self.read(Timeouts, value, here),
            limits=lambda value, here: self.read(Limits, value, here),
        )


def canonical_name(name: str) -> str:
    """The name by which models are compared. As in Ollama, "x" and "x:latest" are one model, and case is ignored."""
    return name.casefold().removesuffix(":latest")


def _contradictions(config: Config) -> Iterator[str]:
    """Problems between entries that are fine each by itself."""
    names: dict[str, int] = {}
    urls: dict[str, int] = {}
    digests: dict[str, tuple[str, str]] = {}
    for index, backend in enumerate(config.backends):
        place = f"backends[{index}]"
        for key, value, seen in (("name", backend.name, names), ("url", backend.url, urls)):
            if value in seen:
                yield f"{place}.{key}: {_shown(value)} is already that of backends[{seen[value]}]"
            seen.setdefault(value, index)
        models: dict[str, int] = {}
        for number, model in enumerate(backend.models):
            here, name = f"{place}.models[{number}]", canonical_name(model.name)
            if name in models:
                yield f"{here}.name: {_shown(model.name)} is already that of {place}.models[{models[name]}]"
            models.setdefault(name, number)
            if model.sha256:
                digest, first = digests.setdefault(name, (model.sha256, here))
                if digest != model.sha256:
                    yield f"{here}.sha256: differs from that of {first}, which has the same model name"


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError([f"file: the key {_shown(key)} stands twice in one object"])
        result[key] = value
    return result


def parse_config(text: str | bytes) -> Config:
    """Raises ConfigError with all problems of the file."""
    try:
        data = json.loads(text, object_pairs_hook=_refuse_duplicate_keys)
    except json.JSONDecodeError as error:
        raise ConfigError([f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"]) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError([f"file: not JSON: {error}"]) from None
    reader = _Reader()
    config = reader.config(data)
    problems = reader.problems or (list(_contradictions(config)) if config else [])
    if problems or config is None:
        raise ConfigError(problems)
    return config


def load_config(path: Path) -> Config:
    """Raises ConfigError, also when the file cannot be read."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"file: cannot be read: {error.strerror}"]) from None
    return parse_config(text)
