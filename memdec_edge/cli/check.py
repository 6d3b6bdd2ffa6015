"""The command check: do a base and a memory share a vocabulary? Knows nothing of how vocabularies are compared."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import CommandError, spread
from memdec_edge.cli.output import warn
from memdec_edge.cli.parameters import Base
from memdec_edge.errors import PairingError


@spread
def check(
    *, model: Base, memory: Annotated[Path, typer.Option("-M", "--memory", metavar="FILE", help="Memory GGUF.")]
) -> None:
    """Check that a base and a memory share a vocabulary.

    The exit code is 0 or 1. An error names the first difference.
    """
    from memdec_edge.llama.model import Model
    from memdec_edge.llama.pairing import require_match

    with closing(Model(model, vocab_only=True)) as base, closing(Model(memory, vocab_only=True)) as opened:
        try:
            warning = require_match(base, opened)
        except PairingError as error:  # its own advice is for commands that can mix the two
            reason = f"{memory} does not match {model}: {error.difference}"
            raise CommandError(f"{reason}; use a memory trained for this model family", error.exit_code) from error
        warn([warning] if warning else [])
        print(f"{memory} matches {model}: {min(base.n_vocab, opened.n_vocab)} shared tokens")
