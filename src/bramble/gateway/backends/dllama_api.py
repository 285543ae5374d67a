"""distributed-llama's root, by the address that Bramble's supervisor puts in front of it (roles/dllama_api).

That answers conversations as OpenAI's interface does, one at a time, and checks what would end the engine. The engine
heeds the messages, the number of tokens and the seed: temperature and top_p are its own for all requests, it tells no
counts, and it knows no stop sequences, so these are found here.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence

import aiohttp

from ..config import BackendConfig
from ..generation import Delta, Done, Event, FinishReason, GenerationRequest, Json, Message, Sampling, without_none
from . import RejectedError, UnavailableError
from .transport import chunks, health, transport_errors

CHAT = "/v1/chat/completions"


def chat_body(request: GenerationRequest, model: str) -> Json:
    """The body of a request. Raises RejectedError for what the engine cannot do."""
    if isinstance(request.prompt, str):
        raise RejectedError(400, f"'{model}' takes conversations only: leave out raw, or use /api/chat")
    if request.schema is not None:
        raise RejectedError(400, f"'{model}' cannot be held to a format: leave it out")
    if request.logprobs is not None:
        raise RejectedError(400, f"'{model}' tells no probabilities: leave out logprobs")
    sampling = request.sampling
    return without_none(
        {
            "model": model,
            "messages": [{"role": message.role, "content": message.text} for message in request.prompt],
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed if sampling.seed is None or sampling.seed >= 0 else None,
        }
    )


class StopSequences:
    """Text up to the first of some sequences. What may be the beginning of one is held back until the next piece."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self._sequences = [sequence for sequence in sequences if sequence]
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """What may be shown now. Nothing comes after `found`."""
        text = self._held + piece
        places = [place for sequence in self._sequences if (place := text.find(sequence)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        longest = max((len(sequence) for sequence in self._sequences), default=1) - 1
        held = next(
            (
                size
                for size in range(min(longest, len(text)), 0, -1)
                if any(sequence.startswith(text[-size:]) for sequence in self._sequences)
            ),
            0,
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def close(self) -> str:
        """What was held back: the answer ended, and it was no sequence."""
        held, self._held = self._held, ""
        return held


class DllamaApi:
    """A Backend (see there) over one root of distributed-llama."""

    def __init__(self, config: BackendConfig, http: aiohttp.ClientSession) -> None:
        self._url = config.url
        self._http = http

    async def stream(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event]:
        body = chat_body(request, model)
        stop = StopSequences(request.sampling.stop)
        reason: FinishReason | None = None
        with transport_errors():
            async with contextlib.aclosing(chunks(self._http, self._url + CHAT, body)) as answer:
                async for chunk in answer:
                    [choice] = chunk["choices"]
                    if text := stop.feed(choice["delta"].get("content") or ""):
                        yield Delta(text)
                    if stop.found:
                        reason = "stop"
                        break
                    if choice.get("finish_reason"):
                        reason = "length" if choice["finish_reason"] == "length" else "stop"
        if reason is None:
            raise UnavailableError("the server closed the connection before the end of its answer")
        if text := stop.close():
            yield Delta(text)
        yield Done(reason)

    async def check(self) -> None:
        await health(self._http, self._url)

    async def prove(self, model: str) -> None:
        request = GenerationRequest(model, (Message("user", "Hi"),), Sampling(max_tokens=1))
        async with contextlib.aclosing(self.stream(request, model)) as events:
            async for _ in events:
                pass
