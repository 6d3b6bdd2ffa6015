"""The command check: do a base and a memory share a vocabulary? Knows nothing of how vocabularies are compared."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.common import Base, warn
from memdec_edge.cli.flags import spread


@spread
def check(
    *, model: Base, memory: Annotated[Path, typer.Option("-M", "--memory", metavar="FILE", help="Memory GGUF.")]
) -> None:
    """Do a base and a memory share a vocabulary?

    Exit code 0 or 1; the first difference is named.
    """
    from memdec_edge.llama.model import Model
    from memdec_edge.llama.pairing import require_match

    with closing(Model(model, vocab_only=True)) as base, closing(Model(memory, vocab_only=True)) as opened:
        warning = require_match(base, opened)
        warn([warning] if warning else [])
        print(f"{memory} matches {model}: {min(base.n_vocab, opened.n_vocab)} shared tokens")
