"""Holds the planner's memory estimates against what the engines really take.

    python tests/benchmarks/memory.py [--only NAME]

Makes models with random weights, runs the real llama-server alone and as head of one or two ggml-rpc-servers, with the
command lines of roles/llama_service and roles/rpc_worker, and dllama with one worker. Each gets one long prompt; then
/proc/PID/status says what is resident. Steady is that without those pages of the mapped model that another prompt does
not use. Of dllama's root the mapped file, which only loading needs, is left out.

Needs a build in ~/.cache/bramble/llama.cpp, which the lab makes. If that was made for a newer C library than this
machine's, the lab's image lends its own. dllama comes from ~/.cache/bramble/distributed-llama/<commit>/, or is built
from the git directory that DISTRIBUTED_LLAMA_GIT names; without either it is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import gguf
import numpy as np

from bramble.model import ModelShape, convert, parse_parameters, read_shape, synthesize, tokenizer
from bramble.plan import memory

CACHE = Path("~/.cache/bramble").expanduser()
RESULTS = Path(__file__).parent / "results"
DLLAMA_COMMIT = "8d624a7b1f9acc0855d71a32519b22fe51e0bd86"
HEAD_PORT, WORKER_PORT, DLLAMA_PORT = 18480, 18490, 18500
LONGEST_PROMPT = 768
REPACKED = memory.REPACKED_ON_AVX2 if platform.machine() == "x86_64" else memory.REPACKED_ON_PI5


@dataclass(frozen=True)
class Case:
    """One model and how it is run. `split`: layers of the head and of each worker."""

    name: str
    size: str
    layers: int
    quantization: str
    context: int
    slots: int
    split: tuple[int, ...]
    architecture: str = "llama"
    tied: bool = False
    vocabulary: int = 0
    cache_type: str = "f16"


CASES = (
    Case("30m-q8", "30M", 4, "Q8_0", 512, 1, (1, 3)),
    Case("60m-q8", "60M", 12, "Q8_0", 2048, 1, (4, 8)),
    Case("120m-f16", "120M", 6, "F16", 1024, 2, (2, 2, 2)),
    Case("200m-q4", "200M", 16, "Q4_0", 4096, 1, (4, 6, 6)),
    Case("300m-q8", "300M", 24, "Q8_0", 2048, 4, (6, 9, 9)),
    Case("400m-q4", "400M", 8, "Q4_0", 8192, 1, (3, 5)),
    Case("qwen3-200m-q8", "200M", 10, "Q8_0", 4096, 2, (4, 6), "qwen3", True),
    Case("200m-q4km-128k", "200M", 12, "Q4_K_M", 1024, 1, (6, 6), vocabulary=128256),
    Case("120m-q8-cache-q8", "120M", 12, "Q8_0", 8192, 1, (4, 8), cache_type="q8_0"),
    Case("100m-q4-128k-tied", "100M", 8, "Q4_0", 1024, 2, (4, 4), tied=True, vocabulary=128256),
)


# --- Programs


class Programs:
    """llama.cpp's programs, unpacked into `directory`."""

    def __init__(self, directory: Path) -> None:
        builds = sorted((CACHE / "llama.cpp").glob(f"build-*-{platform.machine()}.tar.gz"), key=os.path.getmtime)
        if not builds:
            sys.exit(f"There is no build of llama.cpp in {CACHE / 'llama.cpp'}: make one with `make demo`.")
        self.build = builds[-1].name
        self.directory = directory / "llama.cpp"
        with tarfile.open(builds[-1]) as archive:
            archive.extractall(self.directory, filter="data")
        self.loader: list[str] = []
        if self._fails():
            self.loader = _libraries(directory / "libraries")
            if self._fails():
                sys.exit("llama-server of that build does not start here.")

    def command(self, program: str, *arguments: object) -> list[str]:
        return ["nice", "-n", "10", *self.loader, str(self.directory / "bin" / program), *map(str, arguments)]

    def _fails(self) -> bool:
        return (
            subprocess.run(self.command("llama-server", "--version"), capture_output=True, check=False).returncode != 0
        )


def _libraries(directory: Path) -> list[str]:
    """A C library out of the newest image of a lab's node, and how to start a program with it."""
    images = sorted((CACHE / "lab").glob("node-*.tar"), key=os.path.getmtime)
    if not images:
        sys.exit("That build needs a newer C library, and there is no image of a lab's node to take it from.")
    wanted = re.compile(r"(?:\./)?usr/lib/[^/]+/(?:ld-linux-[^/]+|lib(?:c|m|stdc\+\+|gcc_s|gomp)\.so\.[^/]+)")
    directory.mkdir()
    with tarfile.open(images[-1]) as archive:
        for member in archive:
            if wanted.fullmatch(member.name):
                archive.extract(replace_name(member), directory, filter="data")
    return [str(next(directory.glob("ld-linux-*"))), "--library-path", str(directory)]


