"""Benchmark records: what is one, how they are kept, which are wanted, what changed."""

from __future__ import annotations

import functools
import json
import math
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from record_values import PARTIAL, partial, partials

from bramble.records import (
    DIRECTIONS,
    Figure,
    Record,
    RecordError,
    append,
    bound,
    canonical,
    compare,
    complete,
    contains,
    defects,
    first,
    has_record,
    history,
    identify,
    latest,
    load,
    memory_bandwidth,
    partial_defects,
    regressions,
    series,
    until,
)
from bramble.records.changes import two_sided_p, welch


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    return tmp_path / "inventory" / "measured"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk: for tests that write thousands of files."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def make(host: str = "pi1", **changes: Any) -> Record:
    return complete(partial(**changes), host)


make_once = functools.cache(make)


def with_figures(**figures: dict[str, Any]) -> Record:
    return make(result=figures)


# --- What is a record


def test_the_example_is_valid() -> None:
    assert partial_defects(PARTIAL) == []
    record = complete(PARTIAL, "pi1", "raw text")
    assert defects(record) == []
    assert record["schema"] == 1
    assert record["host"] == "pi1"
    assert record["raw"] == f"raw/pi1/{record['id']}.txt"
    assert "suspect" not in record
    assert complete(PARTIAL, "pi1")["raw"] is None


@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({"started_at": "2026-11-21 12:00"}, "started_at: is '2026-11-21 12:00', not a time in UTC"),
        ({"started_at": "2026-02-30T12:00:00Z"}, "started_at: is '2026-02-30T12:00:00Z', not a time in UTC"),
        ({"started_at": "2026-11-21T12:00:00+01:00"}, "started_at: "),
        ({"kind": "llama-bench"}, "kind: is 'llama-bench', not one of llama_bench, http_generate"),
        ({"kind": ["llama_bench"]}, "kind: is a list, not one of"),
        ({"engine": "llama.cpp"}, "engine: is 'llama.cpp', not an object"),
        ({"engine__build_key": ...}, "engine.build_key: is missing; what is not known is null"),
        ({"engine__name": ""}, "engine.name: is '', not a text"),
        ({"model__sha256": "abc"}, "model.sha256: is 'abc', not 64 hex digits or null"),
        ({"model__bytes": 0}, "model.bytes: is 0, not a whole number above 0 or null"),
        ({"model__bytes": True}, "model.bytes: is True, not"),
        ({"model__bytes": 10**4400}, "model.bytes: is of type int, not"),
        ({"params": []}, "params: is a list, not an object"),
        ({"params__depth": ...}, "params.depth: is missing; a record of the kind llama_bench tells it"),
        ({"params__depth": math.nan}, "params.depth: is not 0 and not between 1e-12 and 1e+18"),
        ({"params__deep": [[[[[[[[[[[1]]]]]]]]]]]}, "is nested more than 8 deep"),
        ({"params": {**PARTIAL["params"], "a\x1bb": "\ud800"}}, r"params.'a\x1bb': holds half of a character"),
        ({"params": {**PARTIAL["params"], 4: 4}}, "the name params.4: is 4, not a text"),
        ({"result": {}}, "result: is an object, not an object with at least one metric"),
        ({"result__decode": 5.5}, "result.decode: is 5.5, not an object"),
        ({"result__decode__mean": "5.5"}, "result.decode.mean: is '5.5', not a number"),
        ({"result__decode__mean": ...}, "result.decode: has neither value and mean; it tells one of them"),
        ({"result__decode__value": 5.5}, "result.decode: has both value and mean; it tells one of them"),
        ({"result__decode__mean": math.inf}, "result.decode.mean: is not 0 and not between 1e-12 and 1e+18"),
        ({"result__decode__mean": 10**400}, "result.decode.mean: is not 0 and not between 1e-12 and 1e+18"),
        ({"result__decode__sd": ...}, "result.decode.sd: is missing, and there is a mean"),
        ({"result__decode__sd": -1}, "result.decode.sd: is -1, below 0"),
        ({"result__decode__n": 0}, "result.decode.n: is 0, not a whole number above 0"),
        ({"result__decode__unit": ...}, "result.decode.unit: is missing"),
        ({"conditions__temp_c": 48.2}, "conditions.temp_c: is 48.2, not an object"),
        ({"conditions__temp_c__after": ...}, "conditions.temp_c.after: is missing; what is not known is null"),
        ({"conditions__throttled__after": 0}, "conditions.throttled.after: is 0, not bits such as 0x50000 or null"),
        ({"conditions__governor": ...}, "conditions.governor: is missing; what is not known is null"),
        ({"conditions__power_source": "guess"}, "conditions.power_source: is 'guess', not pmic, meter or null"),
        ({"conditions__notes": "hot"}, "conditions.notes: is 'hot', not a list of texts"),
        ({"conditions__notes": ["\ud83d"]}, "conditions.notes[0]: holds half of a character"),
        ({"duration_s": -0.1}, "duration_s: is -0.1, below 0"),
        ({"duration_s": ...}, "duration_s: is missing"),
        ({"host": "pi1"}, "host: is not a field of a partial record"),
    ],
)
def test_a_defect_names_its_field(changes: dict[str, Any], defect: str) -> None:
    found = partial_defects(partial(**changes))
    assert [line for line in found if defect in line], found
    with pytest.raises(RecordError) as raised:
        complete(partial(**changes), "pi1")
    assert defect in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "defect"),
    [
        ({"schema": 2}, "schema: is 2; this version of Bramble reads schema 1"),
        ({"id": "G" * 16}, "id: is 'GGGGGGGGGGGGGGGG', not 16 hex digits"),
        ({"host": "../pi1"}, "host: '../pi1' is no name of a host"),
        ({"raw": "../../etc/passwd"}, "raw: is '../../etc/passwd', which is not below measured/"),
        ({"raw": "/etc/passwd"}, "raw: is '/etc/passwd', which is not below measured/"),
        ({"suspect": [1]}, "suspect[0]: is 1, not a text"),
    ],
)
def test_a_defect_of_a_whole_record_names_its_field(changes: dict[str, Any], defect: str) -> None:
    assert [line for line in defects({**make(), **changes}) if defect in line]


