"""An emulation of llama-server: the routes and fields that the gateway uses, with faults on demand.

Fields as in tools/server/server-task.cpp of llama.cpp 0c1e57098. It generates a fixed text, one token a chunk, and has
what the real one has not: a count of everything that a test may want to know.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

PING = b":\n\n"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a request. `after`: tokens that are sent before."""

    kind: str
    after: int = 0


REFUSED_BY_LOADING = Fault("loading")
EMPTY_REPLY = Fault("empty_reply")
SERVER_ERROR = Fault("server_error")
BAD_REQUEST = Fault("bad_request")
GARBAGE = Fault("garbage")
NO_END = Fault("no_end")


def cut(after: int) -> Fault:
    """The connection is reset after so many tokens; 0: after the headers."""
    return Fault("cut", after)


def hang(after: int) -> Fault:
    """Only pings come after so many tokens."""
    return Fault("hang", after)


def error_event(after: int) -> Fault:
    """An error object comes after so many tokens, as llama-server sends it in a stream."""
    return Fault("error_event", after)


@dataclass(slots=True)
class FakeLlamaServer:
    """faults    used up, one by each generation that is no probe
    always       a fault of every generation, probes included
    loading      every route answers 503, as while a model is loaded
    """

    tokens: list[str] = field(default_factory=lambda: ["Hello", ",", " wor", "ld"])
    reasoning: list[str] = field(default_factory=list)
    tool_call: tuple[str, list[str]] | None = None
    finish_reason: str = "stop"
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    loading: bool = False
    port: int = 0

    bodies: list[dict[str, Any]] = field(default_factory=list)
    probes: int = 0
    health_checks: int = 0
    running: int = 0
    most_running: int = 0
    completed: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    closed_by_client: int = 0
    _runner: web.AppRunner | None = None
    _release: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listens; the second time on the same port, like a service that systemd has restarted."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/completion", self._completion)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuses connections from now on, and resets those that are open."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def release(self) -> None:
        """Lets everything that hangs go on."""
        self._release.set()

    async def until(self, condition: Any) -> None:
        """Waits until condition() is true of this server."""
        async with self.changed:
            await self.changed.wait_for(condition)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    # Routes.

    def _not_ready(self) -> web.Response | None:
        if not self.loading:
            return None
        return self._error(503, "Loading model", "unavailable_error")

    @staticmethod
    def _error(code: int, message: str, kind: str) -> web.Response:
        return web.json_response({"error": {"code": code, "message": message, "type": kind}}, status=code)

    async def _health(self, _request: web.Request) -> web.Response:
        self.health_checks += 1
        await self._notify()
        return self._not_ready() or web.json_response({"status": "ok"})

    async def _models(self, _request: web.Request) -> web.Response:
        return self._not_ready() or web.json_response({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._chat_chunks)

    async def _completion(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, self._completion_chunks)

    async def _generate(self, request: web.Request, chunks: Any) -> web.StreamResponse:
        refusal = self._not_ready()
        if refusal is not None:
            return refusal
        body = orjson.loads(await request.read())
        probe = body.get("n_predict") == 1
        fault = self.always
        if probe:
            self.probes += 1
        else:
            self.bodies.append(body)
            if self.faults:
                fault = self.faults.popleft()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self._notify()
        try:
            response = await self._answer(request, fault, chunks(body))
            self.completed += not probe
            return response
        except (asyncio.CancelledError, ConnectionError):
            self.closed_by_client += 1
            raise
        finally:
            self.running -= 1
            await asyncio.shield(self._notify())

    async def _answer(self, request: web.Request, fault: Fault | None, chunks: list[bytes]) -> web.StreamResponse:
        kind, after = (fault.kind, fault.after) if fault else ("", 0)
        transport = request.transport
        assert transport is not None
        if kind == "empty_reply":
            transport.abort()
            return web.Response()
        if kind == "loading":
            return self._error(503, "Loading model", "unavailable_error")
        if kind == "server_error":
            return self._error(500, "failed to process", "server_error")
        if kind == "bad_request":
            return self._error(400, "the request exceeds the available context size", "exceed_context_size_error")
        if kind == "hang" and after == 0:
            # The real server sends its headers with the first token.
            await self._release.wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        sent = 0
        for chunk in chunks:
            is_token = b'"content":"' in chunk and not chunk.endswith(b'"stop":true}\n\n')
            if sent >= after and kind in ("cut", "garbage", "error_event") and (is_token or sent):
                if kind == "cut":
                    transport.abort()
                    return response
                await response.write(
                    b"data: {not json}\n\n"
                    if kind == "garbage"
                    else b'data: {"error":{"code":500,"message":"compute error","type":"server_error"}}\n\n'
                )
                break
            if kind == "no_end" and b'"finish_reason":"' in chunk:
                break
            if kind == "hang" and sent == after and after:
                while not self._release.is_set():
                    await response.write(PING)
                    await asyncio.sleep(0.02)
            await response.write(chunk)
            sent += is_token
        await response.write_eof()
        return response

    # Chunks.

    def _timings(self) -> dict[str, Any]:
        return {
            "cache_n": 0,
            "prompt_n": 7,
            "prompt_ms": 140.0,
            "prompt_per_token_ms": 20.0,
            "prompt_per_second": 50.0,
            "predicted_n": len(self.tokens),
            "predicted_ms": 400.0,
            "predicted_per_token_ms": 100.0,
            "predicted_per_second": 10.0,
        }

    def _chat_chunks(self, body: dict[str, Any]) -> list[bytes]:
        head = {"created": 1, "id": "chatcmpl-fake", "model": "fake", "object": "chat.completion.chunk"}

        def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
            choice = {"finish_reason": reason, "index": 0, "delta": delta}
            return b"data: " + orjson.dumps({"choices": [choice], **head, **more}) + b"\n\n"

        result = [chunk({"role": "assistant", "content": None})]
        result += [chunk({"reasoning_content": text}) for text in self.reasoning]
        result += [chunk({"content": text}) for text in self.tokens]
        if self.tool_call is not None:
            name, pieces = self.tool_call
            call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
            result.append(chunk({"tool_calls": [call]}))
            result += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": text}}]}) for text in pieces]
        result.append(chunk({}, self.finish_reason))
        if body.get("stream_options", {}).get("include_usage"):
            usage = {"completion_tokens": len(self.tokens), "prompt_tokens": 7, "total_tokens": 7 + len(self.tokens)}
            last = {"choices": [], **head, "usage": usage, "timings": self._timings()}
            result.append(b"data: " + orjson.dumps(last) + b"\n\n")
        return [*result, b"data: [DONE]\n\n"]

    def _completion_chunks(self, body: dict[str, Any]) -> list[bytes]:
        limit = body.get("n_predict", -1)
        tokens = self.tokens[:limit] if limit > 0 else self.tokens
        last = {
            "index": 0,
            "content": "",
            "tokens_predicted": len(tokens),
            "tokens_evaluated": 7,
            "stop_type": "limit" if len(tokens) < len(self.tokens) else "eos",
            "timings": self._timings(),
            "stop": True,
        }
        parts = [{"index": number, "content": text, "stop": False} for number, text in zip(itertools.count(), tokens)]
        return [b"data: " + orjson.dumps(part) + b"\n\n" for part in [*parts, last]]
