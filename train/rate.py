"""The learning rate: its course over a run, and the choice of its peak. Knows nothing of models and data.

A rate that suits one model ruins another: SmolLM2-135M does best at 2e-4 (benchmarks/LOG.md), and a 0.5B of Qwen loses
at that rate in two steps what 2e-5 improves. No table of sizes predicts which. So the peak is tried: from the start's
weights a short run at each of a few rates, highest first, until one does worse on validation text than the one before.
"""

import math
from collections.abc import Callable

RATES = (2e-4, 6e-5, 2e-5, 6e-6)  # for weights that a training has made before
FRESH_RATES = (2e-3, 6e-4, 2e-4, 6e-5)  # for random weights, which higher rates do not harm
TRIAL_STEPS = (4, 16)  # a twentieth of the steps, within these


def learning_rate(peak: float, warmup: float, step: int, steps: int) -> float:
    """Linear warm-up to `peak` in a share of the steps, then a cosine to 0 at the last step's end; step from 0."""
    warm = math.ceil(warmup * steps)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def trial_steps(steps: int) -> int:
    """How long a trial run is, beside a run of so many steps."""
    low, high = TRIAL_STEPS
    return min(steps, max(low, min(high, steps // 20)))


def choose_rate(rates: tuple[float, ...], trial: Callable[[float], float]) -> float:
    """The best of `rates`, which fall; `trial` runs one and returns its perplexity.

    Trials end with the first that does worse than the one before.
    """
    best, least = rates[0], math.inf
    for rate in rates:
        found = trial(rate)
        if found > least:
            break
        best, least = rate, found
    return best
