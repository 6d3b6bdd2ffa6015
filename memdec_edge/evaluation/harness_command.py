"""lm-evaluation-harness's own command line, with the model `memdec`. Knows nothing of models and tasks.

Importing this module imports lm_eval, of the extra [eval].
"""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

from lm_eval._cli import HarnessCLI

from memdec_edge.errors import MemdecError, TaskError
from memdec_edge.evaluation.harness import NAME
from memdec_edge.notes import note

OTHERS = ("ls", "validate")  # commands of lm-eval that run no model


def run(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line in this process, with the model memdec unless another one is named.

    A - inside a flag counts as lm-eval's _. Raises TaskError for what lm-eval refuses, and what the model raises.
    """
    given = [_flag(argument) for argument in arguments]
    if given and given[0] not in OTHERS:
        given = given if given[0] == "run" else ["run", *given]
        if not _names(given, "--model", "-M", "--config", "-C", "-h", "--help"):
            given += ["--model", NAME]
            given += [] if _names(given, "--batch_size", "-b") else ["--batch_size", "auto"]
    command = HarnessCLI()
    with _logging():
        parsed = _parsed(command, given)
        try:
            command.execute(parsed)
        except (MemdecError, OSError, MemoryError):
            raise
        except Exception as error:  # lm-eval and the libraries below it raise whatever comes
            logging.getLogger("lm_eval").debug("lm-eval failed", exc_info=True)
            raise TaskError(_said(error)) from error


def _flag(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _names(arguments: Sequence[str], *flags: str) -> bool:
    return any(argument.partition("=")[0] in flags for argument in arguments)


def _parsed(command: HarnessCLI, arguments: Sequence[str]) -> Any:
    """What argparse makes of the arguments, which it takes from the process. Its complaints become a TaskError."""
    told, before = StringIO(), sys.argv
    sys.argv = ["lm-eval", *arguments]
    try:
        with redirect_stderr(told):
            return command.parse_args()
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        complaint = told.getvalue().strip().rpartition("error: ")[2]
        raise TaskError(f"{complaint}; lm-eval run -h shows its options") from None
    finally:
        sys.argv = before


def _said(error: Exception) -> str:
    """An exception of strangers in one line, with its kind where that says more."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text if isinstance(error, ValueError | KeyError) and text else f"{type(error).__name__}: {text}"


class _Notes(logging.Handler):
    """What lm-eval logs, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "Warning: " if record.levelno >= logging.WARNING else ""
        note(f"{level}lm-eval: {self.format(record)}")


@contextmanager
def _logging() -> Iterator[None]:
    """Show lm-eval's warnings, or what the environment's LMEVAL_LOG_LEVEL asks for."""
    logger, handler = logging.getLogger("lm_eval"), _Notes()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    asked = os.environ.get("LMEVAL_LOG_LEVEL", "").upper()
    logger.setLevel(logging.getLevelNamesMapping().get(asked, logging.WARNING))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
