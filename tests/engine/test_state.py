"""Sessions in files: what is read again, what comes of it, and files that are damaged or of other models."""

import json
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memdec_edge.api import LanguageModel, open_model
from memdec_edge.errors import BusyError, ContextError, MissingFileError, OutputError, SessionFileError
from memdec_edge.options import GenerationOptions, LoadOptions, SamplingOptions
from tests.conftest import Family
from tests.support.plain import ONE_THREAD
from tests.support.tiny import tiny_checkpoint, tiny_gguf

GREEDY = SamplingOptions(temperature=0.0)
LIMIT = GenerationOptions(n_predict=16, ignore_eos=True, draft=0)
PROMPT = [7, 9, 11] * 40


def opened(family: Family, options: LoadOptions = ONE_THREAD) -> LanguageModel:
    return open_model(family.base, [family.memory], options)


@pytest.fixture(scope="module")
def file(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "long.session"
    with opened(family) as model:
        assert model.save_session(path, PROMPT) == len(PROMPT) - 1  # the last token is decoded with the first new one
        model.engine.cells.require_idle()
    return path


def test_another_process_reads_only_what_the_file_lacks_and_gives_the_same_text(family: Family, file: Path) -> None:
    with opened(family) as model:
        expected = model.generate([*PROMPT, 5, 6], GREEDY, LIMIT)
    with opened(family) as model:
        assert model.load_session(file) == PROMPT[:-1]
        contexts = [model.engine.context, model.memories[0].context]
        done = model.generate([*PROMPT, 5, 6], GREEDY, LIMIT)
        assert (done.timings.cache_n, done.timings.prompt_n) == (len(PROMPT) - 1, 3)
        assert [context.n_decoded for context in contexts] == [3 + 15] * 2  # evidence too is in the file
        assert done.tokens == expected.tokens
        assert done.weights == pytest.approx(expected.weights, abs=1e-4)


def test_a_chat_is_saved_from_its_messages(family: Family, tmp_path: Path) -> None:
    from tests.support.chatty import QUESTION, chatty

    base = chatty(family.base, tmp_path / "c.gguf")
    with open_model(base, [family.memory], ONE_THREAD) as model:
        count = model.save_session(tmp_path / "s", QUESTION)
        assert count == len(model.prompt(QUESTION).tokens) - 1
    with open_model(base, [family.memory], ONE_THREAD) as model:
        assert len(model.load_session(tmp_path / "s")) == count
        assert model.chat(QUESTION, generation=LIMIT).timings.prompt_n == 1


def test_two_that_write_one_file_leave_one_whole_file(family: Family, tmp_path: Path) -> None:
    path = tmp_path / "s"

    def write(model: LanguageModel) -> None:
        for length in range(60, 66):
            assert model.save_session(path, PROMPT[:length]) == length - 1

    with opened(family) as one, opened(family) as two:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, (one, two)))
        assert one.load_session(path) == two.load_session(path) == PROMPT[:64]
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_a_full_disk_leaves_the_old_file(family: Family, tmp_path: Path) -> None:
    with opened(family) as model:
        with pytest.raises(OutputError):
            model.save_session(Path("/dev/full/s"), PROMPT)
        model.engine.cells.require_idle()


def rewritten(file: Path, target: Path, **changes: Any) -> Path:
    """`file` with other arrays."""
    with np.load(file) as found:
        arrays = {**found, **changes}
    with target.open("wb") as out:
        np.savez(out, allow_pickle=False, **arrays)
    return target


def with_meta(file: Path, target: Path, **changes: Any) -> Path:
    with np.load(file) as found:
        meta = json.loads(found["meta"].tobytes()) | changes
    return rewritten(file, target, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))


