"""The HTTP side: routes, status codes, streaming, one log line a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Protocol

import aiohttp
import orjson
from aiohttp import web

from . import ollama_api, openai_api
from .backends.kinds import ADAPTERS, client_session
from .config import Config
from .errors import GatewayError
from .exchange import Cluster, Exchange
from .fields import Fields, parse_object
from .generation import Answer, Delta, Done, Event, Json, Timing, join
from .health import Health, Policy
from .pool import BackendState
from .queue import Queue
from .router import Catalogue, Route

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BACKEND_HEADER = "X-Bramble-Backend"
MANAGEMENT = (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/{digest}"),
    ("HEAD", "/api/blobs/{digest}"),
)
NOT_SERVED = ("/api/embed", "/api/embeddings", "/v1/completions", "/v1/embeddings", "/v1/responses")


def package_version() -> str:
    """The version of Bramble, or "unknown" when it runs from a bare checkout."""
    try:
        return metadata.version("bramble")
    except metadata.PackageNotFoundError:
        return "unknown"


class Format(Protocol):
    """How an API writes answers."""

    @property
    def stream_type(self) -> str: ...
    def begin(self) -> bytes: ...
    def delta(self, delta: Delta, timing: Timing, /) -> bytes: ...
    def done(self, done: Done, timing: Timing, /) -> bytes: ...
    def whole(self, answer: Answer, timing: Timing, /) -> Json: ...
    def error(self, error: GatewayError) -> bytes: ...


class _ClientGoneError(Exception):
    """The client closed its connection, or reads nothing."""


def _as_gateway_error(error: Exception) -> GatewayError:
    """The error itself, or for one that nobody foresaw a 500; its traceback goes to the log."""
    if isinstance(error, GatewayError):
        return error
    log.error("unexpected error", exc_info=error)
    return GatewayError(500, "internal error of the gateway; its log has the details")


@dataclass(slots=True)
class _Record:
    """What the log line says of a request. Names come from the configuration: what a client wrote is never logged."""

    model: str = "-"
    exchange: Exchange | None = None
    failure: str = ""
    client_gone: bool = False


_RECORD = web.RequestKey("record", _Record)


def json_response(body: Json, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A whole JSON answer."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def error_response(path: str, error: GatewayError, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the shape of the API that the path belongs to."""
    openai = path == "/v1" or path.startswith("/v1/")
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    body = openai_api.error_body(error) if openai else ollama_api.error_body(error)
    return json_response(body, status=error.status, headers=headers)


