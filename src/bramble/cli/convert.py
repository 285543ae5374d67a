"""`bramble model convert`: a GGUF as distributed-llama's files, and what a catalogue wants to know of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def model_convert(
    source: Annotated[Path, typer.Argument(metavar="FILE.gguf", help="A dense model of the family llama or qwen3.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write to.")],
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Take matrices of any type, such as Q4_K, at a loss of quality.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Turn a GGUF into distributed-llama's files: NAME.m, NAME.t, and NAME.dllama.json, which tells of them.

    Matrices of Q4_0 are copied bit by bit, those of Q8_0, Q6_K, F16, BF16 and F32 quantized to it. Others are refused
    without --requantize. The same file always gives the same bytes.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    from bramble.cli.app import CliError, stderr_console
    from bramble.model import GgufError, convert

    console = stderr_console()
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("")
            report = convert(
                source,
                output,
                requantize=requantize,
                overwrite=force,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        model = report.source
        entry = {
            "name": source.stem,
            "model": {"file": report.model.path.name, "bytes": report.model.bytes, "sha256": report.model.sha256},
            "tokenizer": {
                "file": report.tokenizer.path.name,
                "bytes": report.tokenizer.bytes,
                "sha256": report.tokenizer.sha256,
            },
            "weights": report.weights,
            "family": model.architecture,
            "layers": model.layers,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "embedding": model.embedding,
            "vocabulary": model.vocabulary,
            "context": model.context,
            "parameters": model.parameters,
        }
        (output / f"{source.stem}.dllama.json").write_text(json.dumps(entry, indent=2) + "\n")
    except GgufError as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"{output} cannot be written: {error.strerror}.") from error
    for written in (report.model, report.tokenizer):
        print(f"{written.path}: {written.bytes} bytes, sha256 {written.sha256}")
    print(
        f"  {model.layers} layers, {model.kv_heads} kv heads: distributed-llama shares it among at most that many nodes"
    )
    for note in report.notes:
        print(f"  {note}")
