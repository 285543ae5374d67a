"""A short exam for a language model, put to any Ollama or OpenAI address and marked by rules. Standard library only.

An item is ``{id, category, prompt, check, max_tokens}``. Marking is a pure function of its check and the answer;
nothing that a model wrote is ever run. Habits of chat (bold, code fences, a full stop, "The answer is") are forgiven,
except in the category ``format``, which is about them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from .conditions import Node, Observation
from .http_bench import (
    CHAT_PATH,
    AnswerError,
    Api,
    Clock,
    Server,
    Wanted,
    find_api,
    is_own,
    load_model,
    parse_error_page,
    parse_object,
    read_engine,
    read_model,
)

STRICT = "format"  # the category in which nothing is forgiven
LONGEST_TEXT = 20_000  # characters of an answer that are marked; of 256 tokens there are some 1,000
LONGEST_LITERAL = 500  # characters; a printed value is short
LONGEST_WITHIN = 15  # words of an answer in which the right one may stand among others
GIVE_UP_AFTER = 5  # requests that failed one after the other
KEEP_ALIVE = 300  # seconds; hailo-ollama takes only a number
SEED = 0
Z_95 = 1.959964  # the normal distribution's 97.5 % quantile


class ExamError(Exception):
    """The exam cannot be set, or not be finished; the message says why. ``verdicts``: of what was asked before."""

    def __init__(self, message: str, verdicts: Sequence[Verdict] = ()) -> None:
        super().__init__(message)
        self.verdicts = verdicts


@dataclass(frozen=True)
class Item:
    """One question. ``max_tokens``: of the answer. ``check``: how it is marked, see ``CHECKS``."""

    id: str
    category: str
    prompt: str
    check: Mapping[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Verdict:
    """What became of an item: the answer as it came, or why there is none, which counts as wrong."""

    item: Item
    right: bool
    answer: str | None
    error: str | None
    seconds: float


# Reading an answer.

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*)?```", re.DOTALL)
_LABEL = re.compile(r"(?:the )?(?:final |correct )?(?:answer|result|output)(?: is)?\s*[:=]?\s+", re.IGNORECASE)
# Quotation marks, the minus sign and the dash that a model may write for the plain ones.
_TYPOGRAPHIC = str.maketrans("\u2018\u2019\u201c\u201d\u2212\u2013", "''\"\"--")
_QUOTES = ("'", '"')


def said(answer: str) -> str:
    """The answer without a reasoning model's thoughts and the space around it; an endless thought leaves nothing."""
    return _THOUGHTS.sub("", answer[:LONGEST_TEXT]).strip()


def plain(answer: str) -> str:
    """What was said, without code fence, bold, code marks, LaTeX's box and typographic quotes. Lines stay."""
    text = said(answer).translate(_TYPOGRAPHIC)
    fenced = _FENCE.findall(text)
    if len(fenced) == 1:
        text = fenced[0]
    text = re.sub(r"\\boxed\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\1", text)
    return text.replace("`", "").strip()


def core(answer: str) -> str:
    """The plain answer on one line, without a label in front, quotes around it and a full stop behind it."""
    text = " ".join(plain(answer).split())
    text = _LABEL.sub("", text, count=1) if _LABEL.match(text) else text
    for _ in range(2):  # "Paris." and "Paris".
        text = text.rstrip(" .!").strip()
        if len(text) >= 2 and text[0] == text[-1] and text[0] in _QUOTES:
            text = text[1:-1].strip()
    return text


