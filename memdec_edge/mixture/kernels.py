"""Which implementation of the mixture runs, decided once: the C extension or, where it is missing, NumPy.

Both have the contract that memdec_edge/_native.pyi states. Knows nothing of what the functions compute.
"""

__all__ = ["MISSING", "draft", "learn", "match", "mix", "row_stats", "sample", "selected", "verify"]

from memdec_edge.mixture.fallback_match import match

try:
    from memdec_edge._native import draft, learn, mix, row_stats, sample, selected, verify

    MISSING = ""  # why the extension does not run
except ImportError as error:
    from memdec_edge.mixture.fallback import draft, learn, mix, row_stats, sample, selected, verify

    MISSING = str(error)
