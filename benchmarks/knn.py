"""Neighbours: exact search against the machine's own matrix product, an index against exact search.

    python benchmarks/knn.py [--keys FOLDER [--teacher MODEL --text FILE ...]] [--n 1000000] [--dim 576] [--index ivfpq]

Keys are .npy shards of float16 in FOLDER; where the folder is not there, the final hidden states of a teacher over
texts are written to it first (minutes for each 100,000). Without --keys they are synthetic: points on a
24-dimensional surface, in clusters, with noise. Queries are keys themselves, half from a third and half from four
fifths of the way through the datastore, each skipping itself, as when a cache is made. Medians over repetitions in
which all ways take turns. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from memdec_edge.documents import read_documents
from memdec_edge.train.corpus import pack
from memdec_edge.train.knn.approximate import Index, build, share_of_mass
from memdec_edge.train.knn.exact import ON_CPU, Exact, Neighbours, gather
from memdec_edge.train.models import cast_parameters, load_source, work_dtype

SHARD, BLOCK = 32768, 512  # positions
LATENT = 24
MASS_AT = (1, 4, 8, 16)  # tau is the median distance divided by these; a cache's `auto` chooses among such
PRODUCTS = 20  # timed together
INDEX_QUERIES = 2  # for each of exact search
EXACT = ("exact float32", "exact bf16")
TYPES = (torch.float32, torch.bfloat16)


def synthetic(n: int, d: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    surface = rng.standard_normal((LATENT, d)).astype(np.float32)
    centres = 2 * rng.standard_normal((n // 500 + 1, LATENT)).astype(np.float32)
    shards = []
    for start in range(0, n, SHARD):
        size = min(SHARD, n - start)
        latent = centres[rng.integers(0, len(centres), size)] + rng.standard_normal((size, LATENT)).astype(np.float32)
        noise = 0.5 * rng.standard_normal((size, d)).astype(np.float32)
        shards.append((latent @ surface + noise).astype(np.float16))
    return shards


@torch.inference_mode()
def write_hidden_states(folder: Path, teacher: Path, texts: list[Path], n: int) -> None:
    """Final hidden states over an equal share of tokens from each text, in shards; goes on where it was stopped."""
    source, share = load_source(teacher), -(-n // len(texts))
    packed = []
    for text in texts:
        documents = list(read_documents(text))
        order = np.random.default_rng(0).permutation(len(documents))
        packed.append(pack([documents[i] for i in order], source.encode, source.bos, source.eos, share))
    tokens = torch.from_numpy(np.concatenate(packed).astype(np.int64))
    cast_parameters(source.model, work_dtype("cpu"))
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(torch.split(tokens[: len(tokens) // BLOCK * BLOCK], SHARD)):
        path = folder / f"{number:05}.npy"
        if path.exists():
            continue
        batches = torch.split(part.view(-1, BLOCK), 8)
        states = [source.model.base_model(input_ids=ids, use_cache=False).last_hidden_state for ids in batches]
        np.save(path.with_suffix(".part.npy"), torch.cat(states).flatten(0, 1).half().numpy())
        path.with_suffix(".part.npy").rename(path)
        print(f"{path.name} of {len(tokens) // SHARD}", flush=True)


def search(way: Exact | Index, keys: list[np.ndarray], options: argparse.Namespace, count: int) -> Neighbours:
    """Neighbours of `count` keys at two places of the datastore."""
    n, each = sum(map(len, keys)), count // 2
    found = []
    for place in (n // 3, n * 4 // 5):
        queries = torch.from_numpy(gather(keys, np.arange(place, place + each)))
        found.append(way.search(queries, options.k, place))
    return Neighbours(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def first_of_each_place(found: Neighbours, queries: int) -> Neighbours:
    """Of what the index found, the queries that exact search had."""
    distances, indices = (part.view(2, len(part) // 2, -1)[:, : queries // 2].flatten(0, 1) for part in found)
    return Neighbours(distances, indices)


def measure(keys: list[np.ndarray], options: argparse.Namespace) -> dict[str, object]:
    """Milliseconds a query and rates; prints them as well."""
    n, d = sum(map(len, keys)), keys[0].shape[1]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        build(options.index, keys, Path(folder) / "index")
        built = time.perf_counter() - begin
        size = (Path(folder) / "index").stat().st_size
        index = Index(Path(folder) / "index", keys)

    def exactly(dtype: torch.dtype) -> Neighbours:
        index.exact.dtype = dtype
        return search(index.exact, keys, options, options.queries)

    tiles = {
        dtype: (torch.ones(ON_CPU.rows, d, dtype=dtype), torch.ones(ON_CPU.keys, d, dtype=dtype).T) for dtype in TYPES
    }
    works: dict[str, Callable[[], object]] = {
        "sgemm": lambda: [torch.mm(*tiles[torch.float32]) for _ in range(PRODUCTS)],
        "exact float32": lambda: exactly(torch.float32),
        "bf16 product": lambda: [torch.mm(*tiles[torch.bfloat16]) for _ in range(PRODUCTS)],
        "exact bf16": lambda: exactly(torch.bfloat16),
        options.index: lambda: search(index, keys, options, INDEX_QUERIES * options.queries),
    }
    if work_dtype("cpu") != torch.bfloat16:  # a product that the hardware does not have
        del works["bf16 product"], works["exact bf16"]
    search(index.exact, keys, options, 2)  # the first call of a library pays for its start
    seconds: dict[str, list[float]] = {name: [] for name in works}
    results = {}
    for _ in range(options.repeat):
        for name, work in works.items():
            begin = time.perf_counter()
            results[name] = work()
            seconds[name].append(time.perf_counter() - begin)
    times = {name: median(values) for name, values in seconds.items()}
    products = dict.fromkeys(times, PRODUCTS * ON_CPU.rows * ON_CPU.keys) | dict.fromkeys(EXACT, n * options.queries)
    rates = {name: 2e-9 * d * products[name] / times[name] for name in times if name != options.index}
    each = {name: 1e3 * times[name] / options.queries for name in times if name in EXACT}
    each[options.index] = 1e3 * times[options.index] / (INDEX_QUERIES * options.queries)
    truth, found = results["exact float32"], results[options.index]
    assert isinstance(truth, Neighbours)
    assert isinstance(found, Neighbours)
    found = first_of_each_place(found, options.queries)
    middle = float(truth.distances.median())
    mass = {f"median/{part}": share_of_mass(truth, found, middle / part) for part in MASS_AT}

    print(f"{n:,} keys of {d} dimensions, {options.queries:,} queries, k {options.k}, {options.keys or 'synthetic'}")
    for name, rate in rates.items():
        query = f"{each[name]:8.2f} ms a query" if name in each else ""
        print(f"  {name:14} {rate:6.0f} GFLOP/s {rate / rates['sgemm']:6.2f} of sgemm {query}")
    faster = ", ".join(f"{each[name] / each[options.index]:.1f}x {name}" for name in each if name != options.index)
    print(
        f"  {options.index:14} {each[options.index]:.2f} ms a query: {faster}; "
        f"built in {built:.0f} s, {size / n:.0f} bytes a key"
    )
    recall = share_of_mass(truth, found, float("inf"))
    print(f"  {recall:.3f} of the neighbours, kNN mass at tau = " + ", ".join(f"{t} {m:.3f}" for t, m in mass.items()))
    facts: dict[str, object] = {
        "n": n,
        "d": d,
        "keys": str(options.keys or "synthetic"),
        "seconds_build": round(built, 1),
    }
    facts["gflops"] = {name: round(rate, 1) for name, rate in rates.items()}
    facts["of_sgemm"] = {name: round(rate / rates["sgemm"], 3) for name, rate in rates.items()}
    facts["ms_a_query"] = {name: round(value, 3) for name, value in each.items()}
    facts["mass"] = {tau: round(value, 4) for tau, value in mass.items()}
    if isinstance(half := results.get("exact bf16"), Neighbours):
        facts["bf16_recall"] = round(share_of_mass(truth, half, float("inf")), 5)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=Path)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--text", type=Path, action="append", default=[])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=576)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--index", choices=("ivfpq", "hnsw"), default="ivfpq")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if options.keys is None:
        keys = synthetic(options.n, options.dim)
    else:
        if options.teacher:
            write_hidden_states(options.keys, options.teacher, options.text, options.n)
        keys, left = [], options.n
        for path in sorted(options.keys.glob("*.npy")):
            keys.append(np.load(path, mmap_mode="r")[:left])
            left -= len(keys[-1])
        keys = [shard for shard in keys if len(shard)]
    print(json.dumps({"benchmark": "knn", **measure(keys, options)}))


if __name__ == "__main__":
    main()
