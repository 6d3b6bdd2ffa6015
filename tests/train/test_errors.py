"""What build_cache() and train() refuse, and what the message says."""

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from memdec_edge.errors import (
    CorpusError,
    ExistingOutputError,
    MissingFileError,
    ModelFileError,
    NumericsError,
    OptionError,
    StageError,
)
from memdec_edge.train import build_cache, train
from memdec_edge.train.models import load_source
from tests.support.tiny import OTHER_TEXT, TEXT, edit_json, edit_tensors, tiny_checkpoint, tiny_gguf
from tests.support.training import BLOCK, cache_options, flip, make_room, own_cache, train_options, words


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def test_a_missing_teacher_names_the_path(room: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing: no such HF folder or GGUF file; check the path"):
        build_cache(cache_options(room, teacher=tmp_path / "nothing", out=tmp_path / "cache"))


def test_a_teacher_that_is_no_model_names_the_path(room: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "notes.txt").write_text("")
    with pytest.raises(MissingFileError, match=r"teacher/config\.json: no such file; check the path"):
        build_cache(cache_options(room, teacher=tmp_path / "teacher", out=tmp_path / "cache"))
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match=r"teacher: transformers cannot load it as a causal LM \("):
        build_cache(cache_options(room, teacher=tmp_path / "teacher", out=tmp_path / "cache"))


def test_a_corpus_shorter_than_a_block_names_both_sizes(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("too short")
    options = cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "cache", valid_fraction=0, test_fraction=0)
    with pytest.raises(CorpusError) as caught:
        build_cache(options)
    assert "a.txt: " in str(caught.value)
    assert "training tokens are less than one block and a token; give more text, or a smaller `block` than 16" in str(
        caught.value
    )


def test_a_corpus_of_one_document_gives_its_tail_to_validation_and_test(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ".join(words(20, 3)))
    report = build_cache(cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "cache", max_tokens=0))
    assert 22 * report.valid_tokens > report.train_tokens > 14 * report.valid_tokens > 14 * BLOCK
    assert report.held_out is not None
    (tmp_path / "a.txt").write_text("word" * 40)  # no white space to cut at, and too little for a block
    with pytest.raises(
        OptionError, match=r"knn_temp is auto: needs 17 tokens of validation text; give a number, or more"
    ):
        build_cache(cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("weight", [np.nan, np.inf])
def test_a_teacher_whose_keys_are_no_numbers_stops_the_work_and_leaves_no_key(
    room: Path, tmp_path: Path, weight: float
) -> None:
    teacher = tiny_checkpoint(tmp_path / "teacher", tied=False)
    name = "model.layers.1.post_attention_layernorm.weight"
    edit_tensors(teacher, {name: np.full(64, weight, np.float32)})
    options = cache_options(room, teacher=teacher, out=tmp_path / "cache")
    with pytest.raises(NumericsError) as caught:
        build_cache(options)
    assert str(caught.value) == "teacher teacher: a key is NaN or too large for float16; use another teacher"
    assert not (options.out / "keys").exists()


def test_more_neighbours_than_keys_names_both_numbers(room: Path, tmp_path: Path) -> None:
    keys = 700 // BLOCK * BLOCK
    with pytest.raises(OptionError) as caught:
        build_cache(cache_options(room, k=keys, out=tmp_path / "cache"))
    assert str(caught.value) == f"k is {keys}: the datastore has {keys} keys, so a key has {keys - 1} neighbours"
    assert not (tmp_path / "cache").exists()
    build_cache(cache_options(room, k=keys - 1, out=tmp_path / "cache"))


def test_a_block_longer_than_the_teachers_context_is_refused(room: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="block is 513: the teacher's context is 512 tokens"):
        build_cache(cache_options(room, block=513, out=tmp_path / "cache"))


def test_an_automatic_temperature_needs_validation_text(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    options = cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "cache", valid_fraction=0)
    with pytest.raises(
        OptionError, match="knn_temp is auto: needs 17 tokens of validation text; give a number, or more text"
    ):
        build_cache(options)
    with pytest.raises(OptionError, match="target is knn-lm: needs 17 tokens of validation text; give more text, or"):
        build_cache(replace(options, knn_temp=4.0, target="knn-lm"))
    report = build_cache(replace(options, knn_temp=4.0))
    assert (report.tau, report.knn_perplexity, report.teacher_perplexity) == (4.0, None, None)
    assert (report.nearest_distance, report.kth_distance) == (None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 3}, "layers is 3: the source has 2"),
        ({"hidden": 64}, "hidden is 64: must be below the source's 64 and a multiple of its head size, 16"),
        ({"hidden": 40}, "hidden is 40: must be below the source's 64 and a multiple of its head size, 16"),
    ],
)
def test_a_shape_that_the_source_cannot_give_is_refused(
    room: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cache = cache_options(room, out=tmp_path / "memory" / "cache")
    with pytest.raises(OptionError) as caught:
        train(train_options(room, tmp_path / "memory", cache=cache, **changes))
    assert str(caught.value) == message
    assert not (tmp_path / "memory").exists()  # refused before the cache was made


def test_an_initial_model_with_another_vocabulary_is_refused(room: Path, tmp_path: Path) -> None:
    cache = cache_options(room, out=tmp_path / "cache")
    larger = tiny_checkpoint(tmp_path / "larger", vocab_extra=200)
    with pytest.raises(
        ModelFileError, match=r"larger: its vocabulary has \d+ tokens, the teacher's \d+; a memory starts"
    ):
        train(train_options(room, tmp_path / "a", cache=cache, init=larger))
    stranger = tiny_checkpoint(tmp_path / "stranger", text=OTHER_TEXT)
    with pytest.raises(
        ModelFileError, match=r"stranger: its vocabulary is not the teacher's: token \d+ is .* there and"
    ):
        train(train_options(room, tmp_path / "a", cache=cache, init=stranger))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "cache").exists()


