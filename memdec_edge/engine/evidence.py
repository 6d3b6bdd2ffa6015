"""What a model says of the tokens of a prompt: the evidence from which the mixture's weights learn.

A token's log-prob comes from the row before it, so a prompt's last tokens are decoded with logits on every row. A
context keeps the log-probs that it gave; only rows that it lacks are decoded again. Knows nothing of weights.
"""

import math
from collections.abc import Sequence

from memdec_edge.llama.context import Context
from memdec_edge.mixture.mixing import row_stats
from memdec_edge.mixture.rows import Row

SLICE = 64  # rows of a batch: at 151,936 tokens their logits take 39 MB


class Reader:
    """Reads prompts in one context. n_vocab: ids of the base; temperature divides the logits before the softmax."""

    def __init__(self, context: Context, n_vocab: int, temperature: float) -> None:
        self.context, self._temperature = context, temperature
        self._length = min(n_vocab, context.model.n_vocab)

    def begin(self, tokens: Sequence[int], slot: int, wanted: Sequence[int]) -> int:
        """How many tokens the slot may keep, so that reading on gives the log-probs at the positions `wanted`.

        The slot holds a beginning of `tokens`.
        """
        held = min(len(self.context.tokens[slot]), len(tokens) - 1)
        missing = (at for at in wanted if self.context.noted(slot, at, tokens[at]) is None)
        return min(held, next(missing, len(tokens)) - 1)

    def read(self, tokens: Sequence[int], slot: int, end: int, wanted: Sequence[int]) -> None:
        """Make a slot hold tokens[:end], and note the log-probs at the positions in `wanted` up to `end`.

        Raises as Context.prefill(); called again, it goes on.
        """
        first = next((at for at in wanted if self.context.noted(slot, at, tokens[at]) is None), len(tokens))
        begin = min(first - 1, end)
        self.context.prefill(tokens[:begin], slot)
        for at, row in enumerate(self.context.feed_rows(tokens[begin:end], slot, SLICE), begin + 1):
            self.context.note(slot, at, tokens[at], self._log_prob(row, tokens[at]))

    def log_prob(self, tokens: Sequence[int], slot: int, at: int) -> float:
        """The log-prob of tokens[at], nats, which read() noted."""
        found = self.context.noted(slot, at, tokens[at])
        assert found is not None, f"token {at} was not read with logits"
        return found

    def _log_prob(self, row: Row, token: int) -> float:
        if token >= self._length:
            return -math.inf
        stats = row_stats(row, self._length, self._temperature, self.context.model.path)
        return float(row[token]) / self._temperature - stats.logsumexp