def test_a_module_may_tell_more_than_it_must() -> None:
    more = partial(
        params__extra={"seed": 7}, conditions__fan_rpm=3100, engine__flags=["-O3"], result__decode__outliers=1
    )
    assert complete(more, "pi1")["params"]["extra"] == {"seed": 7}


@pytest.mark.parametrize("host", ["", ".", "..", "a/b", "-a", "pi 1", None, "pi1\n"])
def test_a_host_becomes_the_name_of_a_file(host: Any) -> None:
    with pytest.raises(RecordError, match="host: "):
        complete(PARTIAL, host)


@given(
    st.recursive(
        st.none() | st.text() | st.floats() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_anything_may_be_asked_for_its_defects(value: object) -> None:
    assert defects(value)
    assert all(line.isprintable() for line in defects(value))


@given(partials, st.sampled_from(sorted(PARTIAL)), st.none() | st.integers() | st.text() | st.lists(st.text()))
def test_any_field_may_be_anything(value: dict[str, Any], field: str, other: object) -> None:
    for line in partial_defects({**value, field: other}):
        assert field in line


def test_the_id_is_of_what_was_measured() -> None:
    record = make()
    backwards = {key: PARTIAL[key] for key in reversed(PARTIAL)}
    assert complete(backwards, "pi1")["id"] == record["id"]
    assert complete(PARTIAL, "pi1", "raw")["id"] == record["id"]
    assert complete(PARTIAL, "pi2")["id"] != record["id"]
    assert make(started_at="2026-11-21T12:00:01Z")["id"] != record["id"]
    assert make(result__decode__sd=0.051)["id"] != record["id"]
    assert identify(record) == record["id"]


# --- What memory allows


@pytest.mark.parametrize(
    ("board", "bandwidth"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", 17.1e9),
        ("Raspberry Pi 500 Rev 1.0", 17.1e9),
        ("Raspberry Pi Compute Module 5 Rev 1.0", 17.1e9),
        ("Raspberry Pi 4 Model B Rev 1.4", 12.8e9),
        ("Raspberry Pi 400 Rev 1.0", 12.8e9),
        ("Raspberry Pi Compute Module 4 Rev 1.0", 12.8e9),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", None),
        ("Orange Pi 5", None),
        ("", None),
        (None, None),
    ],
)
def test_memory_bandwidth(board: str | None, bandwidth: float | None) -> None:
    assert memory_bandwidth(board) == bandwidth


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({}, 8.12),
        ({"conditions__board": None}, None),
        ({"model__bytes": None}, None),
        ({"model": None}, None),
        ({"engine__name": "hailo-ollama"}, None),
        ({"conditions__board": "Raspberry Pi 4 Model B Rev 1.4"}, 6.08),
    ],
)
def test_bound(changes: dict[str, Any], limit: float | None) -> None:
    found = bound(make(**changes))
    assert found == (None if limit is None else pytest.approx(limit, abs=0.01))