def test_other_weights_and_other_caches_are_refused_by_name(family: Family, file: Path, tmp_path: Path) -> None:
    other = tiny_gguf(tmp_path / "base.gguf", tiny_checkpoint(tmp_path / "other", hidden=96, seed=9, tied=False))
    with open_model(other, [family.memory], ONE_THREAD) as model:
        with pytest.raises(
            SessionFileError, match=r"the base base\.gguf wrote it, which is not open, or has other wei"
        ):
            model.load_session(file)
    with open_model(family.base, options=ONE_THREAD) as model:
        with pytest.raises(SessionFileError, match=r"the memory memdec-tiny\.gguf wrote it, which is not open"):
            model.load_session(file)
    with opened(family, replace(ONE_THREAD, cache_type_k="f16")) as model:
        with pytest.raises(
            SessionFileError, match=r"base\.gguf wrote it with the cache f32/f32, and it is open with f16"
        ):
            model.load_session(file)
    with opened(family, replace(ONE_THREAD, flash_attn="on")) as model:
        with pytest.raises(SessionFileError, match=r"llama\.cpp cannot take it"):
            model.load_session(file)
        assert len(model.generate(PROMPT, GREEDY, LIMIT).tokens) == 16


def test_files_that_are_none_are_refused(family: Family, file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    with opened(family) as model:
        with pytest.raises(MissingFileError, match="no such session file"):
            model.load_session(tmp_path / "none")
        for content in (b"", b"PK\3\4", b"GGUF" * 9, file.read_bytes()[:-900], b"\x93NUMPY"):
            bad.write_bytes(content)
            with pytest.raises(SessionFileError, match="it is no session file, or damaged"):
                model.load_session(bad)
        flipped = bytearray(file.read_bytes())
        flipped[len(flipped) // 2] ^= 255
        bad.write_bytes(flipped)
        with pytest.raises(SessionFileError):
            model.load_session(bad)
        with pytest.raises(SessionFileError, match="it is of version 2, and this program reads 1"):
            model.load_session(with_meta(file, bad, version=2))
        wrong: list[dict[str, Any]] = [{"models": []}, {"models": [1]}, {"models": None}, {"version": "x"}]
        for changes in wrong:
            with pytest.raises(SessionFileError, match="damaged"):
                model.load_session(with_meta(file, bad, **changes))
        for arrays in (
            {"tokens": np.array([], np.int32)},
            {"tokens": np.array(PROMPT[:50], np.int32)},
            {"tokens": np.array(["a"])},
            {"state0": np.zeros(0, np.uint8)},
            {"state1": np.zeros(100_000, np.uint8)},
            {"state0": np.zeros(100_000, np.float64)},
            {"notes1": np.zeros(3)},
        ):
            with pytest.raises(SessionFileError):
                model.load_session(rewritten(file, bad, **arrays))
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("tokens.npy", "nothing")
        with pytest.raises(SessionFileError):
            model.load_session(bad)
        for header in ("{'descr': (", "{'descr': " + "(" * 9000, "{'descr': '<i4', 'shape': (" + "-" * 9000):
            with zipfile.ZipFile(bad, "w") as archive:
                archive.writestr("tokens.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode())
            with pytest.raises(SessionFileError):
                model.load_session(bad)
        with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tokens.npy", bytes(9000))
        packed = bytearray(bad.read_bytes())
        packed[40:50] = b"\xff" * 10
        bad.write_bytes(packed)
        with pytest.raises(SessionFileError):
            model.load_session(bad)
        model.engine.cells.require_idle()
        assert model.load_session(file) == PROMPT[:-1]


def test_a_file_needs_a_slot_and_a_context_that_holds_it(family: Family, file: Path) -> None:
    with opened(family) as model:
        stream = model.stream("river", GREEDY, LIMIT)
        next(stream)
        with pytest.raises(BusyError):
            model.load_session(file)
    with opened(family, replace(ONE_THREAD, n_ctx=64)) as model:
        with pytest.raises(ContextError, match="119 tokens do not fit the context of 64"):
            model.load_session(file)


@pytest.fixture(scope="module")
def victim(family: Family) -> Any:
    with opened(family) as model:
        yield model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_state_with_wrong_bytes_ends_no_process(
    victim: LanguageModel, file: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """The archive is whole: someone wrote these bytes on purpose."""
    with np.load(file) as found:
        state = found["state0"].copy()
    for _ in range(data.draw(st.integers(1, 4))):
        near = data.draw(st.booleans())  # counts and positions stand in front
        at = data.draw(st.integers(0, 200 if near else len(state) - 1))
        state[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(state)), st.integers(0, len(state))))
    try:
        victim.load_session(rewritten(file, tmp_path / "bad", state0=state[:cut]))
    except SessionFileError:
        victim.engine.cells.require_idle()
    victim.generate([*PROMPT, 5], GREEDY, replace(LIMIT, n_predict=2))
