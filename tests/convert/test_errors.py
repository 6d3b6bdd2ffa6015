"""memdec_edge.convert: what it refuses, and that a refusal names the culprit and leaves nothing behind."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memdec_edge.errors import (
    ExistingOutputError,
    MissingExtraError,
    MissingFileError,
    ModelFileError,
    OptionError,
    OutputError,
)
from tests.conftest import Family
from tests.support.tiny import edit_json, edit_tensors, tiny_checkpoint, to_gguf


def test_a_tensor_that_the_architecture_lacks_is_named(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)})
    with pytest.raises(ModelFileError, match=r"the tensor model\.layers\.0\.self_attn\.q_norm\.weight has no place"):
        to_gguf(checkpoint, out)


def test_a_missing_tensor_is_named(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, remove="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelFileError, match=r"the tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        to_gguf(checkpoint, out)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.norm.weight": np.ones(32, np.float32)})
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight is 32, config\.json makes it 64"):
        to_gguf(checkpoint, out)


def test_a_diverged_checkpoint_is_refused(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.norm.weight": np.full(64, np.nan, np.float32)})
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight holds NaN or infinity"):
        to_gguf(checkpoint, out)
    assert list(out.parent.iterdir()) == []


def test_a_weight_beyond_f16_is_refused_and_bf16_advised(checkpoint: Path, out: Path) -> None:
    edit_tensors(checkpoint, {"model.layers.0.mlp.down_proj.weight": np.full((64, 128), 1e6, np.float32)})
    with pytest.raises(ModelFileError, match="exceeds the range of f16; use `outtype` bf16"):
        to_gguf(checkpoint, out, "f16")
    assert to_gguf(checkpoint, out, "bf16").outtype == "bf16"


def test_an_existing_file_is_replaced_only_where_overwrite_is_given(family: Family, out: Path) -> None:
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(ExistingOutputError, match="exists and is not overwritten"):
        to_gguf(family.memory_checkpoint, out)
    assert out.read_text() == "mine"
    with pytest.raises(ModelFileError):  # a failed conversion leaves what was there
        to_gguf(family.memory_checkpoint, out, base=family.stranger, overwrite=True)
    assert out.read_text() == "mine"
    assert to_gguf(family.memory_checkpoint, out, overwrite=True).n_bytes == out.stat().st_size
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("link", [None, os.link, os.symlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "notes.md", "base.gguf"])
def test_overwrite_replaces_nothing_that_the_file_is_made_from(
    family: Family, checkpoint: Path, tmp_path: Path, name: str, link: Callable[[Path, Path], None] | None
) -> None:
    base = Path(shutil.copy(family.base, tmp_path / "base.gguf"))
    (checkpoint / "notes.md").write_text("mine")
    given = out = base if name == base.name else checkpoint / name
    if link:
        link(given, out := tmp_path / "memdec-link.gguf")
    before = given.read_bytes()
    with pytest.raises(ExistingOutputError) as caught:
        to_gguf(checkpoint, out, base=base, overwrite=True)
    assert str(caught.value) == f"{out} exists and is not overwritten; it is made from {given}; choose another path"
    assert given.read_bytes() == before


def test_a_gguf_of_an_earlier_run_in_the_checkpoint_is_overwritten(checkpoint: Path) -> None:
    for overwrite in (False, True):
        assert to_gguf(checkpoint, checkpoint / "memdec-own.gguf", overwrite=overwrite).n_bytes > 0


@pytest.mark.parametrize("length", [0, 4, 300, 100_000])
def test_truncated_weights_are_refused(checkpoint: Path, out: Path, length: int) -> None:
    os.truncate(checkpoint / "model.safetensors", length)
    with pytest.raises(ModelFileError, match=r"model\.safetensors: cannot be read .* cut short"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_names_the_path(checkpoint: Path, out: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name}: no such"):
        to_gguf(checkpoint, out)


def test_a_missing_folder_and_a_missing_base_name_the_path(tmp_path: Path, family: Family, out: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere: no such checkpoint folder"):
        to_gguf(tmp_path / "nowhere", out)
    with pytest.raises(MissingFileError, match=r"nowhere\.gguf: no such GGUF file"):
        to_gguf(family.memory_checkpoint, out, base=tmp_path / "nowhere.gguf")


def test_a_pickle_that_holds_more_than_weights_is_refused_and_not_run(checkpoint: Path, out: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(out.parent),)

    import torch

    (checkpoint / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin: cannot be read .* holds more than weights"):
        to_gguf(checkpoint, out)
    assert not out.parent.exists()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x00\xff", "[" * 100_000, '{"architectures": 3}', "{}"])
def test_a_garbage_config_is_refused(checkpoint: Path, out: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"config\.json"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"architectures": ["BertModel"]},
            "the architecture is BertModel; what can be converted: LlamaForCausalLM, Mis",
        ),
        ({"hidden_size": "big"}, "hidden_size is 'big'"),
        ({"num_hidden_layers": -2}, "num_hidden_layers is -2"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "do not go with 3 key-value heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' of llama cannot be converted"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None"),
        ({"num_hidden_layers": 3}, r"the tensor model\.layers\.2\.input_layernorm\.weight is missing"),
        ({"vocab_size": 399}, "400 x 64, config.json makes it 399 x 64"),
    ],
)
def test_an_impossible_entry_of_config_json_is_named(
    checkpoint: Path, out: Path, changes: dict[str, Any], named: str
) -> None:
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is True; llama.cpp's qwen2 computes it only with False"),
        ({"head_dim": 32}, "4 heads of 32 are no hidden_size of 64, which llama.cpp's qwen2 wants"),
        ({"rope_scaling": {"type": "llama3", "factor": 4.0}}, "rope scaling 'llama3' of qwen2 cannot be converted"),
    ],
)
def test_what_llama_cpp_lacks_for_qwen2_is_refused(
    tmp_path: Path, out: Path, changes: dict[str, Any], named: str
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", architecture="qwen2", config=changes)
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)


def test_an_unknown_outtype_is_an_option_error(family: Family, out: Path) -> None:
    with pytest.raises(OptionError, match="outtype is q3_x"):
        to_gguf(family.memory_checkpoint, out, "q3_x")


@pytest.mark.parametrize(
    ("notes", "named"),
    [
        ({"llama.block_count": 3}, "'llama.block_count' cannot be set"),
        ({"memdec_edge.role": "model"}, "'memdec_edge.role' cannot be set"),
        ({"memdec_edge.tokenizer.sha256": "ab"}, "'memdec_edge.tokenizer.sha256' cannot be set"),
        ({"general.\nname": "a"}, r"'general.\\nname' cannot be set"),
        ({"general.name": 5}, "general.name is 5; it must be a string"),
        ({"general.name": ["a", "b"]}, "general.name is .'a', 'b'.; it must be a string"),
        ({"general.tags": "a"}, "general.tags is 'a'; it must be a list of strings"),
        ({"memdec_edge.lambda": "0.4"}, "memdec_edge.lambda is '0.4'; it must be a number"),
        ({"memdec_edge.lambda": True}, "memdec_edge.lambda is True; it must be a number"),
        ({"memdec_edge.temperature": 10**400}, "memdec_edge.temperature is inf; it must be from"),
        ({"memdec_edge.train.k": {"a": 1}}, "memdec_edge.train.k is {'a': 1}"),
        ({"memdec_edge.lambda": 1.5}, "memdec_edge.lambda is 1.5"),
    ],
)
def test_an_impossible_entry_of_memdec_json_is_named(
    checkpoint: Path, out: Path, notes: dict[str, Any], named: str
) -> None:
    (checkpoint / "memdec.json").write_text(json.dumps(notes), encoding="utf-8")
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)


def test_a_full_disk_leaves_nothing(family: Family, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from memdec_edge.convert import convert\n"
        "from memdec_edge.options import ConvertOptions; from memdec_edge.errors import OutputError\n"
        "try: convert(ConvertOptions(checkpoint=Path(sys.argv[1]), outfile=Path(sys.argv[2]), outtype='f32'))\n"
        "except OutputError as error: print(error)"
    )
    out = tmp_path / "full" / "memdec-own.gguf"
    found = subprocess.run(
        [sys.executable, "-c", script, str(family.memory_checkpoint), str(out)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{out} could not be written: " in found.stdout
    assert list(out.parent.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(family: Family, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        to_gguf(family.memory_checkpoint, tmp_path / "file" / "memdec-own.gguf")


def test_a_missing_extra_is_named(family: Family, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"torch is not installed; pip install 'memdec-edge\[convert\]'"):
        to_gguf(family.memory_checkpoint, out, verify=True)
    assert list(out.parent.iterdir()) == []
