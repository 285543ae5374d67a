"""The gateway as its clients and its backends see it: real HTTP on the loopback, emulated llama-servers behind it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from datetime import datetime
from typing import Any

import ollama
import openai
import pytest

from .conftest import MODEL, StartBackend, StartGateway, until
from .fake_llama_server import (
    BAD_REQUEST,
    EMPTY_REPLY,
    GARBAGE,
    NO_END,
    REFUSED_BY_LOADING,
    SERVER_ERROR,
    Fault,
    cut,
    error_event,
    hang,
)

TEXT = "Hello, world"
HI: Any = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": HI}
GENERATE = {"model": MODEL, "prompt": "hi"}
PROMPT = "the secret word is xyzzy"


async def post(running: Any, path: str, body: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    async with running.http.post(running.url + path, json=body) as response:
        return response.status, await response.json(content_type=None), dict(response.headers)


async def lines(running: Any, path: str, body: Any) -> list[dict[str, Any]]:
    async with running.http.post(running.url + path, json=body) as response:
        assert response.status == 200, await response.text()
        return [json.loads(line) async for line in response.content]


# The real clients.


async def test_ollama_client_chats(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend()
    client = ollama.AsyncClient((await start_gateway(server)).url)
    answer = await client.chat(MODEL, HI)
    assert (answer.message.role, answer.message.content, answer.done, answer.done_reason) == (
        "assistant",
        TEXT,
        True,
        "stop",
    )
    assert (answer.prompt_eval_count, answer.eval_count) == (7, 4)
    assert (answer.prompt_eval_duration, answer.eval_duration) == (140_000_000, 400_000_000)
    parts = [part async for part in await client.chat(f"{MODEL}:latest", HI, stream=True, keep_alive="-1s")]
    assert [part.message.content for part in parts] == ["Hello", ",", " wor", "ld", ""]
    assert [part.done for part in parts] == [False] * 4 + [True]
    assert all(part.model == f"{MODEL}:latest" for part in parts)


async def test_ollama_client_generates(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend()
    client = ollama.AsyncClient((await start_gateway(server)).url)
    answer = await client.generate(MODEL, "hi", system="be brief", options={"num_predict": 9, "stop": ["x"]})
    assert answer.response == TEXT
    body = server.bodies[-1]
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert (body["max_tokens"], body["stop"], body["stream"]) == (9, ["x"], True)
    raw = [part.response or "" async for part in await client.generate(MODEL, "<s>hi", raw=True, stream=True)]
    assert "".join(raw) == TEXT
    assert server.bodies[-1]["prompt"] == "<s>hi"


async def test_ollama_client_reads_models(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    running = await start_gateway(
        await start_backend(), model={"bytes": 62, "quantization": "Q8_0", "parameters": "60M", "sha256": "ab" * 32}
    )
    client = ollama.AsyncClient(running.url)
    (listed,) = (await client.list()).models
    assert (listed.model, listed.size, listed.digest) == (f"{MODEL}:latest", 62, "ab" * 32)
    assert listed.details is not None
    assert (listed.details.families, listed.details.quantization_level) == (["llama"], "Q8_0")
    (loaded,) = (await client.ps()).models
    assert (loaded.model, loaded.context_length) == (f"{MODEL}:latest", 4096)
    shown = await client.show(MODEL)
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 4096
    with pytest.raises(ollama.ResponseError) as caught:
        await client.show("nobody")
    assert (caught.value.status_code, caught.value.error) == (404, "model 'nobody' not found")
    with pytest.raises(ollama.ResponseError) as caught:
        await client.pull(MODEL)
    assert caught.value.status_code == 403


async def test_without_backends_there_are_no_models(start_gateway: StartGateway) -> None:
    client = ollama.AsyncClient((await start_gateway()).url)
    assert list((await client.list()).models) == []
    with pytest.raises(ollama.ResponseError) as caught:
        await client.chat(MODEL, HI)
    assert caught.value.status_code == 404


async def test_ollama_client_calls_tools(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend(
        tokens=[], tool_call=("light", ['{"room"', ':"hall"}']), finish_reason="tool_calls", reasoning=["hm", "m"]
    )
    client = ollama.AsyncClient((await start_gateway(server)).url)
    tool = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
    for stream in (False, True):
        answer: Any = await client.chat(MODEL, HI, tools=[tool], stream=stream)
        parts = [part async for part in answer] if stream else [answer]
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [("light", {"room": "hall"})]
        assert "".join(part.message.thinking or "" for part in parts) == "hmm"
        assert parts[-1].done_reason == "stop"


async def test_openai_client_chats(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    running = await start_gateway(await start_backend())
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HI)
        assert answer.choices[0].message.content == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
        stream: Any = await client.chat.completions.create(
            model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert chunks[-1].usage.total_tokens == 11
        assert len({chunk.created for chunk in chunks}) == len({chunk.id for chunk in chunks}) == 1
        assert [model.id for model in (await client.models.list()).data] == [MODEL]
        assert (await client.models.retrieve(f"{MODEL}:latest")).id == MODEL
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="nobody", messages=HI)
        assert caught.value.body == {
            "message": "model 'nobody' not found",
            "type": "not_found_error",
            "param": None,
            "code": None,
        }


async def test_openai_client_sees_a_broken_stream_as_an_error(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    server.faults.append(cut(2))
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        stream: Any = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
        chunks = aiter(stream)
        assert [(await anext(chunks)).choices[0].delta.content for _ in range(3)] == ["", "Hello", ","]
        with pytest.raises(openai.APIError, match="pi1"):
            await anext(chunks)


# Shapes and statuses.


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/nothing", None, 404, "not found"),
        ("GET", "/api/chat", None, 405, "method GET"),
        ("POST", "/api/tags", {}, 405, "method POST"),
        ("POST", "/api/chat", b"", 400, "missing request body"),
        ("POST", "/api/chat", b"{", 400, "not JSON"),
        ("POST", "/api/chat", b"[]", 400, "must be an object"),
        ("POST", "/api/chat", {"messages": HI}, 400, "model is required"),
        ("POST", "/api/chat", {"model": "nobody", "messages": HI}, 404, "model 'nobody' not found"),
        ("POST", "/api/generate", {"model": "nobody", "prompt": ""}, 404, "model 'nobody' not found"),
        ("POST", "/api/chat", {**CHAT, "think": True}, 400, "does not support thinking"),
        ("POST", "/api/chat", {**CHAT, "keep_alive": "soon"}, 400, "keep_alive"),
        ("POST", "/api/chat", {**CHAT, "options": {"temperature": "hot"}}, 400, "options.temperature"),
        ("POST", "/api/chat", {**CHAT, "padding": "x" * 5000}, 413, "larger than 4096 bytes"),
        ("POST", "/api/generate", {"model": MODEL, "prompt": "x", "suffix": "y"}, 400, "insert"),
        ("POST", "/api/pull", {"model": "x"}, 403, "owner"),
        ("POST", "/api/push", {"model": "x"}, 403, "owner"),
        ("POST", "/api/create", {"model": "x"}, 403, "owner"),
        ("POST", "/api/copy", {}, 403, "owner"),
        ("DELETE", "/api/delete", {}, 403, "owner"),
        ("POST", "/api/blobs/sha256:0", b"x", 403, "owner"),
        ("POST", "/api/embed", {"model": MODEL, "input": "x"}, 501, "/api/embed"),
        ("POST", "/v1/chat/completions", {"model": MODEL}, 400, "messages"),
        ("POST", "/v1/chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens"),
        ("POST", "/v1/chat/completions", {**CHAT, "padding": "x" * 5000}, 413, "larger than 4096 bytes"),
        ("GET", "/v1/chat/completions", None, 405, "method GET"),
        ("GET", "/v1/models/nobody", None, 404, "model 'nobody' not found"),
        ("GET", "/v1/nothing", None, 404, "not found"),
    ],
)
async def test_errors_have_the_shape_of_their_api(
    start_backend: StartBackend,
    start_gateway: StartGateway,
    method: str,
    path: str,
    body: Any,
    status: int,
    message: str,
) -> None:
    running = await start_gateway(await start_backend(), limits={"body_bytes": 4096})
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    async with running.http.request(method, running.url + path, data=data) as response:
        answer = await response.json()
        assert response.status == status
        assert response.content_type == "application/json"
        if status == 405:
            assert response.headers["Allow"]
    if path.startswith("/v1"):
        assert set(answer) == {"error"}
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert message in answer["error"]["message"]
    else:
        assert set(answer) == {"error"}
        assert message in answer["error"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_heartbeats(start_backend: StartBackend, start_gateway: StartGateway, method: str) -> None:
    running = await start_gateway(await start_backend())
    for path, text in (("/", "Ollama is running"), ("/api/version", '{"version":"0.12.11"}')):
        async with running.http.request(method, running.url + path) as response:
            assert response.status == 200
            assert await response.text() == (text if method == "GET" else "")


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/generate", {"model": MODEL, "prompt": ""}, "load"),
        ("/api/generate", {"model": MODEL, "keep_alive": 0}, "unload"),
        ("/api/generate", {"model": MODEL, "prompt": "", "keep_alive": "0s"}, "unload"),
        ("/api/chat", {"model": MODEL, "messages": []}, "load"),
        ("/api/chat", {"model": MODEL, "messages": [], "keep_alive": 0, "stream": True}, "unload"),
    ],
)
async def test_load_and_unload_generate_nothing(
    start_backend: StartBackend, start_gateway: StartGateway, path: str, body: Any, reason: str
) -> None:
    server = await start_backend()
    status, answer, headers = await post(await start_gateway(server), path, body)
    assert (status, answer["done"], answer["done_reason"]) == (200, True, reason)
    assert headers["Content-Type"].startswith("application/json")
    assert server.bodies == []


async def test_stream_shapes(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    running = await start_gateway(await start_backend())
    async with running.http.post(f"{running.url}/api/chat", json={**CHAT, "tools": []}) as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert response.headers["X-Bramble-Backend"] == "pi1"
        text = await response.text()
    assert text.endswith("}\n")
    assert "\n\n" not in text
    last = json.loads(text.splitlines()[-1])
    assert set(last) - {"load_duration"} == {
        "model",
        "created_at",
        "message",
        "done",
        "done_reason",
        "total_duration",
        "prompt_eval_count",
        "prompt_eval_duration",
        "eval_count",
        "eval_duration",
    }
    async with running.http.post(f"{running.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["X-Bramble-Backend"] == "pi1"
        events = (await response.text()).removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    assert "usage" not in events[-2]


# Failures.


@pytest.mark.parametrize(
    "fault", [EMPTY_REPLY, REFUSED_BY_LOADING, cut(0), GARBAGE, SERVER_ERROR, NO_END, error_event(0)], ids=str
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_retried_elsewhere(
    start_backend: StartBackend, start_gateway: StartGateway, fault: Fault, stream: bool
) -> None:
    first, second = await start_backend(), await start_backend()
    running = await start_gateway(first, second)
    first.faults.append(fault)
    if fault == NO_END:
        first.tokens = []
    async with running.http.post(f"{running.url}/api/generate", json=GENERATE | {"stream": stream}) as response:
        assert (response.status, response.headers["X-Bramble-Backend"]) == (200, "pi2")
        parts = [json.loads(line) for line in (await response.text()).splitlines()]
    assert "".join(part["response"] for part in parts) == TEXT
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (len(first.bodies), len(second.bodies)) == (1, 1)


async def test_a_request_that_every_backend_fails_ends_with_its_error(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    first, second = await start_backend(), await start_backend()
    running = await start_gateway(first, second)
    first.faults.append(SERVER_ERROR)
    second.faults.append(SERVER_ERROR)
    status, answer, _ = await post(running, "/api/chat", CHAT)
    assert (status, answer) == (502, {"error": "backend 'pi2' failed: failed to process"})
    assert (len(first.bodies), len(second.bodies)) == (1, 1)
    assert [backend["state"] for backend in (await running.status())["backends"]] == ["up", "up"]


async def test_a_request_that_kills_its_backend_each_time_is_given_up(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    server.faults.extend([EMPTY_REPLY] * 9)
    status, answer, headers = await post(running, "/api/chat", CHAT)
    assert status == 502
    assert "pi1" in answer["error"]
    assert "Retry-After" not in headers
    assert len(server.bodies) == 3


async def test_a_request_that_the_backend_rejects_is_not_retried(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    first, second = await start_backend(), await start_backend()
    running = await start_gateway(first, second)
    first.faults.append(BAD_REQUEST)
    status, answer, _ = await post(running, "/api/chat", CHAT)
    assert (status, answer) == (400, {"error": "the request exceeds the available context size"})
    assert (len(first.bodies), len(second.bodies)) == (1, 0)
    assert [backend["state"] for backend in (await running.status())["backends"]] == ["up", "up"]


@pytest.mark.parametrize("fault", [cut(2), hang(2), error_event(2)], ids=str)
async def test_a_failure_after_the_first_token_ends_the_stream_with_an_error(
    start_backend: StartBackend, start_gateway: StartGateway, fault: Fault
) -> None:
    first, second = await start_backend(), await start_backend()
    running = await start_gateway(first, second, timeouts={"between_tokens_s": 0.15})
    first.faults.append(fault)
    got = await lines(running, "/api/chat", CHAT)
    assert [part.get("message", {}).get("content") for part in got] == ["Hello", ",", None]
    assert set(got[-1]) == {"error"}
    assert not any(part.get("done") for part in got)
    assert second.bodies == []


@pytest.mark.parametrize("fault", [cut(2), hang(2), error_event(2)], ids=str)
async def test_a_failure_after_the_first_token_ends_the_sse_stream_with_an_error(
    start_backend: StartBackend, start_gateway: StartGateway, fault: Fault
) -> None:
    server = await start_backend()
    running = await start_gateway(server, timeouts={"between_tokens_s": 0.15})
    server.faults.append(fault)
    async with running.http.post(f"{running.url}/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        events = (await response.text()).removesuffix("\n\n").split("\n\n")
    assert set(json.loads(events[-1].removeprefix("data: "))) == {"error"}
    assert "data: [DONE]" not in events
    assert not any('"finish_reason":"' in event for event in events)


@pytest.mark.parametrize(
    ("fault", "status", "retry"),
    [(cut(2), 502, "5"), (hang(2), 504, None), (error_event(2), 502, None), (hang(0), 504, None)],
    ids=str,
)
async def test_a_failure_of_a_whole_answer_has_a_status(
    start_backend: StartBackend, start_gateway: StartGateway, fault: Fault, status: int, retry: str | None
) -> None:
    server = await start_backend()
    running = await start_gateway(server, timeouts={"between_tokens_s": 0.15, "first_token_s": 0.3})
    server.faults.append(fault)
    got, answer, headers = await post(running, "/v1/chat/completions", CHAT)
    assert (got, headers.get("Retry-After")) == (status, retry)
    assert answer["error"]["type"] == "api_error"
    # The backend was let go of, and after a probe it serves again.
    assert (await post(running, "/v1/chat/completions", CHAT))[0] == 200


# A backend that goes and comes back.


async def test_a_request_waits_for_its_only_backend_to_restart(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    state = running.gateway.cluster.states["pi1"]
    await server.stop()
    request = asyncio.create_task(post(running, "/api/chat", {**CHAT, "stream": False}))
    await until(lambda: not state.up)
    await until(lambda: running.gateway.cluster.queue.depth == 1)
    server.loading = True
    await server.start()
    checks = server.health_checks
    await server.until(lambda: server.health_checks >= checks + 2)
    assert not request.done()
    assert server.bodies == []
    probes = server.probes
    server.loading = False
    status, answer, headers = await request
    assert (status, answer["message"]["content"], headers["X-Bramble-Backend"]) == (200, TEXT, "pi1")
    assert server.probes == probes + 1
    assert len(server.bodies) == 1


async def test_a_crash_in_a_request_costs_that_request_a_retry_only(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """An RPC worker was restarted while nothing ran: /health says 200, and the next request aborts the server."""
    server = await start_backend()
    running = await start_gateway(server)
    server.faults.append(EMPTY_REPLY)
    assert (await lines(running, "/api/chat", CHAT))[-1]["done"] is True
    (backend,) = (await running.status())["backends"]
    assert (backend["state"], backend["requests"], backend["in_flight"]) == ("up", 2, 0)
    assert "without an answer" in backend["last_error"]


async def test_health_alone_is_no_proof_of_life(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend(always=EMPTY_REPLY)
    running = await start_gateway(server, ready=False, queue={"max_wait_s": 0.3})
    await server.until(lambda: server.probes >= 2)
    status, answer, headers = await post(running, "/api/chat", CHAT)
    assert (status, answer) == (503, {"error": f"no backend of '{MODEL}' is available: waited 0.3 s"})
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert server.bodies == []
    assert (await (await running.http.get(f"{running.url}/api/ps")).json()) == {"models": []}
    server.always = None
    await until(lambda: running.gateway.cluster.states["pi1"].up)
    assert (await post(running, "/api/chat", {**CHAT, "stream": False}))[0] == 200


async def test_a_full_queue_refuses_at_once(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend()
    running = await start_gateway(server, queue={"max_waiting": 1})
    server.faults.append(hang(0))
    first = asyncio.create_task(post(running, "/api/chat", {**CHAT, "stream": False}))
    await server.until(lambda: server.running == 1)
    second = asyncio.create_task(post(running, "/api/chat", {**CHAT, "stream": False}))
    await until(lambda: running.gateway.cluster.queue.depth == 1)
    for path, message in (("/api/chat", None), ("/v1/chat/completions", "message")):
        status, answer, headers = await post(running, path, CHAT)
        error = answer["error"][message] if message else answer["error"]
        assert (status, error) == (503, "server busy, please try again.  maximum pending requests exceeded")
        assert 1 <= int(headers["Retry-After"]) <= 60
    assert (await running.status())["queue"] == {"depth": 1, "max_waiting": 1}
    server.release()
    assert [(await task)[0] for task in (first, second)] == [200, 200]


# Clients that go away.


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
async def test_a_client_that_leaves_stops_the_generation(
    start_backend: StartBackend, start_gateway: StartGateway, path: str, stream: bool, after: int
) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    server.faults.append(hang(after))
    request = asyncio.create_task(post(running, path, {**CHAT, "stream": stream}))
    await server.until(lambda: server.running == 1)
    request.cancel()
    async with asyncio.timeout(2):
        await server.until(lambda: server.closed_by_client == 1)
    await until(lambda: running.gateway.cluster.states["pi1"].in_flight == 0)
    assert running.gateway.cluster.states["pi1"].up
    assert (await post(running, path, {**CHAT, "stream": False}))[0] == 200


async def test_a_client_that_leaves_the_queue_leaves_nothing(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    queue = running.gateway.cluster.queue
    server.faults.append(hang(0))
    first = asyncio.create_task(post(running, "/api/chat", {**CHAT, "stream": False}))
    await server.until(lambda: server.running == 1)
    waiting = asyncio.create_task(post(running, "/api/chat", CHAT))
    await until(lambda: queue.depth == 1)
    waiting.cancel()
    await until(lambda: queue.depth == 0)
    server.release()
    assert (await first)[0] == 200
    assert len(server.bodies) == 1


async def test_many_requests_share_the_slots(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    servers = [await start_backend() for _ in range(2)]
    running = await start_gateway(*servers, slots=2)
    answers = await asyncio.gather(*(post(running, "/api/chat", {**CHAT, "stream": False}) for _ in range(40)))
    assert {(status, answer["message"]["content"]) for status, answer, _ in answers} == {(200, TEXT)}
    assert sum(server.completed for server in servers) == 40
    assert all(0 < server.most_running <= 2 for server in servers)


# What the operator sees.


async def test_status(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    before = time.time()
    await post(running, "/api/chat", {**CHAT, "stream": False})
    status = await running.status()
    assert set(status) == {"version", "uptime_s", "queue", "backends"}
    (backend,) = status["backends"]
    last = backend.pop("last")
    assert backend == {
        "name": "pi1",
        "kind": "llama_server",
        "url": server.url,
        "state": "up",
        "in_flight": 0,
        "slots": 1,
        "models": [MODEL],
        "last_error": None,
        "requests": 1,
    }
    assert (last["prompt_tokens_per_second"], last["tokens_per_second"], last["model"]) == (50.0, 10.0, MODEL)
    assert datetime.fromisoformat(last["at"]).timestamp() >= before - 1


async def test_the_log_has_one_line_a_request_and_no_prompt(
    start_backend: StartBackend, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    running = await start_gateway(await start_backend())
    caplog.set_level(logging.DEBUG, logger="bramble")
    caplog.clear()
    await post(running, "/api/chat", {**CHAT, "messages": [{"role": "user", "content": PROMPT}], "stream": False})
    await post(running, "/api/chat", {"model": f"{PROMPT}\nforged line", "messages": HI})
    await post(running, "/api/chat", {**CHAT, "think": PROMPT})
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("bramble")]
    assert len(logged) == 3
    assert re.fullmatch(
        r"method=POST path=/api/chat model=bramble-synth backend=pi1 status=200 ms=\d+ queued_ms=\d+ attempts=1 "
        r"prompt_tokens=7 tokens=4 tokens_per_second=10\.00",
        logged[0],
    )
    assert logged[1].startswith("method=POST path=/api/chat model=- backend=- status=404 ")
    assert not any("xyzzy" in line or "forged" in line or "\n" in line for line in logged)


# Shutting down.


async def test_draining_ends_every_request(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    server = await start_backend()
    running = await start_gateway(server)
    server.faults.append(hang(2))
    active = asyncio.create_task(lines(running, "/api/chat", CHAT))
    await server.until(lambda: server.running == 1)
    waiting = asyncio.create_task(post(running, "/api/chat", CHAT))
    await until(lambda: running.gateway.cluster.queue.depth == 1)
    await until(lambda: any(exchange.deltas == 2 for exchange in running.gateway._active))
    await running.gateway.drain(0.05)
    assert (await active)[-1] == {"error": "the gateway is shutting down"}
    assert (await waiting)[:2] == (503, {"error": "the gateway is shutting down"})
    assert (await post(running, "/api/chat", CHAT))[0] == 503


async def test_what_a_backend_says_is_for_the_client_only(
    start_backend: StartBackend, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """An engine's error may quote the prompt or the answer."""
    server = await start_backend()
    running = await start_gateway(server)
    caplog.set_level(logging.DEBUG, logger="bramble")
    server.faults.extend([SERVER_ERROR, error_event(2), SERVER_ERROR])
    status, answer, _ = await post(running, "/api/chat", CHAT)
    assert (status, answer["error"]) == (502, "backend 'pi1' failed: failed to process")
    assert (await lines(running, "/api/chat", CHAT))[-1] == {"error": "backend 'pi1' failed: compute error"}
    assert (await running.status())["backends"][0]["last_error"] == "the server answered with error 500"
    assert "failed to process" not in caplog.text
    assert "compute error" not in caplog.text
    assert caplog.text.count("error='backend failed: the server answered with error 500'") == 2


async def test_a_mistake_in_the_gateway_is_still_an_answer(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start_gateway(await start_backend())

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bramble.gateway.ollama_api.OllamaFormat.done", broken)
    assert set((await lines(running, "/api/chat", CHAT))[-1]) == {"error"}
    monkeypatch.setattr("bramble.gateway.ollama_api.OllamaFormat.whole", broken)
    status, answer, _ = await post(running, "/api/chat", {**CHAT, "stream": False})
    assert (status, set(answer)) == (500, {"error"})
    assert (await running.status())["backends"][0]["in_flight"] == 0
