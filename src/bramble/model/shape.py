"""What the planner must know of a model: its widths, and how many bytes each part of it has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

CACHE_BYTES = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
"""Bytes of one value in a KV cache of that type (llama.cpp's `--cache-type-k` and `-v`; ggml's block sizes)."""

LARGEST = 2**63


class ShapeError(ValueError):
    """The values describe no model. The message names each field that is wrong."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Facts of one model. Widths count values, `*_bytes` are bytes of the weights as they are stored in the file.

    Attributes:
        architecture: as llama.cpp names it, such as `llama`, `qwen2`, `qwen3moe`.
        quantization: the mix by its usual name, such as `Q4_K_M`.
        layers: transformer blocks, without the output layer that llama.cpp adds when it counts layers to offload.
        context: tokens that it was trained for.
        embedding: width of the residual stream.
        feed_forward: inner width of the feed-forward part; in a mixture of experts, of one expert.
        heads, kv_heads: of attention. Equal where queries are not grouped.
        key_length, value_length: width of one head's key and value.
        vocabulary: tokens.
        experts, experts_used: in each layer, and those that one token goes through. 0 and 0 if dense.
        tied: the input embedding also serves as output matrix.
        parameters: weights in the file.
        bytes: the file's size, header included.
        embedding_bytes: the input embedding, `vocabulary` x `embedding`.
        output_bytes: the output matrix; 0 if tied.
        other_bytes: what belongs to no layer: the last norm, rope factors.
        layer_bytes, layer_parameters: of each layer.
        layer_active_bytes: what one token reads of each layer: of the experts' matrices only the share
            `experts_used` / `experts`.
        largest_tensor_bytes: the largest tensor.
        type_bytes: bytes of all layers' matrices and the output matrix, by ggml type (`Q4_K`, `Q6_K`).
    """

    name: str
    architecture: str
    quantization: str
    layers: int
    context: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    key_length: int
    value_length: int
    vocabulary: int
    experts: int
    experts_used: int
    tied: bool
    parameters: int
    bytes: int
    embedding_bytes: int
    output_bytes: int
    other_bytes: int
    layer_bytes: tuple[int, ...]
    layer_parameters: tuple[int, ...]
    layer_active_bytes: tuple[int, ...]
    largest_tensor_bytes: int
    type_bytes: tuple[tuple[str, int], ...]

    @property
    def key_width(self) -> int:
        """Values of one token's keys in one layer."""
        return self.kv_heads * self.key_length

    @property
    def value_width(self) -> int:
        """Values of one token's values in one layer."""
        return self.kv_heads * self.value_length

    @property
    def weight_bytes(self) -> int:
        """All tensors, without the file's header."""
        return self.embedding_bytes + self.output_bytes + self.other_bytes + sum(self.layer_bytes)

    @property
    def head_bytes(self) -> int:
        """The matrix that makes logits: read whole for each token."""
        return self.embedding_bytes if self.tied else self.output_bytes

    @property
    def active_bytes(self) -> int:
        """What one token reads of the weights. Of an input embedding that is not tied it is one row: left out."""
        return sum(self.layer_active_bytes) + self.head_bytes + self.other_bytes

    def kv_bytes_per_token_per_layer(self, cache_type_k: str = "f16", cache_type_v: str = "f16") -> float:
        """Bytes that one token's keys and values take in one layer.

        Raises:
            ShapeError: an unknown type of cache.
        """
        for cache_type in (cache_type_k, cache_type_v):
            if cache_type not in CACHE_BYTES:
                raise ShapeError(f"cache type: {cache_type!r} is not one of {', '.join(CACHE_BYTES)}")
        return self.key_width * CACHE_BYTES[cache_type_k] + self.value_width * CACHE_BYTES[cache_type_v]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: lists for tuples, and an object for `type_bytes`."""
        found = asdict(self)
        for key in _PER_LAYER:
            found[key] = list(found[key])
        return found | {"type_bytes": dict(self.type_bytes)}

    @classmethod
    def from_dict(cls, value: object) -> ModelShape:
        """The reverse of `as_dict`.

        Raises:
            ShapeError: it describes no model; the message names each field that is wrong.
        """
        found = list(_defects(value))
        if found:
            raise ShapeError("; ".join(found))
        assert isinstance(value, Mapping)
        lists = {key: tuple(value[key]) for key in _PER_LAYER}
        return cls(**{**value, **lists, "type_bytes": tuple(value["type_bytes"].items())})


_TEXTS = ("name", "architecture", "quantization")
_PER_LAYER = ("layer_bytes", "layer_parameters", "layer_active_bytes")
# What may be 0: the rest is 1 or more.
_MAY_BE_0 = ("experts", "experts_used", "output_bytes", "other_bytes")
_COUNTS = tuple(
    field.name for field in fields(ModelShape) if field.name not in (*_TEXTS, *_PER_LAYER, "tied", "type_bytes")
)


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < LARGEST


def _defects(value: object) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"is {type(value).__name__}, not an object"
        return
    names = [field.name for field in fields(ModelShape)]
    yield from (f"{key}: is not a field of a model's shape" for key in value if key not in names)
    yield from (f"{key}: is missing" for key in names if key not in value)
    wrong = list(_wrong_values(value))
    yield from wrong
    if not wrong and all(key in value for key in names):
        yield from _contradictions(value)


def _wrong_values(value: Mapping[str, Any]) -> Iterator[str]:
    for key in _TEXTS:
        if key in value and not (isinstance(value[key], str) and value[key]):
            yield f"{key}: is {value[key]!r:.80}, not a text"
    for key in _COUNTS:
        least = 0 if key in _MAY_BE_0 else 1
        if key in value and not _whole(value[key], least):
            yield f"{key}: is {value[key]!r:.80}, not a whole number of {least} or more"
    for key in _PER_LAYER:
        if key in value and not (
            isinstance(value[key], list | tuple) and value[key] and all(_whole(item, 1) for item in value[key])
        ):
            yield f"{key}: is {value[key]!r:.80}, not a list of whole numbers of 1 or more"
    if "tied" in value and not isinstance(value["tied"], bool):
        yield f"tied: is {value['tied']!r:.80}, neither true nor false"
    types = value.get("type_bytes", {})
    if not isinstance(types, Mapping) or not all(isinstance(key, str) and _whole(types[key], 0) for key in types):
        yield f"type_bytes: is {types!r:.80}, not an object of ggml types and bytes"


def _contradictions(value: Mapping[str, Any]) -> Iterator[str]:
    for key in _PER_LAYER:
        if len(value[key]) != value["layers"]:
            yield f"{key}: has {len(value[key])} numbers for {value['layers']} layers"
    if value["heads"] % value["kv_heads"]:
        yield f"kv_heads: is {value['kv_heads']}, which does not divide the {value['heads']} heads"
    if (value["experts"] == 0) != (value["experts_used"] == 0) or value["experts_used"] > value["experts"]:
        yield f"experts_used: is {value['experts_used']} of {value['experts']} experts"
    if value["tied"] != (value["output_bytes"] == 0):
        yield f"output_bytes: is {value['output_bytes']}, and tied is {str(value['tied']).lower()}"
    if any(active > whole for active, whole in zip(value["layer_active_bytes"], value["layer_bytes"], strict=False)):
        yield "layer_active_bytes: has a layer of which more is read than it holds"
    whole = value["embedding_bytes"] + value["output_bytes"] + value["other_bytes"] + math.fsum(value["layer_bytes"])
    if whole > value["bytes"]:
        yield f"bytes: is {value['bytes']}, less than the {whole:.0f} bytes of the parts together"
