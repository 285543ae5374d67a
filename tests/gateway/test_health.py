"""Who may be chosen: the rules for one backend, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import pytest

from bramble.gateway.backends import BackendError, FailedError, SilentError, UnavailableError
from bramble.gateway.config import BackendConfig, ModelConfig
from bramble.gateway.generation import Event, GenerationRequest
from bramble.gateway.health import Health, Policy
from bramble.gateway.pool import BackendState
from bramble.gateway.queue import Lease
from bramble.gateway.router import Target

from .conftest import until


@dataclass
class Backend:
    """Answers probes from a list, and the last one for ever."""

    proofs: list[BackendError | None] = field(default_factory=lambda: [None])
    checks: int = 0
    check_error: BackendError | None = None
    hangs: bool = False

    def stream(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event]:
        raise NotImplementedError

    async def check(self) -> None:
        self.checks += 1
        if self.check_error:
            raise self.check_error

    async def prove(self, _model: str) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        error = self.proofs.pop(0) if len(self.proofs) > 1 else self.proofs[0]
        if error:
            raise error


class Case:
    def __init__(self, backend: Backend, slots: int = 1) -> None:
        config = BackendConfig(
            name="a", kind="llama_server", url="http://a", slots=slots, models=(ModelConfig(name="m", context=1),)
        )
        self.state = BackendState(config)
        self.backend = backend
        self.ups = 0
        self.now = 0.0
        policy = Policy(idle_s=0.005, down_s=0.002, down_max_s=0.005, prove_s=0.01)
        self.health = Health({"a": self.state}, {"a": backend}, changed=self._up, policy=policy, clock=lambda: self.now)

    def _up(self) -> None:
        self.ups += 1

    def lease(self) -> Lease:
        return Lease(Target("a", "m"), self.state.epoch, 0.0)

    async def __aenter__(self) -> Case:
        self._task = asyncio.create_task(self.health.watch("a"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_backend_starts_when_it_has_generated() -> None:
    async with Case(Backend([UnavailableError("loading"), UnavailableError("loading"), None])) as case:
        await until(lambda: case.state.up)
        assert (case.ups, case.state.epoch, case.state.last_error) == (1, 1, "loading")


async def test_a_probe_that_hangs_is_ended() -> None:
    async with Case(Backend(hangs=True)) as case:
        await until(lambda: case.state.last_error is not None)
        assert not case.state.up
        case.backend.hangs = False
        await until(lambda: case.state.up)


@pytest.mark.parametrize(
    ("errors", "up"),
    [
        ([UnavailableError("reset")], False),
        ([SilentError("no token")], False),
        ([FailedError("500")] * 2, True),
        ([FailedError("500")] * 3, False),
        ([FailedError("500"), FailedError("500"), None, FailedError("500")], True),
    ],
)
def test_what_requests_show(errors: list[BackendError | None], up: bool) -> None:
    case = Case(Backend())
    case.state.state = "up"
    for error in errors:
        if error is None:
            case.health.answered(case.lease())
        else:
            case.health.failed(case.lease(), error)
    assert case.state.up is up


def test_a_failure_from_before_the_recovery_counts_no_more() -> None:
    case = Case(Backend())
    case.state.state = "up"
    old = case.lease()
    case.state.epoch += 1
    case.health.failed(old, UnavailableError("reset"))
    assert case.state.up


async def test_an_idle_backend_goes_down_at_the_second_failed_check() -> None:
    async with Case(Backend()) as case:
        await until(lambda: case.state.up)
        case.backend.proofs = [UnavailableError("gone")]
        case.backend.check_error = UnavailableError("gone")
        before = case.backend.checks
        await until(lambda: not case.state.up)
        assert case.backend.checks >= before + 2


async def test_a_busy_backend_is_not_checked() -> None:
    async with Case(Backend()) as case:
        await until(lambda: case.state.up)
        await until(lambda: case.backend.checks >= 2)
        case.state.in_flight = 1
        before = case.backend.checks
        case.backend.check_error = UnavailableError("too busy to answer")
        await asyncio.sleep(0.03)  # several times idle_s
        assert case.state.up
        assert case.backend.checks <= before + 1


async def test_a_backend_whose_other_request_gets_tokens_is_up() -> None:
    async with Case(Backend(), slots=2) as case:
        await until(lambda: case.state.up)
        case.backend.check_error = UnavailableError("no")
        case.state.in_flight = 1
        case.now = 1.0
        case.health.failed(case.lease(), UnavailableError("reset"))
        assert not case.state.up
        case.now = 2.0
        case.health.token(case.lease())
        await until(lambda: case.state.up)


async def test_a_backend_full_of_hanging_requests_is_not_probed() -> None:
    async with Case(Backend()) as case:
        await until(lambda: case.state.up)
        case.state.in_flight = 1
        case.health.failed(case.lease(), SilentError("no token"))
        before = case.backend.checks
        await asyncio.sleep(0.02)  # several times down_max_s
        assert (case.state.up, case.backend.checks) == (False, before)
        case.state.in_flight = 0
        await until(lambda: case.state.up)


def test_pauses_are_about_a_second_and_bounded() -> None:
    policy = Policy()
    pauses = [policy.pause(failures) for failures in range(1, 2000)]
    assert pauses[0] < 1.1
    assert all(pause <= 2 for pause in pauses[:14])
    assert max(pauses) == policy.down_max_s
    assert pauses == sorted(pauses)
