"""Training text in two forms: what the stream holds, which positions are learned, that text alone is as it was."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from memdec_edge.chat import Transcriber, Transcript
from memdec_edge.documents import Document, parts_of
from memdec_edge.errors import Cancelled, OptionError, StageError
from memdec_edge.options import CacheOptions
from memdec_edge.train import build_cache, train, write_ids
from memdec_edge.train.corpus import Encoder, pack
from memdec_edge.train.feed import Data, Feed
from memdec_edge.train.forms import pack_forms
from memdec_edge.train.loss import Objective
from memdec_edge.train.targets import Support, learned_only
from memdec_edge.train.validation import Validation
from tests.support.causal import BATCH, LENGTH, batch, model_of
from tests.support.chatty import chatty
from tests.support.tiny import OTHER_TEXT, tiny_checkpoint, tiny_gguf
from tests.support.training import cache_options, make_room, metrics, train_options, words
from tests.train.test_loss import dense_loss, gradients
from tests.train.test_resume import interrupt_validation, same_shards

EOS, MARK = 1001, 1002  # of the byte tokenizer below; MARK stands for all that a template writes


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


ENCODER = Encoder(encode, None, EOS)


class Bytes:
    """Chats in bytes; it refuses a turn that says no."""

    def write(self, turns: Sequence[tuple[str, str]]) -> Transcript | None:
        if any(text == "no" for _, text in turns):
            return None
        tokens, answers = list[int](), list[bool]()
        for role, text in turns:
            tokens += [MARK, *text.encode()]
            answers += [False, *[role == "Assistant"] * len(text.encode())]
        return Transcript(tokens, answers)


DOCUMENTS = st.lists(
    st.builds(
        Document,
        text=st.text("ab\n#é ", min_size=1, max_size=30).filter(str.strip),
        source=st.just("a"),
        title=st.sampled_from(["", "Title", None]),
    ),
    max_size=12,
)


def answers_of(documents: list[Document]) -> set[str]:
    return {text for one in documents for part in parts_of(one) for role, text in part.turns if role == "Assistant"}


@given(documents=DOCUMENTS, share=st.floats(0, 1), limit=st.integers(0, 80))
def test_each_passage_is_in_the_stream_once_and_answers_alone_count(
    documents: list[Document], share: float, limit: int
) -> None:
    found = pack_forms(documents, ENCODER, Bytes(), share, limit)
    whole = pack_forms(documents, ENCODER, Bytes(), share, 0)
    assert found.tokens.tolist() == whole.tokens.tolist()[: limit or None]
    assert found.counted.tolist() == whole.counted.tolist()[: limit or None]
    assert len(whole.tokens) == len(whole.counted)
    pieces = "".join(chr(token) for token in whole.tokens).split(chr(EOS))[:-1]
    counts = "".join("+" if each else "-" for each in whole.counted)
    answers, at = answers_of(documents), 0
    for piece in pieces:
        mine = counts[at : at + len(piece) + 1]
        if chr(MARK) in piece:
            said = piece[2:].split(chr(MARK))  # question, answer, question, ...
            assert {bytes(map(ord, each)).decode() for each in piece.split(chr(MARK))[2::2]} <= answers
            assert mine.count("+") == sum(map(len, piece.split(chr(MARK))[2::2])), said
            assert mine[-1] == "-"
        else:
            assert set(mine) == {"+"}
        at += len(piece) + 1


@given(documents=DOCUMENTS)
def test_without_questions_or_without_a_share_the_stream_is_that_of_the_text(documents: list[Document]) -> None:
    found = pack_forms(documents, ENCODER, Bytes(), 0.0, 0)
    assert found.tokens.tolist() == pack([one.text for one in documents], ENCODER, 0).tolist()
    assert found.counted.all()
    assert found.chats == 0


def test_a_share_of_the_text_becomes_chats_spread_evenly_and_dialogues_always_do() -> None:
    documents = [Document(f"Title {i}\n\n{'x' * 100}", "a") for i in range(400)]
    found = pack_forms(documents, ENCODER, Bytes(), 0.25, 0)
    assert (found.chats, found.refused) == (100, 0)
    marks = np.flatnonzero(found.tokens == MARK)[::2]
    assert np.diff(marks).max() < 1.1 * np.diff(marks).min()
    assert pack_forms(documents, ENCODER, Bytes(), 1.0, 0).chats == 400
    dialogue = Document("User: a\n\nAssistant: b", "a", "", (("User", "a"), ("Assistant", "b")))
    assert pack_forms([dialogue] * 9, ENCODER, Bytes(), 0.0, 0).chats == 9
    some = pack_forms([*documents[:300], *[replace(dialogue, text="y" * 100)] * 100], ENCODER, Bytes(), 0.25, 0)
    assert some.chats == 107  # 7 of 110 characters beside 10,000 of dialogues: a quarter of 43,090


def test_what_the_template_refuses_stays_text_and_is_counted() -> None:
    dialogue = Document("User: a", "a", "", (("User", "no"), ("Assistant", "b")))
    documents = [Document("Title\n\nno", "a", "Title"), dialogue]
    found = pack_forms(documents, ENCODER, Bytes(), 1.0, 0)
    assert (found.chats, found.refused) == (0, 2)
    assert found.tokens.tolist() == pack([one.text for one in documents], ENCODER, 0).tolist()


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["llama, tied", "phi, head with a bias"])
def test_the_loss_and_its_gradients_are_those_of_the_positions_that_count(name: str, beta: float) -> None:
    model = model_of(name)
    ids, support, knn = batch()
    counted = torch.rand(BATCH * LENGTH, generator=torch.Generator().manual_seed(1)) < 0.6
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    expected = dense_loss(logits[counted], ids[:, 1:].flatten()[counted], knn[counted], beta)
    torch.autograd.backward(expected)
    wanted = {key: gradient.clone() for key, gradient in gradients(model).items()}
    model.zero_grad()
    loss, _, _ = Objective(model)(ids, support, beta, counted / counted.double().mean())
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for key, found in gradients(model).items():
        assert torch.allclose(found, wanted[key], rtol=1e-9, atol=1e-12), key


@settings(max_examples=20, deadline=None)
@given(other=st.integers(0, 159), beta=st.sampled_from([0.0, 0.5]))
def test_a_label_that_does_not_count_changes_neither_loss_nor_gradient(other: int, beta: float) -> None:
    ids, support, _ = batch()
    weights = torch.ones(BATCH, LENGTH)
    weights[:, -1] = 0  # the last label of a block is no input
    found = []
    for last in (ids[:, -1], torch.full((BATCH,), other)):
        model = model_of("llama, tied")
        loss = Objective(model)(torch.cat([ids[:, :-1], last[:, None]], 1), support, beta, weights.flatten())[0]
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])


def feeds(passes: int, processes: int, size: int, counted: Any) -> list[Feed]:
    tokens = np.arange(16 * 24 + 1, dtype=np.uint32)
    data = Data(tokens, None, Validation(tokens, 16), 16, counted)
    options = CacheOptions(Path("t"), Path("c"), Path("o"), batch=size, seed=3)
    cpu = torch.device("cpu")
    return [
        Feed(data, options, SimpleNamespace(num_processes=processes, process_index=i, device=cpu), passes)
        for i in range(processes)
    ]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), step=st.integers(0, 7), division=st.sampled_from([(1, 1, 4), (4, 1, 1), (2, 2, 1)]))
def test_a_step_weighs_each_counted_position_alike_however_it_is_divided(
    seed: int, step: int, division: tuple[int, int, int]
) -> None:
    passes, processes, size = division
    counted = np.random.default_rng(seed).random(16 * 24 + 1) < 0.3
    found: dict[int, float] = {}
    for feed in feeds(passes, processes, size, counted):
        for part in range(passes):
            made = feed.batch(step * passes + part)
            found |= zip(made.ids[:, 1:].flatten().tolist(), made.weights.tolist(), strict=True)  # a token is its place
        feed.close()
    assert len(found) == 4 * 16
    weights = np.array(list(found.values()))
    assert [weight > 0 for weight in found.values()] == [bool(counted[place]) for place in found]
    assert weights[weights > 0] == pytest.approx(64 / sum(weights > 0))


def test_without_a_mask_all_positions_weigh_one() -> None:
    [feed] = feeds(1, 1, 2, None)
    assert feed.batch(0).weights.tolist() == [1.0] * 32
    feed.close()


def test_neighbours_whose_token_is_not_learned_have_no_vote() -> None:
    distances = np.array([[1, 2, 3], [1, 2, np.inf]], np.float32)
    indices = np.array([[4, 1, 2], [0, 3, -1]])
    counted = np.array([True, True, False, True, True, False])
    near, whose = learned_only(distances, indices, counted)
    assert near.tolist() == [[3, np.inf, np.inf], [1, 2, np.inf]]
    assert whose[0, 0] == 2
    assert whose[1].tolist() == [0, 3, -1]
    assert learned_only(distances, indices, None)[0] is distances


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a corpus with titles, and the teacher's GGUF with a chat template."""
    folder = make_room(tmp_path_factory.mktemp("forms"))
    for split, count in (("train", 20), ("valid", 6)):
        rows = [{"title": text[:9], "text": text} for text in words(count, len(split))]
        (folder / "corpus" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chatty(tiny_gguf(folder / "plain.gguf", folder / "teacher"), folder / "base.gguf")
    return folder


def in_chats(room: Path, out: Path, **changes: Any) -> CacheOptions:
    return cache_options(room, out=out, chat_base=room / "base.gguf", chat_share=0.5, **changes)


def test_a_part_of_the_text_is_learned_as_chats_and_the_retriever_hears_no_template(
    room: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = in_chats(room, tmp_path / "cache", target="knn-lm", finetune_teacher=0.5, k=40)
    report = train(train_options(room, tmp_path / "memory", cache=options))
    assert report.tokens > 0
    assert " chats in the template of base.gguf, of which answers are learned\n" in capfd.readouterr().err
    tokens, counted = (np.load(tmp_path / "cache" / "tokens" / f"{name}.npy") for name in ("train", "counted"))
    assert tokens.shape == counted.shape
    assert 0.5 < counted.mean() < 0.95
    with closing(Transcriber(room / "base.gguf")) as transcriber:
        begins = transcriber.model.encode(["[user]\n"])[0]
        places = [i for i in range(len(tokens) - 9) if tokens[i : i + len(begins)].tolist() == begins]
        assert len(places) > 3
        assert not any(counted[place : place + len(begins)].any() for place in places)
    only = set(tokens[~counted].tolist()) - set(tokens[counted].tolist())  # what the template alone writes
    heard = {int(token) for path in (tmp_path / "cache" / "targets").iterdir() for token in load_file(path)["ids"]}
    own = {int(token) for path in (tmp_path / "cache" / "keys").iterdir() for token in load_file(path)["ids"].flat}
    assert not heard & only - own
    facts = json.loads((tmp_path / "memory" / "memdec.json").read_text())
    assert facts["memdec_edge.train.chat_share"] == 0.5


def test_an_interrupted_training_of_chats_ends_like_one_that_was_not(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def options(name: str, **changes: Any) -> Any:
        cache = in_chats(room, tmp_path / name / "cache")
        return train_options(room, tmp_path / name / "memory", cache=cache, beta=0.0, valid_every=4, **changes)

    train(options("straight"))
    with monkeypatch.context() as patch:
        interrupt_validation(patch, 3)
        with pytest.raises(Cancelled):
            train(options("broken"))
    train(options("broken"))
    same_shards(tmp_path / "straight", tmp_path / "broken")
    train(options("halves", batch=1, accumulate=2))
    whole, halves = (metrics(tmp_path / name / "memory") for name in ("straight", "halves"))
    assert halves[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-4)
    assert halves[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-2)


def test_text_alone_has_no_mask_and_other_shares_are_other_caches(room: Path, tmp_path: Path) -> None:
    plain = build_cache(cache_options(room, out=tmp_path / "text"))
    assert not (tmp_path / "text" / "tokens" / "counted.npy").exists()
    body = json.loads((tmp_path / "text" / "manifest.json").read_text())
    assert not [name for name in (*body["options"], *body["inputs"]) if "chat" in name]
    build_cache(cache_options(room, out=tmp_path / "text", chat_share=0.75))  # of nothing
    with pytest.raises(StageError, match="chat template is new"):
        build_cache(in_chats(room, tmp_path / "text"))
    build_cache(in_chats(room, tmp_path / "chats"))
    with pytest.raises(StageError, match=r"`chat_share` 0\.5, now 0\.75"):
        build_cache(replace(in_chats(room, tmp_path / "chats"), chat_share=0.75))
    assert plain.train_tokens <= 700
    (tmp_path / "chats" / "tokens" / "counted.npy").unlink()
    with pytest.raises(StageError, match="missing, or changed"):
        train(train_options(room, tmp_path / "memory", cache=in_chats(room, tmp_path / "chats")))


def test_what_has_no_template_or_another_vocabulary_is_refused_and_leaves_nothing(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    with pytest.raises(OptionError, match=r"chat_base is .*plain\.gguf: it has no chat template; give an instruct"):
        build_cache(replace(in_chats(room, out), chat_base=room / "plain.gguf"))
    broken = chatty(room / "plain.gguf", tmp_path / "broken.gguf", "{% if %}")
    with pytest.raises(OptionError, match=r"chat_base is .*broken\.gguf: no valid Jinja template"):
        build_cache(replace(in_chats(room, out), chat_base=broken))
    other = tiny_gguf(tmp_path / "other.gguf", tiny_checkpoint(tmp_path / "other", text=OTHER_TEXT))
    with pytest.raises(OptionError, match="its tokenizer is not that of the teacher"):
        build_cache(replace(in_chats(room, out), chat_base=chatty(other, tmp_path / "chatty.gguf")))
    write_ids(tmp_path / "ids" / "train.npy", np.arange(1, 300), room / "teacher")
    with pytest.raises(OptionError, match="token ids hold no questions; give the text"):
        build_cache(in_chats(room, out, corpus=tmp_path / "ids"))
    assert not out.exists()


def test_support_of_nothing_has_weights_too() -> None:
    model = model_of("llama, tied")
    ids = batch()[0]
    nothing = Objective(model)(ids, Support.empty(BATCH * LENGTH), 0.0, torch.zeros(BATCH * LENGTH))
    nothing[0].backward()
    assert nothing[0].item() == 0
    assert all(not gradient.any() for gradient in gradients(model).values())
