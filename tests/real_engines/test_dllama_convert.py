"""One model in both engines: what `bramble model convert` writes computes in distributed-llama as in llama.cpp.

What is compared, for stand-ins of llama (untied, tied, with Llama 3's RoPE scaling) and qwen3, whose norms were given
weights of their own:

- **Layout**, in F32 on both sides, where only the order of sums differs. Greedy continuation of more than 200 tokens is
  the same. And for a given text, the probability that each engine gives to each next token is the same to 1e-5 (of
  the six decimals that `dllama perplexity` prints), and their mean logarithm to 1e-4. A tensor in another place, rows
  of q in another order, or a wrong number in the header changes these by more: such mistakes are made, and seen. (Not
  so the norms' epsilon, which activations of size one hide. The unit tests hold it.)
- **Weights as shipped**, q40 with q80 buffers against Q4_0. The unit tests hold the blocks equal bit by bit. Both
  engines quantize activations, not at the same places: distributed-llama also what it adds to the residual stream. So
  two nearly equal logits may change places, and random weights have many. llama.cpp is shown the text that dllama
  wrote: what dllama chose is llama.cpp's first choice or nearly as likely, and on a given text the two are as near to
  each other, within a factor, as llama.cpp with Q4_0 is to itself with the same weights in F32.

`dllama inference` computes the prompt up to its last token and then feeds, for that last token, what its array holds
behind it (src/dllama.cpp: `token = inputTokens[pos + 1]` after `pos += batchSize`). That is a left-over of the merging
of tokens, and the same as the last token if the last merge was not at the end of the text. PROMPT is such a text, which
is checked. `dllama perplexity` feeds what it should.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bramble.model import convert, synthesize, tokenizer
from bramble.model.dllama import llama3_factors
from dllama_files import Tokenizer, read_tokenizer
from gguf_files import altered, vary_norms

PROMPT = "The network is small and fast."
TEXT = (
    "A bramble grows where nobody planted it. One cane bends over, its tip touches the ground, and roots come of it. "
    "Rain will reach the coast by the middle of the day and move slowly inland. The nodes compute one after another, "
    "and the last of them has the answer. Who waits for it can read a book, make tea, or count the lights of a switch."
)
GENERATED = 240
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"seed": 1},
    "llama-tied": {"seed": 7, "tied": True},  # Of a dozen, the seed that repeats itself least.
    "llama-rope": {"seed": 1},
    "qwen3": {"seed": 1, "architecture": "qwen3"},
}
ROPE_SCALING = (8, 1, 4, 8192)
PREDICTED = re.compile(rb"\xf0\x9f\x94\xb6 Pred *\d+ ms Sync *\d+ ms \| Sent *\d+ kB Recv *\d+ kB \| ")
# Ids of the stand-in's GGUF by ids of its .t, which has control tokens last.
CONTROL = len(tokenizer.CONTROL_TOKENS)
GGUF_IDS = [*range(CONTROL, tokenizer.VOCABULARY_SIZE), *range(CONTROL)]


@dataclass(frozen=True)
class Dllama:
    """One model in distributed-llama."""

    program: Path
    model: Path
    vocabulary: Path
    buffers: str

    def run(self, mode: str, prompt: str, *more: str) -> bytes:
        options = {
            "model": self.model,
            "tokenizer": self.vocabulary,
            "prompt": prompt,
            "buffer-float-type": self.buffers,
            "nthreads": 1,
            "max-seq-len": 512,
            "temperature": 0,
        }
        command = ["nice", "-n", "10", str(self.program), mode, *more]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
        return done.stdout

    @property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.vocabulary)

    def continuation(self, prompt: str) -> list[int]:
        """The GGUF's ids of GENERATED tokens, each the most likely one."""
        vocabulary = self.tokenizer
        ids, fed = vocabulary.encode(prompt)
        assert fed == ids[-1], "a prompt after which dllama feeds another token than its last"
        steps = len(ids) - 1 + GENERATED
        printed = PREDICTED.split(self.run("inference", prompt, "--steps", str(steps)))[1:]
        pieces = [piece.split(b"\n\nEvaluation\n")[0].removesuffix(b"\n") for piece in printed]
        assert len(pieces) == GENERATED
        known = {text: GGUF_IDS[i] for i, text in enumerate(vocabulary.texts)}
        return [known[piece] for piece in pieces]

    def probabilities(self, text: str) -> tuple[np.ndarray, float]:
        """Of each token of `text` after the first, and the mean of their logarithms."""
        printed = self.run("perplexity", text).decode()
        found = re.findall(r"prob=([\d.]+)", printed)
        mean = re.search(r"avgLogProb: (-?[\d.]+)", printed)
        assert mean
        return np.array(found, dtype=float), float(mean[1])


