"""One request on its way through the gateway: attempts, commit point, deadlines, and what the log says of it.

Before the first token an attempt that failed may be made again, on another backend or on the same one after it came
back. From the first token on, which is the commit point, a failure is told to the client: repeating would repeat text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from .backends import Backend, FailedError, RejectedError, SilentError, UnavailableError
from .config import Config
from .errors import GatewayError, ShuttingDownError
from .generation import Delta, Done, Event, GenerationRequest, Timing, Usage
from .health import Health
from .pool import BackendState
from .queue import Lease, Queue
from .router import Catalogue, Route

# When a client may ask again whose answer broke off: about as long as a backend takes that starts again.
RETRY_AFTER_S = 5


@dataclass(frozen=True, slots=True)
class Cluster:
    """The parts that all exchanges share."""

    config: Config
    catalogue: Catalogue
    states: Mapping[str, BackendState]
    backends: Mapping[str, Backend]
    queue: Queue
    health: Health


class Exchange:
    """Answers one request. `events` may be consumed once."""

    def __init__(self, cluster: Cluster, request: GenerationRequest, route: Route) -> None:
        self._cluster = cluster
        self._request = request
        self._ticket = cluster.queue.ticket(route)
        self._began = time.monotonic()
        self._silence: asyncio.Timeout | None = None
        self._aborted = False
        self.route = route
        self.backend = ""
        self.attempts = 0
        self.deltas = 0
        self.usage = Usage()

    @property
    def queued_s(self) -> float:
        """Seconds in the queue, over all attempts."""
        return self._ticket.waited_s

    def timing(self) -> Timing:
        """The times of an event that is written now."""
        return Timing(time.time(), time.monotonic() - self._began, self.queued_s)

    def abort(self) -> None:
        """Ends a running generation with ShuttingDownError, also if it has been committed."""
        self._aborted = True
        if self._silence is not None:
            self._silence.reschedule(0)

    async def events(self) -> AsyncGenerator[Event]:
        """Deltas, then one Done; or GatewayError, which is final. Closing the generator cancels wherever it is."""
        queue_limits = self._cluster.config.queue
        refused: frozenset[str] = frozenset()
        while True:
            lease = await self._cluster.queue.acquire(self._ticket, refused)
            self.backend = lease.backend
            self.attempts += 1
            state = self._cluster.states[lease.backend]
            state.requests += 1
            try:
                async with aclosing(self._attempt(lease)) as events:
                    async for event in events:
                        if isinstance(event, Delta):
                            self.deltas += 1
                            yield event
                        else:
                            done = event
                break
            except RejectedError as error:
                self._cluster.health.answered(lease)
                raise GatewayError(error.status, error.detail, logged=error.reason) from None
            except SilentError as error:
                self._cluster.health.failed(lease, error)
                raise GatewayError(504, f"backend '{lease.backend}': {error}") from None
            except (UnavailableError, FailedError) as error:
                self._cluster.health.failed(lease, error)
                if isinstance(error, FailedError):
                    refused |= {lease.backend}
                exhausted = all(target.backend in refused for target in self.route.targets)
                if self.deltas or exhausted or self.attempts >= queue_limits.max_attempts:
                    # A request that lost its backend before the first token, and each time, had better not come again.
                    lost = isinstance(error, UnavailableError) and self.deltas
                    raise GatewayError(
                        502,
                        f"backend '{lease.backend}' failed: {error.detail}",
                        logged=f"backend failed: {error.reason}",
                        retry_after_s=RETRY_AFTER_S if lost else None,
                    ) from None
            finally:
                self._cluster.queue.release(lease)
        yield done

    async def _attempt(self, lease: Lease) -> AsyncGenerator[Event]:
        """One attempt on one backend. Raises BackendError, and ShuttingDownError when aborted."""
        health, timeouts = self._cluster.health, self._cluster.config.timeouts
        began = time.monotonic()
        first = 0.0
        stream = self._cluster.backends[lease.backend].stream(self._request, lease.target.model)
        async with aclosing(stream):
            while True:
                event = await self._next(stream, timeouts.between_tokens_s if first else timeouts.first_token_s)
                now = time.monotonic()
                if isinstance(event, Done):
                    break
                first = first or now
                health.token(lease)
                yield event
        self.usage = measured(event.usage, tokens=self.deltas, prompt_s=(first or now) - began, total_s=now - began)
        health.answered(lease)
        self._cluster.queue.served(now - began)
        self._cluster.states[lease.backend].measured(self.usage, lease.target.model, time.time())
        yield replace(event, usage=self.usage)

    async def _next(self, stream: AsyncGenerator[Event], limit_s: float) -> Event:
        """The next event. Pings and other bytes that are no token do not count as progress."""
        if self._aborted:
            raise ShuttingDownError
        try:
            async with asyncio.timeout(limit_s) as self._silence:
                return await anext(stream)
        except TimeoutError:
            if self._aborted:
                raise ShuttingDownError from None
            raise SilentError(f"no token within {limit_s:g} s") from None
        finally:
            self._silence = None


def measured(usage: Usage, *, tokens: int, prompt_s: float, total_s: float) -> Usage:
    """`usage` with what the backend did not tell taken from the gateway's own clock. A Delta counts as one token."""
    completion_tokens = usage.completion_tokens or tokens
    prompt = usage.prompt_s or prompt_s
    generation = usage.generation_s or total_s - prompt_s
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=completion_tokens,
        prompt_s=prompt,
        generation_s=generation,
        prompt_tokens_per_second=usage.prompt_tokens_per_second or (usage.prompt_tokens / prompt if prompt else 0.0),
        # The first token belongs to the prompt's time, so n tokens took n - 1 intervals.
        tokens_per_second=usage.tokens_per_second
        or ((completion_tokens - 1) / generation if generation > 0 and completion_tokens > 1 else 0.0),
    )
