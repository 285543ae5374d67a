"""How well a model predicts a text, measured by llama-perplexity. Standard library only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .conditions import Node, Observation
from .llama_bench import (
    BenchError,
    Execute,
    Finished,
    execute,
    last_words,
    raw_log,
    read_engine,
    read_model,
    require_enough,
    require_success,
)

NUMBER = r"(-?(?:\d{1,30}(?:\.\d{1,30})?|nan|inf))"

# Runs of llama-perplexity until one says what it found.
ATTEMPTS = 3


@dataclass(frozen=True)
class Estimate:
    """A perplexity, its standard error, and the number of chunks that it is of."""

    perplexity: float
    error: float
    chunks: int


def parse_estimate(text: str) -> Estimate:
    """What llama-perplexity printed, on both of its channels.

    ``Final estimate: PPL = 11.5 +/- 0.2``: behind +/- stands the standard error of the estimate (perplexity.cpp).
    Raises BenchError, with the reason that it gives, if there is no estimate.
    """
    needed = re.search(r"you need at least (\d{1,9}) tokens", text, re.ASCII)
    if needed:
        raise BenchError(f"corpus: too short: llama-perplexity needs {needed[1]} tokens, twice the context")
    found = re.search(rf"Final estimate: PPL = {NUMBER} \+/- {NUMBER}\s", text + "\n", re.ASCII)
    chunks = re.search(r"calculating perplexity over (\d{1,9}) chunks", text, re.ASCII)
    if not found or not chunks:
        raise BenchError("llama-perplexity gave no final estimate")
    perplexity, error = float(found[1]), float(found[2])
    # By definition it is 1 or more; infinite or no number where the model gave a token no probability.
    if not (1 <= perplexity < math.inf and 0 <= error < math.inf) or int(chunks[1]) < 1:
        raise BenchError(f"llama-perplexity gave no usable number: {found[0].strip()} over {chunks[1]} chunks")
    return Estimate(perplexity, error, int(chunks[1]))


def figure(estimate: Estimate) -> dict[str, Any]:
    """The record's ``perplexity``. A chunk is one sample, so sd/sqrt(n) is the standard error."""
    spread = estimate.error * math.sqrt(estimate.chunks)
    return {"mean": estimate.perplexity, "sd": spread, "n": estimate.chunks, "unit": "ppl"}


def measure(
    program: Path,
    model: Path,
    corpus: Path,
    *,
    context: int,
    chunks: int,
    threads: int,
    limit: float,
    allow_few: bool,
    node: Node,
    execute: Execute = execute,
) -> tuple[dict[str, Any], str]:
    """The record (without host, id, schema and raw) and the log. Raises BenchError."""
    for name, value in (("context", context), ("threads", threads)):
        if value < 1:
            raise BenchError(f"{name}: must be 1 or more, not {value}")
    require_enough(chunks, "chunks", allow_few)
    if not program.is_file():
        raise BenchError(f"program: {program} is not there: the role llama_cpp builds it (llama_cpp_targets)")
    if not corpus.is_file() or corpus.stat().st_size == 0:
        raise BenchError(f"corpus: {corpus} is not there or is empty")
    facts, engine = read_model(model), read_engine(program)
    program = program.resolve()
    numbers = {"-c": context, "--chunks": chunks, "-t": threads}
    # A batch of one context: the default computes four at once, and keeps all of their logits in memory.
    numbers["-b"] = context
    command = [str(program), "-m", str(model), "-f", str(corpus)]
    command += [word for key, value in numbers.items() for word in (key, str(value))]
    # Its log is written by another thread. At times the program ends, with 0, before that has written the last lines.
    for _ in range(ATTEMPTS):
        with Observation(node, node.load()) as seen:
            finished = execute(command, limit)
        require_success(finished, program.name, limit)
        said = finished.stdout + finished.stderr
        if "Final estimate" in said or "calculating perplexity" not in said:
            break
    estimate = usable(finished, chunks, allow_few)
    record = {
        "started_at": seen.started_at,
        "kind": "perplexity",
        "engine": engine,
        "model": facts,
        "params": {"corpus": corpus.name, "context": context, "chunks": estimate.chunks},
        "result": {"perplexity": figure(estimate)},
        "conditions": seen.conditions((), finished.cpu_s),
        "duration_s": seen.duration_s,
    }
    return record, raw_log(command, finished)


def usable(finished: Finished, chunks: int, allow_few: bool) -> Estimate:
    """The estimate, of the chunks that were asked for or all that a shorter text has. Raises BenchError."""
    try:
        estimate = parse_estimate(f"{finished.stdout}\n{finished.stderr}")
    except BenchError as error:
        raise BenchError(f"{error}. Its last words: {last_words(finished.stderr) or 'none'}") from None
    if estimate.chunks < chunks:
        require_enough(estimate.chunks, "corpus: it has fewer chunks than were asked for", allow_few)
    return estimate
