"""Models: their shape, read from a file (`gguf_info`) or from published figures (`known`), and a stand-in (`synth`)."""

from bramble.model.gguf_info import GgufError, read_shape
from bramble.model.known import known_shape
from bramble.model.shape import ModelShape, ShapeError
from bramble.model.synth import QUANTIZATIONS, SynthError, SynthReport, parse_parameters, synthesize

__all__ = [
    "QUANTIZATIONS",
    "GgufError",
    "ModelShape",
    "ShapeError",
    "SynthError",
    "SynthReport",
    "known_shape",
    "parse_parameters",
    "read_shape",
    "synthesize",
]
