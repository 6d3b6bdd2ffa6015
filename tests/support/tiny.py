"""Builders of real tiny models: an HF folder (llama, qwen2) with a trained byte-level BPE tokenizer, its GGUF; edits.

Weights are random, with enough scale that logits are spread (deviation about 2) and depend on the context.
Knows nothing of what a test does with them.
"""

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from memdec_edge.convert import ConvertReport

TEXT = """The heart is a muscle that pumps blood through the body. Blood carries oxygen from the lungs to every cell, \
and carbon dioxide back to the lungs. A fever is a body temperature above 38 degrees; it is a symptom, not a disease. \
Anaemia is a lack of red blood cells, or of the iron that they need to carry oxygen. Pneumonia is an infection of the \
lungs. Diabetes is a disease in which the body cannot use sugar: the pancreas makes too little insulin, or the cells \
do not answer to it. A stroke happens when blood does not reach a part of the brain.

The licence of a program says what you may do with it. You may use, copy, modify and distribute this software, in \
source and in binary form, with or without modification, provided that the notice above stays in all copies. The \
software is provided "as is", without warranty of any kind. In no event shall the authors be liable for any claim.

It was a bright morning in the year 1815, and the river ran high after 12 days of rain. She walked along the bank \
with her brother, who didn't say much; they'd known the path since they were children. "You're late," said the miller, \
"but I've kept the bread." The café was closed, the naïve traveller went home, and 東京 was far away. 🙂

    def area(width, height):
        return width * height  # square metres
"""
OTHER_TEXT = """Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Die Sonne scheint, der Himmel ist \
blau, und die Kinder spielen im Garten hinter dem Haus. Am Abend kommt der Vater nach Hause und bringt Brot und \
Käse mit. \
"""
END_OF_TEXT = "<|endoftext|>"  # id 0: BOS and EOS


