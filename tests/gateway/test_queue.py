"""The queue: what must hold in every order of events, and the named cases."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bramble.gateway.config import BackendConfig, ModelConfig
from bramble.gateway.errors import OverloadedError, ShuttingDownError
from bramble.gateway.pool import BackendState
from bramble.gateway.queue import Lease, Queue
from bramble.gateway.router import Route, Target


def states(*slots: int, up: bool = True) -> dict[str, BackendState]:
    model = ModelConfig(name="m", context=1)
    return {
        name: BackendState(
            BackendConfig(name=name, kind="llama_server", url=f"http://{name}", slots=count, models=(model,)),
            state="up" if up else "down",
        )
        for name, count in zip("abc", slots, strict=False)
    }


def route(*backends: str) -> Route:
    return Route("m", tuple(Target(backend, "m") for backend in backends))


def make(backends: dict[str, BackendState], max_waiting: int = 64, max_wait_s: float = 60.0) -> Queue:
    return Queue(backends, max_waiting=max_waiting, max_wait_s=max_wait_s)


async def settle() -> None:
    """Lets every task run until all of them wait."""
    for _ in range(5):
        await asyncio.sleep(0)


ARRIVE = st.tuples(st.just("arrive"), st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "b", "c")]))
STEPS = st.one_of(
    # Often enough that requests do wait.
    ARRIVE,
    ARRIVE,
    ARRIVE,
    st.tuples(st.just("finish"), st.integers(0, 9)),
    st.tuples(st.just("retry"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    # Both in one turn of the loop: a slot gets free, and a client leaves that waits for it.
    st.tuples(st.just("finish and cancel"), st.integers(0, 9)),
    st.tuples(st.just("cancel and finish"), st.integers(0, 9)),
    st.tuples(st.just("toggle"), st.sampled_from("abc")),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEPS, max_size=40), slots=st.tuples(*[st.integers(1, 2)] * 3))
def test_invariants(steps: list[tuple[str, Any]], slots: tuple[int, int, int]) -> None:
    async def run() -> None:
        backends = states(*slots)
        queue = make(backends)
        waiting: dict[int, tuple[asyncio.Task[Lease], Any]] = {}
        running: dict[int, tuple[Lease, Any]] = {}
        ended: set[int] = set()
        arrived = 0

        def begin(number: int, ticket: Any) -> None:
            waiting[number] = (asyncio.create_task(queue.acquire(ticket)), ticket)

        def pick(among: dict[int, Any], index: int) -> int | None:
            return sorted(among)[index % len(among)] if among else None

        def free(target: Target) -> bool:
            backend = backends[target.backend]
            return backend.up and backend.in_flight < backend.slots

        for action, argument in steps:
            if action == "arrive":
                begin(arrived, queue.ticket(route(*argument)))
                arrived += 1
            elif action == "toggle":
                backend = backends[argument]
                backend.state = "down" if backend.up else "up"
                if backend.up:
                    queue.dispatch()
            else:
                if action == "cancel and finish" and (gone := pick(waiting, argument)) is not None:
                    waiting.pop(gone)[0].cancel()
                    ended.add(gone)
                done = pick(running, argument) if action != "cancel" else None
                if done is not None:
                    lease, ticket = running.pop(done)
                    queue.release(lease)
                    queue.release(lease)  # a second release changes nothing
                    if action == "retry":
                        begin(done, ticket)
                    else:
                        ended.add(done)
                if action in ("cancel", "finish and cancel") and (gone := pick(waiting, argument)) is not None:
                    waiting.pop(gone)[0].cancel()
                    ended.add(gone)
            await settle()
            for number, (task, ticket) in list(waiting.items()):
                if task.done():
                    running[number] = (task.result(), ticket)
                    del waiting[number]
            # Every slot in use belongs to exactly one running request, and there are never more than there may be.
            for name, backend in backends.items():
                assert backend.in_flight == sum(lease.backend == name for lease, _ in running.values())
                assert backend.in_flight <= backend.slots
            # Nobody is lost or served twice.
            assert len(waiting) + len(running) + len(ended) == arrived
            assert queue.depth == len(waiting)
            # Nobody waits who could run.
            assert not any(free(target) for _, ticket in waiting.values() for target in ticket.route.targets)
        for task, _ in waiting.values():
            task.cancel()
        await settle()
        assert queue.depth == 0

    asyncio.run(run())


@settings(max_examples=60, deadline=None)
@given(order=st.lists(st.sampled_from(["finish", "cancel"]), min_size=1, max_size=12), slots=st.integers(1, 3))
def test_first_in_first_out(order: list[str], slots: int) -> None:
    async def run() -> None:
        queue = make(states(slots))
        served: list[int] = []
        leases: list[Lease] = []

        async def client(number: int) -> None:
            leases.append(await queue.acquire(queue.ticket(route("a"))))
            served.append(number)

        tasks = [asyncio.create_task(client(number)) for number in range(slots + len(order))]
        await settle()
        left: set[int] = set()
        for action in order:
            if action == "finish":
                queue.release(leases.pop(0))
            else:
                last = max(number for number in range(len(tasks)) if number not in left)
                if last not in served:
                    left.add(last)
                tasks[last].cancel()
            await settle()
        assert served == sorted(served)
        for task in tasks:
            task.cancel()
        await settle()

    asyncio.run(run())


async def outcome(work: Coroutine[Any, Any, Lease]) -> Lease | type[Exception]:
    try:
        return await work
    except Exception as error:
        return type(error)


async def test_a_request_that_waits_again_keeps_its_place() -> None:
    queue = make(states(1))
    ticket = queue.ticket(route("a"))
    first = await queue.acquire(ticket)
    later = asyncio.create_task(queue.acquire(queue.ticket(route("a"))))
    await settle()
    again = asyncio.create_task(queue.acquire(ticket))
    await settle()
    queue.release(first)
    await settle()
    assert (again.done(), later.done()) == (True, False)
    later.cancel()


@pytest.mark.parametrize("leaves_first", [False, True])
async def test_a_client_that_leaves_in_the_turn_in_which_its_slot_gets_free(leaves_first: bool) -> None:
    backends = states(1)
    queue = make(backends)
    lease = await queue.acquire(queue.ticket(route("a")))
    waiting = asyncio.create_task(queue.acquire(queue.ticket(route("a"))))
    await settle()
    if leaves_first:
        waiting.cancel()
    queue.release(lease)
    if not leaves_first:
        waiting.cancel()
    await settle()
    assert waiting.cancelled()
    assert (queue.depth, backends["a"].in_flight) == (0, 0)


async def test_a_younger_request_may_use_what_the_older_cannot() -> None:
    queue = make(states(1, 1))
    await queue.acquire(queue.ticket(route("a")))
    older = asyncio.create_task(queue.acquire(queue.ticket(route("a"))))
    await settle()
    assert (await queue.acquire(queue.ticket(route("a", "b")))).backend == "b"
    assert not older.done()
    older.cancel()


async def test_a_full_queue_refuses_newcomers_but_not_retries() -> None:
    queue = make(states(1), max_waiting=1)
    ticket = queue.ticket(route("a"))
    lease = await queue.acquire(ticket)
    waiting = asyncio.create_task(queue.acquire(queue.ticket(route("a"))))
    await settle()
    with pytest.raises(OverloadedError) as caught:
        await queue.acquire(queue.ticket(route("a")))
    assert caught.value.status == 503
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    retry = asyncio.create_task(queue.acquire(ticket))
    await settle()
    queue.release(lease)
    assert (await retry).backend == "a"
    waiting.cancel()


async def test_no_queue_at_all_still_serves_free_slots() -> None:
    queue = make(states(1), max_waiting=0)
    await queue.acquire(queue.ticket(route("a")))
    assert await outcome(queue.acquire(queue.ticket(route("a")))) is OverloadedError


async def test_the_wait_ends_and_leaves_nothing() -> None:
    backends = states(1, up=False)
    queue = make(backends, max_wait_s=0.01)
    with pytest.raises(OverloadedError, match=r"no backend of 'm' is available: waited 0\.01 s"):
        await queue.acquire(queue.ticket(route("a")))
    backends["a"].state = "up"
    queue.dispatch()
    assert (queue.depth, backends["a"].in_flight) == (0, 0)


async def test_the_budget_of_waiting_is_for_all_attempts() -> None:
    queue = make(states(1, up=False), max_wait_s=60.0)
    ticket = queue.ticket(route("a"))
    ticket.waited_s = 60.0
    async with asyncio.timeout(1):
        assert await outcome(queue.acquire(ticket)) is OverloadedError


async def test_closing_ends_every_wait() -> None:
    queue = make(states(1, up=False))
    waits = [asyncio.create_task(outcome(queue.acquire(queue.ticket(route("a"))))) for _ in range(3)]
    await settle()
    queue.close()
    assert await asyncio.gather(*waits) == [ShuttingDownError] * 3
    assert await outcome(queue.acquire(queue.ticket(route("a")))) is ShuttingDownError
