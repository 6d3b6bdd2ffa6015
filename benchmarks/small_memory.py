"""Ways to a small memory that is good: what a byte and a minute buy.

    python benchmarks/small_memory.py --teacher DIR --base GGUF --corpus DIR --general FILE.jsonl --out DIR [--beta 0]
                                      [--only NAME ...]

A memory is started (from some of the teacher's blocks, or narrower), perhaps warmed up on general text by imitating the
teacher's own distribution, then trained on the domain by `memdec_edge.train`, all for the same number of tokens; it is
written as GGUF, and scored through llama.cpp on validation text, alone and mixed with the base at the best lambda.
Everything is kept in --out: run again, it goes on. The test split is never read here.

Writes DIR/small.csv and DIR/small.png; the last line is one JSON object.
"""

import argparse
import copy
import csv
import itertools
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from provenance import made_by, metrics
from torch import Tensor

from memdec_edge.convert import convert
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.evaluation.perplexity import score_tokens
from memdec_edge.options import (
    LAMBDAS,
    CacheOptions,
    ConvertOptions,
    EvalOptions,
    LoadOptions,
    MemoryOptions,
    TrainOptions,
)
from memdec_edge.train import train
from memdec_edge.train.artifacts import open_stage
from memdec_edge.train.corpus import Tokens, pack
from memdec_edge.train.head import predict
from memdec_edge.train.layers import choose_layers
from memdec_edge.train.loop import LAYOUT, Data, accelerator, fit, settings
from memdec_edge.train.models import Source, blocks_of, cast_parameters, load_source
from memdec_edge.train.student import save_copy
from memdec_edge.train.targets import Support
from memdec_edge.train.teacher import gather_blocks
from memdec_edge.train.validation import Validation

BLOCK, BATCH, K = 256, 4, 256
DOMAIN_TOKENS, DOMAIN_EPOCHS, WARM_TOKENS = 24_576, 2, 65_536
IMITATED = 64  # likeliest tokens of the teacher that a warm-up imitates

# name -> how a memory starts. layers: how many blocks; choice: which (see CHOICES); hidden: a smaller width with fresh
# blocks and the embedding's strongest directions; warm: a warm-up first; rate: of learning; types: of the GGUF.
STARTS: dict[str, dict[str, Any]] = {
    "whole": {"types": ("q8_0", "q5_k_m", "q4_k_m", "q5_0", "q4_0", "iq4_nl")},
    "15 layers, even": {"layers": 15, "choice": "even"},
    "15 layers, cosine": {"layers": 15, "choice": "cosine"},
    "15 layers, loss": {"layers": 15, "choice": "loss"},
    "15 layers, loss, warmed": {"layers": 15, "choice": "loss", "warm": True},
    "15 layers, even, warmed": {"layers": 15, "choice": "even", "warm": True},
    "22 layers, loss": {"layers": 22, "choice": "loss", "types": ("q8_0", "q4_k_m")},
    "8 layers, loss, warmed": {"layers": 8, "choice": "loss", "warm": True},
    "width 320": {"hidden": 320, "rate": 1e-3},
    "width 320, warmed": {"hidden": 320, "rate": 1e-3, "warm": True},
}


@torch.no_grad()
def choose_even(source: Source, layers: int, ids: Tensor) -> list[int]:
    """Evenly, first and last among them."""
    total = source.model.config.num_hidden_layers
    return [round(i * (total - 1) / (layers - 1)) for i in range(layers)]


@torch.no_grad()
def choose_by_cosine(source: Source, layers: int, ids: Tensor) -> list[int]:
    """Those that turn the hidden state most: 1 - cos(in, out), mean over positions (block influence, 2403.03853)."""
    states = source.model(input_ids=ids[:, :-1], output_hidden_states=True).hidden_states
    turns = [1 - torch.cosine_similarity(*pair, dim=-1).mean().item() for pair in itertools.pairwise(states)]
    return sorted(sorted(range(len(turns)), key=turns.__getitem__)[-layers:])


def choose_by_loss(source: Source, layers: int, ids: Tensor) -> list[int]:
    """As `train --layers` does."""
    return list(choose_layers(source, layers, ids, torch.device("cpu")))


CHOICES = {"even": choose_even, "cosine": choose_by_cosine, "loss": choose_by_loss}


def with_blocks(source: Source, kept: list[int]) -> Source:
    """The source with only these of its blocks."""
    model = copy.deepcopy(source.model)
    name, blocks = blocks_of(model)
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, torch.nn.ModuleList(blocks[i] for i in kept))
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    for number, block in enumerate(model.get_submodule(name)):
        block.self_attn.layer_idx = number
    return replace(source, model=model)


