"""train/adapting.py and train/transplant.py: a memory for another vocabulary."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memdec_edge.errors import ModelFileError, OptionError, StageError
from memdec_edge.options import AdaptOptions
from memdec_edge.train import adapt, train
from memdec_edge.train.models import load_source
from memdec_edge.train.transplant import rows_from, token_bytes, transplanted
from tests.support.command import memdec
from tests.support.pieces import LLAMA, sentencepiece_folder
from tests.support.tiny import OTHER_TEXT, TEXT, tiny_checkpoint, tiny_gguf
from tests.support.training import make_room, metrics, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a memory of 12 steps trained on it without a retriever, and a base of another vocabulary."""
    folder = make_room(tmp_path_factory.mktemp("adapt"))
    train(train_options(folder, folder / "memory", beta=0.0))
    tiny_checkpoint(folder / "other", tied=False, seed=3, text=TEXT + OTHER_TEXT, n_tokens=520, hidden=96)
    return folder


def options(room: Path, out: Path, share: float = 0.5, to: str = "other", **changes: Any) -> AdaptOptions:
    training = train_options(room, out, beta=0.0, steps=0, freeze_body=0.5, **changes)
    cache = replace(training.cache, teacher=room / to, out=out / "cache")
    return AdaptOptions(room / "memory", room / to, replace(training, cache=cache), share)


def test_shared_tokens_keep_their_vectors_and_others_are_the_mean_of_their_pieces(room: Path) -> None:
    old, new = load_source(room / "memory"), load_source(room / "other")
    rows = rows_from(old, new)
    model = transplanted(old, new, rows)
    before, after = (each.get_input_embeddings().weight for each in (old.model, model))
    mine, theirs = old.tokenizer.get_vocab(), new.tokenizer.get_vocab()
    assert len(after) == new.n_vocab
    shared = [text for text in theirs if text in mine]
    assert len(shared) > 260
    for text in shared:
        torch.testing.assert_close(after[theirs[text]], before[mine[text]])
    [composed] = [text for text in theirs if text == "Ġund"]
    pieces = old.tokenizer(" und", add_special_tokens=False).input_ids
    assert len(pieces) > 1
    torch.testing.assert_close(after[theirs[composed]], before[pieces].mean(0))
    heads = [each.get_output_embeddings().weight for each in (old.model, model)]  # not tied: it has rows of its own
    torch.testing.assert_close(heads[1][theirs[composed]], heads[0][pieces].mean(0))


def test_the_body_stays_as_it_was(room: Path) -> None:
    old, new = load_source(room / "memory"), load_source(room / "other")
    state = transplanted(old, new, rows_from(old, new)).state_dict()
    same = [name for name, weight in old.model.state_dict().items() if torch.equal(weight, state[name])]
    assert set(old.model.state_dict()) - set(same) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_vocabulary_adapted_to_itself_is_the_memory(room: Path) -> None:
    old = load_source(room / "memory")
    state = transplanted(old, old, rows_from(old, old)).state_dict()
    for name, weight in old.model.state_dict().items():
        torch.testing.assert_close(state[name], weight)


def test_bytes_of_tokens_are_those_of_their_text(room: Path, tmp_path: Path) -> None:
    sentencepiece_folder(tmp_path / "pieces", "bpe", 400, **LLAMA)
    import transformers

    for folder in (room / "other", tmp_path / "pieces"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(TEXT + OTHER_TEXT, add_special_tokens=False).input_ids
        known = token_bytes(tokenizer)
        assert b"".join(known[number] for number in ids).decode().strip() == (TEXT + OTHER_TEXT).strip()


def test_the_budget_is_a_share_of_the_tokens_that_the_memory_learned_from(room: Path, tmp_path: Path) -> None:
    trained = json.loads((room / "memory" / "memdec.json").read_text())["memdec_edge.train.tokens"]
    report = adapt(options(room, tmp_path / "half"))
    assert report.tokens == pytest.approx(trained / 2, abs=32)
    assert (tmp_path / "half" / "model.safetensors").is_file()
    assert load_source(tmp_path / "half").n_vocab == load_source(room / "other").n_vocab


def test_the_body_learns_only_after_its_share_of_the_steps(room: Path, tmp_path: Path) -> None:
    frozen = replace(options(room, tmp_path / "frozen").training, freeze_body=1.0, valid_every=1)
    adapt(replace(options(room, tmp_path / "frozen"), training=frozen))
    start, end = (load_source(tmp_path / "frozen" / name).model.state_dict() for name in ("start", "."))
    changed = {name for name, weight in start.items() if not torch.equal(weight, end[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_stopped_adaptation_goes_on_and_a_changed_memory_is_refused(room: Path, tmp_path: Path) -> None:
    wanted = options(room, tmp_path / "out")
    first = adapt(wanted)
    assert adapt(wanted).valid_perplexity == first.valid_perplexity
    assert len(metrics(tmp_path / "out")) == first.steps
    other = tiny_checkpoint(tmp_path / "memory", seed=8)
    (other / "memdec.json").write_text((room / "memory" / "memdec.json").read_text())
    with pytest.raises(StageError, match="memory"):
        adapt(replace(wanted, memory=other))


def test_a_gguf_base_gives_the_vocabulary_too(room: Path, tmp_path: Path) -> None:
    gguf = tiny_gguf(tmp_path / "other.gguf", room / "other")
    wanted = options(room, tmp_path / "out")
    cache = replace(wanted.training.cache, teacher=gguf)
    report = adapt(replace(wanted, to=gguf, training=replace(wanted.training, cache=cache)))
    by_folder = adapt(options(room, tmp_path / "folder"))
    assert report.valid_perplexity == pytest.approx(by_folder.valid_perplexity, rel=1e-3)


def test_too_small_a_budget_and_a_folder_that_is_no_memory_are_refused(room: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"`?budget_share`? .* a step has 32; give 0\.\d+ or more"):
        adapt(options(room, tmp_path / "out", share=1e-5))
    with pytest.raises(ModelFileError, match="does not say how many tokens"):
        adapt(replace(options(room, tmp_path / "out"), memory=room / "teacher"))
    assert not (tmp_path / "out").exists()


def test_the_command_adapts_and_says_how_to_convert(room: Path, tmp_path: Path) -> None:
    flags = ["--to", room / "other", "--corpus", room / "corpus", "--out", tmp_path / "new", "--beta", 0, "--lr", 1e-3]
    small = ["--block", 16, "--batch", 2, "--max-tokens", 700]
    done = memdec("adapt", room / "memory", *flags, *small, "--json")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {tmp_path / 'new'}" in done.stdout
    assert "next: memdec-edge convert" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["tokens"] == 32
    refused = memdec("adapt", tmp_path / "none", *flags, *small)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "does not say how many tokens" in refused.stderr
