"""llama.cpp's contexts behind context.py: decoding, rolling back, several slots, aborts."""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from memdec_edge.errors import Cancelled, ContextError, DecodeError, ModelFileError, OptionError
from memdec_edge.llama.abort import RAISED, AbortFlag
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import CACHE_TYPES, LoadOptions
from tests.conftest import Family
from tests.support.raw_gguf import tiny
from tests.support.real import EXACT

OPTIONS = replace(EXACT, n_batch=16)


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    opened = Context(model, OPTIONS, 128)
    yield opened
    opened.close()


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_outside_the_vocabulary_never_reach_a_decode(context: Context, token: int) -> None:
    with pytest.raises(DecodeError, match="outside its vocabulary"):
        context.feed([1, token])
    assert context.tokens == [[]]


def test_nothing_to_decode_and_too_much_are_refused(context: Context) -> None:
    with pytest.raises(DecodeError, match="nothing to decode"):
        context.feed([])
    with pytest.raises(ContextError, match="context of 256") as error:
        context.feed([1] * (context.n_ctx + 1))
    assert error.value.n_ctx == context.n_ctx


def test_every_cache_type_on_offer_can_be_had(smollm2: Model) -> None:
    for cache_type in CACHE_TYPES:
        context = Context(smollm2, LoadOptions(flash_attn="on", cache_type_k=cache_type, cache_type_v=cache_type), 64)
        assert np.isfinite(context.feed([1, 2, 3])).all()
        context.close()


def test_a_cache_type_that_needs_flash_attention_says_so(model: Model) -> None:
    with pytest.raises(ModelFileError, match="flash_attn"):
        Context(model, LoadOptions(flash_attn="off", cache_type_v="q8_0"), 128)


def test_rows_after_a_rollback_equal_those_of_a_fresh_cache(model: Model, context: Context) -> None:
    random = np.random.default_rng(0)
    first, second = (random.integers(1, model.n_vocab, 40).tolist() for _ in range(2))
    context.feed(first)
    context.truncate(16)  # a whole batch, so that both sides decode the same batches
    assert context.tokens == [first[:16]]
    rolled = context.feed(first[:16] + second).copy()
    fresh = Context(model, OPTIONS, 128)
    assert np.array_equal(rolled, fresh.feed(first[:16] + second))
    fresh.close()


def test_a_shared_prefix_is_not_decoded_again(context: Context) -> None:
    prompt = list(range(1, 60))
    context.feed(prompt)
    start = context.tokens[0]
    row = context.feed([*prompt[:50], 7]).copy()
    assert context.tokens[0] is start
    assert len(context.tokens[0]) == 51
    context.truncate(0)
    np.testing.assert_allclose(context.feed([*prompt[:50], 7]), row, atol=1e-3)


def test_feeding_the_same_tokens_again_gives_their_row(context: Context) -> None:
    row = context.feed([5, 6, 7]).copy()
    np.testing.assert_allclose(context.feed([5, 6, 7]), row, atol=1e-3)
    np.testing.assert_allclose(context.feed([5, 6]), Context(context.model, OPTIONS, 128).feed([5, 6]), atol=1e-3)


def test_rows_of_every_position_match_the_last_rows_of_prefixes(context: Context) -> None:
    tokens = list(range(1, 40))
    rows = [row.copy() for row in context.feed_rows(tokens)]
    for length in (1, 16, 17, 39):
        context.truncate(0)
        np.testing.assert_allclose(context.feed(tokens[:length]), rows[length - 1], atol=1e-3)


def test_cancel_from_another_thread_stops_a_long_prefill_and_the_cache_is_clean(smollm2: Model) -> None:
    context = Context(smollm2, LoadOptions(threads=1), 4096)
    tokens = smollm2.tokenize("word " * 3000)[:3000]
    timer = threading.Timer(0.3, context.cancel)
    timer.start()
    started = time.process_time()  # of this process: a busy machine does not count
    with pytest.raises(Cancelled):
        context.feed(tokens)
    assert time.process_time() - started < 5
    timer.join()
    clean = Context(smollm2, LoadOptions(threads=1), 4096)
    np.testing.assert_array_equal(context.feed(tokens[:9]).argmax(), clean.feed(tokens[:9]).argmax())
    context.close()
    clean.close()


class TooLateError(Exception):
    """What a handler of the tests raises."""


def raise_too_late(number: int, frame: object) -> None:
    raise TooLateError("at last")


