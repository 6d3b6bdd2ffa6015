"""memdec_edge.convert.folder and checkpoint: which weights are converted, with transformers as the judge."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf import metadata
from tests.support.hf import hf_checkpoint, llama_log_probs, torch_log_probs
from tests.support.tiny import edit_json, edit_tensors, tiny_checkpoint, to_gguf

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
Tensors = dict[str, npt.NDArray[np.float32]]


def write_weights(folder: Path, name: str, seed: int) -> None:
    """Weights of their own seed under one of the names that transformers knows; for an index two shards too."""
    import torch

    made = tiny_checkpoint(folder.with_name(f"{folder.name}-{seed}"), seed=seed)
    tensors = load_file(made / SINGLE)
    parts = {name: tensors}
    if name.endswith(".index.json"):
        stem, _, suffix = name.removesuffix(".index.json").rpartition(".")
        names = sorted(tensors)
        parts = {f"{stem}-{i}.{suffix}": {key: tensors[key] for key in names[i::2]} for i in range(2)}
        places = {key: part for part, found in parts.items() for key in found}
        (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    for part, found in parts.items():
        if part.endswith(".bin"):
            torch.save({key: torch.from_numpy(array) for key, array in found.items()}, folder / part)
        else:
            save_file(found, folder / part, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "names",
    [
        (SINGLE, INDEX),
        (SINGLE, PICKLE),
        (INDEX, PICKLE),
        (INDEX, PICKLE_INDEX),
        (PICKLE, PICKLE_INDEX),
        (PICKLE_INDEX,),
    ],
    ids=" beside ".join,
)
def test_of_several_weight_files_convert_reads_the_one_that_transformers_reads(
    checkpoint: Path, out: Path, names: tuple[str, ...]
) -> None:
    (checkpoint / SINGLE).unlink()
    for seed, name in enumerate(names, 20):
        write_weights(checkpoint, name, seed)
    warnings = to_gguf(checkpoint, out).warnings
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3
    both = {SINGLE: INDEX, PICKLE: PICKLE_INDEX}.get(names[0])
    assert [f"{checkpoint / names[0]} is read and {both} is not, as transformers does"] * (both in names) == [*warnings]


def test_the_weights_file_that_config_json_names_goes_before_all_others(checkpoint: Path, out: Path) -> None:
    shutil.copy(tiny_checkpoint(checkpoint.with_name("other"), seed=31) / SINGLE, checkpoint / "mine.safetensors")
    edit_json(checkpoint / "config.json", transformers_weights="mine.safetensors")
    to_gguf(checkpoint, out)
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


@pytest.mark.parametrize("name", ["../mine.safetensors", "mine.bin", f"{'a' * 5000}.safetensors", 3])
def test_a_weights_file_outside_the_folder_or_of_another_kind_is_refused(
    checkpoint: Path, out: Path, name: str | int
) -> None:
    edit_json(checkpoint / "config.json", transformers_weights=name)
    with pytest.raises(ModelFileError, match=r"config\.json: transformers_weights is "):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize("name", ["../mine.safetensors", "/etc/passwd", "a" * 5000, "a\0b", "\ud800"])
def test_a_shard_that_cannot_be_a_file_of_the_folder_is_refused(checkpoint: Path, out: Path, name: str) -> None:
    (checkpoint / SINGLE).unlink()
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {EMBEDDING: name}}), encoding="utf-8")
    with pytest.raises((ModelFileError, MissingFileError), match=r"no file of its folder|no such weights file"):
        to_gguf(checkpoint, out)


def test_a_shard_that_is_not_there_is_named_with_the_index_that_wants_it(checkpoint: Path, out: Path) -> None:
    (checkpoint / SINGLE).unlink()
    write_weights(checkpoint, INDEX, 20)
    (checkpoint / "model-1.safetensors").unlink()
    with pytest.raises(MissingFileError, match=rf"model-1\.safetensors: no such weights file; {INDEX} names it"):
        to_gguf(checkpoint, out)


def test_weights_of_another_format_are_named_where_the_usual_ones_are_missing(checkpoint: Path, out: Path) -> None:
    (checkpoint / SINGLE).rename(checkpoint / "tf_model.h5")
    with pytest.raises(MissingFileError, match=rf"{SINGLE}: no such weights file; tf_model\.h5 is there; save the mod"):
        to_gguf(checkpoint, out)


def test_a_distributed_checkpoint_is_refused_since_transformers_would_read_it_first(
    checkpoint: Path, out: Path
) -> None:
    shutil.copy(checkpoint / SINGLE, checkpoint / "shard-00000-model-00001-of-00001.safetensors")
    with pytest.raises(ModelFileError, match=r"shard-00000-.*: is part of a distributed checkpoint; .*save_pretrained"):
        to_gguf(checkpoint, out)


@pytest.mark.parametrize(("shift", "longer"), [(-4, 0), (4, 4), (0, 4)])
def test_tensors_that_overlap_or_leave_a_gap_are_refused_as_transformers_does(
    checkpoint: Path, out: Path, shift: int, longer: int
) -> None:
    path = checkpoint / SINGLE
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    header[last]["data_offsets"] = [at + shift for at in header[last]["data_offsets"]]
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :] + bytes(longer))
    with pytest.raises(SafetensorError):
        load_file(path)
    with pytest.raises(
        ModelFileError, match=f"({last} does not begin where|goes on for 4 bytes after).*; it is damaged"
    ):
        to_gguf(checkpoint, out, "f32")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(checkpoint: Path, out: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
    (checkpoint / name).write_text(pointer, encoding="utf-8")
    with pytest.raises(ModelFileError, match=rf"{name}: is a pointer of Git LFS and not the file; run git lfs pull"):
        to_gguf(checkpoint, out)


FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {}, "Mistral": {}, "Qwen2": {}, "Qwen3": {"head_dim": 16}, "GPT2": {},
    "Gemma3": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_written_as_transformers_uses_it(
    tmp_path: Path, out: Path, family: str
) -> None:
    checkpoint = hf_checkpoint(tmp_path / "checkpoint", family, tie_word_embeddings=True, **FAMILIES[family])
    numbers = load_file(checkpoint / SINGLE)["transformer.wte.weight" if family == "GPT2" else EMBEDDING]
    random = np.random.default_rng(5)
    edit_tensors(checkpoint, {HEAD: numbers + 0.1 * random.standard_normal(numbers.shape, np.float32)})
    (warning,) = to_gguf(checkpoint, out).warnings
    assert warning.startswith(f"config.json ties head and embedding (tie_word_embeddings), but {HEAD} differs from ")
    assert "output.weight" in {tensor.name for tensor in metadata.read(out)[1]}
    near = 1e-2 if family in ("GPT2", "Gemma3") else 1e-3  # llama.cpp takes their GELU out of a table
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < near


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_head_of_the_embeddings_numbers_is_left_out(tmp_path: Path, out: Path, dtype: type[np.floating]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    numbers = load_file(checkpoint / SINGLE)[EMBEDDING].astype(np.float16)
    edit_tensors(checkpoint, {EMBEDDING: numbers.astype(np.float32), HEAD: numbers.astype(dtype)})
    assert to_gguf(checkpoint, out).warnings == ()
    assert "output.weight" not in {tensor.name for tensor in metadata.read(out)[1]}


def test_a_tied_model_that_holds_its_head_alone_gets_it_as_the_embedding(tmp_path: Path, out: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    edit_tensors(checkpoint, {HEAD: load_file(checkpoint / SINGLE)[EMBEDDING]}, remove=EMBEDDING)
    assert to_gguf(checkpoint, out).warnings == ()
    assert np.abs(llama_log_probs(out) - torch_log_probs(checkpoint)).max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "qwen2"}, r"model_type is 'qwen2' and the architecture LlamaForCausalLM; make the two agree"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1; it must be true or false"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            r"quantised already \(gptq\); load them, dequantize\(\) and",
        ),
    ],
)
def test_a_config_that_transformers_understands_otherwise_is_refused(
    checkpoint: Path, out: Path, changes: dict[str, Any], named: str
) -> None:
    edit_json(checkpoint / "config.json", **changes)
    with pytest.raises(ModelFileError, match=named):
        to_gguf(checkpoint, out)
