"""A gateway and emulated backends, in the test's own event loop, on ports that the kernel chooses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from bramble.gateway.app import Gateway
from bramble.gateway.config import parse_config
from bramble.gateway.health import Policy

from .fake_llama_server import FakeLlamaServer

MODEL = "bramble-synth"
FAST = Policy(idle_s=0.05, down_s=0.02, down_max_s=0.05, prove_s=0.5)


@dataclass(slots=True)
class Running:
    """A gateway that listens."""

    gateway: Gateway
    url: str
    http: aiohttp.ClientSession

    async def status(self) -> dict[str, Any]:
        async with self.http.get(f"{self.url}/bramble/status") as response:
            status: dict[str, Any] = await response.json()
            return status


StartBackend = Callable[..., Awaitable[FakeLlamaServer]]
StartGateway = Callable[..., Awaitable[Running]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_backend(stack: AsyncExitStack) -> StartBackend:
    async def start(**options: Any) -> FakeLlamaServer:
        server = FakeLlamaServer(**options)
        await server.start()
        stack.push_async_callback(server.stop)
        return server

    return start


@pytest.fixture
def start_gateway(stack: AsyncExitStack) -> StartGateway:
    async def start(
        *servers: FakeLlamaServer, slots: int = 1, ready: bool = True, model: dict[str, Any] | None = None, **more: Any
    ) -> Running:
        """`more`: sections of the configuration. `ready`: wait until all backends are up."""
        models = [{"name": MODEL, "context": 4096, **(model or {})}]
        backends = [
            {"name": f"pi{n}", "kind": "llama_server", "url": server.url, "slots": slots, "models": models}
            for n, server in enumerate(servers, 1)
        ]
        gateway = Gateway(parse_config(json.dumps({"backends": backends, **more})), FAST)
        runner = web.AppRunner(gateway.app(), handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        http = await stack.enter_async_context(aiohttp.ClientSession())
        running = Running(gateway, f"http://127.0.0.1:{runner.addresses[0][1]}", http)
        if ready:
            await until(lambda: all(state.up for state in gateway.cluster.states.values()))
        return running

    return start


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Waits for a state that other tasks bring about; the time is only the limit of patience."""
    import asyncio

    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.002)
