"""What tells architectures apart: what config.json means, and the tensors of a checkpoint with their sizes.

Each has one short table. gguf's own tables (get_tensor_name_map) know what the tensors are called in a GGUF. A new
architecture is a new table, and a new field where it does what none before it did. Knows nothing of files and arrays.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES


@dataclass(frozen=True)
class Part:
    """An embedding, a linear layer or a norm."""

    source: str  # name in the checkpoint, after the prefix of the model or of a block
    shape: tuple[str, ...]  # sizes by name (ModelConfig.sizes): out, in
    bias: bool | str = False  # True: always; the name of an entry of config.json: where that is true
    order: str = ""  # of the checkpoint's elements, where it is not llama.cpp's: rope, transposed, grouped (arrange())


@dataclass(frozen=True)
class Architecture:
    """One family of decoders. Entries of config.json go by Llama's names; `spelling` has a family's own names."""

    model: str  # Hugging Face's class, in config.json
    model_type: str  # Hugging Face's name of the config's class, there too
    gguf: MODEL_ARCH
    outer: tuple[Part, ...]  # outside of the blocks, without the head; the embedding is the first
    block: tuple[Part, ...]
    activations: tuple[str, ...]  # Hugging Face's names of what llama.cpp computes in the MLP
    rope_scaling: tuple[str, ...] = ("default", "linear")  # kinds that llama.cpp computes for it; (): it has no rope
    prefix: str = "model."  # of all tensors but the head
    blocks: str = "layers"  # name of the list of blocks, after the prefix
    head: str = "lm_head"
    layer_norm: bool = False  # norms have mean and bias; False: they are RMS norms
    norm_offset: float = 0.0  # what Hugging Face's norms add to the checkpoint's weight
    spelling: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)  # Hugging Face's, of entries that are missing
    fixed: Mapping[str, Any] = field(default_factory=dict)  # entries for which llama.cpp computes only this value
    free_heads: bool = True  # heads x head_dim need not be the hidden size
    window: str = ""  # sliding attention: "layers": some layers have it; "lacking": llama.cpp has none for it

    @property
    def name(self) -> str:
        """The name in a GGUF: general.architecture, and the prefix of its keys."""
        return str(MODEL_ARCH_NAMES[self.gguf])


OUTER = (Part("embed_tokens", ("rows", "hidden")), Part("norm", ("hidden",)))


def _block(qkv_bias: bool | str, bias: bool | str = False, order: str = "") -> tuple[Part, ...]:
    """Llama's block, which other families vary.

    qkv_bias  of q, k and v, as Part.bias
    bias      of the output projection; with one the MLP's layers have theirs where mlp_bias is true
    order     of q and k, as Part.order
    """
    return (
        Part("input_layernorm", ("hidden",)),
        Part("self_attn.q_proj", ("q", "hidden"), qkv_bias, order),
        Part("self_attn.k_proj", ("kv", "hidden"), qkv_bias, order),
        Part("self_attn.v_proj", ("kv", "hidden"), qkv_bias),
        Part("self_attn.o_proj", ("hidden", "q"), bias),
        Part("post_attention_layernorm", ("hidden",)),
        Part("mlp.gate_proj", ("ffn", "hidden"), bias and "mlp_bias"),
        Part("mlp.up_proj", ("ffn", "hidden"), bias and "mlp_bias"),
        Part("mlp.down_proj", ("hidden", "ffn"), bias and "mlp_bias"),
    )


HEAD_NORMS = (Part("self_attn.q_norm", ("head",)), Part("self_attn.k_norm", ("head",)))

LLAMA = Architecture(
    "LlamaForCausalLM", "llama", MODEL_ARCH.LLAMA, OUTER,
    _block("attention_bias", "attention_bias", order="rope"), ("silu",),
    rope_scaling=("default", "linear", "llama3"),
    defaults={"max_position_embeddings": 2048},
)  # fmt: skip

MISTRAL = replace(
    LLAMA,
    model="MistralForCausalLM",
    model_type="mistral",
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    window="lacking",
)

QWEN2 = Architecture(
    "Qwen2ForCausalLM", "qwen2", MODEL_ARCH.QWEN2, OUTER, _block(True), ("silu",),
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
    fixed={"use_sliding_window": False},
    free_heads=False,
)  # fmt: skip

QWEN3 = replace(
    QWEN2,
    model="Qwen3ForCausalLM",
    model_type="qwen3",
    gguf=MODEL_ARCH.QWEN3,
    block=(*_block(False), *HEAD_NORMS),
    defaults={**QWEN2.defaults, "head_dim": 128},
    fixed={**QWEN2.fixed, "attention_bias": False},
    free_heads=True,
)

GEMMA3 = Architecture(
    "Gemma3ForCausalLM", "gemma3_text", MODEL_ARCH.GEMMA3, OUTER,
    (*_block(False), *HEAD_NORMS,
     Part("pre_feedforward_layernorm", ("hidden",)), Part("post_feedforward_layernorm", ("hidden",))),
    ("gelu_pytorch_tanh",),
    norm_offset=1.0,
    spelling={"hidden_act": "hidden_activation"},
    defaults={
        "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256, "rope_theta": 1e6,
        "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
    },
    fixed={
        "attention_bias": False, "use_bidirectional_attention": False,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    },
    window="layers",
)  # fmt: skip

GPT2 = Architecture(
    "GPT2LMHeadModel", "gpt2", MODEL_ARCH.GPT2,
    (Part("wte", ("rows", "hidden")), Part("wpe", ("positions", "hidden")), Part("ln_f", ("hidden",), bias=True)),
    (
        Part("ln_1", ("hidden",), bias=True),
        Part("attn.c_attn", ("qkv", "hidden"), bias=True, order="transposed"),
        Part("attn.c_proj", ("hidden", "q"), bias=True, order="transposed"),
        Part("ln_2", ("hidden",), bias=True),
        Part("mlp.c_fc", ("ffn", "hidden"), bias=True, order="transposed"),
        Part("mlp.c_proj", ("hidden", "ffn"), bias=True, order="transposed"),
    ),
    ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    rope_scaling=(),
    prefix="transformer.",
    blocks="h",
    layer_norm=True,
    spelling={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True, "activation_function": "gelu_new"},
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    free_heads=False,
)  # fmt: skip

GPT_NEOX = Architecture(
    "GPTNeoXForCausalLM", "gpt_neox", MODEL_ARCH.GPTNEOX,
    (Part("embed_in", ("rows", "hidden")), Part("final_layer_norm", ("hidden",), bias=True)),
    (
        Part("input_layernorm", ("hidden",), bias=True),
        Part("attention.query_key_value", ("qkv", "hidden"), bias=True, order="grouped"),
        Part("attention.dense", ("hidden", "q"), bias=True),
        Part("post_attention_layernorm", ("hidden",), bias=True),
        Part("mlp.dense_h_to_4h", ("ffn", "hidden"), bias=True),
        Part("mlp.dense_4h_to_h", ("hidden", "ffn"), bias=True),
    ),
    ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    prefix="gpt_neox.",
    head="embed_out",
    layer_norm=True,
    spelling={"rms_norm_eps": "layer_norm_eps", "rope_theta": "rotary_emb_base"},
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu", "max_position_embeddings": 2048, "rotary_pct": 0.25},
    fixed={"attention_bias": True, "tie_word_embeddings": False},
    free_heads=False,
)  # fmt: skip

ARCHITECTURES = {table.model: table for table in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3, GPT2, GPT_NEOX)}
