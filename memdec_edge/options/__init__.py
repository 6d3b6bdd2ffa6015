"""Options: the only home of defaults and ranges.

Frozen dataclasses that check themselves; each raises OptionError, which names the command-line option.
Knows nothing of where the values came from: the CLI, Python and tests build the same objects.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from memdec_edge.errors import OptionError

DEFAULT_LAMBDA = 0.6  # the paper's choice; flat within 2.5 % of perplexity over 0.4-0.8 (2508.09874, table 6)
# KV cache types with their numbers in enum ggml_type; llama-cpp-python does not name them all.
CACHE_TYPES = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "iq4_nl": 20,
}  # fmt: skip
MAX_DRAFT = 16  # tokens
KEYS = ("mlp_input", "hidden")  # what a teacher's key is; train/teacher.py
TARGETS = ("knn-lm", "knn")  # what a memory imitates; train/targets.py
SEARCHES = ("auto", "exact", "ivfpq", "hnsw")  # how neighbours are found; train/knn/approximate.py
OUT_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")  # what convert writes by itself
QUANT_TYPES = (
    "q1_0", "q2_0", "q4_0", "q4_1", "mxfp4_moe", "q5_0", "q5_1", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq1_s",
    "iq1_m", "tq1_0", "tq2_0", "q2_k", "q2_k_s", "iq3_xxs", "iq3_s", "iq3_m", "q3_k", "iq3_xs", "q3_k_s", "q3_k_m",
    "q3_k_l", "iq4_nl", "iq4_xs", "q4_k", "q4_k_s", "q4_k_m", "q5_k", "q5_k_s", "q5_k_m", "q6_k", "q8_0", "f16",
    "bf16", "f32",
)  # fmt: skip  # llama-quantize's names; llama.cpp's quantiser makes them
TENSOR_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl",
    "iq4_xs",
)  # fmt: skip  # ggml's, of single tensors


def check_range(option: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise OptionError unless low <= value <= high (so NaN fails too)."""
    if not low <= value <= high:
        raise OptionError(option, value, f"must be from {low} to {high}" if high < math.inf else f"must be >= {low}")


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(option, value, f"must be one of {', '.join(choices)}")


@dataclass(frozen=True)
class LoadOptions:
    """How models are opened. What has no name of its own for memories serves base and memories alike."""

    n_ctx: int = 4096  # cells, one per token, for all sessions together; 0: what base and memories were trained for
    n_batch: int = 512  # tokens evaluated in one pass during prefill
    threads: int = 0  # of decoding; 0: one per CPU that this process may use
    threads_batch: int = 0  # of prefill; 0: as `threads`
    memory_threads: int = 0  # of memories, prefill too; 0: as the base, or a part of its where both decode at a time
    n_gpu_layers: int = 999  # layers put on a GPU where llama-cpp-python was built for one
    memory_gpu_layers: int | None = None  # of each memory; None: as the base
    flash_attn: str = "auto"  # on, off, auto
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    force: bool = False  # mix models whose vocabularies differ
    n_seq: int = 1  # sessions that may be open at a time

    def __post_init__(self) -> None:
        check_range("--ctx-size", self.n_ctx, 0, 1 << 24)
        check_range("--batch-size", self.n_batch, 1, 1 << 16)
        check_range("n_seq", self.n_seq, 1, 256)
        check_range("--threads", self.threads, 0, 512)
        check_range("--threads-batch", self.threads_batch, 0, 512)
        check_range("--memory-threads", self.memory_threads, 0, 512)
        check_range("--gpu-layers", self.n_gpu_layers, 0, 100_000)
        check_range("--memory-gpu-layers", self.memory_gpu_layers or 0, 0, 100_000)
        check_choice("--flash-attn", self.flash_attn, ("on", "off", "auto"))
        check_choice("--cache-type-k", self.cache_type_k, tuple(CACHE_TYPES))
        check_choice("--cache-type-v", self.cache_type_v, tuple(CACHE_TYPES))

    def of_memories(self) -> "LoadOptions":
        """The same, with what is said of memories in the base's place."""
        return replace(
            self,
            threads=self.memory_threads or self.threads,
            threads_batch=self.memory_threads or self.threads_batch,
            n_gpu_layers=self.n_gpu_layers if self.memory_gpu_layers is None else self.memory_gpu_layers,
        )


