from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import http_bench as hb
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.llama_bench import BenchError
from ansible.module_utils.testing import patch_module_args
from http_bench_emulation import MODEL, OATPP_500, Clock, Emulation, Script, ndjson, ollama, openai
from hypothesis import given
from hypothesis import strategies as st

import http_bench as module

PIECES = ("One", " two", " three", " four", " five")
USAGE = {"completion_tokens": 5, "prompt_tokens": 70}
NODE = Node(run=lambda _: (127, ""), sysfs=Path("/none"), device_tree=Path("/none"), root=Path("/none"))


def measured(
    emulation: Emulation, requests: int = 5, concurrency: tuple[int, ...] = (1,), **options: Any
) -> list[tuple[dict[str, Any], str]]:
    wanted = hb.Wanted(options.pop("name", MODEL), 5, requests, extra=options.pop("extra", {}))
    server = hb.Server(emulation.url, 20, emulation.clock or hb.time.monotonic)
    given_ = {"salt": "000000007", "builds": Path("/none")} | options
    return list(hb.measure(server, "auto", wanted, concurrency, NODE, **given_))


def one(emulation: Emulation, **options: Any) -> dict[str, Any]:
    with emulation.serving():
        [(record, _)] = measured(emulation, **options)
    return record


# What a server sends.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"message":{"role":"assistant","content":"Hi"},"done":false}\r\n', hb.Event("Hi")),
        (b'{"response":"caf\\u00E9 a\\/b","done":false}\n', hb.Event("café a/b")),
        (b'{"message":{"content":"","thinking":"Hm"},"done":false}', hb.Event("Hm")),
        (b'{"response":"","done":true,"total_duration":165886109,"eval_count":7}', hb.Event("", True, 7)),
        (b'{"done":true,"eval_count":7,"prompt_eval_count":3}', hb.Event("", True, 7, 3)),
        (b'{"done":true,"eval_count":"7"}', hb.Event("", True)),
        (b'{"done":true,"eval_count":-7}', hb.Event("", True)),
        (b"\r\n", None),
    ],
)
def test_parse_ollama(line: bytes, expected: hb.Event | None) -> None:
    assert hb.parse_ollama(line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}', hb.Event()),
        (b'data:{"choices":[{"index":0,"delta":{"content":"Hi"}}]}\r\n', hb.Event("Hi")),
        (b'data: {"choices":[{"delta":{"reasoning_content":"Hm"}}]}', hb.Event("Hm")),
        (b'data: {"choices":[],"usage":{"completion_tokens":6,"prompt_tokens":13}}', hb.Event("", False, 6, 13)),
        (b'data: {"choices":[{"delta":{}}],"timings":{"predicted_n":8}}', hb.Event("", False, 8)),
        (b'data: {"choices":"x","usage":[]}', hb.Event()),
        (b"data: [DONE]", hb.Event(done=True)),
        (b": ping", None),
        (b"event: x", None),
        (b"", None),
    ],
)
def test_parse_openai(line: bytes, expected: hb.Event | None) -> None:
    assert hb.parse_openai(line) == expected


@pytest.mark.parametrize(
    ("parse", "line", "message"),
    [
        (hb.parse_ollama, b'{"error":"model \'nope:1b\' not found"}', "model 'nope:1b' not found"),
        (hb.parse_ollama, b"server=oatpp/1.4.0\n", "sent 'server=oatpp/1.4.0.n', which is no JSON"),
        (hb.parse_ollama, b"[1]", "no JSON object"),
        (hb.parse_ollama, b'{"a":' * 100_000, "which is no JSON"),
        (hb.parse_openai, b'data: {"error":{"message":"slot is gone","code":500}}', "slot is gone"),
        (hb.parse_openai, b'{"error":"streaming not supported on this endpoint."}', "streaming not supported"),
        (hb.parse_openai, b'{"choices":[{"message":{"content":"all"}}]}', "did not stream"),
        (hb.parse_openai, b"data: {", "which is no JSON"),
    ],
)
def test_a_line_that_is_an_error(parse: hb.Parser, line: bytes, message: str) -> None:
    with pytest.raises(hb.AnswerError, match=message):
        parse(line)


