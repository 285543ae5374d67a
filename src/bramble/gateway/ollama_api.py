"""The Ollama API's wire format. Pure conversions; field names and shapes as ollama's api/types.go has them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson

from .config import ModelConfig
from .errors import BadRequestError, GatewayError
from .fields import Fields
from .generation import (
    Answer,
    Delta,
    Done,
    GenerationRequest,
    Json,
    Message,
    Sampling,
    Timing,
    ToolCall,
    join_tool_calls,
)

# Clients switch features on by this: the release whose API is spoken here, not the version of Bramble.
API_VERSION = "0.12.11"

ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high", "max")

# Ollama's own defaults where they differ from those of other servers (api/types.go, DefaultOptions).
DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P = 0.8, 40, 0.9

# Options that are settled when a backend loads its model. They are checked and then ignored.
LOAD_TIME_NUMBERS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "draft_num_predict")

# For ever, as clients parse it: a date that never comes. Backends keep their model loaded.
NEVER_EXPIRES = "2318-01-01T00:00:00Z"

_DURATION = re.compile(r"[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:ns|us|µs|μs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A request without a prompt: load the model, or with keep_alive 0 unload it."""

    model: str
    reason: Literal["load", "unload"]


@dataclass(frozen=True, slots=True)
class OllamaRequest:
    """What /api/generate and /api/chat are asked for."""

    work: GenerationRequest | LoadRequest
    stream: bool

    @property
    def model(self) -> str:
        return self.work.model


# Requests.


def parse_keep_alive(fields: Fields) -> float | None:
    """Seconds, negative: for ever, None: not said. A number, a Go duration such as "5m" or "-1s", or digits."""
    value = fields.value("keep_alive")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text = value.strip()
        if _DURATION.fullmatch(text):
            total = sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))
            return -total if text.startswith("-") else total
        if re.fullmatch(r"[-+]?\d+(\.\d+)?", text):
            return float(text)
    raise BadRequestError(f'{fields.at("keep_alive")} must be seconds or a duration such as "5m", "1h30m" or "-1s"')


def parse_model(fields: Fields) -> str:
    """`model`, or its old name `name`."""
    name = fields.text("model") or fields.text("name")
    if not name:
        raise BadRequestError("model is required")
    return name


def parse_options(fields: Fields) -> Sampling:
    """`options`. Unknown keys are ignored as Ollama does, known ones with a wrong type are errors."""
    options = fields.object("options") or Fields({}, "options")
    for name in LOAD_TIME_NUMBERS:
        options.integer(name)
    options.flag("use_mmap", True)
    num_predict = options.integer("num_predict")
    temperature, top_k, top_p = options.number("temperature"), options.integer("top_k"), options.number("top_p")
    return Sampling(
        # 0 and below: no limit of its own.
        max_tokens=num_predict if num_predict is not None and num_predict > 0 else None,
        temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
        top_k=DEFAULT_TOP_K if top_k is None else top_k,
        top_p=DEFAULT_TOP_P if top_p is None else top_p,
        min_p=options.number("min_p"),
        typical_p=options.number("typical_p"),
        repeat_last_n=options.integer("repeat_last_n"),
        repeat_penalty=options.number("repeat_penalty"),
        presence_penalty=options.number("presence_penalty"),
        frequency_penalty=options.number("frequency_penalty"),
        seed=options.integer("seed"),
        stop=options.texts("stop"),
    )


def _parse_format(fields: Fields) -> Json | None:
    value = fields.value("format")
    if value is None or value == "":
        return None
    if value == "json":
        return {}
    if isinstance(value, dict):
        return value
    raise BadRequestError('format must be "json" or a JSON schema')


def _parse_think(fields: Fields) -> bool | str | None:
    value = fields.value("think")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value in EFFORTS:
        return value
    raise BadRequestError(f"think must be a boolean or one of {', '.join(EFFORTS)}")


def _parse_logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs")
    if top is not None and not 0 <= top <= 20:
        raise BadRequestError("top_logprobs must be from 0 to 20")
    return (top or 0) if fields.flag("logprobs", False) else None


def _parse_images(fields: Fields) -> tuple[str, ...]:
    value = fields.value("images")
    if value is None:
        return ()
    if not isinstance(value, list) or any(not isinstance(image, str) for image in value):
        raise fields.wrong("images", "a list of base64 strings")
    # The format is found in the data; a data URI needs a type, and this one is right often enough.
    return tuple(f"data:image/png;base64,{image}" for image in value)


