"""Every architecture: a random checkpoint of transformers' own making computes the same in llama.cpp's Llama class."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from tests.support.hf import hf_checkpoint, llama_log_probs, torch_log_probs
from tests.support.tiny import edit_json, to_gguf

GEMMA: dict[str, Any] = {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 6, "sliding_window": 16}
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


def as_bin(checkpoint: Path, folder: Path, shards: int = 1) -> Path:
    """The checkpoint with its weights as torch.save writes them; shards with an index beside them."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state = load_file(checkpoint / "model.safetensors")
    names = sorted(state)
    places = {name: f"pytorch_model-{i % shards + 1:05d}-of-{shards:05d}.bin" for i, name in enumerate(names)}
    if shards == 1:
        places = dict.fromkeys(names, "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    for place in set(places.values()):
        torch.save({name: state[name] for name in names if places[name] == place}, folder / place)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_files_give_the_same_gguf(tmp_path: Path, out: Path, dtype: str, shards: int) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", "GPT2", dtype)
    to_gguf(checkpoint, out)
    other = out.with_name("memdec-other.gguf")
    to_gguf(as_bin(checkpoint, tmp_path / "bin" / "checkpoint", shards), other)
    assert other.read_bytes() == out.read_bytes()


def test_tensors_that_share_numbers_or_are_parts_of_others_are_read_rightly(tmp_path: Path, out: Path) -> None:
    import torch

    checkpoint = hf_checkpoint(tmp_path / "checkpoint", "GPT2")
    to_gguf(checkpoint, out)
    folder = as_bin(checkpoint, tmp_path / "bin" / "checkpoint")
    state = torch.load(folder / "pytorch_model.bin")
    state["lm_head.weight"] = state["transformer.wte.weight"]
    both = torch.cat([state["transformer.h.0.mlp.c_fc.weight"], state["transformer.h.1.mlp.c_fc.weight"]])
    state["transformer.h.0.mlp.c_fc.weight"], state["transformer.h.1.mlp.c_fc.weight"] = both.chunk(2)
    torch.save(state, folder / "pytorch_model.bin")
    other = out.with_name("memdec-other.gguf")
    to_gguf(folder, other)
    assert other.read_bytes() == out.read_bytes()


@pytest.mark.parametrize("change", ["transposed", "old format", "whole numbers", "a list"])
def test_pytorch_files_that_hold_something_else_are_named(tmp_path: Path, out: Path, change: str) -> None:
    import torch

    folder = as_bin(hf_checkpoint(tmp_path / "checkpoint", "GPT2"), tmp_path / "bin")
    state: Any = torch.load(folder / "pytorch_model.bin")
    name = "transformer.h.0.attn.c_proj.weight"
    state[name] = {"transposed": state[name].T, "whole numbers": state[name].int(), "a list": [1]}.get(
        change, state[name]
    )
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=change != "old format")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin: '?transformer\..* save"):
        to_gguf(folder, out)


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_a_checkpoint_of_the_bare_model_with_old_buffers_gives_the_same_gguf(
    tmp_path: Path, out: Path, family: str
) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = hf_checkpoint(tmp_path / "checkpoint", family)
    to_gguf(checkpoint, out)
    prefix, buffer = {
        "GPT2": ("transformer.", "h.0.attn.bias"),
        "Llama": ("model.", "layers.0.self_attn.rotary_emb.inv_freq"),
    }[family]
    state = load_file(checkpoint / "model.safetensors")
    bare = {name.removeprefix(prefix): array for name, array in state.items()}
    save_file(bare | {buffer: np.ones((1, 1, 4, 4), np.float32)}, checkpoint / "model.safetensors")
    other = out.with_name("memdec-other.gguf")
    to_gguf(checkpoint, other)
    assert other.read_bytes() == out.read_bytes()


def test_a_sliding_window_that_llama_cpp_lacks_cuts_the_context_to_its_length(tmp_path: Path, out: Path) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", "Mistral", sliding_window=48)
    assert "has no sliding window: the context is cut to that of 48 tokens" in to_gguf(checkpoint, out).warnings[0]
    assert metadata.read(out)[0]["llama.context_length"] == 48
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3  # of 48 tokens


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        (
            "Gemma3",
            {"final_logit_softcapping": 30.0},
            "final_logit_softcapping is 30.0; llama.cpp's gemma3 computes it only with None",
        ),
        ("Gemma3", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar is 99; llama.cpp's gemma3 takes 32"),
        (
            "Gemma3",
            {"hidden_activation": "silu"},
            "hidden_activation is 'silu'; llama.cpp's gemma3 computes only gelu_p",
        ),
        ("Gemma3", {"layer_types": ["full_attention", *["sliding_attention"] * 5]}, "layer_types is .* regular interv"),
        ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("GPT2", {"n_embd": "big"}, "n_embd is 'big'; it must be a positive whole number"),
        ("GPT2", {"n_layer": 10_000_000}, "n_layer is 10000000; llama.cpp takes at most 512"),
        (
            "GPTNeoX",
            {"tie_word_embeddings": True},
            "tie_word_embeddings is True; llama.cpp's gptneox computes it only with False",
        ),
        ("GPTNeoX", {"rope_parameters": {"rope_type": "yarn"}}, "rope scaling 'yarn' of gptneox cannot be converted"),
        ("Qwen3", {"attention_bias": True}, "attention_bias is True; llama.cpp's qwen3 computes it only with False"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    tmp_path: Path, out: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", family, **(GEMMA if family == "Gemma3" else {}))
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)
