"""A GGUF that our rules do not cover is tried once in a process of its own, for llama.cpp may end it.

It happens when a file is opened for the first time whose architecture, keys, tokenizer or tensors gguf/guard.py does
not know: a mixture of experts, or a model newer than the rules. GPT-2, Llama, Mistral, Qwen2, Qwen3, GPT-NeoX and
Gemma 3 in their usual form are covered, and are never tried. A trial loads the file and decodes some tokens on the
CPU. Its verdict is kept in the user's cache folder, by path, size and time. Knows nothing of what is tried.
"""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import llama_cpp

from memdec_edge.errors import MemoryLimitError, ModelFileError, OutputError
from memdec_edge.files import cache_home, write_text
from memdec_edge.gguf import guard, parts
from memdec_edge.gguf.header import Header

CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from memdec_edge.llama.attempt import main; main(*sys.argv[2:])"
)
READY, DONE = "ready", "done"  # lines that the child prints before and after
SECONDS = 1800  # the largest models come from slow disks; what takes longer hangs
KILLED = -9  # return code after SIGKILL: the system had no memory left
# No debugger at the end, no waiting in loops for work, and no GPU: it may be full of the user's own work.
SURROUNDINGS = {
    "GGML_NO_BACKTRACE": "1", "OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1",
}  # fmt: skip


def refuse_what_ends(header: Header, *, vocab_only: bool = False) -> None:
    """Raise ModelFileError where llama.cpp would end the process on a file, by our rules or by a trial.

    Raises as guard.refuse_what_aborts() too, and MemoryLimitError where a trial runs out of memory. Safe in threads and
    daemons: nothing is forked. Where no Python can be started (a frozen program, an embedded one) there is no trial,
    and the file counts as sound.
    """
    if guard.refuse_what_aborts(header, vocab_only=vocab_only):
        return
    verdict = _verdict_file(header, vocab_only)
    reason = _read(verdict)
    if reason is None:
        reason = _try(header.path, vocab_only)
        if reason is not None:
            _write(verdict, reason)
    if reason:
        advice = "it is damaged, or needs a newer llama-cpp-python"
        raise ModelFileError(header.path, f"llama.cpp would end the process on it ({reason}); {advice}")


def _try(path: Path, vocab_only: bool) -> str | None:
    """Why llama.cpp ended the child, empty where it did not, None where there was no trial."""
    if not can_start_python():
        return None
    command = [sys.executable, "-I", "-c", CHILD, json.dumps(sys.path), os.path.abspath(path), str(int(vocab_only))]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, env=os.environ | SURROUNDINGS,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS // 60} minutes"
    except OSError:
        return None
    lines = done.stdout.split()
    if READY.encode() not in lines:
        return None
    if DONE.encode() in lines:
        return ""
    if done.returncode == KILLED:
        raise MemoryLimitError(f"trying {path} in a process of its own", "free memory, or use a smaller model")
    return last_words(done.stderr.decode("utf-8", "replace")) or f"it ended with {done.returncode}"


def can_start_python() -> bool:
    """Whether sys.executable is a Python: in a frozen or embedding program it is that program, or nothing."""
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def last_words(stderr: str) -> str:
    """The assertion that failed or the exception that was not caught, without the path of llama.cpp's source."""
    for line in reversed(stderr.splitlines()):
        if any(mark in line for mark in ("GGML_ASSERT", "what():", ".cpp:", ".c:")):
            return " ".join(line.replace("\\", "/").rpartition("/")[2].split())[:200]
    return ""


# --- verdicts: several processes may use them; a cache that cannot be read or written is none -------------------------


def _verdict_file(header: Header, vocab_only: bool) -> Path | None:
    """Where the verdict on a file belongs; another one once the file or llama.cpp changes."""
    folder = cache_home() / "trials"
    stats = [(os.path.realpath(file), file.stat()) for file in (header.path, *parts.others(header))]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    key = json.dumps([stamps, vocab_only, llama_cpp.__version__])
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json" if folder.is_absolute() else None


def _read(verdict: Path | None) -> str | None:
    """Why llama.cpp ends a process, empty for a sound file, None where there is no verdict."""
    if verdict is None:
        return None
    try:
        found = json.loads(verdict.read_bytes())
    except (OSError, ValueError):
        return None
    reason = found.get("reason") if isinstance(found, dict) else None
    return reason if isinstance(reason, str) else None


def _write(verdict: Path | None, reason: str) -> None:
    if verdict is not None:
        with suppress(OutputError):
            write_text(verdict, json.dumps({"reason": reason}))
