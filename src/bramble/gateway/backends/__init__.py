"""Backend adapters: one module per kind of inference server, all with the interface `Backend`.

An adapter translates, and says what an error means; it keeps no state about health, slots or retries.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ..generation import Event, GenerationRequest


class BackendError(Exception):
    """An attempt failed. `reason` is the gateway's own sentence, for the operator's log and status.

    `detail` is what the server said about it, for the client only: it may quote the prompt or the answer.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or reason


class UnavailableError(BackendError):
    """The backend did not serve: refused, reset, cut off, loading. It is down until a probe says otherwise."""


class SilentError(UnavailableError):
    """It accepted the request, and then nothing came in time."""


class FailedError(BackendError):
    """The backend is alive and answered with an error of its own (5xx). The request may fare better elsewhere."""


class RejectedError(BackendError):
    """The backend refuses this very request (4xx); it would elsewhere too. Says nothing against the backend."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the server refused the request with {status}", detail)
        self.status = status


class Backend(Protocol):
    """What the gateway asks of an inference server. Every method raises BackendError, and nothing else, on failure."""

    def stream(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event]:
        """The answer: Deltas, none of them empty, then one Done. Closing the generator stops the generation at once."""
        ...

    async def check(self) -> None:
        """Returns when the server says that it is ready. Cheap; asked of idle backends."""
        ...

    async def prove(self, model: str) -> None:
        """Returns when the server has generated one token. Asked of a backend before it is trusted (again)."""
        ...
