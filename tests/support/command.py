"""The command line in this process: main() with arguments, and what it printed. A real process takes a second more."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any, NamedTuple
from unittest.mock import patch

from memdec_edge.cli import main

COMMAND = [sys.executable, "-m", "memdec_edge"]


class Done(NamedTuple):
    """What subprocess.run() would say."""

    returncode: int
    stdout: str
    stderr: str


def memdec(*arguments: object, stdin: bytes = b"") -> Done:
    """Run `memdec-edge ARGUMENTS` here."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    code: Any = None
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "stdin", given):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Done(code, *texts)


def error_of(*arguments: object, code: int = 1, stdin: bytes = b"") -> str:
    """The error line of a command that must fail with `code`, print nothing on stdout and one line on stderr."""
    return error_line(memdec(*arguments, stdin=stdin), code)


def error_line(done: "Done | subprocess.CompletedProcess[str]", code: int = 1) -> str:
    """The one line of a command that failed."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("Error: ").rstrip("\n")


def last_json(done: "Done | subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The JSON object that a command printed last."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
