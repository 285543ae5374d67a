"""A model's shape from published figures, where there is no file to read: the catalogue's entries, and papers' models.

Which type each tensor gets is llama.cpp's own rule (src/llama-quant.cpp, `llama_tensor_get_type_impl`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bramble.model.shape import LARGEST, ModelShape, ShapeError

# Weights in a block, bytes of a block (ggml/src/ggml-common.h).
_BLOCKS = {
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "Q8_0": (32, 34),
    "Q5_1": (32, 24),
    "Q5_0": (32, 22),
    "Q4_1": (32, 20),
    "Q4_0": (32, 18),
    "Q6_K": (256, 210),
    "Q5_K": (256, 176),
    "Q4_K": (256, 144),
}
# Where a row is no multiple of 256 (`tensor_type_fallback`).
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_BULK = {"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q5_K_M": "Q5_K", "Q5_K_S": "Q5_K"} | {
    name: name for name in _BLOCKS if name not in ("Q4_K", "Q5_K")
}
QUANTIZATIONS = tuple(sorted(_BULK))
_NOT_REDUCED = ("F32", "F16", "BF16", "Q8_0")

_NEEDED = ("layers", "context", "embedding", "feed_forward", "heads", "kv_heads", "key_length", "vocabulary")
_OPTIONAL = ("value_length", "experts", "experts_used", "bytes")


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    rows: int
    columns: int
    type: str
    experts: int = 1

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.experts

    @property
    def bytes(self) -> int:
        block, size = _BLOCKS[self.type]
        return self.weights // block * size


def known_shape(entry: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> ModelShape:
    """The shape of a model of which only figures are known.

    Args:
        entry: of the catalogue: `family` (the architecture), `layers`, `context`, `quantization`; `bytes`, the file's
            size, if it is known; a `name`.
        config: what the entry does not tell: `embedding`, `feed_forward`, `heads`, `kv_heads`, `key_length`,
            `value_length` (if another), `vocabulary`, `tied` (as the file has it); `experts` and `experts_used` of
            a mixture, whose `feed_forward` is that of one expert.

    Raises:
        ShapeError: names each field that is missing or wrong.
    """
    facts = {**entry, **(config or {})}
    wrong = list(_defects(facts))
    if wrong:
        raise ShapeError("; ".join(wrong))
    facts = {"value_length": facts["key_length"], "experts": 0, "experts_used": 0, **facts}
    layers = [list(_layer(facts, layer)) for layer in range(facts["layers"])]

    def whole(*, pure: bool) -> tuple[_Tensor, _Tensor | None, list[_Tensor], list[_Tensor]]:
        embedding, output, other = _ends(facts, pure=pure)
        ends = [embedding, *([output] if output else []), *other]
        return embedding, output, other, [*ends, *(tensor for layer in layers for tensor in layer)]

    embedding, output, other, every = whole(pure=False)
    if facts.get("bytes", LARGEST) < sum(tensor.bytes for tensor in every):
        # llama-quantize --pure, and `bramble model synth`: the output has no more bits than the rest.
        embedding, output, other, every = whole(pure=True)
    by_type: Counter[str] = Counter()
    for tensor in every:
        if tensor is not embedding and tensor.rows > 1:
            by_type[tensor.type] += tensor.bytes
    used, experts = facts["experts_used"], facts["experts"]

    def active(tensor: _Tensor) -> int:
        return tensor.bytes * used // experts if tensor.experts > 1 else tensor.bytes

    values = {key: facts[key] for key in (*_NEEDED, "value_length", "experts", "experts_used", "tied", "quantization")}
    weights = sum(tensor.bytes for tensor in every)
    return ModelShape.from_dict(
        values
        | {
            "name": str(facts.get("name", "model")),
            "architecture": facts["family"],
            "parameters": sum(tensor.weights for tensor in every),
            "bytes": facts.get("bytes", weights),
            "embedding_bytes": embedding.bytes,
            "output_bytes": output.bytes if output else 0,
            "other_bytes": sum(tensor.bytes for tensor in other),
            "layer_bytes": [sum(tensor.bytes for tensor in layer) for layer in layers],
            "layer_parameters": [sum(tensor.weights for tensor in layer) for layer in layers],
            "layer_active_bytes": [sum(map(active, layer)) for layer in layers],
            "largest_tensor_bytes": max(tensor.bytes for tensor in every),
            "type_bytes": dict(sorted(by_type.items())),
        }
    )


def catalogue_fields(shape: ModelShape) -> dict[str, Any]:
    """What a catalogue's entry tells of a model besides its file: from this `known_shape` makes the shape again."""
    fields = {"family": shape.architecture, "parameters": shape.parameters, "quantization": shape.quantization}
    fields |= {key: getattr(shape, key) for key in (*_NEEDED, "tied")}
    if shape.value_length != shape.key_length:
        fields["value_length"] = shape.value_length
    if shape.experts:
        fields |= {"experts": shape.experts, "experts_used": shape.experts_used}
    return fields


