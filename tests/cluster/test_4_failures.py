"""Nodes and workers that die, freeze and vanish, while people ask."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from lab import Lab

pytestmark = pytest.mark.lab
MODEL = "bramble-synth"


def generate(url: str, tokens: int, timeout: float = 90) -> list[dict[str, object]]:
    """All objects of a streamed answer, the error's included."""
    body = {"model": MODEL, "prompt": "Tell me", "stream": True, "options": {"num_predict": tokens}}
    with httpx.stream("POST", f"{url}/api/generate", json=body, timeout=timeout) as response:
        return [json.loads(line) for line in response.iter_lines()]


def succeeds_within(url: str, seconds: float) -> float:
    """How long the next request took to succeed; it is sent once, and nobody helps."""
    began = time.monotonic()
    answer = generate(url, 4, timeout=seconds)
    assert answer[-1].get("done") is True, answer[-1]
    return time.monotonic() - began


def break_in_mid_answer(url: str, breaks: Callable[[], object]) -> list[dict[str, object]]:
    """The objects of an answer during which something breaks."""
    body = {"model": MODEL, "prompt": "Tell me", "stream": True, "options": {"num_predict": 1500}}
    objects: list[dict[str, object]] = []
    breaker = threading.Thread(target=breaks)
    with httpx.stream("POST", f"{url}/api/generate", json=body, timeout=120) as response:
        for line in response.iter_lines():
            objects.append(json.loads(line))
            if len(objects) == 20:
                breaker.start()
    breaker.join()
    assert len(objects) > 20
    return objects


def test_a_worker_killed_in_mid_answer(cluster: Lab, url: str) -> None:
    objects = break_in_mid_answer(url, lambda: cluster.shell("pi2", "kill -9 $(pidof ggml-rpc-server)"))
    assert "error" in objects[-1], objects[-1]
    assert not any(thing.get("done") for thing in objects)
    print(f"next request after kill -9 of a worker: {succeeds_within(url, 30):.1f} s")


def test_a_worker_restarted_while_nobody_asks(cluster: Lab, url: str) -> None:
    before = cluster.shell("pi1", "systemctl show -p InvocationID --value bramble-rpc-head").stdout
    assert cluster.shell("pi3", "systemctl restart bramble-rpc-worker").returncode == 0
    print(f"next request after a worker's restart: {succeeds_within(url, 30):.1f} s")
    deadline = time.monotonic() + 30
    while cluster.shell("pi1", "systemctl show -p InvocationID --value bramble-rpc-head").stdout == before:
        assert time.monotonic() < deadline, "the head did not notice that its worker is another one"
        time.sleep(0.5)
    succeeds_within(url, 30)


def test_the_head_killed(cluster: Lab, url: str) -> None:
    cluster.shell("pi1", "kill -9 $(pidof llama-server)")
    print(f"next request after kill -9 of llama-server: {succeeds_within(url, 30):.1f} s")


def test_a_frozen_worker_ends_the_answer_with_an_error_and_comes_back(cluster: Lab, url: str) -> None:
    objects = break_in_mid_answer(url, lambda: cluster.break_("freeze", "pi2"))
    assert "error" in objects[-1], objects[-1]
    cluster.break_("mend", "pi2")
    assert succeeds_within(url, 90) < 90


def test_a_cable_pulled_in_mid_answer(cluster: Lab, url: str) -> None:
    objects = break_in_mid_answer(url, lambda: cluster.break_("cut", "pi3"))
    assert "error" in objects[-1], objects[-1]
    cluster.break_("mend", "pi3")
    assert succeeds_within(url, 90) < 90


def test_a_node_without_power_and_back(cluster: Lab, url: str) -> None:
    cluster.break_("stop", "pi3")
    answer = httpx.post(
        f"{url}/api/generate", json={"model": MODEL, "prompt": "a", "options": {"num_predict": 2}}, timeout=90
    )
    last = json.loads(answer.text.splitlines()[-1])
    assert "error" in last
    cluster.break_("mend", "pi3")
    assert succeeds_within(url, 90) < 90


def test_a_client_that_leaves_frees_the_slot(url: str) -> None:
    body = {"model": MODEL, "prompt": "Tell me", "stream": True, "options": {"num_predict": 1500}}
    with httpx.stream("POST", f"{url}/api/generate", json=body, timeout=60) as response:
        next(response.iter_lines())
    assert succeeds_within(url, 15) < 5
