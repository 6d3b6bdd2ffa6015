"""Options of making memories: the kNN cache, the training. Knows nothing of where values come from."""

from dataclasses import dataclass, field
from pathlib import Path

from memdec_edge.options.fields import INT_MAX, Checked, about, option

KEYS = ("mlp_input", "hidden")  # what a teacher's key is; train/teacher.py
TARGETS = ("knn-lm", "knn")  # what a memory imitates; train/targets.py
OF_RETRIEVER = ("finetune_teacher", "key", "target", "k", "knn_temp", "search", "top_mass")  # of no use with beta 0
SEARCHES = ("auto", "exact", "ivfpq", "hnsw")  # how neighbours are found; train/knn/approximate.py
DEFAULT_K = 1024  # as in 2508.09874
CHAT_SHARE = 0.25  # benchmarks/results/chat_form.txt: answers gain more than with 0.15 and 0.5
OUT = about("--out", metavar="DIR", unicode=True, help="Output folder.")


@dataclass(frozen=True)
class CacheOptions(Checked):
    """The kNN cache: a teacher's keys over a corpus, their neighbours, the sparse targets.

    Of the ways to imitate, a fine-tuned teacher with the target knn-lm did best: from 25,000 tokens of medicine 12.1 on
    validation text, where p_kNN of the plain teacher gave 12.8, and plain fine-tuning 12.4 (benchmarks/LOG.md).
    """

    teacher: Path = field(metadata=about("--teacher", metavar="PATH", help="Teacher: Hugging Face folder or GGUF."))
    corpus: Path = field(
        metadata=about(
            "--corpus", metavar="PATH", help="Text: a file, a zip or a folder of them; or .npy of token ids."
        )
    )
    out: Path = field(metadata=OUT)
    finetune_teacher: float = option(
        2.0, "--finetune-teacher", metavar="EPOCHS", low=0.0, high=1e6,
        help="Epochs that fine-tune a copy of the teacher on the text first; 0: none.",
    )  # fmt: skip
    # mlp_input is the paper's, and better than the last hidden state (benchmarks/LOG.md)
    key: str = option(
        "mlp_input", "--key", choices=KEYS, help="Kind of key, taken from the last layer: mlp_input or hidden."
    )
    # knn is what 2508.09874 does
    target: str = option(
        "knn-lm", "--target", choices=TARGETS,
        help="Target of imitation: the retriever (knn), or retriever and teacher (knn-lm).",
    )  # fmt: skip
    k: int | None = option(
        None, "--k", metavar="K|auto", low=1, high=1 << 20, none="auto",
        help=f"Neighbours of a position; auto: {DEFAULT_K}, or all where the text has fewer.",
    )  # fmt: skip
    knn_temp: float | None = option(
        None, "--knn-temp", metavar="T|auto", low=1e-6, high=1e12, none="auto",
        help="Temperature tau of exp(-d^2/tau), d the L2 distance; auto: the best on validation text.",
    )  # fmt: skip
    search: str = option(
        "auto",
        "--search",
        choices=SEARCHES,
        help="Search for neighbours: exact, ivfpq or hnsw; auto: exact where that is fast.",
    )
    top_mass: float = option(
        0.95, "--top-mass", low=0.01, high=1.0,
        help="Keep the likeliest tokens that hold this share of a target, 48 at most; 1: keep all.",
    )  # fmt: skip
    block: int = option(512, "--block", low=8, high=1 << 20, help="Tokens of context in training and caching.")
    batch: int = option(4, "--batch", low=1, high=4096, help="Blocks in one pass.")
    # the template of the base that a memory will stand beside: its own form of a question and an answer
    chat_base: Path | None = option(
        None, "--chat-base", metavar="GGUF",
        help="Base in whose chat template a part of the training text is learned. Default: none, text alone.",
    )  # fmt: skip
    chat_share: float = option(
        CHAT_SHARE, "--chat-share", metavar="SHARE", low=0.0, high=1.0,
        help="Share of the text that becomes questions and answers beside `chat_base`; dialogues always do.",
    )  # fmt: skip
    # of documents, where the corpus has no validation split or no test split of its own
    valid_fraction: float = option(0.05, low=0.0, high=0.5, help="Share of the text that is kept for validation.")
    test_fraction: float = option(0.05, low=0.0, high=0.5, help="Share of the text that is kept for testing.")
    max_tokens: int = option(0, "--max-tokens", low=0, high=INT_MAX, help="Training tokens to use at most; 0: all.")
    seed: int = option(0, "--seed", low=0, high=INT_MAX, help="Seed of splits, order and initialisation.")
    fresh: bool = option(False, "--fresh", help="Redo what was made with other options, or is damaged.")
    spin: bool = option(
        False, "--spin", help="Let waiting threads spin: a tenth faster, but very slow beside other work."
    )