def test_a_gguf_teacher_and_a_folder_of_the_same_tokens_go_together(room: Path, tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "teacher.gguf", tiny_checkpoint(tmp_path / "padded", vocab_extra=5))
    cache = cache_options(room, teacher=gguf, out=tmp_path / "cache")
    train(train_options(room, tmp_path / "a", cache=cache, init=room / "teacher", steps=1))
    stranger = tiny_checkpoint(tmp_path / "stranger", rename=(300, "zzz"))
    with pytest.raises(
        ModelFileError, match=r'stranger: its vocabulary .* token 300 is ".*" there and "zzz" here; a mem'
    ):
        train(train_options(room, tmp_path / "b", cache=cache, init=stranger, steps=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "values"}, "key is values: must be one of mlp_input, hidden"),
        ({"search": "brute"}, "search is brute: must be one of auto, exact, ivfpq, hnsw"),
        ({"top_mass": 0.0}, "top_mass is 0: must be from 0.01 to 1"),
        ({"knn_temp": float("nan")}, "knn_temp is nan: must be from 1e-06 to 1000000000000"),
        ({"finetune_teacher": -1}, "finetune_teacher is -1: must be from 0 to 1000000"),
    ],
)
def test_options_of_the_cache_out_of_range_are_refused(room: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        cache_options(room, **changes)
    assert str(caught.value) == message


def test_a_foreign_output_folder_is_refused_before_the_cache_is_made(room: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExistingOutputError):
        train(train_options(room, tmp_path, cache=cache_options(room, out=tmp_path / "cache"), fresh=True))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_output_folder_inside_the_corpus_is_refused(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(OptionError, match=r"out is .*: must be outside .*, whose files are all taken as corpus"):
        build_cache(cache_options(room, corpus=tmp_path, out=tmp_path / "out" / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_was_mended_is_no_other_corpus(room: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    options = cache_options(room, corpus=path, out=tmp_path / "cache", max_tokens=0, knn_temp=4.0)
    for content in (b" \n", TEXT.encode("utf-16")):
        path.write_bytes(content)
        with pytest.raises(CorpusError):
            build_cache(options)
    path.write_text(TEXT)
    assert build_cache(options).train_tokens > 100


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def test_a_teacher_that_is_cut_short_is_a_model_file_error(room: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "teacher")
    gguf = tiny_gguf(tmp_path / "teacher.gguf", folder)
    whole = gguf.read_bytes()
    for length in (0, 100, len(whole) // 4, len(whole) // 2, len(whole) - 1):  # in the header, in the tensors
        gguf.write_bytes(whole[:length])
        with pytest.raises(ModelFileError, match=r"teacher\.gguf: "):
            build_cache(cache_options(room, teacher=gguf, out=tmp_path / "cache"))
    cut(folder / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"teacher: transformers cannot load it as a causal LM \("):
        build_cache(cache_options(room, teacher=folder, out=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 3}, r"it has no tensor model\.layers\.2\."),
        ({"num_hidden_layers": 1}, r"config\.json has no place for model\.layers\.1\.input_layernorm\.weight;"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; it must be from 1 to 1000"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers is 1000000000; it must be from 1 to 1000"),
        ({"num_attention_heads": 0}, "transformers cannot load it"),
        ({"hidden_size": "wide"}, "transformers cannot load it"),
        ({"model_type": "abacus"}, "transformers cannot load it"),
    ],
)
def test_a_config_that_does_not_fit_is_a_model_file_error(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    folder = tiny_checkpoint(tmp_path / "teacher")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelFileError, match=f"teacher(/config\\.json)?: {reason}"):
        load_source(folder)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_out_of_range_is_refused(room: Path, seed: int) -> None:
    with pytest.raises(OptionError, match=f"seed is {seed}: must be from 0 to 2147483647"):
        cache_options(room, seed=seed)


def test_an_initial_model_with_padding_rows_is_accepted(room: Path, tmp_path: Path) -> None:
    padded = tiny_checkpoint(tmp_path / "padded", vocab_extra=16, layers=4)
    train(train_options(room, tmp_path / "memory", init=padded, steps=1, layers=3))
    assert json.loads((tmp_path / "memory" / "config.json").read_text())["num_hidden_layers"] == 3


def test_a_cache_made_otherwise_is_refused_naming_the_difference(room: Path, tmp_path: Path) -> None:
    options = own_cache(room, tmp_path)
    with pytest.raises(StageError) as caught:
        build_cache(replace(options, k=7))
    assert str(caught.value) == (
        f"{options.out}: made with `k` 6, now 7; use another output folder, or `fresh` to redo it"
    )
    corpus = tmp_path / "corpus"
    shutil.copytree(room / "corpus", corpus)
    with (corpus / "train.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(StageError, match=r"made with other inputs: corpus train\.jsonl has changed"):
        build_cache(replace(options, corpus=corpus))
    teacher = tiny_checkpoint(tmp_path / "teacher", tied=False, seed=5)
    with pytest.raises(StageError, match=r"made with other inputs: teacher model\.safetensors has changed"):
        build_cache(replace(options, teacher=teacher))
    assert build_cache(replace(options, k=7, fresh=True)).tau > 0


@pytest.mark.parametrize("name", ["keys/00000.safetensors", "validation.safetensors", "tokens/train.npy"])
def test_a_flipped_byte_is_noticed_when_the_cache_goes_on(room: Path, tmp_path: Path, name: str) -> None:
    options = own_cache(room, tmp_path)
    (options.out / "targets" / "00000.safetensors").unlink()
    manifest = json.loads((options.out / "manifest.json").read_text())
    del manifest["facts"]["tau"]
    (options.out / "manifest.json").write_text(json.dumps(manifest))
    flip(options.out / name)
    with pytest.raises(StageError) as caught:
        build_cache(options)
    assert str(caught.value).startswith(f"{options.out / name}: ")


def test_a_flipped_target_is_never_trained_on(room: Path, tmp_path: Path) -> None:
    options = own_cache(room, tmp_path)
    flip(options.out / "targets" / "00000.safetensors")
    with pytest.raises(StageError, match=r"targets/00000\.safetensors: damaged"):
        train(train_options(room, tmp_path / "memory", cache=options))
    assert not (tmp_path / "memory" / "metrics.jsonl").exists()


def poisoned(room: Path, folder: Path) -> Path:
    """An initial model that answers NaN to one token, which only one block of the corpus holds."""
    shutil.copytree(room / "teacher", folder)
    tokens = np.load(room / "cache" / "tokens" / "train.npy")[: 700 // BLOCK * BLOCK].reshape(-1, BLOCK)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0)).tolist()
    late = set(tokens[order[14]].tolist()) - {int(t) for block in order[:14] for t in tokens[block]}
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][late.pop()] = np.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_of_nan_stops_and_keeps_the_last_state(room: Path, tmp_path: Path) -> None:
    init = poisoned(room, tmp_path / "poisoned")
    with pytest.raises(NumericsError) as caught:
        train(train_options(room, tmp_path / "memory", init=init))
    assert str(caught.value) == (
        "the loss is nan at step 8; the state after step 5 is kept; use `fresh` and a lower `lr`"
    )
    with pytest.raises(StageError, match=r"made with `lr` 0\.003, now 0; use another output folder, or `fresh`"):
        train(train_options(room, tmp_path / "memory", init=init, lr=0.0))
    with pytest.raises(StageError, match=r"made with `weight_decay` 0\.01, now 0\.1; use"):
        train(train_options(room, tmp_path / "memory", init=init, weight_decay=0.1))
    state = load_file(tmp_path / "memory" / "resume.safetensors")
    assert np.isfinite(state["weight.lm_head.weight"]).all()
    assert not (tmp_path / "memory" / "model.safetensors").exists()

    flip(tmp_path / "memory" / "resume.safetensors")
    with pytest.raises(StageError, match=r"resume\.safetensors: damaged"):
        train(train_options(room, tmp_path / "memory", init=init))


def test_a_gradient_of_nan_stops_before_it_reaches_the_weights(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = torch.Tensor.backward
    steps = []

    def poisoned_backward(self: torch.Tensor, *args: Any, **options: Any) -> None:
        backward(self, *args, **options)  # type: ignore[no-untyped-call]
        steps.append(1)
        if len(steps) == 8:
            for found in gc.get_objects():  # of this training, and of others that are still held
                # isinstance() would ask a deprecated object of torch for its class
                if issubclass(type(found), torch.Tensor) and found.is_leaf and found.grad is not None:
                    found.grad.view(-1)[0] = torch.nan

    monkeypatch.setattr(torch.Tensor, "backward", poisoned_backward)
    with pytest.raises(
        NumericsError, match="the gradient's norm is nan at step 8; the state after step 6 is kept; use"
    ):
        train(train_options(room, tmp_path / "memory", save_every=1))
    state = load_file(tmp_path / "memory" / "resume.safetensors")
    assert all(np.isfinite(array).all() for array in state.values())
