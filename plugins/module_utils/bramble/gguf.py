"""The facts of a GGUF file, from its header: the same as `ModelShape.as_dict()` on the controller.

Standard library only. The weights are never read. Nothing is allocated that the file is not large enough to hold: a
cut or made-up file costs an error and no more. Format: ggml/include/gguf.h of llama.cpp, versions 2 and 3.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Values of metadata: number → struct's letter. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DIMENSIONS = 4  # GGML_MAX_DIMS
_NAME = 64  # GGML_MAX_NAME
_LONGEST_TEXT = 1 << 16  # Of what is kept; chat templates are longer, and skipped.
_KEPT_VALUES = 4096  # Of arrays: figures for each layer, not vocabularies.
_ALIGNMENT = 32
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED

# ggml.h, enum ggml_type: number → name, weights in a block, bytes of a block (ggml-common.h).
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
# llama.h, enum llama_ftype.
MIXES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
}
_BLOCK = re.compile(r"blk\.(\d{1,6})\.", re.ASCII)


class GgufError(Exception):
    """The file cannot be read, is no GGUF file, or holds no whole language model. The message names the file."""


class Tensor(NamedTuple):
    name: str
    type: str
    weights: int
    bytes: int
    dimensions: int


class Header(NamedTuple):
    """`metadata`: key → value; of a long array and of a long text only the `Length`."""

    metadata: dict[str, Any]
    tensors: list[Tensor]


class Length(int):
    """How many values an array has that was not kept."""


class _Reader:
    """Reads from a file whose size is known, and never more than is left of it."""

    def __init__(self, file: BinaryIO, size: int, start: int = 0) -> None:
        self.file = file
        self.left = size - start
        self.byte_order = "<"

    def take(self, count: int) -> bytes:
        self._claim(count)
        data = self.file.read(count)
        if len(data) != count:
            raise GgufError("ends in the middle of its header: a file that is not whole")
        return data

    def skip(self, count: int) -> None:
        self._claim(count)
        self.file.seek(count, 1)

    def _claim(self, count: int) -> None:
        if count > self.left:
            raise GgufError("ends in the middle of its header: a file that is not whole")
        self.left -= count

    def number(self, kind: str) -> Any:
        found = struct.unpack(self.byte_order + kind, self.take(struct.calcsize(f"={kind}")))
        return found[0]

    def text(self, longest: int = _LONGEST_TEXT) -> str | Length:
        length = self.number("Q")
        if length > longest:
            self.skip(length)
            return Length(length)
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise GgufError(f"has a value of the unknown type {kind}: a newer format, or damaged")
        item, count = self.number("I"), self.number("Q")
        if item in _SCALARS:
            size = struct.calcsize(f"={_SCALARS[item]}")
            if count > _KEPT_VALUES:
                self.skip(count * size)
                return Length(count)
            return list(struct.unpack(f"{self.byte_order}{count}{_SCALARS[item]}", self.take(count * size)))
        if item == _STRING:
            if count * 8 > self.left:  # Each has at least its length.
                raise GgufError("ends in the middle of its header: a file that is not whole")
            for _ in range(count):
                self.skip(self.number("Q"))
            return Length(count)
        raise GgufError(f"has an array of the type {item}, which no array has: damaged")


def read_header(path: Path | str) -> tuple[Header, int]:
    """The header of the GGUF file at `path`, and the file's size.

    Raises:
        GgufError: it cannot be read, is no GGUF file, or is shorter than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _header(_Reader(file, size), size), size
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror or error}") from error
    except GgufError as error:
        raise GgufError(f"{path}: {error}") from error