def replace_name(member: tarfile.TarInfo) -> tarfile.TarInfo:
    return member.replace(name=Path(member.name).name, deep=False)


def dllama_program(directory: Path) -> Path | None:
    """Built at the pinned commit, kept in the cache; None without a source."""
    program = CACHE / "distributed-llama" / DLLAMA_COMMIT / "dllama"
    source = os.environ.get("DISTRIBUTED_LLAMA_GIT")
    if not program.exists() and source:
        tree = directory / "distributed-llama"
        tree.mkdir()
        archive = subprocess.run(["git", "-C", source, "archive", DLLAMA_COMMIT], capture_output=True, check=True)
        subprocess.run(["tar", "x", "-C", str(tree)], input=archive.stdout, check=True)
        subprocess.run(["nice", "-n", "10", "make", "-C", str(tree), "dllama"], capture_output=True, check=True)
        program.parent.mkdir(parents=True, exist_ok=True)
        partial = program.with_suffix(".part")
        partial.write_bytes((tree / "dllama").read_bytes())
        partial.chmod(0o755)
        partial.rename(program)
    return program if program.exists() else None


# --- Models


def make(case: Case, directory: Path, programs: Programs) -> Path:
    path = directory / f"{case.name}.gguf"
    mix = case.quantization.endswith("_M")
    synthesize(
        path,
        parameters=parse_parameters(case.size),
        layers=case.layers,
        quantization="F16" if mix or case.vocabulary else case.quantization,
        context=8192,
        name=case.name,
        architecture=case.architecture,
        tied=case.tied,
    )
    if case.vocabulary:
        path = widen(path, case.vocabulary)
    if mix or case.vocabulary:
        whole, path = path, path.with_suffix(".quantized.gguf")
        command = programs.command("llama-quantize", whole, path, case.quantization, 1)
        subprocess.run(command, capture_output=True, check=True)
        whole.unlink()
    return path


def widen(path: Path, vocabulary: int) -> Path:
    """The same model with more tokens: each pair of its tokens is one, with a merge, as in a trained vocabulary."""
    reader = gguf.GGUFReader(path)
    output = path.with_suffix(".wide.gguf")
    writer = gguf.GGUFWriter(output, str(reader.get_field("general.architecture").contents()))
    tokens = list(reader.get_field("tokenizer.ggml.tokens").contents())
    merges = list(reader.get_field("tokenizer.ggml.merges").contents())
    types = list(reader.get_field("tokenizer.ggml.token_type").contents())
    known, plain = set(tokens), tokens[len(tokenizer.CONTROL_TOKENS) :]
    for left, right in ((left, right) for left in plain for right in plain):
        if len(tokens) == vocabulary:
            break
        if left + right not in known:
            tokens.append(left + right)
            known.add(left + right)
            merges.append(f"{left} {right}")
            types.append(int(gguf.TokenType.NORMAL))
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.token_type")):
            continue
        if name == "general.architecture" or name.endswith(".vocab_size"):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_vocab_size(vocabulary)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types(types)
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in ("token_embd.weight", "output.weight"):
            data = np.resize(data, (vocabulary, data.shape[1]))
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.unlink()
    return output


# --- Processes


@dataclass(frozen=True)
class Seen:
    """Bytes of a process: in all, anonymous, at most, and of the mapped model what it did not use when asked again."""

    resident: int
    anonymous: int
    peak: int
    unused: int = 0


def look(process: subprocess.Popen[bytes]) -> Seen:
    text = Path(f"/proc/{process.pid}/status").read_text()
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^(VmRSS|RssAnon|VmHWM):\s+(\d+) kB", text, re.M)}
    return Seen(found["VmRSS"], found["RssAnon"], found["VmHWM"])


def forget_uses(process: subprocess.Popen[bytes]) -> None:
    Path(f"/proc/{process.pid}/clear_refs").write_text("1\n")


def unused(process: subprocess.Popen[bytes], path: Path) -> int:
    """Bytes of the mapped `path` that are resident and were not used since `forget_uses`."""
    found, model = 0, False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            model = line.endswith(str(path))
        elif model and line.startswith(("Rss:", "Referenced:")):
            found += int(line.split()[1]) * 1024 * (1 if line.startswith("Rss:") else -1)
    return found


