"""How much each of several memories weighs. Pure arithmetic; knows nothing of models."""

from collections.abc import Sequence
from typing import NamedTuple

from memdec_edge.errors import OptionError
from memdec_edge.mixture.mixing import SLACK
from memdec_edge.options import DEFAULT_LAMBDA, check_range


class Mixture(NamedTuple):
    """A resolved mixture: one weight and one temperature for each memory; the base has the rest of the weight."""

    weights: tuple[float, ...]  # each in [0, 1], their sum at most 1
    temperatures: tuple[float, ...]  # they divide the memories' logits


def mixture_weights(
    recommended: Sequence[float | None], literal: Sequence[float | None], total: float | None
) -> list[float]:
    """One lambda per memory, each in [0, 1], their sum at most 1.

    `recommended`: what each memory's GGUF recommends (None: DEFAULT_LAMBDA); `literal`: weights that the user gave for
    one memory (None: not given), taken as they are; `total`: the weight of the other memories together, split in the
    ratio of their recommendations. Without `total` recommendations are scaled so that their sum does not exceed the
    largest of them. Raises OptionError when a weight leaves [0, 1] or the sum exceeds 1.
    """
    if total is not None:
        check_range("--lambda", total, 0.0, 1.0)
    shares = [DEFAULT_LAMBDA if share is None else share for share in recommended]
    free = [share for share, given in zip(shares, literal, strict=True) if given is None]
    if total is not None and not literal:
        raise OptionError("--lambda", total, "there is no memory to weigh; give one with -M")
    if total is not None and not free:
        raise OptionError("--lambda", total, "every memory has its own weight from --memory-scaled; leave one out")
    wanted = total if total is not None else max(free, default=0.0)
    if not sum(free):  # every recommendation is 0: equal parts
        shares = [1.0] * len(shares)
    whole = sum(share for share, given in zip(shares, literal, strict=True) if given is None)
    weights = [
        wanted * (share / whole) if given is None else given for share, given in zip(shares, literal, strict=True)
    ]
    if sum(weights) > 1 + SLACK:
        shown = " + ".join(f"{weight:g}" for weight in weights)
        raise OptionError("the sum of the memories' lambdas", f"{shown} = {sum(weights):g}", "must be at most 1")
    return weights