def _parse_message(fields: Fields) -> Message:
    role = fields.text("role").lower()
    if role not in ROLES:
        raise BadRequestError(f"{fields.at('role')} must be one of {', '.join(ROLES)}")
    calls = []
    for index, call in enumerate(fields.objects("tool_calls")):
        function = call.object("function") or Fields({}, call.at("function"))
        arguments = function.object("arguments")
        calls.append(
            ToolCall(
                name=function.text("name"),
                arguments=orjson.dumps(arguments.data() if arguments else {}).decode(),
                id=call.text("id"),
                index=index,
            )
        )
    return Message(
        role=role,
        text=fields.text("content"),
        images=_parse_images(fields),
        thinking=fields.text("thinking"),
        tool_calls=tuple(calls),
        tool_call_id=fields.text("tool_call_id"),
        tool_name=fields.text("tool_name"),
    )


def _load(model: str, keep_alive: float | None) -> LoadRequest:
    return LoadRequest(model, "unload" if keep_alive == 0 else "load")


def parse_chat(fields: Fields) -> OllamaRequest:
    """The body of /api/chat. Raises BadRequestError."""
    model, keep_alive = parse_model(fields), parse_keep_alive(fields)
    messages = tuple(_parse_message(message) for message in fields.objects("messages"))
    request = GenerationRequest(
        model=model,
        prompt=messages,
        sampling=parse_options(fields),
        tools=tuple(tool.data() for tool in fields.objects("tools")),
        schema=_parse_format(fields),
        think=_parse_think(fields),
        logprobs=_parse_logprobs(fields),
    )
    return OllamaRequest(request if messages else _load(model, keep_alive), fields.flag("stream", True))


def parse_generate(fields: Fields) -> OllamaRequest:
    """The body of /api/generate. Raises BadRequestError.

    The backend applies the model's own template; with `raw` the prompt is used as it is.
    """
    model, keep_alive = parse_model(fields), parse_keep_alive(fields)
    text, raw = fields.text("prompt"), fields.flag("raw", False)
    system, images = fields.text("system"), _parse_images(fields)
    if fields.text("suffix"):
        raise BadRequestError(f"'{model}' does not support insert")
    if fields.text("template"):
        raise BadRequestError("template is not supported here: render the prompt and send it with raw")
    if fields.value("context"):
        raise BadRequestError("context is not supported here: send the conversation to /api/chat")
    if raw and (system or images):
        raise BadRequestError("raw mode does not support system or images")
    prompt: tuple[Message, ...] | str = text
    if not raw:
        prompt = ((Message("system", system),) if system else ()) + (Message("user", text, images=images),)
    request = GenerationRequest(
        model=model,
        prompt=prompt,
        sampling=parse_options(fields),
        schema=_parse_format(fields),
        think=None if raw else _parse_think(fields),
        logprobs=_parse_logprobs(fields),
    )
    return OllamaRequest(request if text else _load(model, keep_alive), fields.flag("stream", True))


# Answers.