@pytest.mark.parametrize(
    ("number", "handler", "raised"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGALRM, raise_too_late, TooLateError),
        (signal.SIGTERM, lambda number, frame: sys.exit(7), SystemExit),
    ],
)
def test_what_a_signal_handler_raises_stops_a_long_decode_and_comes_through(
    smollm2: Model, number: signal.Signals, handler: Callable[[int, object], object], raised: type[BaseException]
) -> None:
    context = Context(smollm2, LoadOptions(threads=1, n_batch=2048), 4096)
    tokens = smollm2.tokenize("word " * 2048)[:2048]
    before = signal.signal(number, handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    started = time.process_time()  # of this process: a busy machine does not count
    try:
        with pytest.raises(raised) as error:
            context.feed(tokens)
    finally:
        timer.join()
        signal.signal(number, before)
    assert time.process_time() - started < 20
    assert str(error.value) == {TooLateError: "at last", SystemExit: "7"}.get(raised, "")
    assert len(context.feed(tokens[:3])) == smollm2.n_vocab  # the flag is down again
    context.close()


def test_a_handlers_exception_waits_for_the_main_thread_and_is_not_kept_alive() -> None:
    abort, error = AbortFlag(), TooLateError()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(error))  # as the callback leaves it
    state = (ctypes.c_int32 * 4).from_address(abort.data)
    state[0], ctypes.c_void_p.from_address(abort.data + 8).value = RAISED, id(error)
    with ThreadPoolExecutor(1) as other:
        assert isinstance(other.submit(abort.take).result(), Cancelled)
    references = sys.getrefcount(error)
    assert abort.take() is error
    assert abort.take() is None
    assert sys.getrefcount(error) == references - 1


@pytest.fixture
def slots(model: Model) -> Iterator[Context]:
    with closing(Context(model, OPTIONS, 128, n_seq=4)) as opened:
        yield opened


def test_sessions_of_one_batch_get_the_rows_of_their_own_timelines(model: Model, slots: Context) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(1, model.n_vocab, length).tolist() for length in (7, 3, 12)]
    more = [random.integers(1, model.n_vocab, length).tolist() for length in (5, 1, 3)]
    for slot, prompt in enumerate(prompts):
        slots.prefill(prompt, slot)
    slots.decode(list(enumerate(more)))
    rows, first = slots.rows(0, 9).copy(), 0
    for prompt, added in zip(prompts, more, strict=True):
        with closing(Context(model, OPTIONS, 128)) as alone:
            alone.prefill(prompt)
            expected = np.stack([row.copy() for row in alone.feed_rows(added)])
        np.testing.assert_allclose(rows[first : first + len(added)], expected, atol=1e-3)
        first += len(added)
    assert slots.tokens == [*(prompt + added for prompt, added in zip(prompts, more, strict=True)), []]


def test_only_the_wanted_rows_of_a_batch_are_computed_and_they_are_those_of_all(slots: Context) -> None:
    parts: list[tuple[int, list[int]]] = [(0, [7, 9, 11, 13]), (1, [5, 6]), (2, [8, 4, 2])]
    slots.decode(parts)
    every = slots.wanted_rows().copy()
    assert every.shape == (9, slots.model.n_vocab)
    slots.clear()
    slots.decode(parts, [2, 0, 1])
    np.testing.assert_allclose(slots.wanted_rows(), every[[2, 3, 8]], atol=1e-3)
    np.testing.assert_array_equal(slots.rows(2, 2), slots.wanted_rows()[:2])
    for first, count in ((1, 1), (2, 4), (4, 1), (-1, 2)):
        with pytest.raises(DecodeError, match="no logits"):
            slots.rows(first, count)
    slots.decode([(1, [3, 3])], [0])  # a piece of a prompt
    with pytest.raises(DecodeError, match="no logits"):
        slots.wanted_rows()


def test_a_copied_slot_shares_cells_and_then_goes_its_own_way(model: Model, slots: Context) -> None:
    prompt = list(range(1, 101))
    slots.prefill(prompt)
    for target in (1, 2, 3):
        slots.copy(0, target)  # 400 tokens in 128 cells
    rows = [slots.feed([*prompt, 5 + slot], slot).copy() for slot in range(4)]
    slots.truncate(0, 1)
    for slot in (0, 2, 3):
        with closing(Context(model, OPTIONS, 128)) as alone:
            np.testing.assert_allclose(rows[slot], alone.feed([*prompt, 5 + slot]), atol=1e-3)
    assert [len(held) for held in slots.tokens] == [101, 0, 101, 101]


