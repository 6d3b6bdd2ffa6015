"""Options of using models: loading, mixing, sampling, generating, measuring quality and speed.

Names, flags and defaults are llama.cpp's where it has the same option. Knows nothing of where values come from.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from memdec_edge.errors import OptionError
from memdec_edge.options.fields import INT_MAX, Checked, about, check_range, option

ETA, SHARE = 0.05, 0.002  # of weights that learn; fitted to nothing, and results hardly depend on them
INITIAL_LAMBDA = 0.5  # of all memories together, where weights learn and no file recommends one
# Of an index, where weights learn, after the longest matches; times this power of the trust after others. Chosen on
# validation text: the square is 0.4 % better in the domain, and costs six times as much outside it.
INITIAL_INDEX, INITIAL_POWER = 0.85, 4
DEFAULT_LAMBDA = 0.6  # the paper's choice; flat within 2.5 % of perplexity over 0.4-0.8 (2508.09874, table 6)
LAMBDAS = tuple(i / 20 for i in range(21))  # the grid on which weights of a memory are compared
# KV cache types with their numbers in enum ggml_type; llama-cpp-python does not name them all.
CACHE_TYPES = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "iq4_nl": 20,
}  # fmt: skip
MAX_DRAFT = 16  # tokens
MAX_LOGPROBS = 100
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # of a repository of the Hugging Face Hub
# and a revision (branch, tag or commit), and a quantisation or a file
HUB_NAME = re.compile(rf"(?P<repo>{HUB_ID.pattern})(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+))?")

# Options that two dataclasses share, or that an argument of a call gives.
DRAFT = about(
    "--draft", metavar="N|auto", low=0, high=MAX_DRAFT, none="auto",
    help=f"Tokens, 0 to {MAX_DRAFT}, that memories and indexes draft for each pass of the base: the same text, faster.",
)  # fmt: skip


@dataclass(frozen=True)
class LoadOptions(Checked):
    """How models are opened. What has no name of its own for memories serves base and memories alike."""

    # cells, one per token, for all sessions together
    n_ctx: int = option(
        4096, "-c", "--ctx-size", low=0, high=1 << 24, help="Size of the context in tokens; 0: as trained."
    )
    n_batch: int = option(
        512, "-b", "--batch-size", low=1, high=1 << 16, help="Tokens evaluated in one pass of prefill."
    )
    threads: int = option(0, "-t", "--threads", low=0, high=512, help="Threads of decoding; 0: one per usable CPU.")
    threads_batch: int = option(
        0, "-tb", "--threads-batch", low=0, high=512, help="Threads of prefill; 0: as `threads`."
    )
    # prefill too; where base and memories decode at a time, 0 is a part of the base's
    memory_threads: int = option(
        0, "--memory-threads", low=0, high=512, help="Threads of the memories; 0: as the base's."
    )
    n_gpu_layers: int = option(
        999, "-ngl", "--gpu-layers", low=0, high=100_000, help="Layers on the GPU, where there is one."
    )
    memory_gpu_layers: int | None = option(
        None, "--memory-gpu-layers", low=0, high=100_000,
        help="Layers of each memory on the GPU. Default: as the base's.",
    )  # fmt: skip
    flash_attn: str = option(
        "auto",
        "-fa",
        "--flash-attn",
        metavar="on|off|auto",
        choices=("on", "off", "auto"),
        help="Use of flash attention.",
    )
    cache_type_k: str = option(
        "f16", "-ctk", "--cache-type-k", choices=CACHE_TYPES, help="Type of the K cache: f32, f16, q8_0, ..."
    )
    cache_type_v: str = option(
        "f16", "-ctv", "--cache-type-v", choices=CACHE_TYPES, help="Type of the V cache: f32, f16, q8_0, ..."
    )
    force: bool = option(False, "--force", help="Mix models whose vocabularies differ.")
    n_seq: int = option(1, low=1, high=256, help="Sessions that may be open at a time.")

    def of_memories(self) -> "LoadOptions":
        """The same, with what is said of memories in the base's place."""
        return replace(
            self,
            threads=self.memory_threads or self.threads,
            threads_batch=self.memory_threads or self.threads_batch,
            n_gpu_layers=self.n_gpu_layers if self.memory_gpu_layers is None else self.memory_gpu_layers,
        )


