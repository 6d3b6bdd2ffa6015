"""The C extension (native/module.c). Rows: one-dimensional, C-contiguous, at least one element.

Weights, vectors and temperatures are those of a mixture.weights.Mixture, which has checked them. Other wrong
arguments raise TypeError or ValueError; NaN, +infinity and rows of nothing but -infinity FloatingPointError.
"""

from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from memdec_edge.mixture.rows import Chain, Ids, Matches, Row
from memdec_edge.mixture.weights import Vectors

Rule = tuple[Vectors, float, float]  # of mixture.weights.SoftBayes: vectors, eta, share
Wide = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]  # of documents; n_vocab or more ends one
Positions = npt.NDArray[np.uint32]

MAX_MEMORIES: Final[int]
MAX_VERIFIED: Final[int]
ABORT_CALLBACK: Final[int]  # address of bool (*)(void *data); data: md_abort of native/abort.h
TAP_CALLBACK: Final[int]  # address of bool (*)(void *tensor, bool ask, void *data); data: md_tap of native/tap.h
SAMPLER_FUNCTIONS: Final[dict[str, int]]  # member of llama_sampler_i -> address

def mix(
    base: Row, memories: Sequence[Row], vectors: Vectors, temperatures: Sequence[float], out: Row,
    matches: Matches | None, /,
) -> list[tuple[float, float, float]]: ...  # fmt: skip
def row_stats(row: Row, length: int, temperature: float, /) -> tuple[float, float, float]: ...
def sample(row: Row, chain: Chain, seed: int, position: int, suppressed: Ids, scratch: Row, /) -> int: ...
def draft(
    rows: Sequence[Row], weights: Sequence[float], temperatures: Sequence[float],
    chain: Chain, seed: int, position: int, suppressed: Ids, out: Row, scratch: Row, /,
) -> int: ...  # fmt: skip
def verify(
    base: Row, memories: Sequence[Row], vectors: Vectors, temperatures: Sequence[float], rule: Rule | None,
    chain: Chain, seed: int, position: int, suppressed: Ids, draft: Sequence[int], out: Row, scratch: Row,
    matches: Matches | None, /,
) -> tuple[
    list[tuple[int, float, tuple[float, ...], tuple[float, ...]]],  # mixture.rows.Sampled
    list[tuple[float, float, float]],
    Vectors,  # the weights afterwards
]: ...  # fmt: skip
def learn(
    vectors: Vectors, rule: Rule, log_probs: Wide, mixed: Wide, path: Wide, classes: Ids, /
) -> Vectors: ...  # the weights afterwards
def match(
    tokens: Tokens, prefixes: Positions, n_vocab: int, context: array[int], ids: Ids, probs: Row, /
) -> tuple[int, int, int]: ...  # length, distinct tokens written, position of the likeliest or -1
def group_prefixes(tokens: Tokens, n_vocab: int, prefixes: Positions, ends: npt.NDArray[np.uint64], /) -> None: ...
def sort_prefixes(tokens: Tokens, n_vocab: int, prefixes: Positions, shared: int, /) -> None: ...
def variants() -> list[str]: ...  # that this machine runs, best first
def select(variant: str, /) -> None: ...  # for the whole process
def selected() -> str: ...
def sampler_new(
    n_vocab: int, weights: Sequence[float], temperatures: Sequence[float], rule: Rule | None, init: int, /
) -> object: ...
def sampler_hold(context: int, /) -> object: ...  # the state behind llama_sampler.ctx
def sampler_context(state: object, /) -> int: ...  # for llama_sampler_init, once for each sampler
def sampler_mixture(state: object, /) -> tuple[tuple[float, ...], tuple[float, ...]]: ...  # weights, temperatures
def sampler_set_row(state: object, index: int, row: Row, /) -> None: ...
def sampler_take_status(state: object, /) -> int: ...  # md_status of native/mix.h
def layout() -> dict[str, dict[str, int]]: ...  # struct -> "sizeof" and offsets of members, as C was compiled
