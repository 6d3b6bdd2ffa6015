"""memdec_edge.convert: numbers against PyTorch, llama.cpp and gguf.GGUFReader; metadata; verification."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file

from memdec_edge.convert.verify import MAX_TOKENS, verify
from memdec_edge.errors import ModelFileError
from memdec_edge.gguf import metadata
from memdec_edge.llama.model import Model
from tests.conftest import PADDING, Family
from tests.support.hf import hf_checkpoint, llama_log_probs, torch_log_probs
from tests.support.tiny import edit_json, tiny_checkpoint, to_gguf


@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_in_f32_are_those_of_pytorch(tmp_path: Path, out: Path, tied: bool) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", tied=tied, layers=3, seed=11)
    report = to_gguf(checkpoint, out)
    assert report.n_tensors == 2 + (not tied) + 3 * 9
    assert report.n_bytes == out.stat().st_size
    assert report.warnings == ()
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


@pytest.mark.parametrize(("outtype", "kind", "max_kl"), [("f16", 1, 1e-4), ("bf16", 30, 3e-3), ("q8_0", 8, 0.03)])
def test_smaller_types_stay_near_pytorch(family: Family, out: Path, outtype: str, kind: int, max_kl: float) -> None:
    to_gguf(family.memory_checkpoint, out, outtype)
    mine, theirs = llama_log_probs(out), torch_log_probs(family.memory_checkpoint)
    kl = float((np.exp(theirs) * (theirs - mine)).sum(-1).mean())
    assert 1e-9 < kl < max_kl
    kinds = {tensor.name: tensor.kind for tensor in metadata.read(out)[1]}
    assert {kinds[name] for name in kinds if "norm" in name} == {0}
    assert {kinds[name] for name in kinds if "norm" not in name} == {kind}


@pytest.mark.parametrize(
    "config",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"head_dim": 32, "num_key_value_heads": 4, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            }
        },
    ],
    ids=["biases", "wide heads", "linear rope", "llama3 rope"],
)  # fmt: skip
def test_variants_of_llama_predict_as_pytorch_does(tmp_path: Path, out: Path, config: dict[str, Any]) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", **config)
    to_gguf(checkpoint, out)
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_a_qwen2_in_f32_predicts_as_pytorch_does(tmp_path: Path, out: Path, tied: bool) -> None:
    config = {"rope_theta": 1e6, "use_sliding_window": False}
    checkpoint = tiny_checkpoint(
        tmp_path / "checkpoint", tied=tied, layers=3, seed=11, config=config, architecture="qwen2"
    )
    assert to_gguf(checkpoint, out).n_tensors == 2 + (not tied) + 3 * 12
    values, tensors = metadata.read(out)
    assert values["general.architecture"] == "qwen2"
    assert {key.partition(".")[0] for key in values} == {"general", "memdec_edge", "tokenizer", "qwen2"}
    assert values["qwen2.rope.freq_base"] == 1e6
    assert sum(tensor.name.endswith(".bias") for tensor in tensors) == 3 * 3
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


def test_a_qwen2_that_transformers_saved_predicts_as_pytorch_does(tmp_path: Path, out: Path) -> None:
    linear = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", "Qwen2", rope_parameters=linear)
    to_gguf(checkpoint, out)
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


def test_a_sharded_bf16_checkpoint_predicts_as_pytorch_does(tmp_path: Path, out: Path) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", dtype="bfloat16", max_shard_size="100KB")
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    assert to_gguf(checkpoint, out, "auto").outtype == "bf16"
    to_gguf(checkpoint, out.with_name("memdec-f32.gguf"))
    assert np.abs(llama_log_probs(out.with_name("memdec-f32.gguf")) - torch_log_probs(checkpoint)).max() < 1e-3


def test_auto_is_f16_for_an_f32_checkpoint(family: Family, out: Path) -> None:
    assert to_gguf(family.memory_checkpoint, out, "auto").outtype == "f16"


def test_rows_that_do_not_divide_into_blocks_stay_f16_and_are_reported(tmp_path: Path, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", hidden=48)
    report = to_gguf(checkpoint, out, "q8_0")
    kinds = {tensor.name: tensor.kind for tensor in metadata.read(out)[1]}
    assert (kinds["token_embd.weight"], kinds["blk.1.ffn_down.weight"]) == (1, 8)
    assert "token_embd.weight is F16: its rows of 48 do not divide into blocks of 32" in report.warnings
    assert np.isfinite(llama_log_probs(out)).all()


def test_the_reference_reader_finds_the_checkpoints_numbers(family: Family, out: Path) -> None:
    to_gguf(family.base_checkpoint, out, role="model")
    reader = GGUFReader(out)
    values = load_file(family.base_checkpoint / "model.safetensors")
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert np.array_equal(tensors["output.weight"], values["lm_head.weight"])
    assert np.array_equal(tensors["blk.1.ffn_down.weight"], values["model.layers.1.mlp.down_proj.weight"])
    assert np.array_equal(tensors["blk.0.attn_norm.weight"], values["model.layers.0.input_layernorm.weight"])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["general.file_type"].contents() == 0
    assert not any(key.startswith("memdec_edge") for key in reader.fields)


def test_entries_of_memdec_json_become_keys_of_the_gguf(checkpoint: Path, family: Family, out: Path) -> None:
    notes = {
        "general.name": "Tiny medicine", "general.license": "cc-by-4.0", "general.datasets": ["one", "two"],
        "memdec_edge.domain": "medicine", "memdec_edge.train.beta": 0.5, "memdec_edge.train.tokens": 5_000_000_000,
        "memdec_edge.train.teacher": None, "memdec_edge.lambda": 1,
    }  # fmt: skip
    (checkpoint / "memdec.json").write_text(json.dumps(notes), encoding="utf-8")
    to_gguf(checkpoint, out, base=family.base)
    model = Model(out, vocab_only=True)
    meta = model.metadata
    model.close()
    found = metadata.MemoryMetadata.from_gguf(out, meta)
    assert (meta["general.name"], meta["general.license"]) == ("Tiny medicine", "cc-by-4.0")
    assert meta["general.base_model.0.name"] == family.base_checkpoint.name
    assert (found.domain, found.weight) == ("medicine", 1.0)
    assert found.train == {"beta": "0.5", "tokens": "5000000000"}
    fields = GGUFReader(out).fields
    assert fields["general.datasets"].contents() == ["one", "two"]
    assert fields["general.tags"].contents() == ["memory-decoder", "memdec-edge"]


def test_a_recommended_lambda_goes_into_the_placeholder_and_can_be_changed_there(checkpoint: Path, out: Path) -> None:
    (checkpoint / "memdec.json").write_text('{"memdec_edge.lambda": 0.35}', encoding="utf-8")
    to_gguf(checkpoint, out)
    values, _ = metadata.read(out)
    assert metadata.MemoryMetadata.from_gguf(out, values).weight == pytest.approx(0.35)
    keys = list(values)
    first = keys.index(metadata.LAMBDA)
    assert keys[first : first + len(metadata.PLACEHOLDERS)] == list(metadata.PLACEHOLDERS)
    metadata.patch(out, {metadata.LAMBDA: 0.5, metadata.PPL_MIXTURE: 8.5})
    assert metadata.read(out)[0][metadata.LAMBDA] == 0.5


def test_a_snapshot_in_the_hubs_cache_gives_the_models_name_and_not_the_commits(
    family: Family, tmp_path: Path, out: Path
) -> None:
    snapshot = tmp_path / "models--org--Tiny-1.5B" / "snapshots" / "0123456789abcdef"
    shutil.copytree(family.memory_checkpoint, snapshot)
    to_gguf(snapshot, out)
    values, _ = metadata.read(out)
    assert (values["general.name"], values["general.organization"]) == ("Tiny-1.5B", "org")


def test_rows_that_the_base_does_not_have_are_dropped(tmp_path: Path, family: Family, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", seed=3, tied=False, vocab_extra=PADDING)
    report = to_gguf(checkpoint, out, base=family.base)
    assert "416 rows" in report.warnings[0]
    assert "400 tokens; the rows beyond are dropped" in report.warnings[0]
    assert metadata.read(out)[0]["llama.vocab_size"] == 400
    mine = llama_log_probs(out)
    assert mine.shape[1] == 400
    theirs = torch_log_probs(checkpoint, 400)
    assert np.abs(mine - theirs).max() < 1e-3


def test_the_file_name_of_a_memory_without_the_usual_prefix_is_a_warning(family: Family, tmp_path: Path) -> None:
    assert to_gguf(family.memory_checkpoint, tmp_path / "law.gguf").warnings == (
        "the name of a memory should start with memdec-: memdec-law.gguf",
    )
    assert to_gguf(family.memory_checkpoint, tmp_path / "model.gguf", role="model").warnings == ()


def test_verify_reports_the_distance_from_pytorch(family: Family, out: Path) -> None:
    exact = to_gguf(family.memory_checkpoint, out, base=family.base, verify=True).verification
    assert exact is not None
    assert exact.max_delta < 1e-3
    assert (exact.n_tokens, exact.same_top, exact.token_difference) == (MAX_TOKENS, 1.0, "")
    rough = to_gguf(family.memory_checkpoint, out.with_name("memdec-q8.gguf"), "q8_0", verify=True).verification
    assert rough is not None
    assert rough.max_delta > 10 * exact.max_delta


def test_verify_warns_where_text_splits_otherwise(checkpoint: Path, family: Family, out: Path) -> None:
    body = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    edit_json(checkpoint / "tokenizer.json", model=body["model"] | {"merges": []})
    report = to_gguf(checkpoint, out, base=family.base, verify=True)
    assert "llama.cpp splits " in report.warnings[0]


def test_verify_refuses_another_model(family: Family, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=99)
    with pytest.raises(ModelFileError, match="does not compute what PyTorch does"):
        verify(family.memory, other, "f32")
