"""The exam: each kind of check by a table, each item by its samples, both APIs by emulated servers."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import exam
from ansible.module_utils.bramble.http_bench import AnswerError
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import quality_exam as module
from bramble.records.schema import partial_defects

RAW: list[dict[str, Any]] = json.loads(
    (Path(__file__).resolve().parents[2] / "roles/benchmark/files/exam.json").read_text(encoding="utf-8")
)
ITEMS = exam.read_items(RAW)
CATEGORIES = ("arithmetic", "extraction", "format", "instructions", "code", "knowledge")


def item(check: dict[str, Any], category: str = "knowledge", **more: Any) -> exam.Item:
    [made] = exam.read_items([{"id": "x", "category": category, "prompt": "?", "check": check, "max_tokens": 8} | more])
    return made


# Each kind of check: right answers, wrong answers; first forgiving, then in the category `format`.

KINDS: dict[str, list[tuple[dict[str, Any], list[str], list[str]]]] = {
    "number": [
        (
            {"value": 1234},
            *(
                [
                    *("1234", "1,234", "1'234", "1\u202f234", "1234.0", "**1234**", "1234.", " 1234 \n", "= 1234"),
                    *("The answer is 1234.", "617 * 2 = 1234", "\\boxed{1234}", "$1234$", "1234 euros", "1234km"),
                    *("**1234** is the product of 2 and 617", "```\n1234\n```", "<think>maybe 5</think>1234"),
                ],
                ["", "1235", "-1234", "12345", "1.234", "1 23 4", "x1234", "one", "**1** or **1234** or 7", "1234 - 1"],
            ),
        ),
        ({"value": -7}, ["-7", "\u22127", "The result is -7."], ["7", "- 7 8"]),
        ({"value": 0.875}, ["0.875", ".875", "7/8 = 0.875"], ["0.88", "875"]),
        ({"value": 3.14, "tolerance": 0.01}, ["3.14", "3.1416", "3.15"], ["3.2", "3"]),
    ],
    "exact": [
        (
            {"value": "Paris"},
            ["Paris", "paris.", "**Paris**", "`Paris`", '"Paris"', "“Paris.”", "Answer: Paris", "```text\nParis\n```"],
            ["", "Lyon", "Paris, France", "The capital is Paris", "Pari s"],
        ),
        ({"value": "GREEN TEA", "case": True}, ["GREEN TEA", "GREEN  TEA."], ["Green Tea", "green tea"]),
        (
            {"value": "Paris", "within": True},
            ["It is Paris.", "Paris, France"],
            ["Parisian", "Pari", "so " * 15 + "Paris"],
        ),
        ({"value": "10.0.0.7"}, ["10.0.0.7", "10.0.0.7."], ["10.0.0.70", "10.0.0"]),
    ],
    "one_of": [
        ({"values": ["ohm", "ohms"]}, ["ohm", "Ohms.", "The answer is ohm"], ["", "volt", "ohm or volt"]),
    ],
    "contains_all": [
        (
            {"values": ["Anna", ["cloud", "clouds"]], "none_of": ["water"]},
            ["Anna saw clouds", "a cloud, ANNA!", "**Anna**\n\n- cloud"],
            ["", "Anna", "Annas cloud", "Anna, cloud, Water", "cloudy Anna"],
        ),
    ],
    "regex": [
        (
            {"pattern": "apple, ?pear"},
            ["apple, pear", "Apple,pear.", "`apple, pear`"],
            ["", "pear, apple", "apple, pear, fig"],
        ),
        ({"pattern": "[A-Z]+", "case": True}, ["ABC"], ["abc", "AbC"]),
    ],
    "json_equals": [
        (
            {"value": {"a": 1, "b": ["x", None, True]}},
            [
                '{"a": 1, "b": ["x", null, true]}',
                '{"b":["X",null,true],"a":1.0}',
                'Here it is:\n```json\n{"a": 1, "b": ["x", null, true]}\n```\nEnjoy!',
                'Sure! {"a": 1, "b": ["x", null, true]} is it.',
            ],
            [
                *("", "{", "null", '{"a": 1}', '{"a": true, "b": ["x", null, true]}', '{"a": 1, "b": ["x", null, 1]}'),
                *('{"a": 1, "b": ["x", null, true], "c": 0}', '{"a": 1, "b": ["x", true, null]}', "[" * 9000),
            ],
        ),
    ],
    "json_schema": [
        (
            {
                "schema": {
                    "type": "object",
                    "required": ["n", "tags"],
                    "additionalProperties": False,
                    "properties": {
                        "n": {"type": "integer", "minimum": 1, "maximum": 9},
                        "tags": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 2,
                            "items": {"type": "string", "pattern": "^[a-z]+$"},
                        },
                        "kind": {"enum": ["a", 1]},
                        "more": {"type": "null"},
                        "open": {"type": "boolean"},
                        "rate": {"type": "number"},
                    },
                }
            },
            [
                '{"n": 3, "tags": ["a", "b"]}',
                '```\n{"n": 9, "tags": ["z"], "kind": 1, "more": null, "open": true, "rate": 0.5}\n```',
            ],
            [
                *("", "3", "[]", '{"n": 3}', '{"n": true, "tags": ["a"]}', '{"n": 0, "tags": ["a"]}'),
                *('{"n": 10, "tags": ["a"]}', '{"n": 3.5, "tags": ["a"]}', '{"n": 3, "tags": []}'),
                *('{"n": 3, "tags": ["a", "b", "c"]}', '{"n": 3, "tags": ["A"]}', '{"n": 3, "tags": [1]}'),
                *('{"n": 3, "tags": ["a"], "x": 1}', '{"n": 3, "tags": ["a"], "kind": "b"}'),
                *('{"n": 3, "tags": ["a"], "more": 0}', '{"n": 3, "tags": ["a"], "kind": true}'),
                *('{"n": 3, "tags": ["a"], "open": 1}', '{"n": 3, "tags": ["a"], "rate": "1"}'),
            ],
        ),
    ],
    "lines": [
        (
            {"values": ["red", "blue"]},
            ["red\nblue", "- red\n- blue", "red\n\nblue\n", "```\nred\nblue\n```"],
            ["", "red blue", "blue\nred"],
        ),
        ({"count": 2, "each": "[a-z]+"}, ["ab\ncd"], ["ab", "ab\ncd\nef", "ab\nC"]),
        ({"count": 2}, ["x\ny"], ["x"]),
        ({"patterns": [r"1\. .+", r"2\. .+"]}, ["1. a\n2. b"], ["1. a\n3. b", "1. a"]),
    ],
    "word_count": [
        (
            {"min": 2, "max": 3, "values": ["sea"]},
            ["The sea", "**Deep** sea-water, sea!", "It's the sea"],
            ["", "sea", "the big blue sea", "the ocean"],
        ),
    ],
    "python_result": [
        (
            {"value": "['a', 1, True]"},
            ["['a', 1, True]", '["a",1,True]', "```python\n['a', 1, True]\n```", "Output: ['a', 1, True]"],
            [
                "",
                "['a', 1, 1]",
                "['a', 1]",
                "('a', 1, True)",
                "print(['a', 1, True])",
                "[" * 300,
                "a" * 9000,
                "__import__('os')",
            ],
        ),
        ({"value": "{'a': (1, 2)}"}, ["{'a': (1, 2)}"], ["{'a': [1, 2]}", "{}"]),
    ],
}

FORMAT: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"kind": "number", "value": 12}, ["12", " 12\n"], ["12.", "**12**", "The answer is 12", "1,2"]),
    ({"kind": "exact", "value": "OK"}, ["OK", "\nOK "], ["ok", "OK.", "`OK`", '"OK"']),
    ({"kind": "one_of", "values": ["a", "b"]}, ["a", "b"], ["A", "a."]),
    ({"kind": "regex", "pattern": "[a-z]+"}, ["ab"], ["AB", "ab.", "`ab`"]),
    ({"kind": "contains_all", "values": ["**a**"]}, ["so **a** it is"], ["a"]),
    (
        {"kind": "json_equals", "value": {"a": "x"}},
        ['{"a": "x"}'],
        ['```\n{"a": "x"}\n```', '{"a": "X"}', 'So: {"a": "x"}'],
    ),
    ({"kind": "json_schema", "schema": {"type": "array"}}, ["[]"], ["`[]`", "[] is it"]),
    ({"kind": "lines", "values": ["a", "b"]}, ["a\nb", "a\nb\n"], ["- a\n- b", "a\n\nb", "```\na\nb\n```"]),
    ({"kind": "python_result", "value": "[1]"}, ["[1]", "[ 1 ]"], ["`[1]`", "[1]."]),
]

CASES = [
    (kind, {"kind": kind, **check}, "knowledge", answer, verdict)
    for kind, checks in KINDS.items()
    for check, rights, wrongs in checks
    for verdict, answers in ((True, rights), (False, wrongs))
    for answer in answers
] + [
    (check["kind"], check, "format", answer, verdict)
    for check, rights, wrongs in FORMAT
    for verdict, answers in ((True, rights), (False, wrongs))
    for answer in answers
]


def test_every_kind_has_a_table() -> None:
    assert KINDS.keys() == exam.CHECKS.keys()


@pytest.mark.parametrize(("kind", "check", "category", "answer", "verdict"), CASES)
def test_marking(kind: str, check: dict[str, Any], category: str, answer: str, verdict: bool) -> None:
    assert exam.right(item(check, category), answer) is verdict


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ("<think>a\nb</think>\n5", "5"),
        ("<think>endless 5", ""),
        ("<THINK>x</THINK>5<think>y</think>", "5"),
        (" 5 ", "5"),
    ],
)
def test_thoughts_are_no_answer(answer: str, left: str) -> None:
    assert exam.said(answer) == left


TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="0123456789,.'- \n*`[]{}()\":\\abexTrueFalsn<think>/|", max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    ).flatmap(lambda value: st.sampled_from([json.dumps(value), repr(value), f"```json\n{json.dumps(value)}\n```"])),
)


@given(st.sampled_from(ITEMS), TEXTS)
def test_any_text_can_be_marked(one: exam.Item, answer: str) -> None:
    assert exam.right(one, answer) in (True, False)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=2) | st.integers(), max_size=3),
    st.dictionaries(
        st.sampled_from(["type", "enum", "required", "properties", "items", "pattern", "minItems", "maximum", "x"]),
        st.sampled_from(["object", "array", "string", "integer", "(", "[a-z]"])
        | st.integers()
        | st.lists(st.text(max_size=2))
        | st.dictionaries(st.text(max_size=2), st.fixed_dictionaries({"type": st.just("null")}), max_size=2),
        max_size=3,
    ),
)
FIELDS = sorted({name for _, must, may in exam.CHECKS.values() for name in (*must, *may)})


@given(
    st.sampled_from(sorted(exam.CHECKS)).flatmap(
        lambda kind: st.fixed_dictionaries(
            {"kind": st.just(kind), **dict.fromkeys(exam.CHECKS[kind][1], VALUES)},
            optional=dict.fromkeys([*exam.CHECKS[kind][2], "wrong"], VALUES),
        )
    ),
    st.sampled_from(["format", "code"]),
    TEXTS,
)
def test_a_check_that_is_accepted_can_mark_any_text(check: dict[str, Any], category: str, answer: str) -> None:
    try:
        one = item(check, category)
    except exam.ExamError:
        return
    assert exam.right(one, answer) in (True, False)


# The items of the project's own exam.


def test_the_exam_is_long_enough_for_every_category() -> None:
    counts = Counter(entry["category"] for entry in RAW)
    assert counts.keys() == set(CATEGORIES)
    assert min(counts.values()) >= 11
    assert len(RAW) >= 66
    assert {(entry["category"], entry["level"]) for entry in RAW} == {(c, n) for c in CATEGORIES for n in (1, 2, 3)}


def test_no_two_items_are_the_same() -> None:
    assert len({entry["id"] for entry in RAW}) == len({entry["prompt"] for entry in RAW}) == len(RAW)


@pytest.mark.parametrize("entry", RAW, ids=[entry["id"] for entry in RAW])
def test_item(entry: dict[str, Any]) -> None:
    [one] = exam.read_items([entry])
    assert exam.right(one, entry["sample"])
    assert not exam.right(one, entry["wrong"])
    assert not exam.right(one, entry["prompt"]), "an echo of the question is no answer"
    for idle in ("", "I do not know.", "?", "null", "{}"):
        assert not exam.right(one, idle), idle
    # A model that stops at the limit is not cut off in a right answer: a token has at least one character.
    assert len(entry["sample"]) <= 4 * one.max_tokens
    # The exam must fit into the context of hailo-ollama, 2048 tokens for all models, with room to spare.
    assert len(one.prompt) / 2 + one.max_tokens < 1024


@pytest.mark.parametrize("entry", RAW, ids=[entry["id"] for entry in RAW])
def test_habits_are_forgiven_where_the_item_is_not_about_them(entry: dict[str, Any]) -> None:
    [one] = exam.read_items([entry])
    forgiven = entry["category"] != "format"
    assert exam.right(one, f"```\n{entry['sample']}\n```") is forgiven
    assert exam.right(one, f"<think>Let me see.</think>\n{entry['sample']}")
    if one.check["kind"] in ("number", "exact", "one_of") and "*" not in entry["sample"]:
        bare = entry["sample"].rstrip(".")
        assert exam.right(one, f"**{bare}**") is forgiven
        assert exam.right(one, f"{bare}.") is forgiven


# Items that are wrong.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "the item at place 1: id must be of type str and not empty"),
        ({"prompt": None}, "x: prompt must be of type str"),
        ({"max_tokens": True}, "max_tokens must be of type int"),
        ({"max_tokens": -1}, "max_tokens must be at least 1"),
        ({"category": "Hard Questions"}, "category must be a word in lower case"),
        ({"check": {"value": 1}}, r"check\.kind must be one of number, .*, is None"),
        ({"check": {"kind": "guess"}}, r"check\.kind must be one of"),
        ({"check": {"kind": ["number"]}}, r"check\.kind must be one of"),
        ({"check": {"kind": "number"}}, r"check\.value is missing"),
        ({"check": {"kind": "number", "value": "4"}}, r"check\.value is no such value: '4'"),
        ({"check": {"kind": "number", "value": float("nan")}}, r"check\.value is no such value"),
        ({"check": {"kind": "number", "value": 4, "tolerence": 1}}, r"check\.tolerence is no field of the kind number"),
        ({"check": {"kind": "regex", "pattern": "("}}, r"check\.pattern is no regular expression"),
        ({"check": {"kind": "one_of", "values": []}}, r"check\.values is no list of texts"),
        ({"check": {"kind": "one_of", "values": [["a"]]}}, r"check\.values is no list of texts"),
        ({"check": {"kind": "lines", "each": "a"}}, "must have one of values, patterns and count"),
        ({"check": {"kind": "json_schema", "schema": {"type": "text"}}}, r"check\.schema is no schema"),
        ({"check": {"kind": "json_schema", "schema": {"items": {"oneOf": []}}}}, r"check\.schema is no schema"),
        ({"check": {"kind": "python_result", "value": "f(1)"}}, r"check\.value is no such value"),
    ],
)
def test_wrong_items_are_refused(changes: dict[str, Any], message: str) -> None:
    good = {"id": "x", "category": "code", "prompt": "?", "check": {"kind": "number", "value": 1}, "max_tokens": 8}
    assert exam.read_items([good])
    with pytest.raises(exam.ExamError, match=f"^items: .*{message}"):
        exam.read_items([good | changes])


def test_no_items_and_the_same_twice_are_refused() -> None:
    with pytest.raises(exam.ExamError, match="there are none"):
        exam.read_items([])
    with pytest.raises(exam.ExamError, match=f"id '{RAW[0]['id']}': stands there 2 times"):
        exam.read_items([RAW[0], RAW[1], RAW[0]])


@given(
    st.lists(st.dictionaries(st.sampled_from(["id", "category", "prompt", "check", "max_tokens"]) | st.text(), VALUES))
)
def test_reading_survives_any_items(raw: list[dict[str, Any]]) -> None:
    with suppress(exam.ExamError):
        assert len(exam.read_items(raw)) == len(raw) > 0


def test_the_name_changes_with_what_is_asked() -> None:
    name = exam.exam_name("bramble", ITEMS)
    assert name == exam.exam_name("bramble", exam.read_items(RAW))
    assert name.startswith("bramble-")
    assert len(name) == len("bramble-") + 8
    assert exam.exam_name("bramble", ITEMS[1:]) != name
    # What is not asked changes nothing.
    assert exam.exam_name("bramble", exam.read_items([entry | {"sample": "?"} for entry in RAW])) == name


# Figures.


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # The first two: R. G. Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_interval_is_wilsons(successes: int, trials: int, low: float, high: float) -> None:
    assert exam.interval(successes, trials) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share(case: tuple[int, int]) -> None:
    low, high = exam.interval(*case)
    assert 0 <= low <= case[0] / case[1] + 1e-12
    assert case[0] / case[1] - 1e-12 <= high <= 1


def verdicts(rights: str) -> list[exam.Verdict]:
    """Of a text such as "an- kn+ kn!": category's first letter, then + right, - wrong, ! failed."""
    return [
        exam.Verdict(
            item(
                {"kind": "number", "value": 1}, {"a": "arithmetic", "k": "knowledge"}[mark[0]], id=f"{place}{mark[0]}"
            ),
            mark[1] == "+",
            None if mark[1] == "!" else "1",
            "timed out" if mark[1] == "!" else None,
            0.5,
        )
        for place, mark in enumerate(rights.split())
    ]


