"""Which implementation of the mixture runs, decided once: the C extension or, where it is missing, NumPy.

Both have the contract that memdec_edge/_native.pyi states. Knows nothing of what the functions compute.
"""

__all__ = [
    "MISSING", "draft", "group_prefixes", "learn", "match", "mix", "row_stats", "sample", "selected", "sort_prefixes",
    "verify",
]  # fmt: skip

try:
    from memdec_edge._native import (
        draft,
        group_prefixes,
        learn,
        match,
        mix,
        row_stats,
        sample,
        selected,
        sort_prefixes,
        verify,
    )

    MISSING = ""  # why the extension does not run
except ImportError as error:
    from memdec_edge.mixture.fallback import (
        draft,
        group_prefixes,
        learn,
        match,
        mix,
        row_stats,
        sample,
        selected,
        sort_prefixes,
        verify,
    )

    MISSING = str(error)
