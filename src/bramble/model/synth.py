"""Make a llama or qwen3 GGUF with a real tokenizer and random weights: a stand-in of a wanted size.

It loads, splits over nodes, costs time and memory like a trained model of its size, and prints English words without
meaning. Its metadata says what it is.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from bramble.model import tokenizer
from bramble.model.files import replacing, sha256_of
from bramble.model.gguf_info import read_shape
from bramble.model.shape import ModelShape

# What gguf.quants can write (it only reads the K-quants), each with its number in `general.file_type`.
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}
QUANTIZATIONS = tuple(_FILE_TYPES)

HEAD_DIM = 64
# Qwen3's queries are wider than its residual stream, as in Qwen3-0.6B: as many heads as a llama of that width has, each
# of 128 (https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json).
HEAD_DIMS = {"llama": HEAD_DIM, "qwen3": 128}
ARCHITECTURES = tuple(HEAD_DIMS)
HEADS_PER_KV_HEAD = 4
# K-quants work on blocks of 256 weights, so that a file made here can later be quantized to them with no fallback.
WIDTH_MULTIPLE = 256
LLAMA_FF_RATIO = 8 / 3  # feed-forward width over embedding width: Touvron et al. 2023, section 2.2
RMS_EPSILON = 1e-5
ROPE_BASE = 10_000.0

# The first 32 channels of the residual stream (one ggml block) are a bias: every embedding has 1 there, no layer
# writes there, so the output head can give each token an a-priori logit. See `_tensors`.
BIAS_CHANNELS = 32
CONTROL_LOGIT = -60.0
# Chosen by reading what comes out: more of the first gives mostly "the", "of" and commas, more of the second fragments.
FREQUENCY_WEIGHT = 0.75
HEAD_GAIN = 2.0
# Between half and one and a half of the first, by log-frequency; products of the second with these make about -60.
TIED_BIAS = 0.3
TIED_CONTROL_BIAS = -4.0

DESCRIPTION = "synthetic, random weights: not a trained model"


class SynthError(Exception):
    """The wanted model cannot be made; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a model: `embedding` = heads x 64, both widths multiples of 256. Tied: the head is the embedding."""

    layers: int
    embedding: int
    feed_forward: int
    architecture: str = "llama"
    tied: bool = False

    @property
    def head_dim(self) -> int:
        return HEAD_DIMS[self.architecture]

    @property
    def heads(self) -> int:
        return self.embedding // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return self.heads // HEADS_PER_KV_HEAD

    @property
    def parameters(self) -> int:
        d, q, kv, ff = self.embedding, self.heads * self.head_dim, self.kv_heads * self.head_dim, self.feed_forward
        block = 2 * d * q + 2 * d * kv + 3 * d * ff + 2 * d  # q and o, k and v, gate up down, two norms
        if self.architecture == "qwen3":
            block += 2 * self.head_dim  # norms of q and k
        outside = (1 if self.tied else 2) * tokenizer.VOCABULARY_SIZE * d + d  # embedding and head, last norm
        return outside + self.layers * block


@dataclass(frozen=True, slots=True)
class SynthReport:
    """What was written: where, the wanted number of parameters, the file's SHA-256, and the shape read back from it."""

    path: Path
    wanted_parameters: int
    seed: int
    sha256: str
    model: ModelShape


