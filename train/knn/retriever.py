"""The retriever of a cache: how it finds neighbours, how sharply it weighs them, what it is worth on validation text.

Knows nothing of how keys come about and what is made of the neighbours.
"""

import sys
from dataclasses import asdict

import numpy as np
import torch

from memdec_edge.files import sha256
from memdec_edge.progress import progress

from ..teacher import gather_blocks, n_blocks, open_teacher, spread_blocks
from . import approximate
from .cache import INDEX, VALIDATION, Cache
from .exact import Exact
from .gate import fit_trust

VALIDATION_POSITIONS = 20_000  # on which tau and trust are fitted
RECALL_QUERIES = 200  # validation positions on which an index is compared with exact search
WORTH_SAYING = 1.02  # a temperature of the user's that is so much worse than the best one


def build_index(cache: Cache, device: torch.device) -> None:
    """Decide how neighbours are found, and make the index that this needs."""
    stage, options = cache.stage, cache.options
    if "search" in stage.facts:
        return
    keys = cache.datastore()
    search = approximate.choose(sum(map(len, keys)), device.type) if options.search == "auto" else options.search
    files = stage.facts["files"]
    if search != "exact":
        path = stage.folder / INDEX
        approximate.build(search, keys, path)
        files = {**files, INDEX: sha256(path)}
    stage.record(search=search, files=files)


def open_searcher(cache: Cache, device: torch.device) -> Exact | approximate.Index:
    """What finds neighbours: searcher.search(queries, k, first_position=None) -> distances, indices."""
    keys = cache.datastore()
    if cache.stage.facts["search"] == "exact":
        return Exact(keys, device)
    return approximate.Index(cache.stage.check(INDEX), keys)


def judge(cache: Cache, device: torch.device) -> None:
    """Fit tau and trust on validation text; without any there is no trust, and tau is what the user says."""
    stage, options, valid = cache.stage, cache.options, cache.tokens("valid")
    if "tau" in stage.facts:
        return
    if n_blocks(valid, options.block) == 0:
        nothing = (
            "trust",
            "weight",
            "teacher_perplexity",
            "knn_perplexity",
            "nearest_distance",
            "kth_distance",
            "recall",
        )
        stage.record(tau=options.knn_temp, **dict.fromkeys(nothing))
        return
    if not (stage.folder / VALIDATION).exists():
        _search_validation(cache, device)
    found = stage.read(VALIDATION)
    distances, teacher = found["distances"], found["teacher"]
    hits = found["values"] == found["labels"][:, None]
    best = used = fit_trust(distances, hits, teacher, None)
    if options.knn_temp is not None:
        used = fit_trust(distances, hits, teacher, options.knn_temp)
    if used.knn > WORTH_SAYING * best.knn:
        print(
            f"--knn-temp {used.tau:g} gives the retriever a validation perplexity of {used.knn:.2f}; "
            f"{best.tau:g}, which --knn-temp auto would choose, {best.knn:.2f}",
            file=sys.stderr,
        )
    recall = None if stage.facts["search"] == "exact" else _recall(cache, found["queries"], used.tau, device)
    nearest, kth = (float(np.median(distances[:, i])) for i in (0, -1))
    stage.record(
        tau=used.tau,
        trust=asdict(used.trust),
        weight=used.weight,
        teacher_perplexity=used.teacher,
        knn_perplexity=used.knn,
        nearest_distance=nearest,
        kth_distance=kth,
        recall=recall,
    )


def _search_validation(cache: Cache, device: torch.device) -> None:
    """Neighbours of validation positions, and the teacher's own log-probs there."""
    options, valid = cache.options, cache.tokens("valid")
    positions = min(VALIDATION_POSITIONS, len(cache.tokens("train")))  # no more work than the datastore itself
    blocks = spread_blocks(valid, options.block, positions)
    teacher = open_teacher(cache.teacher, options.key, device)
    with progress("validation keys", len(blocks) * options.block) as done:
        found = teacher.read(valid, blocks, options.block, options.batch, done, scored=True)
    keys = found.keys
    distances, indices = open_searcher(cache, device).search(torch.from_numpy(keys).to(device), options.k)
    labels = gather_blocks(valid, blocks, options.block)[:, 1:].reshape(-1).numpy().astype(np.uint32)
    arrays = {
        "distances": distances.cpu().numpy(),
        "values": cache.tokens("train")[indices.cpu().numpy() + 1],
        "labels": labels,
        "teacher": found.logprobs,
        "queries": keys[:: max(1, len(keys) // RECALL_QUERIES)],
    }
    cache.stage.write(VALIDATION, arrays)


def _recall(cache: Cache, queries: np.ndarray, tau: float, device: torch.device) -> float:
    """Share of the exact kNN mass that the index finds; said to the user."""
    rows = torch.from_numpy(queries).to(device)
    k = cache.options.k
    exact = Exact(cache.datastore(), device).search(rows, k)
    share = approximate.share_of_mass(exact, open_searcher(cache, device).search(rows, k), tau)
    kind = cache.stage.facts["search"]
    print(f"{kind} finds {share:.1%} of the exact kNN mass of {len(rows)} validation positions", file=sys.stderr)
    return share
