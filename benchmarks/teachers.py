"""Does a teacher in llama.cpp find the neighbours that the same model in PyTorch finds? Which key is better?

    python benchmarks/teachers.py MODEL.gguf CORPUS [--train 60000] [--valid 4096]

CORPUS is a folder with train.jsonl and valid.jsonl. The GGUF runs through llama.cpp, its dequantised copy through
PyTorch; both give keys of both kinds. For each: tokens a second, the perplexity of the kNN-LM on validation text at the
best tau and at the paper's 16; and between the two runtimes the share of validation positions with the same nearest
neighbour, and of their k nearest. The last line is one JSON object.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memdec_edge.options import KEYS
from memdec_edge.train.corpus import Tokens, pack, split_documents
from memdec_edge.train.knn.exact import Exact
from memdec_edge.train.knn.gate import fit_gate
from memdec_edge.train.models import load_source
from memdec_edge.train.student import save_copy
from memdec_edge.train.teacher import Teacher, gather_blocks, n_blocks, open_teacher

BLOCK, K, CPU = 512, 1024, torch.device("cpu")
PAPER_TAU = 16.0  # 2508.09874


def neighbours(teacher: Teacher, train: Tokens, valid: Tokens) -> tuple[np.ndarray, dict[str, Any]]:
    """Indices of the k nearest of each validation position, and figures."""
    blocks = range(n_blocks(train, BLOCK))
    began = time.perf_counter()
    keys = teacher.read(train, blocks, BLOCK, 4, lambda done: None).keys
    speed = len(keys) / (time.perf_counter() - began)
    questions = range(n_blocks(valid, BLOCK))
    asked = teacher.read(valid, questions, BLOCK, 4, lambda done: None, scored=True)
    distances, indices = (part.numpy() for part in Exact([keys], CPU).search(torch.from_numpy(asked.keys), K))
    labels = gather_blocks(valid, questions, BLOCK)[:, 1:].reshape(-1, 1).numpy()
    hits = train[indices + 1] == labels
    auto, paper = (fit_gate(distances, hits, asked.logprobs, tau) for tau in (None, PAPER_TAU))
    return indices, {
        "tokens_per_second": round(speed, 1),
        "median_distance": float(np.median(distances)),
        "teacher": round(auto.teacher, 3),
        "tau": round(auto.tau, 3),
        "knn_lm": round(auto.knn, 3),
        "knn_lm_tau_16": round(paper.knn, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--train", type=int, default=60_000, help="tokens")
    parser.add_argument("--valid", type=int, default=4096, help="tokens")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"model": arguments.model.name, "corpus": arguments.corpus.name}
    with tempfile.TemporaryDirectory() as scratch:
        source = load_source(arguments.model)
        folder = Path(scratch) / "folder"
        save_copy(source, folder)
        splits = split_documents(arguments.corpus, 0.05, 0.05, 0)
        limits = {"train": arguments.train + 1, "valid": arguments.valid + 1}
        train, valid = (pack(splits[split], source.encoder, limit) for split, limit in limits.items())
        for kind in KEYS:
            found = {}
            for runtime, path in (("llama.cpp", arguments.model), ("PyTorch", folder)):
                found[runtime], result[f"{kind}, {runtime}"] = neighbours(open_teacher(path, kind, CPU), train, valid)
                print(f"{kind}, {runtime}: {result[f'{kind}, {runtime}']}", flush=True)
            ours, theirs = found["llama.cpp"], found["PyTorch"]
            result[f"{kind}, same"] = {
                "top1": float((ours[:, 0] == theirs[:, 0]).mean()),
                "top_k": float(np.mean([len(np.intersect1d(*rows)) / K for rows in zip(ours, theirs, strict=True)])),
            }
            print(f"{kind}, neighbours that both find: {result[f'{kind}, same']}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
