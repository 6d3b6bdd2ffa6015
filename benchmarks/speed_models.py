"""Models for the tables of speed: bases of one size in several quantisations, and memories that may draft for them.

    python benchmarks/speed_models.py --models DIR --corpus DIR --out DIR [--small-steps 720] [--whole-steps 60]

`--models` holds qwen-0.5b.gguf and qwen-1.5b.gguf (Qwen2.5-Coder-Instruct, Q4_K_M), `--corpus` train.jsonl and
valid.jsonl. A file that exists is kept and a measurement that stands in measured.json too, so run it again to go on.

memdec-small-*.gguf   width 512, 6 blocks: the 0.5B's embedding in its strongest directions, blocks from nothing
memdec-whole-*.gguf   the whole 0.5B, fine-tuned
qwen-1.5b-*.gguf      the base; each file quantised from the Q4_K_M by llama.cpp's own quantiser

Both memories are trained without a retriever (beta 0): a datastore of this text costs more hours of CPU than the
training. KL and the same likeliest token are of a file against its source over `--tokens` of validation text; lambda is
the best on validation text and stands in the memory's file. The last line is one JSON object of all that.
"""

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.convert import convert
from memdec_edge.documents import read_documents
from memdec_edge.files import atomic_path
from memdec_edge.gguf import metadata
from memdec_edge.options import CacheOptions, ConvertOptions, TrainOptions
from memdec_edge.train import train

BASE = "qwen-1.5b"
# name -> type of the matrices, of the head and of the embedding (names of llama.cpp)
BASE_TYPES = {
    "q4_0": ("Q4_0", "Q4_0", "Q4_0"),
    "iq4_nl": ("IQ4_NL", "IQ4_NL", "IQ4_NL"),
    "q4_k": ("Q4_K_S", "Q4_K", "Q4_K"),
}
MEMORY_TYPES = {"q4_0": ("Q4_0", "Q4_0", "Q4_0"), "q8_0": ("Q8_0", "Q8_0", "Q8_0")}
WINDOW = 512  # tokens of context in comparing two files
Rows = npt.NDArray[np.float32]


def memories(args: argparse.Namespace) -> dict[str, TrainOptions]:
    """How each memory is trained."""
    cache = CacheOptions(args.models / "qwen-0.5b.gguf", args.corpus, args.out / "text", block=256)
    small = TrainOptions(
        cache, args.out / "small", hidden=512, layers=6, steps=args.small_steps, beta=0.0, lr=1e-3, domain="medicine",
        save_every=180,
    )  # fmt: skip
    whole = TrainOptions(cache, args.out / "whole", steps=args.whole_steps, beta=0.0, lr=1e-4, domain="medicine")
    return {"small": small, "whole": whole}


def quantise(source: Path, outfile: Path, types: tuple[str, str, str]) -> None:
    """Every matrix in one type, but for head and embedding, by llama.cpp's quantiser."""
    matrices, head, embedding = types
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{matrices}")
    params.output_tensor_type = getattr(llama_cpp, f"GGML_TYPE_{head}")
    params.token_embedding_type = getattr(llama_cpp, f"GGML_TYPE_{embedding}")
    params.pure = params.allow_requantize = True
    with atomic_path(outfile) as part:
        failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(params))
        if failed:
            raise SystemExit(f"llama.cpp cannot quantise {source} to {matrices} ({failed})")


def log_probs(path: Path, windows: list[list[int]]) -> Iterator[Rows]:
    """Log-probs of a model at every position of each window, float32 [WINDOW, n_vocab]."""
    llama = llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, n_threads=os.cpu_count(),
                            n_threads_batch=os.cpu_count(), verbose=False)  # fmt: skip
    with closing(llama):
        for window in windows:
            llama.reset()
            llama.eval(window)
            rows = llama.scores
            rows -= rows.max(1, keepdims=True)
            for row in rows:
                row -= np.log(np.exp(row).sum())
            yield rows


def compare(source: Path, path: Path, windows: list[list[int]]) -> dict[str, float]:
    """KL(source || file) in nats a token, and the share of positions with the same likeliest token."""
    kl, same, total = 0.0, 0, 0
    for theirs, ours in zip(log_probs(source, windows), log_probs(path, windows), strict=True):
        for p, q in zip(theirs, ours, strict=True):
            kl += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
        same += int((theirs.argmax(1) == ours.argmax(1)).sum())
        total += len(theirs)
    return {"kl": kl / total, "same_top": same / total}