@contextlib.contextmanager
def running(command: list[str], log: Path, *, huge_pages: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """`huge_pages`: as `service_unit_huge_pages` does for whatever does not map its weights."""
    environment = os.environ | ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} if huge_pages else {})
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def server_command(programs: Programs, case: Case, path: Path) -> list[str]:
    """As __llama_service_command in roles/llama_service/vars/main.yml."""
    arguments: list[object] = ["--model", path, "--alias", case.name, "--host", "127.0.0.1", "--port", HEAD_PORT]
    arguments += ["--no-ui", "--metrics", "--slots", "--offline", "--fit", "off"]
    arguments += ["--ctx-size", case.context * case.slots, "--parallel", case.slots, "--threads", 2]
    arguments += ["--batch-size", 512, "--cache-ram", 0, "--log-verbosity", 4]
    if case.cache_type != "f16":
        arguments += ["--cache-type-k", case.cache_type, "--cache-type-v", case.cache_type]
    return programs.command("llama-server", *arguments)


def rpc_arguments(case: Case) -> list[str]:
    shares = [*case.split[1:-1], case.split[-1] + 1]
    workers = ",".join(f"127.0.0.1:{WORKER_PORT + i}" for i in range(len(shares)))
    return [
        *("--rpc", workers, "--n-gpu-layers", str(sum(shares)), "--tensor-split", ",".join(map(str, shares))),
        *("--override-tensor", "^(output|token_embd).*=CPU", "--load-mode", "none"),
    ]


