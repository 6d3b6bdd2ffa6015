"""The contract of memdec_edge/_native.pyi in NumPy: checks of arguments around reference.py.

It differs in one point: a bad row raises NumericsError at once, since the reference knows the culprit. Knows nothing of
which implementation runs.
"""

from collections.abc import Sequence

import numpy as np

from memdec_edge.mixture import reference
from memdec_edge.mixture.rows import MAX_VERIFIED, Chain, Ids, Row, Wide
from memdec_edge.mixture.weights import Mixture, SoftBayes

Numbers = tuple[float, float, float]
Rule = tuple[Sequence[float], float, float]


def selected() -> str:
    """The variant in use; there is one."""
    return "numpy"


def mix(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float], out: Row, /
) -> list[Numbers]:
    """As mixing.mix()."""
    _check_rows([base, *memories], 1)
    _check_rows([out], 1)
    _check_count(memories, weights)
    if any(np.may_share_memory(row, out) for row in (base, *memories)):
        raise ValueError("out overlaps an input")
    if len(out) != len(base) or not out.flags.writeable:
        raise ValueError("out must be writable and as long as the base row")
    mixed, stats = reference.mix(base, memories, Mixture(tuple(weights), tuple(temperatures)))
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
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float], rule: Rule | None,
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, scratch: Row, /,
) -> tuple[
    list[tuple[int, float, tuple[float, ...], tuple[float, ...]]], list[Numbers], tuple[float, ...]
]:  # fmt: skip
    """As sampling.verify(); the last token is -1 where none is possible."""
    _check_rows([base, *memories], 2)
    _check_count(memories, weights)
    _check_request(chain, seed, position, suppressed, scratch, len(out))
    if any(len(memory) != len(base) for memory in memories):
        raise ValueError("the memories must have as many positions as the base")
    if base.shape[1] != len(out) or not len(base) - 1 <= len(draft) <= len(base) <= MAX_VERIFIED:
        raise ValueError(f"{len(base)} positions of {base.shape[1]} tokens, a draft of {len(draft)}")
    samples, stats, mixture = reference.verify(
        base, memories, Mixture(tuple(weights), tuple(temperatures)), _rule(rule, weights) if rule else None,
        chain, seed, position, suppressed, draft, out,
    )  # fmt: skip
    return [sample[:4] for sample in samples], list(stats), mixture.weights


def learn(weights: Sequence[float], rule: Rule, log_probs: Wide, mixed: Wide, path: Wide, /) -> tuple[float, ...]:
    """As online.learn(), into `mixed` and `path`."""
    if log_probs.shape != path.shape or path.shape != (1 + len(weights), len(mixed)):
        raise ValueError(f"log-probs of {log_probs.shape} and outputs of {mixed.shape}, {path.shape}")
    soft, mixture = _rule(rule, weights), Mixture(tuple(weights), (1.0,) * len(weights))
    for token, column in enumerate(log_probs.T.tolist()):
        path[:, token] = mixture.shares
        mixed[token], mixture = reference.learn(mixture, soft, column)
    return mixture.weights


# What native/arguments.c and native/module*.c check.


def _check_rows(rows: Sequence[Row], n_dims: int) -> None:
    for row in rows:
        if row.dtype != np.float32:
            raise TypeError(f"rows must hold float32, not {row.dtype}")
        if row.ndim != n_dims or row.size == 0 or not row.flags.c_contiguous:
            raise ValueError(f"rows must have {n_dims} dimensions, be contiguous and hold at least one element")


def _check_count(memories: Sequence[Row], weights: Sequence[float]) -> None:
    if len(memories) != len(weights):
        raise ValueError(f"{len(memories)} memories and {len(weights)} weights")


def _rule(rule: Rule, weights: Sequence[float]) -> SoftBayes:
    initial, eta, share = rule
    if len(initial) != len(weights):
        raise ValueError(f"{len(initial)} initial weights for {len(weights)} memories")
    return SoftBayes(tuple(initial), eta, share)


def _check_request(chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row, n_vocab: int) -> None:
    if scratch.dtype != np.float32 or suppressed.dtype != np.int32:
        raise TypeError("scratch must hold float32, suppressed int32")
    if len(scratch) < 2 * n_vocab:
        raise ValueError("scratch must hold 2 floats for each token")
    if not (0 <= seed < 2**32 and 0 <= position < 2**64 and chain.temperature >= 0) or np.isnan(chain[1:]).any():
        raise ValueError("a seed, a position or a number of the chain is out of range")