@dataclass(frozen=True)
class LlamaCpp:
    """One model in llama-server."""

    url: str

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.post("/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
        return ids

    def continuation(self, prompt: str) -> list[int]:
        body = {"prompt": prompt, "n_predict": GENERATED, "temperature": 0, "return_tokens": True}
        ids: list[int] = self.post("/completion", body)["tokens"]
        return ids

    def logarithms(self, ids: list[int], start: int = 1) -> np.ndarray:
        """ln of the probability of each token at each position from `start` on, given what is before: positions x V.

        Not less than ln 1e-30, as `dllama perplexity` has it: after BOS alone, a tied stand-in gives text no chance.
        """
        rows = np.empty((len(ids) - start, tokenizer.VOCABULARY_SIZE))
        for row, end in zip(rows, range(start, len(ids)), strict=True):
            body = {"prompt": ids[:end], "n_predict": 1, "temperature": 0, "n_probs": len(row), "cache_prompt": True}
            for choice in self.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
                row[choice["id"]] = max(choice["logprob"], np.log(1e-30))
        return rows


@contextmanager
def served(command: list[str], model: Path) -> Iterator[LlamaCpp]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"--port {port} -c 1024 -np 1 -t 1 -ctk f32 -ctv f32 -fa off -cram 0 --no-warmup".split()
    log = model.with_suffix(".log")
    with log.open("w") as output:
        server = subprocess.Popen([*command, "-m", str(model), *options], stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.1)
        yield LlamaCpp(url)
    finally:
        server.terminate()
        server.wait()


def make(directory: Path, kind: str, quantization: str) -> Path:
    path = directory / f"{kind}-{quantization}.gguf"
    synthesize(path, parameters=6_000_000, layers=3, quantization=quantization, **KINDS[kind])
    vary_norms(path)
    if kind == "llama-rope":
        factors = llama3_factors(500_000, 64, *ROPE_SCALING).astype(np.float32)
        scaled = altered(path, path.with_suffix(".new"), {"llama.rope.freq_base": 5e5}, {"rope_freqs.weight": factors})
        scaled.replace(path)
    return path


def converted(program: Path, source: Path, weights: str) -> Dllama:
    report = convert(source, source.parent, weights=weights)
    return Dllama(program, report.model.path, report.tokenizer.path, {"f32": "f32", "q40": "q80"}[weights])


@pytest.mark.parametrize("kind", KINDS)
def test_layout(tmp_path: Path, dllama: Path, llama_server: list[str], kind: str) -> None:
    source = make(tmp_path, kind, "F32")
    ours = converted(dllama, source, "f32")
    with served(llama_server, source) as theirs:
        text = theirs.encode(TEXT)
        assert [GGUF_IDS[i] for i in ours.tokenizer.encode(TEXT)[0]] == text
        expected = theirs.logarithms(text)[range(len(text) - 1), text[1:]]
        continuation = theirs.continuation(PROMPT)
    probabilities, mean = ours.probabilities(TEXT)
    difference = np.abs(probabilities - np.exp(expected)).max()
    same = ours.continuation(PROMPT)
    equal = sum(a == b for a, b in zip(same, continuation, strict=True))
    print(
        f"{kind} F32: greedy {equal} of {GENERATED} the same, {len(set(same))} different tokens; "
        f"{len(text) - 1} given tokens: largest difference of probability {difference:.1e}, of the mean logarithm "
        f"{abs(mean - expected.mean()):.1e}"
    )
    assert same == continuation
    assert len(probabilities) == len(text) - 1
    assert difference < 1e-5
    assert abs(mean - expected.mean()) < 1e-4


def swap(data: bytearray, first: int, second: int, size: int) -> None:
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]


def set_header(key: int, value: int) -> Callable[[bytearray, dict[str, int]], None]:
    def change(data: bytearray, _: dict[str, int]) -> None:
        size = struct.unpack_from("<i", data, 4)[0]
        at = next(at for at in range(8, size, 8) if struct.unpack_from("<i", data, at)[0] == key)
        struct.pack_into("<i", data, at + 4, value)

    return change


