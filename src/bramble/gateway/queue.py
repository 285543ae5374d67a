"""The one queue in front of all backends.

First in, first out, with late binding: a request gets its backend when a slot is free, never before. So a slow backend
cannot collect a line of its own, and a backend that dies takes no waiting request with it. A request may overtake an
older one only when the older one cannot use the free slot.

Everything runs in one event loop; each method changes state without an await in between, so no locks are needed.
"""

from __future__ import annotations

import asyncio
import random
import time
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .errors import OverloadedError, ShuttingDownError
from .pool import BackendState
from .router import Route, Target, choose

# Weight of the newest service time in the moving average that Retry-After is computed from.
SERVICE_WEIGHT = 0.2


@dataclass(slots=True)
class Ticket:
    """A request's place in the line. It keeps it when an attempt fails and the request waits again.

    `waited_s`: time spent in the queue so far, over all attempts.
    """

    route: Route
    number: int
    waited_s: float = 0.0
    admitted: bool = False


@dataclass(slots=True)
class Lease:
    """One slot of one backend, until `Queue.release`."""

    target: Target
    epoch: int
    started: float
    released: bool = False

    @property
    def backend(self) -> str:
        return self.target.backend


@dataclass(slots=True, eq=False)
class _Waiter:
    ticket: Ticket
    exclude: frozenset[str]
    lease: asyncio.Future[Lease] = field(repr=False)


class Queue:
    """Admission and dispatch over the backends in `backends`."""

    def __init__(
        self,
        backends: Mapping[str, BackendState],
        *,
        max_waiting: int,
        max_wait_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backends = backends
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiting: list[_Waiter] = []
        self._tickets = 0
        self._service_s = 0.0
        self._closed = False

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return sum(not waiter.lease.done() for waiter in self._waiting)

    def ticket(self, route: Route) -> Ticket:
        """A place at the end of the line."""
        self._tickets += 1
        return Ticket(route, self._tickets)

    async def acquire(self, ticket: Ticket, exclude: frozenset[str] = frozenset()) -> Lease:
        """Waits for a slot. Raises OverloadedError (full, or waited too long) or ShuttingDownError."""
        if self._closed:
            raise ShuttingDownError
        waiter = _Waiter(ticket, exclude, asyncio.get_running_loop().create_future())
        insort(self._waiting, waiter, key=lambda other: other.ticket.number)
        self.dispatch()
        if not waiter.lease.done() and not ticket.admitted and self.depth > self._max_waiting:
            self._waiting.remove(waiter)
            raise OverloadedError("server busy, please try again.  maximum pending requests exceeded", self.estimate())
        ticket.admitted = True
        began = self._clock()
        try:
            async with asyncio.timeout(max(0.0, self._max_wait_s - ticket.waited_s)):
                return await waiter.lease
        except BaseException as error:
            # The slot may have been given in the same turn of the loop in which the wait ended: give it back.
            if waiter.lease.done() and not waiter.lease.cancelled() and waiter.lease.exception() is None:
                self.release(waiter.lease.result())
            if isinstance(error, TimeoutError):
                raise self._too_late(ticket) from None
            raise
        finally:
            ticket.waited_s += self._clock() - began
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def release(self, lease: Lease) -> None:
        """Gives a slot back; a second call does nothing."""
        if lease.released:
            return
        lease.released = True
        self._backends[lease.backend].in_flight -= 1
        self.dispatch()

    def served(self, seconds: float) -> None:
        """Tells how long a complete request held its slot."""
        old = self._service_s or seconds
        self._service_s = old + SERVICE_WEIGHT * (seconds - old)

    def dispatch(self) -> None:
        """Gives free slots to waiting requests. Called when one arrives, a slot gets free, or a backend comes up."""
        for waiter in list(self._waiting):
            if waiter.lease.done():  # cancelled, and its task did not run yet
                continue
            target = choose(waiter.ticket.route, self._backends, waiter.exclude)
            if target is None:
                continue
            backend = self._backends[target.backend]
            backend.in_flight += 1
            waiter.lease.set_result(Lease(target, backend.epoch, self._clock()))
            self._waiting.remove(waiter)

    def estimate(self) -> float:
        """Seconds until the line should be gone, with ±20 % so that refused clients do not come back all at once."""
        slots = sum(backend.slots for backend in self._backends.values() if backend.up)
        line = self._service_s * (self.depth + 1) / slots if slots else 10.0
        return line * random.uniform(0.8, 1.2)

    def close(self) -> None:
        """Ends every wait with ShuttingDownError and admits nobody."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.lease.done():
                waiter.lease.set_exception(ShuttingDownError())
        self._waiting.clear()

    def _too_late(self, ticket: Ticket) -> OverloadedError:
        targets = ticket.route.targets
        if any(self._backends[target.backend].up for target in targets):
            what = f"all backends of '{ticket.route.model}' stayed busy"
        else:
            what = f"no backend of '{ticket.route.model}' is available"
        return OverloadedError(f"{what}: waited {self._max_wait_s:g} s", self.estimate())
