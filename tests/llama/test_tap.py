"""tap.py and native/tap.c: a tensor of llama.cpp's graph, against llama.cpp's own embeddings."""

import ctypes
from collections.abc import Callable

import llama_cpp
import numpy as np
import pytest

from memdec_edge import _native
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.tap import Tap, _State
from tests.support.real import EXACT

IDS = [5, 9, 2, 77, 31, 4, 8, 100, 3, 12]


def embeddings(model: Model) -> np.ndarray:
    """What llama.cpp itself gives as the hidden state of each token."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.embeddings, params.flash_attn_type = 256, True, 0
    params.type_k = params.type_v = 0
    handle = llama_cpp.llama_init_from_model(model.handle, params)
    batch = llama_cpp.llama_batch_init(len(IDS), 0, 1)
    batch.n_tokens = len(IDS)
    for i, token in enumerate(IDS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    assert llama_cpp.llama_decode(handle, batch) == 0
    found = np.ctypeslib.as_array(llama_cpp.llama_get_embeddings(handle), (len(IDS), model.n_embd)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(handle)
    return found


def test_the_tapped_last_hidden_states_are_llama_cpps_embeddings_and_logits_stay_right(model: Model) -> None:
    tap = Tap("result_norm", model.n_embd, 256)
    tapped, plain = Context(model, EXACT, 64, tap=tap), Context(model, EXACT, 64)
    tapped.decode([(0, IDS)])
    assert np.array_equal(tap.take(), embeddings(model))
    assert tap.take().shape == (0, model.n_embd)
    plain.decode([(0, IDS)])
    assert np.array_equal(tapped.rows(0, len(IDS)), plain.rows(0, len(IDS)))
    tapped.close()
    plain.close()


def test_a_pass_that_ends_at_the_tap_gives_the_same_rows(model: Model) -> None:
    tap = Tap("ffn_norm-1", model.n_embd, 256)
    context = Context(model, EXACT, 64, tap=tap)
    context.decode([(0, IDS)])
    whole = tap.take().copy()
    assert whole.shape == (len(IDS), model.n_embd)
    tap.last = True
    context.truncate(4)
    context.decode([(0, IDS[4:])])  # the KV cache of a cut pass is right too
    assert np.array_equal(tap.take(), whole[4:])
    context.close()


def test_a_tensor_that_the_graph_has_not_gives_no_rows(model: Model) -> None:
    tap = Tap("ffn_norm-99", model.n_embd, 256)
    context = Context(model, EXACT, 64, tap=tap)
    context.decode([(0, IDS)])
    assert len(tap.take()) == 0
    context.close()


@pytest.fixture
def fake() -> tuple[_State, Callable[[bool], bool], bytearray]:
    """A tap over functions of ours: a tensor is a C string, its name and its bytes at once."""
    memory = bytearray(8)
    state = _State(b"wanted", size=8)
    state.rows = ctypes.addressof((ctypes.c_char * 8).from_buffer(memory))
    state.ggml_get_name = ctypes.cast(ctypes.pythonapi.PyBytes_AsString, ctypes.c_void_p).value
    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.py_object, ctypes.c_bool, ctypes.c_void_p)(_native.TAP_CALLBACK)
    return state, lambda ask: bool(callback(b"wanted", ask, ctypes.addressof(state))), memory


def test_only_the_wanted_name_is_asked_for(fake: tuple[_State, Callable[[bool], bool], bytearray]) -> None:
    state, call, _ = fake
    assert call(True)
    state.name = b"other"
    assert not call(True)


def test_rows_beyond_the_buffer_are_counted_and_not_written(
    fake: tuple[_State, Callable[[bool], bool], bytearray],
) -> None:
    state, call, memory = fake
    size = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_void_p)(lambda tensor: 6)
    fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)(
        lambda tensor, rows, at, n: ctypes.memset(rows + at, 7, n) and None
    )
    state.ggml_nbytes = ctypes.cast(size, ctypes.c_void_p).value
    state.ggml_backend_tensor_get = ctypes.cast(fill, ctypes.c_void_p).value
    state.last = 1
    assert [call(False), call(False)] == [False, False]
    assert (state.used, bytes(memory)) == (12, bytes([7] * 6 + [0] * 2))
    state.last = 0
    assert call(False)