# "1,234.5", "-7", ".5", "84%"; not the digits of "x2", nor those behind the comma of "1,2".
_NUMBER = re.compile(
    r"(?<![\w.,])-?(?:(?:\d{1,3}(?:[,']\d{3})+(?!\d)|\d{1,40})(?:\.\d{1,40})?|\.\d{1,40})(?!\d)", re.ASCII
)


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, with thousands separators or without."""
    text = re.sub(r"(?<=\d)[\u00a0\u202f](?=\d{3})", "", text)
    return [Decimal(re.sub("[,']", "", match[0])) for match in _NUMBER.finditer(text)]


def number(answer: str) -> Decimal | None:
    """The number that an answer gives: the one in bold or in a box if there is just one such, else the last one."""
    text = said(answer).translate(_TYPOGRAPHIC)
    marked = [match[1] or match[2] for match in re.finditer(r"\*\*([^*\n]+)\*\*|\\boxed\{([^{}]*)\}", text)]
    if len(marked) == 1 and len(numbers(marked[0])) == 1:
        return numbers(marked[0])[0]
    found = numbers(plain(answer))
    return found[-1] if found else None


def find_json(answer: str, strict: bool) -> tuple[bool, Any]:
    """Whether there is a JSON value, and it. Strict: it is all of the answer. Else: in a fence, or the first one."""
    text = said(answer) if strict else plain(answer)
    try:
        return True, json.loads(text)
    except (ValueError, RecursionError):
        pass
    begin = re.search(r"[\[{]", text)
    if strict or not begin:
        return False, None
    try:
        return True, json.JSONDecoder().raw_decode(text, begin.start())[0]
    except (ValueError, RecursionError):
        return False, None


def same(one: object, other: object, fold: bool = False) -> bool:
    """Equal values of equal types: 1 is 1.0, and not true. ``fold``: texts in either case."""
    if isinstance(one, bool) or isinstance(other, bool) or one is None or other is None:
        return one is other
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return one == other
    if isinstance(one, str) and isinstance(other, str):
        return one.strip().casefold() == other.strip().casefold() if fold else one == other
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key], fold) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b, fold) for a, b in zip(one, other, strict=True))
    return one == other


# Marking. Each: (check, answer, strict) → whether it is right.


def _number(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """``value``, up to ``tolerance`` (absolute, 0) apart."""
    given = number(answer)
    if given is None or (strict and not re.fullmatch(r"-?\d+(\.\d+)?", said(answer), re.ASCII)):
        return False
    return abs(given - Decimal(str(check["value"]))) <= Decimal(str(check.get("tolerance", 0)))


def _exact(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """``value`` and nothing else; ``case``: its case matters (always when strict). ``within``: see ``_one_of``."""
    return _one_of({**check, "values": [check["value"]]}, answer, strict)


def _one_of(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """One of ``values`` and nothing else; with ``within``, as whole words in an answer of at most 15."""
    if strict:
        return said(answer) in check["values"]
    fold = str if check.get("case") else str.casefold
    text = fold(core(answer))
    wanted = [fold(value) for value in check["values"]]
    if text in wanted:
        return True
    return bool(check.get("within")) and len(text.split()) <= LONGEST_WITHIN and any(_has(text, w) for w in wanted)


def _has(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def _contains_all(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """Each of ``values`` (a text, or a list of which one is enough) as whole words, and none of ``none_of``."""
    text = (said(answer) if strict else " ".join(plain(answer).split())).casefold()
    wanted = [[value] if isinstance(value, str) else value for value in check["values"]]
    return all(any(_has(text, word.casefold()) for word in words) for words in wanted) and not any(
        _has(text, word.casefold()) for word in check.get("none_of", [])
    )


def _regex(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """All of the answer matches ``pattern``; in either case, unless strict or ``case``."""
    flags = 0 if strict or check.get("case") else re.IGNORECASE
    return re.fullmatch(check["pattern"], said(answer) if strict else core(answer), flags) is not None


def _json_equals(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """The JSON ``value``; texts in it in either case, unless strict."""
    found, value = find_json(answer, strict)
    return found and same(check["value"], value, fold=not strict)


def _json_schema(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """JSON that fits ``schema``: see ``fits``."""
    found, value = find_json(answer, strict)
    return found and fits(check["schema"], value)


_TYPES: dict[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


def fits(schema: Mapping[str, Any], value: object) -> bool:
    """Whether a value fits a schema of these words of JSON Schema: type, enum, properties, required,
    additionalProperties (false), items, minItems, maxItems, minimum, maximum, pattern."""
    if "type" in schema and not _TYPES[schema["type"]](value):
        return False
    if "enum" in schema and not any(same(choice, value) for choice in schema["enum"]):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return (
            all(name in value for name in schema.get("required", []))
            and (schema.get("additionalProperties", True) or all(name in properties for name in value))
            and all(fits(inner, value[name]) for name, inner in properties.items() if name in value)
        )
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf) and all(
            fits(schema.get("items", {}), inner) for inner in value
        )
    if isinstance(value, str):
        return "pattern" not in schema or re.search(schema["pattern"], value) is not None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
    return True


def _lines(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """``values``: the lines; or ``patterns``: each line matches its own; or ``count`` lines that match ``each``."""
    lines = [line.rstrip() if strict else line.strip() for line in (said if strict else plain)(answer).splitlines()]
    if not strict:
        lines = [re.sub(r"^[-*•] +", "", line) for line in lines if line]
    if "values" in check:
        return bool(lines == check["values"])
    patterns = check.get("patterns") or [check.get("each", ".+")] * check["count"]
    return len(lines) == len(patterns) and all(re.fullmatch(p, line) for p, line in zip(patterns, lines, strict=True))


def _word_count(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """From ``min`` to ``max`` words, each of ``values`` (see ``contains_all``) among them."""
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", plain(answer))
    return check["min"] <= len(words) <= check["max"] and _contains_all({"values": [], **check}, answer, strict)


def _python_result(check: Mapping[str, Any], answer: str, strict: bool) -> bool:
    """The Python literal ``value``, however it is spaced and quoted. It is parsed, never run."""
    text = said(answer) if strict else core(answer)
    try:
        return same(ast.literal_eval(check["value"]), _literal(text))
    except ValueError:
        return False


def _literal(text: str) -> object:
    """A Python literal. Raises ValueError for anything else."""
    if len(text) > LONGEST_LITERAL:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for what looks like a mistake, such as "\d"
            return ast.literal_eval(text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("no literal") from error


Check = Callable[[Mapping[str, Any], str, bool], bool]

CHECKS: dict[str, tuple[Check, tuple[str, ...], tuple[str, ...]]] = {
    "number": (_number, ("value",), ("tolerance",)),
    "exact": (_exact, ("value",), ("case", "within")),
    "one_of": (_one_of, ("values",), ("case", "within")),
    "contains_all": (_contains_all, ("values",), ("none_of",)),
    "regex": (_regex, ("pattern",), ("case",)),
    "json_equals": (_json_equals, ("value",), ()),
    "json_schema": (_json_schema, ("schema",), ()),
    "lines": (_lines, (), ("values", "patterns", "count", "each")),
    "word_count": (_word_count, ("min", "max"), ("values", "none_of")),
    "python_result": (_python_result, ("value",), ()),
}
"""The kinds of checks: how each marks, which fields it must have, which it may have."""


def right(item: Item, answer: str) -> bool:
    """Whether an answer is right. Any text can be marked."""
    mark = CHECKS[item.check["kind"]][0]
    return mark(item.check, answer, item.category == STRICT)


# The items.


def read_items(raw: Sequence[Mapping[str, Any]]) -> list[Item]:
    """The items of an exam. Raises ExamError, with all that is wrong."""
    defects = [f"{_place(number, entry)}: {defect}" for number, entry in enumerate(raw) for defect in _defects(entry)]
    ids = [entry["id"] for entry in raw if isinstance(entry.get("id"), str)]
    defects += [f"id {id_!r}: stands there {ids.count(id_)} times" for id_ in dict.fromkeys(ids) if ids.count(id_) > 1]
    if not raw:
        defects.append("there are none")
    if defects:
        raise ExamError(f"items: {'; '.join(defects)}")
    return [Item(**{name: entry[name] for name in _FIELDS}) for entry in raw]


_FIELDS: dict[str, type] = {"id": str, "category": str, "prompt": str, "check": dict, "max_tokens": int}


def _place(number: int, entry: Mapping[str, Any]) -> str:
    return str(entry.get("id") or f"the item at place {number + 1}")


def _defects(entry: Mapping[str, Any]) -> Iterator[str]:
    wrong = [
        f"{name} must be of type {kind.__name__} and not empty, is {entry.get(name)!r:.60}"
        for name, kind in _FIELDS.items()
        if not isinstance(entry.get(name), kind) or isinstance(entry.get(name), bool) or not entry[name]
    ]
    yield from wrong
    if wrong:
        return
    if entry["max_tokens"] < 1:
        yield "max_tokens must be at least 1"
    if not re.fullmatch(r"[a-z][a-z0-9]*", entry["category"]):
        yield f"category must be a word in lower case, is {entry['category']!r:.60}"
    yield from (f"check{defect}" for defect in _check_defects(entry["check"]))


def _check_defects(check: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(check.get("kind"), str) or check["kind"] not in CHECKS:
        yield f".kind must be one of {', '.join(CHECKS)}, is {check.get('kind')!r:.60}"
        return
    _, required, optional = CHECKS[check["kind"]]
    yield from (f".{name} is missing" for name in required if name not in check)
    for name, value in check.items():
        if name == "kind":
            continue
        if name not in required and name not in optional:
            yield f".{name!s:.60} is no field of the kind {check['kind']}"
        elif not _fits_field(check["kind"], name, value):
            yield f".{name} is no {_MEANT.get(name, 'such value')}: {value!r:.60}"
    if check["kind"] == "lines" and len(check.keys() & {"values", "patterns", "count"}) != 1:
        yield " must have one of values, patterns and count"


_MEANT = {
    "case": "truth value",
    "count": "whole number above 0",
    "each": "regular expression",
    "max": "whole number above 0",
    "min": "whole number above 0",
    "none_of": "list of texts",
    "pattern": "regular expression",
    "patterns": "list of regular expressions",
    "schema": "schema of the words that this module knows",
    "tolerance": "number",
    "values": "list of texts",
    "within": "truth value",
}


def _fits_field(kind: str, name: str, value: object) -> bool:
    """Whether a field of a check holds what marking needs: whatever passes here can be marked."""
    if name in ("case", "within"):
        return isinstance(value, bool)
    if name in ("count", "min", "max"):
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1000
    if name in ("pattern", "each"):
        return _is_pattern(value)
    if name == "patterns":
        return isinstance(value, list) and bool(value) and all(map(_is_pattern, value))
    if name in ("values", "none_of"):
        # A list in it: alternatives, of which one is enough.
        inner = name == "values" and kind in ("contains_all", "word_count")
        return _are_texts(value) or (
            inner and isinstance(value, list) and all(_is_text(v) or _are_texts(v) for v in value)
        )
    if name == "schema":
        return _is_schema(value)
    if name == "tolerance" or kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    if kind == "python_result":
        return isinstance(value, str) and _is_literal(value)
    return kind == "json_equals" or _is_text(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except (re.error, OverflowError, RecursionError):
        return False


def _is_literal(value: str) -> bool:
    try:
        _literal(value)
    except ValueError:
        return False
    return True


_LIMITS = ("minItems", "maxItems", "minimum", "maximum")


def _is_schema(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    rules: dict[str, Callable[[Any], bool]] = {
        "type": lambda word: isinstance(word, str) and word in _TYPES,
        "enum": lambda word: isinstance(word, list),
        "required": lambda word: isinstance(word, list) and all(map(_is_text, word)),
        "additionalProperties": lambda word: isinstance(word, bool),
        "properties": lambda word: isinstance(word, dict) and all(map(_is_schema, word.values())),
        "items": _is_schema,
        "pattern": _is_pattern,
        **dict.fromkeys(_LIMITS, lambda word: isinstance(word, (int, float)) and not isinstance(word, bool)),
    }
    return all(name in rules and rules[name](word) for name, word in value.items())


def exam_name(name: str, items: Sequence[Item]) -> str:
    """The name and eight hex digits of what is asked and how it is marked: another exam, another series of records."""
    text = json.dumps(
        [[item.id, item.category, item.prompt, item.check, item.max_tokens] for item in items], sort_keys=True
    )
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# Asking.


def body(api: Api, model: str, item: Item) -> dict[str, Any]:
    """A request that is answered the same way each time, as far as the engine can: greedy, with a fixed seed."""
    request: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": item.prompt}],
        "stream": False,
    }
    if api == "ollama":
        options = {"temperature": 0, "seed": SEED, "num_predict": item.max_tokens}
        return request | {"keep_alive": KEEP_ALIVE, "options": options}
    return request | {"temperature": 0, "seed": SEED, "max_tokens": item.max_tokens}


def parse_answer(api: Api, status: int, content: bytes) -> str:
    """The text of an answer that is no stream. Raises AnswerError, also for an error with status 200."""
    if status != 200:
        raise AnswerError(f"status {status}: {parse_error_page(content)}")
    answer = parse_object(content)
    if api == "ollama":
        message = answer.get("message")
    else:
        choices = answer.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise AnswerError("the server's answer holds no message")
    text = message.get("content")
    return text if isinstance(text, str) else ""  # null: the model spoke of tools or thoughts only


def ask(server: Server, api: Api, model: str, item: Item) -> str:
    """The model's answer to an item. Raises AnswerError."""
    return parse_answer(api, *server.ask(CHAT_PATH[api], body(api, model, item)))


