"""What tells architectures apart: their names on both sides, what config.json means, and the tensors of a block.

One table each. A new architecture is a new table, and a new field where it does what none before it did.
Knows nothing of files and arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """A linear layer or norm of a block."""

    name: str  # in the GGUF, after blk.N.
    source: str  # in the checkpoint, after model.layers.N.
    shape: tuple[str, ...]  # sizes by name: hidden, ffn, q (all heads), kv (all key-value heads); out, in
    bias: bool | str = False  # True: always; a name: where config.json says so
    interleaved: bool = False  # rows go into the order of a rope that turns neighbours (tensors.permute)


@dataclass(frozen=True)
class Architecture:
    """One family of decoders with rope, RMS norms and a gated MLP."""

    model: str  # Hugging Face's class, in config.json
    name: str  # general.architecture, and the prefix of its keys
    block: tuple[Part, ...]  # in the GGUF's order
    rope_scaling: tuple[str, ...]  # kinds that llama.cpp computes for it
    defaults: Mapping[str, int]  # what Hugging Face takes for an entry that config.json lacks
    free_heads: bool = False  # heads x head_dim need not be the hidden size
    off: tuple[str, ...] = ()  # entries of config.json that llama.cpp has no counterpart for


LLAMA = Architecture(
    "LlamaForCausalLM",
    "llama",
    (
        Part("attn_norm", "input_layernorm", ("hidden",)),
        Part("attn_q", "self_attn.q_proj", ("q", "hidden"), "attention_bias", interleaved=True),
        Part("attn_k", "self_attn.k_proj", ("kv", "hidden"), "attention_bias", interleaved=True),
        Part("attn_v", "self_attn.v_proj", ("kv", "hidden"), "attention_bias"),
        Part("attn_output", "self_attn.o_proj", ("hidden", "q"), "attention_bias"),
        Part("ffn_norm", "post_attention_layernorm", ("hidden",)),
        Part("ffn_gate", "mlp.gate_proj", ("ffn", "hidden"), "mlp_bias"),
        Part("ffn_up", "mlp.up_proj", ("ffn", "hidden"), "mlp_bias"),
        Part("ffn_down", "mlp.down_proj", ("hidden", "ffn"), "mlp_bias"),
    ),
    rope_scaling=("default", "linear", "llama3"),
    defaults={"max_position_embeddings": 2048},
    free_heads=True,
)

QWEN2 = Architecture(
    "Qwen2ForCausalLM",
    "qwen2",
    (
        Part("attn_norm", "input_layernorm", ("hidden",)),
        Part("attn_q", "self_attn.q_proj", ("q", "hidden"), bias=True),
        Part("attn_k", "self_attn.k_proj", ("kv", "hidden"), bias=True),
        Part("attn_v", "self_attn.v_proj", ("kv", "hidden"), bias=True),
        Part("attn_output", "self_attn.o_proj", ("hidden", "q")),
        Part("ffn_norm", "post_attention_layernorm", ("hidden",)),
        Part("ffn_gate", "mlp.gate_proj", ("ffn", "hidden")),
        Part("ffn_up", "mlp.up_proj", ("ffn", "hidden")),
        Part("ffn_down", "mlp.down_proj", ("hidden", "ffn")),
    ),
    rope_scaling=("default", "linear"),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    off=("use_sliding_window",),
)

ARCHITECTURES = {table.model: table for table in (LLAMA, QWEN2)}
