"""The contract of memdec_edge/_native.pyi in NumPy: checks of arguments around reference.py.

It differs in one point: a bad row raises NumericsError at once, since the reference knows the culprit. Knows nothing of
which implementation runs.
"""

from collections.abc import Sequence

import numpy as np

from memdec_edge.mixture import reference
from memdec_edge.mixture.fallback_match import group_prefixes, match, sort_prefixes
from memdec_edge.mixture.rows import MAX_VERIFIED, N_CLASSES, Chain, Ids, Matches, Row, Wide
from memdec_edge.mixture.weights import Mixture, SoftBayes, Vectors

__all__ = [
    "draft", "group_prefixes", "learn", "match", "mix", "row_stats", "sample", "selected", "sort_prefixes", "verify",
]  # fmt: skip

Numbers = tuple[float, float, float]
Rule = tuple[Vectors, float, float]


def selected() -> str:
    """The variant in use; there is one."""
    return "numpy"


def mix(
    base: Row, memories: Sequence[Row], vectors: Vectors, temperatures: Sequence[float], out: Row,
    matches: Matches | None, /,
) -> list[Numbers]:  # fmt: skip
    """As mixing.mix()."""
    _check_rows([base, *memories], 1)
    _check_rows([out], 1)
    mixture = _mixture(vectors, temperatures, memories)
    if any(np.may_share_memory(row, out) for row in (base, *memories)):
        raise ValueError("out overlaps an input")
    if len(out) != len(base) or not out.flags.writeable:
        raise ValueError("out must be writable and as long as the base row")
    _check_matches(matches, 1, mixture.n_indexes, len(out))
    mixed, stats = reference.mix(base, memories, mixture, matches[0] if matches else ())
    out[:] = mixed
    return list(stats)


def row_stats(row: Row, length: int, temperature: float, /) -> Numbers:
    """As mixing.row_stats()."""
    _check_rows([row], 1)
    if not 1 <= length <= len(row):
        raise ValueError(f"length {length} is not from 1 to {len(row)}")
    return reference.row_stats("the row", row[:length], temperature)


def sample(row: Row, chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row, /) -> int:
    """As sampling.sample(); -1 where no token is possible."""
    _check_rows([row], 1)
    _check_request(chain, seed, position, suppressed, scratch, len(row))
    return reference.sample(row, chain, seed, position, suppressed)


def draft(
    rows: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, out: Row, scratch: Row, /,
) -> int:  # fmt: skip
    """As sampling.draft(); -1 where no token is possible."""
    _check_rows([*rows, out], 1)
    _check_count(rows, weights)
    _check_request(chain, seed, position, suppressed, scratch, len(out))
    mixture = Mixture(tuple(weights), tuple(temperatures))
    return reference.draft(rows, mixture, chain, seed, position, suppressed, out)


def verify(
    base: Row, memories: Sequence[Row], vectors: Vectors, temperatures: Sequence[float], rule: Rule | None,
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, scratch: Row,
    matches: Matches | None, /,
) -> tuple[
    list[tuple[int, float, tuple[float, ...], tuple[float, ...]]], list[Numbers], Vectors
]:  # fmt: skip
    """As sampling.verify(); the last token is -1 where none is possible."""
    _check_rows([base, *memories], 2)
    before = _mixture(vectors, temperatures, memories)
    _check_request(chain, seed, position, suppressed, scratch, len(out))
    if any(len(memory) != len(base) for memory in memories):
        raise ValueError("the memories must have as many positions as the base")
    if base.shape[1] != len(out) or not len(base) - 1 <= len(draft) <= len(base) <= MAX_VERIFIED:
        raise ValueError(f"{len(base)} positions of {base.shape[1]} tokens, a draft of {len(draft)}")
    _check_matches(matches, len(base), before.n_indexes, len(out))
    samples, stats, mixture = reference.verify(
        base, memories, before, _rule(rule, before) if rule else None,
        chain, seed, position, suppressed, draft, out, matches,
    )  # fmt: skip
    return [sample[:4] for sample in samples], list(stats), mixture.vectors


