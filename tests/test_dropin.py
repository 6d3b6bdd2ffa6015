"""MemoryLlama mixes whatever asks a `llama_cpp.Llama` for tokens; judged by stock Llamas and by plain decoding."""

import pickle
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

from memdec_edge import GenerationOptions, MemoryLlama, MemoryOptions, MixtureOptions, SamplingOptions
from memdec_edge.engine import Engine
from memdec_edge.errors import NumericsError
from memdec_edge.mixture.online import learn
from tests.conftest import Family
from tests.support.plain import FOUR, GREEDY, Plain, possible
from tests.support.stock import PLAIN, text

PROMPT = "The heart is a muscle that pumps"
LETTERS = llama_cpp.LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


@pytest.fixture(scope="module")
def stock(family: Family) -> Iterator[llama_cpp.Llama]:
    with closing(llama_cpp.Llama(str(family.base), **PLAIN)) as opened:
        yield opened


@pytest.fixture(scope="module")
def alone(family: Family) -> Iterator[llama_cpp.Llama]:
    """The memory as a model of its own."""
    with closing(llama_cpp.Llama(str(family.memory), **PLAIN)) as opened:
        yield opened


@pytest.fixture
def llama(family: Family) -> Iterator[MemoryLlama]:
    """A memory that weighs 0.6."""
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=0.6, **PLAIN)) as opened:
        yield opened


@pytest.fixture(scope="module")
def plain(family: Family) -> Iterator[Plain]:
    with closing(Plain(family.base, [(family.memory, 0.6)])) as opened:
        yield opened


def row(llama: llama_cpp.Llama) -> npt.NDArray[np.float32]:
    """The logits that llama.cpp's samplers would read now."""
    found = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, -1)
    return np.array(np.ctypeslib.as_array(found, (llama.n_vocab(),)))


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


@pytest.mark.parametrize("options", [{}, SAMPLED, {"grammar": LETTERS}], ids=["greedy", "sampled", "grammar"])
def test_lambda_0_is_llama_and_lambda_1_is_the_memory(
    stock: llama_cpp.Llama, alone: llama_cpp.Llama, family: Family, options: dict[str, Any]
) -> None:
    texts = [text(one, PROMPT, **options) for one in (stock, alone)]
    assert texts[0] != texts[1]
    for lam, expected in zip((0, 1), (stock, alone), strict=True):
        with closing(MemoryLlama(family.base, memories=[family.memory], lam=lam, **PLAIN)) as llama:
            tokens = llama.tokenize(PROMPT.encode())
            for one in (llama, expected):
                one.reset()
                one.eval(tokens)
            np.testing.assert_array_equal(row(llama), row(expected))
            assert text(llama, PROMPT, **options) == texts[lam]
            assert (llama.n_mixed >= 2) == bool(lam)


def test_each_token_is_that_of_the_mixture_and_of_the_language_model(
    llama: MemoryLlama, family: Family, plain: Plain
) -> None:
    prompt = llama.tokenize(PROMPT.encode())
    stream = llama.generate(prompt, temp=0.0)
    tokens = [next(stream) for _ in range(32)]
    assert llama.n_mixed == 32  # one row of the prompt, 31 of its continuation
    for at, token in enumerate(tokens):
        logits = plain.logits(prompt + tokens[:at], [], GREEDY)
        assert possible(logits, token, GREEDY, at)
    with closing(Engine(family.base, [MemoryOptions(family.memory, 0.6)], FOUR)) as engine:
        ends = GenerationOptions(n_predict=32, draft=0, ignore_eos=True)
        with closing(engine.session(prompt, SamplingOptions(temperature=0), ends, limit=len(prompt) + 32)) as session:
            while not session.finished:
                engine.step([session])
            assert session.tokens[len(prompt) :] == tokens


def test_a_repeat_that_decodes_nothing_mixes_nothing(llama: MemoryLlama) -> None:
    prompt = llama.tokenize(PROMPT.encode())
    first = next(llama.generate(prompt, temp=0.0))
    before, mixed = row(llama), llama.n_mixed
    assert next(llama.generate(prompt, temp=0.0)) == first  # an exact repeat: llama-cpp-python evaluates no token
    llama.eval([])
    np.testing.assert_array_equal(row(llama), before)
    assert llama.n_mixed == mixed


