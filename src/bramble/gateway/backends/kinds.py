"""The adapter of each backend kind. A new kind is a module, a line here and a word in config.BACKEND_KINDS."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import aiohttp

from ..config import BackendConfig, Timeouts
from . import Backend
from .dllama_api import DllamaApi
from .llama_server import LlamaServer

ADAPTERS: Mapping[str, Callable[[BackendConfig, aiohttp.ClientSession], Backend]] = MappingProxyType(
    {"dllama_api": DllamaApi, "llama_server": LlamaServer}
)


def client_session(timeouts: Timeouts) -> aiohttp.ClientSession:
    """The HTTP client that all adapters share.

    No total timeout and no limit on connections: silence is watched by the exchange, load by the queue. Every request
    has its own connection: a pooled one that the server has closed meanwhile would look like a dead backend, and next
    to a generation a handshake costs nothing. No proxy, cookies or redirects: backends are the configured addresses.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect_s),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )
