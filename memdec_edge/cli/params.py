"""Parameters that several commands share: flags and help, in llama.cpp's spelling. Defaults live in options.py."""

from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.errors import OptionError
from memdec_edge.options import LoadOptions, MemoryOptions

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
Threads = Annotated[int, typer.Option("-t", "--threads", help="Threads of decoding; 0: one per usable CPU.")]
ThreadsBatch = Annotated[int, typer.Option("-tb", "--threads-batch", help="Threads of prefill; 0: as --threads.")]
GpuLayers = Annotated[int, typer.Option("-ngl", "--gpu-layers", help="Layers on the GPU, where there is one.")]
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", help="Tokens evaluated in one pass of prefill.")]
FlashAttn = Annotated[str, typer.Option("-fa", "--flash-attn", metavar="on|off|auto", help="Flash attention.")]
CacheTypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="Type of the K cache: f32, f16, q8_0, ...")]
CacheTypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="Type of the V cache: f32, f16, q8_0, ...")]
Force = Annotated[bool, typer.Option("--force", help="Mix models whose vocabularies differ.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show llama.cpp's log on stderr.")]
Teacher = Annotated[Path, typer.Option("--teacher", metavar="PATH", help="Teacher: HF folder or GGUF.")]
Corpus = Annotated[Path, typer.Option("--corpus", metavar="PATH", help="Text: .txt, .md, .jsonl, or a folder of them.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
K = Annotated[int, typer.Option("--k", help="Neighbours per position.")]
KnnTemp = Annotated[
    str, typer.Option("--knn-temp", metavar="T|auto", help="tau of exp(-d^2/tau); auto: best on validation text.")
]
Block = Annotated[int, typer.Option("--block", help="Tokens of context in training and caching.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", help="Use at most this many training tokens; 0: all.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Redo what was made with other options.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of splits, order and initialisation.")]

LOAD = LoadOptions()  # the defaults that flags show


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


def knn_temperature(text: str) -> float | None:
    """`auto` or a number. Raises OptionError."""
    if text == "auto":
        return None
    try:
        return float(text)
    except ValueError:
        raise OptionError("--knn-temp", text, "must be a number or auto") from None
