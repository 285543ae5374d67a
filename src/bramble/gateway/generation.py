"""What a generation is, independent of any wire format: the request, and the events that answer it.

Both front APIs translate to these values and every backend adapter translates from them, so that N APIs and M backend
kinds need N + M translations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Json = dict[str, Any]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; while streaming, a fragment of one (same `index`: to be joined).

    `arguments` is JSON text, because backends stream it in pieces that are no JSON by themselves.
    """

    name: str
    arguments: str
    id: str = ""
    index: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `images` are data URIs; the gateway never fetches a URL for a client."""

    role: str
    text: str = ""
    images: tuple[str, ...] = ()
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    tool_name: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None: as the backend is configured. `max_tokens` None: until the context is full."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One thing to generate.

    model        as the client wrote it; answers repeat it
    prompt       a conversation, to which the backend applies the model's template, or a string that is used as it is
    schema       None: free text; {}: any JSON object; else a JSON schema that the text has to satisfy
    think        None: the model's default; False/True; or an effort ("low", "medium", "high")
    logprobs     None: none; n: log probabilities with n alternatives per token
    """

    model: str
    prompt: tuple[Message, ...] | str
    sampling: Sampling = Sampling()
    tools: tuple[Json, ...] = ()
    tool_choice: Literal["auto", "required"] = "auto"
    schema: Json | None = None
    think: bool | str | None = None
    logprobs: int | None = None

    def needs(self) -> frozenset[str]:
        """The capabilities, in Ollama's words, that a model must have for this request."""
        needs = {"completion"}
        if self.tools:
            needs.add("tools")
        if self.think:
            needs.add("thinking")
        if not isinstance(self.prompt, str) and any(message.images for message in self.prompt):
            needs.add("vision")
        return frozenset(needs)


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer. Adapters never emit an empty one: the first Delta is the commit point."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts, and durations in seconds. A backend that does not tell leaves 0, and the exchange fills it in."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_s: float = 0.0
    generation_s: float = 0.0
    prompt_tokens_per_second: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a complete answer."""

    reason: FinishReason
    usage: Usage = Usage()


Event = Delta | Done


@dataclass(frozen=True, slots=True)
class Timing:
    """When an event is written: Unix time `now`, seconds since the request came, and of these in the queue."""

    now: float
    total_s: float
    queued_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: all its Deltas joined."""

    text: str
    thinking: str
    tool_calls: tuple[ToolCall, ...]
    logprobs: tuple[Json, ...]
    done: Done


def join_tool_calls(fragments: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """Joins streamed fragments: same index, same call; names and identifiers come once, arguments in pieces."""
    calls: dict[int, ToolCall] = {}
    for part in fragments:
        known = calls.get(part.index)
        calls[part.index] = (
            part
            if known is None
            else replace(
                known,
                id=known.id or part.id,
                name=known.name + part.name,
                arguments=known.arguments + part.arguments,
            )
        )
    return tuple(calls[index] for index in sorted(calls))


def join(deltas: Iterable[Delta], done: Done) -> Answer:
    """Joins the events of one answer."""
    parts = list(deltas)
    return Answer(
        text="".join(part.text for part in parts),
        thinking="".join(part.thinking for part in parts),
        tool_calls=join_tool_calls(call for part in parts for call in part.tool_calls),
        logprobs=tuple(entry for part in parts for entry in part.logprobs),
        done=done,
    )


def without_none(values: Mapping[str, Any]) -> Json:
    """The entries that say something. Several servers reject an explicit null."""
    return {key: value for key, value in values.items() if value is not None}
