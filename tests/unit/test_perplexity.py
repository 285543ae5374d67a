from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import perplexity as p
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.bramble.llama_bench import BenchError, Execute, Finished
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import llama_perplexity as module

# What llama-perplexity of llama.cpp 0c1e57098 prints for five chunks, on its two channels.
STDOUT = "0.00 minutes\n[1]16232.5901,[2]16873.1270,[3]14239.4337,[4]11044.9473,[5]10399.9345,\n\n"
STDERR = """\
0.00.039.237 I system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 |\u0020
0.00.039.243 I perplexity: tokenizing the input ..
0.00.043.854 I perplexity: calculating perplexity over 5 chunks, n_ctx=128, batch_size=128, n_seq=1
0.00.153.767 I perplexity: 0.11 seconds per pass - ETA 0.00.657.120 I Final estimate: PPL = 10399.9345 +/- 1620.52276
"""
SHORT = """\
E perplexity: you need at least 1024 tokens to evaluate perplexity with a context of 512
E perplexity: the data file you provided tokenizes to only 32 tokens
"""


def test_the_estimate_is_read_from_both_channels() -> None:
    expected = p.Estimate(10399.9345, 1620.52276, 5)
    assert p.parse_estimate(f"{STDOUT}\n{STDERR}") == expected
    assert p.parse_estimate(STDERR.replace("\n", "\r\n")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "gave no final estimate"),
        (STDOUT, "gave no final estimate"),
        (STDERR[: STDERR.index("Final")] + "Final estimate: PPL = 10", "gave no final estimate"),
        (STDERR.replace("10399.9345 +/- 1620.52276", "nan +/- nan"), "gave no usable number"),
        (STDERR.replace("10399.9345 +/- 1620.52276", "inf +/- 0.1"), "gave no usable number"),
        (STDERR.replace("10399.9345 +/- 1620.52276", "0.2 +/- 0.1"), "gave no usable number"),
        (STDERR.replace("10399.9345 +/- 1620.52276", "5.0 +/- -0.1"), "gave no usable number"),
        (STDERR.replace("over 5 chunks", "over 0 chunks"), "gave no usable number"),
        (STDERR.replace("Final estimate", "Unexpected negative standard deviation"), "gave no final estimate"),
        (SHORT, "corpus: too short: llama-perplexity needs 1024 tokens"),
    ],
)
def test_output_without_an_estimate_is_refused(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        p.parse_estimate(text)


FRAGMENTS = ["Final estimate: PPL = ", "1.5", " +/- ", "nan", "calculating perplexity over ", "5", " chunks", "\n", "²"]


@given(st.text() | st.lists(st.sampled_from(FRAGMENTS)).map("".join))
def test_any_output_ends_in_an_estimate_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(BenchError):
        assert math.isfinite(p.parse_estimate(text).perplexity)


def test_the_standard_error_can_be_had_back_from_the_figure() -> None:
    figure = p.figure(p.Estimate(12.5, 0.4, 16))
    assert figure == {"mean": 12.5, "sd": pytest.approx(1.6), "n": 16, "unit": "ppl"}
    assert figure["sd"] / math.sqrt(figure["n"]) == pytest.approx(0.4)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    release = tmp_path / "0c1e57098-aa"
    (release / "bin").mkdir(parents=True)
    (release / "build.json").write_text(json.dumps({"commit": "0c1e57098", "key": "0c1e57098-aa"}))
    paths = {
        "program": release / "bin/llama-perplexity",
        "model": tmp_path / "m.gguf",
        "corpus": tmp_path / "prose.txt",
    }
    for path in paths.values():
        path.write_text("#!/bin/sh\nexit 0\n")
        path.chmod(0o755)
    return paths


def measure(files: dict[str, Path], execute: Execute, **options: Any) -> tuple[dict[str, Any], str]:
    node = Node(run=lambda _: (127, ""), sysfs=Path("/none"), device_tree=Path("/none"), root=Path("/none"))
    defaults = {"context": 128, "chunks": 5, "threads": 4, "limit": 60, "allow_few": False, "node": node}
    return p.measure(**files, **(defaults | options), execute=execute)


def printing(stdout: str, stderr: str, code: int | None = 0) -> tuple[Execute, list[Sequence[str]]]:
    commands: list[Sequence[str]] = []

    def execute(command: Sequence[str], _limit: float) -> Finished:
        commands.append(command)
        return Finished(code, stdout, stderr)

    return execute, commands


def test_the_record(files: dict[str, Path]) -> None:
    execute, commands = printing(STDOUT, STDERR)
    record, log = measure(files, execute)
    assert record["kind"] == "perplexity"
    assert record["engine"]["build_key"] == "0c1e57098-aa"
    assert record["model"]["name"] == "m"
    assert record["params"] == {"corpus": "prose.txt", "context": 128, "chunks": 5}
    assert record["result"]["perplexity"]["mean"] == 10399.9345
    assert record["conditions"]["power_w"] is None
    command = f"{files['program']} -m {files['model']} -f {files['corpus']} -c 128 --chunks 5 -t 4 -b 128"
    assert [" ".join(words) for words in commands] == [command]
    assert "Final estimate" in log


def test_a_run_whose_last_lines_got_lost_is_repeated(files: dict[str, Path]) -> None:
    """Seen with the real program under load: it ended with 0 in the middle of its log."""
    cut = "calculating perplexity over 5 chunks, n_ctx=128\n0.01.058.072 I perplexity: 1.00 seconds per pass - ETA "
    answers = [Finished(0, "[1]3433.0162,", cut), Finished(0, STDOUT, STDERR)]
    record, _ = measure(files, lambda _command, _limit: answers.pop(0))
    assert record["result"]["perplexity"]["mean"] == 10399.9345
    execute, commands = printing("", cut)
    with pytest.raises(p.BenchError, match="no final estimate"):
        measure(files, execute)
    assert len(commands) == p.ATTEMPTS


def test_a_shorter_text_is_taken_whole(files: dict[str, Path]) -> None:
    record, _ = measure(files, printing(STDOUT, STDERR)[0], chunks=20)
    assert record["params"]["chunks"] == 5


@pytest.mark.parametrize(
    ("options", "stderr", "message"),
    [
        ({"chunks": 4}, STDERR, "chunks: a figure is of 5 or more, not of 4; allow_few"),
        ({"chunks": 20}, STDERR.replace("over 5", "over 3"), "corpus: it has fewer chunks.*not of 3; allow_few"),
        ({"context": 0}, STDERR, "context: must be 1 or more"),
        ({}, SHORT, "corpus: too short.*Its last words: E perplexity: you need at least"),
        ({}, "", "gave no final estimate. Its last words: none"),
    ],
)
def test_what_is_no_measurement_is_refused(
    files: dict[str, Path], options: dict[str, Any], stderr: str, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        measure(files, printing("", stderr)[0], **options)


@pytest.mark.parametrize(("code", "message"), [(1, "failed with code 1"), (None, "timeout"), (-9, "often memory")])
def test_a_program_that_fails_is_an_error(files: dict[str, Path], code: int | None, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        measure(files, printing("", "words", code)[0])


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_module_measures(capsys: pytest.CaptureFixture[str], files: dict[str, Path]) -> None:
    files["program"].write_text(f"#!/bin/sh\ncat <<'END' >&2\n{STDERR}END\n")
    result = call(capsys, **{name: str(path) for name, path in files.items()})
    assert result["records"][0]["result"]["perplexity"]["n"] == 5
    assert result["changed"] is False
    assert len(result["raw"]) == 1


def test_check_mode_measures_nothing_and_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, program="/none", model="/none", corpus="/none", _ansible_check_mode=True)
    assert (result["changed"], result["records"], result["raw"]) == (False, [], [])


@pytest.mark.parametrize("missing", ["program", "model", "corpus"])
def test_the_module_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], files: dict[str, Path], missing: str
) -> None:
    files[missing].unlink()
    result = call(capsys, **{name: str(path) for name, path in files.items()})
    assert result["failed"] is True
    assert result["msg"].startswith(f"{missing}: {files[missing]} ")
