"""Calls that recurse deeply get a stack that is large enough; texts that no stack can hold are refused.

llama.cpp splits text with std::regex for about half of its pre-tokenizers. libstdc++ matches by recursion, one call or
two for each character of a run (letters, blanks, `=`): 30,000 of them overflow the usual stack of 8 MiB, which ends the
process. llguidance recurses over a schema's references. Knows nothing of models and schemas.
"""

import _thread
import re
import threading
from collections.abc import Callable
from typing import TypeVar

from memdec_edge.errors import CorpusError, MemoryLimitError

T = TypeVar("T")

# Measured with llama-cpp-python 0.3.36 (GCC 12, -O3): 320 bytes a character, in every pre-tokenizer and kind of run.
BYTES_PER_CHARACTER = 1024
SHORT = 2_000  # characters, 640 KB of stack: any thread has that, and a thread of its own would cost 60 us
LONGEST_RUN = 1 << 20  # characters, 1 GiB of stack, of which the system gives what is touched
RUNS = {"exaone-moe": (r"[^\n]+", r"\s+")}  # what one match of a pre-tokenizer may span; others: words, blanks
WORDS = (r"\S+|\s+",)
# Runs on which a pre-tokenizer takes a time that grows with the square: about a second for one of this length.
SLOW_RUNS = {"superbpe": (r"\d+", 5_000), "jais-2": (r"\s+", 50_000)}

_starting = threading.Lock()  # the size of the next thread's stack is a setting of the whole process


def refuse_long_runs(text: str, pretokenizer: str) -> None:
    """Raise CorpusError for a run of characters that the pre-tokenizer cannot split, with its place in the text."""
    pattern, most = SLOW_RUNS.get(pretokenizer, ("", len(text)))
    if len(text) > most:
        _refuse(text, pattern, most, pretokenizer)
    if len(text) > LONGEST_RUN:
        for pattern in RUNS.get(pretokenizer, WORDS):
            _refuse(text, pattern, LONGEST_RUN, pretokenizer)


def _refuse(text: str, pattern: str, most: int, pretokenizer: str) -> None:
    for run in re.finditer(pattern, text):
        length = run.end() - run.start()
        if length > most:
            raise CorpusError(
                "the text",
                f"{length:,} characters without a break from character {run.start():,} on ({run[0][:20]!r}...); the "
                f"pre-tokenizer {pretokenizer} takes at most {most:,}: break them up or leave them out",
            )


def stack_for(text: str) -> int:
    """Return the bytes of stack that llama.cpp may need to split `text`; 0: what every thread has."""
    return 0 if len(text) <= SHORT else BYTES_PER_CHARACTER * min(len(text), LONGEST_RUN)


def call_with_stack(function: Callable[[], T], size: int) -> T:
    """Return function(), called in a thread with `size` bytes of stack, or in this one where size is 0.

    The call is waited for even when a signal handler raises (Ctrl-C), for it uses what the caller may free; the
    exception is raised afterwards. Raises MemoryLimitError where the system gives no such stack.
    """
    if not size:
        return function()
    results: list[T] = []
    failures: list[BaseException] = []
    done = _thread.allocate_lock()
    done.acquire()

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)
        finally:
            done.release()

    interrupts: list[BaseException] = []
    with _starting:
        before = threading.stack_size()
        try:
            threading.stack_size(max(size, before))
            try:
                _thread.start_new_thread(work, ())
            except RuntimeError:
                raise
            except BaseException as error:  # of a signal handler; Python looks at signals after the call: work() runs
                interrupts.append(error)
        except (RuntimeError, ValueError) as error:
            raise MemoryLimitError(f"a stack of {size >> 20} MiB", "free memory, or give shorter texts") from error
        finally:
            threading.stack_size(before)
    while not (results or failures):
        try:
            done.acquire()
        except BaseException as error:
            interrupts.append(error)
    if interrupts or failures:
        raise (interrupts or failures)[0]
    return results[0]
