"""Asks llguidance whether it can follow a grammar, in a process of its own where the answer may not come.

Some grammars take llguidance for ever (intersections of patterns), or more stack than there is (long chains of
references). Knows nothing of vocabularies, of llama.cpp, and of what the grammar was made from.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import lru_cache

from llguidance import LLMatcher, LLParserLimits

# A row holds a grammar's ways at one place; llguidance's own limit of 2,000 refuses objects of 500 optional keys.
LIMITS = LLParserLimits(max_items_in_row=20_000, step_max_items=200_000, verbose_errors=False)
SECONDS = 10  # of CPU time that a trial may take; ordinary grammars take some hundredths
PATIENCE = 30  # times as long by the clock, on a machine that is busy with other work
TRIAL = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from memdec_edge.llama.guidance import limit_cpu, wrong_with; limit_cpu(int(sys.argv[3])); "
    "print(sys.argv[2] + wrong_with(sys.stdin.read()))"
)
JUDGED = "judged "  # before the child's answer


def wrong_with(grammar: str) -> str:
    """Return why llguidance refuses a grammar, in one line, or an empty string."""
    return one_line(LLMatcher.validate_grammar(grammar, limits=LIMITS))


def one_line(message: str) -> str:
    """Return what a message of llguidance says, without the state of its parser."""
    return " ".join(message.removeprefix("ERROR: ").split("<state>")[0].split("<non-verbose/>")[0].split())[:300]


def limit_cpu(seconds: int) -> None:
    """Let the system end this process after `seconds` of CPU time, where it can: Windows cannot."""
    with suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))


@lru_cache(maxsize=256)
def tried(grammar: str) -> str:
    """Return wrong_with(grammar), asked in a process of its own: also where that never ends, or ends badly.

    Takes some hundredths of a second, once for each grammar. Where no Python can be started nothing is tried, and the
    grammar counts as sound.
    """
    from memdec_edge.llama.trial import can_start_python

    if not can_start_python():
        return ""
    command = [sys.executable, "-I", "-c", TRIAL, json.dumps(sys.path), JUDGED, str(SECONDS)]
    too_long, seconds = f"reading it takes over {SECONDS} seconds", SECONDS * (PATIENCE if hasattr(os, "fork") else 1)
    try:
        done = subprocess.run(
            command, input=grammar, capture_output=True, text=True, encoding="utf-8", timeout=seconds, check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return too_long
    except OSError:
        return ""
    if done.returncode < 0 and signal.Signals(-done.returncode).name == "SIGXCPU":
        return too_long
    _, judged, answer = done.stdout.partition(JUDGED)
    return answer.strip() if judged else "its references or its nesting are too deep"
