"""Parameters that several commands share: flags and help, in llama.cpp's spelling. Defaults live in options.py."""

from pathlib import Path
from typing import Annotated, Any

import typer

from memdec_edge.cli.flags import Flags
from memdec_edge.errors import OptionError
from memdec_edge.options import CacheOptions, LoadOptions, MemoryOptions, SamplingOptions, TrainOptions, check_range

Base = Annotated[Path, typer.Option("-m", "--model", metavar="FILE", help="Base model, GGUF.")]
Memories = Annotated[list[Path] | None, typer.Option("-M", "--memory", metavar="FILE", help="Memory GGUF; repeatable.")]
Scaled = Annotated[
    list[str] | None,
    typer.Option("--memory-scaled", metavar="FILE:LAMBDA", help="Memory with a literal weight; repeatable."),
]
Lambda = Annotated[
    float | None,
    typer.Option(
        "--lambda", metavar="X", help="Weight of the memories together, 0 to 1. Default: what they recommend."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
CtxSize = Annotated[int, typer.Option("-c", "--ctx-size", help="Context, tokens; 0: as trained.")]
Threads = Annotated[int, typer.Option("-t", "--threads", help="Threads of decoding; 0: one per usable CPU.")]
ThreadsBatch = Annotated[int, typer.Option("-tb", "--threads-batch", help="Threads of prefill; 0: as --threads.")]
MemoryThreads = Annotated[int, typer.Option("--memory-threads", help="Threads of the memories; 0: as the base's.")]
GpuLayers = Annotated[int, typer.Option("-ngl", "--gpu-layers", help="Layers on the GPU, where there is one.")]
MemoryGpuLayers = Annotated[
    int | None, typer.Option("--memory-gpu-layers", help="Layers of each memory on the GPU. Default: as the base's.")
]
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", help="Tokens evaluated in one pass of prefill.")]
FlashAttn = Annotated[str, typer.Option("-fa", "--flash-attn", metavar="on|off|auto", help="Flash attention.")]
CacheTypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="Type of the K cache: f32, f16, q8_0, ...")]
CacheTypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="Type of the V cache: f32, f16, q8_0, ...")]
Draft = Annotated[
    str,
    typer.Option("--draft", metavar="N|auto", help="Tokens, 0 to 16, that memories draft; a matter of speed."),
]
Force = Annotated[bool, typer.Option("--force", help="Mix models whose vocabularies differ.")]
LOAD_FLAGS = Flags(
    n_ctx=CtxSize,
    n_batch=BatchSize,
    threads=Threads,
    threads_batch=ThreadsBatch,
    memory_threads=MemoryThreads,
    n_gpu_layers=GpuLayers,
    memory_gpu_layers=MemoryGpuLayers,
    flash_attn=FlashAttn,
    cache_type_k=CacheTypeK,
    cache_type_v=CacheTypeV,
    force=Force,
)
Load = Annotated[LoadOptions, LOAD_FLAGS]
SAMPLING_FLAGS = Flags(
    temperature=Annotated[float, typer.Option("--temp", help="Temperature; 0: greedy.")],
    top_k=Annotated[int, typer.Option("--top-k", help="0: off.")],
    top_p=Annotated[float, typer.Option("--top-p", help="1: off.")],
    min_p=Annotated[float, typer.Option("--min-p", help="0: off.")],
    repeat_penalty=Annotated[float, typer.Option("--repeat-penalty", help="Of generated tokens; 1: off.")],
    repeat_last_n=Annotated[
        int, typer.Option("--repeat-last-n", help="Tokens that penalties look at; -1: the context.")
    ],
    presence_penalty=Annotated[float, typer.Option("--presence-penalty", help="0: off.")],
    frequency_penalty=Annotated[float, typer.Option("--frequency-penalty", help="0: off.")],
    grammar=Annotated[str, typer.Option("--grammar", help="GBNF grammar that the text follows.")],
    json_schema=Annotated[str, typer.Option("-j", "--json-schema", help="JSON schema that the text follows.")],
    seed=Annotated[int, typer.Option("-s", "--seed", help="-1: a random one.")],
)
Sampling = Annotated[SamplingOptions, SAMPLING_FLAGS]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show llama.cpp's log on stderr.")]
Teacher = Annotated[Path, typer.Option("--teacher", metavar="PATH", help="Teacher: HF folder or GGUF.")]
Corpus = Annotated[Path, typer.Option("--corpus", metavar="PATH", help="Text: .txt, .md, .jsonl, or a folder of them.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
CACHE = CacheOptions(teacher=Path(), corpus=Path(), out=Path())  # the defaults that flags show


def knn_temperature(text: str) -> float | None:
    """`auto` or a number. Raises OptionError."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise OptionError("--knn-temp", text, "must be a number or auto") from None


CACHE_FLAGS = Flags(
    finetune_teacher=Annotated[
        float,
        typer.Option(
            "--finetune-teacher", metavar="EPOCHS",
            help="First adapt a copy of the teacher to the text; 0: take it as it is.",
        ),
    ],
    key=Annotated[str, typer.Option("--key", help="What a key is: mlp_input or hidden, of the last layer.")],
    target=Annotated[
        str, typer.Option("--target", help="What is imitated: the retriever (knn), or it and the teacher (knn-lm).")
    ],
    k=Annotated[int, typer.Option("--k", help="Neighbours per position.")],
    knn_temp=Annotated[
        Any,
        typer.Option(
            "--knn-temp", metavar="T|auto", parser=knn_temperature,
            help="tau of exp(-d^2/tau); auto, the default: the best on validation text.",
        ),
    ],
    search=Annotated[str, typer.Option("--search", help="exact, ivfpq, hnsw; auto: exact where that is fast.")],
    top_mass=Annotated[
        float, typer.Option("--top-mass", help="Of a target that is kept, in 200 bytes a token at most; 1: all.")
    ],
    block=Annotated[int, typer.Option("--block", help="Tokens of context in training and caching.")],
    max_tokens=Annotated[int, typer.Option("--max-tokens", help="Use at most this many training tokens; 0: all.")],
    seed=Annotated[int, typer.Option("--seed", help="Seed of splits, order and initialisation.")],
    fresh=Annotated[bool, typer.Option("--fresh", help="Redo what was made with other options.")],
)  # fmt: skip
Caching = Annotated[CacheOptions, CACHE_FLAGS]
TRAIN = TrainOptions(cache=CACHE, out=Path())
TRAIN_FLAGS = Flags(
    init=Annotated[Path | None, typer.Option("--init", metavar="PATH", help="HF folder or GGUF; else the teacher.")],
    from_scratch=Annotated[bool, typer.Option("--from-scratch", help="Fresh weights in that model's shape.")],
    layers=Annotated[
        int | None, typer.Option("--layers", help="Keep this many layers, those that the text needs most.")
    ],
    hidden=Annotated[int | None, typer.Option("--hidden", help="Smaller width.")],
    epochs=Annotated[float, typer.Option("--epochs", help="Passes over the text.")],
    steps=Annotated[int, typer.Option("--steps", help="Optimiser steps; 0: as --epochs asks.")],
    beta=Annotated[float, typer.Option("--beta", help="Weight of what is imitated; 0: plain fine-tuning.")],
    lr=Annotated[float, typer.Option("--lr", help="Peak learning rate.")],
    batch=Annotated[int, typer.Option("--batch", help="Blocks in one pass.")],
    accumulate=Annotated[int, typer.Option("--accumulate", help="Passes in one step.")],
    save_every=Annotated[int, typer.Option("--save-every", help="Steps from which a killed run goes on.")],
    valid_every=Annotated[
        int,
        typer.Option(
            "--valid-every", help="Steps between validations, beside one after each epoch; 0: only at the end."
        ),
    ],
    domain=Annotated[str, typer.Option("--domain", help="What the memory is about; into the GGUF.")],
    license=Annotated[str, typer.Option("--license", help="Licence of the source text, SPDX; into the GGUF.")],
)
Training = Annotated[TrainOptions, TRAIN_FLAGS]

LOAD, SAMPLING = LoadOptions(), SamplingOptions()  # the defaults that flags show


def memory_options(memories: list[Path] | None, scaled: list[str] | None) -> list[MemoryOptions]:
    """-M files first, then --memory-scaled ones, each split at its last colon. Raises OptionError."""
    chosen = [MemoryOptions(path) for path in memories or ()]
    for text in scaled or ():
        path, colon, weight = text.rpartition(":")
        try:
            chosen.append(MemoryOptions(Path(path), float(weight)))
        except ValueError:
            colon = ""
        if not colon:
            raise OptionError("--memory-scaled", text, "must be FILE:LAMBDA, such as memdec-law.gguf:0.4")
    return chosen


def draft_length(text: str) -> int | None:
    """`auto` or a whole number. Raises OptionError."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise OptionError("--draft", text, "must be auto or a whole number from 0 to 16") from None


def check_lambda(value: float | None) -> None:
    """Before models are loaded; weights.mixture_weights checks it for everybody else. Raises OptionError."""
    if value is not None:
        check_range("--lambda", value, 0.0, 1.0)


def set_verbose(verbose: bool) -> None:
    """Of llama.cpp, where --verbose was given."""
    if verbose:
        from memdec_edge.llama.library import set_verbose

        set_verbose(True)
