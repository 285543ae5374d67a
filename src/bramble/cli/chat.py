"""Asks the gateway: ``POST /api/chat`` of Ollama's interface, streamed."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

# A cold model is loaded, and a long prompt read, before the first token: on a Pi that is minutes.
TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class ChatError(Exception):
    """There is no answer, or no whole one. The message says why, in one line.

    ``by_nodes``: the cause may lie with the nodes, so a look at them may tell more.
    """

    def __init__(self, message: str, *, by_nodes: bool = False) -> None:
        super().__init__(message)
        self.by_nodes = by_nodes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its speed, in tokens per second. None where the gateway did not measure."""

    model: str
    text: str
    tokens: int
    tokens_per_second: float | None
    prompt_tokens_per_second: float | None


def open_client(transport: httpx.BaseTransport | None = None) -> httpx.Client:
    # No proxy from the environment: the gateway is on this network.
    return httpx.Client(timeout=TIMEOUT, trust_env=False, transport=transport)


def choose_model(client: httpx.Client, url: str) -> str:
    """The first model that the gateway offers.

    Raises:
        ChatError: it does not answer, or offers none.
    """
    try:
        response = client.get(f"{url}/api/tags")
    except httpx.HTTPError as error:
        raise _no_answer(url, error) from error
    if response.is_error:
        raise ChatError(_refusal(url, response))
    try:
        models = response.json()["models"]
        return str(models[0]["name"])
    except IndexError:
        raise ChatError(f"The gateway {url} offers no model yet.", by_nodes=True) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ChatError(f"{url}/api/tags does not answer as a gateway does. Is the URL right?") from error


def ask(
    client: httpx.Client,
    url: str,
    model: str,
    prompt: str,
    *,
    write: Callable[[str], None],
    max_tokens: int | None = None,
) -> Answer:
    """Ask one question; ``write`` gets the answer piece by piece, without control characters.

    Raises:
        ChatError: the gateway cannot be reached, refuses, reports an error, or stops before the end.
    """
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "stream": True}
    if max_tokens is not None:
        body["options"] = {"num_predict": max_tokens}
    text: list[str] = []
    try:
        with client.stream("POST", f"{url}/api/chat", json=body) as response:
            if response.is_error:
                response.read()
                raise ChatError(_refusal(url, response))
            for line in response.iter_lines():
                if not line.strip():
                    continue
                chunk = _chunk(line, url)
                if "error" in chunk:
                    raise ChatError(f"The gateway {url} reports: {_one_line(chunk['error'])}")
                piece = printable(str((chunk.get("message") or {}).get("content") or ""))
                text.append(piece)
                write(piece)
                if chunk.get("done"):
                    return Answer(
                        model=str(chunk.get("model") or model),
                        text="".join(text),
                        tokens=int(chunk.get("eval_count") or 0),
                        tokens_per_second=rate(chunk.get("eval_count"), chunk.get("eval_duration")),
                        prompt_tokens_per_second=rate(
                            chunk.get("prompt_eval_count"), chunk.get("prompt_eval_duration")
                        ),
                    )
    except httpx.HTTPError as error:
        raise (_broken_off(url, error) if text else _no_answer(url, error)) from error
    raise ChatError(f"The answer of {url} broke off before its end.", by_nodes=True)


def rate(count: object, nanoseconds: object) -> float | None:
    """Tokens per second, from Ollama's count and duration in nanoseconds."""
    if not isinstance(count, int | float) or not isinstance(nanoseconds, int | float) or nanoseconds <= 0:
        return None
    return count * 1e9 / nanoseconds


def printable(text: str) -> str:
    """``text`` without control characters other than newline and tab: a model must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def _chunk(line: str, url: str) -> dict[str, Any]:
    try:
        chunk = json.loads(line)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise ChatError(f"{url}/api/chat does not answer as a gateway does: {_one_line(line)}")
    return chunk


def _refusal(url: str, response: httpx.Response) -> str:
    try:
        answer = response.json()
        reason = answer["error"]
        if isinstance(reason, dict):
            reason = reason.get("message", reason)
    except (ValueError, KeyError, TypeError):
        reason = response.reason_phrase
    return f"The gateway {url} refuses (HTTP status {response.status_code}): {_one_line(reason)}"


def _no_answer(url: str, error: Exception) -> ChatError:
    if isinstance(error, httpx.UnsupportedProtocol | httpx.InvalidURL):
        return ChatError(f"{url} is no URL of a gateway: {error}")
    why = _one_line(error) or type(error).__name__
    return ChatError(f"The gateway {url} does not answer ({why}).", by_nodes=True)


def _broken_off(url: str, error: Exception) -> ChatError:
    why = _one_line(error) or type(error).__name__
    return ChatError(f"The answer of {url} broke off ({why}).", by_nodes=True)


def _one_line(value: object, width: int = 300) -> str:
    text = " ".join(printable(str(value)).split())
    return text if len(text) <= width else text[: width - 1] + "…"
