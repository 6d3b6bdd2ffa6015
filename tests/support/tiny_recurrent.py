"""Builders of tiny random GGUFs whose contexts roll back badly or not at all: Mamba, LFM2, sliding-window attention.

Two layers, F32, hidden 64, logits spread (deviation about 2) and depending on the context; the tokenizer block is
copied from another GGUF. Written through gguf.GGUFWriter, for our converter makes none of these architectures.
Knows nothing of what a test does with them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFReader, GGUFWriter

HIDDEN, LAYERS, N_CTX = 64, 2, 512
HEADS, KV_HEADS, HEAD = 4, 2, 16
FFN = 128
WINDOW = 16  # positions that a sliding layer of `tiny_sliding_gguf` attends to, its own included
SHORT_CONVOLUTION = 3  # tokens that a convolution of `tiny_hybrid_gguf` sees, its own included
Tensors = dict[str, npt.NDArray[np.float32]]
Draw = Callable[..., npt.NDArray[np.float32]]  # draw(*shape, deviation=...)


def tiny_recurrent_gguf(path: Path, tokenizer_from: Path, *, seed: int = 0) -> Path:
    """Write a Mamba: one state per session, no attention. Its context cannot roll back at all."""
    inner, states, rank, kernel = 2 * HIDDEN, 16, 4, 4
    draw = _drawer(seed)

    def layer(name: str) -> Tensors:
        return {
            f"{name}.attn_norm.weight": 1 + draw(HIDDEN, deviation=0.1),
            f"{name}.ssm_in.weight": draw(2 * inner, HIDDEN),
            f"{name}.ssm_conv1d.weight": draw(inner, kernel, deviation=0.5),
            f"{name}.ssm_conv1d.bias": draw(inner, deviation=0.1),
            f"{name}.ssm_x.weight": draw(rank + 2 * states, inner),
            f"{name}.ssm_dt.weight": draw(inner, rank, deviation=0.2),
            f"{name}.ssm_dt.bias": draw(inner, deviation=0.2) - 3,  # softplus about 0.05: states last tens of tokens
            f"{name}.ssm_a": -np.tile(np.linspace(0.2, 2, states, dtype=np.float32), (inner, 1)),
            f"{name}.ssm_d": 1 + draw(inner, deviation=0.1),
            f"{name}.ssm_out.weight": draw(HIDDEN, inner),
        }

    keys = {
        "ssm.conv_kernel": kernel,
        "ssm.inner_size": inner,
        "ssm.state_size": states,
        "ssm.time_step_rank": rank,
        "feed_forward_length": 0,
        "attention.head_count": 0,
    }
    return _write(path, tokenizer_from, "mamba", keys, "output_norm", layer, draw)


def tiny_hybrid_gguf(path: Path, tokenizer_from: Path, *, seed: int = 0) -> Path:
    """Write an LFM2: a short convolution, then attention.

    Its context rolls back at most `n_rs_seq` tokens, and rightly only tokens of the session's last decode.
    """
    draw = _drawer(seed)

    def layer(name: str) -> Tensors:
        body = {
            f"{name}.shortconv.in_proj.weight": draw(3 * HIDDEN, HIDDEN),
            f"{name}.shortconv.conv.weight": draw(HIDDEN, SHORT_CONVOLUTION, deviation=1),
            f"{name}.shortconv.out_proj.weight": draw(HIDDEN, HIDDEN),
        }
        return {
            f"{name}.attn_norm.weight": 1 + draw(HIDDEN, deviation=0.1),
            **(body if name == "blk.0" else _attention(name, draw, HEAD, HEAD)),
            f"{name}.ffn_norm.weight": 1 + draw(HIDDEN, deviation=0.1),
            **_feed_forward(name, draw),
        }

    keys = {
        **_attention_keys([0, KV_HEADS]),  # no head of keys: a convolution
        "shortconv.l_cache": SHORT_CONVOLUTION,
    }
    return _write(path, tokenizer_from, "lfm2", keys, "token_embd_norm", layer, draw)


def tiny_sliding_gguf(path: Path, tokenizer_from: Path, *, seed: int = 0) -> Path:
    """Write an OLMo 2: a layer that sees WINDOW positions, then one that sees all.

    Its context forgets what fell out of the window where it needs the cells: without `swa_full`, or where several
    sessions share them. It then rolls back without complaint to where the window has gaps. (Not a Gemma: ggml's GELU
    goes through a float16 table, which turns rounding noise of 1e-6 into 1e-4.)
    """
    draw = _drawer(seed)

    def layer(name: str) -> Tensors:
        return {
            **_attention(name, draw, HIDDEN, KV_HEADS * HEAD),
            f"{name}.post_attention_norm.weight": 1 + draw(HIDDEN, deviation=0.1),
            **_feed_forward(name, draw),
            f"{name}.post_ffw_norm.weight": 1 + draw(HIDDEN, deviation=0.1),
        }

    keys = {
        **_attention_keys(KV_HEADS),
        "attention.sliding_window": WINDOW,
        "attention.sliding_window_pattern": LAYERS,  # every second layer sees all
    }
    return _write(path, tokenizer_from, "olmo2", keys, "output_norm", layer, draw)


def _drawer(seed: int) -> Draw:
    """Normal float32 tensors in PyTorch's order; the default deviation keeps the scale of what a matrix multiplies."""
    random = np.random.default_rng(seed)

    def draw(*shape: int, deviation: float = 0.0) -> npt.NDArray[np.float32]:
        return (random.standard_normal(shape) * (deviation or 1.5 / shape[-1] ** 0.5)).astype(np.float32)

    return draw


