"""Hostile GGUFs by the thousand: does any end the process while it is opened, given a context, or decoded with?

    python -m benchmarks.fuzz_gguf [--cases 10000] [--first 0]

Keys, values and tensors of a tiny model of each architecture are changed from a seed, and models of odd sizes are built
(tests/support/gguf_mutations.py). The last line is one JSON object: how many were taken, how many were refused by our
rules, by llama.cpp or after a trial, and the faults.
"""

from benchmarks.fuzzing import main

if __name__ == "__main__":
    main("tests.support.gguf_mutations", __doc__)
