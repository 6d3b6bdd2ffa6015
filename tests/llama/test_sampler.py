"""The sampler chain against the distribution that NumPy computes, and grammars."""

import json
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import Sampler
from memdec_edge.options import SamplingOptions
from tests.support.real import SMOLLM2

ROW = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -np.inf], np.float32)


@pytest.fixture(scope="module")
def vocab_model() -> Iterator[Model]:
    with closing(Model(SMOLLM2, vocab_only=True)) as model:
        yield model


def sampler(**options: object) -> closing[Sampler]:
    return closing(Sampler(SamplingOptions(**options), None, len(ROW), 64))  # type: ignore[arg-type]


def test_greedy_takes_the_largest_and_leaves_the_row_alone() -> None:
    row = ROW.copy()
    with sampler(temperature=0.0) as chain:
        assert chain.sample(row, 0) == 0
        assert chain.sample(row, 0, np.array([0], np.int32)) == 1
    np.testing.assert_array_equal(row, ROW)


def test_the_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    with sampler(temperature=0.0, repeat_penalty=4.0) as chain:
        chain.accept(0)
        assert chain.sample(ROW, 0) == 1  # 2 / 4 < 1
    negative = np.array([-1.0, -1.5], np.float32)
    with closing(Sampler(SamplingOptions(temperature=0.0, repeat_penalty=2.0), None, 2, 64)) as chain:
        chain.accept(0)
        assert chain.sample(negative, 0) == 1  # -1 * 2 < -1.5


def test_draws_follow_the_softmax_at_the_temperature() -> None:
    with sampler(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, seed=1) as chain:
        counts = np.bincount([chain.sample(ROW, i) for i in range(20_000)], minlength=len(ROW))
    expected = np.exp(ROW.astype(np.float64) / 0.7)
    expected *= counts.sum() / expected.sum()
    assert counts[-1] == 0
    seen = expected > 0
    g = 2 * np.sum(counts[seen] * np.log(counts[seen] / expected[seen]))
    assert g < 13.28  # chi-square, 4 degrees of freedom, alpha 0.01


def test_top_k_top_p_and_min_p_keep_what_they_say() -> None:
    for options, kept in (
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, {0, 1}),
        ({"top_k": 0, "top_p": 0.5, "min_p": 0.0}, {0}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.2}, {0, 1, 2}),
    ):
        with sampler(temperature=1.0, seed=3, **options) as chain:
            assert {chain.sample(ROW, i) for i in range(500)} == kept


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_a_seed_gives_one_series_and_zero_is_a_seed(seed: int) -> None:
    series = []
    for _ in range(2):
        with sampler(temperature=1.5, seed=seed, min_p=0.0) as chain:
            assert chain.seed == seed
            series.append([chain.sample(ROW, i) for i in range(50)])
    assert series[0] == series[1]


def test_without_a_seed_each_sampler_has_its_own() -> None:
    with sampler() as one, sampler() as other:
        assert one.seed != other.seed


def test_a_grammar_allows_only_what_it_says(vocab_model: Model) -> None:
    row = np.random.default_rng(0).normal(size=vocab_model.n_vocab).astype(np.float32)
    options = SamplingOptions(grammar='root ::= "yes, " ("no" | "maybe")', seed=0)
    with closing(Sampler(options, vocab_model.vocab, vocab_model.n_vocab, 64)) as chain:
        text = b""
        while (token := chain.sample(row, len(text))) not in vocab_model.eog_tokens:
            text += vocab_model.piece(token)
            chain.accept(token)
        assert text in (b"yes, no", b"yes, maybe")
        with pytest.raises(NumericsError, match="no further token"):
            chain.sample(row, 0, np.array(sorted(vocab_model.eog_tokens), np.int32))


