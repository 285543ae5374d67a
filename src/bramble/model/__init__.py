"""Model files: what is in them (`gguf_info`), and a stand-in with random weights (`synth`)."""

from bramble.model.gguf_info import GgufError, ModelInfo, read_model_info
from bramble.model.synth import QUANTIZATIONS, SynthError, SynthReport, parse_parameters, synthesize

__all__ = [
    "QUANTIZATIONS",
    "GgufError",
    "ModelInfo",
    "SynthError",
    "SynthReport",
    "parse_parameters",
    "read_model_info",
    "synthesize",
]
