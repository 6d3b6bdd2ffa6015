"""What an index says of a text, token by token. Knows nothing of models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge.evaluation.windows import Window
from memdec_edge.mixture.match import Index, Matcher, class_of
from memdec_edge.mixture.rows import Ids, Wide


@dataclass(frozen=True)
class IndexScores:
    """What an index says of the scored tokens: its log-probs, the class of each match, and whether it is right."""

    log_probs: Wide  # nats, [tokens]
    classes: Ids  # [tokens], 0: no match
    right: npt.NDArray[np.bool_]  # [tokens]: the token is the likeliest continuation


def index_scores(index: Index, tokens: Sequence[int], windows: Sequence[Window]) -> IndexScores:
    """What an index says of every scored token, after what its window holds before it."""
    found: list[tuple[float, int, bool]] = []
    for window in windows:
        matcher = Matcher(index)
        matcher.extend(tokens[window.start : window.scored])
        for target in tokens[window.scored : window.end]:
            match = matcher.match()
            chance = float(match.probs[match.ids == target].sum())
            right = chance > 0 and chance == float(match.probs.max())
            found.append((math.log(chance) if chance else -math.inf, class_of(match.length), right))
            matcher.extend([target])
    log_probs, classes, right_ones = zip(*found, strict=True)
    return IndexScores(np.array(log_probs), np.array(classes, np.int32), np.array(right_ones))