def test_a_figure_above_the_bound_is_kept_and_suspect() -> None:
    record = make(result__decode__mean=8.2)
    assert record["suspect"] == [
        "decode: 8.2 tok/s is more than the memory allows: 8.1 tok/s, its bandwidth / the model's bytes"
    ]
    assert record["result"]["decode"]["mean"] == 8.2
    assert defects(record) == []
    # Prefill computes many tokens for each reading of the weights.
    assert "suspect" not in make(result__decode__mean=8.1, result__prefill__mean=80.0)


# --- Files


def test_append_and_load(measured: Path) -> None:
    one, two = make(), make(started_at="2026-11-21T13:00:00Z")
    other = complete(PARTIAL, "pi2", "$ llama-bench\n…\udc80\n")
    for record, raw in ((one, None), (two, None), (other, "$ llama-bench\n…\udc80\n")):
        assert append(measured, record, raw) == (True, [])
    assert load(measured) == ({"pi1": [one, two], "pi2": [other]}, [])
    assert (measured / str(other["raw"])).read_text() == "$ llama-bench\n…\\udc80\n"
    assert (measured / "pi1.jsonl").read_text().count("\n") == 2


def test_a_record_is_appended_once(measured: Path) -> None:
    record = complete(PARTIAL, "pi1", "raw")
    assert not contains(measured, record)
    assert append(measured, record, "raw").written
    assert contains(measured, record)
    before = (measured / "pi1.jsonl").read_bytes()
    assert not append(measured, record, "raw").written
    assert (measured / "pi1.jsonl").read_bytes() == before
    # Its id elsewhere in a line does not count, nor does it in a line that was changed.
    other = make(conditions__notes=[make()["id"]])
    assert append(measured, other).written
    path = measured / "pi1.jsonl"
    path.write_bytes(path.read_bytes().replace(b"performance", b"ondemand"))
    assert not contains(measured, record)
    assert append(measured, record, "raw").written


def test_a_crash_between_the_raw_text_and_the_line_is_mended_by_trying_again(
    measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = complete(PARTIAL, "pi1", "raw")

    def crash(path: Path, line: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bramble.records.store._write_line", crash)
        with pytest.raises(KeyboardInterrupt):
            append(measured, record, "raw")
    assert load(measured) == ({}, [])
    assert append(measured, record, "raw").written
    assert load(measured) == ({"pi1": [record]}, [])
    assert (measured / str(record["raw"])).read_text() == "raw"


def test_raw_and_its_text_go_together(measured: Path) -> None:
    with pytest.raises(RecordError, match="raw: is None, and a raw text was given"):
        append(measured, make(), "text")
    with pytest.raises(RecordError, match=r"raw: is 'raw/pi1/[0-9a-f]{16}\.txt', and no raw text was given"):
        append(measured, complete(PARTIAL, "pi1", "text"))
    with pytest.raises(RecordError, match="schema: is 2"):
        append(measured, {**make(), "schema": 2})
    assert not measured.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(partials, st.none() | st.text(max_size=20)), min_size=1, max_size=3))
def test_what_was_appended_is_loaded(
    quick: None, tmp_path_factory: pytest.TempPathFactory, made: list[tuple[dict[str, Any], str | None]]
) -> None:
    measured = tmp_path_factory.mktemp("measured")
    wanted: list[Record] = []
    for value, raw in made:
        record = complete(value, "pi1", raw)
        assert append(measured, record, raw).written == (record["id"] not in [other["id"] for other in wanted])
        if record["id"] not in [other["id"] for other in wanted]:
            wanted.append(record)
    assert load(measured) == ({"pi1": wanted}, [])


