"""What was measured: records of every kind of every node, the commands that show them, and the report."""

from __future__ import annotations

import json
import math
import shlex
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from bramble.records import load
from browser import open_page
from lab import BIN, ROOT, Lab, run

pytestmark = pytest.mark.lab
NODES = ("pi1", "pi2", "pi3")
CPU = ("llama_bench", "http_generate", "quality", "perplexity")
HAT_PORT = 8000
MEMORY_BANDWIDTH = 17.1e9  # bytes/s, LPDDR4X-4267 of 32 bit
LONG_PROMPT = 2000  # tokens
# The report's computed figures, from a record.
DERIVED = {
    "decode_per_joule": lambda r: r["result"]["decode"]["mean"] / r["conditions"]["power_w"],
    "throughput_per_joule": lambda r: r["result"]["throughput"]["value"] / r["conditions"]["power_w"],
    "decode_bound": lambda r: MEMORY_BANDWIDTH / r["model"]["bytes"],
    "bound_share_percent": lambda r: 100 * r["result"]["decode"]["mean"] * r["model"]["bytes"] / MEMORY_BANDWIDTH,
    "long_prompt_seconds": lambda r: LONG_PROMPT / r["result"]["prefill"]["mean"],
}


@pytest.fixture(scope="module")
def records(cluster: Lab) -> list[dict[str, Any]]:
    """All records of the inventory. None is torn or was changed."""
    found, problems = load(ROOT / cluster.inventory / "measured")
    assert problems == []
    return [dict(record) for host in found.values() for record in host]


def test_every_node_has_records_of_every_kind(records: list[dict[str, Any]]) -> None:
    by_cpu = {(r["host"], r["kind"]) for r in records if r["engine"]["name"] == "llama.cpp"}
    assert by_cpu == {(node, kind) for node in NODES for kind in CPU}
    by_hat = {(r["host"], r["kind"]) for r in records if r["engine"]["name"] == "hailo-ollama"}
    assert by_hat == {("pi1", "http_generate"), ("pi1", "quality")}
    assert {r["host"] for r in records if r["kind"] == "memory"} == set(NODES)
    pairs = {tuple(sorted((r["host"], r["params"]["peer"]))) for r in records if r["kind"] == "net_pair"}
    assert pairs == set(combinations(NODES, 2))
    for record in records:
        assert any(note.startswith("emulation") for note in record["conditions"]["notes"]), record["id"]


def test_what_the_tools_printed_lies_beside_the_records(cluster: Lab, records: list[dict[str, Any]]) -> None:
    directory = ROOT / cluster.inventory / "measured"
    for record in records:
        assert record["raw"] == f"raw/{record['host']}/{record['id']}.txt"
        assert (directory / record["raw"]).stat().st_size > 0


def variable(lab: Lab, node: str) -> list[dict[str, Any]]:
    """A host's variable `measured`, now."""
    done = run(str(BIN / "ansible-inventory"), "-i", lab.inventory, "--host", node)
    assert done.returncode == 0, done.stderr
    measured: list[dict[str, Any]] = json.loads(done.stdout)["measured"]
    return measured


def test_each_host_has_its_latest_records_as_a_variable(cluster: Lab, records: list[dict[str, Any]]) -> None:
    for node in NODES:
        measured = variable(cluster, node)
        assert measured
        assert all(record in records and record["host"] == node for record in measured)
        assert {record["kind"] for record in measured} == {r["kind"] for r in records if r["host"] == node}


def test_history_lists_them(cluster: Lab, records: list[dict[str, Any]]) -> None:
    done = cluster.bramble("history", "--json")
    assert done.returncode == 0, done.stderr
    assert sorted(r["id"] for r in json.loads(done.stdout)) == sorted(r["id"] for r in records)
    one = cluster.bramble("history", "pi2", "--kind", "perplexity")
    assert (one.returncode, one.stderr) == (0, "")
    assert "perplexity" in one.stdout
    assert "llama_bench" not in one.stdout


