"""The sampler chain: penalties and grammar by llama.cpp, truncation and the seeded sample by sampling.py.

The order is llama.cpp's: penalties -> top-k -> top-p -> min-p -> temperature -> draw. A grammar checks the sample;
only a rejection masks the whole row and draws again, as llama.cpp does. Calls llama.cpp's sampler API and nothing else.
Knows nothing of models beyond the vocabulary handle that a grammar needs, and nothing of mixing: a row is a row.
"""

import ctypes
import json
import os
import re
import secrets
import sys
import tempfile
from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.mixture import sampling
from memdec_edge.mixture.mixing import mix
from memdec_edge.mixture.rows import Chain, Ids, Row, RowStats
from memdec_edge.mixture.weights import Mixture
from memdec_edge.options import SamplingOptions

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
NOTHING = np.empty(0, np.int32)


class Sampler:
    """One timeline's chain. `chain` and `seed` are what sampling.py wants; a sample depends on no earlier sample unless
    `stateful`, that is with penalties or a grammar.

    Penalties look at the tokens given to accept() only, so not at the prompt, as in llama-cpp-python.
    Raises OptionError for a grammar or JSON schema that cannot be parsed.
    """

    def __init__(self, options: SamplingOptions, vocab: Any, n_vocab: int, n_ctx: int) -> None:
        self.seed: int = options.seed if options.seed >= 0 else secrets.randbelow(2**32 - 1)
        self.chain = Chain(options.top_k, options.top_p, options.min_p, options.temperature)
        self._n_vocab = n_vocab
        self.scratch = sampling.scratch(n_vocab)  # of samples
        self._grammar = _grammar(options, vocab)
        self._penalties: Any = None
        last_n = n_ctx if options.repeat_last_n < 0 else options.repeat_last_n
        self._recent: deque[int] = deque(maxlen=last_n)  # whom penalties concern
        amounts = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
        if last_n and amounts != (1.0, 0.0, 0.0):
            self._penalties = llama_cpp.llama_sampler_init_penalties(n_vocab, last_n, *amounts)

    @property
    def stateful(self) -> bool:
        """Whether accept() changes later samples."""
        return bool(self._penalties or self._grammar)

    def sample(self, row: Row, position: int, suppressed: Ids = NOTHING) -> int:
        """The token id at `position` of the timeline, whose draw is that of (seed, position).

        row: logits, float32 [n_vocab], unchanged afterwards; suppressed: ids that are not sampled. Raises NumericsError
        when no token is possible.
        """
        token = self._draw(row, position, suppressed)
        if self._grammar and not self._allows(token):
            token = self._draw(self._mask(row, suppressed), position, suppressed)
        return token

    def draft(self, rows: Sequence[Row], mixture: Mixture, position: int, suppressed: Ids, out: Row) -> int | None:
        """The token that the memories alone would sample at `position`, with the noise of sample().

        rows: logits of each memory, float32 [any length]; out: float32 [n_vocab], overwritten. Penalties and grammar
        are left out. None where the rows make no distribution: the mixture reports that if its text comes there.
        """
        try:
            return sampling.draft(rows, mixture, self.chain, self.seed, position, suppressed, out, self.scratch)
        except NumericsError:
            return None

    def verify(
        self,
        base: Row,
        memories: Sequence[Row],
        mixture: Mixture,
        position: int,
        suppressed: Ids,
        draft: Sequence[int],
        out: Row,
        ends: Container[int],
    ) -> tuple[list[tuple[int, float]], list[RowStats]]:
        """Mix and sample row after row, until a sample differs from the draft or the rows end.

        base: logits float32 [n, n_vocab], row j of `position` + j; memories: float32 [n, any length] each; draft: n - 1
        or n ids; out: float32 [n_vocab], afterwards the last mixed row. Penalties and grammar follow each sample; then
        an id in `ends` is the last one, of which they are not told.

        Returns (token, log-prob under the mixture in nats) for each row that was mixed, and the statistics of the last
        of them, the base's first. Raises NumericsError as sample() and mix() do.
        """
        if not self.stateful:
            done = sampling.verify(
                base, memories, mixture, self.chain, self.seed, position, suppressed, draft, out, self.scratch
            )
            return [(sample.token, sample.log_prob) for sample in done.samples], done.stats
        samples, stats = list[tuple[int, float]](), list[RowStats]()
        for index, base_row in enumerate(base):
            stats = mix(base_row, [rows[index] for rows in memories], mixture, out)
            token = self.sample(out, position + index, suppressed)
            offset = sum(share * stat.logsumexp for share, stat in zip(mixture.shares, stats, strict=True))
            samples.append((token, float(out[token]) - offset))
            if token in ends:
                break
            self.accept(token)
            if index >= len(draft) or token != draft[index]:
                break
        return samples, stats

    def _draw(self, row: Row, position: int, suppressed: Ids) -> int:
        if not (self._penalties and self._recent):
            return sampling.sample(row, self.chain, self.seed, position, suppressed, self.scratch)
        ids = np.fromiter(set(self._recent), np.int64)
        raw = row[ids]
        row[ids] = self._penalised(ids, raw)
        try:
            return sampling.sample(row, self.chain, self.seed, position, suppressed, self.scratch)
        finally:
            row[ids] = raw

    def _penalised(self, ids: npt.NDArray[np.int64], logits: Row) -> Row:
        """llama.cpp's penalties on the only logits that they change: those of recent tokens."""
        data = np.zeros(len(ids), TOKEN_DATA)
        data["id"], data["logit"] = ids, logits
        _apply(self._penalties, data)
        return np.ascontiguousarray(data["logit"])

    def _allows(self, token: int) -> bool:
        data = np.zeros(1, TOKEN_DATA)
        data["id"], data["logit"] = token, 1.0
        _apply(self._grammar, data)
        return bool(data["logit"][0] > -np.inf)

    def _mask(self, row: Row, suppressed: Ids) -> Row:
        """A copy of the row in which everything that the grammar refuses is impossible."""
        data = np.zeros(self._n_vocab, TOKEN_DATA)
        data["id"], data["logit"] = np.arange(self._n_vocab), row
        data["logit"][suppressed] = -np.inf
        _apply(self._grammar, data)
        masked = np.ascontiguousarray(data["logit"])
        if not (masked > -np.inf).any():
            raise NumericsError("the grammar allows no further token; end it where the text may end")
        return masked

    def accept(self, token: int) -> None:
        """Tell penalties and grammar of an emitted token. Only what sample() returned: a grammar aborts on others."""
        self._recent.append(token)
        for sampler in (self._grammar, self._penalties):
            if sampler:
                llama_cpp.llama_sampler_accept(sampler, token)

    def replay(self, tokens: Iterable[int]) -> None:
        """Forget what was accepted, then accept `tokens`, which sample() returned in this order."""
        self._recent.clear()
        for sampler in (self._grammar, self._penalties):
            if sampler:
                llama_cpp.llama_sampler_reset(sampler)
        if self.stateful:
            for token in tokens:
                self.accept(token)

    def fork(self, seed: int | None = None) -> "Sampler":
        """A sampler that goes on from here by itself; with the same draws unless given another `seed`."""
        twin = object.__new__(Sampler)
        twin.__dict__ = self.__dict__ | {
            "seed": self.seed if seed is None else seed,
            "scratch": sampling.scratch(self._n_vocab),
            "_recent": self._recent.copy(),
            "_grammar": self._grammar and llama_cpp.llama_sampler_clone(self._grammar),
            "_penalties": self._penalties and llama_cpp.llama_sampler_clone(self._penalties),
        }
        return twin

    def close(self) -> None:
        """Free llama.cpp's samplers."""
        for sampler in (self._grammar, self._penalties):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._grammar = self._penalties = None


