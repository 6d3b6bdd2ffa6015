"""The retriever of a cache: what finds its neighbours, its temperature and gate, its worth on validation text.

Knows nothing of how a teacher makes keys, nor of what targets are made of neighbours.
"""

import sys
from dataclasses import asdict

import numpy as np
import torch

from memdec_edge.files import sha256

from ..targets import learned_only
from ..teacher import Reading, gather_blocks, spread_blocks
from . import approximate
from .cache import INDEX, VALIDATION, Cache
from .exact import Exact
from .gate import Fit, Gate, fit_gate

VALIDATION_POSITIONS = 20_000  # on which temperature and gate are fitted
RECALL_QUERIES = 200  # validation positions on which an index is compared with exact search
WORTH_SAYING = 1.02  # a given temperature is remarked on from this ratio of its perplexity to the best one's
GATE = "trust"  # the gate's key in the manifest, as caches on disk have it
FITTED = (GATE, "weight", "teacher_perplexity", "knn_perplexity", "nearest_distance", "kth_distance", "recall")


def build_index(cache: Cache, device: torch.device) -> None:
    """Decide how neighbours are found, build the index if this needs one, and record both in the manifest."""
    stage, options = cache.stage, cache.options
    if "search" in stage.manifest:
        return
    keys = cache.datastore()
    search = approximate.choose(options.search, keys.n, device.type)
    files = stage.manifest["files"]
    if search != "exact":
        path = stage.folder / INDEX
        stage.claim(INDEX)
        approximate.build(search, keys, path)
        files = {**files, INDEX: sha256(path)}
    stage.record(search=search, files=files)


def open_searcher(cache: Cache, device: torch.device) -> Exact | approximate.Index:
    """What finds neighbours: searcher.search(queries, k, first_position=None) -> distances, indices."""
    keys = cache.datastore()
    if cache.stage.manifest["search"] == "exact":
        return Exact(keys, device)
    return approximate.Index(cache.stage.check(INDEX), keys)


def stored_gate(cache: Cache) -> Gate:
    """The gate that fit_retriever() recorded."""
    return Gate(**cache.stage.manifest[GATE])


def unread_validation(cache: Cache) -> list[int]:
    """The validation blocks on which temperature and gate are fitted; none once their neighbours are found."""
    if "tau" in cache.stage.manifest or (cache.stage.folder / VALIDATION).exists():
        return []
    positions = min(VALIDATION_POSITIONS, len(cache.tokens("train")))  # no more work than the datastore itself
    return spread_blocks(cache.tokens("valid"), cache.options.block, positions)


def fit_retriever(cache: Cache, device: torch.device, validation: Reading | None) -> None:
    """Fit temperature and gate on validation text and record them; without such text the given temperature alone.

    validation  what the teacher makes of unread_validation(); None where there are no such blocks
    """
    stage, options = cache.stage, cache.options
    if "tau" in stage.manifest:
        return
    if validation is not None:
        _search_validation(cache, device, validation)
    if not (stage.folder / VALIDATION).exists():
        stage.record(tau=options.knn_temp, **dict.fromkeys(FITTED))
        return
    found = stage.read(VALIDATION)
    distances, teacher = found["distances"], found["teacher"]
    hits = found["values"] == found["labels"][:, None]
    best = used = fit_gate(distances, hits, teacher, None)
    if options.knn_temp is not None:
        used = fit_gate(distances, hits, teacher, options.knn_temp)
        _compare(used, best)
    exact = stage.manifest["search"] == "exact"
    stage.record(
        **{GATE: asdict(used.gate)},
        tau=used.tau,
        weight=used.weight,
        teacher_perplexity=used.teacher,
        knn_perplexity=used.knn,
        nearest_distance=float(np.median(distances[:, 0])),
        kth_distance=float(np.median(distances[:, -1])),
        recall=None if exact else _recall(cache, found["queries"], used.tau, device),
    )


def _compare(used: Fit, best: Fit) -> None:
    """Say on stderr that another temperature than the given one does clearly better."""
    if used.knn > WORTH_SAYING * best.knn:
        print(
            f"at the given temperature of {used.tau:g} the retriever's validation perplexity is {used.knn:.2f}; "
            f"auto would choose {best.tau:g} and reach {best.knn:.2f}",
            file=sys.stderr,
        )


def _search_validation(cache: Cache, device: torch.device, read: Reading) -> None:
    """Write the shard VALIDATION: neighbours of validation positions, and the teacher's own log-probs there."""
    valid, block = cache.tokens("valid"), cache.options.block
    found = open_searcher(cache, device).search(torch.from_numpy(read.keys).to(device), cache.k)
    near, whose = (part.cpu().numpy() for part in found)
    distances, indices = learned_only(near, whose, cache.counted())
    labels = gather_blocks(valid, unread_validation(cache), block)[:, 1:].reshape(-1).numpy().astype(np.uint32)
    arrays = {
        "distances": distances,
        "values": cache.tokens("train")[indices + 1],
        "labels": labels,
        "teacher": read.logprobs,
        "queries": read.keys[:: max(1, len(read.keys) // RECALL_QUERIES)],
    }
    cache.stage.write(VALIDATION, arrays)


def _recall(cache: Cache, queries: np.ndarray, tau: float, device: torch.device) -> float:
    """Share of the exact kNN mass that the index finds, 0 to 1; said on stderr."""
    rows = torch.from_numpy(queries).to(device)
    k = cache.k
    exact = Exact(cache.datastore(), device).search(rows, k)
    share = approximate.share_of_mass(exact, open_searcher(cache, device).search(rows, k), tau)
    kind = cache.stage.manifest["search"]
    print(f"{kind} finds {share:.1%} of the exact kNN mass of {len(rows)} validation positions", file=sys.stderr)
    return share
