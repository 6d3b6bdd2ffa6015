"""memdec_edge.convert.lora: a PEFT LoRA that is merged is what peft computes; what cannot be merged is refused.

Adapters are made by peft itself, with random A and B, and saved as a user's training saves them.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from memdec_edge.convert.checkpoint import Checkpoint
from memdec_edge.convert.config import read_config
from memdec_edge.convert.lora import merge
from memdec_edge.errors import MissingFileError, ModelFileError, OptionError
from memdec_edge.gguf import metadata
from tests.support.hf import IDS, LogProbs, hf_checkpoint, llama_log_probs, log_probs
from tests.support.tiny import edit_json, edit_tensors, tiny_checkpoint, tiny_lora, to_gguf

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"]
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # family, its config, what peft is asked for
    "llama": ("Llama", {}, {"target_modules": ATTENTION, "r": 4, "lora_alpha": 6}),
    "rank stabilised": ("Qwen2", {}, {"target_modules": ATTENTION[:2], "r": 9, "use_rslora": True}),
    "patterns": (
        "Llama", {},
        {
            "target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 4,
            "rank_pattern": {"v_proj": 2, "layers.0.self_attn.q_proj": 6},
            "alpha_pattern": {"^model.layers.1.self_attn.v_proj": 32, "v_proj": 1},
        },
    ),
    "gpt2": ("GPT2", {}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt-neox": ("GPTNeoX", {"tie_word_embeddings": False}, {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "whole modules": ("Llama", {}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "biases": ("Qwen2", {}, {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    "embeddings": ("Llama", {}, {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "tied embeddings": ("Llama", {"tie_word_embeddings": True}, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied head": ("Llama", {"tie_word_embeddings": True}, {"target_modules": ["lm_head", "q_proj"]}),
}  # fmt: skip


def adapter(path: Path, base: Path, spread: float = 0.2, **config: Any) -> Path:
    """A LoRA of `base` as peft saves it, with random numbers in all that it trains."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's advice on tied and saved embeddings
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(path)
    return path


def with_peft(base: Path, lora: Path) -> Any:
    """The base as peft has it while it trains: the LoRA beside the weights, unmerged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), lora).eval()


def peft_log_probs(base: Path, lora: Path) -> LogProbs:
    import torch

    with torch.no_grad():
        return log_probs(with_peft(base, lora)(torch.tensor([IDS])).logits[0, :, :400].numpy())


@pytest.mark.parametrize("case", CASES)
def test_a_merged_lora_predicts_as_peft_does(case: str, tmp_path: Path, out: Path) -> None:
    family, shape, asked = CASES[case]
    base = hf_checkpoint(tmp_path / "base", family, **shape)
    lora = adapter(tmp_path / "lora", base, **asked)
    to_gguf(lora, out, lora_base=base)
    mine, theirs = llama_log_probs(out), peft_log_probs(base, lora)
    plain = out.with_name("memdec-plain.gguf")
    to_gguf(base, plain)
    assert np.abs(mine - theirs).max() < (5e-3 if family.startswith("GPT") else 1e-3)  # GELU out of a table
    assert np.abs(llama_log_probs(plain) - theirs).max() > 0.1  # the LoRA does something


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and its LoRA."""
    folder = tmp_path_factory.mktemp("pair")
    base = hf_checkpoint(folder / "base")
    return base, adapter(folder / "lora", base, target_modules=["q_proj", "v_proj"], r=4, lora_alpha=6)


