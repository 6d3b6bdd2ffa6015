"""What an index costs: seconds and memory to sort, bytes a token in the file, microseconds a lookup; C beside NumPy.

    python -m benchmarks.index_lookup BASE.gguf --documents TRAIN.jsonl ... --held-out TEST.jsonl ...
        [--tokens 2000000 20000000] [--lookups 20000] [--reference 300]

The documents are tokenized once, and repeated in random orders up to each size: many have exact copies, which is the
hard case for sorting. A session reads the held-out text token by token and asks for a match after each; the reference
answers a share of the same questions, and must say the same. Sorting by divsufsort stands beside where pydivsufsort is
installed. Each sort runs in a process of its own. The last line is one JSON object.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
import tracemalloc
from array import array
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.provenance import made_by
from memdec_edge.documents import read_documents
from memdec_edge.gguf.index_file import IndexFile, Tokens, token_type, tokenizer_of, write_index
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.llama.model import Model
from memdec_edge.mixture import fallback, kernels
from memdec_edge.mixture.match import CLASSES, Matcher, class_of
from memdec_edge.mixture.rows import LONGEST, MOST

NUMPY_AT_MOST = 5_000_000  # tokens; more would take minutes


def main() -> None:
    """Measure each size, print a table, the command, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--documents", type=Path, nargs="+", required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_000_000, 20_000_000])
    parser.add_argument("--lookups", type=int, default=20_000)
    parser.add_argument("--reference", type=int, default=300)
    options = parser.parse_args()
    digest, n_vocab = tokenizer_of(options.base)
    with closing(Model(options.base, vocab_only=True)) as base:
        before = time.perf_counter()
        documents = tokenized(base, options.documents)
        seconds = time.perf_counter() - before
        held_out = tokenized(base, options.held_out)
    n_tokens = sum(map(len, documents))
    print(f"tokenizing: {n_tokens:,} tokens in {seconds:.1f} s", flush=True)
    results: dict[str, Any] = {"tokenizing_tokens_per_s": n_tokens / seconds, "sizes": []}
    for size in options.tokens:
        tokens, starts = repeated(documents, size, n_vocab)
        found: dict[str, Any] = {"tokens": len(tokens), "documents": len(starts) - 1, "sorting": {}}
        results["sizes"].append(found)
        for name, sort in SORTS.items():
            if name != "numpy" or size <= NUMPY_AT_MOST:
                found["sorting"][name] = in_process(sort, tokens, n_vocab)
                print(f"{len(tokens):,} tokens, sorted by {name}: {found['sorting'][name]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memdec-x-index.gguf"
            before = time.perf_counter()
            prefixes = sorted_prefixes(tokens, n_vocab)
            write_index(
                path, tokens=tokens, prefixes=prefixes, starts=starts, names=[str(i) for i in range(len(starts) - 1)],
                trust=[1.0] * len(CLASSES), digest=digest, n_vocab=n_vocab,
            )  # fmt: skip
            found["sort_and_write_s"] = time.perf_counter() - before
            found["bytes_per_token"] = path.stat().st_size / len(tokens)
            del tokens, prefixes
            with IndexFile.open(path) as index:
                found |= looked_up(index, held_out, options.lookups, options.reference)
        print(json.dumps(found), flush=True)
    print(made_by(), json.dumps(results), sep="")


def tokenized(base: Model, paths: list[Path]) -> list[list[int]]:
    """The documents of files as token ids."""
    tail = [base.eos] * (base.eos >= 0)
    texts = [text for path in paths for text in read_documents(path)]
    return [[*ids, *tail] for ids in base.encode(texts)]


def repeated(documents: list[list[int]], size: int, n_vocab: int) -> tuple[Tokens, npt.NDArray[np.uint64]]:
    """At least `size` tokens of documents in random order, all of them before one comes again; and where they start."""
    rng, kind = np.random.default_rng(0), token_type(n_vocab)
    ended = [np.array([*document, np.iinfo(kind).max], kind) for document in documents]
    chosen: list[Any] = []
    n_tokens = 0
    while n_tokens < size:
        for at in rng.permutation(len(ended)):
            chosen.append(ended[at])
            n_tokens += len(ended[at])
            if n_tokens >= size:
                break
    return np.concatenate(chosen), np.cumsum([0, *map(len, chosen)]).astype(np.uint64)


# --- sorting --------------------------------------------------------------------------------------------------------


def by_c(tokens: Tokens, n_vocab: int) -> None:
    sorted_prefixes(tokens, n_vocab)


def by_numpy(tokens: Tokens, n_vocab: int) -> None:
    kernels.group_prefixes, kernels.sort_prefixes = fallback.group_prefixes, fallback.sort_prefixes
    sorted_prefixes(tokens, n_vocab)


def by_divsufsort(tokens: Tokens, n_vocab: int) -> None:
    from pydivsufsort import divsufsort

    divsufsort(tokens[::-1])


SORTS: dict[str, Callable[[Tokens, int], None]] = {"c": by_c, "numpy": by_numpy, "divsufsort": by_divsufsort}


def in_process(sort: Callable[[Tokens, int], None], tokens: Tokens, n_vocab: int) -> dict[str, float] | str:
    """Seconds, and bytes for each token at the peak, beside the tokens themselves."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.npy"
        np.save(path, tokens)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(timed, (sort, path, n_vocab))


def timed(sort: Callable[[Tokens, int], None], path: Path, n_vocab: int) -> dict[str, float] | str:
    """Run one sort."""
    tokens = np.load(path)
    tracemalloc.start()  # knows of arrays; the sorts in C allocate nothing that grows with the text
    began, worked = time.perf_counter(), time.process_time()
    try:
        sort(tokens, n_vocab)
    except ImportError:
        return "not installed"
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    return {"seconds": seconds, "cpu_seconds": cpu, "bytes_per_token": tracemalloc.get_traced_memory()[1] / len(tokens)}


# --- lookups --------------------------------------------------------------------------------------------------------


def looked_up(index: IndexFile, documents: list[list[int]], count: int, of_reference: int) -> dict[str, Any]:
    """Microseconds of a match after each token of held-out text, by class of its length; the reference's beside."""
    times: list[float] = []
    classes: list[int] = []
    slow: list[float] = []
    step = max(1, count // of_reference)
    scratch = np.empty(MOST, np.int32), np.empty(MOST, np.float32)
    matcher, read = Matcher(index), [token for document in documents for token in document][:count]
    for number, token in enumerate(read):
        before = time.perf_counter_ns()
        matcher.extend((token,))
        match = matcher.match()
        times.append((time.perf_counter_ns() - before) / 1000)
        classes.append(class_of(match.length))
        if number % step == 0:
            context = array("i", read[: number + 1][-LONGEST:])
            before = time.perf_counter_ns()
            found = fallback.match(index.tokens, index.prefixes, index.n_vocab, context, *scratch)
            slow.append((time.perf_counter_ns() - before) / 1000)
            assert found == (match.length, len(match.ids), match.where)
            assert (scratch[0][: found[1]] == match.ids).all()
            assert (scratch[1][: found[1]] == match.probs).all()
    by_class = {
        str(number): float(np.median([time for time, found in zip(times, classes, strict=True) if found == number]))
        for number in sorted(set(classes))
    }
    return {"lookup_us": quantiles(times), "reference_us": quantiles(slow), "median_us_by_class": by_class,
            "share_of_class": {str(c): classes.count(c) / len(classes) for c in sorted(set(classes))}}  # fmt: skip


def quantiles(times: list[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"median": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}


if __name__ == "__main__":
    main()
