"""How far are mixed log-probs through llama.cpp from PyTorch's?

    python benchmarks/agreement.py [--memory CHECKPOINT]

SmolLM2-135M is the base and an HF checkpoint folder the memory (default: the latest that `memdec-edge demo` trained).
PyTorch mixes their log-probs in float64 over 200 tokens of general.txt; the same weights as F32 GGUFs are run with
exact settings (F32 KV cache, flash attention off) and with the defaults, and as the quantised files that users run. The
last line is one JSON object: the largest difference over all positions and ids, in nats, of each.
"""

import argparse
import json
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from memdec_edge.convert import convert
from memdec_edge.documents import GENERAL
from memdec_edge.engine import Engine
from memdec_edge.files import cache_home
from memdec_edge.options import ConvertOptions, LoadOptions, MemoryOptions
from memdec_edge.train.models import load_source
from memdec_edge.train.student import save_copy
from memdec_edge.workflow.demo import demo_base

TOKENS, WEIGHT = 200, 0.6
EXACT = LoadOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32")


def torch_rows(checkpoint: Path, tokens: list[int]) -> npt.NDArray[np.float64]:
    """Log-probs at every position, float64 [tokens, n_vocab]."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return np.asarray(torch.log_softmax(model(torch.tensor([tokens])).logits[0].double(), -1).numpy())


def our_rows(base: Path, memory: Path, options: LoadOptions, tokens: list[int]) -> npt.NDArray[np.float64]:
    """As torch_rows, of the mixture, token by token as in generation."""
    rows = []
    with closing(Engine(base, [MemoryOptions(memory, WEIGHT)], options)) as engine:
        session = engine.session()
        for token in tokens:
            session.extend([token])
            row = session.logits().astype(np.float64)
            rows.append(row - row.max() - np.log(np.exp(row - row.max()).sum()))
    return np.stack(rows)


def main() -> None:
    """Convert, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=Path, metavar="CHECKPOINT")
    found_demos = sorted(cache_home().glob("demo/*/memory/model.safetensors"), key=lambda path: path.stat().st_mtime)
    checkpoint = parser.parse_args().memory or (found_demos[-1].parent if found_demos else None)
    if checkpoint is None:
        print("no memory to compare: run `memdec-edge demo --quick` first, or give one with --memory")
        return
    base = demo_base()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_copy(load_source(base), folder / "base")
        base32 = folder / "base.gguf"
        convert(ConvertOptions(folder / "base", base32, "f32", base=base, role="model"))
        for kind in ("f32", "q8_0"):
            convert(ConvertOptions(checkpoint, folder / f"memdec-{kind}.gguf", kind, base=base))
        memory32, memory8 = folder / "memdec-f32.gguf", folder / "memdec-q8_0.gguf"
        with closing(Engine(base)) as engine:
            tokens = engine.base.tokenize(GENERAL.read_text(encoding="utf-8"))[:TOKENS]
        mixed = np.logaddexp(
            np.log(1 - WEIGHT) + torch_rows(folder / "base", tokens), np.log(WEIGHT) + torch_rows(checkpoint, tokens)
        )
        found = {
            "f32_exact": our_rows(base32, memory32, EXACT, tokens),
            "f32_default": our_rows(base32, memory32, LoadOptions(), tokens),
            "q4_1_base_q8_0_memory_default": our_rows(base, memory8, LoadOptions(), tokens),
        }
    result = {"tokens": len(tokens), "lambda": WEIGHT, "n_vocab": mixed.shape[1]}
    for name, rows in found.items():
        same = float((rows.argmax(1) == mixed.argmax(1)).mean())
        result[name] = {"max_difference": float(np.abs(rows - mixed).max()), "same_argmax": same}
        print(f"{name:30} largest difference {np.abs(rows - mixed).max():.2e}, same argmax {same:.1%}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
