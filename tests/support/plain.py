"""Plain decoding, written out: what engines are compared with, and when a difference is a near-tie.

llama.cpp's rows differ by about 1e-5 with the shape of the batch, even in F32. Where two tokens' scores are closer than
that, two right engines may sample differently; TIE is a hundred times as much and still rare. Knows nothing of drafts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from memdec_edge import engine as engines
from memdec_edge.errors import Cancelled
from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.mixture.reference import gumbel, sample
from memdec_edge.mixture.rows import Chain
from memdec_edge.options import SamplingOptions
from tests.support.real import EXACT

TIE = 1e-3  # of scores: logit / temperature + noise
ONE_THREAD = replace(EXACT, threads=1)
FOUR = replace(ONE_THREAD, n_seq=4, n_ctx=1024)  # slots
GREEDY = SamplingOptions(temperature=0.0)
WARM = SamplingOptions(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
USUAL = SamplingOptions(temperature=0.7, top_k=40, top_p=0.95, min_p=0.05)
PENALISED = replace(USUAL, repeat_penalty=1.1)
WORDS = replace(WARM, grammar="root ::= [a-z]+ ([ ,] [a-z]+)*")


def prompts(number: int, length: int = 12) -> list[list[int]]:
    """Random token ids of the tiny vocabulary."""
    random = np.random.default_rng(11)
    return [random.integers(1, 400, length).tolist() for _ in range(number)]


def finish(engine: engines.Engine, session: engines.Session) -> list[engines.Sampled]:
    """Step until the end; every sample."""
    samples: list[engines.Sampled] = []
    while not session.finished:
        samples += engine.step([session])[0]
    return samples


def until_stopped(engine: engines.Engine, sessions: Sequence[engines.Session]) -> list[list[engines.Sampled]]:
    """Step until a round is stopped, which leaves all sessions where they stood; what they emitted before."""
    found: list[list[engines.Sampled]] = [[] for _ in sessions]
    while True:
        before = [list(session.tokens) for session in sessions]
        try:
            for kept, samples in zip(found, engine.step(sessions), strict=True):
                kept += samples
        except (Cancelled, KeyboardInterrupt):
            assert [session.tokens for session in sessions] == before
            return found
        assert not all(session.finished for session in sessions), "nothing stopped them"


class Plain:
    """Models in contexts of their own that read whole texts; rows mixed in float64."""

    def __init__(self, base: Path, shares: Sequence[tuple[Path, float]]) -> None:
        self._stack = ExitStack()
        self._weights = [1 - sum(weight for _, weight in shares), *(weight for _, weight in shares)]
        self._contexts = []
        for path in (base, *(path for path, _ in shares)):
            model = Model(path)
            self._stack.callback(model.close)
            self._contexts.append(Context(model, ONE_THREAD, min(512, model.n_ctx_train)))
            self._stack.callback(self._contexts[-1].close)

    def close(self) -> None:
        self._stack.close()

    def log_probs(self, tokens: list[int]) -> npt.NDArray[np.float64]:
        """Of the mixture after `tokens`, [n_vocab of the base]."""
        return mixed([context.feed(tokens) for context in self._contexts], self._weights)[0]

    def logits(self, tokens: list[int], emitted: list[int], sampling: SamplingOptions) -> npt.NDArray[np.float32]:
        """The mixed row on the scale of logits, penalties of `emitted` applied (repeat_penalty alone)."""
        row = mixed([context.feed(tokens) for context in self._contexts], self._weights)[1]
        for token in set(emitted[-sampling.repeat_last_n :]):
            row[token] *= sampling.repeat_penalty if row[token] <= 0 else 1 / sampling.repeat_penalty
        return row.astype(np.float32)


def mixed(
    rows: Sequence[npt.NDArray[np.float32]], weights: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Log-probs of the mixture, and the same on the scale of logits: plus the weighted log-normalisers."""
    n_vocab = len(rows[0])
    wide = [row[:n_vocab].astype(np.float64) for row in rows]
    normalisers = [np.logaddexp.reduce(row) for row in wide]
    total = np.zeros(n_vocab)
    for row, normaliser, weight in zip(wide, normalisers, weights, strict=True):
        total[: len(row)] += weight * np.exp(row - normaliser)
    with np.errstate(divide="ignore"):
        log_probs = np.log(total)
    return log_probs, log_probs + np.dot(weights, normalisers)


def possible(row: npt.NDArray[np.float32], token: int, sampling: SamplingOptions, position: int) -> bool:
    """Whether a token is the sample of a row, or would be if its score or a cut were moved by less than TIE."""
    raised = row.copy()
    raised[token] += TIE * max(sampling.temperature, 1.0)
    none = np.empty(0, np.int32)
    for logits, shift in product((row, raised), (0.0, -TIE, TIE)):
        chain = Chain(sampling.top_k, sampling.top_p + shift, sampling.min_p * (1 + shift), sampling.temperature)
        if sample(logits, chain, sampling.seed, position, none) == token:
            return True
    return False


def same(
    plain: Plain,
    prompt: list[int],
    found: Sequence[engines.Sampled],
    expected: Sequence[engines.Sampled],
    sampling: SamplingOptions,
) -> bool:
    """Check that two continuations agree; False where they part at a near-tie, after which nothing is compared."""
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=False)):
        if mine.token != theirs.token:
            emitted = [sample.token for sample in expected[:index]]
            row = plain.logits([*prompt, *emitted], emitted, sampling)
            position = len(prompt) + index
            # Under a grammar the plain sample may be refused; then only the gap between the two can tell.
            scores = row[[mine.token, theirs.token]] / max(sampling.temperature, 1e-9)
            if sampling.temperature:
                scores = scores + gumbel(sampling.seed, position, [mine.token, theirs.token])
            near = abs(scores[0] - scores[1]) < TIE
            if not sampling.grammar:
                near = all(possible(row, sample.token, sampling, position) for sample in (mine, theirs))
            assert near, f"token {index} is {mine.token}, not {theirs.token}; their scores are {scores.tolist()}"
            return False
        assert mine.log_prob == pytest.approx(theirs.log_prob, abs=1e-3)
    assert len(found) == len(expected)
    return True


@contextmanager
def watched(
    patch: pytest.MonkeyPatch,
    context: Context,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
) -> Iterator[list[list[tuple[int, ...]]]]:
    """Every decode of a context from here on: for each of its tokens, the token and all that stood before it.

    before, after: called before and after each, and may raise.
    """
    decodes: list[list[tuple[int, ...]]] = []
    decode = context._decode

    def spy(parts: Sequence[tuple[int, Sequence[int]]], wanted: Sequence[int]) -> None:
        before()
        prefixes = []
        for slot, tokens in parts:
            held = context.tokens[slot]
            prefixes += [(*held, *tokens[: index + 1]) for index in range(len(tokens))]
        decode(parts, wanted)
        decodes.append(prefixes)
        after()

    with patch.context() as undo:
        undo.setattr(context, "_decode", spy)
        yield decodes


def cells(engine: engines.Engine) -> list[int]:
    """Of each context, tokens that its slots hold together; checked against llama.cpp."""
    contexts = [engine.context, *(memory.context for memory in engine.memories)]
    for context in contexts:
        for slot, tokens in enumerate(context.tokens):
            assert llama_cpp.llama_memory_seq_pos_max(context._cells, slot) == len(tokens) - 1
    return [sum(map(len, context.tokens)) for context in contexts]
