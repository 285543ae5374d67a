"""Which backends may be chosen.

Passive first: what requests show is believed at once, and a backend that sends tokens is healthy whatever a probe
would say. Only idle and down backends are probed. A backend starts, and comes back after a failure, by generating one
token, because an inference server's own health answer says nothing about its workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .backends import Backend, BackendError, SilentError, UnavailableError
from .pool import BackendState
from .queue import Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Seconds and counts of the health watch.

    idle_s               between checks of a backend that is up and idle
    down_s, down_max_s   between probes of a backend that is down: the first, growing slowly to the largest
    growth               factor from one probe to the next
    prove_s              time for generating one token; the server may still be busy with a prompt that was cancelled
    idle_strikes         failed checks of an idle backend until it counts as down (a busy board can miss one)
    bad_answers          5xx answers in a row until it counts as down, so that a fast-failing backend gets no more
    """

    idle_s: float = 10.0
    down_s: float = 1.0
    down_max_s: float = 5.0
    growth: float = 1.05
    prove_s: float = 30.0
    idle_strikes: int = 2
    bad_answers: int = 3

    def pause(self, failures: int) -> float:
        """The pause after the given number of failed probes in a row: about a second during the first half minute."""
        return min(self.down_max_s, self.down_s * self.growth ** min(failures, 100))


class Health:
    """Keeps `BackendState.state` of every backend true; `changed` is called when one comes up."""

    def __init__(
        self,
        states: Mapping[str, BackendState],
        backends: Mapping[str, Backend],
        *,
        changed: Callable[[], None],
        policy: Policy = Policy(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._states = states
        self._backends = backends
        self._changed = changed
        self._policy = policy
        self._clock = clock
        self._went_down = {name: asyncio.Event() for name in states}

    # What requests show.

    def token(self, lease: Lease) -> None:
        """A piece of an answer came."""
        self._states[lease.backend].last_token_at = self._clock()

    def answered(self, lease: Lease) -> None:
        """A request ended well, or the backend had good reason to refuse it."""
        self._states[lease.backend].bad_answers = 0

    def failed(self, lease: Lease, error: BackendError) -> None:
        """An attempt failed with UnavailableError or FailedError."""
        state = self._states[lease.backend]
        if lease.epoch != state.epoch:
            return
        state.bad_answers += 1
        state.last_error = str(error)
        if isinstance(error, UnavailableError) or state.bad_answers >= self._policy.bad_answers:
            self._down(state, str(error))

    # What probes show.

    async def watch(self, name: str) -> None:
        """Watches one backend until cancelled."""
        state = self._states[name]
        failures = strikes = 0
        while True:
            if state.up:
                if await self._idle_pause(name):
                    strikes = 0
                elif state.up and state.in_flight == 0:
                    strikes = await self._check_idle(state, strikes)
            elif await self._prove(state):
                failures = strikes = 0
            else:
                failures += 1
                await asyncio.sleep(self._policy.pause(failures))

    async def _idle_pause(self, name: str) -> bool:
        """True when the backend went down during the pause."""
        try:
            async with asyncio.timeout(self._policy.idle_s):
                await self._went_down[name].wait()
        except TimeoutError:
            return False
        return True

    async def _check_idle(self, state: BackendState, strikes: int) -> int:
        """The new number of failed checks in a row."""
        epoch = state.epoch
        try:
            await self._backends[state.name].check()
        except BackendError as error:
            # A request that came meanwhile knows better than the check.
            if state.in_flight or not state.up or state.epoch != epoch:
                return 0
            if strikes + 1 >= self._policy.idle_strikes:
                self._down(state, str(error))
            return strikes + 1
        return 0

    async def _prove(self, state: BackendState) -> bool:
        """Brings the backend up if it proves to be alive."""
        if state.last_token_at > state.down_at:
            # A request that runs on it still receives tokens.
            return self._up(state)
        if state.in_flight >= state.slots:
            # Its last requests hang; a probe would only join them.
            return False
        backend = self._backends[state.name]
        try:
            await backend.check()
            async with asyncio.timeout(self._policy.prove_s):
                await backend.prove(state.config.models[0].name)
        except TimeoutError:
            state.last_error = str(SilentError(f"no token within {self._policy.prove_s:g} s when probed"))
            return False
        except BackendError as error:
            state.last_error = str(error)
            return False
        return self._up(state)

    def _up(self, state: BackendState) -> bool:
        state.state = "up"
        state.epoch += 1
        state.bad_answers = 0
        self._went_down[state.name].clear()
        log.info("backend=%s state=up", state.name)
        self._changed()
        return True

    def _down(self, state: BackendState, reason: str) -> None:
        if not state.up:
            return
        state.state = "down"
        state.last_error = reason
        state.down_at = self._clock()
        self._went_down[state.name].set()
        log.warning("backend=%s state=down reason=%r", state.name, reason)