FRAGMENTS = [
    b"data: ",
    b"{",
    b"}",
    b'"choices"',
    b":",
    b"[",
    b"]",
    b'"delta"',
    b'"error"',
    b"null",
    b"1",
    b'"\xff"',
    b",",
    b"\n",
]
BYTES = st.binary() | st.lists(st.sampled_from(FRAGMENTS)).map(b"".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "message", "usage", "completion_tokens", "eval_count", "error"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    BYTES
    | VALUES.map(lambda value: json.dumps(value).encode())
    | VALUES.map(lambda v: b"data: " + json.dumps(v).encode())
)
def test_any_line_is_an_event_or_an_error(line: bytes) -> None:
    for parse in (hb.parse_ollama, hb.parse_openai):
        with contextlib.suppress(hb.AnswerError):
            event = parse(line)
            assert event is None or isinstance(event.text, str)
    assert isinstance(hb.parse_error_page(line), str)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OATPP_500, "No suitable mapper found to deserialize the request body."),
        (b'{"error":{"message":"Loading model","code":503}}', "Loading model"),
        (b'{"error":"model not found"}', "model not found"),
        (b"Bad Gateway\n", "Bad Gateway"),
        (b"{}", "{}"),
        (b"", "no reason given"),
        (b"stacktrace:\n", "stacktrace:"),
    ],
)
def test_parse_error_page(body: bytes, expected: str) -> None:
    assert hb.parse_error_page(body) == expected


# Figures.


@pytest.mark.parametrize(
    ("arrivals", "tokens", "expected"),
    [
        ([1.0, 1.1, 1.2, 1.3, 1.4], 5, 10.0),
        ([1.0, 1.4], 2, 2.5),
        # Two tokens came in the first chunk, and two in the second: two tokens in 0.1 s.
        ([1.0, 1.1], 4, 20.0),
        # Three chunks were held back and came in one piece: their two tokens of the time before do not count.
        ([1.0, 1.0, 1.0, 1.1, 1.2], 5, 10.0),
        ([1.0, 1.0001, 1.0002], 3, None),
        ([1.0], 5, None),
        ([1.0, 1.1], 1, None),
        ([1.0, 1.1], 0, None),
        ([], 0, None),
        ([], 5, None),
    ],
)
def test_decode_rate(arrivals: list[float], tokens: int, expected: float | None) -> None:
    assert hb.decode_rate(arrivals, tokens) == (None if expected is None else pytest.approx(expected))


@given(st.integers(2, 200), st.floats(0.001, 10))
def test_the_rate_of_tokens_that_come_one_by_one_is_that_of_the_intervals(count: int, gap: float) -> None:
    arrivals = [5 + number * gap for number in range(count)]
    assert hb.decode_rate(arrivals, count) == pytest.approx((count - 1) / (arrivals[-1] - arrivals[0]))


@given(st.lists(st.floats(0, 1e6)), st.integers(0, 1000))
def test_a_rate_is_positive_or_none(times: list[float], tokens: int) -> None:
    rate = hb.decode_rate(sorted(times), tokens)
    assert rate is None or 0 < rate < float("inf")


