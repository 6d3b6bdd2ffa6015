"""Fixed mixtures as experts under fixed share: the classical other way to weights that follow a text.

What the online weight is compared with. Knows nothing of models.
"""

import numpy as np
import numpy.typing as npt

Wide = npt.NDArray[np.float64]


def fixed_share(experts: Wide, share: float) -> tuple[Wide, Wide]:
    """Log-probs of a Bayes mixture of experts whose weights return to equal ones by `share` (Herbster, Warmuth 1998).

    experts: nats, [experts, tokens], of which one at least is finite for each token; share: 0 to 1. Returns the
    log-probs [tokens] and the log-weights after the last token [experts].
    """
    n = len(experts)
    log_weights, out = np.full(n, -np.log(n)), np.empty(experts.shape[1])
    for at, column in enumerate(experts.T):
        joint = log_weights + column
        out[at] = np.logaddexp.reduce(joint)
        with np.errstate(divide="ignore"):  # without share an expert that was wrong once is out
            log_weights = np.log((1 - share) * np.exp(joint - out[at]) + share / n)
    return out, log_weights
