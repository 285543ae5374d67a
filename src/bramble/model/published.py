"""Models that Bramble does not offer, but others have measured on Pis: for predictions to be held against.

The figures are those of each model's own config.json, as its authors publish it.
"""

from __future__ import annotations

from collections.abc import Mapping

from bramble.model.known import known_shape
from bramble.model.shape import ModelShape, ShapeError

_FIELDS = ("family", "layers", "context", "embedding", "feed_forward", "heads", "kv_heads", "key_length", "vocabulary")
_FIGURES: Mapping[str, tuple[str, int, int, int, int, int, int, int, int]] = {
    "tinyllama-1.1b": ("llama", 22, 2048, 2048, 5632, 32, 4, 64, 32000),
    "llama-2-13b": ("llama", 40, 4096, 5120, 13824, 40, 40, 128, 32000),
    "llama-3.1-8b": ("llama", 32, 131072, 4096, 14336, 32, 8, 128, 128256),
    "llama-3.3-70b": ("llama", 80, 131072, 8192, 28672, 64, 8, 128, 128256),
    "qwen3-8b": ("qwen3", 36, 40960, 4096, 12288, 32, 8, 128, 151936),
    "qwen3-14b": ("qwen3", 40, 40960, 5120, 17408, 40, 8, 128, 151936),
    "qwen3-30b-a3b": ("qwen3moe", 48, 40960, 2048, 768, 32, 4, 128, 151936),
}
_EXPERTS = {"qwen3-30b-a3b": {"experts": 128, "experts_used": 8}}
_SAME = {"deepseek-r1-distill-llama-8b": "llama-3.1-8b"}

PUBLISHED = (*_FIGURES, *_SAME)
"""Names that `published_shape` knows."""


def published_shape(name: str, quantization: str = "Q4_K_M") -> ModelShape:
    """The shape of one of `PUBLISHED` in a quantization; `bytes` is the weights' sum.

    Raises:
        ShapeError: another name, or an unknown quantization.
    """
    if name not in PUBLISHED:
        raise ShapeError(f"{name!r} is not one of {', '.join(PUBLISHED)}")
    model = _SAME.get(name, name)
    figures = dict(zip(_FIELDS, _FIGURES[model], strict=True))
    entry = {"name": name, "quantization": quantization, "tied": False}
    return known_shape({**entry, **figures, **_EXPERTS.get(model, {})})
