"""Checkpoint folder -> GGUF. Needs the extra [convert].

    convert(ConvertOptions) -> ConvertReport       a model that Hugging Face saved becomes a file for llama.cpp
    quantize(QuantizeOptions) -> QuantizeReport    a GGUF becomes a smaller one

Knows nothing of training, nor of mixing.
"""

from .convert import ConvertReport, convert
from .quantize import QuantizeReport, quantize
from .verify import Verification

__all__ = ["ConvertReport", "QuantizeReport", "Verification", "convert", "quantize"]
