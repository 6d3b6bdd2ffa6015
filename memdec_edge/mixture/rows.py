"""What the functions of this shelf take and give: rows of logits, matches, statistics, the chain, sampled tokens.

Knows nothing of how a mixture is computed.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdec_edge.options import MAX_DRAFT

Row = npt.NDArray[np.float32]  # logits, [n_vocab]; of several positions [n, n_vocab]
Ids = npt.NDArray[np.int32]
Wide = npt.NDArray[np.float64]

# native/mix.h, native/learn.h, native/sample.h and native/match.h have the same numbers.
MAX_MEMORIES = 16  # and indexes, together
N_CLASSES = 9  # of match length; 0: no match
MAX_VERIFIED = MAX_DRAFT + 1  # rows of one `verify`: a draft and the sample after it
LONGEST = 48  # tokens of a context that a match of an index has at most
MOST = 1024  # occurrences of a match that are counted
TEMPERATURES = (1e-4, 1e4)  # what float arithmetic on logits / T bears
LARGEST = 1e30  # of |maximum of logits / T|
GREEDY = 1e-30  # sampling temperatures below it count as 0: logit / temperature stays finite


class RowStats(NamedTuple):
    """Three numbers of softmax(logits / T) of one row."""

    max: float  # of logits / T
    logsumexp: float  # log(sum(exp(logits / T)))
    entropy: float  # nats, >= 0

    def log_prob(self, row: Row, token: int, temperature: float = 1.0) -> float:
        """Of a token in the row, at the temperature of these statistics; nats, -inf for a token that the row lacks."""
        return float(row[token]) / temperature - self.logsumexp if 0 <= token < len(row) else -math.inf


class Found(NamedTuple):
    """What one index says of the next token: the class of its match's length, and the probabilities of some tokens.

    klass: 1 to 8; 0: no match, and then no tokens. probs: above 0, their sum is 1.
    """

    klass: int
    ids: Ids
    probs: Row

    @property
    def likeliest(self) -> int:
        """The id of the most probable token, the lowest of several; there must be one."""
        return int(self.ids[self.probs.argmax() if len(self.ids) > 1 else 0])

    def log_prob(self, token: int) -> float:
        """Of a token, nats; -inf where it never followed the match."""
        [at] = np.nonzero(self.ids == token)
        return math.log(float(self.probs[at[0]])) if len(at) else -math.inf


SILENT = Found(0, np.empty(0, np.int32), np.empty(0, np.float32))


Matches = Sequence[Sequence[Found]]  # what every index says at some positions, [positions][indexes]


class Chain(NamedTuple):
    """Truncations and temperature, with llama.cpp's meaning."""

    top_k: int  # tokens; <= 0: off
    top_p: float  # share of the probability that top-k left; >= 1: off
    min_p: float  # share of the largest probability; <= 0: off
    temperature: float  # >= 0; 0: greedy


class Likely(NamedTuple):
    """A token that a distribution gives, and its log-prob, nats."""

    token: int
    log_prob: float


class Top(NamedTuple):
    """The N likeliest tokens at one position, the likeliest first; of a model with fewer tokens there are fewer.

    Neither the chain nor suppressed tokens change the log-probs. models: each model's own, the base's first.
    """

    mixture: tuple[Likely, ...]
    models: tuple[tuple[Likely, ...], ...]


class Sampled(NamedTuple):
    """A token that was sampled from a mixed row. Neither the chain nor suppressed tokens change the log-probs."""

    token: int
    log_prob: float  # of the mixture, nats
    log_probs: tuple[float, ...]  # of each voice: base, memories, indexes; -inf where it cannot give the token
    weights: tuple[float, ...]  # of each voice in this row, the same order; an index without a match has 0
    top: Top | None = None  # the likeliest tokens of that row, where they were asked for
