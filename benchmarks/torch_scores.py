"""What base, memory and index say of a text, in PyTorch alone, and what their mixtures are worth. Knows no benchmark.

A text is read in blocks without what stands before them, so that models and datastores see the same. All numbers are
log-probs of the true next token, nats, float64 [positions].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ngram_target import END, marked

from memdec_edge.evaluation.matches import index_scores
from memdec_edge.evaluation.windows import Window
from memdec_edge.indexing.sort import sorted_prefixes
from memdec_edge.indexing.trust import Part, measured_trust
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes, lifted
from memdec_edge.options import INITIAL_INDEX, INITIAL_LAMBDA, INITIAL_POWER, LAMBDAS
from memdec_edge.progress import progress
from memdec_edge.train.corpus import Tokens
from memdec_edge.train.teacher import Reading, Teacher, n_blocks, spread_blocks

Logs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """Blocks of a token stream that are scored."""

    tokens: Tokens
    blocks: list[int]
    block: int

    @staticmethod
    def of(tokens: Tokens, block: int, positions: int) -> "Text":
        """Evenly spaced blocks with at most so many positions."""
        return Text(tokens, spread_blocks(tokens, block, positions), block)

    def read(self, teacher: Teacher, batch: int, label: str) -> Reading:
        """What a model says of each position."""
        with progress(label, len(self.blocks) * self.block) as advance:
            return teacher.read(self.tokens, self.blocks, self.block, batch, advance, scored=True)

    @property
    def windows(self) -> list[Window]:
        """The same positions as an index is asked about them."""
        starts = (number * self.block for number in self.blocks)
        return [Window(start, start + 1, start + self.block + 1) for start in starts]


def perplexity(logs: Logs) -> float:
    return float(np.exp(-logs.mean()))


def mixed(memory: Logs, base: Logs, share: float) -> Logs:
    """Log-probs of the mixture at a fixed lambda."""
    parts = [logs + np.log(weight) for logs, weight in ((memory, share), (base, 1 - share)) if weight > 0]
    return np.asarray(np.logaddexp.reduce(parts, axis=0))


def best_lambda(memory: Logs, base: Logs) -> float:
    """The lambda of LAMBDAS with the least perplexity."""
    return min(LAMBDAS, key=lambda share: perplexity(mixed(memory, base, share)))


def online(memory: Logs, base: Logs) -> Logs:
    """Log-probs of the mixture whose weights follow the text."""
    begin = (INITIAL_LAMBDA,)
    return learn(Mixture(begin, (1.0,)), SoftBayes(begin), np.stack([base, memory])).log_probs


def paired_error(ours: Logs, theirs: Logs, block: int) -> float:
    """Standard error of the difference of two mean losses, in nats, over blocks; NaN for a single one."""
    means = (theirs - ours).reshape(-1, block).mean(1)
    return float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


class IndexVoice:
    """What an index of training tokens says of a text, as a voice beside base and memory (engine/blend.py)."""

    def __init__(self, train: Tokens, valid: Tokens, eos: int, text: Text) -> None:
        stream = marked(train, eos)
        index = Part(stream, sorted_prefixes(stream, END - 1), END - 1)
        held_out = np.split(valid, np.flatnonzero(valid == eos) + 1)
        self._trust = measured_trust(index, (document.astype(np.uint16) for document in held_out)).tolist()
        self._says = index_scores(index, text.tokens.tolist(), text.windows)

    def online(self, base: Logs, memory: Logs | None = None) -> Logs:
        """Log-probs of base, index and perhaps a memory, whose weights follow the text."""
        own = () if memory is None else (INITIAL_LAMBDA,)
        parts = [INITIAL_INDEX * trust**INITIAL_POWER for trust in self._trust]
        first, *matched = lifted((own, *((*(weight * (1 - part) for weight in own), part) for part in parts)))
        mixture = Mixture(first, (1.0,) * len(own), tuple(matched))
        columns = [base, *([] if memory is None else [memory]), self._says.log_probs]
        rule = SoftBayes(mixture.weights, matched=mixture.matched)
        return learn(mixture, rule, np.stack(columns), self._says.classes[None]).log_probs


def by_distance(nearest: npt.NDArray[np.float32], ours: Logs, theirs: Logs, parts: int) -> list[float]:
    """Per cent of perplexity that ours is better than theirs, by quantiles of the distance of the nearest key."""
    order = np.argsort(nearest, kind="stable")
    return [gain(ours[some], theirs[some]) for some in np.array_split(order, parts)]


def gain(ours: Logs, theirs: Logs) -> float:
    """Per cent by which the perplexity of ours is below that of theirs."""
    return 100 * (1 - float(np.exp(theirs.mean() - ours.mean())))


def rate(work: Callable[[], Any], count: int, runs: int = 2) -> float:
    """Units a second of the last of some runs; the first ones warm up."""
    for _ in range(runs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return count / (perf_counter() - began)


def whole_blocks(tokens: Tokens, block: int, positions: int) -> Sequence[int]:
    """The first blocks of a text, with at most so many positions."""
    return range(min(n_blocks(tokens, block), max(1, positions // block)))