def test_result_by_category() -> None:
    found = exam.result(verdicts("a+ a- a+ a+ k- k!"))
    assert {name: (metric["value"], metric.get("n")) for name, metric in found.items()} == {
        "score": (0.5, 6),
        "score_arithmetic": (0.75, 4),
        "score_knowledge": (0.0, 2),
        "errors": (1, None),
    }
    assert found["score"] == {"value": 0.5, "n": 6, "unit": "share", "low": 0.1876, "high": 0.8124}
    assert "errors" not in exam.result(verdicts("a+ k-"))


def test_notes_and_log_name_what_failed() -> None:
    found = verdicts("a+ k!")
    assert exam.notes(found) == ["1k counts as wrong: timed out"]
    lines = [json.loads(line) for line in exam.raw_log(found).splitlines()]
    assert lines == [
        {"id": "0a", "category": "arithmetic", "right": True, "answer": "1", "error": None, "seconds": 0.5},
        {"id": "1k", "category": "knowledge", "right": False, "answer": None, "error": "timed out", "seconds": 0.5},
    ]


# Sitting it.


def answers(fails: set[int]) -> Callable[[exam.Item], str]:
    """Right answers, but for the requests with these numbers, which fail."""
    samples = {entry["id"]: entry["sample"] for entry in RAW}
    asked = iter(range(10_000))

    def answer(one: exam.Item) -> str:
        number = next(asked)
        if number in fails:
            raise AnswerError(f"request {number} timed out")
        return str(samples[one.id])

    return answer