def test_a_line_torn_anywhere_hides_no_other(measured: Path, quick: None) -> None:
    one, torn, three = make(), make(started_at="2026-11-21T13:00:00Z"), make(started_at="2026-11-21T14:00:00Z")
    append(measured, one)
    path = measured / "pi1.jsonl"
    begun, line = path.read_bytes(), canonical(dict(torn)).encode() + b"\n"
    for offset in range(len(line) + 1):
        path.write_bytes(begun + line[:offset])
        whole = [one, torn] if offset >= len(line) - 1 else [one]
        cut = 0 < offset < len(line) - 1
        records, problems = load(measured)
        assert records == {"pi1": whole}
        assert len(problems) == cut
        if cut:
            assert problems[0].startswith(f"{path}:2: no valid record: not JSON: ")
            assert problems[0].endswith("its writing was cut off; the next measurement removes it")

        appended = append(measured, three)
        assert appended.written
        assert len(appended.warnings) == (0 < offset < len(line))
        assert load(measured) == ({"pi1": [*whole, three]}, [])
        # The one whose writing was cut off is tried again.
        assert append(measured, torn).written == (len(whole) == 1)


def test_a_torn_first_line_goes_too(measured: Path) -> None:
    measured.mkdir(parents=True)
    (measured / "pi1.jsonl").write_text('{"conditions"')
    assert append(measured, make()).warnings == [
        f"{measured}/pi1.jsonl: its last line was cut off while it was written, and is removed (13 bytes)"
    ]
    assert load(measured) == ({"pi1": [make()]}, [])


def test_a_line_that_somebody_wrote_is_not_taken_away(measured: Path) -> None:
    measured.mkdir(parents=True)
    path = measured / "pi1.jsonl"
    path.write_text("# my notes")
    assert append(measured, make()).warnings == [f"{path}: its last line had no end, and has one now"]
    assert path.read_text().startswith("# my notes\n{")
    assert load(measured)[0] == {"pi1": [make()]}


GOOD = canonical(dict(make())).encode()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"{]", "not JSON: "),
        (b"[1]", "is a list, not an object"),
        (b"7", "is 7, not an object"),
        (b"{}", "schema: is missing"),
        (GOOD.replace(b"5.5", b"NaN"), "not JSON: NaN is no number"),
        (GOOD.replace(b"5.5,", b"5.6,"), "id: is not that of the rest of the line, which was changed"),
        (GOOD.replace(b'"pi1"', b'"pi2"'), "host: is 'pi2', and the file is that of 'pi1'"),
        (GOOD.replace(b'"schema":1', b'"schema":2'), "schema: is 2; this version of Bramble reads schema 1"),
        (b"[" * 100_000, "not JSON: nested too deeply"),
        (b"1" * 5000, "not JSON: a number too long to read"),
        (GOOD.replace(b'"performance"', b'"\\ud800"'), "conditions.governor: holds half of a character"),
        (GOOD.replace(b"{", b'{"\\u001b[2J": 1, ', 1), r"'\x1b[2J': is not a field of a record"),
        (b"\0" * 40, "not JSON: "),
    ],
)
def test_a_bad_line_is_told_with_its_place(measured: Path, line: bytes, problem: str) -> None:
    measured.mkdir(parents=True)
    second = make(started_at="2026-11-21T13:00:00Z")
    (measured / "pi1.jsonl").write_bytes(b"\n".join([GOOD, b"", line, canonical(dict(second)).encode(), b""]))
    records, problems = load(measured)
    assert records == {"pi1": [make(), second]}
    assert len(problems) == 1
    assert problems[0].startswith(f"{measured}/pi1.jsonl:3: no valid record: ")
    assert problem in problems[0]
    assert problems[0].endswith(": remove the line")


def test_load_survives_whatever_the_directory_is(tmp_path: Path) -> None:
    assert load(tmp_path / "missing") == ({}, [])
    (tmp_path / "file").write_text("")
    assert load(tmp_path / "file")[1][0].startswith(f"{tmp_path}/file: cannot be read: Not a directory")
    (tmp_path / "pi1.jsonl").mkdir()
    (tmp_path / "pi2.jsonl").symlink_to("pi2.jsonl")
    (tmp_path / "notes.txt").write_text("no record")
    name = os.fsdecode(b"\xff.jsonl")
    (tmp_path / name).write_bytes(GOOD)
    records, problems = load(tmp_path)
    assert records == {}
    assert [problem.removeprefix(f"{tmp_path}/").partition(": ")[0] for problem in problems] == [
        "pi1.jsonl",
        "pi2.jsonl",
        r"\xff.jsonl:1",
    ]
    assert all(problem.isprintable() for problem in problems)