def timestamp(unix_s: float) -> str:
    """RFC 3339 in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error_body(error: GatewayError) -> Json:
    """An error, as a whole answer and as the last line of a stream."""
    return {"error": error.message}


def _nanoseconds(durations: Mapping[str, float]) -> Json:
    """Durations as Ollama gives them; those that are 0 are left out."""
    return {key: round(value * 1e9) for key, value in durations.items() if round(value * 1e9) > 0}


def _arguments(call: ToolCall) -> Json:
    try:
        arguments = orjson.loads(call.arguments or "{}")
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise GatewayError(502, f"the model called the tool '{call.name}' with arguments that are not a JSON object")
    return arguments


def _tool_calls(calls: Iterable[ToolCall]) -> list[Json]:
    """/v1 has arguments as JSON text, /api as an object."""
    return [
        {
            **({"id": call.id} if call.id else {}),
            "function": {"index": call.index, "name": call.name, "arguments": _arguments(call)},
        }
        for call in calls
    ]


class OllamaFormat:
    """Writes the answer to one request of /api/chat (`chat`) or /api/generate."""

    stream_type = "application/x-ndjson"

    def __init__(self, model: str, *, chat: bool) -> None:
        self._model = model
        self._chat = chat
        self._calls: list[ToolCall] = []

    def begin(self) -> bytes:
        return b""

    def delta(self, delta: Delta, timing: Timing) -> bytes:
        """The line of a Delta. Tool calls are kept for the end: Ollama sends them whole."""
        self._calls.extend(delta.tool_calls)
        if not (delta.text or delta.thinking or delta.logprobs):
            return b""
        return self._line(self._part(timing.now, delta.text, delta.thinking, (), delta.logprobs))

    def done(self, done: Done, timing: Timing) -> bytes:
        """The last lines."""
        calls = join_tool_calls(self._calls)
        before = self._line(self._part(timing.now, "", "", calls, ())) if calls else b""
        return before + self._line(self._part(timing.now, "", "", (), ()) | self._totals(done, timing))

    def whole(self, answer: Answer, timing: Timing) -> Json:
        """The answer as one object."""
        part = self._part(timing.now, answer.text, answer.thinking, answer.tool_calls, answer.logprobs)
        return part | self._totals(answer.done, timing)

    def load(self, reason: str, now: float) -> Json:
        """The answer to a LoadRequest."""
        return self._part(now, "", "", (), ()) | {"done": True, "done_reason": reason}

    def error(self, error: GatewayError) -> bytes:
        """The last line of a stream that failed."""
        return self._line(error_body(error))

    @staticmethod
    def _line(value: Json) -> bytes:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)

    def _part(
        self, now: float, text: str, thinking: str, calls: tuple[ToolCall, ...], logprobs: tuple[Json, ...]
    ) -> Json:
        part: Json = {"model": self._model, "created_at": timestamp(now)}
        if self._chat:
            message: Json = {"role": "assistant", "content": text}
            if thinking:
                message["thinking"] = thinking
            if calls:
                message["tool_calls"] = _tool_calls(calls)
            part["message"] = message
        else:
            part["response"] = text
            if thinking:
                part["thinking"] = thinking
        part["done"] = False
        if logprobs:
            part["logprobs"] = list(logprobs)
        return part

    @staticmethod
    def _totals(done: Done, timing: Timing) -> Json:
        usage = done.usage
        counts = {"prompt_eval_count": usage.prompt_tokens, "eval_count": usage.completion_tokens}
        return {
            "done": True,
            # Ollama knows no other reason: a tool call is a stop.
            "done_reason": "length" if done.reason == "length" else "stop",
            **{key: value for key, value in counts.items() if value},
            **_nanoseconds(
                {
                    "total_duration": timing.total_s,
                    # In Ollama the time until the model is ready for this request, its scheduler's queue included.
                    "load_duration": timing.queued_s,
                    "prompt_eval_duration": usage.prompt_s,
                    "eval_duration": usage.generation_s,
                }
            ),
        }


# Models.


def tagged(name: str) -> str:
    """The name with its tag, as Ollama lists it."""
    return name if ":" in name else f"{name}:latest"


def _digest(model: ModelConfig) -> str:
    """The file's hash; else something as stable, since clients use it as a key."""
    return model.sha256 or hashlib.sha256(model.name.encode()).hexdigest()


def _details(model: ModelConfig) -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
        "context_length": model.context,
    }


def _entry(model: ModelConfig) -> Json:
    """Both `name` and `model`: clients use one or the other."""
    return {
        "name": tagged(model.name),
        "model": tagged(model.name),
        "size": model.bytes,
        "digest": _digest(model),
        "details": _details(model),
    }


def tags(models: Iterable[ModelConfig], modified: float) -> Json:
    """/api/tags."""
    return {
        "models": [
            _entry(model) | {"modified_at": timestamp(modified), "capabilities": list(model.capabilities)}
            for model in models
        ]
    }


def ps(models: Iterable[ModelConfig]) -> Json:
    """/api/ps, of the models that are loaded on a backend that is up."""
    return {
        "models": [
            _entry(model) | {"expires_at": NEVER_EXPIRES, "size_vram": 0, "context_length": model.context}
            for model in models
        ]
    }


def show(model: ModelConfig, modified: float) -> Json:
    """/api/show. `parameters` has a line, because a known client fails on an empty one."""
    return {
        "license": "",
        "modelfile": f"FROM {tagged(model.name)}\nPARAMETER num_ctx {model.context}\n",
        "parameters": f"num_ctx{model.context:>27}",
        "template": "",
        "system": "",
        "details": _details(model),
        "model_info": {
            "general.architecture": model.family,
            "general.basename": model.name,
            f"{model.family}.context_length": model.context,
        },
        "capabilities": list(model.capabilities),
        "modified_at": timestamp(modified),
    }


def version() -> Json:
    """/api/version."""
    return {"version": API_VERSION}


def parse_show(fields: Fields) -> str:
    """The name that /api/show is asked for. Raises BadRequestError."""
    fields.flag("verbose", False)
    return parse_model(fields)