def test_with_logits_all_every_score_is_of_the_mixture(family: Family, plain: Plain) -> None:
    options = PLAIN | {"logits_all": True, "n_batch": 7}
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=0.6, **options)) as llama:
        tokens = llama.tokenize(PROMPT.encode())
        llama.eval(tokens)
        expected = np.array([plain.log_probs(tokens[: n + 1]) for n in range(len(tokens))])
        np.testing.assert_allclose(log_softmax(llama.scores[: len(tokens)]), expected, atol=1e-3)
        done = llama.create_completion(PROMPT, max_tokens=1, temperature=0.0, logprobs=3)
        [chosen] = done["choices"][0]["logprobs"]["token_logprobs"]
        assert chosen == pytest.approx(expected[-1].max(), abs=1e-3)


def test_a_logits_processor_sees_the_mixture(llama: MemoryLlama, plain: Plain) -> None:
    seen: list[tuple[list[int], npt.NDArray[np.float32]]] = []

    def look(ids: npt.NDArray[np.intc], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen.append((ids.tolist(), scores.copy()))
        return scores

    text(llama, PROMPT, max_tokens=3, logits_processor=llama_cpp.LogitsProcessorList([look]))
    assert len(seen) >= 3  # more where the last ends in half a character
    for ids, scores in seen:
        np.testing.assert_allclose(log_softmax(scores), plain.log_probs(ids), atol=1e-3)


@pytest.mark.parametrize("lam", [0.6, "auto"])
def test_a_draft_model_changes_no_text(family: Family, lam: Any) -> None:
    texts, mixed = [], []
    for draft in (None, LlamaPromptLookupDecoding(num_pred_tokens=4)):
        options = PLAIN | {"draft_model": draft, "n_batch": 32, "logits_all": True}
        with closing(MemoryLlama(family.base, memories=[family.memory], lam=lam, **options)) as llama:
            texts.append(text(llama, PROMPT * 3, max_tokens=40))
            mixed.append(llama.n_mixed)
    assert texts[0] == texts[1]
    assert mixed[1] != mixed[0]  # drafts were read


@pytest.mark.parametrize("lam", [0.6, "auto"])
def test_a_cache_changes_no_text(family: Family, lam: Any) -> None:
    prompts = (PROMPT, "A fever is a body temperature", PROMPT, PROMPT + " blood")
    options = PLAIN | {"logits_all": lam == "auto"}
    with closing(MemoryLlama(family.base, memories=[family.memory], lam=lam, **options)) as llama:
        expected = []
        for prompt in prompts:
            llama.reset()
            expected.append(text(llama, prompt, grammar=LETTERS))
        assert [text(llama, prompt, grammar=LETTERS) for prompt in prompts] == expected
        if lam == 0.6:  # what a model said of tokens is no part of a state, so weights that learn begin anew
            llama.set_cache(llama_cpp.LlamaRAMCache())
            assert [text(llama, prompt, grammar=LETTERS) for prompt in (*prompts, *prompts)] == expected * 2


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("eval"), st.lists(st.integers(1, 399), min_size=1, max_size=12)),
        st.tuples(st.sampled_from(["reset", "back", "save", "load", "swap"]), st.just([])),
    ),
    max_size=14,
)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_the_memory_follows_whatever_becomes_of_the_base(family: Family, plain: Plain, steps: Any) -> None:
    """Resets, drafts rolled back, states saved and loaded: one comparison of tokens serves them all."""
    llama = opened(family)
    llama.reset()
    state = llama.save_state()
    for step, tokens in [*steps, ("eval", [3])]:
        if step == "reset":
            llama.reset()
        elif step == "back":
            llama.n_tokens //= 2
        elif step == "save":
            state = llama.save_state()
        elif step == "load":
            llama.load_state(state)
        elif step == "swap":  # another memory between, and back
            llama.set_memories([])
            llama.set_memories([family.memory])
        elif llama.n_tokens + len(tokens) < 256:
            llama.eval(tokens)
            np.testing.assert_allclose(log_softmax(row(llama)), plain.log_probs(llama.held), atol=1e-3)


_opened: list[MemoryLlama] = []  # for all examples of a property


def opened(family: Family) -> MemoryLlama:
    if not _opened:
        _opened.append(MemoryLlama(family.base, memories=[family.memory], lam=0.6, **PLAIN))
    return _opened[0]


