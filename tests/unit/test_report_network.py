"""The page on the network: its numbers are the records', its bars are whole, and it says no more than they do."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_values import partial, partials
from report_pages import Page, value_at
from token_times import INVENTED, LLAMA_CPP, MODEL, mean, pair, pipeline, run, sample, single, tensor, value

from bramble.cli.report import write_report
from bramble.records import Record, append, complete, identify
from bramble.report import Figure, Report, build, build_network, plain, render_html, render_markdown, walk
from bramble.report.charts import WIDE, WIDTH, draw_stacked
from bramble.report.model import Key, Slice, StackedBar, StackedChart
from bramble.report.reading import Measurement, rounded
from bramble.report.strategies import LEGEND_END, OTHER, WIRE, Known, Run, family, know, names_of, newest, shaped_rate
from browser import MISSING, find_browser, open_page

NOW = "2026-11-22T12:00:00Z"
COMMAND = "ansible-playbook playbooks/benchmark.yml --tags split_strategies"


def told(records: Iterable[Any]) -> Report:
    by_host: dict[str, list[Any]] = {}
    for record in records:
        by_host.setdefault(record["host"], []).append(record)
    return build_network(by_host, generated_at=NOW, cluster="sample")


def everything() -> list[Any]:
    return [record for found in sample().values() for record in found]


@cache
def page() -> Page:
    return Page(render_html(told(everything())))


def sentences(report: Report) -> list[str]:
    return [plain(statement.text) for statement in report.summary]


def sentence(report: Report, start: str) -> str:
    found = [each for each in sentences(report) if each.startswith(start)]
    assert len(found) == 1, sentences(report)
    return found[0]


def edited(record: Any, **changes: Any) -> Record:
    """The record with other fields; a name with two underscores is a path. With the id that it then has."""
    made = copy.deepcopy(record)
    for path, wanted in changes.items():
        *parents, last = path.split("__")
        place = made
        for parent in parents:
            place = place[parent]
        place[last] = wanted
    made["id"] = identify(made)
    return made


def shown(record: Any, *others: Any) -> tuple[Run, Known]:
    """A run, and what it is shown by."""
    found = Run(Measurement(record), names_of(Measurement(record)))
    pairs = {(each["host"], each["params"]["peer"]): Measurement(each) for each in others}
    return found, know([found], pairs)


# --- Numbers


def test_every_number_on_the_page_is_that_of_its_record() -> None:
    by_id = {record["id"]: record for record in everything()}
    direct = [each for each in page().figures if not each[1].startswith("derived.")]
    assert len(direct) > 300
    for identity, metric, number, text in direct:
        found = value_at(by_id[identity], metric)
        assert float(number) == float(found), (identity, metric)
        if text:
            places = len(text.partition(".")[2])
            assert math.isclose(float(text), found, abs_tol=0.5 * 10**-places + 1e-9), (identity, metric, text)


def bytes_of(record: Any) -> float:
    result = record["result"]
    return float(sum(each["value"] for name, each in result.items() if name.startswith(("sent", "received"))))


def token(record: Any) -> float:
    return float(record["result"]["token"]["mean"])


def decode(record: Any) -> float:
    return float(record["result"]["decode"]["mean"])


def parts(record: Any, *prefixes: str) -> float:
    result = record["result"]
    return float(sum(each["value"] for name, each in result.items() if name.startswith(prefixes)))


def in_all(record: Any) -> float:
    """All parts that a record tells, and what it does not account for."""
    return max(token(record), parts(record, "compute_", "waited_", "network"))


DERIVED: dict[str, Any] = {
    "waited_ms": lambda one: parts(one, "waited_"),
    "other_ms": lambda one: token(one) - parts(one, "compute_", "waited_", "network"),
    "not_computing_ms": lambda one: in_all(one) - parts(one, "compute_"),
    "nodes": lambda one, *_: len(one["params"].get("nodes", ["one"])),
    "compute_share_percent": lambda one: 100 * parts(one, "compute_") / in_all(one),
    "waiting_share_percent": lambda one: 100 * parts(one, "waited_") / in_all(one),
    "network_share_percent": lambda one: 100 * parts(one, "network") / in_all(one),
    "other_share_percent": lambda one: 100 * (1 - parts(one, "compute_", "waited_", "network") / in_all(one)),
    "link_kB": lambda one: bytes_of(one) / 1000,
    "ratio": lambda one, other=None: decode(one) / decode(other or one),
    "best_share_percent": lambda one, other=None: 100 * decode(one) / decode(other or one),
    "unshaped_share_percent": lambda one, other: 100 * decode(one) / decode(other),
    "change_percent": lambda one, other: abs(100 * (decode(one) / decode(other) - 1)),
    "logits_ms": lambda one, other: abs(token(other) - token(one)),
    "logits_kB": lambda one, other: abs(bytes_of(other) - bytes_of(one)) / 1000,
}
NEEDS_PAIRS = {"wire_ms", "latency_ms", "link_wire_ms", "logits_wire_ms"}


def test_every_computed_number_follows_from_its_records() -> None:
    by_id = {record["id"]: record for record in everything()}
    computed = [each for each in page().figures if each[1].startswith("derived.")]
    assert {metric.removeprefix("derived.") for _, metric, _, _ in computed} - {"other_share_percent"} == (
        {*DERIVED, *NEEDS_PAIRS} - {"other_share_percent"}
    )
    for identities, metric, number, _ in computed:
        name = metric.removeprefix("derived.")
        if name in DERIVED:
            records = [by_id[identity] for identity in identities.split()]
            assert float(number) == pytest.approx(DERIVED[name](*records)), (identities, metric)


def test_bytes_take_what_the_measured_throughput_allows() -> None:
    record = pipeline("planned", {"pi1": 13, "pi2": 13, "pi3": 10})
    record = edited(record, result__network=value(5.0, "ms"))
    pairs = (pair("pi1", "pi2", 940.8), pair("pi3", "pi1", 94.1))
    found, known = shown(record, *pairs)
    near, far = found.links(known.pairs)
    assert near.wire is not None
    assert near.wire.value == pytest.approx(8e-3 * (16940 / 940.8 + 10248 / 938.2))
    # pi3 measured this pair: what it sent, the head received.
    assert far.wire is not None
    assert far.wire.value == pytest.approx(8e-3 * (6500 / 91.5 + 10248 / 94.1))
    wire = found.wire(found.links(known.pairs))
    assert wire is not None
    assert wire.value == pytest.approx(near.wire.value + far.wire.value)
    assert set(wire.records) == {record["id"], *(each["id"] for each in pairs)}
    # They are no more than what the network took.
    found, known = shown(edited(record, result__network=value(0.5, "ms")), *pairs)
    assert [part.figure.value for part in found.parts(known) if part.key == WIRE] == [0.5]


def test_the_root_of_a_tensor_parallel_run_sends_and_receives_at_once() -> None:
    found, known = shown(tensor(["pi1", "pi2"]), pair("pi1", "pi2"))
    (link,) = found.links(known.pairs)
    assert link.sent is not None
    assert link.received is not None
    assert link.wire is not None
    assert link.wire.value == pytest.approx(8e-3 * max(link.sent.value / 940.8, link.received.value / 938.2))


@pytest.mark.parametrize(
    ("link", "rate"),
    [("", math.inf), ("100 Mbit/s", 100), ("1 Gbit/s", 1000), ("2.5 Gbit/s", 2500), ("+1 ms", math.inf), ("odd", None)],
)
def test_a_shaped_link_is_no_faster_than_it_was_shaped_to(link: str, rate: float | None) -> None:
    assert shaped_rate(link) == rate
    found, known = shown(pipeline("planned", {"pi1": 13, "pi2": 13}, link=link), pair("pi1", "pi2"))
    (only,) = found.links(known.pairs)
    if rate is None:
        assert only.wire is None
    else:
        assert only.wire is not None
        assert only.wire.value == pytest.approx(8e-3 * (16940 / min(rate, 940.8) + 10248 / min(rate, 938.2)))


def test_without_the_throughput_of_each_link_the_network_is_one_part() -> None:
    record = pipeline("planned", {"pi1": 13, "pi2": 13, "pi3": 10})
    found, known = shown(record, pair("pi1", "pi2"))
    assert [part.key.name for part in found.parts(known)][3:] == ["waiting for a core", "network"]
    assert "no record tells this pair's throughput" in sentence(told([record]), "Busiest link of planned")
    assert "The throughput of pairs of nodes. bramble bench --kind net_pair measures it." in sentence(
        told([record]), "Not measured yet"
    )


amounts = st.floats(1e-9, 1e6) | st.just(0.0)


@given(
    st.sampled_from(["replica", "rpc", "tensor"]),
    st.floats(1e-3, 1e6),
    st.dictionaries(
        st.sampled_from(
            [
                *("compute_pi1", "compute_pi2", "compute_pi9", "waited_pi1", "waited_pi2", "network"),
                *("sent", "received", "sent_pi2", "received_pi2"),
            ]
        ),
        amounts,
    ),
    st.booleans(),
)
def test_the_parts_of_a_bar_are_the_tokens_time(
    placement: str, whole: float, measured: dict[str, float], paired: bool
) -> None:
    carried = {name for name in measured if name.startswith(("sent", "received"))}
    result = {name: value(each, "B" if name in carried else "ms") for name, each in measured.items()}
    record = run("even", placement, {"pi1": 1, "pi2": 1}, {"token": value(whole, "ms"), **result})
    found, known = shown(record, *([pair("pi1", "pi2")] if paired else []))
    slices = found.parts(known)
    in_ms = sum(each for name, each in measured.items() if name not in carried)
    if in_ms <= whole:
        assert math.fsum(part.figure.value for part in slices) == pytest.approx(whole, rel=0.0011)
        assert found.surplus(known) is None
    else:
        assert math.fsum(part.figure.value for part in slices) == pytest.approx(in_ms)
    assert all(part.figure.value > 0 for part in slices)
    assert len({part.key for part in slices}) == len(slices)
    for width in (WIDTH, WIDE):
        drawn = draw_stacked(StackedChart("t", "ms", (), (StackedBar("b", found.token or FIGURE, slices),)), width)
        (bar,) = drawn.stacks
        # What is drawn is as long as the token took, whatever was measured of its parts.
        assert math.fsum(part.width for part in bar.slices) == pytest.approx(bar.value_x - 6 - drawn.left, abs=0.02)


FIGURE = Figure(("r",), "m", 0.0, "0")
KEYS = [Key("computing on pi1", "pi1", "node-0"), *LEGEND_END]
layers = st.lists(st.tuples(st.sampled_from(KEYS), st.floats(1e-9, 1e15)), max_size=5)
bars = st.lists(st.tuples(st.floats(0, 1e15), layers), max_size=5)


@given(bars, st.sampled_from([WIDTH, WIDE]))
def test_a_stacked_drawing_stays_in_its_frame(found: list[Any], width: float) -> None:
    def figure(number: float) -> Figure:
        return Figure(("r",), "m", number, rounded(number))

    stacks = tuple(
        StackedBar("b" * 200, figure(total), tuple(Slice(key, figure(part)) for key, part in slices))
        for total, slices in found
    )
    drawn = draw_stacked(StackedChart("t", "ms", tuple(KEYS), stacks), width)
    for bar in drawn.stacks:
        assert bar.y + drawn.bar < drawn.foot < drawn.height
        assert len(bar.shown_label) < width / 6
        end = drawn.left
        for part in bar.slices:
            assert part.x == pytest.approx(end, abs=0.02)
            assert part.shown_width <= part.width + 0.01
            end += part.width
        assert end <= width
    assert all(0 <= tick.x <= width for tick in drawn.ticks)


def test_a_part_that_took_no_time_is_told_and_not_drawn() -> None:
    record = edited(pipeline("even", {"pi1": 18, "pi2": 18}), result__network=value(0, "ms"))
    found, known = shown(record, pair("pi1", "pi2"))
    assert WIRE in [part.key for part in found.told(known)]
    assert WIRE not in [part.key for part in found.parts(known)]
    assert "All bytes take" not in sentence(told([record, pair("pi1", "pi2")]), "Busiest link")


def test_parts_that_are_more_than_the_whole_are_told() -> None:
    record = pipeline("even", {"pi1": 18, "pi2": 18})
    more = edited(record, result__compute_pi2=value(record["result"]["token"]["mean"], "ms"))
    surplus = sentence(told([more]), "Parts that are more than the whole")
    assert "even by " in surplus
    assert "ms a token (its parts, measured one by one, are " in sentence(told([more]), "Where the time of even goes")
    assert not [each for each in sentences(told([record])) if each.startswith("Parts that")]


# --- The page


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = render_html(told(everything()))
    found = page()
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert not {tag for tag, _ in found.elements} & {"script", "link", "img", "iframe", "object", "embed", "base"}
    targets = [each["href"] or "" for tag, each in found.elements if tag == "a"]
    assert "baseline.html" in targets
    for target in targets:
        assert (
            target[1:] in found.ids if target.startswith("#") else target.startswith(("../measured/raw/", "baseline."))
        )
    for tag, each in found.elements:
        if tag == "svg" and each.get("aria-hidden") != "true":
            assert each["role"] == "img"
            assert set((each["aria-labelledby"] or "").split()) <= set(found.ids)


def test_a_bar_is_told_in_words_too() -> None:
    words = " ".join("".join(page().words).split())
    assert "two nodes · RPC: pi1 18, pi2 18 layers: 223, of it computing on pi1 119, computing on pi2 103" in words
    # A reader without colours: each part has its texture, and where there is room its name.
    assert "pi2 103" in words


def test_the_page_and_its_twin_show_the_models_figures() -> None:
    report = told(everything())
    figures = list(walk(report))
    on_page = {(record, metric) for record, metric, _, _ in page().figures}
    assert {(" ".join(figure.records), figure.metric) for figure in figures} <= on_page
    texts = {(record, metric, text) for record, metric, _, text in page().figures if text}
    assert texts <= {(" ".join(figure.records), figure.metric, figure.text) for figure in figures}
    twin = render_markdown(report).replace("\\", "")
    assert "[baseline](baseline.md)" in twin
    for figure in figures:
        assert figure.text in twin


def test_the_same_records_give_the_same_bytes_in_whatever_order() -> None:
    records = everything()
    assert render_html(told(records)) == render_html(told(reversed(records)))
    assert render_markdown(told(records)) == render_markdown(told(reversed(records)))


@pytest.mark.skipif(find_browser() is None, reason=MISSING)
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_the_page_without_a_word(tmp_path: Path, width: int) -> None:
    path = tmp_path / "network.html"
    path.write_text(render_html(told(everything())))
    opened = open_page(path, width=width)
    assert opened.console == ()
    assert opened.requests == ()
    assert Page(opened.dom).figures == page().figures


# --- What it says


def test_the_findings_of_the_sample() -> None:
    report = told(everything())
    assert sentence(report, "Fastest for qwen3-4b-q4_k_m").startswith(
        "Fastest for qwen3-4b-q4_k_m: tensor (tensor parallel: pi1, pi2) with 7.28 ± 0.04 tok/s. "
        "That is 1.62 times the next, one node (4.49 ± 0.02) and 1.69 times even (4.32 ± 0.02)."
    )
    assert sentence(report, "Where the time of tensor").startswith(
        "Where the time of tensor goes: of 137 ms a token, 87 % computing (pi1 119 ms); 13 % on the network (18.3 ms: "
    )
    assert "All bytes take 0.231 of the 0.651 ms" in sentence(report, "Busiest link of two nodes")
    assert sentence(report, "Logits kept on the head").endswith(
        "230 instead of 235 ms a token, 5.08 ms less, which is not more than noise may be; "
        "598 kB less, which take 5.09 ms on the wire."
    )
    assert "7.28 ± 0.04 tok/s over 2 nodes (tensor) against 4.48 ± 0.02 tok/s over 2 nodes (two nodes) and" in sentence(
        report, "Tensor parallel against RPC"
    )
    assert "tensor 5.70 instead of 7.28 tok/s (22 % less)" in sentence(report, "Shaped links, 100 Mbit/s")
    assert "no difference seen: planned 4.27 instead of 4.34" in sentence(report, "Shaped links, +1 ms")
    assert not [each for each in sentences(report) if each.startswith("Not measured yet")]


def test_what_cannot_be_told_apart_is_not_ranked() -> None:
    records = [pipeline("planned", {"pi1": 18, "pi2": 18}), pipeline("even", {"pi1": 17, "pi2": 19})]
    fastest = sentence(told(records), "Fastest")
    assert "no difference seen between planned" in fastest
    assert " times " not in fastest
    alone = sentence(told(records[:1]), "Fastest")
    assert alone.endswith("; nothing else was measured that it could be held against.")


def test_what_was_not_measured_is_named() -> None:
    report = told([pipeline("even", {"pi1": 18, "pi2": 18}), pair("pi1", "pi2")])
    assert sentence(report, "Not measured yet") == (
        "Not measured yet: the plan's own split, one node alone, tensor parallel, logits from the worker and "
        f"a shaped link. {COMMAND} measures it."
    )
    for start in ("Logits", "Tensor parallel", "Shaped"):
        assert not [each for each in sentences(report) if each.startswith(start)]


@pytest.mark.parametrize("change", [{"params__layers": {"pi1": 5, "pi2": 31}}, {"params__n_gen": 128}])
def test_logits_are_compared_where_nothing_else_differs(change: dict[str, Any]) -> None:
    kept = pipeline("planned", {"pi1": 18, "pi2": 18})
    moved = pipeline("logits from the worker", {"pi1": 18, "pi2": 18}, logits="worker")
    assert sentence(told([kept, moved]), "Logits kept on the head")
    assert not [each for each in sentences(told([kept, edited(moved, **change)])) if each.startswith("Logits")]


def test_of_a_strategy_the_newest_counts_and_a_suspect_one_does_not() -> None:
    old = pipeline("planned", {"pi1": 18, "pi2": 18}, minute=1)
    new = pipeline("planned", {"pi1": 20, "pi2": 16}, minute=2)
    assert "pi1 20, pi2 16 layers" in sentence(told([old, new]), "Fastest")
    assert told([new, old]) == told([old, new])
    suspect: Any = {**new, "suspect": ["invented"]}
    report = told([old, suspect])
    assert "pi1 18, pi2 18 layers" in sentence(report, "Fastest")
    assert "1 of 2 records are not to be trusted" in plain(report.warnings[0].text)
    assert not any(new["id"] in figure.records and "result" in figure.metric for figure in walk(report))
    assert new["id"] in report.used


def test_a_split_that_has_two_names_is_shown_once_and_known_by_both() -> None:
    note = "the same split as: by memory, planned"
    both = pipeline("even", {"pi1": 18, "pi2": 18}, minute=2)
    both = edited(both, conditions__notes=[INVENTED, note])
    slow = pipeline("planned", {"pi1": 18, "pi2": 18}, link="100 Mbit/s", minute=3)
    report = told([both, slow])
    assert sentence(report, "Fastest").startswith("Fastest for qwen3-4b-q4_k_m: planned = even = by memory (RPC")
    assert "planned 4." in sentence(report, "Shaped links, 100 Mbit/s")
    assert "the plan's own split" not in sentence(report, "Not measured yet")
    # What was measured later under one of the names has that name.
    later = told([both, pipeline("planned", {"pi1": 30, "pi2": 6}, minute=4)])
    assert {run.names for run in newest(map(Measurement, [both, slow])) if not run.link} == {
        ("planned", "even", "by memory")
    }
    assert "even = by memory (RPC: pi1 18" in sentence(later, "Fastest")
    # And nothing is left of a record whose every name was measured anew.
    old = pipeline("planned", {"pi1": 30, "pi2": 6}, minute=1)
    assert told([old, both]) == told([both])


def test_stand_ins_say_that_they_say_nothing() -> None:
    notes = [INVENTED, "emulation: no Pi"]
    report = told([edited(record, conditions__notes=notes) for record in everything()])
    assert "emulated hardware" in plain(report.warnings[0].text)
    for statement in report.summary:
        assert "Stand-in: " in plain(statement.text)
    # A real figure is not held against a stand-in's.
    records = [edited(tensor(["pi1", "pi2"]), conditions__notes=notes), pipeline("planned", {"pi1": 18, "pi2": 18})]
    assert sentence(told(records), "Fastest").startswith("Fastest for Qwen3-4B-Q4_0: planned")
    assert "tensor (stand-in) · " in "".join(Page(render_html(told(records))).words)


def test_engines_stand_side_by_side() -> None:
    words = " ".join("".join(page().words).split())
    start = words.index("the fastest of each placement and number of nodes")
    table = words[start : words.index("The files differ", start)]
    for row in ("RPC, two nodes", "RPC, planned", "tensor parallel", "one node, over HTTP: pi1", "llama-bench: pi3"):
        assert row in table
    assert "Qwen3-4B-Q4_0 (Q4_0) and qwen3-4b-q4_k_m (Q4_K_M). Of a difference, a part may be theirs." in words


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("qwen3-4b-q4_k_m", "Qwen3-4B-Q4_0", True),
        ("qwen3_4b_q40", "qwen3-4b-iq4_xs", True),
        ("qwen3-4b", "qwen3-4b-f16", True),
        ("qwen3-4b", "qwen3-8b", False),
        ("qwen2.5-1.5b", "qwen2.5-15b", False),
        ("q4_0", "q8_0", False),
        (None, "x", False),
    ],
)
def test_files_of_one_model(one: str | None, other: str | None, same: bool) -> None:
    assert (family(one) == family(other)) is same


def test_models_do_not_mix() -> None:
    other = {**MODEL, "name": "llama-3.2-3b-q4_k_m"}
    report = told([*everything(), pipeline("planned", {"pi1": 14, "pi2": 14}, model=other)])
    assert sentence(report, "Fastest for llama-3.2-3b-q4_k_m")
    assert sentence(report, "Fastest for qwen3-4b-q4_k_m")


def test_names_of_nodes_may_have_dots_and_be_hostile() -> None:
    layers = {"pi1": 18, "pi.2": 18}
    result = {"token": value(9.0, "ms"), "compute_pi.2": value(3.5, "ms"), "decode": value(111.0, "tok/s")}
    records = [run("<b>|`", "rpc", layers, result), run("<b>|`", "rpc", layers, result, link="](http://x)")]
    report = told([pair("pi1", "pi.2"), *records])
    found = Page(render_html(report))
    assert "b" not in {tag for tag, _ in found.elements}
    assert "computing on pi.2" in "".join(found.words)
    assert any(metric == "params.layers.pi.2" and number == "18.0" for _, metric, number, _ in found.figures)
    render_markdown(report)


@pytest.mark.parametrize("records", [[], [pair("pi1", "pi2")], single("pi1")])
def test_without_records_the_page_says_what_to_run(records: list[Any]) -> None:
    report = told(records)
    assert sentences(report) == [
        f"There is no record yet of where a token's time goes (token_time). {COMMAND} makes some.",
        "All other figures of these nodes: baseline.",
    ]
    Page(render_html(report))
    assert COMMAND in render_markdown(report)


lists = st.lists(st.sampled_from(["pi1", 3, "", None]))
odd = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=4) | lists
settings_of_runs = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["planned", "even"]) | odd,
        "placement": st.sampled_from(["rpc", "tensor", "replica"]) | odd,
        "nodes": st.lists(st.sampled_from(["pi1", "pi2", "pi.3"]), max_size=4) | odd,
        "layers": st.dictionaries(st.sampled_from(["pi1", "pi2", "pi.3"]), st.integers(0, 40) | odd) | odd,
        "logits": st.sampled_from(["head", "worker"]) | odd,
        "link": st.sampled_from(["", "100 Mbit/s", "0 Mbit/s", "+1 ms", "?"]) | odd,
        "n_prompt": odd,
        "n_gen": odd,
        "repetitions": odd,
    }
)
figures = (st.floats(-1e15, 1e15).filter(lambda number: number == 0 or abs(number) > 1e-9)) | st.integers(-9, 9)
names_of_results = st.sampled_from(
    ["decode", "prefill", "token", "network", "sent", "received", "compute_", "other"]
    + [f"{name}_{host}" for name in ("compute", "waited", "sent", "received", "rtt") for host in ("pi1", "pi2", "pi.3")]
    + ["interface_sent_pi1", "messages_pi2", "retransmitted_pi2"]
)
units = st.sampled_from(["ms", "B", "tok/s", "?"])
metrics = st.builds(value, figures, units) | st.builds(
    lambda number, unit, sd: mean(number, unit, 0.0) | {"sd": sd}, figures, units, st.none() | st.floats(1e-9, 1e9)
)


@st.composite
def any_run(draw: Any) -> Record:
    told_ = partial(
        kind="token_time",
        engine={**LLAMA_CPP, "name": draw(st.sampled_from(["llama.cpp", "distributed-llama"]))},
        model=draw(st.none() | st.just(MODEL)),
        params=draw(settings_of_runs),
        result=draw(st.dictionaries(names_of_results, metrics, min_size=1, max_size=12)),
        conditions__notes=draw(st.lists(st.sampled_from(["emulation", "x"]), max_size=1)),
    )
    return complete(told_, draw(st.sampled_from(["pi1", "pi2"])), None)


PAIRS = [pair("pi1", "pi2"), pair("pi2", "pi1", 0.0), pair("pi.3", "pi1")]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_run(), max_size=6),
    st.lists(st.sampled_from([*PAIRS, *single("pi1")]), max_size=4),
    st.lists(partials, max_size=2),
)
def test_no_record_ends_in_a_traceback_or_a_broken_page(runs: list[Any], others: list[Any], wild: list[Any]) -> None:
    report = told([*runs, *others, *(complete(each, "pi1", None) for each in wild)])
    Page(render_html(report))
    render_markdown(report)
    assert report.summary


def test_a_record_without_its_parts_has_no_bar_and_no_sentence_about_them() -> None:
    bare = run("planned", "rpc", {"pi1": 18, "pi2": 18}, {"decode": mean(4.0, "tok/s")})
    report = told([bare])
    assert sentence(report, "Fastest")
    assert not [each for each in sentences(report) if each.startswith(("Where", "Busiest"))]
    assert "svg" in {tag for tag, _ in Page(render_html(report)).elements}  # Of the decode, not of the token.


def test_a_time_in_another_unit_is_not_taken_for_milliseconds() -> None:
    record = pipeline("planned", {"pi1": 18, "pi2": 18})
    found, known = shown(edited(record, result__compute_pi1=value(0.1, "s")))
    assert [part.key for part in found.parts(known) if part.key == OTHER]
    assert "computing on pi1" not in [part.key.name for part in found.parts(known)]
    assert WIRE not in [part.key for part in found.parts(known)]


# --- The command


def kept(directory: Path, records: Iterable[Record]) -> Path:
    for record in records:
        append(directory / "measured", record, "kept")
    return directory


def test_the_command_writes_pages_that_link_to_each_other(tmp_path: Path) -> None:
    inventory = kept(tmp_path / "pi", everything())
    written = write_report(inventory)
    assert written.html.name == "baseline.html"
    report = inventory / "report"
    names = ["baseline.html", "baseline.md", "network.html", "network.md"]
    assert sorted(path.name for path in report.iterdir()) == names
    for one, other in (("baseline", "network"), ("network", "baseline")):
        assert f'href="{other}.html"' in (report / f"{one}.html").read_text()
        assert f"({other}.md)" in (report / f"{one}.md").read_text()
    again = write_report(inventory, network=True)
    assert (again.html.name, again.markdown.name, again.changed) == ("network.html", "network.md", False)
    assert "Network profile of pi" in again.report.title


def test_the_page_is_written_when_it_is_asked_for(tmp_path: Path) -> None:
    inventory = kept(tmp_path / "pi", [pair("pi1", "pi2")])
    write_report(inventory)
    assert sorted(path.name for path in (inventory / "report").iterdir()) == ["baseline.html", "baseline.md"]
    assert COMMAND in write_report(inventory, network=True).html.read_text()


def test_the_baseline_links_to_the_page_and_leaves_its_records_to_it() -> None:
    records = everything()
    others = [record for record in records if record["kind"] != "token_time"]
    whole, rest = (build({"pi1": found}, generated_at=NOW) for found in (records, others))
    assert whole.sections == rest.sections
    assert whole.used == rest.used
    assert plain(whole.summary[-1].text) == "Network profile: where the time of a generated token goes, by strategy."
    assert whole.summary[:-1] == rest.summary