def sit(items: Sequence[Item], answer: Callable[[Item], str], clock: Clock) -> list[Verdict]:
    """Puts each item, one after the other. A request that fails counts as wrong.

    Raises ExamError when five in succession fail, or all: then something is broken that is not the model's knowledge.
    """
    verdicts: list[Verdict] = []
    failed = 0
    for item in items:
        begin = clock()
        try:
            text = answer(item)
        except AnswerError as error:
            failed += 1
            verdicts.append(Verdict(item, False, None, str(error), clock() - begin))
        else:
            failed = 0
            verdicts.append(Verdict(item, right(item, text), text, None, clock() - begin))
        if failed == min(GIVE_UP_AFTER, len(items)):
            raise ExamError(
                f"{failed} requests in succession failed, the last ({item.id}) with: {verdicts[-1].error}", verdicts
            )
    return verdicts


# The record.


def interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share.

    E. B. Wilson: Probable inference, the law of succession, and statistical inference. Journal of the American
    Statistical Association 22 (1927), 209-212. It holds for few trials, and stays within 0 and 1.
    """
    share, square = successes / trials, Z_95**2
    middle = (share + square / (2 * trials)) / (1 + square / trials)
    half = Z_95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2)) / (1 + square / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The metric of right answers: ``value`` and ``n``, and the 95 % interval ``low`` to ``high``."""
    rights = sum(verdict.right for verdict in verdicts)
    low, high = interval(rights, len(verdicts))
    return {
        "value": round(rights / len(verdicts), 4),
        "n": len(verdicts),
        "unit": "share",
        "low": round(low, 4),
        "high": round(high, 4),
    }