@pytest.fixture
def lora(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the LoRA, to be edited."""
    return Path(shutil.copytree(pair[1], tmp_path / "lora"))


def test_weights_are_those_of_merge_and_unload(pair: tuple[Path, Path], out: Path) -> None:
    base, lora = pair
    state = with_peft(base, lora).merge_and_unload().state_dict()
    to_gguf(lora, out, lora_base=base)
    found = {tensor.name: np.asarray(tensor.data) for tensor in GGUFReader(out).tensors}
    value = state["model.layers.1.self_attn.v_proj.weight"].numpy()
    assert np.abs(found["blk.1.attn_v.weight"] - value).max() < 1e-6
    query = state["model.layers.0.self_attn.q_proj.weight"].numpy()  # llama.cpp's order comes after the merge
    rotated = query.reshape(4, 2, -1, query.shape[1]).swapaxes(1, 2).reshape(query.shape)
    assert np.abs(found["blk.0.attn_q.weight"] - rotated).max() < 1e-6


def test_the_merge_is_float64s_and_a_part_is_that_of_the_whole(pair: tuple[Path, Path]) -> None:
    base, lora = pair
    config = read_config(base)
    merged = merge(lora, config, Checkpoint(base, "model.", "lm_head").tensors)
    name = "model.layers.0.self_attn.q_proj"
    factors, weights = load_file(lora / "adapter_model.safetensors"), load_file(base / "model.safetensors")
    down, up = (factors[f"base_model.model.{name}.lora_{which}.weight"].astype(np.float64) for which in "AB")
    truth = weights[f"{name}.weight"].astype(np.float64) + 6 / 4 * up @ down
    whole = merged[f"{name}.weight"].read()
    assert np.abs(whole - truth).max() < 1e-6
    for start, count in ((0, 1), (63, 130), (whole.size - 5, 5)):
        assert np.array_equal(merged[f"{name}.weight"].part(start, count), whole.reshape(-1)[start : start + count])


def test_a_verified_lora_is_compared_with_peft_and_names_its_base(pair: tuple[Path, Path], out: Path) -> None:
    base, lora = pair
    report = to_gguf(lora, out, lora_base=base, verify=True)
    assert report.verification is not None
    assert report.verification.max_delta < 1e-3
    values, _ = metadata.read(out)
    assert (values["general.name"], values["general.base_model.0.name"]) == ("lora", "base")


def test_a_lora_without_its_base_names_what_to_give(lora: Path, out: Path, pair: tuple[Path, Path]) -> None:
    edit_json(lora / "adapter_config.json", base_model_name_or_path="org/base")
    with pytest.raises(ModelFileError, match=r"is a PEFT adapter; give org/base as `lora_base` to merge the two"):
        to_gguf(lora, out)
    with pytest.raises(OptionError, match=r"lora_base is .*base is no LoRA \(it has no adapter_config\.json\)"):
        to_gguf(pair[0], out, lora_base=pair[0])
    with pytest.raises(ModelFileError, match="is a file; a LoRA is merged into the folder or Hub's name of a model"):
        to_gguf(lora, out, lora_base=pair[0] / "config.json")
    assert not out.exists()


def rename(lora: Path, old: str, new: str) -> None:
    path = lora / "adapter_model.safetensors"
    save_file({name.replace(old, new): tensor for name, tensor in load_file(path).items()}, path)


def reshape(lora: Path, part: str, shape: tuple[int, ...]) -> None:
    path = lora / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(each for each in tensors if part in each)
    save_file(tensors | {name: np.zeros(shape, np.float32)}, path)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dora": (lambda at: edit_json(at / "adapter_config.json", use_dora=True), "use_dora is True, which convert cannot"),
    "a variant to come": (lambda at: edit_json(at / "adapter_config.json", use_new={"a": 1}), "use_new is {'a': 1}"),
    "another kind": (lambda at: edit_json(at / "adapter_config.json", peft_type="IA3"), "peft_type is 'IA3', and"),
    "pissa": (lambda at: edit_json(at / "adapter_config.json", init_lora_weights="pissa"), "changes the base's own"),
    "a magnitude": (lambda at: rename(at, "lora_A.weight", "lora_magnitude_vector"), "cannot merge base_model.model."),
    "another module": (lambda at: rename(at, "v_proj", "w_proj"), "the base has nothing that .*w_proj.* belongs to"),
    "half a pair": (lambda at: rename(at, "layers.0.self_attn.q_proj.lora_A", "layers.0.self_attn.k_proj.lora_A"),
                    "only one of two matrices"),
    "another base": (lambda at: reshape(at, "q_proj.lora_B", (96, 4)), "is for .*q_proj.weight of 96 x 64, and .* 64"),
    "a broken pair": (lambda at: reshape(at, "q_proj.lora_B", (64, 5)), "A of .* is .* and B"),
    "an endless pattern": (lambda at: edit_json(at / "adapter_config.json", alpha_pattern={"(.*)*x": 2}), "plain"),
    "no number": (lambda at: edit_json(at / "adapter_config.json", lora_alpha="8"), "alpha of .* is '8'; it must be"),
    "nothing": (lambda at: save_file({}, at / "adapter_model.safetensors"), "changes nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(case: str, lora: Path, pair: tuple[Path, Path], out: Path) -> None:
    edit, message = REFUSED[case]
    edit(lora)
    with pytest.raises(ModelFileError, match=message):
        to_gguf(lora, out, lora_base=pair[0])
    assert not out.exists()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
SETTINGS = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights", "use_dora", "r", "new")


@given(st.dictionaries(st.sampled_from(SETTINGS), ANYTHING), st.none() | st.integers(0, 2000))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example({"lora_alpha": 10**400}, None)
@example({"alpha_pattern": {"q_proj": None}}, None)
def test_whatever_an_adapter_says_it_is_merged_or_refused(
    pair: tuple[Path, Path], lora: Path, changes: dict[str, Any], length: int | None
) -> None:
    shutil.copytree(pair[1], lora, dirs_exist_ok=True)
    edit_json(lora / "adapter_config.json", **changes)
    if length is not None:
        os.truncate(lora / "adapter_model.safetensors", length)
    with suppress(ModelFileError):
        found = merge(lora, read_config(pair[0]), Checkpoint(pair[0], "model.", "lm_head").tensors)
        assert found["model.layers.0.self_attn.q_proj.weight"].read().shape == (64, 64)


def test_a_head_that_an_untied_base_lacks_is_named(tmp_path: Path, out: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", tied=False)
    lora = tiny_lora(tmp_path / "lora", base)
    rename(lora, "model.layers.0.self_attn.q_proj", "lm_head")
    edit_tensors(base, remove="lm_head.weight")
    with pytest.raises(ModelFileError, match=r"the base has nothing that .*lm_head\.lora_A\.weight belongs to"):
        to_gguf(lora, out, lora_base=base)


def test_an_adapter_without_weights_is_a_missing_file(lora: Path, pair: tuple[Path, Path], out: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"adapter_model\.safetensors: no such weights file; download the whole"):
        to_gguf(lora, out, lora_base=pair[0])


MEASURE = (
    "import sys; from pathlib import Path; from memdec_edge.convert import convert\n"
    "from memdec_edge.options import ConvertOptions\n"
    "lora, base, out = map(Path, sys.argv[1:])\n"
    "convert(ConvertOptions(lora, out, 'f32', lora_base=base, verify=False))\n"
    "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_merge_takes_the_memory_of_its_largest_tensor(tmp_path: Path, out: Path) -> None:
    hidden, rank = 65_536, 4  # 400 rows of it: 105 MB in float32
    base = tiny_checkpoint(tmp_path / "base", layers=1)
    changes = {"hidden_size": hidden, "head_dim": 16, "num_attention_heads": 1, "num_key_value_heads": 1,
               "intermediate_size": 32}  # fmt: skip
    edit_json(base / "config.json", **changes)
    tensors = {name: np.zeros(_wide(name, array.shape, hidden), np.float32)
               for name, array in load_file(base / "model.safetensors").items()}  # fmt: skip
    save_file(tensors, base / "model.safetensors")
    (tmp_path / "lora").mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "base_model_name_or_path": "base"}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    key = "base_model.model.model.embed_tokens.lora_embedding_"
    factors = {f"{key}A": np.ones((rank, 400), np.float32), f"{key}B": np.ones((hidden, rank), np.float32)}
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "lora"), str(base), str(out)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1024 * int(found.stdout) < 4 * 400 * hidden + 200e6


def _wide(name: str, shape: tuple[int, ...], hidden: int) -> list[int]:
    sizes = {400: 400, 64: hidden, 32: 16, 128: 32}
    found = [sizes[size] for size in shape]
    if "q_proj" in name or "o_proj" in name:
        found["o_proj" in name] = 16
    return found
