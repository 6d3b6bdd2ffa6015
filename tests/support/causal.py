"""Random causal LMs of several architectures, and a batch with sparse targets, for the tests of head and loss."""

from typing import Any

import torch
import transformers
from torch import Tensor

from memdec_edge.train.targets import Support

N_VOCAB, BATCH, LENGTH = 160, 3, 20
SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": N_VOCAB}
WIDE: dict[str, Any] = {**SHAPE, "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": None}
MODELS = {
    "llama, tied": transformers.LlamaConfig(**WIDE, tie_word_embeddings=True),
    "qwen2, untied": transformers.Qwen2Config(**WIDE, tie_word_embeddings=False),
    "qwen3, tied": transformers.Qwen3Config(**WIDE, head_dim=8, tie_word_embeddings=True),
    "gpt2, tied": transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=N_VOCAB, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
    "gpt_neox, untied": transformers.GPTNeoXConfig(**SHAPE, intermediate_size=64),
    "gemma3, tied": transformers.Gemma3TextConfig(**WIDE, head_dim=8, layer_types=["full_attention"] * 2),
    "phi, head with a bias": transformers.PhiConfig(**SHAPE, intermediate_size=64),
}


def model_of(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A random model whose logits are spread."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="eager").to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.train()


def batch(seed: int = 0) -> tuple[Tensor, Support, Tensor]:
    """Token ids; p_kNN with up to 12 tokens at a position, at every seventh none; the same p_kNN dense."""
    generator = torch.Generator().manual_seed(seed)
    n = BATCH * LENGTH
    ids = torch.randint(0, N_VOCAB, (BATCH, LENGTH + 1), generator=generator)
    knn = torch.rand(n, N_VOCAB, generator=generator, dtype=torch.float64).topk(12)
    counts = torch.randint(1, 13, (n,), generator=generator)
    counts[::7] = 0
    rows, tokens, probs = [], [], []
    dense = torch.zeros(n, N_VOCAB, dtype=torch.float64)
    for row in range(n):
        chosen = knn.indices[row, : counts[row]].sort().values
        weights = torch.rand(len(chosen), generator=generator) + 0.01
        rows.append(len(chosen))
        tokens.append(chosen)
        probs.append(weights / weights.sum())
        dense[row, chosen] = probs[-1].double()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.tensor(rows).cumsum(0)])
    return ids, Support(offsets, torch.cat(tokens), torch.cat(probs)), dense