def test_an_ollama_is_timed_by_its_chunks() -> None:
    scripts = [ollama(*PIECES, eval_count=5, prompt_eval_count=70)]
    record = one(Emulation("ollama", Clock(), scripts))
    result = record["result"]
    assert result["ttft"] == {
        "mean": pytest.approx(0.5),
        "sd": pytest.approx(0, abs=1e-9),
        "n": 5,
        "unit": "s",
        "p50": pytest.approx(0.5),
        "p95": pytest.approx(0.5),
        "min": pytest.approx(0.5),
        "max": pytest.approx(0.5),
    }
    assert (result["decode"]["mean"], result["decode"]["unit"]) == (pytest.approx(10), "tok/s")
    assert result["total"]["mean"] == pytest.approx(1.0)  # 0.5 s, four tokens and the closing line 0.1 s each
    assert result["throughput"] == {"value": pytest.approx(5), "unit": "tok/s"}  # 25 tokens in 5 s
    assert result["load"] == {"value": pytest.approx(2.0), "unit": "s"}
    assert result["prompt_tokens"]["mean"] == 70
    assert "errors" not in result
    assert record["kind"] == "http_generate"
    assert record["engine"] == {"name": "ollama", "commit": None, "build_key": None, "version": "0.12.3"}
    assert record["model"] == {"name": MODEL, "sha256": None, "quant": "Q4_0", "bytes": 1640000000}
    assert record["params"] == {
        "api": "ollama",
        "prompt_tokens": round(sum(map(len, hb.PROMPTS)) / 40),
        "max_tokens": 5,
        "concurrency": 1,
        "requests": 5,
        "token_count": "server",
    }
    assert record["conditions"]["notes"] == []


def test_a_hailo_ollama_is_asked_as_it_can_be_and_not_taken_for_ollama() -> None:
    emulation = Emulation("hailo-ollama", Clock(), [ollama(*PIECES, end="\r\n", eval_count=5)])
    record = one(emulation)
    assert record["result"]["decode"]["mean"] == pytest.approx(10)
    # Its /api/version is a constant.
    assert record["engine"] == {"name": "hailo-ollama", "commit": None, "build_key": None, "version": None}
    load, warm_up, *asked = emulation.bodies
    assert load == {"model": MODEL, "keep_alive": 300, "stream": False}
    assert warm_up["options"] == {"num_predict": 5, "temperature": 0}
    assert len(asked) == 5
    for body in asked:
        assert set(body) == {"model", "messages", "stream", "keep_alive", "options"}
        assert isinstance(body["keep_alive"], int)
        assert body["options"] == {"num_predict": 5, "temperature": 0}


def test_a_llama_server_is_timed_by_its_events(tmp_path: Path) -> None:
    builds = tmp_path / "build.json"
    builds.write_text(json.dumps({"commit": "0c1e57098", "key": "0c1e57098-aa"}))
    emulation = Emulation("llama-server", Clock(), [openai(*PIECES, usage=USAGE)])
    record = one(emulation, builds=builds, extra={"ignore_eos": True})
    result = record["result"]
    assert result["ttft"]["mean"] == pytest.approx(0.5)  # the event with the role alone is no token
    assert result["decode"]["mean"] == pytest.approx(10)
    assert result["total"]["mean"] == pytest.approx(1.2)  # the end, the counts and [DONE] too
    assert "load" not in result
    assert record["engine"] == {
        "name": "llama.cpp",
        "commit": "0c1e57098",
        "build_key": "0c1e57098-aa",
        "version": None,
    }
    assert record["model"] == {"name": MODEL, "sha256": None, "quant": "Q8_0", "bytes": 67341312}
    assert record["params"]["api"] == "openai"
    assert record["params"]["extra"] == {"ignore_eos": True}
    assert emulation.bodies[-1]["ignore_eos"] is True
    assert emulation.bodies[-1]["stream_options"] == {"include_usage": True}


def test_a_build_of_another_commit_is_not_the_servers(tmp_path: Path) -> None:
    builds = tmp_path / "build.json"
    builds.write_text(json.dumps({"commit": "fffffffff", "key": "fffffffff-aa"}))
    record = one(Emulation("llama-server", Clock(), [openai(*PIECES, usage=USAGE)]), builds=builds)
    assert (record["engine"]["commit"], record["engine"]["build_key"]) == ("0c1e57098", None)


@pytest.mark.parametrize(("owner", "name"), [("bramble", "bramble-gateway"), ("vllm", "openai")])
def test_another_server_is_not_taken_for_llama_server(owner: str, name: str) -> None:
    record = one(Emulation("llama-server", Clock(), [openai(*PIECES, usage=USAGE)], owner=owner))
    assert record["engine"]["name"] == name