def wait_for_server(process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{HEAD_PORT}/health", timeout=5):
            return
        time.sleep(0.1)
    sys.exit("llama-server did not load the model.")


def prompt(case: Case, vocabulary: int, longest: int = LONGEST_PROMPT) -> None:
    tokens = min(case.context - 16, longest)
    body = {"prompt": [256 + i * 37 % (vocabulary - 256) for i in range(tokens)], "n_predict": 8, "temperature": 0.0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{HEAD_PORT}/completion",
        json.dumps(body | {"ignore_eos": True, "cache_prompt": False}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        answer.read()


def buffers(log: Path) -> list[str]:
    return re.findall(
        r"\w+: +\S+ (?:model|KV|compute|output) +buffer size = +[\d.]+ MiB", log.read_text("utf-8", "replace")
    )


# --- The table

Row = tuple[str, str, memory.Need, Seen]


def run_llama(
    case: Case, path: Path, shape: ModelShape, programs: Programs, directory: Path
) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    context, slots, cache_type = case.context, case.slots, case.cache_type
    log = directory / "server.log"
    with running([*server_command(programs, case, path), "--n-gpu-layers", "0"], log) as server:
        wait_for_server(server)
        prompt(case, shape.vocabulary)
        seen = look(server)
        forget_uses(server)
        prompt(case, shape.vocabulary, 64)
        seen = replace(seen, unused=unused(server, path))
    need = memory.llama_server(
        shape, range(case.layers), context=context, slots=slots, cache_type=cache_type, remote=False, repacked=REPACKED
    )
    rows.append((case.name, "llama-server alone", need, seen))
    lines = [f"{case.name} alone: {line}" for line in buffers(log)]

    with contextlib.ExitStack() as stack:
        workers = []
        for i in range(len(case.split) - 1):
            arguments = ("--host", "127.0.0.1", "--port", WORKER_PORT + i, "--threads", 2)
            command = programs.command("ggml-rpc-server", *arguments)
            workers.append(stack.enter_context(running(command, directory / f"worker{i}.log", huge_pages=True)))
        time.sleep(1)
        command = [*server_command(programs, case, path), *rpc_arguments(case)]
        head = stack.enter_context(running(command, log, huge_pages=True))
        wait_for_server(head)
        prompt(case, shape.vocabulary)
        need = memory.llama_server(
            shape,
            range(case.split[0]),
            context=context,
            slots=slots,
            cache_type=cache_type,
            remote=True,
            repacked=REPACKED,
        )
        rows.append((case.name, f"head, {case.split[0]} layers", need, look(head)))
        start = case.split[0]
        for worker, layers in zip(workers, case.split[1:], strict=True):
            need = memory.rpc_worker(
                shape, range(start, start + layers), context=context, slots=slots, cache_type=cache_type
            )
            rows.append((case.name, f"worker, {layers} layers", need, look(worker)))
            start += layers
    return rows, lines + [f"{case.name} split: {line}" for line in buffers(log)]


def run_dllama(case: Case, path: Path, shape: ModelShape, program: Path, directory: Path) -> list[Row]:
    report = convert(path, directory, requantize=True, overwrite=True)
    worker_command = ["nice", "-n", "10", program, "worker", "--port", DLLAMA_PORT, "--nthreads", 1]
    root_command = ["nice", "-n", "10", program, "inference", "--model", report.model.path]
    root_command += ["--tokenizer", report.tokenizer.path, "--prompt", "the bramble and the network " * 10]
    root_command += ["--steps", min(case.context, 160), "--buffer-float-type", "q80", "--max-seq-len", case.context]
    root_command += ["--nthreads", 1, "--workers", f"127.0.0.1:{DLLAMA_PORT}"]
    samples: list[tuple[Seen, Seen]] = []
    with running([str(item) for item in worker_command], directory / "dllama-worker.log", huge_pages=True) as worker:
        time.sleep(1)
        with running([str(item) for item in root_command], directory / "dllama-root.log", huge_pages=True) as root:
            end = time.monotonic() + 120
            while root.poll() is None and time.monotonic() < end:
                with contextlib.suppress(OSError, KeyError):
                    samples.append((look(root), look(worker)))
                time.sleep(0.02)
            if root.poll() != 0:
                sys.exit(
                    f"dllama ended badly:\n{(directory / 'dllama-root.log').read_text('utf-8', 'replace')[-2000:]}"
                )
    report.model.path.unlink()
    needs = memory.dllama_root(shape, 2, context=case.context), memory.dllama_worker(shape, 2, context=case.context)
    rows: list[Row] = []
    most = max(root.anonymous for root, _ in samples)
    loaded = [pair for pair in samples if pair[0].anonymous > 0.9 * most]
    # The root maps its file while it loads: after that, both are as they serve.
    of_program = min(root.resident - root.anonymous for root, _ in loaded)
    serving = [pair for pair in loaded if pair[0].resident - pair[0].anonymous < of_program + memory.MIB]
    for i, (name, need) in enumerate(zip(("root", "worker"), needs, strict=True)):
        steady = int(statistics.median(pair[i].anonymous for pair in serving))
        file = statistics.median(pair[i].resident - pair[i].anonymous for pair in serving)
        peak = max(pair[i].anonymous for pair in samples)
        seen = Seen(steady + int(file), steady, peak + int(file))
        rows.append((case.name, f"dllama {name} of 2", need, seen))
    return rows


def table(rows: list[Row]) -> Iterator[str]:
    columns = "".join(f" {name:>17} {'ratio':>6}" for name in ("resident", "steady", "peak"))
    yield f"{'model':<18} {'process':<19}{columns}"
    for model, process, need, seen in rows:
        yield f"{model:<18} {process:<19}" + "".join(
            f" {predicted / memory.MIB:>8.1f}/{measured / memory.MIB:>8.1f} {predicted / measured:>6.3f}"
            for predicted, measured in (
                (need.resident, seen.resident),
                (need.steady, seen.resident - seen.unused),
                (max(need.peak, need.resident), seen.peak),
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="the cases whose names contain this; nothing is kept")
    only = parser.parse_args().only
    began = datetime.now(UTC)
    rows: list[Row] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bramble-memory-", dir="/var/tmp") as name:
        directory = Path(name)
        programs = Programs(directory)
        dllama = dllama_program(directory)
        for case in CASES:
            if only and only not in case.name:
                continue
            path = make(case, directory, programs)
            shape = read_shape(path)
            found, more = run_llama(case, path, shape, programs, directory)
            if dllama and shape.kv_heads % 2 == 0:
                found += run_dllama(case, path, shape, dllama, directory)
            print(*list(table(found))[1 if rows else 0 :], sep="\n", flush=True)
            rows += found
            lines += [f"{case.name}: {shape.as_dict() | {'layer_bytes': shape.layer_bytes[0]}}", *more]
            path.unlink()
    if only:
        return
    RESULTS.mkdir(exist_ok=True)
    result = RESULTS / f"memory-{began:%Y%m%dT%H%M%SZ}.txt"
    head = [f"{began:%Y-%m-%dT%H:%M:%SZ}, {programs.build}, dllama {DLLAMA_COMMIT if dllama else 'not there'}"]
    head += [f"{platform.machine()}, {os.cpu_count()} cores. Predicted/measured, MiB.", ""]
    result.write_text("\n".join([*head, *table(rows), "", *lines]) + "\n")
    print(result)


if __name__ == "__main__":
    main()
