"""build_cache() and train() overwrite and remove nothing that is not their own, and work in a folder alone."""

import json
import os
import shutil
import signal
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils import tensorboard

from memdec_edge.errors import Cancelled, ExistingOutputError, OptionError, StageBusyError
from memdec_edge.train import build_cache, train
from memdec_edge.train.lock import FolderLock
from tests.support.training import cache_options, make_room, own_cache, train_options


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["teacher", "tokens", "keys"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_users_folder_in_a_new_cache_is_refused_and_kept(room: Path, tmp_path: Path, what: str, fresh: bool) -> None:
    out = tmp_path / "out"
    if what == "teacher":
        train(train_options(room, out / what, beta=0.0, steps=1))
    else:
        shutil.copytree(room / "cache" / what, out / what)
    before = content(out)
    with pytest.raises(ExistingOutputError) as caught:
        build_cache(cache_options(room, out=out, finetune_teacher=0.5, fresh=fresh))
    assert str(caught.value) == f"{out / what} exists and is not overwritten; remove it or choose another path"
    assert content(out) == before


@pytest.mark.parametrize("epochs", [0.0, 0.5])
def test_a_users_model_in_a_cache_that_is_redone_stays(room: Path, tmp_path: Path, epochs: float) -> None:
    options = own_cache(room, tmp_path)
    train(train_options(room, options.out / "teacher", beta=0.0, steps=1))
    before = content(options.out / "teacher")
    redone = replace(options, k=3, finetune_teacher=epochs, fresh=True)
    if epochs:
        with pytest.raises(ExistingOutputError, match="teacher exists and is not overwritten"):
            build_cache(redone)
        assert content(options.out).keys() == content(room / "cache").keys() | {f"teacher/{name}" for name in before}
    else:
        build_cache(redone)
    assert content(options.out / "teacher") == before


def test_a_cache_that_is_redone_removes_its_fine_tuned_teacher_and_no_note_beside_it(
    room: Path, tmp_path: Path
) -> None:
    options = cache_options(room, out=tmp_path / "cache", finetune_teacher=0.5)
    build_cache(options)
    (options.out / "teacher" / "notes.md").write_text("mine")
    (options.out / "teacher" / "tensorboard" / "notes.md").write_text("mine")
    build_cache(replace(options, finetune_teacher=0.0, fresh=True))
    kept = content(options.out / "teacher")
    assert kept == {"notes.md": b"mine", "tensorboard/notes.md": b"mine"}


def test_a_cache_of_an_earlier_version_is_opened_and_redone(room: Path, tmp_path: Path) -> None:
    options = cache_options(room, out=tmp_path / "cache", finetune_teacher=0.5)
    report = build_cache(options)
    for path in (options.out / "manifest.json", options.out / "teacher" / "manifest.json"):
        body = json.loads(path.read_text())
        del body["own"]
        path.write_text(json.dumps(body))
    before = content(options.out)
    assert replace(build_cache(options), bytes=report.bytes) == report
    assert content(options.out) == before
    build_cache(replace(options, finetune_teacher=0.0, fresh=True))
    assert not (options.out / "teacher").exists()


@pytest.mark.parametrize("name", ["config.json", "curves.png", "memdec.json", "metrics.jsonl", "best.safetensors"])
def test_a_users_file_in_the_folder_of_a_training_is_refused_and_kept(room: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "memory"
    train(train_options(room, out, steps=1, beta=0.0))
    body = json.loads((out / "manifest.json").read_text())
    body["own"] = [each for each in body["own"] if each != name]
    (out / "manifest.json").write_text(json.dumps(body))
    (out / name).write_text("mine")
    for fresh in (False, True):
        with pytest.raises(ExistingOutputError, match=f"{name} exists and is not overwritten"):
            train(train_options(room, out, steps=1 + fresh, beta=0.0, fresh=fresh))
    assert (out / name).read_text() == "mine"


def test_fresh_keeps_the_users_own_plots_and_arrays_beside_those_of_the_training(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "memory"
    train(train_options(room, out, steps=1, beta=0.0))
    mine = ["tensorboard/events.out.tfevents.1.mine", "mine.safetensors", "loss.png"]
    for name in mine:
        (out / name).write_text("mine")
    before = {path.name for path in (out / "tensorboard").iterdir()}
    train(train_options(room, out, steps=2, beta=0.0, fresh=True))
    assert [(out / name).read_text() for name in mine] == ["mine"] * 3
    assert before & {path.name for path in (out / "tensorboard").iterdir()} == {"events.out.tfevents.1.mine"}


def test_a_file_that_tensorboard_has_begun_when_an_interrupt_comes_goes_with_the_training(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(tensorboard.SummaryWriter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "SummaryWriter", Interrupted)
        with pytest.raises(Cancelled):
            train(train_options(room, tmp_path / "memory"))
    (begun,) = (tmp_path / "memory" / "tensorboard").iterdir()
    train(train_options(room, tmp_path / "memory", steps=1, fresh=True))
    assert not begun.exists()


@pytest.mark.parametrize("inside", ["", "teacher", "keys/memory"])
def test_a_memory_inside_the_cache_is_refused(room: Path, tmp_path: Path, inside: str) -> None:
    cache = cache_options(room, out=tmp_path / "cache")
    with pytest.raises(OptionError, match=r"out is .*: must be outside the kNN cache, .*/cache"):
        train(train_options(room, tmp_path / "cache" / inside, cache=cache))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("field", ["init", "teacher"])
def test_a_memory_is_never_redone_from_itself(room: Path, tmp_path: Path, field: str) -> None:
    out = Path(shutil.copytree(room / "teacher", tmp_path / "memory"))
    link = tmp_path / "link"
    link.symlink_to(out)
    before = content(out)
    options = train_options(room, out, steps=2, beta=0.0, fresh=True)
    for given in (out, link):
        changed = {"init": given} if field == "init" else {"cache": replace(options.cache, teacher=given)}
        with pytest.raises(OptionError, match=f"{field} is {given}: is the output folder"):
            train(replace(options, **changed))
    assert content(out) == before


@pytest.mark.parametrize("kind", ["file", "link to a file", "link to nothing", "pipe"])
def test_an_output_folder_that_is_none_is_refused_and_kept(room: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "other")
        if kind == "link to a file":
            (tmp_path / "other").write_text("mine")
    with pytest.raises(ExistingOutputError) as caught:
        build_cache(cache_options(room, out=out))
    assert str(caught.value) == f"{out} exists and is not overwritten; remove it or choose another path"


def test_a_second_run_is_refused_while_the_first_is_at_work(room: Path, tmp_path: Path) -> None:
    cache = own_cache(room, tmp_path)
    out = tmp_path / "memory"
    train(train_options(room, out, cache=cache, steps=1))
    before = content(tmp_path)
    with ExitStack() as held:
        for lock in (FolderLock(out), FolderLock(cache.out)):
            lock.acquire()
            held.callback(lock.release)
        with pytest.raises(StageBusyError, match=f"memory: process {os.getpid()} on .* is at work in this folder"):
            train(train_options(room, out, cache=cache, steps=1))
        assert build_cache(cache).tau > 0  # a finished cache may be shared
        (cache.out / "targets" / "00000.safetensors").unlink()
        with pytest.raises(StageBusyError, match="cache: process"):
            build_cache(cache)
    build_cache(cache)
    assert content(tmp_path).keys() == before.keys()
