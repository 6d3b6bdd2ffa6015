"""What train(), build_cache() and measure_speed() return, without the libraries that they need.

Knows nothing of how it is found.
"""

from dataclasses import dataclass
from pathlib import Path

NOTICE = "A memory can reproduce its training text verbatim: share it only where you may share that text."


@dataclass(frozen=True)
class CacheReport:
    """What a finished cache holds.

    Perplexities and distances (medians, squared L2) are of validation positions; None without a validation split.
    """

    path: Path
    train_tokens: int
    valid_tokens: int
    held_out: Path | None  # test documents for memdec-edge eval; None where the corpus names its own
    key: str  # what a key is: "mlp_input" or "hidden"
    k: int  # neighbours of a position
    tau: float
    nearest_distance: float | None
    kth_distance: float | None
    teacher_perplexity: float | None
    knn_perplexity: float | None  # of teacher and p_kNN, mixed by the gate
    gate: float | None  # mean weight of p_kNN in that mixture
    search: str  # "exact", or the kind of index
    recall: float | None  # share of the exact kNN mass that the index finds, on a sample; None: exact
    bytes: int  # on disk


@dataclass(frozen=True)
class Speed:
    """What a machine does with a model, in tokens a second, and what it takes before the first."""

    training: float  # of optimiser steps
    reading: float  # of passes that score each next token
    products: float  # multiplications and additions a second, of large matrices
    loading: float  # seconds to load the model
    warming: float  # seconds that the first step takes more than others
    seconds: float  # of all this, without the start of the process
    device: str  # PyTorch's name: cpu, cuda, ...


@dataclass(frozen=True)
class TrainReport:
    """A finished training. Perplexities are of validation positions; None without a validation split."""

    path: Path  # checkpoint folder
    steps: int
    tokens: int  # seen, all steps together
    best_step: int  # whose weights are published: those that did best on validation text; 0: those of the start
    valid_perplexity: float | None  # of the memory alone
    mixture_perplexity: float | None  # of the memory and the teacher as it was given
    mixture_lambda: float | None  # the weight of the memory that is best there; the GGUF recommends it
    start_perplexity: float | None  # of the memory alone, before the first step
    seconds: float  # of this call
    notice: str = NOTICE  # to be shown to the user
