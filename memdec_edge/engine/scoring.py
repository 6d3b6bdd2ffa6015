"""What a mixture says of the tokens of a text: the one definition, for a server's echo and for evaluations.

Weights that learn begin anew with a text, and learn from each of its tokens before they mix the next. So what a token
is worth depends on what stands before it, and not on where a prompt ends. Knows nothing of sampling and of words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from memdec_edge.engine.session import Session
from memdec_edge.mixture.mixing import mix, offset
from memdec_edge.mixture.online import learn_from
from memdec_edge.mixture.rows import Found, Row, Sampled
from memdec_edge.mixture.top import top_of
from memdec_edge.mixture.weights import Mixture, SoftBayes

SLICE = 64  # rows of a batch, whose logits llama.cpp keeps: at 151,936 tokens they take 39 MB for each model


@dataclass
class TokenScorer:
    """Scores the tokens of one text, in their order.

    mixture: the weights before the next token. rule: how they learn; None: they are fixed. out: float32 [n_vocab], the
    mixed row of the last token, overwritten by the next. top: likeliest tokens that each score tells of, 0: none.
    """

    mixture: Mixture
    rule: SoftBayes | None
    out: Row
    top: int = 0

    def score(self, token: int, rows: Sequence[Row], found: Sequence[Found], rate: float = 1.0) -> Sampled:
        """The score of the next token.

        rows: logits before it, of base and memories; found: what each index says there; rate: how much the token counts
        for the weights, 0 to 1. Raises NumericsError as `mix`.
        """
        mixture, classes = self.mixture, [one.klass for one in found]
        stats, shares = mix(rows[0], rows[1:], mixture, self.out, [found] if found else None), mixture.at(classes)
        lifted, warmth = offset(shares, stats), (1.0, *mixture.temperatures)
        log_probs = [stat.log_prob(row, token, t) for stat, row, t in zip(stats, rows, warmth, strict=True)]
        log_probs += [one.log_prob(token) for one in found]
        log_prob = min(float(self.out[token]) - lifted, 0.0)  # a row of float32 may round a certain token up
        score = Sampled(token, log_prob, tuple(log_probs), shares)
        if self.rule:
            self.mixture = learn_from(mixture, self.rule.at(rate * self.rule.eta), score, classes)
        if not self.top:
            return score
        return score._replace(top=top_of(self.out, lifted, rows, stats, mixture.temperatures, self.top))


class Scoring:
    """Scores the tokens of a session that has read nothing, piece by piece; then the session can go on from them.

    top: see TokenScorer. scores: of the second token, the third and so on, as far as read; nothing stands before the
    first.
    """

    def __init__(self, session: Session, top: int) -> None:
        self.session, self.scores = session, list[Sampled]()
        self._scorer = TokenScorer(session.mixture, session.weighing.rule, session.row, top)

    @property
    def n_unread(self) -> int:
        """Tokens that have no score yet."""
        return len(self.session.tokens) - 1 - len(self.scores)

    def read(self, most: int) -> int:
        """Decode at most `most` tokens with the logits after each; return how many are left. Errors: see prefill().

        Pieces consist of whole slices where they can, so that a text is decoded in the same batches each time.
        """
        session, tokens = self.session, self.session.tokens
        with session.lock:
            begin = len(self.scores)
            end = min(begin + (most - most % SLICE or most), len(tokens) - 1)
            rows = [context.feed_rows(tokens[begin:end], session.slot, SLICE) for context in session.contexts]
            for at, each in enumerate(zip(*rows, strict=True), begin + 1):
                found = session.lookup.found(tokens, at) if session.indexes else []
                score = self._scorer.score(tokens[at], each, found, session.weighing.rates[at])
                for context, log_prob in zip(session.contexts, score.log_probs, strict=False):  # indexes have none
                    context.note(session.slot, at, tokens[at], log_prob)  # prefill() need not read it as evidence again
                self.scores.append(score)
            return self.n_unread