@dataclass(frozen=True)
class TrainOptions(Checked):
    """A memory: how it starts, its loss, its budget. Block, batch, seed and `fresh` are the cache's.

    The defaults are the recipe that is the best known up to 100 million tokens (memdec_edge/workflow/recipes.py has
    the evidence): plain fine-tuning, two epochs. Imitating a retriever takes three times as long on a CPU. At 25,000 to
    400,000 tokens it gained 0.8 % of perplexity at most, and lost up to 1.5 %. The best epoch is kept.
    """

    cache: CacheOptions
    out: Path = field(metadata=OUT)  # checkpoint folder
    init: Path | None = option(
        None,
        "--init",
        metavar="PATH",
        help="Model that the memory starts from, as a teacher is named. Default: the teacher.",
    )
    from_scratch: bool = option(False, "--from-scratch", help="Start from random weights in the shape of that model.")
    layers: int | None = option(
        None, "--layers", low=1, high=INT_MAX, help="Layers to keep, those that the text needs most."
    )
    # the embedding becomes a truncated SVD of the source's
    hidden: int | None = option(
        None,
        "--hidden",
        low=8,
        high=INT_MAX,
        help="Width of the memory, smaller than that of the model it starts from.",
    )
    epochs: float = option(2.0, "--epochs", low=1e-6, high=1e6, help="Passes over the text.")
    steps: int = option(0, "--steps", low=0, high=INT_MAX, help="Optimiser steps; 0: as `epochs` asks.")
    # L = beta * KL(target || p_mem) + (1 - beta) * CE; 2508.09874, eq. 5
    beta: float = option(
        0.0, "--beta", low=0.0, high=1.0,
        help="Weight of imitation, 0 to 1; 0: plain fine-tuning. 0.5 pays from 100M tokens on, as far as is known.",
    )  # fmt: skip
    lr: float | None = option(
        None, "--lr", metavar="RATE|auto", low=0.0, high=1.0, none="auto",
        help="Peak learning rate; auto: the best of a few short trials on validation text.",
    )  # fmt: skip
    warmup: float = option(0.05, low=0.0, high=1.0, help="Share of the steps in which the learning rate rises.")
    freeze_body: float = option(
        0.0, "--freeze-body", metavar="SHARE", low=0.0, high=1.0,
        help="Share of the steps, the first ones, in which embedding and head learn alone.",
    )  # fmt: skip
    weight_decay: float = option(0.01, low=0.0, high=1.0, help="Decay of weight matrices.")
    clip: float = option(1.0, low=1e-6, high=1e6, help="Largest norm of a step's gradient.")
    accumulate: int = option(1, "--accumulate", low=1, high=4096, help="Passes in one optimiser step.")
    save_every: int = option(
        50, "--save-every", low=1, high=INT_MAX, help="Steps between the states that a stopped run goes on from."
    )
    valid_every: int = option(
        50, "--valid-every", low=0, high=INT_MAX,
        help="Steps between validations, beside one after each epoch; 0: only at the end.",
    )  # fmt: skip
    valid_positions: int = option(8192, low=1, high=INT_MAX, help="Tokens of validation text to score at most.")
    domain: str = option("", "--domain", help="Topic of the memory, for the GGUF.")
    license: str = option("", "--license", help="Licence of the text as an SPDX id, for the GGUF.")


@dataclass(frozen=True)
class AdaptOptions(Checked):
    """A memory for another vocabulary: which memory, whose vocabulary, how much training."""

    memory: Path = field(metadata=about(metavar="DIR", help="Checkpoint folder of the memory."))
    to: Path = field(metadata=about("--to", metavar="PATH", help="New base: Hugging Face folder or GGUF."))
    training: TrainOptions  # its cache's teacher is the new base
    # as in 2508.09874
    budget_share: float = option(
        0.1, "--budget-share", metavar="SHARE", low=1e-6, high=1e3,
        help="Training tokens, as a share of those that the memory was trained on.",
    )  # fmt: skip
