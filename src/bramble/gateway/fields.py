"""Typed access to a request body. null and absent are the same; a wrong type names the field and both types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from .errors import BadRequestError

_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def parse_object(body: bytes) -> Fields:
    """The body as an object. Raises BadRequestError."""
    if not body:
        raise BadRequestError("missing request body")
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the request body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadRequestError(f"the request body must be an object, not {_KINDS.get(type(data), 'null')}")
    return Fields(data)


class Fields:
    """An object of the body; `place` is its path, for messages."""

    def __init__(self, data: dict[str, Any], place: str = "") -> None:
        self._data = data
        self._place = place

    def at(self, key: str) -> str:
        """The path of a key."""
        return f"{self._place}.{key}" if self._place else key

    def value(self, key: str) -> Any:
        """The value as it is, or None."""
        return self._data.get(key)

    def wrong(self, key: str, wanted: str) -> BadRequestError:
        """The error for a value that is not `wanted`. The value itself is not repeated: it may be private."""
        return BadRequestError(f"{self.at(key)} must be {wanted}, not {_KINDS.get(type(self.value(key)), 'null')}")

    def text(self, key: str, default: str = "") -> str:
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "a boolean")
        return value

    def number(self, key: str) -> float | None:
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        return float(value)

    def integer(self, key: str) -> int | None:
        """As in Ollama, 40.0 is an integer, because many clients know only one kind of number."""
        value = self.number(key)
        return None if value is None else int(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, or one string."""
        value = self.value(key)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self.wrong(key, "a string or a list of strings")
        return tuple(value)

    def object(self, key: str) -> Fields | None:
        value = self.value(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, self.at(key))

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of a list; absent is empty."""
        value = self.value(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise self.wrong(key, "a list of objects")
        for index, item in enumerate(value):
            if not isinstance(item, dict):
                raise BadRequestError(f"{self.at(key)}[{index}] must be an object")
            yield Fields(item, f"{self.at(key)}[{index}]")

    def data(self) -> dict[str, Any]:
        """The object itself."""
        return self._data
