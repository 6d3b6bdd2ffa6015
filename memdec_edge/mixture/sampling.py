"""The seeded sample of the next token, one rule for drafting and for verification.

    sample = argmax over the kept tokens of  logit / temperature + Gumbel(seed, position, token)

is a draw from softmax(logits / temperature) of the kept tokens (the Gumbel-max trick); at temperature 0 it is the
largest logit; the lowest id wins a tie. Kept is what llama.cpp's samplers leave in its order top-k, top-p, min-p,
temperature: a prefix of the tokens by falling logit, equal ones by rising id. Seed, position and token are all that
the noise depends on, so a draft that is made from a similar row meets the same noise and is likely the same sample, and
what is sampled from the mixture never depends on what was drafted.

`sample`, `draft` and `verify` run in C (native/sample.c) or, where the extension cannot be imported, on the float64
reference in the second half of this file. Knows nothing of models, grammars and penalties.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError
from memdec_edge.mixture import mixing
from memdec_edge.mixture.mixing import Row, RowStats

with suppress(ImportError):  # mixing.py knows the reason
    from memdec_edge import _native

Ids = npt.NDArray[np.int32]
MAX_VERIFIED = 17  # rows of one `verify`: a draft of 16 tokens and the sample after it; native/sample.h has the same
GREEDY = 1e-30  # temperatures below it are 0: logit / temperature stays finite; native/sample.h has the same
NO_TOKEN = "no token is possible: every one that is left is suppressed"


class Chain(NamedTuple):
    """Truncations and temperature, with llama.cpp's meaning."""

    top_k: int  # tokens; <= 0: off
    top_p: float  # share of the probability that top-k left; >= 1: off
    min_p: float  # share of the largest probability; <= 0: off
    temperature: float  # >= 0; 0: greedy


def scratch(n_vocab: int) -> Row:
    """The working memory of the functions below for rows of at most `n_vocab` tokens. One per thread."""
    return np.empty(2 * n_vocab, np.float32)


def sample(row: Row, chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row) -> int:
    """The next token id.

    row: logits, float32 [n]; seed: 0 to 2^32 - 1; position: 0 to 2^64 - 1; suppressed: int32 [a few], ids whose logits
    count as -inf before everything else, those beyond the row are ignored; scratch: of scratch(n) or more.

    Raises NumericsError where no token is possible, for a logit of +inf and, where top-p needs the whole row, for NaN;
    otherwise NaN and -inf are never sampled. TypeError and ValueError for arguments of another kind.
    """
    if mixing._missing:
        _check_arguments([row], 1, len(row), chain, seed, position, suppressed, scratch)
        return _sampled(reference(row, chain, seed, position, suppressed))
    try:
        return _sampled(_native.sample(row, chain, seed, position, suppressed, scratch))
    except FloatingPointError:
        kept(row, chain, suppressed)  # names the culprit
        raise


def draft(
    rows: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, out: Row, scratch: Row,
) -> int:  # fmt: skip
    """The sample from the mixture of the memories alone, each at its temperature, the weights scaled to sum to 1.

    rows: at least one, float32 [any length]; weights: 0 to 1, sum at most 1, equal shares if all are 0; out: float32
    [n_vocab], overwritten where rows must be mixed. Ids beyond n_vocab are not sampled. The rest and errors as in
    `sample`; a mixed row is checked for NaN and +inf in any case.
    """
    if mixing._missing:
        _check_arguments([*rows, out], 1, len(out), chain, seed, position, suppressed, scratch)
        return _sampled(reference_draft(rows, weights, temperatures, chain, seed, position, suppressed, out))
    try:
        return _sampled(_native.draft(rows, weights, temperatures, chain, seed, position, suppressed, out, scratch))
    except FloatingPointError:
        reference_draft(rows, weights, temperatures, chain, seed, position, suppressed, out)  # names the culprit
        raise


def verify(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, scratch: Row,
) -> tuple[list[tuple[int, float]], list[RowStats]]:  # fmt: skip
    """Mix and sample row after row, until a sample is not the drafted token or the rows end.

    base: float32 [n, n_vocab], row j of position + j, n at most MAX_VERIFIED; memories: float32 [n, any length] each,
    mixed as by `mix`, maybe none; draft: n - 1 or n token ids, draft[j] for the sample from row j; out: float32
    [n_vocab], holds the last mixed row afterwards. The rest as in `sample`.

    Returns a pair (token, log-probability) for each row that was mixed, and the statistics of the last of them as
    `mix` does. The log-probability is that of the mixture in nats; chain and `suppressed` do not change it.
    Raises NumericsError as `mix` and `sample` do.
    """
    if mixing._missing:
        _check_arguments([base, *memories], 2, len(out), chain, seed, position, suppressed, scratch)
        if base.shape[1] != len(out) or not len(base) - 1 <= len(draft) <= len(base) <= MAX_VERIFIED:
            raise ValueError(f"{len(base)} positions of {base.shape[1]} tokens, a draft of {len(draft)}")
        pairs, stats = reference_verify(
            base, memories, weights, temperatures, chain, seed, position, suppressed, draft, out
        )
    else:
        try:
            pairs, numbers = _native.verify(
                base, memories, weights, temperatures, chain, seed, position, suppressed, draft, out, scratch
            )
        except FloatingPointError:
            reference_verify(base, memories, weights, temperatures, chain, seed, position, suppressed, draft, out)
            raise
        stats = [RowStats(*row) for row in numbers]
    _sampled(pairs[-1][0])
    return pairs, stats


def _sampled(token: int) -> int:
    if token < 0:
        raise NumericsError(NO_TOKEN)
    return token


