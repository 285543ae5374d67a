from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.bramble import llama_bench as lb
from ansible.module_utils.bramble.conditions import Node
from ansible.module_utils.testing import patch_module_args
from hypothesis import given
from hypothesis import strategies as st

import llama_bench as module

# What `llama-bench -o json -t 2 -p 64 -n 16 -d 32 -r 5` of llama.cpp 0c1e57098 prints for a test of the prompt.
PREFILL = """\
  {
    "build_commit": "0c1e57098",
    "build_number": 0,
    "cpu_info": "Cortex-A76",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "/var/lib/bramble/models/m.gguf",
    "model_type": "qwen2 3B Q4_K - Medium",
    "model_size": 67341312,
    "model_n_params": 63326976,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 2,
    "cpu_mask": "0x0",
    "cpu_strict": false,
    "poll": 50,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": -1,
    "n_cpu_moe": 0,
    "split_mode": "layer",
    "main_gpu": 0,
    "no_kv_offload": false,
    "flash_attn": -1,
    "devices": "auto",
    "tensor_split": "0.00",
    "tensor_buft_overrides": "none",
    "load_mode": "auto",
    "lazy_mode": "auto",
    "embeddings": false,
    "no_op_offload": 0,
    "no_host": false,
    "repack": true,
    "fit_target": 0,
    "fit_min_ctx": 0,
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 32,
    "test_time": "2026-11-21T12:12:23Z",
    "avg_ns": 66172130,
    "stddev_ns": 4206290,
    "avg_ts": 12.000000,
    "stddev_ts": 1.581139,
    "samples_ns": [ 67413281, 62114920, 71300433, 60922101, 69109915 ],
    "samples_ts": [ 10, 11, 12, 13, 14 ]
  }"""
DECODE = (
    PREFILL.replace('"n_prompt": 64', '"n_prompt": 0')
    .replace('"n_gen": 0', '"n_gen": 16')
    .replace("[ 10, 11, 12, 13, 14 ]", "[ 5, 5.5, 5, 5.5, 5 ]")
)
OUTPUT = f"[\n{PREFILL},\n{DECODE}\n]\n"
RUN = lb.BenchRun(threads=2, depth=32, n_prompt=64, n_gen=16, repetitions=5)

# An emulation of llama-bench: one test for each of -p and -n, n tokens a second for repetition n, its log on stderr.
EMULATION = """\
import json, os, sys, time
options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
if os.path.exists(options["-m"] + ".hang"):
    open(options["-m"] + ".pid", "w").write(str(os.getpid()))
    time.sleep(600)
print("loading", options["-m"], file=sys.stderr)
if options["-d"] == "666":
    print("llama_bench: error: failed to create context", file=sys.stderr)
    sys.exit(1)
common = {"build_commit": "0c1e57098", "model_type": "llama ?B Q8_0"}
common |= {"n_threads": int(options["-t"]), "n_depth": int(options["-d"])}
tests = [common | {"n_prompt": p, "n_gen": n, "samples_ts": [float(i + 1) for i in range(int(options["-r"]))]}
         for p, n in ((int(options["-p"]), 0), (0, int(options["-n"]))) if p + n]
print(json.dumps(tests))
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The emulation, installed as the role llama_cpp installs a release."""
    release = tmp_path / "opt/0c1e57098-aa"
    (release / "bin").mkdir(parents=True)
    (release / "build.json").write_text(json.dumps({"commit": "0c1e57098", "key": "0c1e57098-aa"}))
    path = release / "bin/llama-bench"
    path.write_text(f"#!{sys.executable}\n{EMULATION}")
    path.chmod(0o755)
    (tmp_path / "opt/current").symlink_to("0c1e57098-aa")
    return tmp_path / "opt/current/bin/llama-bench"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-q8_0.gguf"
    path.write_bytes(b"GGUF" * 10)
    facts = {"name": "tiny-q8_0", "sha256": "ab" * 32, "bytes": 40, "quantization": "Q8_0"}
    path.with_suffix(".json").write_text(json.dumps(facts))
    return path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(run=lambda _: (127, ""), sysfs=tmp_path, device_tree=tmp_path, root=tmp_path)


def call(capsys: pytest.CaptureFixture[str], **arguments: Any) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


# The output.


