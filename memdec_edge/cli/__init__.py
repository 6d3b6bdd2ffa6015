"""The command line: parse, build options, call one function, print. Knows nothing of how anything is done.

Results go to stdout, everything else to stderr; with --json the last line of stdout is one JSON object. Errors are one
`Error: ...` line on stderr and the error's exit code. Nothing heavy is imported before a command runs.
"""

import io
import os
import sys

import typer

from memdec_edge import __version__
from memdec_edge.cli.bench import bench
from memdec_edge.cli.cache import cache
from memdec_edge.cli.check import check
from memdec_edge.cli.convert import convert
from memdec_edge.cli.demo import demo
from memdec_edge.cli.eval import eval_
from memdec_edge.cli.flags import CommandError
from memdec_edge.cli.quantize import quantize
from memdec_edge.cli.run import run
from memdec_edge.cli.show import show
from memdec_edge.cli.train import train
from memdec_edge.errors import Cancelled

app = typer.Typer(
    name="memdec-edge",
    help="Domain memory for language models on your own machine.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: instant, and the same in every terminal
)
for command in (run, eval_, bench, check, show, cache, train, convert, quantize, demo):
    app.command(command.__name__.rstrip("_"))(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"memdec-edge {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of `memdec-edge` and `python -m memdec_edge`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        code = app(standalone_mode=False, prog_name="memdec-edge")
        if code == Cancelled.exit_code:  # typer's answer to Ctrl-C outside our own code
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away: not an error, but nothing more to say either
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        code = 0
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped", Cancelled.exit_code)
    except CommandError as error:
        code = _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        code = _fail(error.format_message(), 2)
    except MemoryError:
        code = _fail("out of memory; use smaller models or a smaller -c", 1)
    except OSError as error:
        code = _fail(str(error), 1)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    return code