def test_a_batch_larger_than_the_context_takes_is_refused_before_llama_cpp_sees_it(slots: Context) -> None:
    with pytest.raises(DecodeError, match="more than 16 tokens; raise `n_batch`"):
        slots.decode([(0, [1] * 10), (1, [1] * 7)])
    assert slots.tokens == [[], [], [], []]


def test_positions_beyond_a_learned_table_never_reach_a_decode(family: Family, tmp_path: Path) -> None:
    path = tiny("gpt2", family.base, C=32).write(tmp_path / "gpt2.gguf")
    with closing(Model(path)) as model, closing(Context(model, OPTIONS, 128)) as context:
        context.feed([1] * 32)
        with pytest.raises(ContextError, match="a prompt of 33 tokens do not fit the context of 32"):
            context.feed([1] * 33)


def test_a_quantised_cache_of_keys_needs_heads_of_whole_blocks(family: Family, tmp_path: Path) -> None:
    path = tiny("gptneox", family.base, E=160, head=80, heads=2, value=80).write(tmp_path / "pythia.gguf")
    options = replace(OPTIONS, cache_type_k="q8_0", cache_type_v="f16")
    with closing(Model(path)) as model:
        with pytest.raises(OptionError, match=r"cache_type_k is q8_0: .*pythia.gguf has heads of 80 numbers.*use f16"):
            Context(model, options, 32)
        with pytest.raises(ModelFileError, match="does not divide n_embd_head_k=80"):  # llama.cpp's own check
            Context(model, replace(options, flash_attn="on"), 32)
    wide = tiny("gptneox", family.base, E=128, head=64, heads=2, value=64).write(tmp_path / "wide.gguf")
    with closing(Model(wide)) as model, closing(Context(model, options, 32)) as context:
        context.feed([1, 2, 3])


def test_rows_and_slots_that_there_are_not_are_refused(slots: Context) -> None:
    slots.decode([(0, [1, 2, 3])])
    assert slots.rows(1, 2).shape == (2, slots.model.n_vocab)
    for first, count in ((0, 4), (2, 2), (-1, 2), (3, 1), (0, 0)):
        with pytest.raises(DecodeError, match=f"no logits of {count} rows from {first} on"):
            slots.rows(first, count)
    slots.prefill([9, 2, 3, 4])
    with pytest.raises(DecodeError, match="no logits"):
        slots.rows(0)
    calls: list[Callable[[], object]] = [
        lambda: slots.decode([(4, [1])]), lambda: slots.truncate(0, -1), lambda: slots.copy(-1, 0),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(DecodeError, match="a context of 4 slots has no slot"):
            call()
    with pytest.raises(DecodeError, match="nothing to decode"):
        slots.decode([])
    slots.copy(0, 0)
    assert slots.tokens == [[9, 2, 3, 4], [], [], []]


def test_threads_that_do_not_take_turns_are_told_and_nothing_ends(smollm2: Model) -> None:
    context = Context(smollm2, LoadOptions(threads=1), 2048)
    tokens = smollm2.tokenize("word " * 1500)[:1500]
    with ThreadPoolExecutor(1) as other:
        working = other.submit(context.prefill, tokens)
        while not working.running() or not context.tokens[0]:
            time.sleep(0.001)
        calls: list[Callable[[], object]] = [
            lambda: context.feed([1]),
            lambda: context.truncate(0),
            lambda: context.rows(-1),
        ]
        for call in calls:
            with pytest.raises(DecodeError, match="is at work in another thread; take turns"):
                call()
        context.close()  # frees it when the other thread's decode has ended
        with pytest.raises(DecodeError, match="is closed"):
            working.result()


def test_closing_a_model_or_context_takes_nothing_from_what_still_uses_it(family: Family) -> None:
    """Freed memory would give other numbers, or end the process."""
    model = Model(family.base)
    context = Context(model, OPTIONS, 64)
    row = context.feed([1, 2, 3])
    before = row.copy()
    model.close()
    np.testing.assert_allclose(context.feed([1, 2, 3]), before, atol=1e-3)
    row = context.feed([1, 2, 3])
    before = row.copy()
    context.close()
    assert np.array_equal(row, before)
    with pytest.raises(DecodeError, match="is closed"):
        context.feed([1])
    with pytest.raises(DecodeError, match="is closed"):
        model.tokenize("a")
