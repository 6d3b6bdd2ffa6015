"""How the weights of a session follow its text: which tokens are evidence, and what the weights were at each length.

Knows nothing of contexts, nor of how a voice comes to its log-probs.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from memdec_edge.engine.blend import MemoryMixture
from memdec_edge.mixture.online import learn
from memdec_edge.mixture.weights import Mixture, SoftBayes
from memdec_edge.options import MixtureOptions

Heard = tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]  # see Weighing.learn()


class Weighing:
    """The weights of memories and indexes along a text.

    rates: how much each token of the text counts, 0 to 1. mixture: at the end of the text. rule: how the weights learn,
    None where they are fixed. generated_rule: the same from a generated token. highest: the largest weight that the
    memories together had so far.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.mixture = Mixture((), ())
        self.rule: SoftBayes | None = None
        self.generated_rule: SoftBayes | None = None
        self.highest = 0.0
        self._learning = MixtureOptions()
        self._known: dict[int, Mixture] = {}  # by length: the mixture once so many tokens had their say

    def begin(self, chosen: MemoryMixture) -> None:
        """Weigh these voices from here on, as if none had been weighed before."""
        self.mixture, self.rule = chosen.mixture, chosen.rule()
        self._learning = chosen.learning or MixtureOptions()
        self.generated_rule = self.rule and self.rule.at(self._learning.generated * self.rule.eta)
        self._known, self.highest = {}, sum(chosen.weights) if self.rule is None else 0.0

    def extend(self, count: int, rate: float | Sequence[float]) -> None:
        """Go on by `count` tokens of a prompt, with one rate for all or one for each."""
        self.rates += [rate] * count if isinstance(rate, int | float) else rate

    def emit(self, after: Mixture) -> None:
        """Go on by a generated token, which has led to `after`."""
        self.rates.append(self._learning.generated)
        if self.rule:
            self._settle_on(after)

    def rewind(self, length: int) -> None:
        """Go back to the first `length` tokens, and to the weights there if they are known; else learn() finds them."""
        del self.rates[length:]
        self._known = {known: mixture for known, mixture in self._known.items() if known <= length}
        self.mixture = self._known.get(length, self.mixture)

    def copy_to(self, twin: "Weighing") -> None:
        """Make another one that weighs the same voices stand where this one stands."""
        twin.rates, twin._known = list(self.rates), dict(self._known)
        twin.mixture, twin.highest = self.mixture, self.highest

    @property
    def is_done(self) -> bool:
        """Whether the weights at the end of the text are known, as they are where nothing learns."""
        return not self.rule or len(self.rates) in self._known

    def evidence(self) -> list[int]:
        """The positions of the tokens that the weights learn from: those that count, among the last of the text."""
        first = max(1, len(self.rates) - self._learning.evidence)
        return [at for at in range(first, len(self.rates)) if self.rates[at]]

    def learn(self, heard: Callable[[list[int]], Heard]) -> None:
        """Learn from all evidence in order, from the first weights on; nothing where that is done.

        heard: for positions of tokens, the log-probs that the voices gave them, nats [voices, positions], and the class
        of each index's match there, [indexes, positions].
        """
        if not self.rule or self.is_done:
            return
        mixture = self.mixture.after(self.rule.vectors)
        for rate, positions in groupby(self.evidence(), key=self.rates.__getitem__):
            mixture = learn(mixture, self.rule.at(rate * self.rule.eta), *heard(list(positions))).mixture
        self._settle_on(mixture)

    def _settle_on(self, mixture: Mixture) -> None:
        """Mix so from here on."""
        self.mixture = self._known[len(self.rates)] = mixture
        self.highest = max(self.highest, sum(mixture.weights))
