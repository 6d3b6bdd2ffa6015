"""The seeded sample of the next token, one rule for drafting and for verification.

    sample = argmax over the kept tokens of  logit / temperature + Gumbel(seed, position, token)

is a draw from softmax(logits / temperature) of the kept tokens (the Gumbel-max trick); at temperature 0 it is the
largest logit; the lowest id wins a tie. Kept is what llama.cpp's samplers leave in its order top-k, top-p, min-p,
temperature: a prefix of the tokens by falling logit, equal ones by rising id. The noise depends on seed, position and
token alone. So a draft from a similar row meets the same noise and is likely the same sample. No draft changes what the
mixture gives.

reference.py specifies the results, kernels.py chooses what computes them. Knows nothing of models, grammars and
penalties.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memdec_edge.errors import NumericsError
from memdec_edge.mixture import kernels, reference
from memdec_edge.mixture.rows import Chain, Ids, Matches, Row, RowStats, Sampled
from memdec_edge.mixture.weights import Mixture, SoftBayes


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
    try:
        return _possible(kernels.sample(row, chain, seed, position, suppressed, scratch))
    except FloatingPointError:
        reference.kept(row, chain, suppressed)  # names the culprit
        raise


def draft(
    rows: Sequence[Row], mixture: Mixture,
    chain: Chain, seed: int, position: int, suppressed: Ids, out: Row, scratch: Row,
) -> int:  # fmt: skip
    """The sample from the mixture of the memories alone, their weights scaled to sum to 1.

    rows: float32 [any length], at least one, as many as `mixture` has; where all weights are 0 the memories share
    equally; out: float32 [n_vocab], overwritten where rows must be mixed. Ids beyond n_vocab are not sampled. The rest
    and errors as in `sample`; a mixed row is checked for NaN and +inf in any case.
    """
    try:
        return _possible(
            kernels.draft(
                rows, mixture.weights, mixture.temperatures, chain, seed, position, suppressed, out, scratch
            )
        )  # fmt: skip
    except FloatingPointError:
        reference.draft(rows, mixture, chain, seed, position, suppressed, out)  # names the culprit
        raise


class Verified(NamedTuple):
    """What `verify` did."""

    samples: list[Sampled]  # one for each row that was mixed
    stats: list[RowStats]  # of the last of these rows, as `mix` returns them
    mixture: Mixture  # after the last sample


def verify(
    base: Row, memories: Sequence[Row], mixture: Mixture,
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, scratch: Row,
    rule: SoftBayes | None = None, matches: Matches | None = None,
) -> Verified:  # fmt: skip
    """Mix and sample row after row, until a sample is not the drafted token or the rows end.

    base: float32 [n, n_vocab], row j of position + j, n at most MAX_VERIFIED; memories: float32 [n, any length] each,
    mixed as by `mix`, maybe none; draft: n - 1 or n token ids, draft[j] for the sample from row j; out: float32
    [n_vocab], holds the last mixed row afterwards. rule: how the weights learn from each sample, so that the next row
    meets others; None: they stay. matches: of each row, where `mixture` has indexes. The rest as in `sample`.

    Raises NumericsError as `mix` and `sample` do.
    """
    numbers = None if rule is None else rule.numbers
    try:
        samples, stats, vectors = kernels.verify(
            base, memories, mixture.vectors, mixture.temperatures, numbers, chain, seed, position, suppressed, draft,
            out, scratch, matches,
        )  # fmt: skip
    except FloatingPointError:
        reference.verify(base, memories, mixture, rule, chain, seed, position, suppressed, draft, out, matches)
        raise  # it names the culprit
    _possible(samples[-1][0])
    after = mixture if rule is None else mixture.after(vectors)
    return Verified([Sampled(*sample) for sample in samples], [RowStats(*row) for row in stats], after)


def _possible(token: int) -> int:
    if token < 0:
        raise NumericsError("no token is possible: every one that is left is suppressed")
    return token
