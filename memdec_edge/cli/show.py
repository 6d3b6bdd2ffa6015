"""The command show: what a memory GGUF says about itself. Knows nothing of how a GGUF is read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memdec_edge.cli.flags import spread
from memdec_edge.cli.output import note, print_json, printable
from memdec_edge.cli.parameters import Json
from memdec_edge.options import ETA, INITIAL_LAMBDA, SHARE

if TYPE_CHECKING:
    from memdec_edge.gguf.metadata import MemoryMetadata


@spread
def show(*, file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF.")], json_: Json = False) -> None:
    """Print what a memory or an index says about itself."""
    from memdec_edge.gguf import metadata, parts
    from memdec_edge.gguf.index_file import IndexFile

    values, _ = metadata.read(file)
    memory = metadata.MemoryMetadata.from_gguf(file, values)  # values that cannot be are refused
    found = {
        key: value
        for key, value in values.items()
        if key.startswith(("general.", metadata.PREFIX)) and value != "" and value == value  # NaN: not set
    }
    found |= {"tensors": len(parts.tensors(file)), "bytes": parts.n_bytes(file)}
    if metadata.is_index(values):
        with IndexFile.open(file) as index:
            trust = ", ".join(f"{value:.2f}" for value in index.trust)
            found |= {"documents": index.n_documents, "tokens": len(index.tokens), "trust": trust}
        note(f"{file} is an index: it contains the text of its documents")
    elif not metadata.is_memory(values):
        note(f"{file} is a plain model, not a memory")
    width = max(map(len, found))
    for key, value in found.items():
        print(f"{printable(key):{width}}  {printable(str(value))}")
    if metadata.is_memory(values):
        note(f"lambda: {memory.origin}")
        note(f"where the weight follows the text: {_online(memory)}")
    if json_:
        print_json(found)


def _online(memory: "MemoryMetadata") -> str:
    """How the weight of a memory learns, and whether tune found it."""
    tuned = memory.first_weight is not None
    begin = next(each for each in (memory.first_weight, memory.weight, INITIAL_LAMBDA) if each is not None)
    eta, share = (ETA if memory.eta is None else memory.eta), (SHARE if memory.share is None else memory.share)
    return f"it begins with {begin:.3g}, eta {eta:.3g}, share {share:.3g} ({'tuned' if tuned else 'not tuned'})"