def tiny_tokenizer(path: Path, *, text: str = TEXT, n_tokens: int = 400, rename: tuple[int, str] | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json: byte-level BPE, split like SmolLM2 (digits one by one).

    `rename` gives token #id another text (one that no merge produces).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.split("\n\n"), trainer)
    assert tokenizer.get_vocab_size() <= n_tokens
    body = json.loads(tokenizer.to_str())
    if rename is not None:
        token_id, new = rename
        vocab: dict[str, int] = body["model"]["vocab"]
        old = next(token for token, number in vocab.items() if number == token_id)
        body["model"]["vocab"] = {new if token == old else token: number for token, number in vocab.items()}
        body["model"]["merges"] = [pair for pair in body["model"]["merges"] if old not in pair and "".join(pair) != old]
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def tiny_checkpoint(
    path: Path,
    *,
    tied: bool = True,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    n_ctx: int = 512,
    seed: int = 0,
    vocab_extra: int = 0,
    text: str = TEXT,
    n_tokens: int = 400,
    rename: tuple[int, str] | None = None,
    config: dict[str, Any] | None = None,
    architecture: Literal["llama", "qwen2"] = "llama",
) -> Path:
    """Write an HF folder (float32) of an architecture and return `path`.

    The vocabulary has about `n_tokens` tokens; `vocab_extra` adds embedding rows that no token uses. `config` overrides
    entries of config.json.
    """
    from safetensors.numpy import save_file

    tiny_tokenizer(path, text=text, n_tokens=n_tokens, rename=rename)
    vocab: dict[str, int] = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    rows, head, ffn = len(vocab) + vocab_extra, hidden // heads, hidden * 2
    random = np.random.default_rng(seed)

    def matrix(n_out: int, n_in: int, deviation: float) -> np.ndarray:
        return (random.standard_normal((n_out, n_in)) * deviation).astype(np.float32)

    def norm() -> np.ndarray:
        return (1 + 0.1 * random.standard_normal(hidden)).astype(np.float32)

    # Layers outweigh the embedding in the residual stream: else a tied model would only repeat its input.
    wide, deviation = 0.2 * (64 / hidden) ** 0.5, 2.0 / hidden**0.5
    tensors = {"model.embed_tokens.weight": matrix(rows, hidden, deviation), "model.norm.weight": norm()}
    for i in range(layers):
        tensors |= {
            f"model.layers.{i}.input_layernorm.weight": norm(),
            f"model.layers.{i}.self_attn.q_proj.weight": matrix(heads * head, hidden, wide),
            f"model.layers.{i}.self_attn.k_proj.weight": matrix(kv_heads * head, hidden, wide),
            f"model.layers.{i}.self_attn.v_proj.weight": matrix(kv_heads * head, hidden, wide),
            f"model.layers.{i}.self_attn.o_proj.weight": matrix(hidden, heads * head, wide),
            f"model.layers.{i}.post_attention_layernorm.weight": norm(),
            f"model.layers.{i}.mlp.gate_proj.weight": matrix(ffn, hidden, wide),
            f"model.layers.{i}.mlp.up_proj.weight": matrix(ffn, hidden, wide),
            f"model.layers.{i}.mlp.down_proj.weight": matrix(hidden, ffn, wide),
        }
    if not tied:
        tensors["lm_head.weight"] = matrix(rows, hidden, deviation)
    if architecture == "qwen2":
        for i in range(layers):
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
                tensors[f"model.layers.{i}.self_attn.{name}_proj.bias"] = matrix(1, count * head, 0.5)[0]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    body = {
        "architectures": [f"{architecture.capitalize()}ForCausalLM"],
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": n_ctx,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "vocab_size": rows,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": "float32",
    }
    (path / "config.json").write_text(json.dumps(body | (config or {})), encoding="utf-8")
    return path


def tiny_lora(path: Path, base: Path, rank: int = 2) -> Path:
    """Write a PEFT LoRA of the queries of the checkpoint `base`, and return `path`."""
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(5)
    factors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith("q_proj.weight"):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            for part, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
                factors[f"{module}.lora_{part}.weight"] = random.standard_normal(shape).astype(np.float32) / 10
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name, "r": rank,
        "lora_alpha": 2 * rank, "target_modules": ["q_proj"],
    }  # fmt: skip
    path.mkdir(parents=True)
    save_file(factors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def tiny_gguf(
    path: Path,
    checkpoint: Path,
    outtype: str = "f32",
    *,
    role: Literal["memory", "model"] = "model",
    base: Path | None = None,
) -> Path:
    """Convert `checkpoint` to a GGUF at `path` and return `path`."""
    to_gguf(checkpoint, path, outtype, role=role, base=base)
    return path


def to_gguf(checkpoint: Path, outfile: Path, outtype: str = "f32", **options: Any) -> "ConvertReport":
    """Convert with further ConvertOptions; as a memory unless `role` says otherwise, and unverified for speed."""
    from memdec_edge.convert import convert
    from memdec_edge.options import ConvertOptions

    return convert(
        ConvertOptions(checkpoint=checkpoint, outfile=outfile, outtype=outtype, **({"verify": False} | options))
    )


def edit_json(path: Path, **changes: Any) -> None:
    """Overwrite entries of a JSON object."""
    body = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(body | changes, ensure_ascii=False), encoding="utf-8")


def edit_tensors(checkpoint: Path, add: dict[str, np.ndarray] | None = None, remove: str = "") -> None:
    """Add (or replace) and remove tensors of a checkpoint folder."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors") | (add or {})
    tensors.pop(remove, None)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def edit_gguf(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    """Write `source` with other keys, and the same tensors, to `target` and return that; None leaves a key out."""
    from memdec_edge.gguf.header import Header
    from memdec_edge.gguf.writer import pack_entry

    with Header(source) as header:
        whole = source.read_bytes()
        entries = {key: header.raw(entry.entry, entry.end) for key, entry in header.entries.items()}
        table = max(entry.end for entry in header.entries.values())
        end = table + sum(24 + len(tensor.name.encode()) + 8 * len(tensor.shape) for tensor in header.tensors)
    for key, value in changes.items():
        entries.pop(key, None)
        if value is not None:
            entries[key] = pack_entry(key, value)
    head = whole[:16] + struct.pack("<Q", len(entries)) + b"".join(entries.values()) + whole[table:end]
    target.write_bytes(head + bytes(-len(head) % 32) + whole[end + -end % 32 :])
    return target
