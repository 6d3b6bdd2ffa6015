"""Tiny checkpoints of transformers' own making, and log-probs of a text by PyTorch and by llama-cpp-python's `Llama`.

Knows nothing of what a test does with them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.tiny import tiny_tokenizer

IDS = [(7 * number * number + 13) % 400 for number in range(48)]
LogProbs = npt.NDArray[np.float64]


def log_probs(logits: npt.NDArray[np.float32]) -> LogProbs:
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    result: LogProbs = wide - top - np.log(np.exp(wide - top).sum(-1, keepdims=True))
    return result


def torch_log_probs(checkpoint: Path, n_tokens: int = 400, *, rough_gelu: bool = False) -> LogProbs:
    """With `rough_gelu` the MLPs use GELU as llama.cpp has it on the CPU: out of a table in half precision."""
    import torch
    from transformers import AutoModelForCausalLM

    def gelu(x: torch.Tensor) -> torch.Tensor:
        half = x.half().float()
        y = torch.nn.functional.gelu(half, approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))

    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    for module in network.modules():
        if rough_gelu and "GELU" in type(module).__name__:
            module.forward = gelu
    with torch.no_grad():
        return log_probs(network(torch.tensor([IDS])).logits[0, :, :n_tokens].numpy())


def llama_log_probs(gguf: Path) -> LogProbs:
    """Through llama-cpp-python's own class: float32 KV cache, flash attention off."""
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(gguf), n_ctx=64, logits_all=True, flash_attn=False, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
        n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip
    try:
        llama.eval(IDS)
        return log_probs(llama.scores[: len(IDS)])
    finally:
        llama.close()


def hf_checkpoint(
    path: Path, family: str = "Llama", dtype: str = "float32", max_shard_size: str = "1GB", **config: Any
) -> Path:
    """A model of transformers' own making, every parameter random, biases and norms too; `config` by Llama's names."""
    import torch
    import transformers

    sizes = {
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 128,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    if family not in ("GPT2", "GPTNeoX"):
        sizes["num_key_value_heads"] = 2
    shape = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(family, f"{family}Config"))(**(sizes | config))
    network = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(family, f"{family}ForCausalLM"))(shape)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.normal_(float(is_norm and family != "Gemma3"), 0.15, generator=generator)  # Gemma's norms add 1
    network.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size=max_shard_size)
    tiny_tokenizer(path)
    return path