def parse_parameters(text: str) -> int:
    """Turn `60M`, `1.5B`, `500k` or `60000000` into a number of parameters."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMbB]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise SynthError(f"number of parameters: expected something like 60M, 1.5B or 800k, got {text!r}")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])


def choose_shape(
    parameters: int, layers: int | None = None, *, architecture: str = "llama", tied: bool = False
) -> Shape:
    """Choose widths (and the depth, if it is left open) that come close to the wanted number of parameters.

    Widths come in steps of 256, so that a model can miss its size: by up to 20 % below 10 M, 10 % up to 100 M, 4 % from
    300 M on at the default depth; a deep narrow one by more.
    Between shapes of about the right size, the one whose feed-forward width is nearest to llama's 8/3 wins.
    """
    if layers is None:
        # Twelve layers at 60 M; depth grows with the cube root, as width does, up to the 32 of a 7 B model.
        layers = min(32, max(1, round(12 * (parameters / 60e6) ** (1 / 3))))
        while layers > 1 and Shape(layers, WIDTH_MULTIPLE, WIDTH_MULTIPLE, architecture, tied).parameters > parameters:
            layers -= 1
    if layers < 1:
        raise SynthError(f"layers: must be 1 or more, got {layers}")
    smallest = Shape(layers, WIDTH_MULTIPLE, WIDTH_MULTIPLE, architecture, tied)
    if parameters < 0.9 * smallest.parameters:
        raise SynthError(
            f"parameters: {parameters:,} are too few for {layers} layers and a vocabulary of "
            f"{tokenizer.VOCABULARY_SIZE}; the smallest such model has {smallest.parameters:,}. Take more parameters"
            + (" or fewer layers." if layers > 1 else ".")
        )

    def misfit(shape: Shape) -> float:
        size = abs(math.log(shape.parameters / parameters))
        ratio = abs(math.log(shape.feed_forward / shape.embedding / LLAMA_FF_RATIO))
        return size + 0.1 * ratio

    return min(_shapes_near(parameters, smallest), key=misfit)


def _shapes_near(parameters: int, least: Shape) -> Iterator[Shape]:
    """For each embedding width, the two feed-forward widths that lie around the wanted size."""
    while True:
        per_step = 3 * least.embedding * WIDTH_MULTIPLE * least.layers
        steps = max(0, (parameters - least.parameters) // per_step)
        for step in (steps, steps + 1):
            yield replace(least, feed_forward=WIDTH_MULTIPLE * (1 + step))
        if least.parameters > parameters:
            return
        least = replace(least, embedding=least.embedding + WIDTH_MULTIPLE)


def synthesize(
    path: Path | str,
    *,
    parameters: int,
    layers: int | None = None,
    quantization: str = "Q8_0",
    context: int = 4096,
    seed: int = 0,
    name: str = "synthetic",
    architecture: str = "llama",
    tied: bool = False,
    overwrite: bool = False,
) -> SynthReport:
    """Write a GGUF with random weights to `path`. `tied`: the embedding serves as output head too.

    The same arguments give the same bytes (with the same release of numpy). The file appears under its name only when
    it is whole. Raises SynthError for arguments that cannot be met, for a file that is there already (unless
    `overwrite`), and for a directory that cannot be written.
    """
    path = Path(path)
    quantization = quantization.upper()
    if quantization not in _FILE_TYPES:
        raise SynthError(
            f"quantization: {quantization} cannot be made here; choose one of {', '.join(QUANTIZATIONS)}. "
            "For a K-quant, make F16 and run llama-quantize on it."
        )
    if context < 1:
        raise SynthError(f"context: must be 1 or more tokens, got {context}")
    if seed < 0:
        raise SynthError(f"seed: must be 0 or more, got {seed}")
    if architecture not in HEAD_DIMS:
        raise SynthError(f"architecture: {architecture} cannot be made here; choose one of {', '.join(ARCHITECTURES)}")
    shape = choose_shape(parameters, layers, architecture=architecture, tied=tied)
    if path.is_dir():
        raise SynthError(f"{path}: is a directory; give the name of a file, such as {path / 'synthetic.gguf'}")
    if path.exists() and not overwrite:
        raise SynthError(f"{path}: exists already; give another name or ask to overwrite it")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            _write(temporary, shape, quantization, context, seed, name)
            sha256 = sha256_of(temporary)
    except OSError as error:
        raise SynthError(f"{path}: cannot be written: {error.strerror or error}") from error
    return SynthReport(path, parameters, seed, sha256, read_shape(path))


def _write(path: Path, shape: Shape, quantization: str, context: int, seed: int, name: str) -> None:
    matrix_type = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(path, shape.architecture)
    try:
        _add_metadata(writer, shape, context, seed, name)
        writer.add_file_type(_FILE_TYPES[quantization])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        types: list[gguf.GGMLQuantizationType] = []
        for tensor in _layout(shape):
            # Norms stay in F32, as llama.cpp's own converter leaves everything of one dimension.
            tensor_type = matrix_type if len(tensor.shape) == 2 else gguf.GGMLQuantizationType.F32
            block, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
            size = math.prod(tensor.shape) // block * block_bytes
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=tensor_type)
            types.append(tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One tensor at a time: peak memory is the largest tensor, not the model.
        for tensor, tensor_type in zip(_layout(shape), types, strict=True):
            writer.write_tensor_data(gguf.quants.quantize(_values(tensor, seed), tensor_type))
    finally:
        writer.close()


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, context: int, seed: int, name: str) -> None:
    writer.add_name(f"{name} ({DESCRIPTION})")
    writer.add_description(f"{DESCRIPTION} (seed {seed})")
    writer.add_tags(["synthetic", "random"])
    writer.add_context_length(context)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    if shape.architecture == "qwen3":
        writer.add_key_length(shape.head_dim)
        writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(RMS_EPSILON)
    writer.add_vocab_size(tokenizer.VOCABULARY_SIZE)

    vocabulary = tokenizer.train()
    control = len(tokenizer.CONTROL_TOKENS)
    ids = {token: i for i, token in enumerate(tokenizer.CONTROL_TOKENS)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    kinds = [gguf.TokenType.CONTROL] * control + [gguf.TokenType.NORMAL] * (len(vocabulary.tokens) - control)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(ids[tokenizer.BOS])
    writer.add_eos_token_id(ids[tokenizer.TURN_END])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor to make: its GGUF name, its shape as numpy has it (rows = outputs), and which rule fills it."""

    name: str
    shape: tuple[int, ...]
    kind: str  # norm | signs | embedding | tied | head | inner | residual
    depth: int = 1  # layers of the model; residual writers are scaled down by it