@dataclass(frozen=True)
class BaseOptions(Checked):
    """The base: a file, or a model of the Hugging Face Hub by the name that llama.cpp has for it."""

    model: Path | None = option(None, "-m", "--model", metavar="FILE", help="Base model, GGUF.")
    hf_repo: str = option(
        "", "-hf", "-hfr", "--hf-repo", metavar="USER/REPO[:QUANT]",
        help="Base model of the Hugging Face Hub. Default of QUANT: Q4_K_M, else Q8_0, else its first GGUF.",
    )  # fmt: skip
    hf_file: str = option("", "-hff", "--hf-file", metavar="FILE", help="GGUF of that repository, in place of QUANT.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model and self.hf_repo:
            raise OptionError("hf_repo", self.hf_repo, "given beside `model`; give one of the two")
        if self.hf_repo and not HUB_NAME.fullmatch(self.hf_repo):
            raise OptionError("hf_repo", self.hf_repo, "must be user/repo, user/repo:quant or user/repo@revision")
        if self.hf_file and not self.hf_repo:
            raise OptionError("hf_file", self.hf_file, "names a file of `hf_repo`; give that too")


@dataclass(frozen=True)
class MemoryOptions(Checked):
    """One memory and its weight; `weight` None: the GGUF's recommendation, else DEFAULT_LAMBDA."""

    path: Path = field(
        metadata=about(
            "-M", "--memory", metavar="FILE", help="Memory GGUF, or user/repo[:FILE] of the Hub; repeatable."
        )
    )
    weight: float | None = option(
        None, "--memory-scaled", metavar="FILE:LAMBDA", low=0.0, high=1.0,
        help="Memory GGUF with a weight of its own; repeatable.",
    )  # fmt: skip


@dataclass(frozen=True)
class MixtureOptions(Checked):
    """How much the memories weigh: a fixed total, or weights that learn from the text (mixture/weights.py, SoftBayes).

    Weights begin with what the memories recommend and learn from the last tokens of a prompt, then from what is
    generated. eta says how fast, and share how much of the weights returns to the first ones; None: what `tune` wrote
    into the memory's file, else ETA and SHARE.
    """

    total: float | None = option(
        None, "--lambda", metavar="X|auto", low=0.0, high=1.0, none="auto",
        help="Weight of the memories together, 0 to 1; auto: the weights follow the text.",
    )  # fmt: skip
    evidence: int = option(
        256, "--lambda-window", low=0, high=1 << 20,
        help="Last tokens of a prompt from which the weights learn; 0: none.",
    )  # fmt: skip
    eta: float | None = option(None, low=0.0, high=1.0, help="How fast the weights follow a token of the prompt.")
    share: float | None = option(None, low=0.0, high=1.0, help="Part of the weights that returns to the first ones.")
    generated: float = option(
        0.1, low=0.0, high=1.0, help="How much a generated token counts, beside one of the prompt."
    )


@dataclass(frozen=True)
class SamplingOptions(Checked):
    """The sampler chain, in llama.cpp's terms and with its defaults."""

    temperature: float = option(0.8, "--temp", low=0.0, high=100.0, help="Temperature; 0: greedy.")
    top_k: int = option(40, "--top-k", low=0, high=INT_MAX, help="Sample from the K likeliest tokens; 0: from all.")
    top_p: float = option(
        0.95,
        "--top-p",
        low=0.0,
        high=1.0,
        help="Sample from the likeliest tokens that have this probability together; 1: from all.",
    )
    min_p: float = option(
        0.05, "--min-p", low=0.0, high=1.0, help="Drop tokens below this share of the highest probability; 0: none."
    )
    repeat_penalty: float = option(
        1.0, "--repeat-penalty", low=0.01, high=100.0, help="Penalty on tokens that occurred; 1: none."
    )
    repeat_last_n: int = option(
        64, "--repeat-last-n", low=-1, high=1 << 24, help="Last tokens that penalties look at; -1: the whole context."
    )
    presence_penalty: float = option(
        0.0, "--presence-penalty", low=-2.0, high=2.0, help="Amount that a token which occurred loses; 0: none."
    )
    frequency_penalty: float = option(
        0.0,
        "--frequency-penalty",
        low=-2.0,
        high=2.0,
        help="Amount that a token loses for each time it occurred; 0: none.",
    )
    grammar: str = option("", "--grammar", help="GBNF grammar that the text follows.")
    json_schema: str = option("", "-j", "--json-schema", help="JSON schema that the text follows.")
    seed: int = option(-1, "-s", "--seed", low=-1, high=2**32 - 2, help="Seed of sampling; -1: a random one.")
    # token ids and what is added to their logits before everything else, nats; -inf: never sampled
    logit_bias: tuple[tuple[int, float], ...] = field(default=(), metadata=about(help="Amounts added to logits."))

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.logit_bias:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], int) and pair[1] < math.inf):
                raise OptionError("logit_bias", pair, "must be pairs of a token id and a number below infinity")
        if self.grammar and self.json_schema:
            raise OptionError("json_schema", "given beside `grammar`", "give one of the two")


