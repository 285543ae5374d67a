"""Server-sent events, as far as inference servers use them: data lines and comments.

Format: WHATWG HTML, "Server-sent events", 9.2.6 Interpreting an event stream.
"""

from __future__ import annotations

from collections.abc import Iterator

# The Ollama Go client refuses longer lines; a token is a few bytes, so a longer one is not what we asked for.
MAX_LINE_BYTES = 8 * 1024 * 1024

DONE = b"[DONE]"


class Decoder:
    """Splits a byte stream into the payloads of its events; comments (pings) and other fields are dropped."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Payloads completed by `chunk`. Raises ValueError when a line exceeds MAX_LINE_BYTES."""
        self._buffer += chunk
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).removesuffix(b"\r")
            del self._buffer[: end + 1]
            if line:
                self._take(line)
            elif self._data:
                yield b"\n".join(self._data)
                self._data.clear()
        if len(self._buffer) > MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")

    def close(self) -> Iterator[bytes]:
        """What is left at the end. Some servers send `data: [DONE]` without the line ends."""
        self._take(bytes(self._buffer).removesuffix(b"\r"))
        self._buffer.clear()
        if self._data:
            yield b"\n".join(self._data)
            self._data.clear()

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))


def encode(payload: bytes) -> bytes:
    """One event. The payload has no line ends (JSON escapes them)."""
    return b"data: " + payload + b"\n\n"