def swap_tensors(first: str, second: str, size: int) -> Callable[[bytearray, dict[str, int]], None]:
    return lambda data, offsets: swap(data, offsets[first], offsets[second], size)


def unpair_rows(data: bytearray, offsets: dict[str, int]) -> None:
    """q of layer 0 with its rows as a checkpoint of Hugging Face has them: both halves of a head, not pairs."""
    rows = np.frombuffer(data, "<f4", 256 * 256, offsets["0 q"]).reshape(4, 32, 2, 256)
    data[offsets["0 q"] : offsets["0 q"] + rows.nbytes] = np.ascontiguousarray(rows.swapaxes(1, 2)).tobytes()


MISTAKES = {
    "theta": ("llama", set_header(12, 20_000)),
    "no RoPE scaling": ("llama-rope", set_header(14, 1)),
    "rows of q": ("llama", unpair_rows),
    "k for v": ("llama", swap_tensors("0 k", "0 v", 64 * 256 * 4)),
    "gate for up": ("llama", swap_tensors("0 w1", "0 w3", 2048 * 256 * 4)),
    "norms": ("llama", swap_tensors("0 norm_0", "0 norm_1", 256 * 4)),
    "norms of q and k": ("qwen3", swap_tensors("0 norm_q", "0 norm_k", 128 * 4)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(tmp_path: Path, dllama: Path, mistake: str) -> None:
    """What `test_layout` allows, no wrong file reaches: each differs from the right one by five times as much."""
    from dllama_files import read_model

    kind, change = MISTAKES[mistake]
    right = converted(dllama, make(tmp_path, kind, "F32"), "f32")
    data = bytearray(right.model.read_bytes())
    offsets, at = {}, struct.unpack_from("<i", data, 4)[0]
    for name, tensor in read_model(right.model).tensors.items():
        offsets[name] = at
        at += len(tensor)
    change(data, offsets)
    wrong = replace(right, model=tmp_path / "wrong.m")
    wrong.model.write_bytes(data)
    (expected, mean), (found, other_mean) = right.probabilities(TEXT), wrong.probabilities(TEXT)
    print(f"{mistake}: {np.abs(found - expected).max():.1e} of probability, {abs(mean - other_mean):.1e} of mean ln")
    assert np.abs(found - expected).max() > 5e-5


@pytest.mark.parametrize("kind", KINDS)
def test_weights_as_shipped(tmp_path: Path, dllama: Path, llama_server: list[str], kind: str) -> None:
    source = make(tmp_path, kind, "Q4_0")
    ours = converted(dllama, source, "q40")
    exact = tmp_path / "exact.gguf"
    tensors = gguf.GGUFReader(source).tensors
    altered(source, exact, {}, {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors})

    chosen = ours.continuation(PROMPT)
    with served(llama_server, source) as theirs:
        text = theirs.encode(TEXT)
        places = (range(len(text) - 1), text[1:])
        theirs_of_text = theirs.logarithms(text)[places]
        prompt = theirs.encode(PROMPT)
        rows = theirs.logarithms(prompt + chosen, start=len(prompt))
        continuation = theirs.continuation(PROMPT)
    with served(llama_server, exact) as reference:
        exact_of_text = reference.logarithms(text)[places]
    until = next((i for i, (a, b) in enumerate(zip(chosen, continuation, strict=True)) if a != b), GENERATED)
    gaps = rows.max(axis=1) - rows[range(GENERATED), chosen]
    ours_of_text, mean = ours.probabilities(TEXT)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    between = distance(ours_of_text, np.exp(theirs_of_text))
    own = distance(np.exp(exact_of_text), np.exp(theirs_of_text))
    print(
        f"{kind} q40: greedy the same for {until} of {GENERATED}; of dllama's tokens {np.mean(gaps == 0):.1%} are "
        f"llama.cpp's first choice, the others behind by at most {gaps.max():.3f} nats; {len(text) - 1} given tokens: "
        f"RMS of probability between the engines {between:.1e}, between llama.cpp's Q4_0 and F32 of the same weights "
        f"{own:.1e}; mean logarithm {mean:.4f}, {theirs_of_text.mean():.4f}, {exact_of_text.mean():.4f}"
    )
    assert np.mean(gaps == 0) > 0.9
    assert gaps.max() < 0.2
    assert abs(mean - theirs_of_text.mean()) < 0.01
    assert between < 5 * own