@dataclass(frozen=True)
class GenerationOptions(Checked):
    """When generation ends, and how far memories may run ahead; the text does not depend on that."""

    n_predict: int = option(
        -1, "-n", "--predict", low=-1, high=1 << 24, help="Tokens to generate at most; -1: up to the context's end."
    )
    # end-of-generation tokens are not sampled
    ignore_eos: bool = option(
        False, "--ignore-eos", help="Generate exactly `n_predict` tokens, past the end of the text."
    )
    stop: tuple[str, ...] = option((), "-r", "--stop", help="Text that ends generation and is left out; repeatable.")
    draft: int | None = field(default=None, metadata=DRAFT)  # None: chosen by measurement
    logprobs: int = option(
        0, low=0, high=MAX_LOGPROBS, help="Likeliest tokens to tell for each generated one, of mixture and models."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.stop:
            raise OptionError("stop", "an empty string", "give at least one character")


@dataclass(frozen=True)
class EvalOptions(Checked):
    """Perplexity: one definition everywhere. Only tokens new to a window are scored."""

    window: int = option(1024, "--window", low=2, high=1 << 20, help="Tokens of a window.")
    stride: int = option(
        512, "--stride", low=1, high=1 << 20, help="Tokens from one window to the next, those that are scored."
    )
    max_tokens: int = option(
        0, "--max-tokens", low=0, high=INT_MAX, help="Tokens to score at most, in evenly spaced windows; 0: all."
    )
    lambdas: tuple[float, ...] = option(LAMBDAS[::2], low=0.0, high=1.0, help="Weights of the sweep.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("stride", self.stride, 1, self.window - 1)


@dataclass(frozen=True)
class BenchOptions(Checked):
    """How speed is measured: how long prompts and continuations are, and how many of them."""

    prompt_tokens: int = option(256, "--prompt-tokens", low=2, high=1 << 20, help="Tokens of a prompt.")
    n_predict: int = option(128, "-n", "--predict", low=1, high=1 << 20, help="Tokens generated after each prompt.")
    repetitions: int = option(
        5, "--repetitions", low=1, high=1000, help="Prompts that each system continues; figures are medians."
    )
    draft: int | None = field(default=None, metadata=DRAFT)  # None: chosen by measurement