def _layout(shape: Shape) -> Iterator[_Tensor]:
    d, ff, vocabulary = shape.embedding, shape.feed_forward, tokenizer.VOCABULARY_SIZE
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield _Tensor("token_embd.weight", (vocabulary, d), "tied" if shape.tied else "embedding")
    for i in range(shape.layers):
        yield _Tensor(f"blk.{i}.attn_norm.weight", (d,), "norm")
        yield _Tensor(f"blk.{i}.attn_q.weight", (q, d), "inner")
        yield _Tensor(f"blk.{i}.attn_k.weight", (kv, d), "inner")
        yield _Tensor(f"blk.{i}.attn_v.weight", (kv, d), "inner")
        yield _Tensor(f"blk.{i}.attn_output.weight", (d, q), "residual", shape.layers)
        if shape.architecture == "qwen3":
            yield _Tensor(f"blk.{i}.attn_q_norm.weight", (shape.head_dim,), "norm")
            yield _Tensor(f"blk.{i}.attn_k_norm.weight", (shape.head_dim,), "norm")
        yield _Tensor(f"blk.{i}.ffn_norm.weight", (d,), "norm")
        yield _Tensor(f"blk.{i}.ffn_gate.weight", (ff, d), "inner")
        yield _Tensor(f"blk.{i}.ffn_up.weight", (ff, d), "inner")
        yield _Tensor(f"blk.{i}.ffn_down.weight", (d, ff), "residual", shape.layers)
    yield _Tensor("output_norm.weight", (d,), "signs" if shape.tied else "norm")
    if not shape.tied:
        yield _Tensor("output.weight", (vocabulary, d), "head")


def _values(tensor: _Tensor, seed: int) -> npt.NDArray[np.float32]:
    """Fill one tensor.

    Matrices are normal with standard deviation 1/sqrt(inputs), those that write to the residual stream also over
    sqrt(2 x layers) (Radford et al. 2019, section 2.3), so that its size stays near 1 at any depth. Embeddings are
    standard normal.

    The bias channels stay exactly 1 through all layers. In the head they carry each token's log-frequency in the
    corpus, and a strongly negative number for control tokens: words come about as often as in English, and a generation
    goes on until its limit instead of drawing an end-of-turn by chance.

    A tied embedding stands on both ends. Its bias channels are positive, and larger for more frequent tokens: whatever
    the last token was, their product prefers the frequent ones. Those of control tokens are strongly negative, so that
    only a control token could call for another: a prompt for a tied model ends with text. The last norm flips the sign
    of half of the other channels, or each token would be most like itself and be said again and again.
    """
    if tensor.kind == "norm":
        return np.ones(tensor.shape, dtype=np.float32)
    # A stream for each tensor, so that its values do not depend on the order of writing.
    generator = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    values = generator.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.kind == "signs":
        values = np.sign(values)
        values[:BIAS_CHANNELS] = 1
        return values
    if tensor.kind != "embedding":
        values *= np.float32(tensor.shape[1] ** -0.5)
    control = len(tokenizer.CONTROL_TOKENS)
    if tensor.kind == "embedding":
        values[:, :BIAS_CHANNELS] = 1
    elif tensor.kind == "tied":
        values *= np.float32(HEAD_GAIN)
        frequency = np.asarray(tokenizer.train().log_frequency, dtype=np.float32)
        share = (frequency - frequency.min()) / (frequency.max() - frequency.min())
        bias = np.float32(TIED_BIAS) * (np.float32(0.5) + share)
        bias[:control] = TIED_CONTROL_BIAS
        values[:, :BIAS_CHANNELS] = bias[:, None]
    elif tensor.kind == "residual":
        values *= np.float32((2 * tensor.depth) ** -0.5)
        values[:BIAS_CHANNELS, :] = 0
    elif tensor.kind == "head":
        values *= np.float32(HEAD_GAIN)
        bias = FREQUENCY_WEIGHT * np.asarray(tokenizer.train().log_frequency, dtype=np.float32)
        bias[:control] = CONTROL_LOGIT
        values[:, :BIAS_CHANNELS] = bias[:, None] / BIAS_CHANNELS
    return values