@dataclass(slots=True)
class Gateway:
    """The running gateway. `start` before the first request, `stop` after the last."""

    config: Config
    policy: Policy = field(default_factory=Policy)
    started: float = field(default_factory=time.time)
    cluster: Cluster = field(init=False)
    _http: aiohttp.ClientSession | None = field(init=False, default=None)
    _watchers: list[asyncio.Task[None]] = field(init=False, default_factory=list)
    _active: set[Exchange] = field(init=False, default_factory=set)
    _idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    async def start(self) -> None:
        """Connects the parts and begins to watch the backends."""
        self._http = client_session(self.config.timeouts)
        states = {backend.name: BackendState(backend) for backend in self.config.backends}
        backends = {backend.name: ADAPTERS[backend.kind](backend, self._http) for backend in self.config.backends}
        queue = Queue(states, max_waiting=self.config.queue.max_waiting, max_wait_s=self.config.queue.max_wait_s)
        health = Health(states, backends, changed=queue.dispatch, policy=self.policy)
        self.cluster = Cluster(self.config, Catalogue(self.config.backends), states, backends, queue, health)
        self._watchers = [asyncio.create_task(health.watch(name), name=f"watch {name}") for name in states]
        self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuses what waits, lets what runs finish for `grace_s`, then ends it with an error for the client."""
        self.cluster.queue.close()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            for exchange in tuple(self._active):
                exchange.abort()

    async def stop(self) -> None:
        """Ends the watch and closes all connections."""
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    def app(self) -> web.Application:
        """The aiohttp application over this gateway."""
        app = web.Application(client_max_size=self.config.limits.body_bytes, middlewares=[self._middleware])
        router = app.router
        router.add_get("/", self._root)
        router.add_get("/api/version", self._version)
        router.add_get("/api/tags", self._tags)
        router.add_get("/api/ps", self._ps)
        router.add_post("/api/show", self._show)
        router.add_post("/api/generate", self._generate)
        router.add_post("/api/chat", self._chat)
        router.add_get("/v1/models", self._models)
        router.add_get("/v1/models/{model:.+}", self._model)
        router.add_post("/v1/chat/completions", self._chat_completions)
        router.add_get("/bramble/status", self._status)
        for method, path in MANAGEMENT:
            router.add_route(method, path, self._management)
        for path in NOT_SERVED:
            router.add_post(path, self._not_served)
        app.on_startup.append(lambda _: self.start())
        app.on_cleanup.append(lambda _: self.stop())
        return app

    # Every request.

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        record = request[_RECORD] = _Record()
        status = 499  # nginx's code for a client that went away; it is only logged
        try:
            response = await self._answer(request, handler, record)
            if not record.client_gone:
                status = response.status
            return response
        finally:
            self._log(request, record, status, time.monotonic() - began)

    @staticmethod
    async def _answer(request: web.Request, handler: Handler, record: _Record) -> web.StreamResponse:
        """The handler's answer; what it raises, in the shape of the API."""
        headers = {}
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge:
            failure = GatewayError(413, f"the request body is larger than {request.client_max_size} bytes")
        except web.HTTPMethodNotAllowed as error:
            failure = GatewayError(405, f"method {request.method[:16]} is not allowed here")
            headers["Allow"] = error.headers.get("Allow", "")
        except web.HTTPException as error:
            if error.status < 400:
                raise
            failure = GatewayError(error.status, error.reason.lower())
        except Exception as error:
            failure = _as_gateway_error(error)
        record.failure = failure.logged if failure.status >= 500 else ""
        if record.exchange is not None and record.exchange.backend:
            headers[BACKEND_HEADER] = record.exchange.backend
        return error_response(request.path, failure, headers)

    @staticmethod
    def _log(request: web.Request, record: _Record, status: int, seconds: float) -> None:
        route = request.match_info.route.resource
        parts = [
            f"method={request.method[:16]!r}" if not request.method.isalpha() else f"method={request.method}",
            f"path={route.canonical if route is not None else '-'}",
            f"model={record.model}",
            f"backend={(record.exchange.backend if record.exchange else '') or '-'}",
            f"status={status}",
            f"ms={seconds * 1000:.0f}",
        ]
        if record.exchange is not None:
            exchange = record.exchange
            parts += [
                f"queued_ms={exchange.queued_s * 1000:.0f}",
                f"attempts={exchange.attempts}",
                f"prompt_tokens={exchange.usage.prompt_tokens}",
                f"tokens={exchange.usage.completion_tokens or exchange.deltas}",
                f"tokens_per_second={exchange.usage.tokens_per_second:.2f}",
            ]
        if record.failure:
            parts.append(f"error={record.failure!r}")
        log.info(" ".join(parts))

    async def _body(self, request: web.Request) -> Fields:
        return parse_object(await request.read())

    # Generation.

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._ollama(request, ollama_api.parse_chat(await self._body(request)), chat=True)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._ollama(request, ollama_api.parse_generate(await self._body(request)), chat=False)

    async def _ollama(
        self, request: web.Request, parsed: ollama_api.OllamaRequest, *, chat: bool
    ) -> web.StreamResponse:
        form = ollama_api.OllamaFormat(parsed.model, chat=chat)
        if isinstance(parsed.work, ollama_api.LoadRequest):
            route = self.cluster.catalogue.resolve(parsed.model)
            request[_RECORD].model = route.model
            await self._wait_until_available(route)
            return json_response(form.load(parsed.work.reason, time.time()))
        route = self.cluster.catalogue.resolve(parsed.model, parsed.work.needs())
        return await self._respond(request, Exchange(self.cluster, parsed.work, route), form, parsed.stream)

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        parsed = openai_api.parse_chat(await self._body(request))
        route = self.cluster.catalogue.resolve(parsed.model, parsed.work.needs())
        form = openai_api.OpenAIFormat(parsed, answer_id=f"chatcmpl-{secrets.token_hex(12)}", created=time.time())
        return await self._respond(request, Exchange(self.cluster, parsed.work, route), form, parsed.stream)

    async def _wait_until_available(self, route: Route) -> None:
        """Backends have their models loaded; so a model is ready when one of its backends is up."""
        if not any(self.cluster.states[target.backend].up for target in route.targets):
            queue = self.cluster.queue
            queue.release(await queue.acquire(queue.ticket(route)))

    async def _respond(
        self, request: web.Request, exchange: Exchange, form: Format, stream: bool
    ) -> web.StreamResponse:
        """Runs the exchange. When the client goes, this task is cancelled, and with it whatever the exchange does."""
        record = request[_RECORD]
        record.model, record.exchange = exchange.route.model, exchange
        self._active.add(exchange)
        self._idle.clear()
        try:
            async with aclosing(exchange.events()) as events:
                return await (self._stream if stream else self._whole)(request, exchange, events, form)
        finally:
            self._active.discard(exchange)
            if not self._active:
                self._idle.set()

    @staticmethod
    async def _whole(
        _request: web.Request, exchange: Exchange, events: AsyncGenerator[Event], form: Format
    ) -> web.StreamResponse:
        deltas: list[Delta] = []
        async for event in events:
            if isinstance(event, Delta):
                deltas.append(event)
            else:
                done = event
        body = form.whole(join(deltas, done), exchange.timing())
        return json_response(body, headers={BACKEND_HEADER: exchange.backend})

    async def _stream(
        self, request: web.Request, exchange: Exchange, events: AsyncGenerator[Event], form: Format
    ) -> web.StreamResponse:
        # Until the first event an error still becomes a status; from then on it is the last thing in the stream.
        event: Event | None = await anext(events)
        response = web.StreamResponse(
            headers={
                "Content-Type": form.stream_type,
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                BACKEND_HEADER: exchange.backend,
            }
        )
        pending = form.begin()
        try:
            await self._to_client(response.prepare(request))
            while event is not None:
                if isinstance(event, Delta):
                    pending += form.delta(event, exchange.timing())
                else:
                    pending += form.done(event, exchange.timing())
                if pending:
                    await self._to_client(response.write(pending))
                pending = b""
                event = await anext(events, None)
        except _ClientGoneError:
            request[_RECORD].client_gone = True
            if request.transport is not None:
                request.transport.abort()
        except Exception as error:
            failure = _as_gateway_error(error)
            request[_RECORD].failure = failure.logged
            with contextlib.suppress(_ClientGoneError):
                await self._to_client(response.write(form.error(failure)))
        return response

    async def _to_client(self, sending: Awaitable[object]) -> None:
        """A client that does not read may not keep a slot: after the limit on silence it counts as gone."""
        try:
            async with asyncio.timeout(self.config.timeouts.between_tokens_s):
                await sending
        except (TimeoutError, ConnectionError):
            raise _ClientGoneError from None

    # Everything else.

    async def _root(self, _request: web.Request) -> web.Response:
        return web.Response(text="Ollama is running")

    async def _version(self, _request: web.Request) -> web.Response:
        return json_response(ollama_api.version())

    async def _tags(self, _request: web.Request) -> web.Response:
        return json_response(ollama_api.tags(self.cluster.catalogue.models(), self.started))

    async def _ps(self, _request: web.Request) -> web.Response:
        catalogue, states = self.cluster.catalogue, self.cluster.states
        loaded = [
            model
            for model in catalogue.models()
            if any(states[target.backend].up for target in catalogue.targets(model.name))
        ]
        return json_response(ollama_api.ps(loaded))

    async def _show(self, request: web.Request) -> web.Response:
        model = self.cluster.catalogue.model(ollama_api.parse_show(await self._body(request)))
        return json_response(ollama_api.show(model, self.started))

    async def _models(self, _request: web.Request) -> web.Response:
        return json_response(openai_api.model_list(self.cluster.catalogue.models(), self.started))

    async def _model(self, request: web.Request) -> web.Response:
        model = self.cluster.catalogue.model(request.match_info["model"])
        return json_response(openai_api.model_entry(model, self.started))

    async def _management(self, _request: web.Request) -> web.Response:
        raise GatewayError(403, "models are managed by the owner of this cluster, not through its gateway")

    async def _not_served(self, request: web.Request) -> web.Response:
        raise GatewayError(501, f"{request.path} is not served by this gateway")

    async def _status(self, _request: web.Request) -> web.Response:
        queue, states = self.cluster.queue, self.cluster.states
        return json_response(
            {
                "version": package_version(),
                "uptime_s": round(time.time() - self.started, 1),
                "queue": {"depth": queue.depth, "max_waiting": self.config.queue.max_waiting},
                "backends": [
                    {
                        "name": state.name,
                        "kind": state.config.kind,
                        "url": state.config.url,
                        "state": state.state,
                        "in_flight": state.in_flight,
                        "slots": state.slots,
                        "models": [model.name for model in state.config.models],
                        "last_error": state.last_error,
                        "requests": state.requests,
                        "last": asdict(state.last) | {"at": ollama_api.timestamp(state.last.at)}
                        if state.last
                        else None,
                    }
                    for state in states.values()
                ],
            }
        )
