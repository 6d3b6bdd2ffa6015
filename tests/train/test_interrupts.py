"""train/interrupts.py: a signal waits for the end of a block, and then does what it always does."""

import signal
import threading

import pytest

from memdec_edge.train.interrupts import unbroken


def interrupt_twice(done: list[str]) -> None:
    with unbroken():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("all")


def test_an_interrupt_comes_at_the_end_of_the_block_and_only_once() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice(done)
    assert done == ["all"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_or_kills_is_left_as_it_is() -> None:
    kept = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with unbroken():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, kept)


def test_an_error_in_the_block_comes_through_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="of the block"), unbroken():
        raise ValueError("of the block")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_the_block_just_runs() -> None:
    done: list[str] = []

    def work() -> None:
        with unbroken():
            done.append("all")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == ["all"]
