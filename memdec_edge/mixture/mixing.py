"""The mixture of base, memories and indexes (arXiv 2508.09874, section 3.3), on the scale of logits.

    out[y] = log(sum_i w_i p_i(y)) + sum_i w_i logsumexp_i        p_i = softmax(logits_i / T_i)

Row 0 is the base: T = 1, w = 1 - sum of the other weights. The second term is the same for every y, so softmax(out) is
the mixture; it keeps the sign and size of raw logits, which llama.cpp's repeat penalty looks at. An index gives
probabilities and no logits: its logsumexp counts as the base's.

reference.py specifies the result, kernels.py chooses what computes it. Knows nothing of models and samplers.
"""

from collections.abc import Sequence

from memdec_edge.errors import NumericsError
from memdec_edge.mixture import kernels, reference
from memdec_edge.mixture.rows import TEMPERATURES, Matches, Row, RowStats
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import check_range


def implementation() -> str:
    """What computes: "native (avx512)", "native (avx2)", "native (portable)" or "numpy (fallback: reason)"."""
    return f"numpy (fallback: {kernels.MISSING})" if kernels.MISSING else f"native ({kernels.selected()})"


def mix(
    base: Row, memories: Sequence[Row], mixture: Mixture, out: Row, matches: Matches | None = None
) -> list[RowStats]:
    """Mix one row of logits of the base with one of each memory, and what the indexes say, into `out`.

    base, out: float32 [n_vocab], overlapping nowhere; memories: float32 [any length], as many as `mixture` has. All
    arrays are one-dimensional and C-contiguous. matches: of one position, where `mixture` has indexes; their tokens are
    below n_vocab. -inf is a legal logit. A memory's ids beyond n_vocab leave its softmax;
    ids that it lacks have no probability there. Weights of 0 give the base's row bit for bit; one weight of 1 at T = 1
    gives that memory's row, where no index has a match.

    Returns the statistics of each row of logits as it was mixed, the base's first. Raises NumericsError for a row with
    NaN or +inf or nothing but -inf (`out` is then untouched); TypeError and ValueError for arrays of another kind.
    """
    try:
        stats = kernels.mix(base, memories, mixture.vectors, mixture.temperatures, out, matches)
    except FloatingPointError:
        reference.mix(base, memories, mixture, matches[0] if matches else ())  # names the culprit
        raise
    return [RowStats(*row) for row in stats]


def offset(shares: Sequence[float], stats: Sequence[RowStats]) -> float:
    """What lifts log-probs of a mixture to the scale of logits: the sum of w_i logsumexp_i, nats.

    shares: of all voices at one position, the base's first; stats: of the rows that mix() mixed there. An index has no
    logits: its logsumexp counts as the base's.
    """
    rows = sum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=False))
    return rows + sum(shares[len(stats) :]) * stats[0].logsumexp


def row_stats(row: Row, length: int | None = None, temperature: float = 1.0, of: object = "the row") -> RowStats:
    """Statistics of softmax(row[:length] / temperature). row: float32 [n]; length: 1 to n, None for n; of: for errors.

    Raises OptionError for a temperature outside [1e-4, 1e4], ValueError for the length, and NumericsError as `mix`.
    """
    check_range("temperature", temperature, *TEMPERATURES)
    length = len(row) if length is None else length
    try:
        return RowStats(*kernels.row_stats(row, length, temperature))
    except (FloatingPointError, NumericsError):
        reference.row_stats(str(of), row[:length], temperature)  # names the culprit
        raise