def test_a_json_schema_gives_json_of_that_schema(vocab_model: Model) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    row = np.random.default_rng(1).normal(size=vocab_model.n_vocab).astype(np.float32)
    options = SamplingOptions(json_schema=json.dumps(schema), seed=0)
    with closing(Sampler(options, vocab_model.vocab, vocab_model.n_vocab, 64)) as chain:
        text = b""
        while (token := chain.sample(row, len(text))) not in vocab_model.eog_tokens:
            text += vocab_model.piece(token)
            chain.accept(token)
    assert json.loads(text)["a"] in ("x", "y")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [("root ::= (", r"expecting '\)'"), ('a ::= "x"', "rule `root`"), ('root ::= root "a"', "begin with itself")],
)
def test_a_grammar_that_cannot_be_read_is_one_error(
    vocab_model: Model, grammar: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=f"grammar is .*{reason}"):
        Sampler(SamplingOptions(grammar=grammar), vocab_model.vocab, vocab_model.n_vocab, 64)
    assert capfd.readouterr().err == ""


def test_a_row_in_which_everything_is_suppressed_has_no_sample() -> None:
    for temperature in (0.0, 1.0):
        with sampler(temperature=temperature, seed=0) as chain, pytest.raises(NumericsError, match="no token is poss"):
            chain.sample(ROW, 0, np.arange(len(ROW), dtype=np.int32))


@pytest.mark.parametrize(
    "schema",
    ["{", "[]", "3", '{"type": "wrong"}', '{"$ref": "http://x"}', '{"type":"string","pattern":"^*$"}', "[" * 9999],
)
def test_a_json_schema_that_cannot_be_read_is_one_error(vocab_model: Model, schema: str) -> None:
    with pytest.raises(OptionError, match="json_schema is no JSON schema"):
        Sampler(SamplingOptions(json_schema=schema), vocab_model.vocab, vocab_model.n_vocab, 64)


def test_what_was_taken_back_is_forgotten_and_what_is_replayed_counts_again() -> None:
    with sampler(temperature=0.0, repeat_penalty=5.0) as chain:
        chain.accept(0)
        chain.accept(1)
        assert chain.sample(ROW, 0) == 2  # 2 / 5 and 1 / 5 stand against 0.5
        for replayed, sample in (([1], 0), ([0], 1), ([1, 0], 2), ([], 0)):
            chain.replay(replayed)
            assert chain.sample(ROW, 0) == sample


def test_penalties_look_back_as_far_as_they_are_told() -> None:
    with sampler(temperature=0.0, repeat_penalty=4.0, repeat_last_n=2) as chain:
        for token in (0, 2, 3):
            chain.accept(token)
        assert chain.sample(ROW, 0) == 0
        chain.accept(0)
        assert chain.sample(ROW, 0) == 1


def test_a_fork_goes_on_by_itself_with_the_same_draws_or_with_others() -> None:
    with sampler(temperature=1.5, min_p=0.0, seed=5, presence_penalty=2.0) as chain:
        chain.accept(0)
        with closing(chain.fork()) as twin, closing(chain.fork(6)) as other:
            draws = [[each.sample(ROW, i) for i in range(60)] for each in (chain, twin, other)]
            assert draws[0] == draws[1] != draws[2]
            chain.accept(1)  # 1 - 2 is too little for the greedy eye, and concerns nobody else
            assert [twin.sample(ROW, i) for i in range(60)] == draws[1]
            assert [chain.sample(ROW, i) for i in range(60)] != draws[0]


def test_a_grammar_begun_anew_or_forked_stands_where_it_should(vocab_model: Model) -> None:
    row = np.random.default_rng(0).normal(size=vocab_model.n_vocab).astype(np.float32)
    options = SamplingOptions(grammar='root ::= "yes, " ("no" | "maybe")', seed=0)

    def rest(chain: Sampler, start: int) -> list[int]:
        found: list[int] = []
        while (token := chain.sample(row, start + len(found))) not in vocab_model.eog_tokens:
            found.append(token)
            chain.accept(token)
        return found

    with closing(Sampler(options, vocab_model.vocab, vocab_model.n_vocab, 64)) as chain:
        tokens = rest(chain, 0)
        assert len(tokens) > 1
        chain.replay(tokens[:1])
        with closing(chain.fork()) as twin:
            chain.close()
            assert rest(twin, 1) == tokens[1:]
