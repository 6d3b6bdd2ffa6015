"""Which memories a MemoryLlama mixes: at its making, live, and what it refuses by name."""

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from memdec_edge import MemoryLlama
from memdec_edge.errors import (
    ContextError,
    DecodeError,
    MissingFileError,
    ModelFileError,
    OptionError,
    PairingError,
    RoleError,
)
from tests.conftest import Family
from tests.support.plain import Plain
from tests.support.stock import PLAIN, text
from tests.support.tiny import tiny_checkpoint, tiny_gguf
from tests.support.tiny_recurrent import tiny_recurrent_gguf
from tests.test_dropin import PROMPT, log_softmax, row

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture
def llama(family: Family) -> Iterator[MemoryLlama]:
    """A memory that weighs 0.6."""
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=0.6, **PLAIN)) as opened:
        yield opened


def test_memories_come_go_and_change_their_weights_between_two_tokens(llama: MemoryLlama, family: Family) -> None:
    tokens = llama.tokenize(PROMPT.encode())
    for shares in (
        [(family.padded, 0.3)],
        [(family.padded, 0.3), (family.memory, 0.5)],
        [(family.memory, 0.1)],
        [],
        [(family.memory, 0.9)],
    ):
        llama.set_memories(shares)
        assert llama.weights == {str(path): weight for path, weight in shares}
        llama.eval([tokens.pop()])
        with closing(Plain(family.base, shares)) as plain:
            np.testing.assert_allclose(log_softmax(row(llama)), plain.log_probs(llama.held), atol=1e-3)


def test_a_row_that_was_mixed_otherwise_is_mixed_anew_before_it_is_sampled(llama: MemoryLlama, family: Family) -> None:
    """Also where a repeat would decode nothing."""
    prompt, found = llama.tokenize(PROMPT.encode()), []
    for lam in (0.6, 0, 1, "auto", 0.6):
        llama.lam = lam
        next(llama.generate(prompt, temp=0.0))
        found.append(row(llama))
    assert all((one != other).any() for one, other in pairwise(found))
    np.testing.assert_allclose(found[0], found[-1], atol=1e-3)


def test_a_memory_that_stays_is_not_opened_again_unless_its_file_was_replaced(
    llama: MemoryLlama, family: Family, tmp_path: Path
) -> None:
    path = tmp_path / "memdec-live.gguf"
    path.write_bytes(family.memory.read_bytes())
    models = []
    for _ in range(2):
        llama.set_memories([(path, 0.3), family.padded])
        models.append(llama._timeline.memories[0].model)
    path.unlink()
    path.write_bytes(family.memory.read_bytes())
    llama.set_memories([(path, 0.3), family.padded])
    models.append(llama._timeline.memories[0].model)
    assert models[0] is models[1] is not models[2]
    with pytest.raises(DecodeError, match="is closed"):
        assert models[0].handle


def test_a_weight_of_its_own_is_taken_as_it_is_and_the_others_share_lambda(family: Family) -> None:
    memories: list[Any] = [(family.memory, 0.1), str(family.padded)]
    with closing(MemoryLlama(family.base, memories=memories, lam=0.5, **PLAIN)) as llama:
        assert list(llama.weights.values()) == [0.1, 0.5]
        llama.lam = "auto"  # fixed, since one is
        llama.eval([5, 6, 7])
        assert list(llama.weights.values()) == [0.1, 0.6]
        llama.set_memories([(family.padded, 0.2)])
        with pytest.raises(OptionError, match=r"lam is 0\.5: every memory has a weight of its own; leave one out"):
            llama.lam = 0.5
        assert list(llama.weights.values()) == [0.2]
    with pytest.raises(OptionError, match=r"lam is 0\.5: every memory has a weight of its own"):
        MemoryLlama(family.base, memories=[(family.memory, 0.1)], lam=0.5, **PLAIN)


@pytest.mark.parametrize(
    ("memories", "lam", "message"),
    [
        ([], 1.5, "lam is 1.5: must be from 0 to 1"),
        ([], "most", 'lam is most: must be a number from 0 to 1, or "auto"'),
        ([], True, 'lam is True: must be a number from 0 to 1, or "auto"'),
        (["memory", "memory"], 0.5, "given twice; add up its weights"),
        ([("memory", 2)], 0.5, "weight is 2: must be from 0 to 1"),
        ([("memory", 0.7), ("padded", 0.7)], "auto", "0.7 + 0.7 = 1.4: must be at most 1"),
        (["memory"] * 17, 0.5, "memories is a list of 17: at most 16 can be mixed"),
    ],
)
def test_weights_that_make_no_mixture_are_refused_and_change_nothing(
    llama: MemoryLlama, family: Family, memories: list[Any], lam: Any, message: str
) -> None:
    named = [(getattr(family, one[0]), one[1]) if isinstance(one, tuple) else getattr(family, one) for one in memories]
    with pytest.raises(OptionError) as caught:
        MemoryLlama(family.base, memories=named, lam=lam, **PLAIN)
    assert message in str(caught.value)
    expected = text(llama, PROMPT)
    with pytest.raises(OptionError):
        change(llama, named, lam)
    assert llama.weights == {str(family.memory): 0.6}
    assert text(llama, PROMPT) == expected


