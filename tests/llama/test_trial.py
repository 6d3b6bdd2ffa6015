"""memdec_edge.llama.trial: what no rule covers is tried in a process of its own, once, and ends only that."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memdec_edge.errors import MemoryLimitError, ModelFileError
from memdec_edge.gguf.header import Header
from memdec_edge.llama import trial
from memdec_edge.llama.model import Model
from memdec_edge.llama.stock import StockLlama
from memdec_edge.options import LoadOptions, SamplingOptions
from tests.conftest import Family
from tests.support.raw_gguf import read
from tests.support.tiny_recurrent import tiny_recurrent_gguf

ENDING = "llama.cpp would end the process on it (binary-ops.cpp:135: binary_op: unsupported types: dst: f32"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("MEMDEC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were tried, as they are."""
    tried: list[Path] = []
    attempt = trial._try

    def spy(path: Path, vocab_only: bool) -> str | None:
        tried.append(path)
        return attempt(path, vocab_only)

    monkeypatch.setattr(trial, "_try", spy)
    return tried


@pytest.fixture
def strange(family: Family, tmp_path: Path, home: Path) -> Path:
    """A sound file of an architecture that no rule covers."""
    return tiny_recurrent_gguf(tmp_path / "mamba.gguf", family.base)


@pytest.fixture
def ending(strange: Path, tmp_path: Path) -> Path:
    """The same with a bias in half precision: no rule sees it, and llama.cpp ends the process when it decodes."""
    file = read(strange)
    file.retype("blk.0.ssm_conv1d.bias", 1)
    return file.write(tmp_path / "ending.gguf")


def opened(path: Path, *, vocab_only: bool = False) -> None:
    Model(path, vocab_only=vocab_only).close()


def test_files_that_the_rules_cover_are_not_tried(family: Family, trials: list[Path], home: Path) -> None:
    opened(family.base)
    opened(family.memory)
    assert trials == []
    assert not home.exists()


def test_others_are_tried_once(strange: Path, trials: list[Path], home: Path) -> None:
    opened(strange)
    opened(strange)
    assert trials == [strange]
    (verdict,) = (home / "trials").iterdir()
    assert json.loads(verdict.read_text(encoding="utf-8")) == {"reason": ""}


def test_a_file_that_ends_the_process_is_refused_every_time(ending: Path, trials: list[Path]) -> None:
    for _ in range(2):
        with pytest.raises(ModelFileError) as caught:
            opened(ending)
        assert ENDING in str(caught.value)
        assert "\n" not in str(caught.value)
    assert trials == [ending]


def test_llama_cpp_python_s_own_class_gets_no_such_file_either(ending: Path) -> None:
    with pytest.raises(ModelFileError, match="would end the process on it"):
        StockLlama(ending, LoadOptions(threads=1, n_ctx=32), SamplingOptions())


def test_a_file_that_changes_is_tried_again(ending: Path, strange: Path, trials: list[Path]) -> None:
    with pytest.raises(ModelFileError):
        opened(ending)
    ending.write_bytes(strange.read_bytes())
    opened(ending)
    os.utime(ending, (1, 1))
    opened(ending)
    assert trials == [ending] * 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"reason": 3}', b"\xff"])
def test_a_damaged_verdict_is_none(strange: Path, trials: list[Path], home: Path, content: bytes) -> None:
    with Header(strange) as header:
        verdict = trial._verdict_file(header, vocab_only=False)
    assert verdict is not None
    verdict.parent.mkdir(parents=True)
    verdict.write_bytes(content)
    opened(strange)
    assert trials == [strange]
    assert json.loads(verdict.read_text(encoding="utf-8")) == {"reason": ""}


def test_a_cache_that_cannot_be_written_harms_nothing(strange: Path, trials: list[Path], home: Path) -> None:
    home.write_text("a file where the folder belongs", encoding="utf-8")
    opened(strange)
    opened(strange)
    assert trials == [strange] * 2


def test_without_a_home_nothing_is_written_beside_the_user(
    strange: Path, trials: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMDEC_HOME", "~nobody/cache")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    opened(strange)
    assert trials == [strange]
    assert sorted(tmp_path.iterdir()) == before


def test_several_threads_may_open_a_file_at_once(strange: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(opened, [strange] * 3))


def test_the_vocabulary_alone_is_tried_alone(ending: Path, strange: Path, trials: list[Path]) -> None:
    file = read(ending)
    file.set("tokenizer.ggml.pre", "gemma4")  # a tokenizer that no rule covers
    opened(file.write(ending), vocab_only=True)
    assert trials == [ending]
    with pytest.raises(ModelFileError, match="would end the process"):
        opened(ending)


def test_what_llama_cpp_refuses_by_itself_has_llama_cpp_s_reason(strange: Path) -> None:
    file = read(strange)
    file.tensors.pop()
    with pytest.raises(ModelFileError, match=r"llama.cpp cannot load it \(.*blk.1.ssm_out.weight.* not found"):
        opened(file.write(strange))


@pytest.mark.parametrize("executable", ["", None, "/usr/sbin/uwsgi", "/no/such/python3"])
def test_where_no_python_can_be_started_there_is_no_trial(
    strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    opened(strange)
    assert not (home / "trials").exists()


def test_a_frozen_program_is_not_started_again(strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    opened(strange)
    assert not (home / "trials").exists()


def test_a_child_that_cannot_import_the_package_is_no_verdict(
    strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CHILD", "import no_such_module")
    opened(strange)
    assert not (home / "trials").exists()


def test_a_child_that_the_system_kills_is_no_verdict(
    strange: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "CHILD", "import os; print('ready', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(MemoryLimitError, match=r"out of memory: trying .*mamba.gguf in a process of its own; free"):
        opened(strange)
    assert not (home / "trials").exists()


def test_a_trial_that_hangs_is_an_end(strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "CHILD", "import time; print('ready', flush=True); time.sleep(600)")
    monkeypatch.setattr(trial, "SECONDS", 1)
    with pytest.raises(ModelFileError, match=r"would end the process on it \(no answer within"):
        opened(strange)


def test_a_name_that_is_no_utf8_is_tried_too(strange: Path, trials: list[Path], tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/\xff name.gguf"))
    strange.rename(odd)
    opened(odd)
    assert trials == [odd]


def test_the_folder_in_which_one_works_is_not_searched_for_modules(
    strange: Path, trials: list[Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    opened(strange)
    assert len(list((home / "trials").iterdir())) == 1