class Imitated:
    """In the place of a retriever's targets: the teacher's own likeliest next tokens."""

    def __init__(self, source: Source, tokens: Tokens) -> None:
        self.tokens, self.model = tokens, copy.deepcopy(source.model)
        cast_parameters(self.model, torch.bfloat16)

    @torch.no_grad()
    def rows(self, starts: list[int], length: int) -> Support:
        ids = gather_blocks(self.tokens, [start // length for start in starts], length)
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        values, found = logits.topk(IMITATED)
        order = found.sort(1)
        offsets = torch.arange(len(found) + 1) * IMITATED
        return Support(offsets, order.values.flatten(), values.gather(1, order.indices).softmax(1).flatten())


class Bench:
    """The stages of one start, each kept in a folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.cache = CacheOptions(
            arguments.teacher, arguments.corpus, arguments.out / "cache", k=K, block=BLOCK, batch=BATCH,
            max_tokens=DOMAIN_TOKENS + 1,
        )  # fmt: skip

    def begin(self, name: str, choices: dict[str, Any]) -> Path | None:
        """The folder of the untrained memory; None: the teacher as it is, or a narrow one made by train()."""
        folder = Path(self.arguments.out) / f"start {name.removesuffix(', warmed')}"
        if "choice" not in choices:
            return None
        if not folder.is_dir():
            source = load_source(self.arguments.teacher)
            documents = read_documents(self.arguments.corpus / "train.jsonl")
            ids = gather_blocks(pack(documents, source.encoder, 2 * BLOCK + 1), range(2), BLOCK)
            kept = CHOICES[choices["choice"]](source, choices["layers"], ids)
            smaller = with_blocks(source, kept)
            loss = predict(smaller.model, ids).losses.mean()
            print(
                f"{name}: blocks {kept}, perplexity {loss.exp():.1f} on the text that they were chosen on", flush=True
            )
            save_copy(smaller, folder)
        return folder

    def warm(self, name: str, start: Path | None, choices: dict[str, Any]) -> Path:
        """The folder of a memory that has learned from the teacher what general text is like."""
        source, out = load_source(self.arguments.teacher), Path(self.arguments.out) / f"warm {name}"
        documents = read_documents(self.arguments.general)
        tokens = pack(documents[: len(documents) // 2], source.encoder, WARM_TOKENS + 1)
        valid = pack(documents[len(documents) // 2 :], source.encoder, 4_097)
        options = self.options(out, start, choices, WARM_TOKENS, 0.9)
        stage = open_stage(out, "warm-up", {"start": str(start)}, settings(options, 1), LAYOUT)
        data = Data(tokens, Imitated(source, tokens), Validation(valid, BLOCK), BLOCK)
        fit(options, load_source(start or self.arguments.teacher), data, stage, accelerator())
        return out

    def options(self, out: Path, start: Path | None, choices: dict[str, Any], tokens: int, beta: float) -> TrainOptions:
        rate, hidden = choices.get("rate", 4e-4 if "choice" in choices else 2e-4), choices.get("hidden")
        steps = tokens // BLOCK // BATCH
        every = max(1, steps // DOMAIN_EPOCHS)
        return TrainOptions(
            self.cache, out, init=start, hidden=hidden, steps=steps, beta=beta, lr=rate,
            valid_every=every, save_every=every,
        )  # fmt: skip

    def row(self, name: str, choices: dict[str, Any], kind: str) -> dict[str, Any]:
        """Train the memory, write it as a GGUF of this type, score it."""
        arguments, start, minutes = self.arguments, self.begin(name, choices), 0.0
        if choices.get("warm"):
            start = self.warm(name, start, choices)
            minutes, choices = core_minutes(start), {**choices, "hidden": None}
        out = arguments.out / f"memory {name}, beta {arguments.beta:g}"
        train(self.options(out, start, choices, DOMAIN_TOKENS * DOMAIN_EPOCHS, arguments.beta))
        file = arguments.out / f"memdec-{name} {arguments.beta:g} {kind}.gguf".replace(", ", "-").replace(" ", "-")
        if not file.exists():
            convert(ConvertOptions(out, file, kind, base=arguments.base, verify=False))
        memories, load = [MemoryOptions(file, 0.0)], LoadOptions(n_ctx=EvalOptions.window)
        with closing(Engine(arguments.base, memories, load)) as engine:
            scores = score_tokens(
                engine, read_documents(arguments.corpus / "valid.jsonl"), EvalOptions(max_tokens=4_096)
            )
        sweep = scores.sweep([1.0], LAMBDAS)
        best = min(sweep, key=sweep.__getitem__)
        return {
            "start": name, "type": kind, "megabytes": round(file.stat().st_size / 1e6, 1), "beta": arguments.beta,
            "warm_up_core_minutes": round(minutes, 1), "domain_core_minutes": round(core_minutes(out), 1),
            "base": round(sweep[0.0], 3), "alone": round(sweep[1.0], 3), "mixture": round(sweep[best], 3),
            "lambda": best,
        }  # fmt: skip


def core_minutes(folder: Path) -> float:
    """Of the training in a folder, all its threads together."""
    return sum(float(line["seconds"]) for line in metrics(folder)) * torch.get_num_threads() / 60


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        axes.plot(row["megabytes"], row["mixture"], "o")
        axes.annotate(f"{row['start']} {row['type']}", (row["megabytes"], row["mixture"]), fontsize="small")
    axes.axhline(rows[0]["base"], linestyle=":", color="grey")
    axes.set(xlabel="MB of the memory", ylabel="validation perplexity of base + memory", title="dotted: the base alone")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "base", "corpus", "general", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--only", nargs="*", default=list(STARTS), choices=list(STARTS), metavar="NAME")
    arguments = parser.parse_args()
    bench, rows = Bench(arguments), []
    for name in arguments.only:
        for kind in STARTS[name].get("types", ("q8_0",)):
            rows.append(bench.row(name, STARTS[name], kind))
            print(rows[-1], flush=True)
        with (arguments.out / "small.csv").open("w", newline="", encoding="utf-8") as file:
            file.write(made_by())
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        draw(rows, arguments.out / "small.png")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