def change(llama: MemoryLlama, memories: list[Any], lam: Any) -> None:
    if memories:
        llama.set_memories(memories)
    llama.lam = lam


def test_files_that_are_no_memories_of_the_base_are_refused_and_change_nothing(
    llama: MemoryLlama, family: Family, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(family.memory.read_bytes()[:1000])
    expected = text(llama, PROMPT)
    for path, error in (
        (family.stranger, PairingError),
        (family.base, RoleError),
        (tmp_path / "none.gguf", MissingFileError),
        (broken, ModelFileError),
    ):
        with pytest.raises(error):
            MemoryLlama(family.base, memories=[path], **PLAIN)
        with pytest.raises(error):
            llama.set_memories([family.padded, path])
        assert text(llama, PROMPT) == expected


def test_by_force_another_vocabulary_is_mixed_with_a_warning_and_its_gaps_are_never_sampled(family: Family) -> None:
    with pytest.warns(UserWarning, match="is mixed by force") as found:
        llama = MemoryLlama(family.base, memories=[family.stranger], lam=0.4, force=True, **PLAIN)
    assert found[0].filename == __file__
    with closing(llama):
        llama.eval([5, 6, 7])
        lacking = llama._timeline.memories[0].model.n_vocab
        assert lacking < llama.n_vocab()
        assert (row(llama) == -np.inf).nonzero()[0].tolist() == list(range(lacking, llama.n_vocab()))
        with pytest.raises(DecodeError, match="outside its vocabulary"):
            llama.eval([llama.n_vocab() - 1])
        assert llama.held == [5, 6, 7]


def test_a_text_is_as_long_as_its_memories_were_trained_for(family: Family, tmp_path: Path) -> None:
    short = tiny_gguf(tmp_path / "memdec-short.gguf", tiny_checkpoint(tmp_path / "short", n_ctx=40), role="memory")
    with pytest.warns(UserWarning, match="trained for 40 tokens: n_ctx is 40") as found:
        llama = MemoryLlama(family.base, memories=[short], lam=0.5, **PLAIN)
    assert found[0].filename == __file__
    with closing(llama):
        assert llama.n_ctx() == 40
        letters = llama_cpp.LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)
        done = llama.create_completion(PROMPT, max_tokens=None, grammar=letters)
        assert (done["usage"]["total_tokens"], done["choices"][0]["finish_reason"]) == (40, "length")
        with pytest.raises(ContextError, match="do not fit the context of 40"):
            llama.eval([5] * 41)
        llama.set_memories([])
        assert llama.n_ctx() == 256


def test_parts_of_a_message_that_are_no_text_are_refused_while_a_memory_reads(llama: MemoryLlama) -> None:
    words = {"type": "text", "text": "What is anaemia?"}
    llama.create_chat_completion([{"role": "user", "content": [words]}], max_tokens=1)
    with pytest.raises(OptionError, match="a part of type image_url: memories read text alone"):
        llama.create_chat_completion(messages=[{"role": "user", "content": [words, IMAGE]}])
    llama.set_memories([])
    llama.create_chat_completion([{"role": "user", "content": [words, IMAGE]}], max_tokens=1)  # Llama's own business


def test_code_that_decodes_with_ctx_is_told_once_that_it_goes_past_the_memories(
    llama: MemoryLlama, family: Family
) -> None:
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * 1)(5), 1)
    with pytest.warns(RuntimeWarning, match="goes past the memories"):
        assert llama_cpp.llama_decode(llama.ctx, batch) == 0
    assert llama.n_mixed == 0
    assert llama.ctx
    llama.lam = 0.5
    assert llama.ctx


def test_a_reader_of_ctx_goes_past_nothing_where_no_memory_runs(family: Family) -> None:
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=0, **PLAIN)) as llama:
        assert llama.ctx
        llama.lam = 0.5
        with pytest.warns(RuntimeWarning, match="goes past the memories"):
            assert llama.ctx


def test_a_keyword_that_llama_drops_is_named_where_it_was_given(family: Family) -> None:
    with pytest.warns(UserWarning, match="has no memory: ignored") as found:
        MemoryLlama(family.base, memory=[family.memory], **PLAIN).close()
    assert found[0].filename == __file__
    with pytest.raises(TypeError, match="model_path"):  # and no noise from what was half made
        MemoryLlama()  # type: ignore[call-arg]


@pytest.mark.parametrize("lam", [0.6, "auto"])
def test_a_base_that_cannot_roll_back_gives_the_same_text_again(family: Family, tmp_path: Path, lam: Any) -> None:
    base = tiny_recurrent_gguf(tmp_path / "recurrent.gguf", family.base)
    with closing(MemoryLlama(base, memories=[family.memory], lam=lam, **PLAIN)) as llama:
        texts = [text(llama, PROMPT), text(llama, PROMPT)]
        llama.lam = 0.1
        other = text(llama, PROMPT)
        llama.lam = lam
        assert [*texts, text(llama, PROMPT)] == [texts[0]] * 3
        assert other != texts[0]


def test_a_closed_model_has_freed_its_memories(llama: MemoryLlama) -> None:
    [memory] = llama._timeline.memories
    llama.close()
    with pytest.raises(DecodeError, match="is closed"):
        assert memory.model.handle
    llama.close()
