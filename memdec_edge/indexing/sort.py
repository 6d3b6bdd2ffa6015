"""Sorting the prefixes of documents by the text before them, by parts, so that progress shows and Ctrl-C is heard.

It is no library's suffix sorting: those sort bytes, which takes more memory for a token than is given here, and all of
the text, where a match needs LONGEST tokens. Knows nothing of text and of files.
"""

import numpy as np
import numpy.typing as npt

from memdec_edge.mixture import kernels
from memdec_edge.progress import Advance

PART = 1 << 18  # prefixes that are sorted in one go, or all after one token

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Positions = npt.NDArray[np.uint32]


def sorted_prefixes(tokens: Tokens, n_vocab: int, advance: Advance = lambda count: None) -> Positions:
    """The `prefixes` of gguf/index_file.py for its `tokens`. Takes 4 bytes for each token, and its result is these.

    advance  is called with the number of prefixes sorted since the last call
    """
    inside = tokens < n_vocab
    prefixes = np.empty(np.count_nonzero(inside[1:] & inside[:-1]), np.uint32)
    del inside
    ends: npt.NDArray[np.uint64] = np.empty(n_vocab, np.uint64)
    kernels.group_prefixes(tokens, n_vocab, prefixes, ends)
    start = 0
    while start < len(prefixes):
        end = int(ends[np.searchsorted(ends, start, "right")])  # of the first group, and of those a part has room for
        last = int(np.searchsorted(ends, start + PART, "right")) - 1
        several = last >= 0 and int(ends[last]) > end
        end = int(ends[last]) if several else end
        kernels.sort_prefixes(tokens, n_vocab, prefixes[start:end], 0 if several else 1)
        advance(end - start)
        start = end
    return prefixes
