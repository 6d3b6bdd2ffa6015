"""The command line: parse, build options, call one function, print. Knows nothing of how anything is done.

Results go to stdout, everything else to stderr; with --json the last line of stdout is one JSON object. Errors are one
`Error: ...` line on stderr and the error's exit code. Nothing heavy is imported before a command runs.
"""

import errno
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from memdec_edge.cli.bench import bench
from memdec_edge.cli.cache import cache
from memdec_edge.cli.chat import chat
from memdec_edge.cli.check import check
from memdec_edge.cli.convert import convert
from memdec_edge.cli.demo import demo
from memdec_edge.cli.eval import eval_
from memdec_edge.cli.flags import CommandError, unknown_flag
from memdec_edge.cli.index import index
from memdec_edge.cli.learn import learn
from memdec_edge.cli.listing import list_
from memdec_edge.cli.lm_eval import PASSED_ON, lm_eval
from memdec_edge.cli.output import note
from memdec_edge.cli.process import abandon_broken_streams, open_missing_streams, show_every_character, stoppable
from memdec_edge.cli.quantize import quantize
from memdec_edge.cli.rm import rm
from memdec_edge.cli.run import run
from memdec_edge.cli.serve import serve
from memdec_edge.cli.show import show
from memdec_edge.cli.train import adapt, train
from memdec_edge.cli.tune import tune
from memdec_edge.errors import Cancelled, OptionError

UNWRITTEN = (errno.ENOSPC, errno.EIO, errno.EFBIG)  # what a stream that has no file name gives

app = typer.Typer(
    name="memdec-edge",
    help="Domain memory for language models on your own machine.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: instant, and the same in every terminal
)
for command in (
    learn, run, chat, serve, eval_, lm_eval, tune, bench, check, show, index, cache, train, adapt, convert, quantize,
    list_, rm, demo,
):  # fmt: skip
    name = command.__name__.rstrip("_").replace("_", "-")
    app.command(name, context_settings=PASSED_ON if command is lm_eval else None)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from memdec_edge import __version__

        print(f"memdec-edge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `memdec-edge ARGUMENTS`, by default those of the process, and exit. Raises SystemExit and nothing else."""
    open_missing_streams()
    show_every_character()
    with stoppable() as stop:
        try:
            message, code = _outcome(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output went away: not an error, but nothing more to say either
            message, code = "", 0
        except (KeyboardInterrupt, typer.Abort):
            message, code = "stopped", Cancelled.exit_code
        except OSError as error:
            message, code = _of_system(error), 1
        if code == Cancelled.exit_code:
            code = stop.exit_code
        abandon_broken_streams()
        if message:
            note(f"Error: {' '.join(message.split())}")
    sys.exit(code)


def _outcome(arguments: Sequence[str]) -> tuple[str, int]:
    """Run a command; return what to say of its failure, empty where it did not fail, and the exit code."""
    program = typer.main.get_command(app)
    try:
        with program.make_context("memdec-edge", list(arguments)) as context:
            program.invoke(context)
    except typer.Exit as error:  # --help and --version
        return "", error.exit_code
    except CommandError as error:
        return str(error), error.exit_code
    except typer.TyperException as error:
        return unknown_flag(error, arguments) or error.format_message(), OptionError.exit_code
    except MemoryError:
        return "out of memory; use smaller models or a smaller --ctx-size", 1
    return "", 0


def _of_system(error: OSError) -> str:
    """What the operating system refused, and where."""
    reason = error.strerror or str(error)
    if error.filename is None and error.errno in UNWRITTEN:
        return f"the output could not be written: {reason}"
    return f"{error.filename}: {reason}" if error.filename else reason
