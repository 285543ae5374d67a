"""Models: what one is like (`gguf_info`, `known`), stand-ins (`synth`), conversion to others' formats (`dllama`)."""

from bramble.model.dllama import ConvertReport, convert
from bramble.model.gguf_info import GgufError, read_shape
from bramble.model.known import catalogue_fields, known_shape
from bramble.model.shape import ModelShape, ShapeError
from bramble.model.synth import ARCHITECTURES, QUANTIZATIONS, SynthError, SynthReport, parse_parameters, synthesize

__all__ = [
    "ARCHITECTURES",
    "QUANTIZATIONS",
    "ConvertReport",
    "GgufError",
    "ModelShape",
    "ShapeError",
    "SynthError",
    "SynthReport",
    "catalogue_fields",
    "convert",
    "known_shape",
    "parse_parameters",
    "read_shape",
    "synthesize",
]