def test_compare_tells_whether_anything_became_worse(cluster: Lab) -> None:
    done = cluster.bramble("compare", "first", "latest", "--json")
    told = json.loads(done.stdout)
    # A lab that was measured more than once may well have become slower.
    assert done.returncode == (0 if told["ok"] else 1), done.stderr
    assert {row["host"] for row in told["rows"]} == set(NODES)
    same = cluster.bramble("compare", "latest", "latest")
    assert same.returncode == 0, same.stdout + same.stderr
    assert "Nothing became worse beyond noise." in same.stdout


class Figures(HTMLParser):
    """The elements of a page that say which record they are from: (records, metric, value, text)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[list[str]] = []
        self._inside = False
        self.feed(page)
        self.close()

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._inside = "data-record" in given
        if self._inside:
            self.found.append([given["data-record"], given["data-metric"], given["data-value"], ""])

    def handle_endtag(self, _tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.found[-1][3] += data


def at(record: dict[str, Any], metric: str) -> Any:
    value: Any = record
    for key in metric.split("."):
        value = value[key]
    return value


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), written another way than the report does: the roots of a parabola."""
    square = 1.959963984540054**2
    a, b, c = 1 + square / count, -(2 * share + square / count), share**2
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_the_report_opens_and_its_numbers_are_those_of_the_records(
    cluster: Lab, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = ROOT / cluster.inventory / "report/baseline.html"
    page = open_page(path)
    assert page.console == ()
    assert page.requests == ()
    figures = Figures(page.dom).found
    assert figures == Figures(path.read_text(encoding="utf-8")).found
    by_id = {record["id"]: record for record in records}
    counted = {"direct": 0, "derived": 0}
    shown = set()
    for identity, metric, value, text in figures:
        record = by_id[identity]
        shown.add(identity)
        name = metric.removeprefix("derived.")
        if name.startswith("wilson"):
            scores = [told for key, told in record["result"].items() if key.startswith("score")]
            bounds = [bound for told in scores for bound in wilson(told["value"], told["n"])]
            assert any(math.isclose(float(value), bound, abs_tol=1e-9) for bound in bounds), (identity, metric, value)
        else:
            wanted = float(at(record, metric)) if name == metric else DERIVED[name](record)
            assert math.isclose(float(value), wanted, rel_tol=1e-12), (identity, metric, value)
        counted["direct" if name == metric else "derived"] += 1
        if text.strip():
            places = len(text.partition(".")[2])
            assert math.isclose(float(text), float(value), abs_tol=0.5 * 10**-places + 1e-12), (identity, metric, text)
    print(f"the report's numbers: {counted}, from {len(shown)} of {len(records)} records")
    assert counted["direct"] > 100
    assert counted["derived"] > 10
    # Each series' newest record is in it, and nothing that a newer one replaced.
    assert shown == {record["id"] for node in NODES for record in variable(cluster, node)}
    # The page's twin, and the picture for whoever looks.
    assert (path.with_suffix(".md")).stat().st_size > 1000
    open_page(path, screenshot=tmp_path / "baseline.png")
    assert (tmp_path / "baseline.png").stat().st_size > 10_000


def test_the_hats_llm_answers_the_gateway_and_nobody_else(cluster: Lab) -> None:
    body = {"model": "qwen2.5-instruct:1.5b", "prompt": "Hello", "stream": False, "options": {"num_predict": 4}}
    url = f"http://{cluster.address('pi1')}:{HAT_PORT}/api/generate"
    request = f"r.Request('{url}', {json.dumps(body).encode()!r}, {{'Content-Type': 'application/json'}})"
    ask = f"import urllib.request as r; print(r.urlopen({request}, timeout=30).read().decode())"
    asked = cluster.shell("pi1", f"python3 -c {shlex.quote(ask)}")
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    assert said["done"] is True
    # The stand-in's random weights may end an answer early.
    assert 0 <= said["eval_count"] <= 4
    assert said["model"] == "qwen2.5-instruct:1.5b"
    for stranger in ("outsider1", "pi2"):
        # The same words on the server's own node got an answer: it is the firewall that keeps silent.
        probe = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{cluster.address('pi1')}/{HAT_PORT}'"
        assert cluster.shell(stranger, probe).returncode == 124, stranger
