"""Everything that can be told of a GGUF before llama.cpp opens it. Knows nothing of llama.cpp's API."""

from memdec_edge.gguf import hparams_guard, parts, tensor_guard, vocab_guard
from memdec_edge.gguf.header import Header


def refuse_what_aborts(header: Header, *, vocab_only: bool = False) -> bool:
    """Raise MissingFileError for a part that is not there, and ModelFileError for what would end the process.

    Returns whether the rules cover all that llama.cpp reads: it then opens the file or refuses it, and goes on. Where
    not, only a trial can tell. With `vocab_only` llama.cpp reads no hyper-parameters and tensors.
    """
    covered = vocab_guard.refuse_what_aborts(header)
    others = list(parts.tensors_of_others(header))  # the vocabulary too is read only where all parts are there
    if not vocab_only:
        covered &= hparams_guard.refuse_what_aborts(header)
        covered &= tensor_guard.refuse_what_aborts(header.path, (*header.tensors, *others))
    return covered