def _attention(name: str, draw: Draw, q_norm: int, k_norm: int) -> Tensors:
    """Projections, and norms of queries and keys over `q_norm` and `k_norm` numbers: a head's, or all heads'."""
    return {
        f"{name}.attn_q.weight": draw(HEADS * HEAD, HIDDEN),
        f"{name}.attn_k.weight": draw(KV_HEADS * HEAD, HIDDEN),
        f"{name}.attn_v.weight": draw(KV_HEADS * HEAD, HIDDEN),
        f"{name}.attn_output.weight": draw(HIDDEN, HEADS * HEAD),
        f"{name}.attn_q_norm.weight": 1 + draw(q_norm, deviation=0.1),
        f"{name}.attn_k_norm.weight": 1 + draw(k_norm, deviation=0.1),
    }


def _feed_forward(name: str, draw: Draw) -> Tensors:
    return {
        f"{name}.ffn_gate.weight": draw(FFN, HIDDEN),
        f"{name}.ffn_up.weight": draw(FFN, HIDDEN),
        f"{name}.ffn_down.weight": draw(HIDDEN, FFN),
    }


def _attention_keys(kv_heads: int | list[int]) -> dict[str, Any]:
    return {
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": kv_heads,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.freq_base": 10000.0,
    }


def _write(
    path: Path,
    tokenizer_from: Path,
    architecture: str,
    keys: dict[str, Any],
    last_norm: str,
    layer: Callable[[str], Tensors],
    draw: Draw,
) -> Path:
    """Write `keys` under the architecture's name, the tokenizer block, and the tensors of `layer("blk.0")` and on."""
    writer = GGUFWriter(path, architecture)
    shared = {"block_count": LAYERS, "context_length": N_CTX, "embedding_length": HIDDEN}
    for key, value in (shared | keys | {"attention.layer_norm_rms_epsilon": 1e-5}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}[type(value)]
        add(f"{architecture}.{key}", value)
    tokenizer = {key: field for key, field in GGUFReader(tokenizer_from).fields.items() if key.startswith("tokenizer.")}
    for key, field in tokenizer.items():
        writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    n_vocab = len(tokenizer["tokenizer.ggml.tokens"].contents())
    tensors = {
        "token_embd.weight": draw(n_vocab, HIDDEN, deviation=0.25),  # small: the layers outweigh it in the residual
        f"{last_norm}.weight": 1 + draw(HIDDEN, deviation=0.1),
        "output.weight": draw(n_vocab, HIDDEN, deviation=2 / HIDDEN**0.5),
    }
    for index in range(LAYERS):
        tensors |= layer(f"blk.{index}")
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