def _defects(facts: Mapping[str, Any]) -> Iterator[str]:
    for key in ("family", "quantization"):
        if not (isinstance(facts.get(key), str) and facts[key]):
            yield f"{key}: is {facts[key]!r:.80}, not a text" if key in facts else f"{key}: is missing"
    if isinstance(facts.get("quantization"), str) and facts["quantization"] not in _BULK:
        yield f"quantization: {facts['quantization']!r:.80} is not one of {', '.join(QUANTIZATIONS)}"
    for key in (*_NEEDED, *_OPTIONAL):
        least = 0 if key.startswith("experts") else 1
        if key not in facts:
            if key in _NEEDED:
                yield f"{key}: is missing"
        elif not isinstance(facts[key], int) or isinstance(facts[key], bool) or not least <= facts[key] < LARGEST:
            yield f"{key}: is {facts[key]!r:.80}, not a whole number of {least} or more"
        elif key == "layers" and facts[key] > 10_000:
            yield f"layers: is {facts[key]}, more than any model has"
    if not isinstance(facts.get("tied"), bool):
        yield f"tied: is {facts['tied']!r:.80}, neither true nor false" if "tied" in facts else "tied: is missing"


def _fit(wanted: str, columns: int) -> str:
    if columns % _BLOCKS[wanted][0] == 0:
        return wanted
    fallback = _FALLBACKS.get(wanted, "F16")
    return fallback if columns % _BLOCKS[fallback][0] == 0 else "F16"


def _ends(facts: Mapping[str, Any], *, pure: bool) -> tuple[_Tensor, _Tensor | None, list[_Tensor]]:
    """Input embedding, output matrix if there is one, and what else is in no layer. `pure`: of the layers' type."""
    vocabulary, width, bulk = facts["vocabulary"], facts["embedding"], _BULK[facts["quantization"]]
    best = _fit(bulk if pure or bulk in _NOT_REDUCED else "Q6_K", width)
    other = [_Tensor("output_norm", 1, width, "F32")]
    if facts["family"] == "llama" and facts["vocabulary"] == 128256:  # Llama 3.1 and later scale their rotations.
        other.append(_Tensor("rope_freqs", 1, facts["key_length"] // 2, "F32"))
    if facts["tied"]:
        return _Tensor("token_embd", vocabulary, width, best), None, other
    return (
        _Tensor("token_embd", vocabulary, width, _fit(bulk, width)),
        _Tensor("output", vocabulary, width, best),
        other,
    )


def _layer(facts: Mapping[str, Any], layer: int) -> Iterator[_Tensor]:
    width, inner = facts["embedding"], facts["feed_forward"]
    queries = facts["heads"] * facts["key_length"]
    keys, values = facts["kv_heads"] * facts["key_length"], facts["kv_heads"] * facts["value_length"]
    bulk = _BULK[facts["quantization"]]
    experts = max(1, facts["experts"])
    suffix = "_exps" if facts["experts"] else ""

    def matrix(name: str, rows: int, columns: int, wanted: str = bulk, experts: int = 1) -> _Tensor:
        return _Tensor(name, rows, columns, _fit(wanted, columns), experts)

    def vector(name: str, weights: int) -> _Tensor:
        return _Tensor(name, 1, weights, "F32")

    yield vector("attn_norm", width)
    yield matrix("attn_q", queries, width)
    yield matrix("attn_k", keys, width)
    yield matrix("attn_v", values, width, _value_type(facts, layer))
    yield matrix("attn_output", width, facts["heads"] * facts["value_length"])
    if facts["family"].startswith("qwen2"):
        yield vector("attn_qkv.bias", queries + keys + values)
    if facts["family"].startswith("qwen3"):
        yield vector("attn_q_norm, attn_k_norm", 2 * facts["key_length"])
    yield vector("ffn_norm", width)
    if facts["experts"]:
        yield _Tensor("ffn_gate_inp", experts, width, "F32")
    yield matrix(f"ffn_gate{suffix}", inner, width, experts=experts)
    yield matrix(f"ffn_up{suffix}", inner, width, experts=experts)
    yield matrix(f"ffn_down{suffix}", width, inner, _down_type(facts, layer), experts)


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _value_type(facts: Mapping[str, Any], layer: int) -> str:
    bulk, layers = _BULK[facts["quantization"]], facts["layers"]
    if facts["quantization"] in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, layers):
        return "Q6_K"
    if facts["quantization"] == "Q4_K_S" and layer < 4:
        return "Q5_K"
    # llama.cpp's "70B": eight query heads share each value head, so that more bits cost little.
    return "Q5_K" if bulk == "Q4_K" and facts["family"] == "llama" and layers == 80 else bulk


def _down_type(facts: Mapping[str, Any], layer: int) -> str:
    if facts["quantization"] in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, facts["layers"]):
        return "Q6_K"
    if facts["quantization"] == "Q4_K_S" and layer < facts["layers"] // 8:
        return "Q5_K"
    return _BULK[facts["quantization"]]