# --- weights that learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"logits_all": True, "n_batch": 9}], ids=["last rows", "all rows"])
def test_auto_gives_the_weights_of_the_language_model(family: Family, more: dict[str, Any]) -> None:
    """They have learned from the last 256 tokens of the prompt, and a tenth as much from each generated one."""
    with (
        closing(Engine(family.base, [MemoryOptions(family.memory)], FOUR)) as engine,
        closing(MemoryLlama(family.base, memories=[family.memory], **PLAIN | {"n_ctx": 512} | more)) as llama,
    ):
        assert llama.lam == "auto"
        prompt = np.random.default_rng(5).integers(1, 399, 300).tolist()
        ends = GenerationOptions(draft=0, ignore_eos=True)
        session = engine.session(prompt, SamplingOptions(temperature=0), ends, mixture=engine.mixture(MixtureOptions()))
        with closing(session):
            session.prefill()
            stream = llama.generate(prompt, temp=0.0)
            for _ in range(12):
                weight = session.mixture.weights[0]
                [[sample]] = engine.step([session])
                assert next(stream) == sample.token
                assert llama.weights == {str(family.memory): pytest.approx(weight, abs=1e-4)}
            assert session.mixture.weights[0] != pytest.approx(0.5, abs=1e-2)
        assert llama.n_mixed == (311 if more else 1 + 257 + 11)  # 43 tokens of the prompt are no evidence


def test_auto_gives_a_prompt_the_same_weights_whatever_was_read_before(family: Family) -> None:
    with closing(MemoryLlama(family.base, memories=[family.memory], **PLAIN)) as llama:
        llama.create_completion(PROMPT, max_tokens=12, temperature=0.0, grammar=LETTERS)
        longer = llama.held  # its continuation counts in full as part of a prompt
        found = []
        for fresh in (False, True):
            if fresh:
                llama.reset()
            next(llama.generate(longer, temp=0.0))
            found.append((*llama.weights.values(), *log_softmax(row(llama))))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    assert found[0][0] != 0.5


def test_auto_learns_nothing_from_tokens_that_came_with_a_state(family: Family) -> None:
    with closing(MemoryLlama(family.base, memories=[family.memory], **PLAIN)) as llama:
        prompt = llama.tokenize(PROMPT.encode())
        next(llama.generate(prompt))
        [known] = llama.weights.values()
        state = llama.save_state()
    with closing(MemoryLlama(family.base, memories=[family.memory], **PLAIN)) as llama:
        llama.load_state(state)
        next(llama.generate(prompt))
        assert list(llama.weights.values()) == [0.5]
    assert known != 0.5


PROMPTS = st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.integers(0, 4)), max_size=5)


@settings(max_examples=20, deadline=None)
@given(steps=PROMPTS)
@example(steps=[([1, 2, 3], 0), ([1, 2, 1], 0)])  # as long as the one before, the last token another
def test_auto_keeps_what_the_models_said_and_weighs_by_nothing_else(family: Family, steps: Any) -> None:
    """Over prompts that share their beginnings with each other and with what was generated before."""
    with (
        closing(MemoryLlama(family.base, memories=[family.memory], **PLAIN)) as llama,
        closing(Plain(family.base, [(family.memory, 0.0)])) as base,
        closing(Plain(family.base, [(family.memory, 1.0)])) as memory,
    ):
        timeline = llama._timeline
        assert timeline.rule
        for prompt, count in [*steps, ([1, 2, 3], 2)]:
            stream = llama.generate(prompt, temp=0.0)
            for _ in range(count + 1):
                next(stream)
            held, mixture = llama.held, timeline._initial
            for at, said in enumerate(timeline._said):
                if said is not None:
                    truth = [one.log_probs(held[:at])[held[at]] for one in (base, memory)]
                    np.testing.assert_allclose(said, truth, atol=1e-3)
                    rule = timeline.rule.at((1.0 if at < len(prompt) else 0.1) * timeline.rule.eta)
                    mixture = learn(mixture, rule, np.array([said]).T).mixture
            assert llama.weights == {str(family.memory): pytest.approx(mixture.weights[0], abs=1e-9)}
            parts = [np.log(mixture.shares[i]) + one.log_probs(held) for i, one in enumerate((base, memory))]
            np.testing.assert_allclose(log_softmax(row(llama)), np.logaddexp(*parts), atol=1e-3)
        assert len([said for said in timeline._said if said]) >= 2


# --- when something fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, NumericsError])
def test_after_a_failed_decode_no_row_of_the_base_alone_is_sampled(
    llama: MemoryLlama, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    expected = text(llama, PROMPT)
    llama.reset()
    [memory] = llama._timeline.memories

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(memory.context, "feed", fail)
        with pytest.raises(error):
            text(llama, PROMPT)
    assert llama.n_tokens == 0
    assert text(llama, PROMPT) == expected


def test_pickle_makes_the_same_model(llama: MemoryLlama, family: Family) -> None:
    with closing(pickle.loads(pickle.dumps(llama))) as twin:
        assert (twin.lam, twin.weights) == (0.6, {str(family.memory): 0.6})
        assert text(twin, PROMPT) == text(llama, PROMPT)
