"""The command check: does a memory or an index share a base's vocabulary? Knows nothing of how they are compared."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import CommandError, spread
from memdec_edge.cli.output import warn
from memdec_edge.cli.parameters import Base, base_file, memory_file
from memdec_edge.errors import PairingError


@spread
def check(
    *, model: Base, memory: Annotated[Path, typer.Option("-M", "--memory", metavar="FILE", help="Memory or index.")]
) -> None:
    """Check that a memory or an index fits a base.

    A memory must share the base's vocabulary. An index must have its tokenizer, and is read whole for damage. The exit
    code is 0 or 1. An error names the first difference.
    """
    named = model()
    from memdec_edge.gguf import metadata
    from memdec_edge.llama.model import Model
    from memdec_edge.llama.pairing import require_match

    path, memory = base_file(named), memory_file(memory)
    if metadata.is_index(metadata.read(memory)[0]):
        _check_index(path, memory)
        return
    with closing(Model(path, vocab_only=True)) as base, closing(Model(memory, vocab_only=True)) as opened:
        try:
            warning = require_match(base, opened)
        except PairingError as error:  # its own advice is for commands that can mix the two
            reason = f"{memory} does not match {path}: {error.difference}"
            raise CommandError(f"{reason}; use a memory trained for this model family", error.exit_code) from error
        warn([warning] if warning else [])
        print(f"{memory} matches {path}: {min(base.n_vocab, opened.n_vocab)} shared tokens")


def _check_index(base: Path, path: Path) -> None:
    from memdec_edge.gguf.index_file import IndexFile
    from memdec_edge.indexing.verify import verify

    with IndexFile.open(path) as index:
        index.require_tokenizer(base)
        verify(index)
        print(f"{path} matches {base}: {index.n_documents:,} documents, {len(index.tokens):,} tokens")