def test_all_samples_score_one() -> None:
    done = exam.sit(ITEMS, answers(set()), lambda: 0.0)
    assert exam.result(done)["score"]["value"] == 1.0
    assert [verdict.item.id for verdict in done] == [entry["id"] for entry in RAW]


def test_single_failures_count_as_wrong() -> None:
    done = exam.sit(ITEMS[:10], answers({0, 1, 2, 3, 5, 6, 7, 8}), lambda: 0.0)
    assert [verdict.right for verdict in done] == [n in (4, 9) for n in range(10)]
    assert len(exam.notes(done)) == 8


@pytest.mark.parametrize(
    ("items", "fails", "asked"), [(72, {3, 4, 5, 6, 7}, 8), (2, {0, 1}, 2), (1, {0}, 1), (5, {0, 1, 2, 3, 4}, 5)]
)
def test_failures_in_succession_end_it(items: int, fails: set[int], asked: int) -> None:
    with pytest.raises(
        exam.ExamError, match=f"requests in succession failed, the last .* request {asked - 1} timed out"
    ) as ended:
        exam.sit(ITEMS[:items], answers(fails), lambda: 0.0)
    assert len(ended.value.verdicts) == asked


@pytest.mark.parametrize(
    ("api", "status", "content", "text"),
    [
        (
            "ollama",
            200,
            b'{"model":"m","message":{"role":"assistant","content":"caf\\u00E9 a\\/b"},"done":true}',
            "café a/b",
        ),
        ("ollama", 200, b'{"message":{"content":null}}', ""),
        ("openai", 200, b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}]}', "hi"),
        ("openai", 200, b'{"choices":[{"message":{"content":null,"reasoning_content":"hm"}}]}', ""),
    ],
)
def test_parse_answer(api: Any, status: int, content: bytes, text: str) -> None:
    assert exam.parse_answer(api, status, content) == text


