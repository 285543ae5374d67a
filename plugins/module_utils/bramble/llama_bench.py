"""The speed of a model on this node's processor, measured by llama-bench. Standard library only.

Parsers and the assembly of records are pure; what runs a program is passed in.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conditions import Node, Observation
from .statistics import deviation, mean

LEAST_REPETITIONS = 5  # fewer give no standard deviation worth the name
LAST_WORDS = 600  # characters of a program's log that an error quotes


class BenchError(Exception):
    """There is no figure; the message says where, why, and what to do."""


@dataclass(frozen=True)
class Finished:
    """A program that has ended. ``code`` is None when it was killed for taking too long, -N when signal N ended it.

    ``cpu_s``: seconds of processor time that it used.
    """

    code: int | None
    stdout: str
    stderr: str
    cpu_s: float = 0.0


# Runs a program for so many seconds at most. Raises BenchError if it cannot be started.
Execute = Callable[[Sequence[str], float], Finished]


def execute(command: Sequence[str], limit: float) -> Finished:
    """An :data:`Execute`. The program never outlives this call, however it ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Files and not pipes: a program that writes much must not wait for a reader.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except (OSError, ValueError) as error:
            raise BenchError(f"{command[0]} cannot be started: {error}") from error
        code: int | None
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        out.seek(0)
        err.seek(0)
        output, log = (file.read().decode(errors="replace") for file in (out, err))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Finished(code, output, log, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def last_words(text: str) -> str:
    """The end of a log, on one line, for an error."""
    words = " / ".join(line.strip() for line in text.splitlines() if line.strip())
    return words if len(words) <= LAST_WORDS else "…" + words[-LAST_WORDS:]


def require_success(finished: Finished, program: str, limit: float) -> None:
    """Raises BenchError, with the program's last words, if it did not end well."""
    words = last_words(finished.stderr) or last_words(finished.stdout) or "it said nothing"
    if finished.code is None:
        raise BenchError(
            f"{program} was stopped after {limit:g} s (timeout). Allow it more time, or ask for less: a smaller model, "
            f"fewer tokens, less depth. Its last words: {words}"
        )
    if finished.code < 0:
        advices: dict[int, str] = {
            signal.SIGKILL: "often memory: a smaller model or less depth",
            signal.SIGILL: "the build is for another processor: see llama_cpp_cpu_target",
        }
        advice = advices.get(-finished.code)
        raise BenchError(
            f"{program} was ended by signal {-finished.code}{f' ({advice})' if advice else ''}. Its last words: {words}"
        )
    if finished.code != 0:
        raise BenchError(f"{program} failed with code {finished.code}. Its last words: {words}")


# The node's files.


def physical_cores(sysfs: Path) -> int:
    """Cores that this process may use, two threads of one core counted once. One thread each is llama.cpp's best."""
    usable = len(os.sched_getaffinity(0))
    cores = set()
    for topology in sysfs.glob("devices/system/cpu/cpu[0-9]*/topology"):
        try:
            cores.add((topology.joinpath("physical_package_id").read_text(), topology.joinpath("core_id").read_text()))
        except OSError:
            return usable
    return max(1, min(len(cores) or usable, usable))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file; an empty one if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def read_engine(program: Path) -> dict[str, Any]:
    """The record's ``engine`` for a program of a release of llama.cpp: what ``<release>/build.json`` says of it."""
    build = read_json(program.resolve().parent.parent / "build.json")
    return {
        "name": "llama.cpp",
        "commit": text_or_none(build.get("commit")),
        "build_key": text_or_none(build.get("key")),
        "version": None,
    }


def read_model(path: Path) -> dict[str, Any]:
    """The record's ``model``: what the model store wrote beside the file (``<name>.json``), and the file's size.

    Raises BenchError if there is no such file.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BenchError(f"model: {path} cannot be read ({error.strerror}): the model store brings it") from error
    facts = read_json(path.with_suffix(".json"))
    # Facts of another file are worse than none.
    if facts.get("bytes") != size:
        facts = {}
    return {
        "name": path.stem,
        "sha256": facts["sha256"] if is_sha256(facts.get("sha256")) else None,
        "quant": text_or_none(facts.get("quantization")),
        "bytes": size,
    }


def parse_quant(model_type: str) -> str | None:
    """llama.cpp's description of a model, ``qwen2 3B Q4_K - Medium`` → ``Q4_K_M``, as files are named."""
    found = re.search(
        r"(?:^|\s)((?:I?Q|TQ)\d\w*|B?F16|F32|MXFP4\w*)(?: - (Small|Medium|Large))?(?: - \d.*)?(?: \(guessed\))?$",
        model_type,
    )
    return found[1] + (f"_{found[2][0]}" if found[2] else "") if found else None


# llama-bench's output.


def parse_output(text: str) -> list[dict[str, Any]]:
    """What ``llama-bench -o json`` printed: one object a test. Lines of a log before and after are passed over.

    Numbers that are none (``nan``, ``inf``, as C writes them) are None. Raises BenchError if there is no such list, or
    only its beginning.
    """
    text = re.sub(
        r"(?<=[\s,\[:])-?(?:nan(?:\([^()\n]*\))?|inf(?:inity)?)(?=[\s,\]}])", "null", text, flags=re.IGNORECASE
    )
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    begun = False
    # The program's own list begins on a line of its own.
    for start in re.finditer(r"^[ \t]*\[[ \t]*(?=$|\{|\])", text, re.MULTILINE):
        begun = True
        try:
            tests, _ = decoder.raw_decode(text, text.index("[", start.start()))
        except ValueError:
            continue
        except RecursionError:
            break
        if isinstance(tests, list) and tests and all(isinstance(test, dict) for test in tests):
            return tests
    if begun:
        raise BenchError("llama-bench's output ends in the middle, or holds no test")
    raise BenchError("llama-bench printed no JSON list")


def samples(test: dict[str, Any]) -> list[float]:
    """The test's tokens per second, one a repetition. Raises BenchError if one is no positive number."""
    values = test.get("samples_ts")
    if not isinstance(values, list) or not values:
        raise BenchError("llama-bench gave no samples_ts")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise BenchError(f"llama-bench gave {value!r} among its samples of tokens per second: {values[:8]}")
    return [float(value) for value in values]


def figures(tests: Sequence[dict[str, Any]], run: BenchRun) -> dict[str, Any]:
    """The record's ``result`` for one run: ``prefill`` and ``decode`` in tok/s, those of them that were asked for.

    Raises BenchError if a test is missing, or has not as many samples as repetitions were asked for.
    """
    result: dict[str, Any] = {}
    for name, n_prompt, n_gen in (("prefill", run.n_prompt, 0), ("decode", 0, run.n_gen)):
        if n_prompt + n_gen == 0:
            continue
        wanted = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": run.depth, "n_threads": run.threads}
        found = [test for test in tests if all(test.get(key) == value for key, value in wanted.items())]
        if not found:
            named = ", ".join(f"{key} {value}" for key, value in wanted.items())
            raise BenchError(f"llama-bench's output lacks the test of {name} ({named})")
        values = samples(found[0])
        if len(values) != run.repetitions:
            raise BenchError(f"llama-bench repeated {name} {len(values)} times and not {run.repetitions} times")
        result[name] = {"mean": mean(values), "sd": deviation(values), "n": len(values), "unit": "tok/s"}
    return result


# One measurement.


@dataclass(frozen=True)
class BenchRun:
    """What one run of llama-bench measures. Tokens, and repetitions of each test."""

    threads: int
    depth: int
    n_prompt: int = 512
    n_gen: int = 128
    repetitions: int = 5

    def command(self, program: str, model: str) -> list[str]:
        """Each test is warmed up by llama-bench itself: the whole prompt once, one token once (llama-bench.cpp)."""
        numbers = {"-t": self.threads, "-p": self.n_prompt, "-n": self.n_gen, "-d": self.depth, "-r": self.repetitions}
        return [
            program,
            "-o",
            "json",
            "-m",
            model,
            *(word for key, value in numbers.items() for word in (key, str(value))),
        ]


def plan(
    threads: Sequence[int], depths: Sequence[int], n_prompt: int, n_gen: int, repetitions: int, allow_few: bool
) -> list[BenchRun]:
    """The runs, one for each number of threads and depth. Raises BenchError, which names the wrong option."""
    for name, values, least in (
        ("threads", threads, 1),
        ("depths", depths, 0),
        ("n_prompt", [n_prompt], 0),
        ("n_gen", [n_gen], 0),
    ):
        if not values or min(values) < least:
            raise BenchError(f"{name}: must be {least} or more, not {list(values)}")
    if n_prompt + n_gen == 0:
        raise BenchError("n_prompt and n_gen: both are 0, so there is nothing to measure")
    require_enough(repetitions, "repetitions", allow_few)
    unique = dict.fromkeys((count, depth) for count in threads for depth in depths)
    return [BenchRun(count, depth, n_prompt, n_gen, repetitions) for count, depth in unique]


def require_enough(count: int, option: str, allow_few: bool) -> None:
    """Raises BenchError for a figure from too few values."""
    least = 1 if allow_few else LEAST_REPETITIONS
    if count < least:
        advice = "" if allow_few else "; allow_few takes fewer, for a trial"
        raise BenchError(f"{option}: a figure is of {least} or more, not of {count}{advice}")


def measure(
    program: Path, model: Path, runs: Sequence[BenchRun], limit: float, node: Node, execute: Execute = execute
) -> Iterator[tuple[dict[str, Any], str]]:
    """Each run's record (without host, id, schema and raw) and the log of it, as it ends. Raises BenchError."""
    if not program.is_file():
        raise BenchError(f"program: {program} is not there: the role llama_cpp builds it (llama_cpp_targets)")
    facts, engine, load = read_model(model), read_engine(program), node.load()
    # What `current` leads to may change while this runs; the record must not.
    program = program.resolve()
    for run in runs:
        command = run.command(str(program), str(model))
        with Observation(node, load) as seen:
            finished = execute(command, limit)
        require_success(finished, program.name, limit)
        try:
            tests = parse_output(finished.stdout)
            result = figures(tests, run)
        except BenchError as error:
            raise BenchError(f"{error}. Its last words: {last_words(finished.stderr) or 'none'}") from None
        notes = []
        commit = text_or_none(tests[0].get("build_commit"))
        if commit and engine["commit"] and not same_commit(commit, engine["commit"]):
            notes.append(f"the program says commit {commit}, its build.json {engine['commit']}")
        record = {
            "started_at": seen.started_at,
            "kind": "llama_bench",
            "engine": engine | {"commit": commit or engine["commit"]},
            "model": facts | {"quant": facts["quant"] or parse_quant(str(tests[0].get("model_type")))},
            "params": {
                "threads": run.threads,
                "n_prompt": run.n_prompt,
                "n_gen": run.n_gen,
                "depth": run.depth,
                "repetitions": run.repetitions,
            },
            "result": result,
            "conditions": seen.conditions(notes, finished.cpu_s),
            "duration_s": seen.duration_s,
        }
        yield record, raw_log(command, finished)


def same_commit(one: str, other: str) -> bool:
    """Whether two names of a commit, one perhaps shorter, are of the same."""
    return one.startswith(other) or other.startswith(one)


def raw_log(command: Sequence[str], finished: Finished) -> str:
    """What is kept of a run beside its record."""
    return f"$ {' '.join(command)}\n{finished.stdout}\n{finished.stderr}\n"
