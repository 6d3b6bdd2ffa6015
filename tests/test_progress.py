"""Progress where stderr is no terminal: a line a minute with rate and time left."""

import io
import time

import pytest

from memdec_edge.progress import progress, scheduled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_a_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 100_000) as advance:
        for _ in range(9):
            clock[0] += 20
            advance(2_000)
    assert capsys.readouterr().err.splitlines() == [
        "training: 6,000 of 100,000 tokens (6%), 100 tokens/s, 0:15:40 left",
        "training: 12,000 of 100,000 tokens (12%), 100 tokens/s, 0:14:40 left",
        "training: 18,000 of 100,000 tokens (18%), 100 tokens/s, 0:13:40 left",
    ]


def test_work_of_an_earlier_run_counts_as_done_and_not_as_speed(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("keys", 1_000, "runs", done=900) as advance:
        clock[0] += 100
        advance(1)
    assert capsys.readouterr().err == "keys: 901 of 1,000 runs (90%), 0.01 runs/s, 2:45:00 left\n"


def test_a_plan_adds_what_follows(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with scheduled([("keys", 50.0), ("training", 200.0), ("later", 3_600.0)]):
        for label, left in (("keys", "0:00:40 left, 1:04:00 in all"), ("training", "0:00:40 left, 1:00:40 in all")):
            with progress(label, 100) as advance:
                clock[0] += 60
                advance(60)
            assert capsys.readouterr().err == f"{label}: 60 of 100 tokens (60%), 1 tokens/s, {left}\n"
        with scheduled([("other", 1.0)]), progress("keys", 100) as advance:
            clock[0] += 60
            advance(60)
        assert "in all" not in capsys.readouterr().err  # the inner plan says nothing of it
    with progress("keys", 100) as advance:
        clock[0] += 60
        advance(60)
    assert "in all" not in capsys.readouterr().err


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("keys", 10) as advance:
        advance(10)
    assert capsys.readouterr().err == ""


def test_only_the_first_of_several_processes_speaks(
    clock: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with progress("training", 10) as advance:
        clock[0] += 100
        advance(1)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("training", 10, done=4) as advance:
        advance(1)
    assert "training" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()


def test_without_a_stderr_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with progress("training", 10) as advance:
        advance(10)