def test_a_record_that_stands_there_twice_counts_once(measured: Path) -> None:
    measured.mkdir(parents=True)
    (measured / "pi1.jsonl").write_bytes(GOOD + b"\n" + GOOD + b"\n")
    assert load(measured) == ({"pi1": [make()]}, [])


_LINES = (
    st.binary(max_size=60)
    | st.just(GOOD)
    | st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=3)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + len(cut[1]) :]
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_LINES, max_size=4).map(b"\n".join) | st.binary())
def test_load_survives_any_bytes_and_so_does_append(
    quick: None, tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    measured = tmp_path_factory.mktemp("measured")
    (measured / "pi1.jsonl").write_bytes(content)
    records, problems = load(measured)
    assert all(problem.startswith(f"{measured}/pi1.jsonl:") and problem.isprintable() for problem in problems)
    new = make(started_at="2027-01-01T00:00:00Z")
    append(measured, new)
    assert load(measured)[0]["pi1"] == [*records.get("pi1", []), new]


def test_several_may_append_at_once(measured: Path) -> None:
    records = [make(duration_s=number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda record: append(measured, record), [*records, *records]))
    assert sum(appended.written for appended in done) == len(records)
    loaded, problems = load(measured)
    assert problems == []
    assert sorted(record["id"] for record in loaded["pi1"]) == sorted(record["id"] for record in records)


def test_six_thousand_records_load_within_a_second(measured: Path) -> None:
    measured.mkdir(parents=True)
    for host in ("pi1", "pi2", "pi3"):
        lines = []
        for number in range(2000):
            record: dict[str, Any] = {**make_once(host), "duration_s": number}
            record["params"] = {**record["params"], "depth": number % 20}
            lines.append(canonical({**record, "id": identify(record)}) + "\n")
        (measured / f"{host}.jsonl").write_text("".join(lines))
    took = []
    for _ in range(3):  # The best of three: other programs run here too.
        began = time.process_time()
        records, problems = load(measured)
        newest = [latest(records[host]) for host in records]
        took.append(time.process_time() - began)
        assert problems == []
        assert [len(each) for each in newest] == [20, 20, 20]
    assert min(took) < 1.0


# --- Which records


def test_series() -> None:
    assert series(make()) == series(make(started_at="2027-01-01T00:00:00Z", engine__build_key="other", duration_s=1))
    assert series(make()) == series(make(params__depth=0.0))
    for change in ({"params__depth": 1}, {"model__name": "m"}, {"model": None}, {"engine__name": "ollama"}):
        assert series(make(**change)) != series(make())
    assert series(make("pi2")) != series(make())


def test_latest_first_until_and_history() -> None:
    old, new = make(), make(started_at="2026-11-22T00:00:00Z", result__decode__mean=99.0)
    again = make(started_at="2026-11-22T00:00:00Z", duration_s=1)
    deep, ollama = make(params__depth=4096), make(engine__name="ollama")
    records = [ollama, new, deep, old]
    assert latest(records) == [new, deep, ollama]
    assert first(records) == [old, deep, ollama]
    # Within a second, the later line is the later one. The newest is the newest, suspect or not.
    assert latest([new, again]) == [again]
    assert new["suspect"]
    assert until(records, "2026-11-21T12:00:00Z") == [ollama, deep, old]
    assert history(records)[-1] == new
    assert history(records, host="pi2") == []
    assert history([*records, make("pi2")], host="pi2", kind="llama_bench") == [make("pi2")]
    assert history(records, kind="quality") == []


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("llama_bench", "llama.cpp"), True),
        (("llama_bench", {"name": "llama.cpp", "build_key": "0fcb3760b2b9-1a2b3c4d"}), True),
        (("llama_bench", {"name": "llama.cpp", "build_key": "other"}), False),
        (("perplexity", "llama.cpp"), False),
        (("llama_bench", "llama.cpp", "qwen2.5-3b-instruct-q4_k_m"), True),
        (("llama_bench", "llama.cpp", {"sha256": "a" * 64}), True),
        (("llama_bench", "llama.cpp", {"sha256": "b" * 64}), False),
        (("llama_bench", "llama.cpp", {"unknown": None}), False),
        (("llama_bench", "llama.cpp", None, {"threads": 4, "depth": 0}), True),
        (("llama_bench", "llama.cpp", {}, {"threads": 3}), False),
    ],
)
def test_has_record(arguments: tuple[Any, ...], found: bool) -> None:
    assert has_record(
        [make(kind="perplexity", params={"corpus": 0, "context": 1, "chunks": 1}), make()], *arguments
    ) is (found or arguments[0] == "perplexity")
    assert has_record([], *arguments) is False
    assert has_record(None, *arguments) is False


