"""What this shelf computes, in float64: the specification. Pure functions, except that `draft` and `verify` fill `out`.

The formulas stand at the head of mixing.py and sampling.py and in weights.SoftBayes. Every function that meets a bad
number raises a NumericsError that names where it is. Knows nothing of the other implementations.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError
from memdec_edge.mixture.rows import GREEDY, LARGEST, Chain, Found, Ids, Matches, Row, RowStats, Sampled, Wide
from memdec_edge.mixture.weights import LEAST_WEIGHT, Mixture, SoftBayes, lift, shares_of

# --- the mixture ----------------------------------------------------------------------------------------------------


def row_stats(name: str, row: Row, temperature: float = 1.0) -> RowStats:
    """Statistics of softmax(row / temperature); `name` is for the error."""
    scaled = row.astype(np.float64) / temperature
    high = float(scaled.max())  # NaN if there is one
    if not abs(high) <= LARGEST:
        raise _bad_logit(name, scaled, int(np.argmax(scaled)))  # the first NaN, or the largest
    distance = scaled - high
    share = np.exp(distance)
    total = float(share.sum())
    weighted = float(np.multiply(share, distance, out=np.zeros_like(share), where=share > 0).sum())
    return RowStats(high, high + math.log(total), max(0.0, math.log(total) - weighted / total))


def _bad_logit(name: str, row: npt.NDArray[np.floating], token: int) -> NumericsError:
    return NumericsError(
        f"{name}: the logit of token {token} is {row[token]:g}, and no probabilities follow from that; "
        "try another quantisation of the model, or no GPU layers"
    )


def mix(
    base: Row, memories: Sequence[Row], mixture: Mixture, found: Sequence[Found] = ()
) -> tuple[Wide, list[RowStats]]:
    """The mixed row, [n_vocab], and the statistics of each row of logits, the base's first; found: of each index."""
    names, rows = ["base", *_names(memories)], [base, *memories]
    shares = mixture.at([one.klass for one in found])
    sparse = [(share, one) for share, one in zip(shares[len(rows) :], found, strict=True) if share > 0]
    return _mix(names, rows, shares[: len(rows)], [1.0, *mixture.temperatures], len(base), sparse)


def _names(memories: Sequence[Row]) -> list[str]:
    return [f"memory {number}" for number in range(1, len(memories) + 1)]


def _mix(
    names: Sequence[str], rows: Sequence[Row], shares: Sequence[float], temperatures: Sequence[float], n_vocab: int,
    sparse: Sequence[tuple[float, Found]] = (),
) -> tuple[Wide, list[RowStats]]:  # fmt: skip
    """As `mix`; shares of rows and of what indexes found sum to 1. An index's logsumexp counts as the first row's."""
    parts = [row[:n_vocab] for row in rows]
    stats = [row_stats(name, row, t) for name, row, t in zip(names, parts, temperatures, strict=True)]
    mixed = np.full(n_vocab, -np.inf)
    offset = math.fsum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=True))
    offset += math.fsum(share for share, _ in sparse) * stats[0].logsumexp
    active = [entry for entry in zip(shares, parts, temperatures, stats, strict=True) if entry[0] > 0]
    for share, row, temperature, stat in active:
        scaled, part = row.astype(np.float64) / temperature, mixed[: len(row)]
        if len(active) == 1 and not sparse:  # its share is 1: nothing is mixed, and nothing rounded
            part[:] = scaled
        else:
            np.logaddexp(part, scaled + (math.log(share) - stat.logsumexp + offset), out=part)
    for share, found in sparse:
        mixed[found.ids] = np.logaddexp(mixed[found.ids], np.log(found.probs.astype(float)) + math.log(share) + offset)
    return mixed, stats


# --- the sample -----------------------------------------------------------------------------------------------------


def sample(row: Row, chain: Chain, seed: int, position: int, suppressed: Ids) -> int:
    """The next token id, -1 where none is possible."""
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
    if len(ids):
        _check(row, int(ids[0]), chain)
    if chain.top_k > 0:
        ids = ids[: chain.top_k]
    logits = row[ids].astype(np.float64)
    if chain.top_p < 1 and len(ids):
        cumulative = np.cumsum(np.exp(logits - logits[0]))
        ids = ids[: int(np.searchsorted(cumulative, chain.top_p * cumulative[-1])) + 1]
    if chain.min_p > 0 and len(ids):
        ids = ids[: max(1, int(np.sum(logits[: len(ids)] >= logits[0] + np.log(chain.min_p))))]
    return ids


def _check(row: Row, best: int, chain: Chain) -> None:
    """Raise for what native/sample.c finds on its way."""
    whole = not 0 < chain.top_k < len(row) and 0 < chain.top_p < 1 and chain.temperature >= GREEDY
    bad = [best] if row[best] > LARGEST else np.flatnonzero(np.isnan(row)).tolist() if whole else []
    if bad:
        raise _bad_logit("the row", row, bad[0])