@dataclass(frozen=True)
class MemoryOptions:
    """One memory and its weight; `weight` None: the GGUF's recommendation, else DEFAULT_LAMBDA."""

    path: Path
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None:
            check_range("--memory-scaled", self.weight, 0.0, 1.0)


@dataclass(frozen=True)
class SamplingOptions:
    """The sampler chain, in llama.cpp's terms and with its defaults."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # 0: all
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repeat_penalty: float = 1.0  # 1: off
    repeat_last_n: int = 64  # tokens that penalties look at; -1: the whole context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    grammar: str = ""  # GBNF
    json_schema: str = ""  # JSON; becomes a grammar
    seed: int = -1  # -1: a random one

    def __post_init__(self) -> None:
        check_range("--temp", self.temperature, 0.0, 100.0)
        check_range("--top-k", self.top_k, 0)
        check_range("--top-p", self.top_p, 0.0, 1.0)
        check_range("--min-p", self.min_p, 0.0, 1.0)
        check_range("--repeat-penalty", self.repeat_penalty, 0.01, 100.0)
        check_range("--repeat-last-n", self.repeat_last_n, -1, 1 << 24)
        check_range("--presence-penalty", self.presence_penalty, -2.0, 2.0)
        check_range("--frequency-penalty", self.frequency_penalty, -2.0, 2.0)
        check_range("--seed", self.seed, -1, 2**32 - 2)
        if self.grammar and self.json_schema:
            raise OptionError("--json-schema", "given beside --grammar", "give one of the two")


@dataclass(frozen=True)
class GenerationOptions:
    """When generation ends, and how far memories may run ahead; the text does not depend on that."""

    n_predict: int = -1  # tokens at most; -1: to the context's end
    ignore_eos: bool = False  # exactly n_predict tokens: end-of-generation tokens are not sampled
    stop: tuple[str, ...] = ()  # strings that end the text and are not part of it
    draft: int | None = None  # tokens that the memories draft for a pass of the base; None: chosen by measurement

    def __post_init__(self) -> None:
        check_range("--predict", self.n_predict, -1, 1 << 24)
        check_range("--draft", self.draft or 0, 0, MAX_DRAFT)
        if "" in self.stop:
            raise OptionError("--stop", "an empty string", "give at least one character")


@dataclass(frozen=True)
class EvalOptions:
    """Perplexity: one definition everywhere. Only tokens new to a window are scored."""

    window: int = 1024  # tokens
    stride: int = 512  # tokens
    max_tokens: int = 0  # score at most this many, as evenly spaced whole windows; 0: all
    lambdas: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(11))  # of the sweep

    def __post_init__(self) -> None:
        check_range("--window", self.window, 2, 1 << 20)
        check_range("--stride", self.stride, 1, self.window - 1)
        check_range("--max-tokens", self.max_tokens, 0)
        for value in self.lambdas:
            check_range("lambdas", value, 0.0, 1.0)


@dataclass(frozen=True)
class BenchOptions:
    """How speed is measured: how long prompts and continuations are, and how many of them."""

    prompt_tokens: int = 256
    new_tokens: int = 128
    repetitions: int = 5  # prompts that every system continues; figures are medians over them
    draft: int | None = None  # tokens that the memories draft for a pass of the base; None: chosen by measurement

    def __post_init__(self) -> None:
        check_range("--prompt-tokens", self.prompt_tokens, 2, 1 << 20)
        check_range("--predict", self.new_tokens, 1, 1 << 20)
        check_range("--repetitions", self.repetitions, 1, 1000)
        check_range("--draft", self.draft or 0, 0, MAX_DRAFT)


@dataclass(frozen=True)
class CacheOptions:
    """The kNN cache: a teacher's keys over a corpus, their neighbours, the sparse targets.

    Adapted teacher and target are the defaults because both were needed not to do worse than plain fine-tuning: from
    25,000 tokens of medicine 12.1 against 12.4 on validation text, where p_kNN of the plain teacher gave 12.8, and on
    the test split 12.80 against 12.85. It pays where training contexts are near, so the more, the more text there is
    (benchmarks/LOG.md).
    """

    teacher: Path  # HF folder or GGUF
    corpus: Path  # text file, jsonl or folder
    out: Path
    finetune_teacher: float = 2.0  # epochs that adapt a copy of the teacher to the corpus first; 0: as it is
    key: str = "mlp_input"  # of KEYS: the paper's, and better than the last hidden state (benchmarks/LOG.md)
    target: str = "knn-lm"  # of TARGETS; knn: the retriever alone, as in 2508.09874
    k: int = 1024  # neighbours; 2508.09874 uses 1024
    knn_temp: float | None = None  # tau of exp(-d^2 / tau), squared L2; None: chosen on validation positions
    search: str = "auto"  # SEARCHES; auto: exact up to a size
    top_mass: float = 0.95  # of a target, in its likeliest tokens, is kept, in 200 bytes a position at most; 1: all
    block: int = 512  # tokens of context that the teacher sees
    batch: int = 4  # blocks in one forward pass
    valid_fraction: float = 0.05  # of documents, where the corpus has no validation split of its own
    test_fraction: float = 0.05
    max_tokens: int = 0  # of the training split; 0: all
    seed: int = 0
    fresh: bool = False  # redo a cache that was made with other options, or is damaged

    def __post_init__(self) -> None:
        check_range("--finetune-teacher", self.finetune_teacher, 0.0, 1e6)
        check_choice("--key", self.key, KEYS)
        check_choice("--target", self.target, TARGETS)
        check_range("--k", self.k, 1, 1 << 20)
        if self.knn_temp is not None:
            check_range("--knn-temp", self.knn_temp, 1e-6, 1e12)
        check_choice("--search", self.search, SEARCHES)
        check_range("--top-mass", self.top_mass, 0.01, 1.0)
        check_range("--block", self.block, 8, 1 << 20)
        check_range("--batch", self.batch, 1, 4096)
        check_range("--valid-fraction", self.valid_fraction, 0.0, 0.5)
        check_range("--test-fraction", self.test_fraction, 0.0, 0.5)
        check_range("--max-tokens", self.max_tokens, 0)
        check_range("--seed", self.seed, 0, 2**31 - 1)


@dataclass(frozen=True)
class TrainOptions:
    """A memory: how it starts, its loss, its budget.

    The defaults are those that did best on validation text of a small corpus (benchmarks/LOG.md): beta 0 overfits after
    two epochs, imitating the kNN-LM of an adapted teacher gains until the third, and the best epoch is kept. Two epochs
    with beta 0 take a third of the time, and where text is as little they are hardly worse.
    """

    cache: CacheOptions
    out: Path  # checkpoint folder
    init: Path | None = None  # HF folder or GGUF; None: the teacher
    from_scratch: bool = False  # fresh weights in that model's shape
    layers: int | None = None  # keep this many, those that the text needs most
    hidden: int | None = None  # smaller width; embedding by truncated SVD of the source's
    epochs: float = 4.0
    steps: int = 0  # optimiser steps; 0: as many as `epochs` asks for
    beta: float = 0.5  # L = beta * KL(target || p_mem) + (1 - beta) * CE; 2508.09874, eq. 5
    lr: float = 2e-4
    warmup: float = 0.05  # of the steps
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    batch: int = 4  # blocks in one forward pass
    accumulate: int = 1  # passes in one optimiser step
    save_every: int = 50  # optimiser steps between resumable checkpoints
    valid_every: int = 50  # optimiser steps between validations, beside those after each epoch; 0: only at the end
    seed: int = 0
    domain: str = ""  # free text, into the GGUF
    license: str = ""  # SPDX id of the source text, into general.license
    fresh: bool = False  # redo a memory that was made with other options, or is damaged

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_range("--layers", self.layers, 1)
        if self.hidden is not None:
            check_range("--hidden", self.hidden, 8)
        check_range("--epochs", self.epochs, 1e-6, 1e6)
        check_range("--steps", self.steps, 0)
        check_range("--beta", self.beta, 0.0, 1.0)
        check_range("--lr", self.lr, 0.0, 1.0)
        check_range("--warmup", self.warmup, 0.0, 1.0)
        check_range("--weight-decay", self.weight_decay, 0.0, 1.0)
        check_range("--clip", self.clip, 1e-6, 1e6)
        check_range("--batch", self.batch, 1, 4096)
        check_range("--accumulate", self.accumulate, 1, 4096)
        check_range("--save-every", self.save_every, 1)
        check_range("--valid-every", self.valid_every, 0)
        check_range("--seed", self.seed, 0, 2**31 - 1)


@dataclass(frozen=True)
class QuantTypes:
    """What llama.cpp's quantiser makes of which tensors, and on what its loss is measured."""

    outtype: str = "q4_k_m"
    token_embedding: str = ""  # of the embedding; empty: q8_0 where it is the head too, else as llama.cpp chooses
    output_tensor: str = ""  # of the head; empty: as llama.cpp chooses
    text: Path | None = None  # that the loss is measured on; None: a page of general English
    quality_tokens: int = 4096  # of it at most; 0: the loss is not measured

    def __post_init__(self) -> None:
        check_choice("TYPE", self.outtype, QUANT_TYPES)
        for option, value in self.of_tensors.items():
            check_choice(option, value, TENSOR_TYPES)
        check_range("--quality-tokens", self.quality_tokens, 0)

    @property
    def of_tensors(self) -> dict[str, str]:
        """What is asked for of single tensors, by its option."""
        asked = {"--token-embedding-type": self.token_embedding, "--output-tensor-type": self.output_tensor}
        return {option: value for option, value in asked.items() if value}