def test_what_the_caller_knows_better_stands_in_the_record() -> None:
    emulation = Emulation("hailo-ollama", Clock(), [ollama(*PIECES, eval_count=5)])
    record = one(emulation, engine={"version": "5.1.1", "name": None}, model={"sha256": "cd" * 32, "bytes": None})
    assert (record["engine"]["name"], record["engine"]["version"]) == ("hailo-ollama", "5.1.1")
    assert (record["model"]["sha256"], record["model"]["bytes"]) == ("cd" * 32, 1640000000)


def test_chunks_are_counted_where_the_server_does_not() -> None:
    record = one(Emulation("llama-server", Clock(), [openai(*PIECES)]))
    assert record["params"]["token_count"] == "chunks"
    assert record["result"]["decode"]["mean"] == pytest.approx(10)
    assert record["result"]["tokens"]["mean"] == 5
    assert record["conditions"]["notes"] == ["the server counts no tokens: a chunk counts as one"]


def test_tokens_that_come_together_are_all_counted() -> None:
    # Eight tokens in two chunks 0.1 s apart: the four of the second took 0.1 s.
    record = one(Emulation("llama-server", Clock(), [openai("a b c d", " e f g h", usage={"completion_tokens": 8})]))
    assert record["result"]["decode"]["mean"] == pytest.approx(40)
    assert record["result"]["tokens"]["mean"] == 8


@pytest.mark.parametrize("pieces", [(), ("",), ("", "", "")])
def test_answers_without_text_have_no_rate(pieces: tuple[str, ...]) -> None:
    record = one(Emulation("ollama", Clock(), [ollama(*pieces, eval_count=len(pieces))]))
    assert not {"decode", "ttft"} & set(record["result"])
    assert record["result"]["total"]["n"] == 5
    notes = record["conditions"]["notes"]
    assert notes[-1] == "only 0 of 5 answers had two chunks or more, apart from each other"


def test_an_answer_of_one_token_has_a_first_token_and_no_rate() -> None:
    scripts = [ollama("One", eval_count=1), ollama("One", eval_count=1), ollama(*PIECES, eval_count=5)]
    record = one(Emulation("ollama", Clock(), scripts))
    assert record["result"]["ttft"]["n"] == 5
    assert record["result"]["decode"]["n"] == 4
    assert record["conditions"]["notes"] == [
        "only 4 of 5 answers had two chunks or more, apart from each other",
    ]


def test_answers_that_end_early_are_noted() -> None:
    record = one(Emulation("ollama", Clock(), [ollama("One", " two", eval_count=2)]))
    assert record["conditions"]["notes"] == ["answers ended early, after 2 of 5 tokens on average"]


def test_a_model_that_was_loaded_already_has_no_time_of_loading() -> None:
    emulation = Emulation("ollama", Clock(), [ollama(*PIECES, eval_count=5)], loaded=True)
    record = one(emulation)
    assert "load" not in record["result"]
    assert record["conditions"]["notes"] == ["the model was loaded already"]
    assert "/api/generate" not in emulation.paths


def test_no_prompt_comes_twice_and_none_begins_as_another() -> None:
    emulation = Emulation("llama-server", Clock(), [openai(*PIECES, usage=USAGE)])
    with emulation.serving():
        assert len(measured(emulation, requests=12, concurrency=(1, 1, 2), salt="000000007")) == 2
        first = [body["messages"][0]["content"] for body in emulation.bodies]
        emulation.bodies.clear()
        measured(emulation, salt="000000008")
        second = [body["messages"][0]["content"] for body in emulation.bodies]
    assert len(first) == 1 + 12 + 12  # the warm-up, and a level asked for twice is measured once
    beginnings = [prompt[:16] for prompt in first + second]
    assert len(set(beginnings)) == len(beginnings)
    assert first[0] == f"(000000007-0000) {hb.PROMPTS[0]}"