@pytest.mark.parametrize(
    "text",
    [
        OUTPUT,
        f"warning: asserts enabled\n[1] a line that begins like a list\n{OUTPUT}",
        f"{OUTPUT}llama_perf: done [12]\n",
        json.dumps(json.loads(OUTPUT)),
        OUTPUT.replace("12.000000", "nan").replace("1.581139", "-nan").replace("66172130", "inf"),
        OUTPUT.replace("12.000000", "NaN"),
    ],
)
def test_figures_are_of_the_samples(text: str) -> None:
    result = lb.figures(lb.parse_output(text), RUN)
    assert result["prefill"] == {"mean": 12.0, "sd": pytest.approx(1.5811388), "n": 5, "unit": "tok/s"}
    assert result["decode"] == {"mean": pytest.approx(5.2), "sd": pytest.approx(0.2738613), "n": 5, "unit": "tok/s"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "printed no JSON list"),
        ("error: unknown argument\n", "printed no JSON list"),
        ('{"n_prompt": 1}', "printed no JSON list"),
        ("[\n", "ends in the middle"),
        (OUTPUT[:-60], "ends in the middle"),
        ("[\n]\n", "holds no test"),
        ("[ 1, 2 ]", "printed no JSON list"),
    ],
)
def test_output_without_tests_is_refused(text: str, message: str) -> None:
    with pytest.raises(lb.BenchError, match=message):
        lb.parse_output(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"n_depth": 32', '"n_depth": 0', "lacks the test of prefill .n_prompt 64, n_gen 0, n_depth 32, n_threads 2"),
        ("[ 10, 11, 12, 13, 14 ]", "[ 10, 11 ]", "repeated prefill 2 times and not 5 times"),
        ("[ 10, 11, 12, 13, 14 ]", "[ 10, nan, 12, 13, 14 ]", "gave None among its samples"),
        ("[ 10, 11, 12, 13, 14 ]", "[ 10, inf, 12, 13, 14 ]", "gave None among its samples"),
        ("[ 10, 11, 12, 13, 14 ]", "[ 10, 1e999, 12, 13, 14 ]", "gave inf among its samples"),
        ("[ 10, 11, 12, 13, 14 ]", "[ 10, 0, 12, 13, 14 ]", "gave 0 among its samples"),
        ("[ 10, 11, 12, 13, 14 ]", '[ "10", 0, 12, 13, 14 ]', "gave '10' among its samples"),
        ("[ 10, 11, 12, 13, 14 ]", "[ ]", "gave no samples_ts"),
        ("[ 10, 11, 12, 13, 14 ]", "7", "gave no samples_ts"),
    ],
)
def test_tests_without_figures_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(lb.BenchError, match=message):
        lb.figures(lb.parse_output(OUTPUT.replace(old, new)), RUN)


@given(
    st.text()
    | st.lists(st.sampled_from(['[\n{"samples_ts": [1', "]", "}", "[", "{", "nan", ",", "\n", '"', ": ", "1e999"])).map(
        "".join
    )
)
def test_any_output_ends_in_tests_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(lb.BenchError):
        lb.figures(lb.parse_output(text), RUN)


@given(st.integers(0, len(OUTPUT) - 4))
def test_output_that_was_cut_off_is_never_taken(length: int) -> None:
    with pytest.raises(lb.BenchError):
        lb.parse_output(OUTPUT[:length])


def test_deep_nesting_is_no_traceback() -> None:
    with pytest.raises(lb.BenchError):
        lb.parse_output("[\n" * 100_000)


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [
        ("qwen2 3B Q4_K - Medium", "Q4_K_M"),
        ("llama 8B Q5_K - Small", "Q5_K_S"),
        ("llama ?B Q8_0", "Q8_0"),
        ("llama 1B F16", "F16"),
        ("llama 8B IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
        ("qwen2 3B Q4_K - Medium (guessed)", "Q4_K_M"),
        ("gpt-oss 20B MXFP4 MoE", None),
        ("", None),
    ],
)
def test_parse_quant(model_type: str, expected: str | None) -> None:
    assert lb.parse_quant(model_type) == expected


# The plan.


