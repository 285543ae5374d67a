"""What the adapters of servers that stream events over HTTP share: events, and what an error means."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import aiohttp
import orjson

from .. import sse
from ..generation import Json
from . import FailedError, RejectedError, UnavailableError

# Seconds that /health may take. It needs no slot, but a Pi that computes on all cores answers late.
CHECK_S = 5.0
# Largest error body that is read.
ERROR_BYTES = 64 * 1024
# An error with one of these is about the request, whether as HTTP status or as `code` of an error event.
REJECTED = frozenset({400, 413, 422, 501})


def raise_error(error: Any) -> None:
    """Raises what an error object means; `error` is the value of the key "error"."""
    details = error if isinstance(error, dict) else {"message": str(error)}
    message = str(details.get("message") or "the server gave no reason")
    code = details.get("code")
    if code in REJECTED:
        raise RejectedError(int(code), message)
    if code in (429, 503):
        raise UnavailableError("the server is not ready", message)
    raise FailedError(f"the server answered with error {code if isinstance(code, int) else 'of unknown kind'}", message)


def payload(data: bytes) -> Json:
    """The object in an event. Raises BackendError when it is none, and what it means when it is an error."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise FailedError("the server sent an event that is not JSON") from None
    if not isinstance(chunk, dict):
        raise FailedError("the server sent an event that is not an object")
    if "error" in chunk:
        raise_error(chunk["error"])
    return chunk


async def chunks(http: aiohttp.ClientSession, url: str, body: Json) -> AsyncGenerator[Json]:
    """The objects of the events that answer a POST, up to their end or [DONE]. Closing it ends the connection, which is
    what makes a server stop generating."""
    response = await http.post(
        url,
        data=orjson.dumps(body),
        headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
        allow_redirects=False,
    )
    try:
        await refuse_error(response)
        decoder = sse.Decoder()
        async for part in response.content.iter_any():
            for data in decoder.feed(part):
                if data == sse.DONE:
                    return
                yield payload(data)
        for data in decoder.close():
            if data != sse.DONE:
                yield payload(data)
    finally:
        response.close()


async def health(http: aiohttp.ClientSession, url: str) -> None:
    """Returns when the server at the base URL says that it is ready."""
    with transport_errors():
        async with asyncio.timeout(CHECK_S), http.get(url + "/health", allow_redirects=False) as response:
            await refuse_error(response)


@contextlib.contextmanager
def transport_errors() -> Iterator[None]:
    """Errors of the connection become UnavailableError."""
    try:
        yield
    except aiohttp.ServerDisconnectedError:
        raise UnavailableError("the server closed the connection without an answer") from None
    except aiohttp.ClientConnectorError as error:
        number = error.os_error.errno
        raise UnavailableError(f"cannot connect: {os.strerror(number) if number else error.os_error}") from None
    except aiohttp.ClientPayloadError:
        raise UnavailableError("the server closed the connection in the middle of its answer") from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise UnavailableError(f"connection failed: {str(error) or type(error).__name__}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise FailedError("the server's answer does not have the expected form", str(error)) from None


async def refuse_error(response: aiohttp.ClientResponse) -> None:
    """Raises what a status other than 200 means."""
    if response.status == 200:
        return
    text = await response.content.read(ERROR_BYTES)
    message = f"status {response.status}"
    with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
        error = orjson.loads(text).get("error")
        message = str(error.get("message") if isinstance(error, dict) else error or message)
    raise_error({"code": response.status, "message": message})