OATPP = (
    b"server=oatpp/1.4.0\ncode=500\ndescription=Internal Server Error\nstacktrace:\n"
    b"  - read failed!\n  - [ApiController]: Error processing request\n"
)


@pytest.mark.parametrize(
    ("api", "status", "content", "message"),
    [
        ("ollama", 200, b'{"error":"model \'nope:1b\' not found"}', "model 'nope:1b' not found"),
        ("openai", 200, b'{"error":{"message":"no slot"}}', "no slot"),
        ("ollama", 500, OATPP, "status 500: read failed!"),
        ("ollama", 404, b'{"error":"model not found"}', "status 404: model not found"),
        ("ollama", 200, b"", "no JSON"),
        ("ollama", 200, b"{}", "holds no message"),
        ("openai", 200, b'{"choices":[]}', "holds no message"),
        ("openai", 200, b'{"choices":[7]}', "holds no message"),
    ],
)
def test_parse_answer_refuses(api: Any, status: int, content: bytes, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        exam.parse_answer(api, status, content)


@given(
    st.sampled_from(["ollama", "openai"]),
    st.sampled_from([200, 500]),
    st.binary() | TEXTS.map(lambda t: t.encode("utf-8", "replace")),
)
def test_parse_answer_survives_any_bytes(api: Any, status: int, content: bytes) -> None:
    with suppress(AnswerError):
        assert isinstance(exam.parse_answer(api, status, content), str)


# The module against servers that emulate hailo-ollama and an OpenAI server.


class Emulation(BaseHTTPRequestHandler):
    """Like hailo-ollama it refuses a body not declared as JSON, and wrong types, and has errors with status 200."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        openai = self.server.api == "openai"
        pages: dict[str, object] = {
            "/v1/models": {"data": [{"id": "m", "owned_by": "someone"}]} if openai else None,
            "/": None if openai else "hailo-ollama is running",
            "/api/version": None if openai else {"version": "0.5.1"},
            "/api/ps": None if openai else {"models": []},
            "/api/tags": None
            if openai
            else {"models": [{"name": "m", "size": 7, "details": {"quantization_level": "Q4_0"}}]},
        }
        page = pages.get(self.path)
        self.reply(404 if page is None else 200, page if isinstance(page, str) else json.dumps(page))

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        if self.headers["Content-Type"] != "application/json" or isinstance(request.get("keep_alive", 0), str):
            return self.reply(500, OATPP.decode())
        if request["model"] != "m":
            return self.reply(200, json.dumps({"error": f"model '{request['model']}' not found"}))
        if self.path == "/api/generate":
            return self.reply(200, json.dumps({"model": "m", "response": "", "done": True, "done_reason": "load"}))
        if self.path != ("/v1/chat/completions" if self.server.api == "openai" else "/api/chat"):
            return self.reply(404, "No mapping")
        [message] = request["messages"]
        found = self.server.answer(message["content"])
        if found is None:
            return self.reply(500, OATPP.decode())
        said = {"role": "assistant", "content": found}
        content = (
            {"choices": [{"index": 0, "message": said}]}
            if self.server.api == "openai"
            else {"message": said, "done": True}
        )
        return self.reply(200, json.dumps(content))

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def serve(api: str, answer: Callable[[str], str | None]) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Emulation)
    server.api, server.answer, server.requests = api, answer, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def sample(prompt: str) -> str | None:
    return next(str(entry["sample"]) for entry in RAW if entry["prompt"] == prompt)


def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, **arguments: Any) -> dict[str, Any]:
    bare = {"sysfs": str(tmp_path), "device_tree": str(tmp_path), "build": str(tmp_path / "none")}
    with patch_module_args({"model": "m", "items": RAW, **bare, **arguments}), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.parametrize(
    ("api", "asked", "engine", "quant"),
    [("ollama", "/api/chat", "hailo-ollama", "Q4_0"), ("openai", "/v1/chat/completions", "openai", None)],
)
@pytest.mark.parametrize("told", ["auto", "given"])
def test_module_examines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, api: str, asked: str, engine: str, quant: str | None, told: str
) -> None:
    with serve(api, sample) as server:
        answer = run(
            capsys, tmp_path, url=server.url, api="auto" if told == "auto" else api, model_facts={"sha256": "ab" * 32}
        )
    assert answer["changed"] is False
    [record] = answer["records"]
    assert partial_defects(record) == []
    assert record["kind"] == "quality"
    assert record["engine"]["name"] == engine
    assert (record["model"]["quant"], record["model"]["sha256"]) == (quant, "ab" * 32)
    assert record["params"] == {"exam": exam.exam_name("bramble", ITEMS), "items": len(RAW), "api": api}
    assert {name: metric["value"] for name, metric in record["result"].items()} == {
        "score": 1.0,
        **{f"score_{category}": 1.0 for category in CATEGORIES},
    }
    chats = [request for path, request in server.requests if path == asked]
    assert len(chats) == len(RAW)
    for entry, request in zip(RAW, chats, strict=True):
        settings = request["options"] if api == "ollama" else request
        assert (settings["temperature"], settings["seed"]) == (0, 0)
        assert settings["num_predict" if api == "ollama" else "max_tokens"] == entry["max_tokens"]
        assert request["stream"] is False
    log = [json.loads(line) for line in answer["raw"].splitlines()]
    assert [(line["id"], line["answer"], line["right"]) for line in log] == [(e["id"], e["sample"], True) for e in RAW]


def test_module_counts_a_failed_request_as_wrong_and_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with serve("ollama", lambda prompt: None if prompt == RAW[3]["prompt"] else sample(prompt)) as server:
        answer = run(capsys, tmp_path, url=server.url)
    [record] = answer["records"]
    assert record["result"]["score"]["value"] == round((len(RAW) - 1) / len(RAW), 4)
    assert record["result"]["errors"] == {"value": 1, "unit": "count"}
    assert f"{RAW[3]['id']} counts as wrong: status 500: read failed!" in record["conditions"]["notes"]


def test_module_fails_when_the_server_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serve("ollama", lambda _: None) as server:
        answer = run(capsys, tmp_path, url=server.url)
    assert answer["failed"] is True
    assert answer["records"] == []
    assert answer["msg"].startswith(f"{server.url}: model m: 5 requests in succession failed")
    assert len(answer["raw"].splitlines()) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nope:1b"}, r"cannot load it: model 'nope:1b' not found"),
        ({"url": "ftp://127.0.0.1"}, "url: expected http://address:port"),
        ({"items": [{"id": "x"}]}, "items: x: category must be of type str"),
        ({"timeout": 0}, "timeout must be 1 or more"),
    ],
)
def test_module_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with serve("ollama", sample) as server:
        answer = run(capsys, tmp_path, **{"url": server.url, **arguments})
    assert answer["failed"] is True
    assert message in answer["msg"]


def test_module_says_that_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serve("ollama", sample) as server:
        pass
    answer = run(capsys, tmp_path, url=server.url)
    assert answer["failed"] is True
    assert server.url in answer["msg"]


def test_module_asks_nothing_in_check_mode(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serve("ollama", sample) as server:
        answer = run(capsys, tmp_path, url=server.url, _ansible_check_mode=True)
    assert (answer["changed"], answer["records"], server.requests) == (False, [], [])
