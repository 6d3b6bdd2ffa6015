"""train/model_files.py: what of a model is read, with transformers as the judge, and what people give instead."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from memdec_edge.errors import MissingFileError, ModelFileError, StageError
from memdec_edge.train import build_cache, train
from memdec_edge.train.manifest import MadeFrom
from memdec_edge.train.model_files import model_files, unread_files
from memdec_edge.train.models import load_source
from tests.support.hf import hf_checkpoint
from tests.support.raw_gguf import split_gguf
from tests.support.tiny import edit_gguf, tiny_checkpoint, tiny_gguf
from tests.support.training import cache_options, make_room, train_options

SHARD = "model-00001-of-00001.safetensors"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model")


def put_weights(folder: Path, name: str, norm: float) -> None:
    """Weights under a name, told apart by their last norm; an index gets a shard of its own."""
    weights = load_file(folder / "kept")
    weights[NORM] = np.full_like(weights[NORM], norm)
    stem = name.removesuffix(".index.json")
    file = stem if stem == name else stem.replace(".", "-00001-of-00001.")
    if stem.endswith(".bin"):
        torch.save({key: torch.from_numpy(value) for key, value in weights.items()}, folder / file)
    else:
        save_file(weights, folder / file, metadata={"format": "pt"})
    if stem != name:
        index = {"metadata": {}, "weight_map": dict.fromkeys(weights, file)}
        (folder / name).write_text(json.dumps(index))


ORDER = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"]


@pytest.mark.parametrize("first", range(4))
def test_the_weights_that_count_are_those_that_transformers_reads(folder: Path, first: int) -> None:
    (folder / "model.safetensors").rename(folder / "kept")
    for norm, name in enumerate(ORDER[first:], 10):
        put_weights(folder, name, norm)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert set(model.model.norm.weight.tolist()) == {10.0}
    assert set(load_source(folder).model.model.norm.weight.tolist()) == {10.0}
    chosen = ORDER[first]
    shard = chosen.removesuffix(".index.json").replace(".", "-00001-of-00001.")
    weights = [shard] if chosen.endswith("json") else [chosen]
    assert sorted(model_files(folder)) == sorted(["config.json", "tokenizer.json", "tokenizer_config.json", *weights])
    assert unread_files(folder) == {path.name for path in folder.iterdir()} - set(model_files(folder))


def test_what_is_not_read_may_change_and_what_is_read_may_not(room: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(room / "teacher", teacher)
    options = cache_options(room, teacher=teacher, out=tmp_path / "cache")
    report = build_cache(options)
    for name in ("README.md", "pytorch_model.bin", "model.safetensors.index.json", "picture.png"):
        (teacher / name).write_text("{}")
    assert build_cache(options) == report
    (teacher / "generation_config.json").write_text("{}")
    with pytest.raises(StageError, match=r"made with other inputs: teacher generation_config\.json is new"):
        build_cache(options)


def test_a_cache_of_an_earlier_version_that_has_a_readmes_digest_still_opens(room: Path, tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher", tmp_path / "cache"
    shutil.copytree(room / "teacher", teacher)
    shutil.copytree(room / "cache", out)
    options = cache_options(room, teacher=teacher, out=out)
    report = build_cache(options)
    (teacher / "README.md").write_text("a model")
    body = json.loads((out / "manifest.json").read_text())
    before = MadeFrom(body["stage"], body["inputs"], body["options"]).identity
    body["inputs"]["teacher README.md"] = "0" * 64
    after = MadeFrom(body["stage"], body["inputs"], body["options"]).identity
    (out / "manifest.json").write_text(json.dumps(body, indent=1))
    for shard in out.rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes().replace(before.encode(), after.encode()))
    assert replace(build_cache(options), bytes=report.bytes) == report
    (out / "targets" / "00000.safetensors").unlink()
    assert replace(build_cache(options), bytes=report.bytes) == report
    (teacher / "README.md").unlink()
    with pytest.raises(StageError, match=r"teacher README\.md is gone"):
        build_cache(options)


def test_an_id_of_the_hub_gives_the_command_that_downloads_it_and_names_the_gguf(room: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        build_cache(cache_options(room, teacher=Path("org/Tiny-1.5B"), out=tmp_path / "cache"))
    assert str(caught.value) == (
        "org/Tiny-1.5B: no such HF folder or GGUF file; check the path, or download it from the Hugging Face Hub: "
        "hf download org/Tiny-1.5B --local-dir Tiny-1.5B; the GGUF of a base can be the teacher, too"
    )


@pytest.mark.parametrize("role", ["teacher", "init"])
@pytest.mark.parametrize("with_model", [False, True])
def test_an_adapter_is_to_be_merged_first(
    room: Path, tmp_path: Path, folder: Path, role: str, with_model: bool
) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    if not with_model:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    cache = cache_options(room, out=tmp_path / "cache", **({"teacher": folder} if role == "teacher" else {}))
    with pytest.raises(ModelFileError, match="is a PEFT adapter of org/base; merge it first: merge_and_unload"):
        train(train_options(room, tmp_path / "memory", cache=cache, **({"init": folder} if role == "init" else {})))
    assert not (tmp_path / "cache").exists()


def test_an_adapter_as_gguf_is_to_be_merged_first(room: Path, tmp_path: Path, folder: Path) -> None:
    gguf = edit_gguf(tiny_gguf(tmp_path / "a.gguf", folder), tmp_path / "lora.gguf", {"general.type": "adapter"})
    with pytest.raises(ModelFileError, match=r"lora\.gguf: is a LoRA adapter; merge it into its base first"):
        build_cache(cache_options(room, teacher=gguf, out=tmp_path / "cache"))


def test_a_folder_of_checkpoints_names_the_one_to_give(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint-5")
    with pytest.raises(MissingFileError, match=r"run/config\.json: no such file; give the model folder in it, .*-5$"):
        model_files(tmp_path / "run")


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelFileError, match=r"model\.safetensors: is a pointer of Git LFS"):
        model_files(folder)


@pytest.mark.parametrize("family", ["GPT2", "qwen2"])
def test_a_tokenizer_of_vocab_and_merges_alone_is_a_tokenizer(room: Path, tmp_path: Path, family: str) -> None:
    folder = tmp_path / family
    if family == "GPT2":
        hf_checkpoint(folder, family)
    else:
        tiny_checkpoint(folder, architecture="qwen2")
    ids = load_source(folder).encoder.encode(["The heart is a muscle."])
    found = json.loads((folder / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in found["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(found["model"]["vocab"] | added))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in found["model"]["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert load_source(folder).encoder.encode(["The heart is a muscle."]) == ids
    report = train(
        train_options(room, tmp_path / "out", cache=cache_options(room, teacher=folder, out=tmp_path / "c"), steps=1)
    )
    assert (report.path / "tokenizer.json").is_file()  # what convert reads


def test_a_split_gguf_is_a_teacher_as_it_is_and_all_its_parts_count(room: Path, tmp_path: Path) -> None:
    whole = tiny_gguf(tmp_path / "whole.gguf", room / "teacher")
    split = split_gguf(whole, tmp_path / "split")
    one, other = (
        build_cache(cache_options(room, teacher=path, out=tmp_path / path.stem, k=5)) for path in (whole, split)
    )
    assert (one.tau, one.knn_perplexity, one.teacher_perplexity) == (
        other.tau,
        other.knn_perplexity,
        other.teacher_perplexity,
    )
    last = split.with_name("split-00003-of-00003.gguf")
    options = cache_options(room, teacher=split, out=tmp_path / split.stem, k=5)
    last.write_bytes(last.read_bytes() + b"0")
    with pytest.raises(StageError, match=r"teacher split-00003-of-00003\.gguf has changed"):
        build_cache(options)
    with pytest.raises(ModelFileError, match=r"is split into 3 files, .*; join them with llama-gguf-split --merge"):
        build_cache(replace(options, out=tmp_path / "other", finetune_teacher=0.5))
    assert not (tmp_path / "other").exists()