def _apply(sampler: Any, data: npt.NDArray[Any]) -> None:
    """Let a llama.cpp sampler change the logits of `data` [candidates] of TOKEN_DATA."""
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))


def _grammar(options: SamplingOptions, vocab: Any) -> Any:
    """llama.cpp's grammar sampler, or None."""
    field, text = "grammar", options.grammar
    if options.json_schema:
        field = "json_schema"
        try:
            from llama_cpp.llama_grammar import json_schema_to_gbnf

            json.loads(options.json_schema)
            text = json_schema_to_gbnf(options.json_schema)
        except (ValueError, AssertionError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OptionError(field, "no JSON schema that can be read", str(error) or type(error).__name__) from error
    if not text:
        return None
    with tempfile.TemporaryFile() as said, _stderr_to(said.fileno()):
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode("utf-8", "replace"), b"root")
        said.seek(0)
        complaint = said.read().decode("utf-8", "replace")
    if not sampler:
        found = re.search(r"error parsing grammar: (.*)", complaint)
        reason = found[1].strip() if found else "it must have a rule `root` that does not begin with itself"
        raise OptionError(field, "no GBNF grammar that llama.cpp can read", reason)
    return sampler


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    """llama.cpp's grammar parser writes past its own log, straight to stderr: catch it."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