@dataclass(frozen=True)
class QuantizeOptions:
    """GGUF -> smaller GGUF."""

    source: Path  # in f32, f16 or bf16
    outfile: Path
    types: QuantTypes = QuantTypes()
    allow_requantize: bool = False  # take a source that is quantised already
    overwrite: bool = False


@dataclass(frozen=True)
class ConvertOptions:
    """Checkpoint folder -> GGUF."""

    checkpoint: Path
    outfile: Path
    outtype: str = "q8_0"  # of OUT_TYPES, or of QUANT_TYPES
    base: Path | None = None  # GGUF whose tokenizer block is copied byte for byte
    role: str = "memory"  # or model
    verify: bool | None = None  # reopen the file and compare log-probs with PyTorch; None: where PyTorch is installed
    overwrite: bool = False
    types: QuantTypes = QuantTypes()  # where `outtype` is none of OUT_TYPES; its own outtype does not count

    def __post_init__(self) -> None:
        check_choice("--outtype", self.outtype, tuple(dict.fromkeys(OUT_TYPES + QUANT_TYPES)))
        check_choice("--role", self.role, ("memory", "model"))
        for option, value in self.types.of_tensors.items() if self.quantized is None else ():
            raise OptionError(option, value, f"--outtype {self.outtype} is written as it is; give a type of quantize")

    @property
    def quantized(self) -> QuantTypes | None:
        """What llama.cpp's quantiser is to do after the conversion; None: nothing."""
        return None if self.outtype in OUT_TYPES else replace(self.types, outtype=self.outtype)


@dataclass(frozen=True)
class DemoOptions:
    """The demo: which text, how much of it."""

    domain: str = "medicine"  # or licences
    quick: bool = False

    def __post_init__(self) -> None:
        check_choice("--domain", self.domain, ("medicine", "licences"))