def test_has_record_of_a_kind_without_a_model() -> None:
    pair = {"peer": "pi2", "peer_address": "192.0.2.2", "seconds": 10}
    record = make(kind="net_pair", engine__name="iperf3", model=None, params=pair)
    assert has_record([record], "net_pair", "iperf3", params={"peer": "pi2"})
    assert not has_record([record], "net_pair", "iperf3", "a-model")


# --- What changed


@pytest.mark.parametrize(
    # Quantiles of Student's t as in any table of them (Abramowitz and Stegun, table 26.10), two-sided.
    ("t", "freedom", "p"),
    [
        (12.706, 1, 0.05),
        (63.657, 1, 0.01),
        (4.303, 2, 0.05),
        (2.776, 4, 0.05),
        (4.604, 4, 0.01),
        (8.610, 4, 0.001),
        (2.306, 8, 0.05),
        (3.169, 10, 0.01),
        (2.750, 30, 0.01),
        (1.980, 120, 0.05),
        (1.960, 1e9, 0.05),
        (0.0, 5, 1.0),
    ],
)
def test_two_sided_p(t: float, freedom: float, p: float) -> None:
    assert two_sided_p(t, freedom) == pytest.approx(p, rel=0.005)


@given(st.floats(0, 50), st.floats(1, 2000))
def test_p_falls_with_t(t: float, freedom: float) -> None:
    assert 0 <= two_sided_p(t + 0.5, freedom) <= two_sided_p(t, freedom) <= 1


def test_welch() -> None:
    five = Figure(10, 1, 5, "s"), Figure(12, 1, 5, "s")
    # Equal n and sd: Student's test with 8 degrees of freedom and t = 2 / sqrt(2/5).
    assert welch(*five) == pytest.approx(two_sided_p(2 / math.sqrt(0.4), 8))
    # Welch (1947): the degrees of freedom are those of the sample with the greater error.
    assert welch(Figure(10, 3, 4, "s"), Figure(14, 0, 400, "s")) == pytest.approx(two_sided_p(4 / 1.5, 3))
    assert welch(Figure(1, 0, 5, "s"), Figure(1, 0, 5, "s")) == 1
    assert welch(Figure(1, 0, 5, "s"), Figure(2, 0, 5, "s")) == 0
    for unknown in (Figure(1, None, None, "s"), Figure(1, None, 1, "s"), Figure(1, 0.1, 1, "s")):
        assert welch(unknown, five[0]) is None
    # A share of exam items has its spread in itself, even where all were right.
    assert welch(Figure(1.0, None, 60, "share"), Figure(0.95, None, 60, "share")) == pytest.approx(0.15, abs=0.1)
    assert welch(Figure(0.9, None, 60, "share"), Figure(0.4, None, 60, "share")) < 1e-6  # type: ignore[operator]


_FIGURES = st.builds(
    Figure,
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(0, allow_infinity=False),
    st.none() | st.integers(1, 2**53),
    st.sampled_from([*DIRECTIONS, "count"]),
)


@given(_FIGURES, _FIGURES)
def test_welch_survives_any_figures(a: Figure, b: Figure) -> None:
    p = welch(a, b)
    assert p is None or 0 <= p <= 1
    assert p == welch(b, a) or p == pytest.approx(welch(b, a))