def test_each_number_of_threads_and_depth_is_one_run() -> None:
    runs = lb.plan([4, 2, 4], [0, 512], 512, 128, 5, False)
    assert [(run.threads, run.depth) for run in runs] == [(4, 0), (4, 512), (2, 0), (2, 512)]
    command = "llama-bench -o json -m m.gguf -t 4 -p 512 -n 128 -d 0 -r 5"
    assert runs[0].command("llama-bench", "m.gguf") == command.split()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0], 512, 128, 5, False), "threads: must be 1 or more"),
        (([], [0], 512, 128, 5, False), "threads: must be 1 or more"),
        (([4], [-1], 512, 128, 5, False), "depths: must be 0 or more"),
        (([4], [0], -1, 128, 5, False), "n_prompt: must be 0 or more"),
        (([4], [0], 0, 0, 5, False), "n_prompt and n_gen: both are 0"),
        (([4], [0], 512, 128, 4, False), "repetitions: a figure is of 5 or more, not of 4; allow_few"),
        (([4], [0], 512, 128, 0, True), "repetitions: a figure is of 1 or more, not of 0"),
    ],
)
def test_what_is_no_measurement_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(lb.BenchError, match=message):
        lb.plan(*arguments)


def test_threads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert lb.physical_cores(tmp_path) == 8
    for cpu in range(8):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{cpu // 2}\n")
    assert lb.physical_cores(tmp_path) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert lb.physical_cores(tmp_path) == 2


# Running it.


def test_each_run_gives_a_record_and_its_log(program: Path, model: Path, node: Node) -> None:
    runs = lb.plan([1, 2], [0, 8], 64, 16, 5, False)
    measured = list(lb.measure(program, model, runs, 60, node))
    assert [(record["params"]["threads"], record["params"]["depth"]) for record, _ in measured] == [
        (1, 0),
        (1, 8),
        (2, 0),
        (2, 8),
    ]
    record, log = measured[1]
    assert set(record) == {"started_at", "kind", "engine", "model", "params", "result", "conditions", "duration_s"}
    assert record["kind"] == "llama_bench"
    assert record["engine"] == {
        "name": "llama.cpp",
        "commit": "0c1e57098",
        "build_key": "0c1e57098-aa",
        "version": None,
    }
    assert record["model"] == {"name": "tiny-q8_0", "sha256": "ab" * 32, "quant": "Q8_0", "bytes": 40}
    assert record["params"] == {"threads": 1, "n_prompt": 64, "n_gen": 16, "depth": 8, "repetitions": 5}
    assert record["result"]["decode"] == {"mean": 3.0, "sd": pytest.approx(1.5811388), "n": 5, "unit": "tok/s"}
    assert record["conditions"]["notes"] == []
    assert log.startswith(f"$ {program.resolve()} -o json -m {model} -t 1 ")
    assert "samples_ts" in log
    assert f"loading {model}" in log


def test_a_test_that_was_not_asked_for_is_not_in_the_result(program: Path, model: Path, node: Node) -> None:
    [(record, _)] = lb.measure(program, model, lb.plan([1], [0], 0, 16, 5, False), 60, node)
    assert set(record["result"]) == {"decode"}


def test_facts_of_another_file_are_not_taken(program: Path, model: Path, node: Node) -> None:
    model.write_bytes(b"GGUF")
    [(record, _)] = lb.measure(program, model, lb.plan([1], [0], 0, 16, 5, False), 60, node)
    # The quantisation is what llama-bench itself says.
    assert record["model"] == {"name": "tiny-q8_0", "sha256": None, "quant": "Q8_0", "bytes": 4}


def test_a_build_that_is_not_the_stamped_one_is_noted(program: Path, model: Path, node: Node) -> None:
    (program.parents[1] / "build.json").write_text(json.dumps({"commit": "fffffffff", "key": "fffffffff-aa"}))
    [(record, _)] = lb.measure(program, model, lb.plan([1], [0], 0, 16, 5, False), 60, node)
    assert record["engine"]["commit"] == "0c1e57098"
    assert record["conditions"]["notes"] == ["the program says commit 0c1e57098, its build.json fffffffff"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"commit": 7, "key": null}'])
def test_a_stamp_that_says_nothing_is_no_failure(program: Path, model: Path, node: Node, content: str) -> None:
    (program.parents[1] / "build.json").write_text(content)
    [(record, _)] = lb.measure(program, model, lb.plan([1], [0], 0, 16, 5, False), 60, node)
    assert record["engine"]["commit"] == "0c1e57098"
    assert record["engine"]["build_key"] is None


def finishing(**fields: Any) -> lb.Execute:
    def run(_command: Sequence[str], _limit: float) -> lb.Finished:
        return lb.Finished(**({"code": 0, "stdout": "", "stderr": ""} | fields))

    return run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"code": 1, "stderr": "a\n\nfailed to load model\n"},
            "failed with code 1. Its last words: a / failed to load model",
        ),
        ({"code": 1, "stdout": "usage"}, "failed with code 1. Its last words: usage"),
        ({"code": 1}, "failed with code 1. Its last words: it said nothing"),
        ({"code": None, "stderr": "warming up"}, r"stopped after 60 s \(timeout\).* Its last words: warming up"),
        ({"code": -signal.SIGKILL}, r"signal 9 \(often memory"),
        ({"code": -signal.SIGILL}, r"signal 4 \(the build is for another processor"),
        ({"code": -signal.SIGTERM}, "signal 15. Its"),
        ({"stderr": "out of memory"}, "printed no JSON list. Its last words: out of memory"),
        ({"stdout": OUTPUT[:300], "stderr": "x" * 5000}, "ends in the middle.*…x{600}$"),
    ],
)
def test_failures_name_their_cause(program: Path, model: Path, node: Node, fields: Any, message: str) -> None:
    with pytest.raises(lb.BenchError, match=message):
        list(lb.measure(program, model, [RUN], 60, node, finishing(**fields)))


