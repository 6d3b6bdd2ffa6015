"""The mixture of base and memories (arXiv 2508.09874, section 3.3), on the scale of logits.

    out[y] = log(sum_i w_i p_i(y)) + sum_i w_i lse_i        p_i = softmax(logits_i / T_i), lse_i its log-normaliser

Row 0 is the base: T = 1, w = 1 - sum of the memories' weights. The second term is the same for every y, so softmax(out)
is the mixture; it keeps the sign and size of raw logits, which llama.cpp's repeat penalty looks at.

`reference` says in NumPy float64 what is computed. `mix` computes it in C (native/) or, where the extension cannot be
imported, with the reference; `implementation` says which. Knows nothing of models and samplers.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError
from memdec_edge.options import check_range

try:
    from memdec_edge import _native

    _missing = ""
except ImportError as error:
    _missing = str(error)

Row = npt.NDArray[np.float32]
TEMPERATURES = (1e-4, 1e4)  # what float arithmetic on logits / T bears; native/mix.h has the same
LARGEST = 1e30  # of |maximum of logits / T|
MAX_MEMORIES = 16  # native/mix.h has the same
SLACK = 1e-6  # by which weights may sum to more than 1: float32 weights of a GGUF do


class RowStats(NamedTuple):
    """What is known of softmax(logits / T) of one row."""

    max: float  # of logits / T
    logsumexp: float  # log(sum(exp(logits / T)))
    entropy: float  # nats, >= 0


def implementation() -> str:
    """What `mix` runs on: "native (avx512)", "native (avx2)", "native (portable)" or "numpy (fallback: reason)"."""
    return f"numpy (fallback: {_missing})" if _missing else f"native ({_native.selected()})"


def mix(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float], out: Row
) -> list[RowStats]:
    """Mix one row of logits of the base with one of each memory into `out`.

    base, out: float32 [n_vocab], overlapping nowhere; memories: float32 [any length], at most MAX_MEMORIES of them;
    weights: 0 to 1, sum at most 1; temperatures: 1e-4 to 1e4, they divide the memories' logits. All arrays are
    one-dimensional and C-contiguous. -inf is a legal logit. A memory's ids beyond n_vocab leave its softmax; ids that
    it lacks have no probability there. Weights of 0 give the base's row bit for bit; one weight of 1 at T = 1 gives
    that memory's row.

    Returns the statistics of each row as it was mixed, the base's first. Raises OptionError for weights and
    temperatures, NumericsError for a row with NaN or +inf or nothing but -inf (`out` is then untouched); TypeError and
    ValueError for arrays of another kind.
    """
    check_shares(weights, temperatures)
    if _missing:
        _check_arrays(base, memories, weights, temperatures, out)
        mixed, stats = reference(base, memories, weights, temperatures)
        out[:] = mixed
        return stats
    try:
        return [RowStats(*row) for row in _native.mix(base, memories, weights, temperatures, out)]
    except FloatingPointError:
        _refuse("base", base)
        for number, (memory, temperature) in enumerate(zip(memories, temperatures, strict=True), 1):
            _refuse(f"memory {number}", memory[: len(base)], temperature)
        raise


def row_stats(row: Row, length: int | None = None, temperature: float = 1.0) -> RowStats:
    """Statistics of softmax(row[:length] / temperature). row: float32 [n]; length: 1 to n, None for n.

    Raises OptionError for the temperature and NumericsError as `mix` does.
    """
    check_range("temperature", temperature, *TEMPERATURES)
    length = len(row) if length is None else length
    if _missing:
        if not 1 <= length <= len(row):
            raise ValueError(f"length {length} is not from 1 to {len(row)}")
        return _stats("the row", row[:length].astype(np.float64) / temperature)
    try:
        return RowStats(*_native.row_stats(row, length, temperature))
    except FloatingPointError:
        _refuse("the row", row[:length], temperature)
        raise


def reference(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float]
) -> tuple[npt.NDArray[np.float64], list[RowStats]]:
    """What `mix` computes, in float64: the mixed row [n_vocab] and the statistics. A pure function."""
    shares = [max(0.0, 1.0 - math.fsum(weights)), *weights]
    names = ["base", *(f"memory {number}" for number in range(1, len(shares)))]
    return mixture(names, [base, *memories], shares, [1.0, *temperatures], len(base))


def mixture(
    names: Sequence[str], logits: Sequence[Row], shares: Sequence[float], temperatures: Sequence[float], n_vocab: int
) -> tuple[npt.NDArray[np.float64], list[RowStats]]:
    """As `reference`, of any rows; shares sum to 1. Raises NumericsError, which names one of `names`."""
    rows = [row[:n_vocab].astype(np.float64) / t for row, t in zip(logits, temperatures, strict=True)]
    stats = [_stats(name, row) for name, row in zip(names, rows, strict=True)]
    mixed = np.full(n_vocab, -np.inf)
    offset = math.fsum(share * stat.logsumexp for share, stat in zip(shares, stats, strict=True))
    active = [entry for entry in zip(shares, rows, stats, strict=True) if entry[0] > 0]
    for share, row, stat in active:
        part = mixed[: len(row)]
        if len(active) == 1:  # its share is 1: nothing is mixed, and nothing rounded
            part[:] = row
        else:
            np.logaddexp(part, row + (math.log(share) - stat.logsumexp + offset), out=part)
    return mixed, stats


def check_shares(weights: Sequence[float], temperatures: Sequence[float]) -> None:
    """Raise OptionError unless these are weights and temperatures of a mixture."""
    total = 0.0
    for weight in weights:
        check_range("--lambda", weight, 0.0, 1.0)
        total += weight
    check_range("the sum of --lambda", total, 0.0, 1.0 + SLACK)
    for temperature in temperatures:
        check_range("temperature", temperature, *TEMPERATURES)


def _stats(name: str, scaled: npt.NDArray[np.float64]) -> RowStats:
    high = float(scaled.max())  # NaN if there is one
    if not abs(high) <= LARGEST:
        bad = int(np.argmax(scaled))  # the first NaN, or the largest
        raise NumericsError(
            f"{name}: the logit of token {bad} is {scaled[bad]:g}, and no probabilities follow from that; "
            "try another quantisation of the model, or --gpu-layers 0"
        )
    distance = scaled - high
    share = np.exp(distance)
    total = float(share.sum())
    weighted = float(np.multiply(share, distance, out=np.zeros_like(share), where=share > 0).sum())
    return RowStats(high, high + math.log(total), max(0.0, math.log(total) - weighted / total))


def _refuse(name: str, row: Row, temperature: float = 1.0) -> None:
    """Raise the error that names the culprit, if `row` is one."""
    _stats(name, row.astype(np.float64) / temperature)


def _check_arrays(
    base: Row, memories: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float], out: Row
) -> None:
    """What native/module.c checks."""
    if not len(memories) == len(weights) == len(temperatures) <= MAX_MEMORIES:
        raise ValueError(f"give one weight and one temperature for each of at most {MAX_MEMORIES} memories")
    for row in (base, *memories, out):
        if row.dtype != np.float32:
            raise TypeError(f"rows must hold float32, not {row.dtype}")
        if row.ndim != 1 or len(row) == 0 or not row.flags.c_contiguous:
            raise ValueError("rows must have one dimension, be contiguous and hold at least one element")
        if row is not out and np.may_share_memory(row, out):
            raise ValueError("out overlaps an input")
    if len(out) != len(base) or not out.flags.writeable:
        raise ValueError("out must be writable and as long as the base row")