def tight(mean: float, unit: str = "tok/s") -> dict[str, Any]:
    return {"mean": mean, "sd": abs(mean) * 0.01, "n": 5, "unit": unit}


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (tight(5.5), tight(4.4), "regression"),
        (tight(4.4), tight(5.5), "improvement"),
        (tight(5.5), tight(5.5), "same"),
        (tight(5.5), tight(5.28), "same"),  # significant, and within the floor
        (tight(5.5), {"mean": 4.4, "sd": 2, "n": 5, "unit": "tok/s"}, "same"),  # beyond the floor, and noise
        (tight(0.5, "s"), tight(0.6, "s"), "regression"),
        (tight(0.6, "s"), tight(0.5, "s"), "improvement"),
        (tight(9.1, "ppl"), tight(9.9, "ppl"), "regression"),
        (tight(40, "°C"), tight(80, "°C"), "not judged"),
        (tight(0.5, "s"), tight(500, "ms"), "not judged"),
        ({"value": 940, "unit": "Mbit/s"}, {"value": 94, "unit": "Mbit/s"}, "regression"),
        ({"value": 940, "unit": "Mbit/s"}, {"value": 800, "unit": "Mbit/s"}, "same"),  # spread not known
        ({"value": 0.1, "unit": "ms"}, {"value": 0.3, "unit": "ms"}, "same"),
        ({"value": 0.3, "unit": "ms"}, {"value": 4.0, "unit": "ms"}, "regression"),
        ({"value": 0, "unit": "%"}, {"value": 0.5, "unit": "%"}, "same"),
        ({"value": 0, "unit": "%"}, {"value": 20, "unit": "%"}, "regression"),
        ({"value": 0, "unit": "count"}, {"value": 900, "unit": "count"}, "not judged"),
        ({"value": 0.8, "n": 60, "unit": "share"}, {"value": 0.7, "n": 60, "unit": "share"}, "same"),
        ({"value": 0.8, "n": 60, "unit": "share"}, {"value": 0.4, "n": 60, "unit": "share"}, "regression"),
    ],
)
def test_verdict(a: dict[str, Any], b: dict[str, Any], verdict: str) -> None:
    (row,) = compare([with_figures(m=a)], [with_figures(m=b)])
    assert row.verdict == verdict
    assert (regressions([row]) == [row]) is (verdict == "regression")


def test_the_floor_can_be_set() -> None:
    a, b = with_figures(m=tight(5.5)), with_figures(m=tight(5.28))
    assert compare([a], [b], floor=0.01)[0].verdict == "regression"
    assert compare([a], [b], floor=0.01, significance=1e-9)[0].verdict == "same"


def test_rows_tell_what_else_differs_and_what_is_on_one_side_only() -> None:
    a = with_figures(decode=tight(5.5), old=tight(1))
    b = make(
        result={"decode": tight(4.4), "new": tight(1)},
        conditions__governor="ondemand",
        conditions__kernel=None,
        engine__build_key="other",
    )
    rows = compare([a, make(params__depth=1)], [b, make(params__depth=2)])
    assert [(row.metric, json.loads(row.series.params)["depth"], row.verdict) for row in rows] == [
        ("decode", 0, "regression"),
        ("old", 0, "gone"),
        ("new", 0, "new"),
        ("prefill", 1, "gone"),
        ("decode", 1, "gone"),
        ("prefill", 2, "new"),
        ("decode", 2, "new"),
    ]
    assert rows[0].differs == ("governor: performance → ondemand", "engine build: 0fcb3760b2b9-1a2b3c4d → other")
    assert rows[0].change == pytest.approx(-0.2)
    assert rows[0].p is not None
    assert rows[0].p < 0.001
    assert not rows[0].suspect
    assert compare([a], [make(result={"decode": tight(9.9)})])[0].suspect


def test_only_the_newest_of_each_series_is_compared() -> None:
    old, new = make(), make(started_at="2026-11-22T00:00:00Z", result__decode__mean=4.0)
    assert [row.verdict for row in compare([old], [old, new])] == ["same", "regression"]
    assert [row.verdict for row in compare([new, old], [new])] == ["same", "same"]


def test_noise_is_seldom_told_as_a_change() -> None:
    chance = random.Random(7)

    def measure() -> dict[str, Any]:
        values = [chance.gauss(5.5, 0.55) for _ in range(5)]
        mean = sum(values) / 5
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
        return {"mean": mean, "sd": spread, "n": 5, "unit": "tok/s"}

    rows = [compare([with_figures(m=measure())], [with_figures(m=measure())])[0] for _ in range(500)]
    assert sum(row.verdict != "same" for row in rows) <= 10


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(partials, partials)
def test_any_two_records_can_be_compared(one: dict[str, Any], two: dict[str, Any]) -> None:
    a, b = complete(one, "pi1"), complete({**one, "result": two["result"], "conditions": two["conditions"]}, "pi1")
    for row in compare([a], [b]):
        assert row.change is None or math.isfinite(row.change)
        assert row.p is None or 0 <= row.p <= 1
