"""Log-likelihoods of continuations against PyTorch, against sessions that generate them, and against themselves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.engine import Engine
from memdec_edge.errors import BusyError, ContextError, OptionError
from memdec_edge.evaluation.likelihood import Request, Scorer
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.engine.test_engine import torch_log_probs
from tests.engine.test_index import TEXTS, tiny_index
from tests.support.plain import GREEDY, ONE_THREAD, finish
from tests.support.tiny_recurrent import tiny_hybrid_gguf, tiny_recurrent_gguf, tiny_sliding_gguf

WIDE = replace(ONE_THREAD, n_seq=8, n_ctx=1024)
NARROW = replace(ONE_THREAD, n_seq=2, n_ctx=96, n_batch=16)
LEARNING = MixtureOptions(eta=0.3, share=0.01, generated=1.0)


def requests(seed: int = 5) -> list[Request]:
    """Contexts of several lengths, each with continuations of one token and more; some stand twice."""
    random = np.random.default_rng(seed)
    found = []
    for length in (1, 9, 30, 70):
        context = tuple(random.integers(1, 400, length).tolist())
        for more in (1, 1, 2, 5, 11):
            found.append(Request(context, tuple(random.integers(1, 400, more).tolist())))
    return [*found, *found[3:9]]


def scored(
    paths: Sequence[Path | str], options: LoadOptions, mixture: MixtureOptions, asked: list[Request]
) -> list[float]:
    base, *memories = paths
    with closing(Engine(base, [MemoryOptions(Path(path)) for path in memories], options)) as engine:
        return [found.log_prob for found in Scorer(engine, mixture).score(asked)]


def by_torch(checkpoints: Sequence[Path], weights: Sequence[float], request: Request) -> tuple[float, bool]:
    tokens = [*request.context, *request.tokens]
    rows = [torch_log_probs(path, tokens)[len(request.context) - 1 : -1, :400] for path in checkpoints]
    mixed = np.logaddexp.reduce([row + np.log(weight) for row, weight in zip(rows, weights, strict=True)])
    places = np.arange(len(request.tokens)), list(request.tokens)
    return float(mixed[places].sum()), mixed.argmax(-1).tolist() == list(request.tokens)


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], WIDE)) as opened:
        yield opened


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_log_probs_are_those_of_pytorch(family: Family, engine: Engine, weight: float) -> None:
    pairs = [(family.base_checkpoint, 1 - weight), (family.memory_checkpoint, weight)]
    checkpoints, weights = zip(*(pair for pair in pairs if pair[1] > 0), strict=True)
    asked = requests()[:20:3]
    for request, found in zip(asked, Scorer(engine, MixtureOptions(total=weight)).score(asked), strict=True):
        log_prob, greedy = by_torch(checkpoints, weights, request)
        assert found.log_prob == pytest.approx(log_prob, abs=1e-3)
        assert found.greedy == greedy


def test_lambda_zero_is_the_base_to_the_bit(family: Family) -> None:
    asked = requests()
    assert scored([family.base, family.memory], WIDE, MixtureOptions(total=0.0), asked) == scored(
        [family.base], WIDE, MixtureOptions(), asked
    )


def test_what_finds_no_room_side_by_side_is_scored_one_after_the_other(family: Family) -> None:
    asked = requests()
    for mixture in (MixtureOptions(total=0.4), LEARNING):
        wide, narrow = (scored([family.base, family.memory], options, mixture, asked) for options in (WIDE, NARROW))
        np.testing.assert_allclose(narrow, wide, atol=2e-3)
        assert wide[20:] == wide[3:9]


@pytest.mark.parametrize("with_index", [False, True])
def test_weights_that_learn_give_what_a_session_says_while_it_generates(
    family: Family, tmp_path: Path, with_index: bool
) -> None:
    voices = [MemoryOptions(family.memory)]
    if with_index:
        voices.append(MemoryOptions(tiny_index(tmp_path / "memdec-index.gguf", family.base, TEXTS)))
    with closing(Engine(family.base, voices, WIDE)) as engine:
        asked, expected = [], []
        for text in TEXTS[:3]:
            mixture = engine.mixture(LEARNING)
            generation = GenerationOptions(ignore_eos=True, draft=0)
            with closing(engine.session(text[:30], GREEDY, generation, mixture=mixture, limit=40)) as session:
                samples = finish(engine, session)
                expected.append(sum(sample.log_prob for sample in samples))
            asked.append(Request(tuple(text[:30]), tuple(sample.token for sample in samples)))
        for found, log_prob in zip(Scorer(engine, LEARNING).score(asked), expected, strict=True):
            assert found.log_prob == pytest.approx(log_prob, abs=2e-3)
            assert found.greedy


def test_a_token_is_worth_the_same_wherever_the_context_ends(engine: Engine) -> None:
    scorer, text = Scorer(engine, LEARNING), tuple(TEXTS[0][:50])
    whole, first, second = scorer.score([Request(text[:at], text[at:end]) for at, end in ((1, 50), (1, 20), (20, 50))])
    assert first.log_prob + second.log_prob == pytest.approx(whole.log_prob, abs=2e-3)
    fixed = Scorer(engine, MixtureOptions(total=0.5)).score([Request(text[:20], text[20:])])
    assert abs(fixed[0].log_prob - second.log_prob) > 0.01  # the weights had learned something


def test_no_tokens_have_probability_one_and_impossible_requests_are_refused(engine: Engine) -> None:
    scorer = Scorer(engine, LEARNING)
    [nothing] = scorer.score([Request((1, 2), ())])
    assert (nothing.log_prob, nothing.greedy) == (0.0, True)
    assert scorer.score([]) == []
    with pytest.raises(OptionError, match="context is empty"):
        scorer.score([Request((), (1,))])
    with pytest.raises(ContextError, match="500 tokens and 20 new ones do not fit the context of 512"):
        scorer.score([Request((1,) * 500, (1,) * 21)])
    with closing(engine.session([1, 2, 3], limit=10)), pytest.raises(BusyError):
        scorer.score(requests()[:1])


def drawn(seed: int, *lengths: int) -> list[tuple[int, ...]]:
    random = np.random.default_rng(seed)
    return [tuple(random.integers(1, 400, length).tolist()) for length in lengths]


@pytest.mark.parametrize("mixture", [MixtureOptions(total=0.4), LEARNING])
@pytest.mark.parametrize("with_index", [False, True])
def test_examples_that_stand_before_each_question_are_decoded_once(
    family: Family, tmp_path: Path, mixture: MixtureOptions, with_index: bool
) -> None:
    examples, others, *ends = drawn(7, 150, 120, *(5 + at % 3 for at in range(25)))
    others = (399, *others[1:])  # which are read last
    answers = drawn(8, *(1 + at % 2 * 3 for at in range(25)))
    contexts = [*((*examples, *end) for end in ends[:20]), *((*others, *end) for end in ends[20:])]
    asked = [Request(*pair) for pair in zip(contexts, answers, strict=True)]
    voices = [family.memory]
    if with_index:  # whose documents are what is asked
        texts = [list(request.context + request.tokens) for request in asked]
        voices.append(tiny_index(tmp_path / "memdec-index.gguf", family.base, texts))
    with closing(Engine(family.base, [MemoryOptions(path) for path in voices], WIDE)) as engine:
        scorer = Scorer(engine, mixture)
        found = [one.log_prob for one in scorer.score(asked)]
        decoded = engine.context.n_decoded
        with closing(engine.session(drawn(9, 155)[0], GREEDY, limit=160)) as session:
            finish(engine, session)  # which takes the first slot
        again = [one.log_prob for one in scorer.score(asked[-5:])]
    one_by_one = scored([family.base, *voices], replace(WIDE, n_seq=1), mixture, asked)
    np.testing.assert_allclose(found, one_by_one, atol=2e-3)
    np.testing.assert_allclose(again, found[-5:], atol=1e-6)
    # The last token that all share tells of different ones, so each context decodes it again.
    common = [149] * 20 + [119] * 5
    of_their_own = (
        len(request.context) - known + len(request.tokens) - 1 for request, known in zip(asked, common, strict=True)
    )
    assert decoded == 149 + 119 + sum(of_their_own)


def test_continuations_that_find_no_slot_do_not_decode_their_context_again(family: Family, engine: Engine) -> None:
    context, *answers = drawn(9, 100, *[3] * 20)
    asked = [Request(context, answer) for answer in answers]
    before = engine.context.n_decoded
    found = [one.log_prob for one in Scorer(engine, LEARNING).score(asked)]
    assert engine.context.n_decoded - before == 100 + 2 + 20 * 2  # its last token in each of three waves
    one_by_one = scored([family.base, family.memory], replace(WIDE, n_seq=1), LEARNING, asked)
    np.testing.assert_allclose(found, one_by_one, atol=2e-3)


@pytest.mark.parametrize("build", [tiny_recurrent_gguf, tiny_hybrid_gguf, tiny_sliding_gguf])
@pytest.mark.parametrize("mixture", [MixtureOptions(total=0.4), LEARNING])
def test_contexts_that_cannot_roll_back_share_a_beginning_in_each_wave(
    build: Callable[..., Path], mixture: MixtureOptions, family: Family, tmp_path: Path
) -> None:
    memory = build(tmp_path / "memory.gguf", family.base)
    examples, *ends = drawn(10, 90, *[9] * 6)
    asked = [Request((*examples, *end), end[:3]) for end in ends]
    found = {}
    for n_seq in (3, 1):
        options = replace(WIDE, n_seq=n_seq, force=True)  # the memory's file does not say that it is one
        with closing(Engine(family.base, [MemoryOptions(memory)], options)) as engine:
            found[n_seq] = [one.log_prob for one in Scorer(engine, mixture).score(asked)]
            if n_seq == 3:
                assert engine.context.n_decoded <= 2 * 89 + 6 * (1 + 9 + 2)  # two waves
    np.testing.assert_allclose(found[3], found[1], atol=2e-3)