def learn(vectors: Vectors, rule: Rule, log_probs: Wide, mixed: Wide, path: Wide, classes: Ids, /) -> Vectors:
    """As online.learn(), into `mixed` and `path`."""
    mixture = Mixture(vectors[0], (1.0,) * len(vectors[0]), vectors[1:])
    if log_probs.shape != path.shape or path.shape != (1 + len(mixture.weights) + mixture.n_indexes, len(mixed)):
        raise ValueError(f"log-probs of {log_probs.shape} and outputs of {mixed.shape}, {path.shape}")
    soft = _rule(rule, mixture)
    _check_classes(classes, mixture.n_indexes, len(mixed))
    for token, (column, matched) in enumerate(zip(log_probs.T.tolist(), classes.T.tolist(), strict=True)):
        path[:, token] = mixture.at(matched)
        mixed[token], mixture = reference.learn(mixture, soft, column, matched)
    return mixture.vectors


# What native/arguments*.c and native/module*.c check.


def _check_rows(rows: Sequence[Row], n_dims: int) -> None:
    for row in rows:
        if row.dtype != np.float32:
            raise TypeError(f"rows must hold float32, not {row.dtype}")
        if row.ndim != n_dims or row.size == 0 or not row.flags.c_contiguous:
            raise ValueError(f"rows must have {n_dims} dimensions, be contiguous and hold at least one element")


def _check_count(memories: Sequence[Row], weights: Sequence[float]) -> None:
    if len(memories) != len(weights):
        raise ValueError(f"{len(memories)} memories and {len(weights)} weights")


def _mixture(vectors: Vectors, temperatures: Sequence[float], memories: Sequence[Row]) -> Mixture:
    _check_count(memories, vectors[0])
    return Mixture(vectors[0], tuple(temperatures), tuple(vectors[1:]))


def _rule(rule: Rule, mixture: Mixture) -> SoftBayes:
    initial, eta, share = rule
    if [len(vector) for vector in initial] != [len(vector) for vector in mixture.vectors]:
        raise ValueError(f"initial weights {initial} for a mixture with {mixture.vectors}")
    return SoftBayes(initial[0], eta, share, initial[1:])


def _check_classes(classes: Ids, rows: int, columns: int) -> None:
    if classes.dtype != np.int32:
        raise TypeError(f"classes must hold int32, not {classes.dtype}")
    if classes.shape != (rows, columns) or ((classes < 0) | (classes >= N_CLASSES)).any():
        raise ValueError(f"classes of {classes.shape}, not of {(rows, columns)}, or beyond {N_CLASSES - 1}")


def _check_matches(matches: Matches | None, n_positions: int, n_indexes: int, n_vocab: int) -> None:
    if matches is None:
        if n_indexes:
            raise TypeError(f"{n_indexes} indexes have no matches")
        return
    if len(matches) != n_positions or any(len(position) != n_indexes for position in matches):
        raise ValueError(f"matches of {len(matches)} positions, not of {n_positions} of {n_indexes} indexes")
    for klass, ids, probs in (found for position in matches for found in position):
        if ids.dtype != np.int32 or probs.dtype != np.float32:
            raise TypeError("ids must hold int32, probs float32")
        if len(ids) != len(probs) or not 0 <= klass < N_CLASSES or (klass > 0) != (len(ids) > 0):
            raise ValueError("a match whose class, ids and probabilities do not fit each other")
        if not ((ids >= 0) & (ids < n_vocab) & (probs > 0) & (probs <= 1)).all():
            raise ValueError("a match with ids beyond the vocabulary, or probabilities that are none")


def _check_request(chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row, n_vocab: int) -> None:
    if scratch.dtype != np.float32 or suppressed.dtype != np.int32:
        raise TypeError("scratch must hold float32, suppressed int32")
    if len(scratch) < 2 * n_vocab:
        raise ValueError("scratch must hold 2 floats for each token")
    if not (0 <= seed < 2**32 and 0 <= position < 2**64 and chain.temperature >= 0) or np.isnan(chain[1:]).any():
        raise ValueError("a seed, a position or a number of the chain is out of range")