def test_the_built_in_prompts_are_alike_in_length_and_different_from_the_first_word() -> None:
    lengths = [len(prompt) for prompt in hb.PROMPTS]
    assert max(lengths) < 1.3 * min(lengths)
    assert len({prompt.split()[0] for prompt in hb.PROMPTS}) == len(hb.PROMPTS)


# Failures.

CUT = ollama(*PIECES)
CUT.chunks.pop()
CUT.cut = True
ENDED = ollama(*PIECES)
ENDED.chunks.pop()
MID = Script(
    [(0.1, chunk) for chunk in ndjson({"message": {"content": "One"}, "done": False}, {"error": "device lost"})]
)
BROKEN = [
    (Script(status=500, body=OATPP_500), "status 500: No suitable mapper found"),
    (Script(status=503, body=b'{"error":"server busy"}'), "status 503: server busy"),
    (Script(body=b'{"error":"Failed to create LLM"}'), "Failed to create LLM"),
    (Script(body=b"<html>"), "sent '<html>', which is no JSON"),
    (Script(body=b""), "broke off after 0 chunks"),
    (MID, "device lost"),
    (CUT, "cut in the middle of the answer"),
    (ENDED, "broke off after 5 chunks"),
]


@pytest.mark.parametrize(("script", "message"), BROKEN)
def test_an_address_that_answers_nothing_is_an_error(script: Script, message: str) -> None:
    good = ollama(*PIECES, eval_count=5)
    with Emulation("ollama", Clock(), [good, script]).serving() as emulation, pytest.raises(BenchError) as raised:
        measured(emulation)
    told = str(raised.value)
    assert told.startswith(f"{emulation.url}: model {MODEL}: cannot have an answer to any of 5 requests: ")
    assert message in told
    assert told.endswith("what does the service's log say (journalctl)?")


@pytest.mark.parametrize(("script", "message"), BROKEN)
def test_failed_requests_are_counted_and_noted(script: Script, message: str) -> None:
    good = ollama(*PIECES, eval_count=5)
    record = one(Emulation("ollama", Clock(), [good, good, script, good, script, good]))
    assert record["result"]["errors"] == {"value": 2, "unit": "count"}
    assert record["result"]["decode"]["n"] == 3
    [note] = record["conditions"]["notes"]
    assert note.startswith("2 of 5 requests failed, the first with: ")
    assert message in note


@pytest.mark.parametrize("kind", ["ollama", "hailo-ollama", "llama-server"])
def test_a_model_that_is_not_there_is_named(kind: str) -> None:
    emulation = Emulation(kind, Clock(), [ollama(*PIECES)])
    with emulation.serving(), pytest.raises(BenchError, match=r"model nope:1b: cannot .*model 'nope:1b' not found"):
        measured(emulation, name="nope:1b")


def test_an_answer_that_takes_too_long_is_an_error() -> None:
    emulation = Emulation("llama-server", None, [Script(hang=3, body=b"{}")])
    with emulation.serving(), pytest.raises(hb.AnswerError, match=r"no whole answer within 0.2 s \(timeout\)"):
        hb.Server(emulation.url, 0.2).stream("openai", {"model": MODEL})


def test_an_answer_that_trickles_on_is_stopped_too() -> None:
    # Each chunk comes in time; the whole does not. The time is the emulation's.
    emulation = Emulation("ollama", Clock(), [ollama(*PIECES * 50, delays=(1.0, 1.0))])
    with emulation.serving(), pytest.raises(hb.AnswerError, match="no whole answer within 20 s"):
        hb.Server(emulation.url, 20, emulation.clock).stream("ollama", {"model": MODEL})


def test_a_last_line_without_an_end_counts() -> None:
    script = openai(*PIECES)
    script.chunks[-1] = (0.1, b"data: [DONE]")
    assert one(Emulation("llama-server", Clock(), [script]))["result"]["decode"]["mean"] == pytest.approx(10)


