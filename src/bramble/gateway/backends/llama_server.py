"""llama-server of llama.cpp.

Field names and error types: tools/server/server-{task,common,schema}.cpp of llama.cpp 0c1e57098.
A conversation goes to /v1/chat/completions, where the server applies the template; a raw prompt to /completion.

Behind llama.cpp RPC the server aborts when a worker dies: the connection is reset, then refused, then /health answers
503 while the model loads. It also answers 200 while the workers are gone, so only a generated token proves life.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Protocol

import aiohttp

from ..config import BackendConfig
from ..generation import (
    Delta,
    Done,
    Event,
    FinishReason,
    GenerationRequest,
    Json,
    Message,
    Sampling,
    ToolCall,
    Usage,
    without_none,
)
from . import UnavailableError
from .transport import chunks, health, transport_errors

CHAT, COMPLETION = "/v1/chat/completions", "/completion"


def _sampling(sampling: Sampling) -> Json:
    return without_none(
        {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "typical_p": sampling.typical_p,
            "repeat_last_n": sampling.repeat_last_n,
            "repeat_penalty": sampling.repeat_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # A negative seed asks for a random one; the server's field is unsigned, and absent means random.
            "seed": sampling.seed if sampling.seed is None or sampling.seed >= 0 else None,
            "stop": list(sampling.stop) or None,
        }
    )


def _message(message: Message) -> Json:
    content: str | list[Json] | None = message.text
    if message.images:
        content = [{"type": "text", "text": message.text}] if message.text else []
        content += [{"type": "image_url", "image_url": {"url": image}} for image in message.images]
    result: Json = {"role": message.role, "content": content}
    if message.thinking:
        result["reasoning_content"] = message.thinking
    if message.tool_calls:
        result["tool_calls"] = [
            {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        result["name"] = message.tool_name
    return result


def chat_body(request: GenerationRequest, model: str) -> Json:
    """The body for /v1/chat/completions. The prompt must be a conversation."""
    assert not isinstance(request.prompt, str)
    body: Json = {
        "model": model,
        "messages": [_message(message) for message in request.prompt],
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": False,
        **_sampling(request.sampling),
    }
    if request.sampling.max_tokens is not None:
        body["max_tokens"] = request.sampling.max_tokens
    if request.tools:
        body["tools"] = list(request.tools)
        body["tool_choice"] = request.tool_choice
    if request.schema is not None:
        body["response_format"] = (
            {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.schema}}
            if request.schema
            else {"type": "json_object"}
        )
    if request.think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(request.think)}
        if isinstance(request.think, str):
            body["reasoning_effort"] = request.think
    if request.logprobs is not None:
        body["logprobs"] = True
        body["top_logprobs"] = request.logprobs
    return body


def completion_body(request: GenerationRequest) -> Json:
    """The body for /completion. The prompt must be a string."""
    assert isinstance(request.prompt, str)
    body: Json = {
        "prompt": request.prompt,
        "stream": True,
        "timings_per_token": False,
        **_sampling(request.sampling),
    }
    if request.sampling.max_tokens is not None:
        body["n_predict"] = request.sampling.max_tokens
    if request.schema is not None:
        body["json_schema"] = request.schema or {"type": "object"}
    if request.logprobs is not None:
        body["n_probs"] = max(1, request.logprobs)
    return body


def _usage(prompt_tokens: Any, completion_tokens: Any, timings: Json) -> Usage:
    """`timings` counts only the part of the prompt that was not in the cache, the token counts are of the whole."""
    return Usage(
        prompt_tokens=int(prompt_tokens or 0),
        completion_tokens=int(completion_tokens or 0),
        prompt_s=float(timings.get("prompt_ms") or 0) / 1000,
        generation_s=float(timings.get("predicted_ms") or 0) / 1000,
        prompt_tokens_per_second=float(timings.get("prompt_per_second") or 0),
        tokens_per_second=float(timings.get("predicted_per_second") or 0),
    )


class Parser(Protocol):
    """Turns the payloads of a stream into events. The payloads are JSON objects; raises BackendError."""

    def feed(self, chunk: Json) -> Iterator[Delta]: ...

    def finish(self) -> Done | None:
        """The end of the answer, or None when the answer has not come to its end."""
        ...


class ChatParser:
    """Chunks of /v1/chat/completions: deltas, a chunk with the finish reason, one with usage and timings."""

    _REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}

    def __init__(self) -> None:
        self._reason: FinishReason | None = None
        self._usage: Json = {}
        self._timings: Json = {}

    def feed(self, chunk: Json) -> Iterator[Delta]:
        self._usage = chunk.get("usage") or self._usage
        self._timings = chunk.get("timings") or self._timings
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            event = Delta(
                text=delta.get("content") or "",
                thinking=delta.get("reasoning_content") or "",
                tool_calls=tuple(self._tool_call(call) for call in delta.get("tool_calls") or ()),
                logprobs=tuple((choice.get("logprobs") or {}).get("content") or ()),
            )
            if event != Delta():
                yield event
            if choice.get("finish_reason"):
                self._reason = self._REASONS.get(choice["finish_reason"], "stop")

    def finish(self) -> Done | None:
        if self._reason is None:
            return None
        return Done(
            self._reason,
            _usage(self._usage.get("prompt_tokens"), self._usage.get("completion_tokens"), self._timings),
        )

    @staticmethod
    def _tool_call(call: Json) -> ToolCall:
        function = call.get("function") or {}
        return ToolCall(
            name=function.get("name") or "",
            arguments=function.get("arguments") or "",
            id=call.get("id") or "",
            index=int(call.get("index") or 0),
        )


class CompletionParser:
    """Chunks of /completion: `content` until one with `"stop": true`, which has the totals."""

    def __init__(self) -> None:
        self._last: Json | None = None

    def feed(self, chunk: Json) -> Iterator[Delta]:
        event = Delta(text=chunk.get("content") or "", logprobs=tuple(chunk.get("completion_probabilities") or ()))
        if event != Delta():
            yield event
        if chunk.get("stop"):
            self._last = chunk

    def finish(self) -> Done | None:
        if self._last is None:
            return None
        return Done(
            "length" if self._last.get("stop_type") == "limit" else "stop",
            _usage(
                self._last.get("tokens_evaluated"),
                self._last.get("tokens_predicted"),
                self._last.get("timings") or {},
            ),
        )


class LlamaServer:
    """A Backend (see there) over one llama-server."""

    def __init__(self, config: BackendConfig, http: aiohttp.ClientSession) -> None:
        self._url = config.url
        self._http = http

    async def stream(self, request: GenerationRequest, model: str) -> AsyncGenerator[Event]:
        raw = isinstance(request.prompt, str)
        parser: Parser = CompletionParser() if raw else ChatParser()
        body = completion_body(request) if raw else chat_body(request, model)
        url = self._url + (COMPLETION if raw else CHAT)
        with transport_errors():
            async with contextlib.aclosing(chunks(self._http, url, body)) as answer:
                async for chunk in answer:
                    for event in parser.feed(chunk):
                        yield event
        done = parser.finish()
        if done is None:
            raise UnavailableError("the server closed the connection before the end of its answer")
        yield done

    async def check(self) -> None:
        await health(self._http, self._url)

    async def prove(self, model: str) -> None:
        # The smallest piece of real work: one token, without a template that could refuse. Nobody looks at the text.
        request = GenerationRequest(model, "Hi", Sampling(max_tokens=1, temperature=0.0))
        async with contextlib.aclosing(self.stream(request, model)) as events:
            async for _ in events:
                pass
