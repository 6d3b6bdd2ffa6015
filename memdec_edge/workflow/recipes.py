"""Which training is best for how much text: one table, with its evidence. Knows nothing of machines and of time.

All figures are of SmolLM2-135M (benchmarks/LOG.md); perplexity of base and memory together on held-out text.
"""

from dataclasses import dataclass

from memdec_edge.options import TrainOptions


@dataclass(frozen=True)
class Recipe:
    """A way to train.

    least: training tokens from which it is the best known; beta: weight of imitation; teacher: epochs that fine-tune
    the teacher; epochs: passes of the memory over the text, at most.
    """

    name: str
    least: int
    beta: float
    teacher: float
    epochs: float
    evidence: str


RETRIEVER = Recipe(
    "imitates a retriever", 100_000_000, 0.5, 2.0, 3.0,
    "perplexity against plain training, less is better: at 25,000 tokens of two texts +1.5 and +0.4 %, at 100,000 -0.8 "
    "and +1.0 %, at 400,000 +0.3 %, on a CPU for three times the time; at 100 million -14 % (2508.09874)",
)  # fmt: skip
PLAIN = Recipe(
    "plain training", 0, TrainOptions.beta, 0.0, TrainOptions.epochs,
    "at 25,000 tokens 30.0 -> 12.4 after two passes, 12.8 after one, 13.1 after three; of eight trainings of four "
    "passes, on 25,000 to 1.6 million tokens, seven were best after the second (benchmarks/results/at_scale.csv)",
)  # fmt: skip
RECIPES = (RETRIEVER, PLAIN)  # best first where there is enough text and time
LEAST_PASSES = 1.0  # before text is left out: what was read once is worth more than the same read again
LEAST_TOKENS = 8_192  # of a budget that leaves text out: the fewest that were seen to help, 18.66 -> 16.37
BLOCK, BATCH = 256, 4  # those of all these figures
LEAST_BLOCKS = 4  # of training text; shorter texts get shorter blocks, down to LEAST_BLOCK tokens
LEAST_BLOCK = 16

# What a memory's file may be, largest first; the smallest that costs at most WORTH against the first is taken.
TYPES = ("q8_0", "q6_k", "q5_k_m", "q4_k_m")
WORTH = 0.01
SCORED = (8192, 4096, 2048, 1024, 512)  # tokens that choose; as many as take EVALUATED of the time at most
MEASURED = 2  # times as many tokens measure: two windows at least, since one has no error
EVALUATED = 0.3


def block_of(tokens: int, context: int) -> int:
    """The block for so many training tokens and a model that sees `context`; 0 where they are too few for any."""
    block = BLOCK
    while (block * LEAST_BLOCKS >= tokens or block > context) and block > LEAST_BLOCK:
        block //= 2
    return block if block * LEAST_BLOCKS < tokens else 0
