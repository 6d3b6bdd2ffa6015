"""The sampler chain: penalties by llama.cpp, a constraint, truncation and the seeded sample by mixture/sampling.py.

The order is llama.cpp's: logit bias -> penalties -> top-k -> top-p -> min-p -> temperature -> draw. A constraint (a
grammar, a JSON schema) checks the sample. Only a rejection masks the whole row and draws again, as llama.cpp does.
Knows nothing of how rows are decoded.
"""

import ctypes
import secrets
from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.llama.model import Model
from memdec_edge.mixture import sampling
from memdec_edge.mixture.mixing import mix, offset
from memdec_edge.mixture.online import learn_from
from memdec_edge.mixture.rows import Chain, Ids, Matches, Row, RowStats, Sampled
from memdec_edge.mixture.sampling import Verified
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import SamplingOptions

if TYPE_CHECKING:
    from memdec_edge.llama.constraint import Constraint

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
NOTHING = np.empty(0, np.int32)


class Sampler:
    """One timeline's chain. `chain` and `seed` are what sampling.py wants; a sample depends on no earlier sample unless
    `stateful`, that is with penalties or a constraint.

    Penalties look at the tokens given to accept() only, so not at the prompt, as in llama-cpp-python. A grammar or JSON
    schema needs the model whose tokens are sampled. Close it; not for several threads at once.
    Raises OptionError for a grammar or JSON schema that cannot be followed.
    """

    def __init__(self, options: SamplingOptions, model: Model | None, n_vocab: int, n_ctx: int) -> None:
        self.seed: int = options.seed if options.seed >= 0 else secrets.randbelow(2**32 - 1)
        self.chain = Chain(options.top_k, options.top_p, options.min_p, options.temperature)
        self._n_vocab = n_vocab
        self.scratch = sampling.scratch(n_vocab)  # of samples
        self._constraint = self._constrained(options, model)
        self._biased = np.array([token for token, _ in options.logit_bias], np.int64)
        self._bias = np.array([amount for _, amount in options.logit_bias], np.float32)
        if len(self._biased) and not 0 <= self._biased.min() <= self._biased.max() < n_vocab:
            raise OptionError("logit_bias", self._biased.tolist(), f"ids must be from 0 to {n_vocab - 1}")
        self._penalties: Any = None
        last_n = n_ctx if options.repeat_last_n < 0 else options.repeat_last_n
        self._recent: deque[int] = deque(maxlen=last_n)  # tokens that penalties concern
        amounts = (options.repeat_penalty, options.frequency_penalty, options.presence_penalty)
        if last_n and amounts != (1.0, 0.0, 0.0):
            self._penalties = llama_cpp.llama_sampler_init_penalties(n_vocab, last_n, *amounts)

    @staticmethod
    def _constrained(options: SamplingOptions, model: Model | None) -> "Constraint | None":
        if not (options.grammar or options.json_schema):
            return None  # importing llguidance takes some hundredths of a second
        from memdec_edge.llama.constraint import constraint_of

        assert model, "a grammar needs the model whose tokens are sampled"
        return constraint_of(options, model)

    @property
    def stateful(self) -> bool:
        """Whether samples follow from more than the mixed row: accept() changes later ones, or logits are biased."""
        return bool(self._penalties or self._constraint or len(self._biased))

    def sample(self, row: Row, position: int, suppressed: Ids = NOTHING) -> int:
        """Return the token id at `position` of the timeline, whose draw is that of (seed, position).

        row: logits, float32 [n_vocab], unchanged afterwards; suppressed: ids that are not sampled. Raises NumericsError
        when no token is possible, also because a constraint allows none.
        """
        token = self._draw(row, position, suppressed)
        if self._constraint is None or self._constraint.allows(token):
            return token
        masked = self._constraint.mask(row)
        masked[suppressed] = -np.inf
        if not (masked > -np.inf).any():
            raise NumericsError(f"the {self._constraint.name} allows no further token; end it where the text may end")
        return self._draw(masked, position, suppressed)

    def draft(self, rows: Sequence[Row], mixture: Mixture, position: int, suppressed: Ids, out: Row) -> int | None:
        """Return the token that the memories alone would sample at `position`, with the noise of sample().

        rows: logits of each memory, float32 [any length]; out: float32 [n_vocab], overwritten. Penalties and constraint
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
        rule: SoftBayes | None,
        position: int,
        suppressed: Ids,
        draft: Sequence[int],
        out: Row,
        ends: Container[int],
        matches: Matches | None = None,
    ) -> Verified:
        """Mix and sample row after row, until a sample differs from the draft or the rows end.

        base: logits float32 [n, n_vocab], row j of `position` + j; memories: float32 [n, any length] each; matches: of
        each row, where `mixture` has indexes; rule: how the weights learn from each sample; draft: n - 1 or n ids; out:
        float32 [n_vocab], afterwards the last mixed row. Penalties and constraint follow each sample; then an id in
        `ends` is the last, of which they are not told.
        Raises NumericsError as sample() and mix() do.
        """
        if not self.stateful:
            return sampling.verify(
                base, memories, mixture, self.chain, self.seed, position, suppressed, draft, out, self.scratch, rule,
                matches,
            )  # fmt: skip
        samples, stats = list[Sampled](), list[RowStats]()
        for index, base_row in enumerate(base):
            rows = [base_row, *(each[index] for each in memories)]
            found = matches[index] if matches else []
            classes = [one.klass for one in found]
            stats = mix(base_row, rows[1:], mixture, out, [found] if found else None)
            token = self.sample(out, position + index, suppressed)
            shares = mixture.at(classes)
            warmth = (1.0, *mixture.temperatures)
            log_probs = tuple(stat.log_prob(row, token, t) for stat, row, t in zip(stats, rows, warmth, strict=True))
            log_probs += tuple(one.log_prob(token) for one in found)
            samples.append(Sampled(token, float(out[token]) - offset(shares, stats), log_probs, shares))
            if rule:
                mixture = learn_from(mixture, rule, samples[-1], classes)
            if token in ends:
                break
            self.accept(token)
            if index >= len(draft) or token != draft[index]:
                break
        return Verified(samples, stats, mixture)

    def _draw(self, row: Row, position: int, suppressed: Ids) -> int:
        recent = set(self._recent) if self._penalties else set()
        ids = np.fromiter(recent.union(self._biased.tolist()), np.int64)
        if not len(ids):
            return sampling.sample(row, self.chain, self.seed, position, suppressed, self.scratch)
        raw = row[ids]
        np.add.at(row, self._biased, self._bias)
        penalised = np.fromiter(recent, np.int64)
        if len(penalised):
            row[penalised] = self._penalised(penalised, row[penalised])
        try:
            return sampling.sample(row, self.chain, self.seed, position, suppressed, self.scratch)
        finally:
            row[ids] = raw

    def _penalised(self, ids: npt.NDArray[np.int64], logits: Row) -> Row:
        """llama.cpp's penalties on the only logits that they change: those of recent tokens."""
        data = np.zeros(len(ids), TOKEN_DATA)
        data["id"], data["logit"] = ids, logits
        pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
        array = llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
        llama_cpp.llama_sampler_apply(self._penalties, ctypes.byref(array))
        return np.ascontiguousarray(data["logit"])

    def accept(self, token: int) -> None:
        """Tell constraint and penalties of an emitted token. Raises DecodeError where the constraint forbids it."""
        if self._constraint:
            self._constraint.accept(token)
        self._recent.append(token)
        if self._penalties:
            llama_cpp.llama_sampler_accept(self._penalties, token)

    def replay(self, tokens: Iterable[int]) -> None:
        """Forget what was accepted, then accept `tokens`, which sample() returned in this order."""
        self._recent.clear()
        if self._constraint:
            self._constraint.reset()
        if self._penalties:
            llama_cpp.llama_sampler_reset(self._penalties)
        if self.stateful:
            for token in tokens:
                self.accept(token)

    def fork(self, seed: int | None = None) -> "Sampler":
        """Return a sampler that goes on from here by itself; with the same draws unless given another `seed`."""
        twin = object.__new__(Sampler)
        twin.__dict__ = self.__dict__ | {
            "seed": self.seed if seed is None else seed,
            "scratch": sampling.scratch(self._n_vocab),
            "_recent": self._recent.copy(),
            "_constraint": self._constraint and self._constraint.fork(),
            "_penalties": self._penalties and llama_cpp.llama_sampler_clone(self._penalties),
        }
        return twin

    def close(self) -> None:
        """Free what llama.cpp holds."""
        if self._penalties:
            llama_cpp.llama_sampler_free(self._penalties)
        self._constraint = self._penalties = None
