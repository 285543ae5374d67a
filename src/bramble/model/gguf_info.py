"""Reads a model's shape from the header of its GGUF file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from bramble.model.shape import ModelShape, ShapeError

_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_GUESSED = 1024  # A flag in general.file_type: llama.cpp's LLAMA_FTYPE_GUESSED.


class GgufError(Exception):
    """The file is not a GGUF model, or lacks something that every model has."""


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open GGUF file: its header is read, its weights are mapped."""

    path: Path
    bytes: int
    reader: Any

    def value(self, key: str, default: Any = None) -> Any:
        """What stands under `key`, or `default`. Raises GgufError if the key is missing and there is no default."""
        field = self.reader.get_field(key)
        if field is None:
            if default is None:
                raise GgufError(
                    f"{self.path}: the key {key} is missing: not a language model, or a split or damaged file"
                )
            return default
        try:
            return field.contents()
        except (ValueError, IndexError, TypeError) as error:
            raise GgufError(f"{self.path}: the key {key} cannot be read: {error}: a damaged file") from error

    def number(self, key: str, default: int | None = None) -> int:
        """As `value`. Some architectures give one figure per layer; the largest is what memory must be planned for."""
        found = self.value(key, default)
        try:
            return int(max(found)) if isinstance(found, list) else int(found)
        except (TypeError, ValueError, OverflowError) as error:
            raise GgufError(f"{self.path}: the key {key} is {found!r:.80}, not a number: a damaged file") from error


def open_gguf(path: Path | str) -> GgufFile:
    """Read the header of the GGUF file at `path`. Raises GgufError if it cannot be read or is not a whole GGUF file."""
    path = Path(path)
    try:
        size = path.stat().st_size
        reader = gguf.GGUFReader(path, "r")
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror or error}") from error
    # GGUFReader trusts the file: depending on where it is cut or wrong, numpy or the reader itself gives up.
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError) as error:
        raise GgufError(f"{path}: not a whole GGUF file: {error}") from error
    return GgufFile(path, size, reader)


def read_shape(path: Path | str) -> ModelShape:
    """The shape of the model in the GGUF file at `path`.

    Raises:
        GgufError: the file cannot be read, is no GGUF file, or holds no whole language model.
    """
    return shape_of(open_gguf(path))


def shape_of(file: GgufFile) -> ModelShape:
    """The shape of the model in an open file.

    Raises:
        GgufError: it is no whole language model.
    """
    path, reader, number = file.path, file.reader, file.number
    architecture = str(file.value("general.architecture"))
    heads = number(f"{architecture}.attention.head_count")
    layers, embedding = number(f"{architecture}.block_count"), number(f"{architecture}.embedding_length")
    experts, used = number(f"{architecture}.expert_count", 0), number(f"{architecture}.expert_used_count", 0)
    by_name = {str(tensor.name): tensor for tensor in reader.tensors}
    if "token_embd.weight" not in by_name:
        raise GgufError(f"{path}: holds no token_embd.weight: a vocabulary without a model, or a part of a split model")
    if not 0 < layers <= len(by_name):
        raise GgufError(f"{path}: says that it has {layers} layers, and holds {len(by_name)} tensors")

    layer_bytes, layer_parameters, layer_active = [0] * layers, [0] * layers, [0] * layers
    other = 0
    by_type: Counter[str] = Counter()
    weights_by_type: Counter[str] = Counter()
    for name, tensor in by_name.items():
        stored, weights = int(tensor.n_bytes), int(tensor.n_elements)
        weights_by_type[tensor.tensor_type.name] += weights
        block = _BLOCK.match(name)
        if block is not None and int(block[1]) < layers:
            layer = int(block[1])
            layer_bytes[layer] += stored
            layer_parameters[layer] += weights
            layer_active[layer] += stored * used // experts if experts and "_exps." in name else stored
        elif name not in ("token_embd.weight", "output.weight"):
            other += stored
        if (block is not None or name == "output.weight") and len(tensor.shape) > 1:
            by_type[tensor.tensor_type.name] += stored
    if not all(layer_bytes):
        missing = layer_bytes.index(0)
        raise GgufError(f"{path}: holds no tensor of layer {missing} of {layers}: a part of a split model")

    tokens = reader.get_field("tokenizer.ggml.tokens")
    output = by_name.get("output.weight")
    dense = number(f"{architecture}.feed_forward_length", 0)
    values = {
        "name": str(file.value("general.name", path.stem)) or path.stem,
        "architecture": architecture,
        "quantization": _quantization(reader, weights_by_type),
        "layers": layers,
        "context": number(f"{architecture}.context_length"),
        "embedding": embedding,
        "feed_forward": number(f"{architecture}.expert_feed_forward_length", dense) if experts else dense,
        "heads": heads,
        "kv_heads": number(f"{architecture}.attention.head_count_kv", heads),
        "key_length": number(f"{architecture}.attention.key_length", embedding // heads if heads else 0),
        "value_length": number(f"{architecture}.attention.value_length", embedding // heads if heads else 0),
        "vocabulary": len(tokens.data) if tokens is not None else number(f"{architecture}.vocab_size"),
        "experts": experts,
        "experts_used": used,
        "tied": output is None,
        "parameters": weights_by_type.total(),
        "bytes": file.bytes,
        "embedding_bytes": int(by_name["token_embd.weight"].n_bytes),
        "output_bytes": int(output.n_bytes) if output is not None else 0,
        "other_bytes": other,
        "layer_bytes": layer_bytes,
        "layer_parameters": layer_parameters,
        "layer_active_bytes": layer_active,
        "largest_tensor_bytes": max(int(tensor.n_bytes) for tensor in by_name.values()),
        "type_bytes": dict(sorted(by_type.items())),
    }
    try:
        return ModelShape.from_dict(values)
    except ShapeError as error:
        raise GgufError(f"{path}: does not describe a language model: {error}") from error


def _quantization(reader: Any, weights_by_type: Counter[str]) -> str:
    """The mix that the file says it has, such as `Q4_K_M`; or else the type that holds the most weights."""
    field = reader.get_field("general.file_type")
    try:
        name = gguf.LlamaFileType(int(field.contents()) & ~_GUESSED).name
    except (AttributeError, TypeError, ValueError):
        return weights_by_type.most_common(1)[0][0]
    return str(name).removeprefix("MOSTLY_").removeprefix("ALL_")
