"""Errors that a client sees. Each API puts them into its own shape."""

from __future__ import annotations


class GatewayError(Exception):
    """A request ends here, with an HTTP status and one sentence for the client.

    `logged` is what the log says, when the message has words of a backend: those may quote a prompt or an answer.
    `retry_after_s` becomes the Retry-After header. The openai client ignores values above 60, so none is larger.
    """

    def __init__(
        self, status: int, message: str, *, logged: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.logged = message if logged is None else logged
        self.retry_after_s = retry_after_s


class BadRequestError(GatewayError):
    """The request body is not what the API asks for."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class ModelNotFoundError(GatewayError):
    """No backend has the model. The `ollama` command pulls on 404, so nothing else about models answers 404."""

    def __init__(self, name: str) -> None:
        super().__init__(404, f"model '{name}' not found")


class OverloadedError(GatewayError):
    """The queue is full, or the wait was too long."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(503, message, retry_after_s=max(1, min(60, round(retry_after_s))))


class ShuttingDownError(GatewayError):
    """The gateway was told to stop."""

    def __init__(self) -> None:
        super().__init__(503, "the gateway is shutting down", retry_after_s=5)
