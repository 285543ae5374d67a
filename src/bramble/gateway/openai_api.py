"""The OpenAI API's wire format for chat completions and models. Pure conversions.

Shapes: the OpenAI API reference; Ollama's choices where it leaves room (`reasoning` for thinking, sampling defaults).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import orjson

from . import sse
from .config import ModelConfig
from .errors import BadRequestError, GatewayError
from .fields import Fields
from .generation import Answer, Delta, Done, GenerationRequest, Json, Message, Sampling, Timing, ToolCall, Usage

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
EFFORTS = ("none", "minimal", "low", "medium", "high")
DEFAULT_TEMPERATURE, DEFAULT_TOP_P = 1.0, 1.0


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """What /v1/chat/completions is asked for."""

    work: GenerationRequest
    stream: bool
    include_usage: bool

    @property
    def model(self) -> str:
        return self.work.model


# Requests.


def _parse_content(fields: Fields) -> tuple[str, tuple[str, ...]]:
    """Text and images of a message, whose content is a string or a list of parts."""
    if not isinstance(fields.value("content"), list):
        return fields.text("content"), ()
    texts, images = [], []
    for part in fields.objects("content"):
        kind = part.text("type")
        if kind == "text":
            texts.append(part.text("text"))
        elif kind == "image_url":
            value = part.value("image_url")
            url = value if isinstance(value, str) else (part.object("image_url") or Fields({})).text("url")
            # A URL would make the gateway fetch what a stranger names.
            if not url.startswith("data:"):
                raise BadRequestError(f"{part.at('image_url')} must be a data: URI; URLs are not fetched")
            images.append(url)
        else:
            raise BadRequestError(f"{part.at('type')} must be text or image_url")
    return "\n".join(texts), tuple(images)


def _parse_message(fields: Fields) -> Message:
    role = ROLES.get(fields.text("role"))
    if role is None:
        raise BadRequestError(f"{fields.at('role')} must be one of {', '.join(ROLES)}")
    text, images = _parse_content(fields)
    calls = []
    for index, call in enumerate(fields.objects("tool_calls")):
        function = call.object("function") or Fields({}, call.at("function"))
        calls.append(ToolCall(function.text("name"), function.text("arguments") or "{}", call.text("id"), index))
    return Message(
        role=role,
        text=text,
        images=images,
        thinking=fields.text("reasoning") or fields.text("reasoning_content"),
        tool_calls=tuple(calls),
        tool_call_id=fields.text("tool_call_id"),
        tool_name=fields.text("name") if role == "tool" else "",
    )


def _parse_tools(fields: Fields) -> tuple[tuple[Json, ...], Literal["auto", "required"]]:
    """`tools` and `tool_choice`. A named tool is that tool alone, required."""
    tools = tuple(tool.data() for tool in fields.objects("tools"))
    choice = fields.value("tool_choice")
    if choice is None or choice == "auto":
        return tools, "auto"
    if choice == "none":
        return (), "auto"
    if choice == "required":
        return tools, "required"
    if isinstance(choice, dict):
        function = (fields.object("tool_choice") or Fields({})).object("function")
        name = function.text("name") if function else ""
        named = tuple(tool for tool in tools if (tool.get("function") or {}).get("name") == name)
        if named:
            return named, "required"
    raise BadRequestError("tool_choice must be none, auto, required or one of the tools")


def _parse_response_format(fields: Fields) -> Json | None:
    response_format = fields.object("response_format")
    kind = response_format.text("type") if response_format else "text"
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind == "json_schema":
        wrapper = response_format.object("json_schema")
        schema = wrapper.object("schema") if wrapper else None
        if schema is None:
            raise BadRequestError("response_format.json_schema.schema is required")
        return schema.data()
    raise BadRequestError("response_format.type must be text, json_object or json_schema")


def _parse_think(fields: Fields) -> bool | str | None:
    reasoning = fields.object("reasoning")
    effort = fields.text("reasoning_effort") or (reasoning.text("effort") if reasoning else "")
    if not effort:
        return None
    if effort not in EFFORTS:
        raise BadRequestError(f"reasoning_effort must be one of {', '.join(EFFORTS)}")
    return False if effort == "none" else effort


def _parse_max_tokens(fields: Fields) -> int | None:
    for key in ("max_completion_tokens", "max_tokens"):
        value = fields.integer(key)
        if value is not None:
            if value < 1:
                raise BadRequestError(f"{key} must be at least 1")
            return value
    return None


def parse_chat(fields: Fields) -> OpenAIRequest:
    """The body of /v1/chat/completions. Raises BadRequestError."""
    model = fields.text("model")
    if not model:
        raise BadRequestError("model is required")
    messages = tuple(_parse_message(message) for message in fields.objects("messages"))
    if not messages:
        raise BadRequestError("messages must be a list with at least one message")
    if fields.integer("n") not in (None, 1):
        raise BadRequestError("n must be 1: one answer a request")
    temperature, top_p = fields.number("temperature"), fields.number("top_p")
    tools, tool_choice = _parse_tools(fields)
    top_logprobs = fields.integer("top_logprobs")
    if top_logprobs is not None and not 0 <= top_logprobs <= 20:
        raise BadRequestError("top_logprobs must be from 0 to 20")
    stream_options = fields.object("stream_options")
    return OpenAIRequest(
        GenerationRequest(
            model=model,
            prompt=messages,
            sampling=Sampling(
                max_tokens=_parse_max_tokens(fields),
                temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
                top_p=DEFAULT_TOP_P if top_p is None else top_p,
                presence_penalty=fields.number("presence_penalty"),
                frequency_penalty=fields.number("frequency_penalty"),
                seed=fields.integer("seed"),
                stop=fields.texts("stop"),
            ),
            tools=tools,
            tool_choice=tool_choice,
            schema=_parse_response_format(fields),
            think=_parse_think(fields),
            logprobs=(top_logprobs or 0) if fields.flag("logprobs", False) else None,
        ),
        stream=fields.flag("stream", False),
        include_usage=stream_options.flag("include_usage", False) if stream_options else False,
    )


# Answers.


def error_body(error: GatewayError) -> Json:
    """An error, as a whole answer and as the last event of a stream."""
    kind = {404: "not_found_error"}.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"error": {"message": error.message, "type": kind, "param": None, "code": None}}


def _usage(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _tool_calls(calls: Iterable[ToolCall], *, indexed: bool) -> list[Json]:
    """Tool calls of a message, or (indexed) the fragments of a chunk."""
    result = []
    for call in calls:
        entry: Json = {"index": call.index} if indexed else {}
        function: Json = {"arguments": call.arguments}
        if call.id or not indexed:
            entry |= {"id": call.id, "type": "function"}
        if call.name or not indexed:
            function = {"name": call.name} | function
        result.append(entry | {"function": function})
    return result


class OpenAIFormat:
    """Writes the answer to one request of /v1/chat/completions. `created`: Unix time, the same in all chunks."""

    stream_type = "text/event-stream"

    def __init__(self, request: OpenAIRequest, *, answer_id: str, created: float) -> None:
        self._include_usage = request.include_usage
        self._head: Json = {
            "id": answer_id,
            "created": int(created),
            "model": request.work.model,
            "system_fingerprint": "fp_bramble",
        }

    def begin(self) -> bytes:
        """The chunk with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: Delta, _timing: Timing) -> bytes:
        """The chunk of a Delta."""
        body: Json = {}
        if delta.text:
            body["content"] = delta.text
        if delta.thinking:
            body["reasoning"] = delta.thinking
        if delta.tool_calls:
            body["tool_calls"] = _tool_calls(delta.tool_calls, indexed=True)
        return self._chunk(body, logprobs=delta.logprobs)

    def done(self, done: Done, _timing: Timing) -> bytes:
        """The last events."""
        last = self._chunk({}, reason=done.reason)
        if self._include_usage:
            body = self._head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(done.usage)}
            last += sse.encode(orjson.dumps(body))
        return last + sse.encode(sse.DONE)

    def whole(self, answer: Answer, _timing: Timing) -> Json:
        """The answer as one object."""
        message: Json = {"role": "assistant", "content": answer.text}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = _tool_calls(answer.tool_calls, indexed=False)
            message["content"] = answer.text or None
        return self._head | {
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": {"content": list(answer.logprobs)} if answer.logprobs else None,
                    "finish_reason": answer.done.reason,
                }
            ],
            "usage": _usage(answer.done.usage),
        }

    def error(self, error: GatewayError) -> bytes:
        """The last event of a stream that failed; no [DONE] follows, which would say that all is well."""
        return sse.encode(orjson.dumps(error_body(error)))

    def _chunk(self, delta: Json, *, reason: str | None = None, logprobs: tuple[Json, ...] = ()) -> bytes:
        choice: Json = {"index": 0, "delta": delta, "finish_reason": reason}
        if logprobs:
            choice["logprobs"] = {"content": list(logprobs)}
        return sse.encode(orjson.dumps(self._head | {"object": "chat.completion.chunk", "choices": [choice]}))


# Models.


def model_entry(model: ModelConfig, created: float) -> Json:
    """/v1/models/{id}."""
    return {"id": model.name, "object": "model", "created": int(created), "owned_by": "bramble"}


def model_list(models: Iterable[ModelConfig], created: float) -> Json:
    """/v1/models."""
    return {"object": "list", "data": [model_entry(model, created) for model in models]}