def _header(reader: _Reader, size: int) -> Header:
    if reader.left < 4 or reader.take(4) != MAGIC:
        raise GgufError("is no GGUF file")
    version = reader.number("I")
    if version not in VERSIONS and version & 0xFFFF == 0:
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
        reader.byte_order = ">"
    if version not in VERSIONS:
        raise GgufError(f"is of GGUF's version {version}; known are {' and '.join(map(str, VERSIONS))}")
    tensor_count, value_count = reader.number("Q"), reader.number("Q")
    # A value takes at least 13 bytes, a tensor 24: a count that the file cannot hold is not even tried.
    if value_count * 13 + tensor_count * 24 > reader.left:
        raise GgufError(f"cannot hold the {value_count} values and {tensor_count} tensors that it promises: not whole")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key = reader.text()
        value = reader.value(reader.number("I"))
        if isinstance(key, str):
            metadata[key] = value
    tensors: list[Tensor] = []
    end = 0
    for _ in range(tensor_count):
        tensor, offset = _tensor(reader)
        tensors.append(tensor)
        end = max(end, offset + tensor.bytes)
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 0 < alignment <= 1 << 20:
        raise GgufError(f"wants its weights aligned to {alignment!r:.40}: damaged")
    start = -(-(size - reader.left) // alignment) * alignment
    if tensors and start + end > size:
        raise GgufError(f"has {size} bytes, and its tensors end at {start + end}: a file that is not whole")
    return Header(metadata, tensors)


def _tensor(reader: _Reader) -> tuple[Tensor, int]:
    name = reader.text(_NAME)
    if not isinstance(name, str):
        raise GgufError(f"has a tensor whose name has {name} bytes: damaged")
    dimensions = reader.number("I")
    if dimensions > _DIMENSIONS:
        raise GgufError(f"has a tensor of {dimensions} dimensions: damaged")
    extents = [reader.number("Q") for _ in range(dimensions)]
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in TYPES:
        raise GgufError(f"has a tensor of the unknown type {kind}: a newer format, or damaged")
    type_name, block, block_bytes = TYPES[kind]
    weights = 1
    for extent in extents:
        weights *= extent
    if extents and extents[0] % block:
        raise GgufError(f"has a tensor of rows of {extents[0]}, which are no blocks of {block}: damaged")
    return Tensor(name, type_name, weights, weights // block * block_bytes, dimensions), offset


def model_facts(path: Path | str) -> dict[str, Any]:
    """What the planner must know of the model in a GGUF file: the fields of `bramble.model.ModelShape`.

    Where an architecture gives one figure per layer, the largest counts.

    Raises:
        GgufError: it cannot be read, is no GGUF file, or holds no whole language model.
    """
    header, size = read_header(path)
    try:
        return _facts(Path(path), header, size)
    except GgufError as error:
        raise GgufError(f"{path}: {error}") from error


def _number(metadata: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    found = metadata.get(key, default)
    if found is None:
        raise GgufError(f"the key {key} is missing: not a language model, or a split or damaged file")
    if isinstance(found, list):
        found = max((item for item in found if isinstance(item, int)), default=None)
    if not isinstance(found, int) or isinstance(found, Length | bool) or not least <= found < 1 << 63:
        raise GgufError(f"the key {key} is not a whole number of {least} or more: damaged")
    return found


def _facts(path: Path, header: Header, size: int) -> dict[str, Any]:
    metadata, by_name = header.metadata, {tensor.name: tensor for tensor in header.tensors}
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or isinstance(architecture, Length) or not architecture:
        raise GgufError("the key general.architecture is missing: not a language model, or a split or damaged file")

    def number(key: str, default: int | None = None, least: int = 1) -> int:
        return _number(metadata, f"{architecture}.{key}", default, least)

    heads, layers, embedding = number("attention.head_count"), number("block_count"), number("embedding_length")
    experts, used = number("expert_count", 0, 0), number("expert_used_count", 0, 0)
    if (experts == 0) != (used == 0) or used > experts:
        raise GgufError(f"says that {used} of {experts} experts are used: damaged")
    if "token_embd.weight" not in by_name:
        raise GgufError("holds no token_embd.weight: a vocabulary without a model, or a part of a split model")
    if layers > len(by_name):
        raise GgufError(f"says that it has {layers} layers, and holds {len(by_name)} tensors: damaged")
    layer_bytes, layer_parameters, layer_active = [0] * layers, [0] * layers, [0] * layers
    other = 0
    by_type: Counter[str] = Counter()
    weights_by_type: Counter[str] = Counter()
    for tensor in by_name.values():
        weights_by_type[tensor.type] += tensor.weights
        block = _BLOCK.match(tensor.name)
        if block is not None and int(block[1]) < layers:
            layer = int(block[1])
            layer_bytes[layer] += tensor.bytes
            layer_parameters[layer] += tensor.weights
            shared = experts and "_exps." in tensor.name
            layer_active[layer] += tensor.bytes * used // experts if shared else tensor.bytes
        elif tensor.name not in ("token_embd.weight", "output.weight"):
            other += tensor.bytes
        if (block is not None or tensor.name == "output.weight") and tensor.dimensions > 1:
            by_type[tensor.type] += tensor.bytes
    if not all(layer_active):
        raise GgufError(f"holds no tensor of layer {layer_active.index(0)} of {layers}: a part of a split model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    output = by_name.get("output.weight")
    dense = number("feed_forward_length", None if not experts else 0, 0 if experts else 1)
    name = metadata.get("general.name")
    mix = metadata.get("general.file_type")
    named = MIXES.get(mix & ~_GUESSED) if isinstance(mix, int) else None
    return {
        "name": name if isinstance(name, str) and name else path.stem,
        "architecture": architecture,
        "quantization": named or weights_by_type.most_common(1)[0][0],
        "layers": layers,
        "context": number("context_length"),
        "embedding": embedding,
        "feed_forward": number("expert_feed_forward_length", dense) if experts else dense,
        "heads": heads,
        "kv_heads": number("attention.head_count_kv", heads),
        "key_length": number("attention.key_length", embedding // heads),
        "value_length": number("attention.value_length", embedding // heads),
        "vocabulary": int(tokens) if isinstance(tokens, Length) and tokens else number("vocab_size"),
        "experts": experts,
        "experts_used": used,
        "tied": output is None,
        "parameters": weights_by_type.total(),
        "bytes": size,
        "embedding_bytes": by_name["token_embd.weight"].bytes,
        "output_bytes": output.bytes if output is not None else 0,
        "other_bytes": other,
        "layer_bytes": layer_bytes,
        "layer_parameters": layer_parameters,
        "layer_active_bytes": layer_active,
        "largest_tensor_bytes": max(tensor.bytes for tensor in by_name.values()),
        "type_bytes": dict(sorted(by_type.items())),
    }
