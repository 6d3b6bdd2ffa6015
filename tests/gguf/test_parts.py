"""memdec_edge.gguf.parts: a split GGUF counts whole, and what is wrong with its parts is named."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import llama_cpp
import pytest

from memdec_edge.bench.bandwidth import model_bytes
from memdec_edge.engine import Engine
from memdec_edge.errors import MissingFileError, ModelFileError
from memdec_edge.gguf import parts
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions, MemoryOptions
from tests.conftest import Family
from tests.support.raw_gguf import UINT32, read, split_gguf

PARTS = 3


def name(number: int, count: int = PARTS) -> str:
    return f"base-{number:05d}-of-{count:05d}.gguf"


@pytest.fixture
def split(family: Family, tmp_path: Path) -> Path:
    return split_gguf(family.base, tmp_path / "base")


def test_an_ordinary_file_is_all_there_is(family: Family) -> None:
    assert parts.files(family.base) == [family.base]
    assert parts.n_bytes(family.base) == family.base.stat().st_size


def test_llama_cpp_reads_the_same_numbers_out_of_the_parts(split: Path, family: Family) -> None:
    logits = []
    for path in (split, family.base):
        judge = llama_cpp.Llama(str(path), n_ctx=32, logits_all=True, n_threads=1, verbose=False)
        judge.eval([5, 6, 7])
        logits.append(judge.scores[:3].copy())
        judge.close()
    assert (logits[0] == logits[1]).all()


def test_all_parts_count(split: Path, family: Family) -> None:
    assert parts.files(split) == [split.with_name(name(number)) for number in (1, 2, 3)]
    assert parts.n_bytes(split) == sum(file.stat().st_size for file in split.parent.glob("base-*"))
    assert {tensor.name for tensor in parts.tensors(split)} == {tensor.name for tensor in parts.tensors(family.base)}
    assert model_bytes(split) == model_bytes(family.base)


def test_show_counts_all_parts(split: Path, family: Family) -> None:
    command = [sys.executable, "-m", "memdec_edge", "show", str(split), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts["tensors"] == len(parts.tensors(family.base))
    assert facts["bytes"] == parts.n_bytes(split)


def test_threads_are_divided_as_for_the_whole_file(
    split: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memdec_edge.engine.engine.default_threads", lambda: 8)
    found = []
    for base in (split, family.base):
        with closing(Engine(base, [MemoryOptions(family.memory, 0.5)], LoadOptions(threads=8, n_ctx=64))) as engine:
            found.append(engine.rounds.division)
    assert found[0] == found[1] != (1, 7)  # the first file alone is smaller than the memory


def test_a_part_that_is_not_there_is_named(split: Path) -> None:
    split.with_name(name(2)).unlink()
    with pytest.raises(MissingFileError, match=rf"{name(2)}: no such part 2 of the 3 of {name(1)}"):
        Model(split)


def test_a_later_part_is_refused_with_the_name_of_the_first(split: Path) -> None:
    with pytest.raises(ModelFileError, match=rf"{name(3)}: is part 3 of 3; give the first, {name(1)}$"):
        Model(split.with_name(name(3)))


def test_a_first_part_under_another_name_is_refused(split: Path) -> None:
    moved = split.rename(split.with_name("other.gguf"))
    with pytest.raises(ModelFileError, match=r"the file's name must end in -00001-of-00003.gguf"):
        parts.files(moved)


def test_a_file_that_only_has_the_name_of_a_part_is_refused(split: Path, family: Family) -> None:
    shutil.copy(split.with_name(name(3)), split.with_name(name(2)))
    with pytest.raises(ModelFileError, match=r"split.no is 2; the file's name says 1"):
        parts.files(split)
    shutil.copy(family.base, split.with_name(name(2)))
    with pytest.raises(ModelFileError, match=r"split.no is not a whole number \(u16\)"):  # llama.cpp would abort
        parts.files(split)


def test_a_count_of_another_type_is_refused(family: Family, tmp_path: Path) -> None:
    whole = read(family.base)
    whole.add("split.count", PARTS, UINT32)
    with pytest.raises(ModelFileError, match=r"split.count is not a whole number \(u16\)"):
        parts.files(whole.write(tmp_path / "x.gguf"))


def test_a_split_teacher_is_refused_with_what_to_do(split: Path) -> None:
    models = pytest.importorskip("memdec_edge.train.models")
    from memdec_edge.train.model_files import model_files

    with pytest.raises(
        ModelFileError, match=r"is split into 3 files, and transformers reads one; join them with llama"
    ):
        models.load_source(split)
    assert len(model_files(split)) == PARTS