def gumbel(seed: int, position: int, ids: npt.ArrayLike) -> Wide:
    """Standard Gumbel noise of each of `ids` at `position`: -log(-log(u)), u = (32 random bits + 1/2) / 2^32."""
    noise: Wide = -np.log(-np.log((noise_bits(seed, position, ids) + 0.5) / 2**32))
    return noise


def noise_bits(seed: int, position: int, ids: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """The 32 random bits of each of `ids`, the same in C (md_noise of native/kernels.h) bit for bit."""
    key = _scramble(_scramble((seed + INCREMENT) % 2**64) ^ position % 2**64)
    first, second = divmod(_scramble((key + INCREMENT) % 2**64), 2**32)
    x = np.asarray(ids).astype(np.uint32) ^ np.uint32(first)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x5FEF8AED)
    x = (x ^ x >> np.uint32(14) ^ np.uint32(second)) * np.uint32(0xFE999E65)
    return x ^ x >> np.uint32(16)


INCREMENT = 0x9E3779B97F4A7C15  # of splitmix64, 2^64 / golden ratio: keeps 0 from being scrambled to 0


def _scramble(x: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def draft(
    rows: Sequence[Row], mixture: Mixture, chain: Chain, seed: int, position: int, suppressed: Ids, out: Row
) -> int:
    """The sample from the memories alone, -1 where none is possible."""
    if len(rows) == 1 and mixture.temperatures[0] == 1:
        return sample(rows[0][: len(out)], chain, seed, position, suppressed)
    total = sum(mixture.weights)
    shares = [weight / total if total > 0 else 1 / len(rows) for weight in mixture.weights]
    out[:] = _mix(_names(rows), rows, shares, mixture.temperatures, len(out))[0]
    return sample(out, chain, seed, position, suppressed)


def verify(
    base: Row, memories: Sequence[Row], mixture: Mixture, rule: SoftBayes | None,
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, matches: Matches | None,
) -> tuple[list[Sampled], list[RowStats], Mixture]:  # fmt: skip
    """The samples, the last row's statistics, the mixture afterwards; the last token is -1 where none is possible."""
    samples: list[Sampled] = []
    for j in range(len(base)):
        rows = [models[j] for models in (base, *memories)]
        found = matches[j] if matches else []
        classes = [one.klass for one in found]
        shares = mixture.at(classes)
        mixed, stats = mix(rows[0], rows[1:], mixture, found)
        out[:] = mixed
        token = sample(out, chain, seed, position + j, suppressed)
        offset = sum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=False))
        offset += sum(shares[len(rows) :]) * stats[0].logsumexp
        log_prob = float(mixed[token] - offset) if token >= 0 else -math.inf
        temperatures = (1.0, *mixture.temperatures)
        log_probs = tuple(stat.log_prob(row, token, t) for stat, row, t in zip(stats, rows, temperatures, strict=True))
        log_probs += tuple(one.log_prob(token) for one in found)
        samples.append(Sampled(token, log_prob, log_probs, shares))
        if rule:
            _, mixture = learn(mixture, rule, log_probs, classes)
        if token < 0 or j >= len(draft) or token != draft[j]:
            break
    return samples, stats, mixture


# --- the online weight ----------------------------------------------------------------------------------------------


def learn(
    mixture: Mixture, rule: SoftBayes, log_probs: Sequence[float], classes: Sequence[int] = ()
) -> tuple[float, Mixture]:
    """The log-prob of one token under the mixture, and the mixture after it.

    log_probs: of the token under each voice, the base's first; classes: of each index's match before it. A token that
    is impossible for all voices leaves the mixture. Raises NumericsError for NaN and +inf.
    """
    n_rows = len(log_probs) - len(classes)
    silent = [False] * n_rows + [klass == 0 for klass in classes]
    for number, log_prob in enumerate(log_probs):
        if not silent[number] and not log_prob < math.inf:
            name = f"index {number - n_rows + 1}" if number >= n_rows else f"memory {number}" if number else "base"
            raise NumericsError(f"{name}: the log-prob of a token is {log_prob:g}; look for NaN in the model's logits")
    shares = mixture.at(classes)
    most = max(p for p, share in zip(log_probs, shares, strict=True) if share > 0)
    if most == -math.inf:
        return -math.inf, mixture
    parts = [share * math.exp(p - most) if share > 0 else 0.0 for p, share in zip(log_probs, shares, strict=True)]
    total = sum(parts)
    if rule.eta > 0:
        longest = max(classes, default=0)
        own, initial = shares_of(mixture.vectors[longest]), shares_of(rule.vectors[longest])
        asleep = sum(weight for weight, sleeps in zip(own, silent, strict=False) if sleeps)
        awake = 1.0 - asleep if asleep else 1.0  # what the voices that spoke divide by how well they did
        learned = [
            (1 - rule.share) * ((1 - rule.eta) * weight + rule.eta * (weight if sleeps else awake * part / total))
            + rule.share * start
            for weight, sleeps, part, start in zip(own, silent, parts, initial, strict=False)
        ]
        vectors = list(mixture.vectors)
        vectors[longest] = lift(learned, LEAST_WEIGHT)
        mixture = mixture.after(tuple(vectors))
    return most + math.log(total), mixture
