"""What `bramble history`, `bramble compare` and `bramble bench` show and decide."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_values import partial
from rich.console import Console

from bramble.cli.measured import (
    MeasuredError,
    bench_tags,
    bench_variables,
    measured_directory,
    number_text,
    show_compare,
    show_history,
    side,
)
from bramble.records import Record, append, complete

OLD = complete(partial(), "pi1")
NEW = complete(partial(started_at="2026-11-23T09:30:00Z", result__decode__mean=4.4), "pi1")
DEEP = complete(partial(started_at="2026-11-22T10:00:00Z", params__depth=4096), "pi1")
OTHER = complete(
    partial(
        started_at="2026-11-22T11:00:00Z",
        kind="perplexity",
        params={"corpus": "c", "context": 512, "chunks": 8},
        result={"perplexity": {"mean": 9.1, "sd": 0.2, "n": 8, "unit": "ppl"}},
    ),
    "pi2",
)
ALL = [OLD, DEEP, OTHER, NEW]


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    for record in ALL:
        append(tmp_path / "pi/measured", record)
    return tmp_path / "pi"


class Shown:
    """Consoles that remember, as wide as those of a pipe."""

    def __init__(self) -> None:
        self.console = Console(file=StringIO(), width=200, highlight=False)
        self.errors = Console(file=StringIO(), width=200, highlight=False)

    @property
    def out(self) -> str:
        assert isinstance(self.console.file, StringIO)
        return self.console.file.getvalue()

    @property
    def err(self) -> str:
        assert isinstance(self.errors.file, StringIO)
        return self.errors.file.getvalue()


def history(inventory: Path, host: str | None = None, kind: str | None = None, as_json: bool = False) -> Shown:
    shown = Shown()
    show_history(inventory, host, kind, as_json=as_json, console=shown.console, errors=shown.errors)
    return shown


def compare(inventory: Path, a: str, b: str, floor: float = 0.05, as_json: bool = False) -> tuple[bool, Shown]:
    shown = Shown()
    good = show_compare(inventory, a, b, floor=floor, as_json=as_json, console=shown.console, errors=shown.errors)
    return good, shown


# --- history


def test_history_lists_what_was_measured_in_its_order(inventory: Path) -> None:
    shown = history(inventory)
    places = [shown.out.index(record["id"]) for record in (OLD, DEEP, OTHER, NEW)]
    assert places == sorted(places)
    assert "2026-11-23 09:30:00" in shown.out
    assert "decode 4.40 ± 0.05 tok/s" in shown.out
    assert "perplexity 9.10 ± 0.20 ppl" in shown.out
    assert "depth=4096" in shown.out
    assert "\x1b" not in shown.out
    assert shown.err == ""


def test_history_of_a_host_or_a_kind(inventory: Path) -> None:
    assert NEW["id"] not in history(inventory, "pi2").out
    assert OTHER["id"] in history(inventory, "pi2").out
    assert OTHER["id"] in history(inventory, kind="perplexity").out
    assert OLD["id"] not in history(inventory, kind="perplexity").out
    with pytest.raises(
        MeasuredError, match=r"no records of host pi3\. There are hosts pi1, pi2 and kinds llama_bench, pe"
    ):
        history(inventory, "pi3")
    with pytest.raises(MeasuredError, match="no records of host pi1 and kind net_pair"):
        history(inventory, "pi1", "net_pair")
    with pytest.raises(MeasuredError, match="no kind 'nonsense' of record; there are llama_bench, http_generate"):
        history(inventory, kind="nonsense")


def test_history_as_json_is_the_records(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history(inventory, "pi1", as_json=True)
    assert json.loads(capsys.readouterr().out) == [OLD, DEEP, NEW]


def test_history_marks_what_is_suspect_and_warns_of_bad_lines(inventory: Path) -> None:
    append(inventory / "measured", complete(partial(result__decode__mean=55.0), "pi1"))
    (inventory / "measured/pi3.jsonl").write_text("{torn")
    shown = history(inventory)
    assert "suspect: decode: 55.0 tok/s is more than the memory allows" in " ".join(shown.out.split())
    assert f"warning: {inventory}/measured/pi3.jsonl:1: no valid record" in shown.err


def test_history_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(MeasuredError, match=r"measured has no records\. `bramble bench` measures\."):
        history(tmp_path)


def test_records_lie_beside_the_inventory(inventory: Path) -> None:
    (inventory / "hosts.yml").write_text("")
    assert measured_directory(inventory) == measured_directory(inventory / "hosts.yml") == inventory / "measured"


def test_text_of_a_record_steers_nothing(inventory: Path) -> None:
    name = "[red]m[/red]\x1b[2J"
    append(inventory / "measured", complete(partial(model__name=name), "pi1"))
    shown = history(inventory)
    assert "[red]m[/red][2J" in shown.out
    assert "\x1b" not in shown.out
    assert "\x1b" not in compare(inventory, "first", "latest")[1].out


# --- compare


def test_compare_finds_what_became_worse(inventory: Path) -> None:
    good, shown = compare(inventory, "first", "latest")
    assert good is False
    assert (
        "✗ pi1 llama_bench llama.cpp qwen2.5-3b-instruct-q4_k_m "
        "(depth=0 n_gen=128 n_prompt=512 repetitions=5 threads=4): "
        "decode 5.50 ± 0.05 tok/s → 4.40 ± 0.05 tok/s (-20.0 %, p < 0.001)"
    ) in shown.out
    assert shown.out.count("regression") == 1
    assert "\x1b" not in shown.out


@pytest.mark.parametrize(
    ("a", "b", "good"),
    [
        ("latest", "latest", True),
        ("latest", "first", True),  # better
        ("2026-11-21", "latest", False),
        ("2026-11-21T12:00", "2026-11-22", True),
        ("2026-11-21T13:00:00+01:00", "2026-11-23T09:30:00Z", False),
        (OLD["id"], NEW["id"], False),
        (OLD["id"][:6], "latest", False),
        (DEEP["id"], "latest", True),
        ("first", NEW["id"], False),
    ],
)
def test_sides(inventory: Path, a: str, b: str, good: bool) -> None:
    assert compare(inventory, a, b)[0] is good


def test_another_directory_is_a_side(inventory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    append(other / "measured", NEW)
    assert compare(inventory, "first", str(other))[0] is False
    assert compare(inventory, "latest", str(other / "measured"))[0] is True
    # Two directories need no records in the inventory.
    assert compare(tmp_path / "empty", str(inventory), str(other))[0] is True
    (other / "measured/pi7.jsonl").write_text("bad\n")
    assert "pi7.jsonl:1: no valid record" in compare(inventory, "latest", str(other))[1].err


@pytest.mark.parametrize(
    ("a", "message"),
    [
        ("nonsense", "'nonsense' is nothing to compare: write `first`, `latest`, a time such as 2026-11-21"),
        ("2026-13-01", "'2026-13-01' is no time"),
        ("9999-12-31", None),
        ("0001-01-01T00:00+23:00", "is no time"),
        ("2026-11-21nonsense", "is no time"),
        ("2026-11-20", r"Nothing was measured until 2026-11-20; the first record is of 2026-11-21T12:00:00Z\."),
        ("2026-11-21T11:59:59", "Nothing was measured until"),
        ("0000000000000000", "No record has the id 0000000000000000"),
        (OTHER["id"], None),
    ],
)
def test_a_side_that_means_nothing_is_told(inventory: Path, a: str, message: str | None) -> None:
    if message is None:
        compare(inventory, a, "latest")
        return
    with pytest.raises(MeasuredError, match=message):
        compare(inventory, a, "latest")


def test_a_side_without_records_is_told(inventory: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MeasuredError, match=r"empty/measured has no records"):
        compare(inventory, "latest", str(tmp_path / "empty"))
    with pytest.raises(MeasuredError, match="The inventory has no records for 'latest'"):
        compare(tmp_path / "empty", "latest", "first")


def test_an_ambiguous_id_is_told() -> None:
    with pytest.raises(MeasuredError, match="2 records have an id that begins with abcd: write more of it"):
        side("abcd", [{**OLD, "id": "abcd" * 4}, {**NEW, "id": "abcd" + "0" * 12}])


def test_records_of_different_series_are_not_compared(inventory: Path) -> None:
    with pytest.raises(MeasuredError, match="The two sides have no series in common"):
        compare(inventory, OLD["id"], DEEP["id"])


def test_what_one_side_lacks_is_said(inventory: Path) -> None:
    good, shown = compare(inventory, "2026-11-21", "2026-11-22")
    assert good is True
    assert "Only in B: pi1 llama_bench llama.cpp qwen2.5-3b-instruct-q4_k_m; pi2 perplexity llama.cpp" in shown.out
    assert "Nothing became worse beyond noise." in shown.out


def test_compare_as_json(inventory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(inventory, "first", "latest", as_json=True)[0] is False
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    (worse,) = [row for row in told["rows"] if row["verdict"] == "regression"]
    assert (worse["host"], worse["metric"], worse["unit"]) == ("pi1", "decode", "tok/s")
    assert worse["params"]["depth"] == 0
    assert worse["a"] == {"mean": 5.5, "sd": 0.05, "n": 5}
    assert worse["change"] == pytest.approx(-0.2)
    assert compare(inventory, "first", "latest", floor=0.3)[0] is True


# --- bench


@pytest.mark.parametrize(
    ("kinds", "again", "variables", "tags"),
    [
        ([], False, {}, None),
        ([], True, {"benchmark_again": True}, None),
        (["quality", "quality"], False, {"benchmark_kinds": ["quality"]}, "node_bench"),
        (["net_pair"], False, {}, "net_bench"),
        (
            ["net_pair", "perplexity"],
            True,
            {"benchmark_kinds": ["perplexity"], "benchmark_again": True},
            "net_bench,node_bench",
        ),
        (["token_time"], False, {}, "split_strategies"),
    ],
)
def test_bench(kinds: list[str], again: bool, variables: dict[str, Any], tags: str | None) -> None:
    assert bench_variables(kinds, again) == variables
    assert bench_tags(kinds) == tags


def test_bench_refuses_an_unknown_kind() -> None:
    with pytest.raises(MeasuredError, match="no kind 'llama-bench' of record"):
        bench_variables(["llama-bench"], again=False)


# --- Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123, "0.0123"),
        (0.5, "0.50"),
        (5.5, "5.50"),
        (21.47, "21.5"),
        (941.3, "941"),
        (2345678, "2.35e+06"),
    ],
)
def test_number_text(value: float, text: str) -> None:
    assert number_text(value) == text


@given(st.floats(-1e300, 1e300))
def test_number_text_keeps_the_value(value: float) -> None:
    assert float(number_text(value)) == pytest.approx(value, rel=0.05)


def test_the_newest_of_a_side_counts(inventory: Path) -> None:
    mended: Record = complete(partial(started_at="2026-11-24T00:00:00Z"), "pi1")
    append(inventory / "measured", mended)
    assert compare(inventory, "first", "latest")[0] is True
