"""The adapter for distributed-llama, before the front that Bramble puts over its root (roles/dllama_api)."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from bramble.gateway.backends import RejectedError
from bramble.gateway.backends.dllama_api import StopSequences, chat_body
from bramble.gateway.generation import GenerationRequest, Message, Sampling

from .conftest import MODEL, StartGateway, until

FILES = Path(__file__).resolve().parents[2] / "roles/dllama_api/files"
HI: Any = [{"role": "user", "content": "hi"}]


def load_front() -> Any:
    """The supervisor of the role. Its name differs from that under which other tests load it."""
    sys.path.insert(0, str(FILES))
    try:
        spec = importlib.util.spec_from_file_location("gateway_dllama_supervisor", FILES / "dllama_supervisor.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FILES))


front = load_front()


class ScriptedEngine:
    """In the place of dllama-api behind the front: says its pieces, and notes what it was asked."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.lock = threading.Lock()
        self.asked: list[dict[str, Any]] = []
        self.said = 0
        self.breaks_after: int | None = None

    def ask(self, wanted: dict[str, Any]) -> Iterator[str]:
        self.asked.append(wanted)
        for number, piece in enumerate(self.pieces[: wanted.get("max_tokens")]):
            if number == self.breaks_after:
                raise front.EngineError("its stream broke off")
            self.said += 1
            yield piece


StartFront = Callable[[list[str]], "tuple[ScriptedEngine, Any]"]


@pytest.fixture
def start_front(stack: AsyncExitStack) -> StartFront:
    def start(pieces: list[str]) -> tuple[ScriptedEngine, Any]:
        config = front.Config(MODEL, ["dllama-api"], "http://127.0.0.1:0", 10.0, 10.0, engine_port=1, context=256)
        server = front.Front(config)
        engine = server.engine = ScriptedEngine(pieces)
        server.state = "ready"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        return engine, server

    return start


def section(server: Any) -> dict[str, Any]:
    """The gateway's configuration of it."""
    model = {"name": MODEL, "context": 256, "capabilities": ["completion"]}
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return {"backends": [{"name": "pi1-dllama-api", "kind": "dllama_api", "url": url, "slots": 1, "models": [model]}]}


async def test_both_interfaces(start_front: StartFront, start_gateway: StartGateway) -> None:
    engine, server = start_front(["Hel", "lo", ", ", "world"])
    running = await start_gateway(**section(server))
    client = ollama.AsyncClient(running.url)
    answer = await client.chat(MODEL, HI, options={"num_predict": 3, "seed": 7, "temperature": 0.1})
    assert (answer.message.content, answer.done_reason, answer.eval_count) == ("Hello, ", "length", 3)
    assert engine.asked[-1] == {"messages": HI, "stream": True, "max_tokens": 3, "seed": 7}
    parts = [part.message.content async for part in await client.chat(MODEL, HI, stream=True)]
    assert parts == ["Hel", "lo", ", ", "world", ""]
    openai = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none")
    whole = await openai.chat.completions.create(model=MODEL, messages=HI)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Hello, world", "stop")
    generated = await client.generate(MODEL, "hi", system="be brief")
    assert generated.response == "Hello, world"
    assert engine.asked[-1]["messages"][0] == {"role": "system", "content": "be brief"}


async def test_stop_sequences_are_found_though_the_engine_knows_none(
    start_front: StartFront, start_gateway: StartGateway
) -> None:
    engine, server = start_front(["a", "b", "EN", "D", *["x"] * 500])
    running = await start_gateway(**section(server))
    await until(lambda: not engine.lock.locked())
    engine.said = 0
    answer = await ollama.AsyncClient(running.url).chat(MODEL, HI, options={"stop": ["END"]})
    assert (answer.message.content, answer.done_reason) == ("ab", "stop")
    # The front sees that nobody listens, and ends the computation.
    await until(lambda: not engine.lock.locked())
    assert engine.said < 500


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"raw": True}, "conversations"),
        ({"format": "json"}, "format"),
        ({"images": ["aGk="]}, "does not support"),
        ({"prompt": "a\0b"}, "NUL"),
        ({"prompt": "a" * 3000}, "do not fit"),
    ],
)
async def test_what_it_cannot_do_is_refused_in_words(
    start_front: StartFront, start_gateway: StartGateway, options: dict[str, Any], word: str
) -> None:
    _, server = start_front(["x"])
    running = await start_gateway(**section(server))
    with pytest.raises(ollama.ResponseError) as caught:
        await ollama.AsyncClient(running.url).generate(**{"model": MODEL, "prompt": "hi", **options})
    assert caught.value.status_code == 400
    assert word in caught.value.error
    assert (await running.status())["backends"][0]["state"] == "up"