def result(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """The metrics of kind ``quality``: ``score``, ``score_<category>``, and ``errors`` if requests failed."""
    found = {"score": share(verdicts)}
    for category in dict.fromkeys(verdict.item.category for verdict in verdicts):
        found[f"score_{category}"] = share([verdict for verdict in verdicts if verdict.item.category == category])
    errors = sum(verdict.error is not None for verdict in verdicts)
    return found | ({"errors": {"value": errors, "unit": "count"}} if errors else {})


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """The requests that failed, for the record's reader."""
    return [f"{verdict.item.id} counts as wrong: {verdict.error}" for verdict in verdicts if verdict.error]


def raw_log(verdicts: Sequence[Verdict]) -> str:
    """What is kept beside the record: a JSON object a line, with the answer as it came and the verdict."""
    return "".join(
        json.dumps(
            {
                "id": verdict.item.id,
                "category": verdict.item.category,
                "right": verdict.right,
                "answer": verdict.answer,
                "error": verdict.error,
                "seconds": round(verdict.seconds, 3),
            },
            ensure_ascii=False,
        )
        + "\n"
        for verdict in verdicts
    )


def examine(
    server: Server,
    api: Api | Literal["auto"],
    model: str,
    items: Sequence[Item],
    node: Node,
    *,
    exam: str,
    builds: Path,
    engine: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> tuple[dict[str, Any], str]:
    """Sets the exam: the record (without host, id, schema and raw) and the log.

    ``engine`` and ``facts``: what the caller knows better of the engine and the model than the server says; ``builds``:
    the build.json of this node's llama.cpp. Raises ExamError, and BenchError if the server cannot be asked at all.
    """
    api = find_api(server) if api == "auto" else api
    by = read_engine(server, api, builds) | {key: value for key, value in engine.items() if value}
    about = read_model(server, api, model) | {key: value for key, value in facts.items() if value}
    load = node.load()
    if api == "ollama":
        load_model(server, Wanted(model, keep_alive=KEEP_ALIVE))
    with Observation(node, load) as seen:
        verdicts = sit(items, lambda item: ask(server, api, model, item), server.clock)
    where = [] if is_own(server.host) else ["asked over the network: the conditions are those of the node that asked"]
    record = {
        "started_at": seen.started_at,
        "kind": "quality",
        "engine": by,
        "model": about,
        "params": {"exam": exam_name(exam, items), "items": len(items), "api": api},
        "result": result(verdicts),
        "conditions": seen.conditions([*notes(verdicts), *where]),
        "duration_s": seen.duration_s,
    }
    return record, raw_log(verdicts)