@pytest.fixture
def closed() -> Iterator[str]:
    """An address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_an_address_without_a_server_is_an_error(closed: str) -> None:
    with pytest.raises(
        BenchError, match=r"neither as Ollama nor as OpenAI \(/api/version: Connection refused; /v1/models"
    ):
        hb.find_api(hb.Server(closed, 5))


@pytest.mark.parametrize(
    ("kind", "expected"), [("ollama", "ollama"), ("hailo-ollama", "ollama"), ("llama-server", "openai")]
)
def test_the_language_is_found_out(kind: str, expected: str) -> None:
    with Emulation(kind).serving() as emulation:
        assert hb.find_api(hb.Server(emulation.url + "/", 5)) == expected


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://a", "http://", "http://a:99999", "http://a:x", "http://a?b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match="url: expected http://address:port"):
        hb.Server(url, 5)


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(hb.AnswerError):
        hb.Server(f"http://{'a' * 70}.invalid", 5).ask("/")


def test_own_addresses_are_known() -> None:
    assert hb.is_own("127.0.0.1")
    assert not hb.is_own("192.0.2.1")  # TEST-NET-1, RFC 5737: nobody has it
    assert not hb.is_own("a" * 70)


@pytest.mark.parametrize(
    ("wanted", "arguments", "message"),
    [
        ({"model": " "}, ([1], 5, False), "model: is empty"),
        ({"max_tokens": 1}, ([1], 5, False), "max_tokens: must be 2 or more"),
        ({}, ([], 5, False), "concurrency: must be 1 or more"),
        ({}, ([1, 0], 5, False), "concurrency: must be 1 or more"),
        ({}, ([1], 0, False), "timeout: must be 1 or more"),
        ({"prompts": ["a", " "]}, ([1], 5, False), "prompts: one is empty"),
        ({"requests": 4}, ([1], 5, False), "requests: a figure is of 5 or more, not of 4; allow_few"),
        ({}, ([8], 5, False), r"requests: 5 cannot keep 8 clients \(concurrency\) at work"),
    ],
)
def test_what_is_no_measurement_is_refused(wanted: dict[str, Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        hb.check(hb.Wanted(**({"model": MODEL} | wanted)), *arguments)


def test_clients_ask_at_once() -> None:
    # Nobody is answered before two have asked, so one after the other would never end.
    emulation = Emulation("llama-server", None, [openai(*PIECES, usage=USAGE)], together=2)
    with emulation.serving():
        [(record, log)] = measured(emulation, requests=6, concurrency=(2,))
    assert record["params"]["concurrency"] == 2
    assert record["result"]["total"]["n"] == 6
    assert log.count('"chunks"') == 6


# The module.


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_module_returns_records_and_logs(capsys: pytest.CaptureFixture[str]) -> None:
    with Emulation("llama-server", None, [openai(*PIECES, usage=USAGE)]).serving() as emulation:
        result = call(capsys, url=emulation.url, model=MODEL, concurrency=[1, 2], model_facts={"sha256": "ab" * 32})
    assert result["changed"] is False
    assert [record["params"]["concurrency"] for record in result["records"]] == [1, 2]
    assert result["records"][0]["model"]["sha256"] == "ab" * 32
    assert len(result["raw"]) == 2
    assert result["raw"][0].startswith(f"# {emulation.url}, 1 at once\n")


def test_check_mode_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Emulation("ollama").serving() as emulation:
        result = call(capsys, url=emulation.url, model=MODEL, _ansible_check_mode=True)
    assert (result["changed"], result["records"], result["raw"]) == (False, [], [])
    assert emulation.paths == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "nowhere"}, "url: expected http://address:port, got nowhere"),
        ({"requests": 2}, "requests: a figure is of 5 or more, not of 2; allow_few takes fewer, for a trial"),
        ({"model_facts": {"sha256": "x"}}, "model_facts.sha256: expected 64 lower-case hex digits, got x"),
    ],
)
def test_the_module_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], closed: str, arguments: dict[str, Any], message: str
) -> None:
    result = call(capsys, **({"url": closed, "model": MODEL} | arguments))
    assert (result["failed"], result["msg"], result["records"]) == (True, message, [])
