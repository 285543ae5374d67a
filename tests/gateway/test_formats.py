"""Conversions between wire formats and the internal request and events. Pure."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bramble.gateway import ollama_api, openai_api, sse
from bramble.gateway.backends import BackendError, FailedError, RejectedError, UnavailableError
from bramble.gateway.backends.llama_server import (
    ChatParser,
    CompletionParser,
    chat_body,
    completion_body,
)
from bramble.gateway.backends.transport import payload
from bramble.gateway.config import ModelConfig
from bramble.gateway.errors import BadRequestError, GatewayError
from bramble.gateway.exchange import measured
from bramble.gateway.fields import Fields, parse_object
from bramble.gateway.generation import (
    Delta,
    Done,
    GenerationRequest,
    Message,
    Sampling,
    Timing,
    ToolCall,
    Usage,
    join,
)

USER = {"role": "user", "content": "hi"}
PIXEL = "data:image/png;base64,AAAA"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "light"}}
TIMING = Timing(now=0.0, total_s=2.0, queued_s=0.5)
USAGE = Usage(7, 4, 0.14, 0.4, 50.0, 10.0)


def ollama_chat(**fields: Any) -> GenerationRequest:
    work = ollama_api.parse_chat(Fields({"model": "m", "messages": [USER], **fields})).work
    assert isinstance(work, GenerationRequest)
    return work


def openai_chat(**fields: Any) -> GenerationRequest:
    return openai_api.parse_chat(Fields({"model": "m", "messages": [USER], **fields})).work


# Ollama requests.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        (1800, 1800.0),
        (-1, -1.0),
        (1.5, 1.5),
        ("5m", 300.0),
        ("5m0s", 300.0),
        ("-1s", -1.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("500ms", 0.5),
        ("300", 300.0),
        ("0", 0.0),
    ],
)
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert ollama_api.parse_keep_alive(Fields({"keep_alive": value})) == seconds


@pytest.mark.parametrize("value", ["", "soon", "5 m", "m", "5x", True, [], {}])
def test_wrong_keep_alive(value: Any) -> None:
    with pytest.raises(BadRequestError, match="keep_alive must be seconds or a duration"):
        ollama_api.parse_keep_alive(Fields({"keep_alive": value}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"tools": [], "options": None, "format": "", "think": None}, {}),
        ({"tools": [TOOL]}, {"tools": (TOOL,)}),
        ({"format": "json"}, {"schema": {}}),
        ({"format": SCHEMA}, {"schema": SCHEMA}),
        ({"think": False}, {"think": False}),
        ({"think": "high"}, {"think": "high"}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"messages": [{"role": "USER", "content": "hi"}]}, {}),
        (
            {"messages": [{"role": "user", "content": "hi", "images": ["AAAA"]}]},
            {"prompt": (Message("user", "hi", images=(PIXEL,)),)},
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
                    {"role": "tool", "content": "42", "tool_name": "f"},
                ]
            },
            {
                "prompt": (
                    Message("assistant", tool_calls=(ToolCall("f", '{"a":1}'),)),
                    Message("tool", "42", tool_name="f"),
                )
            },
        ),
    ],
)
def test_ollama_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    sampling = Sampling(temperature=0.8, top_k=40, top_p=0.9)
    assert ollama_chat(**fields) == GenerationRequest(
        **{"model": "m", "prompt": (Message("user", "hi"),), "sampling": sampling, **expected}
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0, "top_k": 1, "top_p": 1, "min_p": 0.1}, Sampling(None, 0.0, 1, 1.0, 0.1)),
        ({"num_predict": 5}, Sampling(5, 0.8, 40, 0.9)),
        ({"num_predict": 5.0}, Sampling(5, 0.8, 40, 0.9)),
        ({"num_predict": -1}, Sampling(None, 0.8, 40, 0.9)),
        ({"num_predict": -2}, Sampling(None, 0.8, 40, 0.9)),
        ({"stop": "x"}, Sampling(None, 0.8, 40, 0.9, stop=("x",))),
        ({"stop": ["x", "y"], "seed": 3}, Sampling(None, 0.8, 40, 0.9, seed=3, stop=("x", "y"))),
        ({"num_ctx": 8192, "mirostat": 2, "nonsense": "x"}, Sampling(None, 0.8, 40, 0.9)),
    ],
)
def test_options(options: dict[str, Any], expected: Sampling) -> None:
    assert ollama_api.parse_options(Fields({"options": options})) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "options.temperature must be a number, not a string"),
        ({"num_ctx": "8192"}, "options.num_ctx must be a number, not a string"),
        ({"seed": True}, "options.seed must be a number, not a boolean"),
        ({"stop": [1]}, "options.stop must be a string or a list of strings, not a list"),
        ([], "options must be an object, not a list"),
    ],
)
def test_wrong_options(options: Any, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ollama_api.parse_options(Fields({"options": options}))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({"prompt": "hi"}, (Message("user", "hi"),)),
        ({"prompt": "hi", "system": "s"}, (Message("system", "s"), Message("user", "hi"))),
        ({"prompt": "hi", "images": ["AAAA"]}, (Message("user", "hi", images=(PIXEL,)),)),
        ({"prompt": "<s>hi", "raw": True}, "<s>hi"),
    ],
)
def test_ollama_generate(fields: dict[str, Any], prompt: Any) -> None:
    work = ollama_api.parse_generate(Fields({"model": "m", **fields})).work
    assert isinstance(work, GenerationRequest)
    assert work.prompt == prompt


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "template": "{{ .Prompt }}"},
        {"prompt": "x", "context": [1]},
        {"prompt": "x", "raw": True, "system": "s"},
        {"prompt": ["x"]},
        {"prompt": "x", "stream": "yes"},
        {"prompt": "x", "format": "yaml"},
        {"prompt": "x", "think": "deeply"},
        {"prompt": "x", "images": [1]},
        {"prompt": "x", "top_logprobs": 21},
    ],
)
def test_wrong_generate(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        ollama_api.parse_generate(Fields({"model": "m", **fields}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, -1e300, "", "json", "user", "5m"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "type", "function"]), inner),
    max_leaves=6,
)
KEYS = [
    "model",
    "messages",
    "prompt",
    "stream",
    "options",
    "format",
    "keep_alive",
    "tools",
    "think",
    "images",
    "system",
    "raw",
    "stop",
    "n",
    "max_tokens",
    "tool_choice",
    "response_format",
    "reasoning_effort",
    "reasoning",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "seed",
]


@given(body=st.dictionaries(st.sampled_from(KEYS), JSON))
def test_no_body_is_more_than_a_bad_request(body: dict[str, Any]) -> None:
    for parse in (ollama_api.parse_chat, ollama_api.parse_generate, openai_api.parse_chat):
        try:
            work = parse(Fields({"model": "m", **body})).work
        except BadRequestError:
            continue
        if isinstance(work, GenerationRequest):
            json.dumps(completion_body(work) if isinstance(work.prompt, str) else chat_body(work, "m"))


@given(st.binary(max_size=30))
def test_no_bytes_are_more_than_a_bad_request(body: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        assert isinstance(parse_object(body).data(), dict)


# OpenAI requests.


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"messages": [{"role": "developer", "content": "s"}]}, {"prompt": (Message("system", "s"),)}),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            {"prompt": (Message("user", "a\nb"),)},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PIXEL}}]}]},
            {"prompt": (Message("user", images=(PIXEL,)),)},
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": "1", **TOOL}]}]},
            {"prompt": (Message("assistant", tool_calls=(ToolCall("light", "{}", "1"),)),)},
        ),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": (TOOL,)}),
        ({"tools": [TOOL], "tool_choice": "none"}, {}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tools": (TOOL,), "tool_choice": "required"}),
        (
            {"tools": [{"type": "function", "function": {"name": "x"}}, TOOL], "tool_choice": TOOL},
            {"tools": (TOOL,), "tool_choice": "required"},
        ),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"schema": {}}),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, {"schema": SCHEMA}),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning": {"effort": "low"}}, {"think": "low"}),
        ({"logprobs": True, "top_logprobs": 2}, {"logprobs": 2}),
        ({"n": 1, "user": "u", "logit_bias": {}}, {}),
        ({"max_tokens": 5}, {"sampling": Sampling(5, 1.0, top_p=1.0)}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"sampling": Sampling(6, 1.0, top_p=1.0)}),
        ({"temperature": 0, "stop": "x"}, {"sampling": Sampling(None, 0.0, top_p=1.0, stop=("x",))}),
    ],
)
def test_openai_chat(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    sampling = Sampling(temperature=1.0, top_p=1.0)
    assert openai_chat(**fields) == GenerationRequest(
        **{"model": "m", "prompt": (Message("user", "hi"),), "sampling": sampling, **expected}
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages must be a list with at least one message"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role must be one of"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content must be a string, not a number"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]},
            "messages[0].content[0].image_url must be a data: URI; URLs are not fetched",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type must be"),
        ({"n": 2}, "n must be 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "x"}}}, "tool_choice must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema is required"),
        ({"response_format": {"type": "yaml"}}, "response_format.type must be"),
        ({"stream_options": []}, "stream_options must be an object, not a list"),
    ],
)
def test_wrong_openai_chat(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        openai_chat(**fields)
    assert caught.value.message.startswith(message)


# Answers.


def test_ollama_answers() -> None:
    form = ollama_api.OllamaFormat("m", chat=False)
    assert json.loads(form.delta(Delta("a", "b"), TIMING)) == {
        "model": "m",
        "created_at": "1970-01-01T00:00:00.000000Z",
        "response": "a",
        "thinking": "b",
        "done": False,
    }
    assert json.loads(form.done(Done("length", USAGE), TIMING)) == {
        "model": "m",
        "created_at": "1970-01-01T00:00:00.000000Z",
        "response": "",
        "done": True,
        "done_reason": "length",
        "total_duration": 2_000_000_000,
        "load_duration": 500_000_000,
        "prompt_eval_count": 7,
        "prompt_eval_duration": 140_000_000,
        "eval_count": 4,
        "eval_duration": 400_000_000,
    }
    empty = form.whole(
        join([], Done("stop")),
        Timing(0.0, 1.0, 0.0),
    )
    assert empty["response"] == ""
    assert not {"prompt_eval_count", "eval_count", "load_duration", "eval_duration"} & set(empty)


def test_ollama_sends_tool_calls_whole_and_as_objects() -> None:
    form = ollama_api.OllamaFormat("m", chat=True)
    assert form.delta(Delta(tool_calls=(ToolCall("f", "", "1"),)), TIMING) == b""
    assert form.delta(Delta(tool_calls=(ToolCall("", '{"a":', index=0),)), TIMING) == b""
    assert form.delta(Delta(tool_calls=(ToolCall("", "1}"), ToolCall("g", "", "2", 1))), TIMING) == b""
    calls, done = [json.loads(line) for line in form.done(Done("tool_calls"), TIMING).splitlines()]
    assert calls["message"]["tool_calls"] == [
        {"id": "1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
        {"id": "2", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    assert (calls["done"], done["done"], done["done_reason"]) == (False, True, "stop")


@pytest.mark.parametrize("arguments", ['{"a":', "[]", "1"])
def test_a_tool_call_that_was_cut_is_an_error(arguments: str) -> None:
    form = ollama_api.OllamaFormat("m", chat=True)
    form.delta(Delta(tool_calls=(ToolCall("f", arguments),)), TIMING)
    with pytest.raises(GatewayError, match="not a JSON object"):
        form.done(Done("length"), TIMING)


def test_model_listings() -> None:
    model = ModelConfig(name="m", context=4096)
    (entry,) = ollama_api.tags([model], 0.0)["models"]
    assert entry["name"] == entry["model"] == "m:latest"
    assert len(entry["digest"]) == 64
    assert ollama_api.tags([ModelConfig(name="m:1b", context=1)], 0.0)["models"][0]["model"] == "m:1b"
    shown = ollama_api.show(model, 0.0)
    assert [line.split() for line in shown["parameters"].split("\n")] == [["num_ctx", "4096"]]
    (loaded,) = ollama_api.ps([model])["models"]
    assert loaded["expires_at"] > "2300"


# llama-server.


def test_chat_body() -> None:
    request = GenerationRequest(
        "client's name",
        (
            Message("user", "look", images=(PIXEL,)),
            Message("assistant", thinking="hm", tool_calls=(ToolCall("f", "{}", "1"),)),
            Message("tool", "42", tool_call_id="1", tool_name="f"),
        ),
        Sampling(max_tokens=3, temperature=0.5, seed=-1, stop=("x",)),
        tools=(TOOL,),
        schema=SCHEMA,
        think="low",
        logprobs=2,
    )
    assert chat_body(request, "m") == {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
            },
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "hm",
                "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": False,
        "temperature": 0.5,
        "stop": ["x"],
        "max_tokens": 3,
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_completion_body() -> None:
    assert completion_body(GenerationRequest("m", "<s>", Sampling(max_tokens=3, seed=5), schema={}, logprobs=0)) == {
        "prompt": "<s>",
        "stream": True,
        "timings_per_token": False,
        "seed": 5,
        "n_predict": 3,
        "json_schema": {"type": "object"},
        "n_probs": 1,
    }


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}


def test_chat_chunks() -> None:
    parser = ChatParser()
    assert list(parser.feed(chunk({"role": "assistant", "content": None}))) == []
    assert list(parser.feed(chunk({"reasoning_content": "hm"}))) == [Delta(thinking="hm")]
    assert list(parser.feed(chunk({"content": "a"}))) == [Delta("a")]
    assert parser.finish() is None
    assert list(parser.feed(chunk({}, "length"))) == []
    last = {
        "choices": [],
        "usage": {"prompt_tokens": 7, "completion_tokens": 4},
        "timings": {
            "prompt_ms": 140.0,
            "prompt_per_second": 50.0,
            "predicted_ms": 400.0,
            "predicted_per_second": 10.0,
        },
    }
    assert list(parser.feed(last)) == []
    assert parser.finish() == Done("length", USAGE)


def test_completion_chunks() -> None:
    parser = CompletionParser()
    assert list(parser.feed({"content": "a", "stop": False})) == [Delta("a")]
    assert parser.finish() is None
    assert list(parser.feed({"content": "", "stop": True, "stop_type": "limit", "tokens_predicted": 4})) == []
    assert parser.finish() == Done("length", Usage(completion_tokens=4))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"error":{"code":400,"message":"too long"}}', RejectedError),
        (b'{"error":{"code":503,"message":"Loading model"}}', UnavailableError),
        (b'{"error":{"code":500,"message":"compute error"}}', FailedError),
        (b'{"error":"text"}', FailedError),
        (b"not json", FailedError),
        (b"[]", FailedError),
    ],
)
def test_error_events(data: bytes, error: type[BackendError]) -> None:
    with pytest.raises(BackendError) as caught:
        payload(data)
    assert type(caught.value) is error


# Server-sent events.


@given(
    payloads=st.lists(st.binary(min_size=1, max_size=20).filter(lambda data: not {10, 13} & set(data)), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    end=st.sampled_from([b"\n", b"\r\n"]),
    ended=st.booleans(),
)
def test_sse_is_decoded_however_it_is_cut(payloads: list[bytes], cuts: list[int], end: bytes, ended: bool) -> None:
    stream = b"".join(b":ping" + end + end + b"id: 1" + end + b"data: " + data + end + end for data in payloads)
    if not ended:
        stream = stream.removesuffix(end + end)
    decoder, begin = sse.Decoder(), 0
    got: list[bytes] = []
    for place in [*sorted(cuts), len(stream)]:
        got += decoder.feed(stream[begin:place])
        begin = max(begin, min(place, len(stream)))
    assert [*got, *decoder.close()] == payloads


def test_sse_lines_are_bounded() -> None:
    with pytest.raises(ValueError, match="a line of more than"):
        list(sse.Decoder().feed(b"x" * (sse.MAX_LINE_BYTES + 1)))


# Measuring.


def test_what_a_backend_does_not_tell_is_measured() -> None:
    assert measured(USAGE, tokens=9, prompt_s=9, total_s=99) == USAGE
    assert measured(Usage(prompt_tokens=10), tokens=5, prompt_s=2.0, total_s=4.0) == Usage(10, 5, 2.0, 2.0, 5.0, 2.0)
    assert measured(Usage(), tokens=0, prompt_s=0.0, total_s=0.0) == Usage()