async def test_an_engine_that_breaks_off_is_told(start_front: StartFront, start_gateway: StartGateway) -> None:
    engine, server = start_front(["a", "b", "c"])
    running = await start_gateway(**section(server))
    engine.breaks_after = 2

    async def read() -> None:
        async for _ in await ollama.AsyncClient(running.url).chat(MODEL, HI, stream=True):
            pass

    with pytest.raises(ollama.ResponseError, match="broke off"):
        await read()
    assert engine.said == 2 + 1  # one of them for the gateway's own look whether it generates


async def test_it_is_down_until_the_model_is_ready(start_front: StartFront, start_gateway: StartGateway) -> None:
    _, server = start_front(["x"])
    server.state = "loading"
    running = await start_gateway(ready=False, **section(server))
    await until(lambda: running.gateway.cluster.states["pi1-dllama-api"].last_error is not None)
    assert (await running.status())["backends"][0]["state"] != "up"
    server.state = "ready"
    await until(lambda: running.gateway.cluster.states["pi1-dllama-api"].up)


def test_a_negative_seed_is_a_random_one() -> None:
    request = GenerationRequest(MODEL, (Message("user", "hi"),), Sampling(seed=-1, temperature=0.5, stop=("x",)))
    assert chat_body(request, MODEL) == {"model": MODEL, "messages": HI, "stream": True}


def test_probabilities_are_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        chat_body(GenerationRequest(MODEL, (Message("user", "hi"),), logprobs=3), MODEL)
    assert "leave out logprobs" in caught.value.detail


# Stop sequences.


@pytest.mark.parametrize(
    ("sequences", "pieces", "shown"),
    [
        ((), ["a", "b"], ["a", "b"]),
        (("",), ["a", "b"], ["a", "b"]),
        (("END",), ["a", "EN", "D", "b"], ["a", "", ""]),
        (("END",), ["aE", "Nd"], ["a", "ENd"]),
        (("END",), ["EEN", "D!"], ["E", ""]),
        (("aab",), ["aaa", "b"], ["a", ""]),
        (("\n\n", "User:"), ["x\n", "Us", "er:"], ["x", "\n", ""]),
        (("bc", "abcd"), ["xab", "cd"], ["x", ""]),
    ],
)
def test_what_may_begin_a_sequence_waits(sequences: tuple[str, ...], pieces: list[str], shown: list[str]) -> None:
    stop = StopSequences(sequences)
    seen = []
    for piece in pieces:
        seen.append(stop.feed(piece))
        if stop.found:
            break
    assert seen == shown


LETTERS = st.text("ab", max_size=4)


@given(st.lists(LETTERS, max_size=3), st.lists(LETTERS, max_size=8))
def test_pieces_make_no_difference(sequences: list[str], pieces: list[str]) -> None:
    text = "".join(pieces)
    places = [text.find(sequence) for sequence in sequences if sequence and sequence in text]
    stop = StopSequences(sequences)
    shown = ""
    for piece in pieces:
        shown += stop.feed(piece)
        if stop.found:
            break
    else:
        shown += stop.close()
    if places:
        # It stops at the sequence that is whole first, which another one may have begun before.
        assert stop.found
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(sequence) for sequence in sequences if sequence)
    else:
        assert (shown, stop.found) == (text, False)
