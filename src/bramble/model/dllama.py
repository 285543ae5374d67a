"""A GGUF as distributed-llama's `.m` and `.t` files, so that one download serves both engines.

Read at distributed-llama 8d624a7 (src/llm.cpp). The `.m` is a header of (key, value) pairs of 32-bit integers, and the
tensors in a fixed order without names. Matrices are q40, whose block of 32 weights is ggml's Q4_0 byte for byte: an F16
scale d, then 16 bytes with weight j in the low and weight j + 16 in the high half of byte j, each d x (value - 8).

llama.cpp's converter has put the rows of q and k of the architecture llama into pairs, for RoPE on neighbours;
distributed-llama's converter does the same. For qwen3 neither does. So rows are copied as they stand.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import numpy.typing as npt

from bramble.model.dllama_tokenizer import DllamaTokenizer, read_tokenizer
from bramble.model.files import replacing, sha256_of
from bramble.model.gguf_info import GgufError, GgufFile, open_gguf, shape_of
from bramble.model.shape import ModelShape

type Progress = Callable[[int, int], None]  # bytes written, bytes in all

MAGIC = 0x0A00ABCD
ARCHITECTURES = {"llama": 0xABCD00, "qwen3": 0xABCD01}
# src/llm.hpp, enum LlmHeaderKey
KEYS = {
    "version": 0,
    "architecture": 1,
    "embedding": 2,
    "feed_forward": 3,
    "layers": 4,
    "heads": 5,
    "kv_heads": 6,
    "experts": 7,
    "active_experts": 8,
    "vocabulary": 9,
    "context": 10,
    "activation": 11,
    "rope_theta": 12,
    "weight_type": 13,
    "rope_factor": 14,
    "rope_low": 15,
    "rope_high": 16,
    "rope_context": 17,
    "rope_type": 18,
    "head_dim": 19,
    "norm_epsilon": 20,
}
SILU = 1
ROPE_LLAMA, ROPE_FALCON, ROPE_LLAMA3_1 = 0, 1, 2  # src/nn/nn-core.hpp, enum NnRopeType
WEIGHT_TYPES = {"q40": 2, "f32": 0}  # src/nn/nn-quants.hpp, enum NnFloatType
Q40_BLOCK, Q40_BLOCK_BYTES = 32, 18

# From these to 4 bits is one quantization, or one on top of a much finer one (Q6_K is what llama-quantize gives the
# output matrix of a Q4_0 model). From others it is a second coarse one.
FINE = ("F32", "F16", "BF16", "Q8_0", "Q6_K")
# Weights that are turned at once: bounds memory, whatever the size of a tensor.
CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class WrittenFile:
    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was written, the facts of the source, and what its owner should know."""

    source: ModelShape
    model: WrittenFile
    tokenizer: WrittenFile
    weights: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Hyperparameters:
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_epsilon: int  # the negative exponent of ten
    rope_theta: int
    rope_scaling: tuple[int, int, int, int] | None  # factor, low, high, context


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the `.m`: its name in the GGUF, outputs x inputs, and if it is a matrix of weights or F32."""

    name: str
    rows: int
    columns: int
    weights: bool = True
    by_token: bool = False  # one row for each token

    def bytes(self, weights: str) -> int:
        size = self.rows * self.columns
        return size // Q40_BLOCK * Q40_BLOCK_BYTES if self.weights and weights == "q40" else 4 * size


def convert(
    source: Path | str,
    output: Path | str,
    *,
    weights: str = "q40",
    requantize: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write `<name of source>.m` and `.t` into the directory `output`.

    `weights` is the type of the matrices: q40, which distributed-llama computes with q80 buffers, or f32 with f32
    buffers. `requantize` takes matrices of any type that can be read. The same source gives the same bytes. Both files
    appear under their names when both are whole; memory stays below some hundred MB.

    Raises GgufError, before anything is written, for a source that cannot be read or converted, for files that are
    there already (unless `overwrite`) and for a directory that cannot be written.
    """
    if weights not in WEIGHT_TYPES:
        raise GgufError(f"weights: {weights} is not one of {', '.join(WEIGHT_TYPES)}")
    file = open_gguf(source)
    try:
        hyper = _hyperparameters(file)
        header = _header(hyper, weights)
        vocabulary = read_tokenizer(file)
    # A key of another type or a size of 0 or 2^40: no model, whatever it is.
    except (TypeError, ValueError, ArithmeticError, struct.error) as error:
        raise GgufError(f"{file.path}: what its header says makes no model: {error}") from error
    if len(vocabulary.texts) != hyper.vocabulary:
        raise GgufError(
            f"{file.path}: has {len(vocabulary.texts)} tokens and embeddings for {hyper.vocabulary}; both engines need "
            "one for each. Get another file of this model"
        )
    plan, tensors = _plan(file, hyper, weights, requantize)

    directory, stem = Path(output), file.path.stem
    paths = [directory / f"{stem}.m", directory / f"{stem}.t"]
    for path in paths:
        if path.is_dir() or (path.exists() and not overwrite):
            raise GgufError(f"{path}: exists already; give another directory or ask to overwrite it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            parts = [stack.enter_context(replacing(path)) for path in paths]
            with parts[0].open("wb") as written:
                _write_model(written, header, plan, tensors, vocabulary, weights, progress)
            parts[1].write_bytes(vocabulary.as_bytes())
            model, tokenizer = (
                WrittenFile(path, part.stat().st_size, sha256_of(part)) for path, part in zip(paths, parts, strict=True)
            )
    except OSError as error:
        raise GgufError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return ConvertReport(shape_of(file), model, tokenizer, weights, _notes(plan, tensors, vocabulary, weights))


def _notes(plan: list[_Tensor], tensors: dict[str, Any], vocabulary: DllamaTokenizer, weights: str) -> tuple[str, ...]:
    notes = []
    coarse = _coarse(plan, tensors) if weights == "q40" else {}
    if coarse:
        notes.append(f"Quantized a second time, which costs quality: {_counted(coarse)}.")
    if vocabulary.reordered:
        notes.append("Token ids differ from the GGUF's: distributed-llama wants special tokens last.")
    if not vocabulary.template_known:
        notes.append("distributed-llama does not know the chat template: it completes text and cannot chat.")
    return tuple(notes)


def _hyperparameters(file: GgufFile) -> _Hyperparameters:
    architecture = str(file.value("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise GgufError(
            f"{file.path}: the architecture {architecture} cannot be converted; distributed-llama has dense "
            f"{' and '.join(ARCHITECTURES)} (Llama 3, Mistral, SmolLM; Qwen3)"
        )
    if file.reader.byte_order == "S":
        raise GgufError(f"{file.path}: is of the other byte order than this machine's")
    if (parts := file.number("split.count", 1)) > 1:
        raise GgufError(f"{file.path}: is one of {parts} parts; join them with llama-gguf-split --merge")

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    def same_in_all_layers(name: str, default: int | None = None) -> int:
        found = file.value(key(name), default)
        if isinstance(found, list) and len(set(found)) > 1:
            raise GgufError(f"{file.path}: {key(name)} differs between layers, which distributed-llama does not have")
        return file.number(key(name), default)

    if experts := file.number(key("expert_count"), 0):
        raise GgufError(f"{file.path}: is a mixture of {experts} experts; only dense models can be converted")
    embedding = file.number(key("embedding_length"))
    heads = same_in_all_layers("attention.head_count")
    head_dim = file.number(key("attention.key_length"), embedding // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (found := file.number(key(name), head_dim)) != head_dim:
            raise GgufError(f"{file.path}: {key(name)} is {found}; distributed-llama wants it to be {head_dim}")
    theta = float(file.value(key("rope.freq_base"), 10_000.0))
    if not theta.is_integer() or not 0 < theta < 2**31:
        raise GgufError(f"{file.path}: {key('rope.freq_base')} is {theta}; a .m file holds whole numbers below 2^31")
    scaling = str(file.value(key("rope.scaling.type"), "none"))
    factor = float(file.value(key("rope.scaling.factor"), 1.0))
    if scaling != "none" and factor != 1.0:
        raise GgufError(f"{file.path}: RoPE scaling of the type {scaling}; distributed-llama has none but Llama 3's")
    epsilon = float(file.value(key("attention.layer_norm_rms_epsilon")))
    exponents = [exponent for exponent in (5, 6) if math.isclose(epsilon, 10.0**-exponent, rel_tol=1e-4)]
    if not exponents:
        raise GgufError(f"{file.path}: the norms' epsilon is {epsilon:g}; distributed-llama has 1e-05 and 1e-06")
    embeddings = _tensors(file).get("token_embd.weight")
    if embeddings is None:
        raise GgufError(f"{file.path}: the tensor token_embd.weight is missing: not a whole language model")
    return _Hyperparameters(
        architecture=architecture,
        layers=file.number(key("block_count")),
        embedding=embedding,
        feed_forward=same_in_all_layers("feed_forward_length"),
        heads=heads,
        kv_heads=same_in_all_layers("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocabulary=int(embeddings.shape[-1]),
        context=file.number(key("context_length")),
        norm_epsilon=exponents[0],
        rope_theta=int(theta),
        rope_scaling=_rope_scaling(file, architecture, int(theta), head_dim),
    )


def _tensors(file: GgufFile) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in file.reader.tensors}


def llama3_factors(
    theta: float, head_dim: int, factor: int, low: int, high: int, context: int
) -> npt.NDArray[np.float64]:
    """What Llama 3 divides the frequency of each pair of channels by, head_dim / 2 numbers.

    https://github.com/meta-llama/llama-models/blob/4269717b/models/llama3/reference_impl/model.py#L55
    """
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _rope_scaling(file: GgufFile, architecture: str, theta: int, head_dim: int) -> tuple[int, int, int, int] | None:
    """Factor, low and high frequency factor and original context. A GGUF has only what they come to, rope_freqs.weight.

    Only high / low and context / low matter, so low is 1.
    """
    tensor = _tensors(file).get("rope_freqs.weight")
    if tensor is None:
        return None
    factors = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1)
    if np.all(factors == 1):
        return None
    factor = round(float(factors.max()))
    # Llama 3.1 to 3.3 have 8192 and 4 (https://huggingface.co/meta-llama/Llama-3.2-1B/blob/main/config.json).
    for context in (8192, 1024, 2048, 4096, 16384, 32768, 65536, 131072):
        for high in (4, 2, 3, 5, 6, 8, 16, 32):
            expected = llama3_factors(theta, head_dim, factor, 1, high, context)
            if architecture == "llama" and factors.shape == expected.shape and np.allclose(factors, expected, 1e-4):
                return factor, 1, high, context
    raise GgufError(
        f"{file.path}: rope_freqs.weight is no RoPE scaling of Llama 3's kind, the only one that distributed-llama has"
    )


def _layout(hyper: _Hyperparameters, tied: bool) -> Iterator[_Tensor]:
    """All tensors in the order of the `.m` (src/llm.cpp, loadLlmNetWeight)."""
    d, ff, vocabulary = hyper.embedding, hyper.feed_forward, hyper.vocabulary
    q, kv = hyper.heads * hyper.head_dim, hyper.kv_heads * hyper.head_dim
    yield _Tensor("token_embd.weight", vocabulary, d, weights=False, by_token=True)
    for i in range(hyper.layers):
        yield _Tensor(f"blk.{i}.attn_q.weight", q, d)
        yield _Tensor(f"blk.{i}.attn_k.weight", kv, d)
        yield _Tensor(f"blk.{i}.attn_v.weight", kv, d)
        yield _Tensor(f"blk.{i}.attn_output.weight", d, q)
        yield _Tensor(f"blk.{i}.ffn_gate.weight", ff, d)
        yield _Tensor(f"blk.{i}.ffn_down.weight", d, ff)
        yield _Tensor(f"blk.{i}.ffn_up.weight", ff, d)
        if hyper.architecture == "qwen3":
            yield _Tensor(f"blk.{i}.attn_q_norm.weight", 1, hyper.head_dim, weights=False)
            yield _Tensor(f"blk.{i}.attn_k_norm.weight", 1, hyper.head_dim, weights=False)
        yield _Tensor(f"blk.{i}.attn_norm.weight", 1, d, weights=False)
        yield _Tensor(f"blk.{i}.ffn_norm.weight", 1, d, weights=False)
    yield _Tensor("output_norm.weight", 1, d, weights=False)
    yield _Tensor("token_embd.weight" if tied else "output.weight", vocabulary, d, by_token=True)


def _plan(
    file: GgufFile, hyper: _Hyperparameters, weights: str, requantize: bool
) -> tuple[list[_Tensor], dict[str, Any]]:
    """What to write from what. Raises GgufError unless each tensor is there and fits, and no other is."""
    tensors = _tensors(file)
    plan = list(_layout(hyper, tied="output.weight" not in tensors))
    for tensor in plan:
        found = tensors.get(tensor.name)
        if found is None:
            raise GgufError(
                f"{file.path}: the tensor {tensor.name} is missing: a damaged file, or one of several parts"
            )
        shape = tuple(int(size) for size in reversed(found.shape))
        wanted = (tensor.rows, tensor.columns) if tensor.rows > 1 else (tensor.columns,)
        if shape != wanted:
            raise GgufError(f"{file.path}: {tensor.name} has the shape {shape}, its header makes it {wanted}")
        if tensor.columns % Q40_BLOCK and tensor.weights:
            raise GgufError(f"{file.path}: {tensor.name} has {tensor.columns} inputs, not a multiple of {Q40_BLOCK}")
        try:
            gguf.quants.dequantize(found.data.reshape(tensor.rows, -1)[:1], found.tensor_type)
        except NotImplementedError as error:
            raise GgufError(f"{file.path}: {tensor.name} is {found.tensor_type.name}, which cannot be read") from error
    if unknown := sorted(tensors.keys() - {tensor.name for tensor in plan} - {"rope_freqs.weight"}):
        raise GgufError(
            f"{file.path}: has the tensor {unknown[0]}, which distributed-llama's {hyper.architecture} does not have"
            + (f" (and {len(unknown) - 1} more like it)" if len(unknown) > 1 else "")
        )
    coarse = _coarse(plan, tensors)
    if weights == "q40" and coarse and not requantize:
        raise GgufError(
            f"{file.path}: {_counted(coarse)}; a .m file has none of these, and to quantize them a second time costs "
            "quality. Get the same model as Q4_0 (copied as it is), Q8_0 or F16, or ask to requantize it"
        )
    return plan, tensors


def _coarse(plan: list[_Tensor], tensors: dict[str, Any]) -> dict[str, int]:
    """How many matrices of each type would be quantized coarsely twice."""
    # The embedding alone is written as F32.
    types = Counter(tensors[tensor.name].tensor_type.name for tensor in plan if tensor.weights)
    return {name: count for name, count in sorted(types.items()) if name not in (*FINE, "Q4_0")}


def _counted(types: dict[str, int]) -> str:
    return " and ".join(
        f"{count} {'matrix is' if count == 1 else 'matrices are'} {name}" for name, count in types.items()
    )


def _header(hyper: _Hyperparameters, weights: str) -> bytes:
    values = {
        "version": 0,
        "architecture": ARCHITECTURES[hyper.architecture],
        "embedding": hyper.embedding,
        "feed_forward": hyper.feed_forward,
        "layers": hyper.layers,
        "heads": hyper.heads,
        "kv_heads": hyper.kv_heads,
        "experts": 0,
        "active_experts": 0,
        "vocabulary": hyper.vocabulary,
        "context": hyper.context,
        "activation": SILU,
        "rope_theta": hyper.rope_theta,
        "weight_type": WEIGHT_TYPES[weights],
        "rope_type": ROPE_FALCON if hyper.architecture == "qwen3" else ROPE_LLAMA,
        "head_dim": hyper.head_dim,
        "norm_epsilon": hyper.norm_epsilon,
    }
    if hyper.rope_scaling is not None:
        values |= zip(("rope_factor", "rope_low", "rope_high", "rope_context"), hyper.rope_scaling, strict=True)
        values["rope_type"] = ROPE_LLAMA3_1
    fields = b"".join(struct.pack("<ii", KEYS[name], value) for name, value in values.items())
    return struct.pack("<ii", MAGIC, 8 + len(fields)) + fields


def _write_model(
    written: BinaryIO,
    header: bytes,
    plan: list[_Tensor],
    tensors: dict[str, Any],
    vocabulary: DllamaTokenizer,
    weights: str,
    progress: Progress | None,
) -> None:
    done = written.write(header)
    total = done + sum(tensor.bytes(weights) for tensor in plan)
    order = np.asarray(vocabulary.order) if vocabulary.reordered else None
    for tensor in plan:
        found = tensors[tensor.name]
        rows = found.data.reshape(tensor.rows, -1)
        step = max(1, CHUNK // tensor.columns)
        for start in range(0, tensor.rows, step):
            stop = start + step
            chunk = rows[order[start:stop]] if order is not None and tensor.by_token else rows[start:stop]
            done += written.write(_encode(chunk, found.tensor_type, q40=tensor.weights and weights == "q40"))
            if progress is not None:
                progress(done, total)
    if done != total:
        raise RuntimeError(f"{done} bytes written instead of {total}")


def _encode(rows: npt.NDArray[Any], stored: gguf.GGMLQuantizationType, *, q40: bool) -> bytes:
    if q40 and stored == gguf.GGMLQuantizationType.Q4_0:
        return bytes(np.ascontiguousarray(rows))
    values: npt.NDArray[Any] = gguf.quants.dequantize(rows, stored)
    if q40:
        values = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
    return bytes(np.ascontiguousarray(values))
