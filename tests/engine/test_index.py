"""Indexes in the engine: what they say is mixed in, weights learn by class, drafts and sessions change no text."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from memdec_edge.engine import Engine, Index, MemoryMixture, Session
from memdec_edge.errors import OptionError, PairingError, RoleError
from memdec_edge.gguf.index_file import tokenizer_of
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import GenerationOptions, MemoryOptions, MixtureOptions
from tests.conftest import Family
from tests.support.indexes import Document, index_file, longest_match
from tests.support.plain import FOUR, ONE_THREAD, PENALISED, WARM, finish, prompts

TRUST = (0.25, 0.25, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0)  # exact in float32
LENGTHS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 9), (10, 15), (16, 48))  # of the classes
LEARNING = MixtureOptions(eta=0.3, share=0.01, generated=0.5)
SEEDED = replace(WARM, seed=5)
ENDLESS = GenerationOptions(ignore_eos=True)
Wide = npt.NDArray[np.float64]


def documents(seed: int, count: int = 12, length: int = 60, n_vocab: int = 400) -> list[Document]:
    """Documents that repeat parts of each other, so that matches of every length occur."""
    random = np.random.default_rng(seed)
    parts = [random.integers(1, n_vocab, size).tolist() for size in (2, 3, 5, 8, 12, 20)]
    found: list[Document] = []
    for _ in range(count):
        text: Document = []
        while len(text) < length:
            text += parts[random.integers(len(parts))] if random.random() < 0.6 else [int(random.integers(1, 40))]
        found.append(text)
    return found


TEXTS, OTHERS = documents(1), documents(2)


def tiny_index(path: Path, base: Path, texts: list[Document]) -> Path:
    digest, n_vocab = tokenizer_of(base)
    return index_file(path, texts, n_vocab, digest=digest, trust=TRUST)


def by_reading(texts: list[Document], context: list[int]) -> tuple[int, dict[int, float]]:
    """The class of the longest match, and the probabilities of what follows it."""
    length, follow = longest_match(texts, context)
    klass = next((c for c, (low, high) in enumerate(LENGTHS, 1) if low <= length <= high), 0)
    return klass, {token: count / follow.total() for token, count in follow.items()}


@pytest.fixture(scope="module")
def index(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_index(tmp_path_factory.mktemp("index") / "memdec-index.gguf", family.base, TEXTS)


@pytest.fixture(scope="module")
def other(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_index(tmp_path_factory.mktemp("index") / "memdec-other.gguf", family.base, OTHERS)


@pytest.fixture(scope="module")
def alone(family: Family, index: Path) -> Iterator[Engine]:
    """Base and index, no memory."""
    with closing(Engine(family.base, [MemoryOptions(index)], FOUR)) as opened:
        yield opened


@pytest.fixture(scope="module")
def both(family: Family, index: Path, other: Path) -> Iterator[Engine]:
    """Base, a memory and two indexes."""
    paths = [index, family.memory, other]
    with closing(Engine(family.base, [MemoryOptions(path) for path in paths], FOUR)) as opened:
        yield opened


def a_prompt(texts: list[Document] = TEXTS, length: int = 40) -> list[int]:
    """Some of one document, what no document has, the beginning of another, and its continuation."""
    return [*texts[3][5:25], *prompts(1, 6)[0], *texts[7][: length - 26]]


def rows_of(path: Path, tokens: list[int], n_vocab: int) -> Wide:
    """Log-probs of every token after each one, [tokens, n_vocab]."""
    with ExitStack() as stack:
        model = stack.enter_context(closing(Model(path)))
        context = stack.enter_context(closing(Context(model, ONE_THREAD, 512)))
        rows = np.array([row[:n_vocab].astype(float) for row in context.feed_rows(tokens)])
    found: Wide = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
    return found


def by_the_rule(
    vectors: dict[int, Wide], rows: list[Wide], texts: list[list[Document]], tokens: list[int], rates: list[float],
) -> tuple[dict[int, Wide], Wide]:  # fmt: skip
    """Weights by class after `tokens`, and the mixture's probabilities of the next one, in probabilities, written out.

    rows: of base and memories. rates: of tokens[1:].
    """
    start = {klass: vector.copy() for klass, vector in vectors.items()}
    mixed = np.empty(0)
    for at in range(1, 1 + len(tokens)):
        said = [by_reading(each, tokens[:at]) for each in texts]
        longest = max(klass for klass, _ in said)
        columns = [np.exp(row[at - 1]) for row in rows]
        for _, probs in said:
            column = np.zeros(len(columns[0]))
            column[list(probs)] = list(probs.values())
            columns.append(column)
        awake = np.array([True] * len(rows) + [klass > 0 for klass, _ in said])[: len(vectors[longest])]
        weights = vectors[longest]
        spoken = np.where(awake, weights, 0) / weights[awake].sum()
        mixed = spoken @ np.array(columns[: len(weights)])
        if at < len(tokens):
            ratios = np.array([column[tokens[at]] for column in columns[: len(weights)]]) / mixed[tokens[at]]
            ratios[~awake] = 1
            eta, share = rates[at - 1] * 0.3, rates[at - 1] * 0.01
            vectors = vectors | {longest: (1 - share) * weights * (1 - eta + eta * ratios) + share * start[longest]}
    return vectors, mixed


def assert_as_ruled(session: Session, engine: Engine, texts: list[list[Document]], rates: list[float]) -> None:
    first = engine.mixture(LEARNING).mixture
    vectors = {c: np.array([1 - sum(vector), *vector]) for c, vector in enumerate(first.vectors)}
    paths = [engine.base.path, *(memory.path for memory in engine.memories)]
    rows = [rows_of(path, session.tokens, engine.base.n_vocab) for path in paths]
    expected, mixed = by_the_rule(vectors, rows, texts, session.tokens, rates)
    for klass, vector in enumerate(session.mixture.vectors):
        np.testing.assert_allclose(vector, expected[klass][1:], atol=1e-4, err_msg=f"class {klass}")
    row = session.logits().astype(float)
    np.testing.assert_allclose(np.exp(row - np.logaddexp.reduce(row)), mixed, rtol=2e-3, atol=1e-6)


def assert_same_weights(one: Session, other: Session) -> None:
    for vector, same in zip(one.mixture.vectors, other.mixture.vectors, strict=True):
        np.testing.assert_allclose(vector, same, atol=1e-5)


def test_weights_of_each_class_follow_the_rule_over_a_prompt_and_what_is_generated(alone: Engine, both: Engine) -> None:
    for engine, texts in ((alone, [TEXTS]), (both, [TEXTS, OTHERS])):
        prompt = [*a_prompt(), *a_prompt(OTHERS)]
        mixture = engine.mixture(LEARNING)
        with closing(engine.session(prompt, SEEDED, ENDLESS, mixture=mixture, limit=110)) as session:
            session.prefill()
            assert_as_ruled(session, engine, texts, [1.0] * 79)
            finish(engine, session)
            assert_as_ruled(session, engine, texts, [1.0] * 79 + [0.5] * 30)


@pytest.mark.parametrize("which", ["alone", "both"])
def test_the_text_and_the_weights_of_a_seed_are_the_same_at_every_draft_length(
    which: str, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(which)
    for sampling in (SEEDED, replace(SEEDED, temperature=0.3), replace(PENALISED, seed=5)):
        found = []
        for draft in (0, 1, 3, 8, 16, None):
            engine.counters.accepted = 0
            generation = replace(ENDLESS, draft=draft)
            mixture = engine.mixture(LEARNING)
            with closing(engine.session(a_prompt(), sampling, generation, mixture=mixture, limit=90)) as session:
                finish(engine, session)
                found.append((session.tokens, session.mixture.vectors))
                assert draft in (0, None) or engine.counters.accepted > 0
        for tokens, vectors in found[1:]:
            assert tokens == found[0][0]
            for one, same in zip(vectors, found[0][1], strict=True):
                np.testing.assert_allclose(one, same, atol=1e-4)


def test_sessions_side_by_side_emit_what_each_emits_alone(alone: Engine, both: Engine) -> None:
    for engine in (alone, both):
        texts = []
        for together in (False, True):
            with ExitStack() as stack:
                sessions = [
                    stack.enter_context(
                        closing(engine.session(prompt, SEEDED, replace(ENDLESS, draft=draft),
                                               mixture=engine.mixture(LEARNING), limit=70))
                    )
                    for prompt, draft in ((a_prompt(), 5), (a_prompt(OTHERS), 0), (prompts(1, 20)[0], None))
                ]  # fmt: skip
                while together and not all(session.finished for session in sessions):
                    engine.step(sessions)
                for session in sessions:
                    finish(engine, session)
                texts.append([session.tokens for session in sessions])
        assert texts[0] == texts[1]


def test_rewound_and_forked_sessions_draw_the_same_again_whatever_was_cached(both: Engine) -> None:
    options = both.mixture(LEARNING)
    with closing(both.session(a_prompt(), SEEDED, ENDLESS, mixture=options, limit=80)) as session:
        for _ in range(4):
            both.step([session])
        middle, weights = len(session.tokens), session.mixture
        with closing(both.fork(session)) as twin:
            finish(both, session)
            finish(both, twin)
            assert twin.tokens == session.tokens
            assert_same_weights(twin, session)  # but for the shapes of batches
        expected = list(session.tokens)
        session.rewind(middle)
        assert session.mixture == weights
        finish(both, session)
        assert session.tokens == expected
        session.rewind(30)  # inside the prompt: the weights are weighed anew
        session.prefill()
        with closing(both.session(expected[:30], SEEDED, ENDLESS, mixture=options, limit=80)) as anew:
            anew.prefill()
            assert_same_weights(anew, session)


def test_a_drafted_end_is_not_read_by_what_goes_on_after_it(family: Family, tmp_path: Path) -> None:
    lead, end = list(range(100, 120)), 0
    texts = [[*lead, 59, end, 33], [30, 59, 7, 8, 9, 50], [31, 32, 8, 9, 40]]
    path = tiny_index(tmp_path / "memdec-end.gguf", family.base, texts)
    with closing(Engine(family.base, [MemoryOptions(path, 1.0)], FOUR)) as engine:
        assert end in engine.base.eog_tokens
        generation = GenerationOptions(draft=4)
        with closing(engine.session(lead, SEEDED, generation, limit=60)) as session:
            finish(engine, session)
            assert (session.tokens, session.finished) == ([*lead, 59], "stop")
            assert session.n_accepted == 2  # the end was drafted too
            session.extend([7, 8, 9])
            [found] = session.lookup.matches(session.tokens, len(session.tokens))
            assert (found.length, found.ids.tolist()) == (4, [50])


def test_without_weight_the_row_is_the_base_s_bit_for_bit(alone: Engine) -> None:
    rows = []
    for mixture in (alone.mixture(MixtureOptions(total=0.0)), MemoryMixture.of([])):
        with closing(alone.session(a_prompt(), SEEDED, ENDLESS, mixture=mixture)) as session:
            rows.append(session.logits().tobytes())
            assert session.indexes == ()
    assert rows[0] == rows[1]


def test_fixed_weights_are_as_given_at_the_longest_matches_and_scaled_by_trust_below(
    family: Family, index: Path, other: Path
) -> None:
    def vectors(*given: tuple[Path, float | None], total: float | None = None) -> list[list[float]]:
        options = None if total is None else MixtureOptions(total=total)
        with closing(Engine(family.base, [MemoryOptions(*each) for each in given], FOUR)) as engine:
            return [list(vector) for vector in engine.mixture(options).mixture.vectors]

    def each(*weights: float) -> pytest.approx:  # type: ignore[valid-type]
        return pytest.approx(list(weights))

    assert vectors((index, 0.8)) == [[], *([pytest.approx(0.8 * trust)] for trust in TRUST)]
    assert vectors((index, None), total=0.8) == [[], *([pytest.approx(0.8 * trust)] for trust in TRUST)]
    assert vectors((index, None)) == [[], *([pytest.approx(0.6 * trust)] for trust in TRUST)]
    memory = family.memory
    assert vectors((memory, 0.3), (index, 0.5)) == [[0.3], *(each(0.3, 0.5 * trust) for trust in TRUST)]
    assert vectors((memory, 0.3), (index, None)) == [[0.3], *(each(0.3, 0.7 * 0.6 * trust) for trust in TRUST)]
    shared = [each(0.5 * (1 - 0.6 * trust), 0.5 * 0.6 * trust) for trust in TRUST]
    assert vectors((memory, None), (index, None), total=0.5) == [[0.5], *shared]
    two = [each(*[0.5 * 0.3 * trust] * 2) for trust in TRUST]
    assert vectors((index, None), (other, None), total=0.3) == [[], *two]
    with pytest.raises(OptionError, match=r"0\.6 \+ 0\.5 = 1\.1"):
        vectors((memory, 0.6), (index, 0.5))
    with pytest.raises(OptionError, match="every memory has a weight of its own"):
        vectors((index, 0.5), total=0.5)


def test_weights_that_learn_begin_with_little_for_an_index_after_short_matches(family: Family, index: Path) -> None:
    with closing(Engine(family.base, [MemoryOptions(family.memory), MemoryOptions(index)], FOUR)) as engine:
        own, *matched = engine.mixture(MixtureOptions()).mixture.vectors
    assert own == (0.5,)
    for trust, vector in zip(TRUST, matched, strict=True):
        part = 0.85 * trust**4  # 0.003 at the shortest; none is lifted, since none is below 0.001
        assert vector == pytest.approx((0.5 * (1 - part), part))


def test_an_index_is_added_weighed_and_removed_while_sessions_run(family: Family, index: Path) -> None:
    with closing(Engine(family.base, [], FOUR)) as engine:
        with closing(engine.session(a_prompt(), SEEDED, ENDLESS, limit=60)) as session:
            before = session.logits().copy()
            added = engine.add(MemoryOptions(index))
            assert isinstance(added, Index)
            assert engine.indexes == [added]
            assert engine.memories == []
            session.mix(MemoryMixture.of([(added, 0.9)]))
            assert not np.array_equal(session.logits(), before)
            engine.reweight(added, 0.25)
            assert engine.mixture().longest == (0.25,)
            with pytest.raises(OptionError, match="given twice"):
                MemoryMixture.of([(added, 0.1), (added, 0.1)])
            engine.remove(added)
            assert engine.indexes == []
            finish(engine, session)  # it still mixes the index
        assert engine.registry.open_indexes == []
        with closing(engine.session(a_prompt(), limit=60)) as session:
            with pytest.raises(OptionError, match="it was removed"):
                session.mix(MemoryMixture.of([(added, 0.9)]))


def test_an_index_of_another_tokenizer_is_refused_with_what_to_do(family: Family, tmp_path: Path) -> None:
    theirs = tiny_index(tmp_path / "memdec-theirs.gguf", family.stranger, [[1, 2, 3]])
    with pytest.raises(
        PairingError, match=r"another tokenizer; index the documents for this base too: memdec-edge index"
    ):
        Engine(family.base, [MemoryOptions(theirs)], FOUR)
    with pytest.raises(RoleError, match="document index, not a model"):
        Engine(theirs, [], FOUR)


def test_tokens_of_long_matches_name_the_document_and_the_place(alone: Engine) -> None:
    prompt = [*prompts(1, 5)[0], *TEXTS[4][7:40]]
    with closing(alone.session(prompt)) as session:
        sources = [session.lookup.source(prompt, length) for length in range(1, 1 + len(prompt))]
        assert sources[:12] == [None] * 12 or any(sources[:12])  # short matches name nothing
        before = None
        for length in range(5 + 8, len(prompt) + 1):
            before = session.lookup.source(prompt, length, before)
            assert before is not None
            text = TEXTS[int(before.document.removesuffix(".txt"))]
            assert text[before.start : before.end] == prompt[length - (before.end - before.start) : length]
            assert before.end - before.start >= 8
