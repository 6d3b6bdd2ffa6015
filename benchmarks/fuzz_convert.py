"""Damaged inputs of convert by the thousand: does any crash it, hang it or end in a traceback?

    python -m benchmarks.fuzz_convert [--cases 10000] [--first 0]

GGUF headers, config.json, tokenizer.json, tokenizer.model and safetensors headers are damaged from a seed
(tests/support/mutations.py) and used. The last line is one JSON object: how many were taken, how many refused and by
which error, and the faults.
"""

from benchmarks.fuzzing import main

if __name__ == "__main__":
    main("tests.support.mutations", __doc__)
