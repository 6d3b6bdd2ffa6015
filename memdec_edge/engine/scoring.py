"""What a mixture says of the tokens of a prompt: the log-prob of each, and the likeliest ones in its place.

The weights learn from each token before they mix the next, so a log-prob depends on what stands before it alone. Knows
nothing of sampling and of text.
"""

from collections.abc import Sequence

import numpy as np

from memdec_edge.engine.session import Session
from memdec_edge.mixture.mixing import mix, offset
from memdec_edge.mixture.online import learn_from
from memdec_edge.mixture.rows import Row, Sampled
from memdec_edge.mixture.top import with_tops

SLICE = 64  # rows of a batch, whose logits llama.cpp keeps


class Scoring:
    """Scores the tokens of a session that has read nothing, piece by piece; then the session can go on from them.

    top: likeliest tokens that each score tells of, 0: none. scores: of the second token, the third and so on, as far as
    read; the first has nothing before it.
    """

    def __init__(self, session: Session, top: int) -> None:
        self.session, self._top = session, top
        self.scores: list[Sampled] = []
        self._mixture = session.mixture

    @property
    def n_unread(self) -> int:
        """Tokens that have no score yet."""
        return len(self.session.tokens) - 1 - len(self.scores)

    def read(self, most: int) -> int:
        """Decode at most `most` tokens with the logits after each; return how many are left. Errors: see prefill()."""
        session = self.session
        with session.lock:
            begin = len(self.scores)
            end = min(begin + most, len(session.tokens) - 1)
            rows = [context.feed_rows(session.tokens[begin:end], session.slot, SLICE) for context in session.contexts]
            for at, found in enumerate(zip(*rows, strict=True), begin + 1):
                self.scores.append(self._score(at, found))
            return self.n_unread

    def _score(self, at: int, rows: Sequence[Row]) -> Sampled:
        """The score of the token at `at`; rows: logits of base and memories before it."""
        session, mixture = self.session, self._mixture
        token, out = session.tokens[at], session.row
        found = session.lookup.found(session.tokens, at) if session.indexes else []
        classes = [one.klass for one in found]
        stats = mix(rows[0], rows[1:], mixture, out, [found] if found else None)
        warmth = (1.0, *mixture.temperatures)
        log_probs = tuple(stat.log_prob(row, token, t) for stat, row, t in zip(stats, rows, warmth, strict=True))
        for context, log_prob in zip(session.contexts, log_probs, strict=True):
            context.note(session.slot, at, token, log_prob)  # so that prefill() need not read it as evidence again
        log_probs += tuple(one.log_prob(token) for one in found)
        shares = mixture.at(classes)
        score = Sampled(token, float(out[token]) - offset(shares, stats), log_probs, shares)
        if session.rule:
            rule = session.rule.at(session.rates[at] * session.rule.eta)
            self._mixture = learn_from(mixture, rule, score, classes)
        if not self._top:
            return score
        base, memories = rows[0][np.newaxis], [row[np.newaxis] for row in rows[1:]]
        return with_tops([score], base, memories, [found], mixture.temperatures, self._top, out)[0]
