"""Changes to GGUF files that the stand-in's maker does not offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def vary_norms(path: Path) -> None:
    """Give each norm weights of its own, in place: the stand-in's are all alike, so that none could be mistaken."""
    random = np.random.default_rng(0)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if "norm" in tensor.name:
            tensor.data[:] *= random.uniform(0.7, 1.4, tensor.data.shape).astype(np.float32)


def altered(source: Path, target: Path, fields: dict[str, Any], tensors: dict[str, Any] | None = None) -> Path:
    """A copy of a GGUF with other fields and tensors; None takes one away, a type gives a tensor of zeros."""
    reader = gguf.GGUFReader(source)
    old = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    contents = {key: field.contents() for key, field in old.items()} | fields
    writer = gguf.GGUFWriter(target, contents.pop("general.architecture"))
    for key, value in contents.items():
        if key in old and value is not None:
            writer.add_key_value(key, value, old[key].types[0], old[key].types[-1])
        elif value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    changed = dict(tensors or {})
    for tensor in reader.tensors:
        new = changed.pop(tensor.name, tensor)
        if isinstance(new, gguf.GGMLQuantizationType):
            block, size = gguf.GGML_QUANT_SIZES[new]
            rows, columns = tensor.shape[1], tensor.shape[0]
            writer.add_tensor(tensor.name, np.zeros((rows, columns // block * size), np.uint8), raw_dtype=new)
        elif new is tensor:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        elif new is not None:
            writer.add_tensor(tensor.name, new)
    for name, new in changed.items():
        writer.add_tensor(name, new)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
