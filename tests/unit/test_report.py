"""The baseline report: its numbers are the records', its page is whole, and it says no more than the records do."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_pages import Page, value_at

from bramble.cli.report import ReportError, write_report
from bramble.records.schema import KINDS, LARGEST, SMALLEST, check, identify
from bramble.records.store import load
from bramble.report import Figure, Report, build, plain, render_html, render_markdown, walk
from bramble.report.charts import WIDTH, draw, step
from bramble.report.compare import Entry, differ, entry, rank, wilson
from bramble.report.findings import interval
from bramble.report.model import Bar, Chart
from bramble.report.reading import Measurement, bootloader_date, latest, raw_path, rounded, throttled_bits
from browser import MISSING, find_browser, open_page

type Json = dict[str, Any]
RECORDS = Path(__file__).parent / "report_records"
NOW = "2026-11-21T12:00:00Z"


def sample() -> dict[str, list[Any]]:
    """Three nodes, invented: pi1 has a HAT, pi3 is hot, slow and on a 100 Mbit link, pi2 has a suspect record."""
    return copy.deepcopy(loaded())


@cache
def loaded() -> dict[str, list[Any]]:
    records, problems = load(RECORDS)
    assert problems == []
    return dict(records)


def told(records: dict[str, list[Any]]) -> Report:
    return build(records, generated_at=NOW, cluster="sample")


def renamed(record: Json) -> Any:
    """A record that was changed, with the id that it then has; valid."""
    record["id"] = identify(record)
    record["raw"] = f"raw/{record['host']}/{record['id']}.txt"
    check(record)
    return record


def edited(records: Iterable[Any], **conditions: Any) -> list[Any]:
    """The records with other conditions."""
    found = []
    for record in copy.deepcopy(list(records)):
        record["conditions"].update(conditions)
        found.append(renamed(record))
    return found


def sentences(report: Report) -> list[str]:
    return [plain(statement.text) for statement in report.summary]


def sentence(report: Report, start: str) -> str:
    found = [each for each in sentences(report) if each.startswith(start)]
    assert len(found) == 1, sentences(report)
    return found[0]


# --- Numbers


def test_every_number_on_the_page_is_that_of_its_record() -> None:
    records = sample()
    by_id = {record["id"]: record for host in records.values() for record in host}
    page = Page(render_html(told(records)))
    direct = [each for each in page.figures if not each[1].startswith("derived.")]
    assert len(direct) > 500
    for identity, metric, value, text in direct:
        found = value_at(by_id[identity], metric)
        assert float(value) == float(found), (identity, metric)
        if text:
            places = len(text.partition(".")[2])
            assert math.isclose(float(text), found, abs_tol=0.5 * 10**-places + 1e-12), (identity, metric, text)


DERIVED = {
    "decode_per_joule": lambda r: r["result"]["decode"]["mean"] / r["conditions"]["power_w"],
    "throughput_per_joule": lambda r: r["result"]["throughput"]["value"] / r["conditions"]["power_w"],
    "decode_bound": lambda r: 17.1e9 / r["model"]["bytes"],
    "bound_share_percent": lambda r: 100 * r["result"]["decode"]["mean"] / (17.1e9 / r["model"]["bytes"]),
    "long_prompt_seconds": lambda r: 2000 / r["result"]["prefill"]["mean"],
}


def test_every_computed_number_follows_from_its_record() -> None:
    records = sample()
    by_id = {record["id"]: record for host in records.values() for record in host}
    page = Page(render_html(told(records)))
    computed = [each for each in page.figures if each[1].startswith("derived.")]
    names = {metric.removeprefix("derived.") for _, metric, _, _ in computed}
    assert names == {*DERIVED, "wilson_low", "wilson_high"}
    for identity, metric, value, _ in computed:
        name = metric.removeprefix("derived.")
        if name in DERIVED:
            assert float(value) == pytest.approx(DERIVED[name](by_id[identity])), (identity, metric)


def test_the_page_and_its_twin_show_the_models_figures() -> None:
    report = told(sample())
    page = Page(render_html(report))
    on_page = {(record, metric) for record, metric, _, _ in page.figures}
    markdown = render_markdown(report)
    figures = list(walk(report))
    assert len(figures) > 500
    shown = {(record, metric, text) for record, metric, _, text in page.figures if text}
    assert shown <= {(" ".join(figure.records), figure.metric, figure.text) for figure in figures}
    assert len(shown) > 300
    for figure in figures:
        if not figure.metric.startswith("derived.wilson"):  # The interval in a chart is a line without its numbers.
            assert (" ".join(figure.records), figure.metric) in on_page
    # The twin has as many of each number as the model has: none is lost, and none is another.
    letters = re.sub(r"\\", "", markdown)
    for text in {figure.text for figure in figures}:
        expected = sum(figure.text == text for figure in figures)
        assert len(re.findall(rf"(?<![0-9.]){re.escape(text)}(?![0-9]|\.[0-9])", letters)) >= expected, text


def test_the_same_records_give_the_same_bytes_in_whatever_order() -> None:
    records = sample()
    backwards = {host: list(reversed(records[host])) for host in reversed(list(records))}
    assert render_html(told(records)) == render_html(told(backwards))
    assert render_markdown(told(records)) == render_markdown(told(backwards))


def test_of_a_series_the_newest_counts() -> None:
    records = sample()
    older = copy.deepcopy(records["pi1"][0])
    older["started_at"], older["result"]["decode"]["mean"] = "2026-01-01T00:00:00Z", 99.0
    records["pi1"].insert(0, renamed(older))
    assert told(records) == told(sample())


# --- The page


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    text = render_html(told(sample()))
    page = Page(text)
    assert "http://" not in text
    assert "https://" not in text
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert "@import" not in text
    assert "url(" not in text
    targets = [found["href"] or "" for tag, found in page.elements if tag == "a"]
    assert targets
    for target in targets:
        assert target[1:] in page.ids if target.startswith("#") else target.startswith("../measured/raw/")


def test_the_page_is_accessible() -> None:
    page = Page(render_html(told(sample())))
    assert all(found.get("scope") in ("row", "col") for tag, found in page.elements if tag == "th")
    charts = [found for tag, found in page.elements if tag == "svg"]
    assert charts
    for found in charts:
        assert found["role"] == "img"
        assert set((found["aria-labelledby"] or "").split()) <= set(page.ids)
    assert sum(tag == "table" for tag, _ in page.elements) == sum(tag == "caption" for tag, _ in page.elements)
    assert sum(tag == "h1" for tag, _ in page.elements) == 1


HOSTILE = "<script>alert(1)</script>\"'&|`*_[x](http://evil.example)\n# \x1b[31m‮"


def test_hostile_names_stay_text() -> None:
    records = sample()
    for record in records["pi1"]:
        record["engine"]["name"] = record["engine"]["name"] + HOSTILE.replace("\n", " ").replace("\x1b", "")
        if record["model"]:
            record["model"]["name"] = "m" + HOSTILE
        record["conditions"]["notes"] = [HOSTILE, "busy " + HOSTILE]
        record["conditions"]["governor"] = HOSTILE
        record["params"]["exam"] = record["params"]["peer"] = record["params"]["api"] = HOSTILE
        record["raw"] = "javascript:alert(1)"
        record["suspect"] = [HOSTILE]
    more = copy.deepcopy(records["pi1"])
    for record in more:
        del record["suspect"]
        record["host"] = "h" + HOSTILE
        record["id"] = identify(record)
    report = told({**records, "h" + HOSTILE: more})
    page = Page(render_html(report))
    assert "script" not in {tag for tag, _ in page.elements}
    assert any("<script>alert(1)</script>" in words for words in page.words)
    targets = [found["href"] or "" for tag, found in page.elements if tag == "a"]
    assert all(target.startswith(("#", "../measured/raw/")) for target in targets)
    markdown = render_markdown(report)
    outside = re.sub(r"```text.*?```", "", markdown, flags=re.DOTALL)
    assert "<script" not in outside.replace("\\<", "")
    assert not re.search(r"(?<!\\)\]\((?!#|\.\./measured/raw/)", outside)
    assert "\x1b" not in markdown
    assert "\x1b" not in "".join(sentences(report))
    for line in outside.splitlines():
        if line.startswith("| "):
            assert "\n" not in line


def test_a_table_of_the_twin_has_as_many_cells_in_each_row() -> None:
    tables: list[list[int]] = [[]]
    for line in render_markdown(told(sample())).splitlines():
        if line.startswith("| "):
            tables[-1].append(len(re.findall(r"(?<!\\)\|", line)))
        elif tables[-1]:
            tables.append([])
    counted = [table for table in tables if table]
    assert len(counted) > 8
    assert all(len(set(table)) == 1 and len(table) > 2 for table in counted)


@pytest.mark.skipif(find_browser() is None, reason=MISSING)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_the_page_without_a_word(tmp_path: Path, width: int) -> None:
    path = tmp_path / "baseline.html"
    path.write_text(render_html(told(sample())))
    page = open_page(path, width=width)
    assert page.console == ()
    assert page.requests == ()
    assert Page(page.dom).figures == Page(path.read_text()).figures


@pytest.mark.skipif(find_browser() is None, reason=MISSING)
def test_a_browser_tells_what_is_wrong_with_a_page(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text('<!DOCTYPE html><title>x</title><script>no_such_thing()</script><img src="http://192.0.2.1/x.png">')
    page = open_page(path)
    assert any("no_such_thing is not defined" in line for line in page.console)
    assert page.requests == ("http://192.0.2.1/x.png",)


# --- What it says


def test_the_answers_of_the_sample() -> None:
    report = told(sample())
    assert sentence(report, "Fastest decode").startswith(
        "Fastest decode: hailo-ollama on pi1 (qwen2.5-instruct:1.5b) with 6.95 ± 0.04 tok/s; "
        "then llama.cpp on pi2 and pi1 (qwen2.5-3b-instruct-q4_k_m) with 5.08"
    )
    assert "hailo-ollama on pi1 (qwen2.5-instruct:1.5b) with 0.370 s" in sentence(report, "Shortest time")
    assert sentence(report, "Best quality").startswith("Best quality: llama.cpp on pi1")
    assert "decode 5.08 against 6.95 tok/s (the NPU is ahead)" in sentence(report, "CPU (")
    assert "quality 0.81 against 0.51 (the CPU is ahead)" in sentence(report, "CPU (")
    assert "All of them have pi3 at one end" in sentence(report, "Links below 900")
    fallen = sentence(report, "Falls short")
    for cause in ("throttled during the run", "84.5 °C", "governor is ondemand", "2024-06-05", "apt-daily"):
        assert cause in fallen
    assert "Code: no difference seen" in plain_of(report, "tasks")


def plain_of(report: Report, anchor: str) -> str:
    """The text of a section of the page."""
    text = render_html(report)
    start = text.index(f'<section id="{anchor}"')
    return " ".join("".join(Page(text[start : text.index("</section>", start) + 10]).words).split())


def test_the_hats_tokens_per_joule_by_the_boards_sensor_are_never_without_their_caveat() -> None:
    report = told(sample())
    told_joules = sentence(report, "Most tokens per joule")
    assert "Not held against the others: hailo-ollama on pi1" in told_joules
    assert "sees no current of the HAT" in told_joules
    assert "below 2.24: the HAT's own power is missing in it" in render_markdown(report).replace("\\", "")
    metered = sample()
    metered = {host: edited(found, power_source="meter") for host, found in metered.items()}
    metered["pi2"] = [record for record in metered["pi2"] if not record.get("suspect")]
    told_joules = sentence(told(metered), "Most tokens per joule")
    assert told_joules.startswith("Most tokens per joule: hailo-ollama on pi1")
    assert "Not held" not in told_joules


def test_a_suspect_record_is_shown_and_not_believed() -> None:
    report = told(sample())
    suspect = [record for record in sample()["pi2"] if record.get("suspect")]
    assert len(suspect) == 1
    assert suspect[0]["id"] in report.used
    assert "1 of 37 records are not to be trusted" in plain(report.warnings[0].text)
    assert not any(suspect[0]["id"] in figure.records and "decode" in figure.metric for figure in walk(report))
    assert "SUSPECT: decode: 41.3 tok/s" in plain_of(report, "conditions")


@pytest.mark.parametrize(
    ("notes", "model", "words"),
    [
        (["HAT: emulation"], None, "emulated hardware"),
        ([], "bramble-synth", "random weights"),
        (["a lab of emulated nodes"], "bramble-npu:1.5b", "emulated hardware and random weights"),
    ],
)
def test_stand_ins_say_that_they_say_nothing(notes: list[str], model: str | None, words: str) -> None:
    records = {"pi1": edited(sample()["pi1"], notes=notes)}
    for record in records["pi1"]:
        if model and record["model"]:
            record["model"]["name"] = model
    report = told(records)
    assert words in plain(report.warnings[0].text)
    assert "say nothing about real hardware" in plain(report.warnings[0].text)
    assert "Stand-in: " in sentence(report, "Fastest decode")
    if "emulated hardware" in words:  # A link has no weights.
        assert "Stand-in: " in sentence(report, "Links below")


def test_a_real_figure_is_not_held_against_a_stand_ins() -> None:
    records = sample()
    records["pi2"] = edited([record for record in records["pi2"] if not record.get("suspect")], notes=["emulation"])
    for record in records["pi2"]:
        for metric in record["result"].values():
            metric.update({key: value * 9 for key, value in metric.items() if key == "mean"})
    assert "pi2" not in sentence(told(records), "Fastest decode")


def test_a_node_that_is_slow_for_no_reason_seen_says_so() -> None:
    records = sample()
    records["pi3"] = edited(
        records["pi3"],
        throttled={"before": "0x0", "after": "0x0"},
        temp_c={"before": 40.0, "after": 60.0},
        governor="performance",
        bootloader="2025-05-08",
        notes=[],
    )
    assert sentence(told(records), "Falls short").endswith("Likely cause: no cause seen in the conditions.")


@pytest.mark.parametrize(
    ("conditions", "build", "cause"),
    [
        ({"throttled": {"before": "0x50000", "after": "0x50000"}}, None, "under-voltage since boot, before the run"),
        ({"throttled": {"before": "0x0", "after": "0x80008"}}, None, "soft temperature limit during the run"),
        (
            {"throttled": {"before": None, "after": None}},
            "other-key",
            "another build of llama.cpp: other-key, and f06c",
        ),
        ({"notes": ["service bramble-rpc-worker was active"]}, None, "noted: service bramble-rpc-worker was active"),
    ],
)
def test_each_cause(conditions: Json, build: str | None, cause: str) -> None:
    records = sample()
    harmless = {"temp_c": {"before": None, "after": None}, "governor": None, "bootloader": None, "notes": []}
    records["pi3"] = edited(records["pi3"], **{"throttled": {"before": None, "after": None}, **harmless, **conditions})
    for record in records["pi3"]:
        if build:
            record["engine"]["build_key"] = build
    assert cause in sentence(told(records), "Falls short")


def test_a_slow_link_is_a_cause_only_where_layers_go_over_it() -> None:
    records = sample()
    harmless = {"temp_c": {"before": None, "after": None}, "governor": None, "bootloader": None, "notes": []}
    records["pi3"] = edited(records["pi3"], throttled={"before": None, "after": None}, **harmless)
    assert "pi3 to pi1" not in sentence(told(records), "Falls short")
    for host in records.values():
        for record in host:
            if record["kind"] == "llama_bench":
                record["params"]["peers"] = ["192.168.1.12"]
    assert "pi3 to pi1: sends 94.1, receives 93.7 Mbit/s" in sentence(told(records), "Falls short")


def test_without_records_the_page_says_so() -> None:
    for records in ({}, {"pi1": []}):
        report = told(records)
        assert sentences(report) == ["There is no record yet, so there is nothing to report. bramble bench makes some."]
        Page(render_html(report))
        assert "no record yet" in render_markdown(report)


@pytest.mark.parametrize("kind", ["llama_bench", "http_generate", "net_pair", "quality", "perplexity"])
def test_a_kind_that_is_missing_is_named_with_its_command(kind: str) -> None:
    kept = {host: [each for each in found if each["kind"] != kind] for host, found in sample().items()}
    text = plain_of_all(told(kept))
    assert re.search(rf"No record of [^.]*{kind}[^.]*yet\. bramble bench measures it\.", text), kind
    Page(render_html(told(kept)))


@pytest.mark.parametrize("kind", ["llama_bench", "http_generate", "net_pair", "quality", "perplexity"])
def test_one_kind_alone_makes_a_page(kind: str) -> None:
    kept = {host: [each for each in found if each["kind"] == kind] for host, found in sample().items()}
    Page(render_html(told(kept)))
    assert "Not measured yet" in " ".join(sentences(told(kept)))


def plain_of_all(report: Report) -> str:
    return " ".join("".join(Page(render_html(report)).words).split())


# --- Parts


def measured(mean: float, sd: float | None, n: int, host: str = "pi1") -> Entry:
    record = copy.deepcopy(sample()["pi1"][0])
    record["host"], record["result"]["decode"] = host, {"mean": mean, "sd": sd, "n": n, "unit": "tok/s"}
    return entry(host, Measurement(record), "decode")[0]


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        ((5.0, 0.02, 5), (5.1, 0.02, 5), False),  # Significant, and too small to matter.
        ((5.0, 0.02, 5), (6.0, 0.02, 5), True),
        ((5.0, 2.0, 3), (6.0, 2.0, 3), False),  # Large, and noise.
        ((5.0, None, 1), (6.0, None, 1), False),  # No spread is known.
        ((5.0, None, 1), (9.0, None, 1), True),
    ],
)
def test_what_counts_as_a_difference(one: tuple[Any, ...], other: tuple[Any, ...], differs: bool) -> None:
    assert differ(measured(*one), measured(*other)) is differs
    assert differ(measured(*other), measured(*one)) is differs


def test_a_ranking_keeps_together_what_cannot_be_told_apart() -> None:
    entries = [measured(5.0, 0.02, 5, "a"), measured(5.05, 0.02, 5, "b"), measured(3.0, 0.02, 5, "c")]
    assert [[each.name for each in part] for part in (rank(entries).best, rank(entries).rest)] == [["b", "a"], ["c"]]
    lowest = rank(entries, lowest=True)
    assert [each.name for each in (*lowest.best, *lowest.rest)] == ["c", "a", "b"]
    assert rank([]).best == ()


def test_the_interval_of_a_record_goes_before_a_computed_one() -> None:
    record = copy.deepcopy(next(each for each in sample()["pi1"] if each["kind"] == "quality"))
    assert [end.metric for end in interval(Measurement(record), "score") if end] == [
        "derived.wilson_low",
        "derived.wilson_high",
    ]
    record["result"]["score"] |= {"low": 0.1, "high": 0.9}
    assert [end.value for end in interval(Measurement(record), "score") if end] == [0.1, 0.9]


def test_wilson() -> None:
    low, high = wilson(0.9, 10) or (0, 0)  # Brown, Cai, DasGupta (2001): 0.596 to 0.982.
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)
    assert wilson(1.5, 10) is None
    assert wilson(0.5, 0) is None


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("raw/pi1/0123456789abcdef.txt", True),
        (None, False),
        ("../../etc/passwd", False),
        ("/etc/passwd", False),
        ("javascript:alert(1)", False),
        ("//evil.example/x", False),
        ("raw/../../x", False),
        ("", False),
    ],
)
def test_a_link_leads_to_a_kept_log_only(raw: str | None, kept: bool) -> None:
    assert raw_path(raw) == (raw if kept else None)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (512, "512"), (0.37, "0.370"), (6.954, "6.95"), (15.12, "15.1"), (940.8, "941"), (1e20, "1e+20")],
)
def test_rounding(value: float, text: str) -> None:
    assert rounded(value) == text


def test_bits_and_dates() -> None:
    now, since = throttled_bits("0x50005") or (set(), set())
    assert now == {"under-voltage", "throttled"}
    assert since == {"under-voltage", "throttled"}
    assert throttled_bits(None) is None
    assert throttled_bits("none") is None
    assert bootloader_date("2025/05/08 15:13:17") == "2025-05-08"
    assert bootloader_date("unknown") is None


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_ticks_are_round_and_few(largest: float) -> None:
    distance = step(largest)
    assert 1 <= largest / distance <= 6
    assert round(distance / 10 ** math.floor(math.log10(distance) + 1e-9), 6) in (1, 2, 5)


# What the schema lets in.
SIZES = st.just(0.0) | st.floats(SMALLEST, LARGEST)
FIGURES = SIZES | SIZES.map(lambda size: -size)
numbers = st.floats(min_value=0, max_value=1e12, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers, numbers), max_size=6), st.none() | numbers)
def test_a_drawing_stays_in_its_frame(bars: list[tuple[float, float, float]], limit: float | None) -> None:
    def figure(value: float) -> Figure:
        return Figure(("r",), "m", value, rounded(value))

    drawn = draw(
        Chart(
            "t",
            "u",
            tuple(Bar("b", figure(value), figure(spread), figure(mark)) for value, spread, mark in bars),
            limit=None if limit is None else figure(limit),
            band=(4.0, 7.0),
        )
    )
    for bar in drawn.bars:
        assert 0 <= drawn.left + bar.width <= WIDTH
        assert bar.spread_from <= bar.spread_to <= WIDTH
        assert bar.y < drawn.foot < drawn.height
    assert all(0 <= tick.x <= WIDTH for tick in drawn.ticks)


texts = st.text(max_size=12)
metrics = st.one_of(
    st.fixed_dictionaries({"value": FIGURES, "unit": st.just("tok/s")}),
    st.fixed_dictionaries(
        {
            "mean": FIGURES,
            "sd": st.none() | SIZES,
            "n": st.integers(1, 99),
            "unit": st.just("tok/s"),
        }
    ),
)
results = st.dictionaries(
    st.sampled_from(
        ("decode", "prefill", "ttft", "throughput", "total", "send", "receive", "ping_avg", "ping_loss", "score")
    )
    | texts.map(lambda text: f"score_{text}"),
    metrics,
    min_size=1,
    max_size=5,
)
params = st.dictionaries(
    st.sampled_from(("depth", "threads", "prompt_tokens", "concurrency", "peer", "peers", "api", "exam")),
    st.none() | st.booleans() | st.integers() | FIGURES | texts,
    max_size=5,
)


@st.composite
def records_of_any_kind(draw_: Any) -> Json:
    record = copy.deepcopy(draw_(st.sampled_from(sample()["pi1"])))
    record["host"] = draw_(st.sampled_from(("pi1", "pi2")))
    record["kind"] = draw_(st.sampled_from(KINDS))
    record["result"], record["params"] = draw_(results), draw_(params)
    record["engine"]["name"] = draw_(st.sampled_from(("llama.cpp", "hailo-ollama")) | texts)
    record["conditions"]["power_w"] = draw_(st.none() | FIGURES)
    record["conditions"]["bootloader"] = draw_(st.none() | texts)
    record["id"] = identify(record)
    return record


@settings(max_examples=60, deadline=None)
@given(st.lists(records_of_any_kind(), max_size=6))
def test_no_record_ends_in_a_traceback_or_a_broken_page(found: list[Any]) -> None:
    report = told({host: [record for record in found if record["host"] == host] for host in ("pi1", "pi2")})
    Page(render_html(report))
    render_markdown(report)
    for statement in report.summary:
        plain(statement.text)


# --- The command


def test_the_command_writes_both_pages(tmp_path: Path) -> None:
    inventory = tmp_path / "inventory" / "pi"
    (inventory / "measured").mkdir(parents=True)
    for file in RECORDS.glob("*.jsonl"):
        (inventory / "measured" / file.name).write_bytes(file.read_bytes() + (b"{}\n" if file.stem == "pi1" else b""))
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    written = write_report(inventory, now=now)
    assert sorted(path.name for path in (inventory / "report").iterdir()) == ["baseline.html", "baseline.md"]
    assert written.html.read_text() == render_html(written.report)
    assert written.markdown.read_text() == render_markdown(written.report)
    assert "As of 2026-11-21T12:00:00Z" in written.html.read_text()
    assert written.changed
    # Without a time, the same records make the same pages.
    assert write_report(inventory).changed
    assert not write_report(inventory).changed
    assert "Baseline of pi" in written.html.read_text()
    assert len(written.problems) == 1
    assert "no valid record, and left out: 1." in plain(written.report.warnings[-1].text)
    elsewhere = write_report(inventory, tmp_path / "out", now=now)
    assert "../inventory/pi/measured/raw/pi1/" in elsewhere.html.read_text()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"file/report: cannot be made: .*; name a directory with --output"):
        write_report(tmp_path, tmp_path / "file" / "report")


def test_the_sample_says_that_it_is_invented() -> None:
    for file in RECORDS.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            assert json.loads(line)["conditions"]["notes"][0].startswith("invented for the tests")
    assert len(latest(record for host in sample().values() for record in host)) == 37
