"""llama.cpp behind llama.py: opening, tokens, KV cache, aborts."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge.errors import Cancelled, ContextError, CorpusError, DecodeError, MissingFileError, ModelFileError
from memdec_edge.llama import Context, Model
from memdec_edge.options import CACHE_TYPES, LoadOptions
from tests.conftest import Family
from tests.real import EXACT, SMOLLM2

OPTIONS = replace(EXACT, n_batch=16)


@pytest.fixture(scope="module")
def model(family: Family) -> Iterator[Model]:
    opened = Model(family.base)
    yield opened
    opened.close()


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    opened = Context(model, OPTIONS, 128)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Model]:
    opened = Model(SMOLLM2)
    yield opened
    opened.close()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no\.gguf: no such GGUF file"):
        Model(tmp_path / "no.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("hello, I am no model")
    with pytest.raises(ModelFileError, match="not a GGUF file"):
        Model(path)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.999])
def test_a_truncated_gguf_is_refused_and_nothing_reaches_stderr(
    family: Family, tmp_path: Path, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = family.base.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelFileError, match=r"cut\.gguf: llama\.cpp cannot load it \(.+\)"):
        Model(path)
    assert capfd.readouterr() == ("", "")


def test_hostile_ggufs_never_abort_the_process(family: Family, tmp_path: Path) -> None:
    """Random bytes flipped in the header; a child process opens them all and must end by itself."""
    whole = bytearray(family.memory.read_bytes())
    random = np.random.default_rng(0)
    for index in range(60):
        mutant = bytearray(whole)
        for position in random.integers(4, 3000, 3):
            mutant[position] = random.integers(256)
        (tmp_path / f"{index}.gguf").write_bytes(mutant)
    code = (
        "import pathlib, sys\n"
        "from memdec_edge.errors import MemdecError\n"
        "from memdec_edge.llama import Context, Model\n"
        "from memdec_edge.options import LoadOptions\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.gguf')):\n"
        "    try:\n"
        "        model = Model(path)\n"
        "        context = Context(model, LoadOptions(threads=1), min(64, model.n_ctx_train))\n"
        "        context.feed(model.tokenize('The heart is a muscle'))\n"
        "        context.close(), model.close()\n"
        "    except MemdecError: pass\n"
        "print('done')\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert child.stdout == "done\n", child.stderr[-500:]


def test_tokens_and_pieces_are_those_of_llama_cpp_python(smollm2: Model) -> None:
    judge = llama_cpp.Llama(str(SMOLLM2), vocab_only=True, verbose=False)
    text = "Don't panic: naïve café, 12,345 東京 🙂\n\n\tend<|im_end|>"
    tokens = smollm2.tokenize(text)
    assert tokens == judge.tokenize(text.encode(), add_bos=True, special=True)
    assert b"".join(smollm2.piece(token, special=True) for token in tokens).decode() == text
    judge.close()


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_text_survives_tokenizing(model: Model, text: str) -> None:
    tokens = model.tokenize(text, parse_special=False)
    assert b"".join(model.piece(token) for token in tokens).decode() == text


def test_text_with_lone_surrogates_is_refused(model: Model) -> None:
    with pytest.raises(CorpusError, match="not UTF-8 at character 2"):
        model.tokenize("ab\udcff")


@pytest.mark.parametrize("token", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused_before_llama_cpp_sees_them(context: Context, token: int) -> None:
    for call in (context.model.piece, context.model.token_text, lambda bad: context.feed([1, bad])):
        with pytest.raises(DecodeError):
            call(token)


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


def test_a_context_length_that_is_no_length_is_refused(family: Family, tmp_path: Path) -> None:
    data, key = bytearray(family.base.read_bytes()), b"llama.context_length"
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = (2**31).to_bytes(4, "little")
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match="context_length is no positive number"):
        Model(path)


def test_a_cache_type_that_needs_flash_attention_says_so(model: Model) -> None:
    with pytest.raises(ModelFileError, match="flash_attn"):
        Context(model, LoadOptions(flash_attn="off", cache_type_v="q8_0"), 128)


def test_rows_after_a_rollback_equal_those_of_a_fresh_cache(model: Model, context: Context) -> None:
    random = np.random.default_rng(0)
    first, second = (random.integers(1, model.n_vocab, 40).tolist() for _ in range(2))
    context.feed(first)
    context.truncate(16)  # a whole batch, so that both sides decode the same batches
    assert context.tokens == first[:16]
    rolled = context.feed(first[:16] + second).copy()
    fresh = Context(model, OPTIONS, 128)
    assert np.array_equal(rolled, fresh.feed(first[:16] + second))
    fresh.close()


def test_a_shared_prefix_is_not_decoded_again(context: Context) -> None:
    prompt = list(range(1, 60))
    context.feed(prompt)
    start = context.tokens
    row = context.feed([*prompt[:50], 7]).copy()
    assert context.tokens is start
    assert len(context.tokens) == 51
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
    started = time.perf_counter()
    with pytest.raises(Cancelled):
        context.feed(tokens)
    assert time.perf_counter() - started < 5
    timer.join()
    clean = Context(smollm2, LoadOptions(threads=1), 4096)
    np.testing.assert_array_equal(context.feed(tokens[:9]).argmax(), clean.feed(tokens[:9]).argmax())
    context.close()
    clean.close()


def test_ctrl_c_stops_a_long_decode(smollm2: Model) -> None:
    context = Context(smollm2, LoadOptions(threads=1, n_batch=2048), 4096)
    tokens = smollm2.tokenize("word " * 2048)[:2048]
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    with pytest.raises((Cancelled, KeyboardInterrupt)):
        context.feed(tokens)
    assert time.perf_counter() - started < 5
    timer.join()
    context.close()
