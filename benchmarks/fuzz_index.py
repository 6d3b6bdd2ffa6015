"""Hostile index files by the thousand: does any end the process while it is opened, searched or verified?

    python -m benchmarks.fuzz_index [--cases 10000] [--first 0]

Bytes, keys, tensors and arrays of a tiny index are changed from a seed (tests/support/index_mutations.py). The last
line is one JSON object: how many were taken, found out by a check of all arrays, or refused, and the faults.
"""

from benchmarks.fuzzing import main

if __name__ == "__main__":
    main("tests.support.index_mutations", __doc__)
