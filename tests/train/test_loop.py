"""train/loop.py: where a training starts, the rate it chooses, and what it publishes."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memdec_edge.errors import Cancelled
from memdec_edge.gguf import metadata
from memdec_edge.train import loop, train
from tests.support.training import BLOCK, cache_options, make_room, metrics, train_options, words

RATES = (0.5, 3e-3, 1e-5)  # the first one is ruinous, the last one too low


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_room(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def trained(room: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that has learned something, which a high rate can spoil."""
    out = tmp_path_factory.mktemp("trained") / "memory"
    train(train_options(room, out, steps=60, beta=0.0))
    return out


def manifest(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "manifest.json").read_text())["facts"]
    return found


def test_no_weights_are_published_that_are_worse_than_the_start(
    room: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    report = train(train_options(room, bad, init=trained, lr=1.0))
    assert report.valid_perplexity is not None
    assert metrics(bad)[-1]["valid_perplexity"] > 10 * report.valid_perplexity
    assert (report.best_step, report.start_perplexity) == (0, report.valid_perplexity)
    weights = [load_file(out / "model.safetensors") for out in (trained, bad)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert json.loads((bad / "memdec.json").read_text())["memdec_edge.train.tokens"] == 0
    warning = capsys.readouterr().err.splitlines()[-1]
    last = metrics(bad)[-1]
    assert warning == (
        "Warning: the memory never did better on validation text than before training, so the weights from before "
        f"training are published. Perplexity was {report.valid_perplexity:.2f} "
        f"({report.mixture_perplexity:.2f} mixed with the teacher) then and {last['valid_perplexity']:.2f} "
        f"({last['mixture_perplexity']:.2f} mixed with the teacher) at the end. "
        "A lower learning rate or more text may help."
    )


def test_without_a_rate_short_trials_choose_it(
    room: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "RATES", RATES)
    report = train(train_options(room, tmp_path / "chosen", init=trained, lr=None))
    given = train(train_options(room, tmp_path / "given", init=trained, lr=3e-3))
    trials = manifest(tmp_path / "chosen")["trials"]
    assert isinstance(trials, dict)
    assert trials["0.003"] < trials["1e-05"] < trials["0.5"]
    said = f"learning rate 0.003: short trials gave a perplexity of {trials['0.5']:.2f} at 0.5, "
    assert said in capsys.readouterr().err
    assert report.valid_perplexity == given.valid_perplexity  # a trial leaves no trace in the weights
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("chosen", "given"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_trials_that_were_made_before_an_interrupt_are_not_made_again(
    room: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RATES", RATES)
    straight = train(train_options(room, tmp_path / "straight", init=trained, lr=None))
    tried: list[float] = []
    trial = loop._Run._trial

    def interrupted(self: loop._Run, rate: float, advance: loop.Advance) -> float:
        tried.append(rate)
        if tried == [0.5, 3e-3]:
            raise KeyboardInterrupt
        return float(trial(self, rate, advance))

    monkeypatch.setattr(loop._Run, "_trial", interrupted)
    with pytest.raises(Cancelled):
        train(train_options(room, tmp_path / "broken", init=trained, lr=None))
    assert list(manifest(tmp_path / "broken")["trials"]) == ["0.5"]  # type: ignore[call-overload]
    broken = train(train_options(room, tmp_path / "broken", init=trained, lr=None))
    assert manifest(tmp_path / "broken")["trials"] == manifest(tmp_path / "straight")["trials"]
    assert broken.valid_perplexity == straight.valid_perplexity


def test_fresh_weights_try_higher_rates(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "memory", lr=None, hidden=32, steps=4))
    trials = manifest(tmp_path / "memory")["trials"]
    assert isinstance(trials, dict)
    assert str(loop.FRESH_RATES[0]) in trials


def test_without_validation_text_the_rate_is_tried_on_training_text(room: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(words(10, 1)[0])
    cache = cache_options(room, corpus=tmp_path / "a.txt", out=tmp_path / "cache", valid_fraction=0.0, knn_temp=4.0)
    report = train(train_options(room, tmp_path / "memory", cache=cache, lr=None, steps=2, beta=0.0))
    assert (report.valid_perplexity, report.start_perplexity, report.best_step) == (None, None, 2)
    assert manifest(tmp_path / "memory")["start"] == {}
    assert manifest(tmp_path / "memory")["lr"] in loop.RATES


def test_a_state_whose_weights_give_no_number_is_not_kept(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes while the next gradient is computed, before it is known that the weights are of use."""
    gradients = loop.Learner.gradients

    def spoiled(self: loop.Learner, step: int) -> object:
        if step == 7:
            self.parameters["model.norm.weight"].data.fill_(float("nan"))
            raise KeyboardInterrupt
        return gradients(self, step)

    monkeypatch.setattr(loop.Learner, "gradients", spoiled)
    with pytest.raises(Cancelled):
        train(train_options(room, tmp_path / "memory"))
    assert state_step(tmp_path / "memory") == 5
    monkeypatch.setattr(loop.Learner, "gradients", gradients)
    assert train(train_options(room, tmp_path / "memory")).steps == 12


def test_an_interrupt_in_the_middle_of_an_update_waits_for_its_end(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(train_options(room, tmp_path / "straight"))
    show_weights = loop.Learner.show_weights
    shown: list[int] = []

    def interrupted(self: loop.Learner) -> None:
        shown.append(1)
        if len(shown) == 8:  # the first time is before the first step
            signal.raise_signal(signal.SIGINT)
        show_weights(self)

    monkeypatch.setattr(loop.Learner, "show_weights", interrupted)
    with pytest.raises(Cancelled):
        train(train_options(room, tmp_path / "broken"))
    assert state_step(tmp_path / "broken") == 7
    train(train_options(room, tmp_path / "broken"))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def state_step(out: Path) -> int:
    with safe_open(out / "resume.safetensors", framework="numpy") as state:
        return int(state.metadata()["step"])


def test_curves_begin_where_the_training_began(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[object] = []
    monkeypatch.setattr(loop, "draw_curves", lambda folder, start: drawn.append(start))
    report = train(train_options(room, tmp_path / "memory"))
    assert drawn == [manifest(tmp_path / "memory")["start"]]
    assert report.start_perplexity == drawn[0]["valid_perplexity"]  # type: ignore[index]


def test_curves_show_what_the_metrics_say(room: Path, tmp_path: Path) -> None:
    report = train(train_options(room, tmp_path / "memory", valid_every=4))
    lines = metrics(tmp_path / "memory")
    assert [line["step"] for line in lines if "valid_perplexity" in line] == [4, 8, 12]
    assert (
        min(line["mixture_perplexity"] for line in lines if "mixture_perplexity" in line) == report.mixture_perplexity
    )
    assert (tmp_path / "memory" / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "memory" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (line["step"], pytest.approx(line["loss"])) for line in lines
    ]
    assert [e.step for e in events.Scalars("valid_perplexity")] == [4, 8, 12]


def test_the_weights_that_did_best_on_validation_text_are_published(room: Path, tmp_path: Path) -> None:
    report = train(train_options(room, tmp_path / "memory", steps=60, lr=1e-2, beta=0.0, valid_every=1))
    mixed = [line["mixture_perplexity"] for line in metrics(tmp_path / "memory")]
    assert report.best_step == mixed.index(min(mixed)) + 1 < 60  # it learns the text by heart, and that is no use
    again = train(train_options(room, tmp_path / "again", init=tmp_path / "memory", steps=1, lr=0.0))
    assert again.valid_perplexity == report.valid_perplexity
    found = json.loads((tmp_path / "memory" / "memdec.json").read_text())
    assert found["memdec_edge.train.tokens"] == report.best_step * 2 * BLOCK
    assert not (tmp_path / "memory" / "best.safetensors").exists()


def test_validation_comes_after_each_epoch_too(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "memory", epochs=3, steps=0, batch=4))  # 43 blocks: 10.75 steps an epoch
    assert [line["step"] for line in metrics(tmp_path / "memory") if "valid_perplexity" in line] == [11, 22, 33]
    train(train_options(room, tmp_path / "other", epochs=3, steps=0, batch=4, valid_every=0))
    assert [line["step"] for line in metrics(tmp_path / "other") if "valid_perplexity" in line] == [33]


def test_a_memory_from_scratch_has_the_shape_and_nothing_else(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "memory", from_scratch=True, layers=1, lr=0.0, steps=1))
    config = json.loads((tmp_path / "memory" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["model_type"]) == (1, 64, "llama")
    mine, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "memory", room / "teacher"))
    name = "model.embed_tokens.weight"
    assert abs(np.corrcoef(mine[name].ravel(), theirs[name].ravel())[0, 1]) < 0.05


def test_the_loss_falls(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "memory", steps=60, beta=1.0))
    kl = [line["kl"] for line in metrics(tmp_path / "memory")]
    assert sum(kl[-5:]) < 0.6 * sum(kl[:5])


def test_a_control_without_targets_sees_the_same_text_in_the_same_order(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "memory", lr=0.0))
    train(train_options(room, tmp_path / "control", lr=0.0, beta=0.0))
    memory, control = metrics(tmp_path / "memory"), metrics(tmp_path / "control")
    assert [line["ce"] for line in control] == pytest.approx([line["ce"] for line in memory], rel=1e-5)
    assert all(line["loss"] == line["ce"] and line["kl"] == 0 for line in control)


def test_a_control_needs_no_neighbours_and_notes_none(room: Path, tmp_path: Path) -> None:
    alone = train_options(room, tmp_path / "control", cache=cache_options(room, out=tmp_path / "cache"), beta=0.0)
    train(alone)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["manifest.json", "tokens"]
    facts = json.loads((tmp_path / "control" / "memdec.json").read_text())
    assert {key.removeprefix(metadata.TRAIN) for key in facts if key.startswith(metadata.TRAIN)} == {
        "beta", "teacher", "epochs", "tokens", "texts_sha256", "lambda",
    }  # fmt: skip
    train(train_options(room, tmp_path / "beside", beta=0.0))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("control", "beside")]
    assert weights[0] == weights[1]


def test_accumulated_passes_equal_one_large_pass(room: Path, tmp_path: Path) -> None:
    train(train_options(room, tmp_path / "one", batch=4, steps=2))
    train(train_options(room, tmp_path / "four", batch=1, accumulate=4, steps=2))
    for name in ("loss", "ce", "kl", "grad_norm"):
        one, four = ([line[name] for line in metrics(tmp_path / out)] for out in ("one", "four"))
        assert four == pytest.approx(one, rel=0.02)
