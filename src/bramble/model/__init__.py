"""Model files: what is in them (`gguf_info`), random stand-ins (`synth`), conversion to other formats (`dllama`)."""

from bramble.model.dllama import ConvertReport, convert
from bramble.model.gguf_info import GgufError, ModelInfo, read_model_info
from bramble.model.synth import ARCHITECTURES, QUANTIZATIONS, SynthError, SynthReport, parse_parameters, synthesize

__all__ = [
    "ARCHITECTURES",
    "QUANTIZATIONS",
    "ConvertReport",
    "GgufError",
    "ModelInfo",
    "SynthError",
    "SynthReport",
    "convert",
    "parse_parameters",
    "read_model_info",
    "synthesize",
]