def validation_windows(tokenizer: Path, valid: Path, tokens: int) -> list[list[int]]:
    """Evenly spaced windows of the validation text, its documents joined by EOS."""
    llama = llama_cpp.Llama(str(tokenizer), vocab_only=True, verbose=False)
    with closing(llama):
        stream: list[int] = []
        for document in read_documents(valid):
            stream += [*llama.tokenize(document.encode(), add_bos=False), llama.token_eos()]
    count, whole = max(1, tokens // WINDOW), len(stream) // WINDOW
    return [stream[i * whole // count * WINDOW :][:WINDOW] for i in range(count)]


def evaluate(base: Path, memory: Path, valid: Path, tokens: int) -> dict[str, Any]:
    """What `memdec-edge eval` says, and the best lambda of its sweep."""
    command = [sys.executable, "-m", "memdec_edge", "eval", str(valid), "-m", str(base), "-M", str(memory), "--json",
               "--max-tokens", str(tokens)]  # fmt: skip
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    found: dict[str, Any] = json.loads(answer)
    best = min(found["lambda_sweep"], key=lambda entry: entry["perplexity"])
    return found | {"best_lambda": best["lambda"], "best_perplexity": best["perplexity"]}


class Measured:
    """Results by name in a file, so that none is measured twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, name: str, measure: Callable[..., Any], *given: Any) -> Any:
        """The value of `name`; measure(*given) where it is not known yet."""
        if name not in self.values:
            began = time.monotonic()
            self.values[name] = measure(*given)
            self.path.write_text(json.dumps(self.values, indent=1) + "\n")
            print(f"{name}: {self.values[name]} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
        return self.values[name]


def train_memory(name: str, options: TrainOptions, base: Path, out: Path) -> dict[str, Any]:
    """Train and convert to F16; tokens, minutes and the checkpoint's own perplexity."""
    report = train(options)
    f16 = out / f"memdec-{name}-f16.gguf"
    if not f16.exists():
        convert(ConvertOptions(report.path, f16, "f16", base=base))
    lines = (options.out / "metrics.jsonl").read_text().splitlines()
    minutes = sum(json.loads(line)["seconds"] for line in lines) / 60
    return {"tokens": report.tokens, "minutes": round(minutes, 1), "valid_perplexity": report.valid_perplexity}


def main() -> None:
    """Bases, then memory after memory: train, quantise, compare, evaluate, write lambda into the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small-steps", type=int, default=720, help="of 1,024 tokens")
    parser.add_argument("--whole-steps", type=int, default=60, help="of 1,024 tokens; 0: no such memory")
    parser.add_argument("--tokens", type=int, default=2048, help="of validation text, to compare two files")
    parser.add_argument("--eval-tokens", type=int, default=4096)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    valid, source = args.corpus / "valid.jsonl", args.models / f"{BASE}.gguf"
    measured = Measured(args.out / "measured.json")
    windows = validation_windows(source, valid, args.tokens)

    def make(origin: Path, outfile: Path, types: tuple[str, str, str]) -> None:
        if not outfile.exists():
            quantise(origin, outfile, types)
        measured.once(f"{outfile.name} to {origin.name}", compare, origin, outfile, windows)

    for kind, types in BASE_TYPES.items():
        make(source, args.out / f"{BASE}-{kind}.gguf", types)
    base = args.out / f"{BASE}-q4_0.gguf"
    for name, options in memories(args).items():
        if not options.steps:
            continue
        measured.once(f"training {name}", train_memory, name, options, source, args.out)
        for kind, types in MEMORY_TYPES.items():
            memory = args.out / f"memdec-{name}-{kind}.gguf"
            make(args.out / f"memdec-{name}-f16.gguf", memory, types)
            found = measured.once(f"{memory.name} on {base.name}", evaluate, base, memory, valid, args.eval_tokens)
            metadata.patch(memory, {metadata.LAMBDA: found["best_lambda"]})
    sizes = {path.name: path.stat().st_size for path in sorted(args.out.glob("*.gguf"))}
    print(json.dumps({"benchmark": "speed_models", "bytes": sizes, **measured.values}))


if __name__ == "__main__":
    main()
