"""What HookedLlama relies on in llama-cpp-python, over all versions that pyproject.toml allows."""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from memdec_edge.errors import DecodeError, ModelFileError
from memdec_edge.llama.context import Context
from memdec_edge.llama.hooked import HookedLlama
from memdec_edge.llama.model import Model
from tests.conftest import Family
from tests.support.plain import ONE_THREAD
from tests.support.stock import PLAIN
from tests.support.tiny import edit_gguf

TOKENS = [5, 9, 2, 30, 7, 7, 12]


@pytest.fixture
def llama(family: Family) -> Iterator[HookedLlama]:
    with closing(HookedLlama(family.base, **PLAIN)) as opened:
        yield opened


@pytest.fixture
def expected(model: Model) -> Iterator[np.ndarray]:
    """The logits after each of TOKENS, from a context of our own."""
    with closing(Context(model, ONE_THREAD, 256)) as context:
        yield np.array([row.copy() for row in context.feed_rows(TOKENS)])


def test_decode_gives_the_last_row_or_every_row(llama: HookedLlama, expected: np.ndarray) -> None:
    assert np.allclose(llama.decode(TOKENS), expected[-1:], atol=1e-4)
    llama.reset()
    assert np.allclose(llama.decode(TOKENS, every_row=True), expected, atol=1e-4)
    llama.give_back(3)
    assert llama.decode(TOKENS[3:4]).shape == (1, llama.n_vocab())  # asked for once, and for one decode
    assert llama.held == TOKENS[:4]


def test_what_is_written_into_a_row_is_what_llama_samples(llama: HookedLlama) -> None:
    for token in (17, 300):
        llama.decode([4, 5])[-1, token] = 1e4
        assert llama.sample(temp=0.0) == token
        assert llama.sample(temp=1.0, top_k=0) == token
    rows = llama.decode([8, 9, 10], every_row=True)
    rows[0, 20] = rows[1, 21] = rows[2, 22] = 1e4
    at = llama.n_tokens
    assert [llama.sample(temp=0.0, idx=at - back) for back in (3, 2, 1)] == [20, 21, 22]


def test_generate_samples_an_exact_repeat_from_the_row_at_hand(llama: HookedLlama, expected: np.ndarray) -> None:
    """So eval is asked for no token: the row was changed already. After give_back() one token is decoded again."""
    llama.decode(TOKENS)[-1, 17] = 1e4
    assert next(llama.generate(TOKENS, temp=0.0)) == 17
    llama.give_back(len(TOKENS))
    assert next(llama.generate(TOKENS, temp=0.0)) == expected[-1].argmax()


@pytest.mark.parametrize("options", [{"logits_all": True}, {"draft_model": llama_cpp.llama_speculative}])
def test_scores_are_kept_for_every_token_where_llama_keeps_them(
    family: Family, options: dict[str, object], expected: np.ndarray
) -> None:
    with closing(HookedLlama(family.base, **PLAIN | {"n_batch": 4}, **options)) as llama:
        assert len(llama.decode(TOKENS[:4])) == 4
        rows = llama.decode(TOKENS[4:])
        rows[:] += 1
        llama.keep_scores(rows)
        assert np.allclose(llama.scores[: len(TOKENS)], expected + np.array([[0]] * 4 + [[1]] * 3), atol=1e-4)


def test_completions_end_at_the_limit(llama: HookedLlama) -> None:
    llama.limit(20)
    letters = llama_cpp.LlamaGrammar.from_string("root ::= [a-z ]+", verbose=False)  # whole characters, and no end
    done = llama.create_completion([5, 6, 7], max_tokens=None, temperature=0.0, grammar=letters)
    assert (done["usage"]["total_tokens"], llama.n_ctx()) == (20, 20)
    with pytest.raises(ValueError, match="exceed context window"):
        llama.create_completion(list(range(1, 22)))
    llama.limit(None)
    assert llama.n_ctx() == 256


def test_a_reader_of_ctx_outside_of_llama_cpp_python_is_warned_once(llama: HookedLlama) -> None:
    llama._outside = "the memories are missed"
    llama.create_completion("The heart", max_tokens=2)  # reads it too
    with pytest.warns(RuntimeWarning, match="the memories are missed") as found:
        assert llama.ctx is not None
    assert found[0].filename == __file__
    assert llama.ctx is not None  # warnings are errors here


def test_a_keyword_that_llama_drops_is_named(family: Family) -> None:
    with pytest.warns(UserWarning, match="has no f16_kv, memorys: ignored"):
        HookedLlama(family.base, **PLAIN, f16_kv=True, memorys=[]).close()


def test_a_file_that_would_end_the_process_is_refused(family: Family, tmp_path: Path) -> None:
    broken = edit_gguf(family.base, tmp_path / "broken.gguf", {"llama.attention.head_count": 0})
    with pytest.raises(ModelFileError):
        HookedLlama(broken, **PLAIN)
    with pytest.raises(ValueError, match="does not exist"):  # as Llama says it
        HookedLlama(tmp_path / "none.gguf", **PLAIN)


def test_a_llama_is_freed_with_its_last_reference(family: Family) -> None:
    gc.disable()
    try:
        llama = HookedLlama(family.base, **PLAIN)
        freed = weakref.ref(llama)
        with warnings.catch_warnings():
            del llama
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "use",
    [
        lambda llama: llama.decode([5]),
        lambda llama: llama.eval([5]),
        lambda llama: llama("heart", max_tokens=1),
        lambda llama: llama.tokenize(b"heart"),
        lambda llama: llama.detokenize([5]),
        lambda llama: llama.sample(),
        lambda llama: llama.token_eos(),
        lambda llama: llama.ctx,
        lambda llama: llama.save_state(),
    ],
)
def test_a_closed_llama_is_an_error_and_no_signal(family: Family, use: Callable[[HookedLlama], object]) -> None:
    llama = HookedLlama(family.base, **PLAIN)
    llama.decode([4])
    for _ in range(2):
        llama.close()
        with pytest.raises(DecodeError, match=r"base\.gguf is closed; open it again"):
            use(llama)


def test_another_model_gets_what_this_one_has(family: Family) -> None:
    options = {"n_threads": 3, "n_threads_batch": 2, "n_batch": 32, "flash_attn": True, "type_k": 0, "n_gpu_layers": -1}
    with closing(HookedLlama(family.base, n_ctx=128, verbose=False, **options)) as llama:
        found = llama.load_options()
    assert (found.threads, found.threads_batch, found.n_batch, found.n_ctx) == (3, 2, 32, 256)
    assert (found.flash_attn, found.cache_type_k, found.cache_type_v, found.n_gpu_layers) == ("on", "f32", "f16", 999)