def test_the_program_does_not_outlive_its_time(program: Path, model: Path, node: Node) -> None:
    Path(f"{model}.hang").touch()
    with pytest.raises(lb.BenchError, match="was stopped after 2 s"):
        list(lb.measure(program, model, [RUN], 2, node))
    pid = int(Path(f"{model}.pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_program_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "no-program"
    path.write_text("x")
    with pytest.raises(lb.BenchError, match="cannot be started"):
        lb.execute([str(path)], 1)


def test_processor_time_of_the_program_is_known() -> None:
    begin = time.monotonic()
    done = lb.execute([sys.executable, "-c", "print(sum(range(3_000_000)))"], 60)
    assert done.code == 0
    assert 0 < done.cpu_s <= 2 * (time.monotonic() - begin)
    assert done.stdout == "4499998500000\n"


# The module.


def test_the_module_returns_records_and_logs(capsys: pytest.CaptureFixture[str], program: Path, model: Path) -> None:
    result = call(capsys, program=str(program), model=str(model), threads=[1], depths=[0, 8], n_prompt=4, n_gen=4)
    assert result["changed"] is False
    assert [record["params"]["depth"] for record in result["records"]] == [0, 8]
    assert len(result["raw"]) == 2


def test_one_thread_a_physical_core_is_the_default(
    capsys: pytest.CaptureFixture[str], program: Path, model: Path
) -> None:
    result = call(capsys, program=str(program), model=str(model))
    assert result["records"][0]["params"]["threads"] == lb.physical_cores(Path("/sys"))


def test_what_was_measured_before_a_failure_is_returned(
    capsys: pytest.CaptureFixture[str], program: Path, model: Path
) -> None:
    result = call(capsys, program=str(program), model=str(model), threads=[1], depths=[0, 666])
    assert result["failed"] is True
    assert "failed to create context" in result["msg"]
    assert [record["params"]["depth"] for record in result["records"]] == [0]
    assert len(result["raw"]) == 1


def test_check_mode_measures_nothing_and_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, program="/none", model="/none", _ansible_check_mode=True)
    assert (result["changed"], result["records"], result["raw"]) == (False, [], [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"program": "/none"}, "program: /none is not there: the role llama_cpp builds it"),
        ({"model": "/none.gguf"}, r"model: /none.gguf cannot be read \(No such file or directory\)"),
        ({"repetitions": 3}, "repetitions: a figure is of 5 or more"),
    ],
)
def test_the_module_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], program: Path, model: Path, arguments: dict[str, Any], message: str
) -> None:
    result = call(capsys, **({"program": str(program), "model": str(model)} | arguments))
    assert result["failed"] is True
    assert re.search(message, result["msg"])
    assert "Traceback" not in result["msg"]
