"""Perplexity against a direct computation in PyTorch, float64."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.engine import Engine
from memdec_edge.errors import CorpusError, OptionError
from memdec_edge.evaluation.perplexity import evaluate, join_documents, mix, perplexity, score_tokens
from memdec_edge.evaluation.windows import Window, slide, thin
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.mixture.match import class_of
from memdec_edge.options import EvalOptions, MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.engine.test_engine import torch_log_probs
from tests.support.indexes import index_file, longest_match
from tests.support.real import EXACT
from tests.support.tiny import TEXT

DOCUMENTS = TEXT.split("\n\n")
OPTIONS = EvalOptions(window=64, stride=24)


@pytest.fixture(scope="module")
def engine(family: Family) -> Iterator[Engine]:
    with closing(Engine(family.base, [MemoryOptions(family.memory)], replace(EXACT, n_ctx=64))) as opened:
        yield opened


def test_perplexities_bits_and_sweep_are_those_of_pytorch(family: Family, engine: Engine) -> None:
    tokens: list[int] = []
    for document in DOCUMENTS:
        tokens += [0] * bool(tokens) + engine.base.tokenize(document, add_special=False)
    base: list[float] = []
    memory: list[float] = []
    scored_until = 1
    while scored_until < len(tokens):  # the definition, spelled out
        end = 64 if scored_until == 1 else min(scored_until + 24, len(tokens))
        start = max(end - 64, 0)
        for scores, checkpoint in ((base, family.base_checkpoint), (memory, family.memory_checkpoint)):
            rows = torch_log_probs(checkpoint, tokens[start:end])
            scores += [rows[i - 1 - start][tokens[i]] for i in range(scored_until, end)]
        scored_until = end
    n_bytes = len("".join(DOCUMENTS).encode()) - len(engine.base.piece(tokens[0]))
    found = evaluate(engine, DOCUMENTS, OPTIONS, mixture=MixtureOptions(total=0.3))
    mixed = np.logaddexp(np.log(0.7) + base, np.log(0.3) + memory)
    assert (found.tokens, found.text_tokens, found.weight) == (len(tokens) - 1, len(tokens), 0.3)
    assert found.memory is not None
    for score, log_probs in ((found.base, base), (found.memory, memory), (found.mixture, mixed)):
        assert score.perplexity == pytest.approx(math.exp(-np.mean(log_probs)), rel=1e-4)
        assert score.bits_per_byte == pytest.approx(-np.sum(log_probs) / math.log(2) / n_bytes, rel=1e-4)
    assert found.lambda_sweep[0.3] == pytest.approx(found.mixture.perplexity)
    assert found.lambda_sweep[0.0] == pytest.approx(found.base.perplexity)
    assert found.lambda_sweep[1.0] == pytest.approx(found.memory.perplexity)


def test_an_index_is_asked_after_what_the_windows_hold(family: Family, engine: Engine, tmp_path: Path) -> None:
    base = engine.base
    texts = [base.tokenize(document, add_special=False) for document in DOCUMENTS[1:]]
    digest, n_vocab = tokenizer_of(family.base)
    index = index_file(tmp_path / "memdec-index.gguf", texts, n_vocab, digest=digest)
    with closing(Engine(family.base, [MemoryOptions(index, 0.5)], replace(EXACT, n_ctx=64))) as engine_with:
        found = score_tokens(engine_with, DOCUMENTS, OPTIONS)
        whole = evaluate(engine_with, DOCUMENTS, OPTIONS)
        tokens = join_documents(engine_with, DOCUMENTS)
    [says] = found.indexes
    expected, lengths = [], []
    for window in found.windows:
        for at in range(window.scored, window.end):
            length, follow = longest_match(texts, tokens[window.start : at])
            expected.append(follow[tokens[at]] / follow.total() if length else 0.0)
            lengths.append(length)
    np.testing.assert_allclose(np.exp(says.log_probs), expected, rtol=1e-6)
    assert [class_of(length) for length in lengths] == says.classes.tolist()
    trust = np.array([0.0, *[0.1] * 7, 1.0])[says.classes]
    weights = 0.5 * trust
    mixed = np.log((1 - weights) * np.exp(found.base) + weights * np.array(expected))
    assert whole.mixture.perplexity == pytest.approx(math.exp(-mixed.mean()), rel=1e-5)
    assert whole.lambda_sweep[0.0] == pytest.approx(whole.base.perplexity)
    assert whole.memory is None
    assert whole.auto is not None
    assert whole.auto.perplexity < whole.base.perplexity
    assert sum(each.share for each in whole.matches) == pytest.approx(1)
    [longest] = [each for each in whole.matches if each.lengths == (16, 48)]
    assert longest.right > 0.9
    assert whole.weight == 0.5


def test_a_sample_scores_at_most_what_was_asked_and_states_its_error(engine: Engine) -> None:
    found = evaluate(
        engine, DOCUMENTS, EvalOptions(window=64, stride=24, max_tokens=200), mixture=MixtureOptions(total=0.3)
    )
    assert 24 < found.tokens <= 200
    assert 0 < found.mixture.standard_error < found.mixture.perplexity


def test_without_a_memory_the_mixture_is_the_base(family: Family) -> None:
    with closing(Engine(family.base, (), replace(EXACT, n_ctx=64))) as engine:
        found = evaluate(engine, DOCUMENTS, OPTIONS)
    assert found.memory is None
    assert found.mixture == found.base
    assert found.lambda_sweep == {}


def test_a_window_beyond_the_context_and_a_text_too_short_are_refused(engine: Engine) -> None:
    with pytest.raises(OptionError, match="window is 1024: the context is"):
        evaluate(engine, DOCUMENTS)
    with pytest.raises(CorpusError, match="1 tokens are too few"):
        evaluate(engine, ["a"], OPTIONS)


@given(st.integers(2, 3000), st.integers(2, 200), st.data())
def test_windows_score_every_token_but_the_first_once(n_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    windows = slide(n_tokens, window, stride)
    scored = [i for w in windows for i in range(w.scored, w.end)]
    assert scored == list(range(1, n_tokens))
    assert all(0 <= w.start < w.scored < w.end <= w.start + window for w in windows)


@given(st.integers(2, 3000), st.integers(1, 500))
def test_samples_keep_to_their_size_and_order(n_tokens: int, most: int) -> None:
    windows = slide(n_tokens, 64, 32)
    chosen = thin(windows, most)
    assert chosen == sorted(set(chosen), key=lambda w: w.end)
    assert 1 <= sum(w.end - w.scored for w in chosen) <= most


def test_impossible_tokens_stay_impossible_only_where_no_model_gives_them_mass() -> None:
    impossible, certain = np.array([-np.inf, -np.inf]), np.array([0.0, -np.inf])
    np.testing.assert_allclose(mix([impossible, certain], [0.5, 0.5]), [math.log(0.5), -np.inf])
    np.testing.assert_array_equal(mix([impossible, certain], [0.0, 1.0]), certain)


def test_the_standard_error_is_that_of_the_bootstrap_even_where_the_last_window_is_short() -> None:
    random = np.random.default_rng(3)
    counts = np.array([512] * 20 + [2])
    ends = np.cumsum(counts) + 1
    windows = [Window(0, int(end - count), int(end)) for count, end in zip(counts, ends, strict=True)]
    levels = random.normal(-3, 0.2, len(counts))
    levels[-1] = -12.0  # two tokens that nearly nothing predicts
    log_probs = np.repeat(levels, counts) + random.normal(0, 1, counts.sum())
    value, error = perplexity(log_probs, windows)
    sums = np.add.reduceat(log_probs, ends - 1 - counts)
    drawn = random.integers(0, len(counts), (4000, len(counts)))
    bootstrap = np.exp(-sums[drawn].sum(1) / counts[drawn].sum(1)).std()
    assert value == pytest.approx(math.exp(-log_probs.mean()))
    assert error == pytest.approx(bootstrap, rel=0.1)


def test_the_online_weight_is_the_rule_over_the_scored_tokens_beside_the_fixed_one(engine: Engine) -> None:
    found = evaluate(engine, DOCUMENTS, OPTIONS, MixtureOptions(total=0.3))
    scores = score_tokens(engine, DOCUMENTS, OPTIONS)
    columns, weights, auto = np.exp([scores.base, *scores.memories]), np.array([0.5, 0.5]), []
    for column in columns.T:  # Soft-Bayes, written out
        auto.append(math.log(weights @ column))
        weights = 0.998 * weights * (0.95 + 0.05 * column / (weights @ column)) + 0.002 * 0.5
    assert found.auto is not None
    assert found.auto_ratio is not None
    assert found.auto.perplexity == pytest.approx(math.exp(-np.mean(auto)), rel=1e-6)
    assert found.auto_ratio[0] == pytest.approx(found.auto.perplexity / found.mixture.perplexity)
    assert found.worse_share["auto"] == np.mean(np.array(auto) < scores.base - 0.1)
    assert sum(found.auto_weights) == pytest.approx(1)
    without = evaluate(engine, DOCUMENTS, OPTIONS)
    assert without.auto == found.auto  # what is fixed does not touch what learns
