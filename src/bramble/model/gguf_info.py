"""What the planner and the reports want to know of a GGUF file, read from its header."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf


class GgufError(Exception):
    """The file is not a GGUF model, or lacks something that every model has."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of one model file.

    `layers` counts transformer blocks, without the output layer that llama.cpp adds when it counts layers to offload.
    `kv_heads` equals `heads` where the file does not group its queries.
    `quantization` is the ggml type that holds the most parameters, such as `Q4_K`: for the mixes that llama.cpp calls
    `Q4_K_M` this is the type of the bulk, not the name of the mix.
    """

    path: str
    name: str
    architecture: str
    layers: int
    context: int
    embedding: int
    heads: int
    kv_heads: int
    vocabulary: int
    parameters: int
    bytes: int
    quantization: str

    def as_dict(self) -> dict[str, str | int]:
        return asdict(self)


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
        return field.contents()

    def number(self, key: str, default: int | None = None) -> int:
        """As `value`. Some architectures give one figure per layer; the largest is what memory must be planned for."""
        found = self.value(key, default)
        return int(max(found)) if isinstance(found, list) else int(found)


def open_gguf(path: Path | str) -> GgufFile:
    """Read the header of the GGUF file at `path`. Raises GgufError if it cannot be read or is not a whole GGUF file."""
    path = Path(path)
    try:
        size = path.stat().st_size
        reader = gguf.GGUFReader(path, "r")
    except OSError as error:
        raise GgufError(f"{path}: cannot be read: {error.strerror or error}") from error
    # GGUFReader trusts the file: depending on where it is cut or wrong, numpy or the reader itself gives up.
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise GgufError(f"{path}: not a whole GGUF file: {error}") from error
    return GgufFile(path, size, reader)


def read_model_info(path: Path | str) -> ModelInfo:
    """Read what the GGUF file at `path` says of itself.

    Raises GgufError if the file cannot be read or is not a GGUF model.
    """
    return model_info(open_gguf(path))


def model_info(file: GgufFile) -> ModelInfo:
    """The facts of an open file. Raises GgufError if it is no language model."""
    path, reader = file.path, file.reader
    architecture = str(file.value("general.architecture"))
    heads = file.number(f"{architecture}.attention.head_count")
    by_type: Counter[str] = Counter()
    for tensor in reader.tensors:
        by_type[tensor.tensor_type.name] += int(tensor.n_elements)
    if not by_type:
        raise GgufError(f"{path}: holds no tensors: a vocabulary without a model, or the first part of a split model")
    tokens = reader.get_field("tokenizer.ggml.tokens")
    return ModelInfo(
        path=str(path),
        name=str(file.value("general.name", path.stem)),
        architecture=architecture,
        layers=file.number(f"{architecture}.block_count"),
        context=file.number(f"{architecture}.context_length"),
        embedding=file.number(f"{architecture}.embedding_length"),
        heads=heads,
        kv_heads=file.number(f"{architecture}.attention.head_count_kv", heads),
        vocabulary=len(tokens.data) if tokens is not None else file.number(f"{architecture}.vocab_size"),
        parameters=by_type.total(),
        bytes=file.bytes,
        quantization=by_type.most_common(1)[0][0],
    )
