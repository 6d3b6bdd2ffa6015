"""Base and memories as one model, against PyTorch in float64 mixing and llama.cpp's own rows."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM

from memdec_edge.engine import Engine
from memdec_edge.errors import Cancelled, ContextError, DecodeError, ModelFileError, OptionError, PairingError
from memdec_edge.gguf import metadata
from memdec_edge.options import MemoryOptions, MixtureOptions
from tests.conftest import PADDING, Family
from tests.support.real import EXACT

OPTIONS = replace(EXACT, n_batch=32)
TOKENS = np.random.default_rng(7).integers(1, 400, 60).tolist()


def torch_log_probs(checkpoint: Path, tokens: list[int]) -> npt.NDArray[np.float64]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        rows: npt.NDArray[np.float64] = torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1).numpy()
    return rows


@pytest.fixture
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], OPTIONS)) as opened:
        yield opened


def log_softmax(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = row.astype(np.float64)
    top = wide.max()
    shifted: npt.NDArray[np.float64] = wide - top
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 1.0])
def test_mixed_log_probs_are_those_of_pytorch(family: Family, engine: Engine, weight: float) -> None:
    base = torch_log_probs(family.base_checkpoint, TOKENS)[-1]
    memory = torch_log_probs(family.memory_checkpoint, TOKENS)[-1]
    with np.errstate(divide="ignore"):
        expected = np.logaddexp(np.log1p(-weight) + base, np.log(weight) + memory)
    with closing(engine.session(TOKENS, mixture=engine.mixture(MixtureOptions(total=weight)))) as session:
        np.testing.assert_allclose(log_softmax(session.logits()), expected, atol=1e-3)
        [sample] = engine.step([session])[0]
    assert sample.log_prob == pytest.approx(expected[sample.token], abs=1e-3)


def test_two_memories_mix_with_their_weights_and_padding_is_left_out(family: Family) -> None:
    memories = [MemoryOptions(family.memory, 0.25), MemoryOptions(family.padded, 0.5)]
    padded = family.base_checkpoint.parent / "padded"
    parts = [torch_log_probs(path, TOKENS)[-1] for path in (family.base_checkpoint, family.memory_checkpoint, padded)]
    parts[2] = parts[2][:-PADDING]
    parts[2] -= np.log(np.exp(parts[2]).sum())
    expected = np.log(sum(w * np.exp(p) for w, p in zip((0.25, 0.25, 0.5), parts, strict=True)))
    with closing(Engine(family.base, memories, OPTIONS)) as engine:
        np.testing.assert_allclose(log_softmax(engine.session(TOKENS).logits()), expected, atol=1e-3)


def test_lambda_zero_and_one_are_the_raw_rows_bit_for_bit(engine: Engine) -> None:
    for weight, context in ((0.0, engine.context), (1.0, engine.memories[0].context)):
        with closing(engine.session(TOKENS, mixture=engine.mixture(MixtureOptions(total=weight)))) as session:
            assert session.logits().tobytes() == context.rows(-1).tobytes()


def test_token_by_token_gives_the_rows_of_prefill(engine: Engine) -> None:
    with closing(engine.session(TOKENS)) as session:
        whole = session.logits().copy()
    with closing(engine.session()) as session:
        for token in TOKENS:
            session.extend([token])
            row = session.logits()
        np.testing.assert_allclose(row, whole, atol=1e-3)


def test_after_a_rewind_the_session_goes_on_as_if_nothing_had_been(engine: Engine) -> None:
    with closing(engine.session(TOKENS[:20])) as session:
        plain = session.logits().copy()
    with closing(engine.session(TOKENS[:19])) as session:
        session.logits()
        session.extend(TOKENS[30:40])
        session.logits()
        session.rewind(19)
        session.extend([TOKENS[19]])
        np.testing.assert_allclose(session.logits(), plain, atol=1e-3)


def test_the_recommendation_and_temperature_of_the_gguf_are_used(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "memdec-copy.gguf"
    path.write_bytes(family.memory.read_bytes())
    metadata.patch(path, {metadata.LAMBDA: 0.25, metadata.TEMPERATURE: 2.0})
    base = torch_log_probs(family.base_checkpoint, TOKENS)[-1]
    memory = torch_log_probs(family.memory_checkpoint, TOKENS)[-1] / 2
    memory -= np.log(np.exp(memory).sum())
    with closing(Engine(family.base, [MemoryOptions(path)], OPTIONS)) as engine:
        assert engine.mixture().weights == (0.25,)
        row = log_softmax(engine.session(TOKENS).logits())
    np.testing.assert_allclose(row, np.log(0.75 * np.exp(base) + 0.25 * np.exp(memory)), atol=1e-3)


def test_a_nonsense_recommendation_is_refused_with_key_and_value(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "memdec-bad.gguf"
    path.write_bytes(family.memory.read_bytes())
    metadata.patch(path, {metadata.LAMBDA: 0.5})
    data = path.read_bytes()
    at = data.index(b"memdec_edge.lambda") + len(b"memdec_edge.lambda") + 4
    path.write_bytes(data[:at] + np.float32(7).tobytes() + data[at + 4 :])
    with pytest.raises(ModelFileError, match=r"memdec_edge\.lambda is 7"):
        Engine(family.base, [MemoryOptions(path)], OPTIONS)


def test_too_many_tokens_name_the_numbers_and_leave_the_session(engine: Engine) -> None:
    with closing(engine.session(TOKENS)) as session:
        with pytest.raises(ContextError, match="a prompt of 560 tokens do not fit the context of 512"):
            session.extend([1] * 500)
        assert session.tokens == TOKENS
        session.extend([1])
        session.logits()


@pytest.mark.parametrize("token", [-1, 400])
def test_ids_outside_the_vocabulary_are_refused_before_any_work(engine: Engine, token: int) -> None:
    with closing(engine.session(TOKENS)) as session:
        with pytest.raises(DecodeError, match=f"token {token} is outside the vocabulary of 400 tokens"):
            session.extend([1, token])
        assert session.tokens == TOKENS
    with pytest.raises(DecodeError, match="outside the vocabulary"):
        engine.session([token])
    engine.session(TOKENS).close()  # the one slot was given back


def test_a_session_without_tokens_has_nothing_to_decode(engine: Engine) -> None:
    with closing(engine.session()) as session:
        for work in (session.logits, lambda: engine.step([session])):
            with pytest.raises(DecodeError, match="nothing to decode"):
                work()
        session.extend(TOKENS)
        assert len(engine.step([session])[0]) >= 1


def test_a_cancel_stops_the_session_at_hand_and_not_the_next(engine: Engine) -> None:
    with closing(engine.session(TOKENS[:10])) as session:
        session.logits()
        engine.cancel()
        session.extend([5])
        with pytest.raises(Cancelled):
            session.logits()
        assert session.tokens == [*TOKENS[:10], 5]
        session.logits()  # and goes on where it stood
        engine.cancel()  # too late for that session
    with closing(engine.session(TOKENS)) as session:
        session.logits()


def test_tokens_that_a_memory_lacks_are_neither_fed_nor_sampled(family: Family) -> None:
    with closing(Engine(family.padded, [MemoryOptions(family.memory)], replace(OPTIONS, force=True))) as engine:
        with closing(engine.session([1])) as session:
            assert session.unknown_tokens == range(400, 400 + PADDING)
            assert session.suppressed.tolist() == list(range(400, 400 + PADDING))
            with pytest.raises(DecodeError, match="outside the vocabulary of 400 tokens"):
                session.extend([400])
        with closing(engine.session([400], mixture=engine.mixture(MixtureOptions(total=0.0)))) as session:
            assert session.unknown_tokens == range(400 + PADDING, 400 + PADDING)
            engine.step([session])[0]


def test_more_memories_than_can_be_mixed_are_refused(family: Family) -> None:
    with pytest.raises(OptionError, match="memory is given 17 times: at most 16"):
        Engine(family.base, [MemoryOptions(family.memory, 0.01)] * 17, OPTIONS)


def test_weights_over_one_and_strangers_are_refused_before_any_work(family: Family) -> None:
    memories = [MemoryOptions(family.memory, 0.7), MemoryOptions(family.memory, 0.4)]
    with pytest.raises(OptionError, match=r"0\.7 \+ 0\.4 = 1\.1"):
        Engine(family.base, memories, OPTIONS)
    with pytest.raises(PairingError):
        Engine(family.base, [MemoryOptions(family.stranger)], OPTIONS)