def _check_arguments(
    rows: Sequence[Row], n_dims: int, n_vocab: int,
    chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row,
) -> None:  # fmt: skip
    """What native/module_sample.c checks."""
    if any(row.dtype != np.float32 for row in (*rows, scratch)) or suppressed.dtype != np.int32:
        raise TypeError("rows and scratch must hold float32, suppressed int32")
    if any(row.ndim != n_dims or row.size == 0 or not row.flags.c_contiguous for row in rows):
        raise ValueError(f"rows must have {n_dims} dimensions, be contiguous and hold at least one element")
    if len({len(row) for row in rows}) > 1 and n_dims == 2:
        raise ValueError("the memories must have as many positions as the base")
    if len(scratch) < 2 * n_vocab:
        raise ValueError("scratch must hold 2 floats for each token")
    if not (0 <= seed < 2**32 and 0 <= position < 2**64 and chain.temperature >= 0) or np.isnan(chain[1:]).any():
        raise ValueError("a seed, a position or a number of the chain is out of range")


# --- what the above compute, in NumPy -------------------------------------------------------------------------------


def reference(row: Row, chain: Chain, seed: int, position: int, suppressed: Ids) -> int:
    """`sample` in float64, -1 where no token is possible."""
    ids = kept(row, chain, suppressed)
    if len(ids) == 0 or chain.temperature < GREEDY:
        return int(ids[0]) if len(ids) else -1
    scores = row[ids].astype(np.float64) / chain.temperature + gumbel(seed, position, ids)
    return int(ids[scores == scores.max()].min())


def kept(row: Row, chain: Chain, suppressed: Ids) -> npt.NDArray[np.int64]:
    """The ids that the truncations keep, in order: by falling logit, equal ones by rising id.

    Raises NumericsError for +inf, and for NaN where top-p looks at the whole row.
    """
    possible = row > -np.inf  # NaN is not
    possible[suppressed[(suppressed >= 0) & (suppressed < len(row))]] = False
    ids = np.flatnonzero(possible)
    ids = ids[np.argsort(-row[ids], kind="stable")]
    _check(row, ids, chain)
    if chain.top_k > 0:
        ids = ids[: chain.top_k]
    logits = row[ids].astype(np.float64)
    if chain.top_p < 1 and len(ids):
        cumulative = np.cumsum(np.exp(logits - logits[0]))
        ids = ids[: int(np.searchsorted(cumulative, chain.top_p * cumulative[-1])) + 1]
    if chain.min_p > 0 and len(ids):
        ids = ids[: max(1, int(np.sum(logits[: len(ids)] >= logits[0] + np.log(chain.min_p))))]
    return ids


def _check(row: Row, ids: npt.NDArray[np.int64], chain: Chain) -> None:
    """Raise for what native/sample.c finds on its way."""
    whole = not 0 < chain.top_k < len(row) and 0 < chain.top_p < 1 and chain.temperature >= GREEDY
    bad = np.flatnonzero(np.isnan(row))[:1] if whole and len(ids) else ids[:0]
    if len(ids) and row[ids[0]] > mixing.LARGEST:
        bad = ids[:1]
    if len(bad):
        raise NumericsError(
            f"the row: the logit of token {bad[0]} is {row[bad[0]]:g}, and no probabilities follow from that; "
            "try another quantisation of the model, or --gpu-layers 0"
        )


def gumbel(seed: int, position: int, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise of each of `ids` at `position`: -log(-log(u)), u = (32 random bits + 1/2) / 2^32."""
    noise: npt.NDArray[np.float64] = -np.log(-np.log((noise_bits(seed, position, ids) + 0.5) / 2**32))
    return noise


def noise_bits(seed: int, position: int, ids: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """The 32 random bits of each of `ids`, the same in C (md_noise of native/kernels.h) bit for bit."""
    key = _mix(_mix((seed + INCREMENT) % 2**64) ^ position % 2**64)
    first, second = divmod(_mix((key + INCREMENT) % 2**64), 2**32)
    x = np.asarray(ids).astype(np.uint32) ^ np.uint32(first)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x5FEF8AED)
    x = (x ^ x >> np.uint32(14) ^ np.uint32(second)) * np.uint32(0xFE999E65)
    return x ^ x >> np.uint32(16)


INCREMENT = 0x9E3779B97F4A7C15  # of splitmix64, 2^64 / golden ratio: 0 is not mixed to 0


def _mix(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def reference_draft(
    rows: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, out: Row,
) -> int:  # fmt: skip
    """`draft` in float64."""
    if len(rows) == 1 and temperatures[0] == 1:
        return reference(rows[0][: len(out)], chain, seed, position, suppressed)
    total = sum(weights)
    shares = [weight / total if total > 0 else 1 / len(weights) for weight in weights]
    names = [f"memory {number}" for number in range(1, len(rows) + 1)]
    out[:] = mixing.mixture(names, rows, shares, temperatures, len(out))[0]
    return reference(out, chain, seed, position, suppressed)


def reference_verify(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row,
) -> tuple[list[tuple[int, float]], list[RowStats]]:  # fmt: skip
    """`verify` in float64; the last token is -1 where none is possible."""
    pairs: list[tuple[int, float]] = []
    shares = [max(0.0, 1.0 - sum(weights)), *weights]
    for j, row in enumerate(base):
        mixed, stats = mixing.reference(row, [memory[j] for memory in memories], weights, temperatures)
        out[:] = mixed
        token = reference(out, chain, seed, position + j, suppressed)
        offset = sum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=True))
        pairs.append((token, float(mixed[token] - offset) if token >= 0 else -np.inf))
        if token < 0 or j >= len(draft) or token != draft[j]:
            break
    return pairs, stats
