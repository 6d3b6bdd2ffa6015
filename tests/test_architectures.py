"""Every architecture: a random checkpoint of transformers' own making computes the same in llama.cpp's Llama class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hf import hf_checkpoint, llama_log_probs, torch_log_probs
from tests.tiny import to_gguf

GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 6, "sliding_window": 16}
NEOX = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25}}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_positions": 128}),
    "gpt2, untied, other width": ("GPT2", {"n_positions": 128, "n_inner": 96, "tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox, one after the other": ("GPTNeoX", {**NEOX, "use_parallel_residual": False}),
    "gemma3": ("Gemma3", GEMMA),
    "gemma3, untied, linear rope": ("Gemma3", {**GEMMA, "tie_word_embeddings": False, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }}),
}  # fmt: skip

ROUGH_GELU = ("GPT2", "GPTNeoX", "Gemma3")  # llama.cpp takes GELU out of a table in half precision


@pytest.mark.parametrize(("family", "config"), FAMILIES.values(), ids=FAMILIES)
def test_log_probs_are_those_of_pytorch(tmp_path: Path, out: Path, family: str, config: dict[str, Any]) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", family, **config)
    to_gguf(checkpoint, out)
    found, theirs = llama_log_probs(out), torch_log_probs(checkpoint)
    assert theirs.std() > 0.5
    if family in ROUGH_GELU:
        delta = np.abs(found - torch_log_probs(checkpoint, rough_gelu=True))
        assert np.quantile(delta, 0.9) < 2e-4  # where two numbers beside a step of the table were rounded alike
        assert delta.max() < 3e-3
        assert np.abs(found - theirs).max() < 1e-2
    else:
        assert np.abs(found - theirs).max() < 1e-3
