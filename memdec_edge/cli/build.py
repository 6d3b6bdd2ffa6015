"""Commands that make memories: train, cache, demo."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli import params as p
from memdec_edge.cli.output import print_json
from memdec_edge.options import CacheOptions, DemoOptions, TrainOptions


def cache(
    teacher: p.Teacher,
    corpus: p.Corpus,
    out: p.Out,
    k: p.K = CacheOptions.k,
    knn_temp: p.KnnTemp = "auto",
    block: p.Block = CacheOptions.block,
    max_tokens: p.MaxTokens = CacheOptions.max_tokens,
    seed: p.Seed = CacheOptions.seed,
    fresh: p.Fresh = CacheOptions.fresh,
    json_: p.Json = False,
) -> None:
    """Build the kNN cache of a corpus.

    A teacher runs over the text; what the nearest neighbours of each position predict is kept. `train` does this by
    itself; run again to go on after a stop.
    """
    options = CacheOptions(
        teacher=teacher, corpus=corpus, out=out, k=k, knn_temp=p.knn_temperature(knn_temp), block=block,
        max_tokens=max_tokens, seed=seed, fresh=fresh,
    )  # fmt: skip
    from memdec_edge.train import build_cache

    report = build_cache(options)
    print(f"cache {report.path}")
    if json_:
        print_json(asdict(report))


def train(
    teacher: p.Teacher,
    corpus: p.Corpus,
    out: p.Out,
    init: Annotated[
        Path | None, typer.Option("--init", metavar="PATH", help="HF folder or GGUF; else the teacher.")
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", help="Keep this many layers, evenly chosen.")] = None,
    hidden: Annotated[int | None, typer.Option("--hidden", help="Smaller width.")] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Passes over the text.")] = TrainOptions.epochs,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps; 0: as --epochs asks.")] = TrainOptions.steps,
    beta: Annotated[float, typer.Option("--beta", help="Of the kNN loss; 0: plain fine-tuning.")] = TrainOptions.beta,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = TrainOptions.lr,
    batch: Annotated[int, typer.Option("--batch", help="Blocks in one pass.")] = TrainOptions.batch,
    accumulate: Annotated[int, typer.Option("--accumulate", help="Passes in one step.")] = TrainOptions.accumulate,
    k: p.K = CacheOptions.k,
    knn_temp: p.KnnTemp = "auto",
    block: p.Block = CacheOptions.block,
    max_tokens: p.MaxTokens = CacheOptions.max_tokens,
    seed: p.Seed = TrainOptions.seed,
    domain: Annotated[
        str, typer.Option("--domain", help="What the memory is about; into the GGUF.")
    ] = TrainOptions.domain,
    license_: Annotated[
        str, typer.Option("--license", help="Licence of the source text, SPDX; into the GGUF.")
    ] = TrainOptions.license,
    fresh: p.Fresh = TrainOptions.fresh,
    json_: p.Json = False,
) -> None:
    """Train a memory on a corpus.

    The kNN cache is kept in DIR/cache. Run again to go on after a stop.
    """
    caching = CacheOptions(
        teacher=teacher, corpus=corpus, out=out / "cache", k=k, knn_temp=p.knn_temperature(knn_temp), block=block,
        max_tokens=max_tokens, seed=seed, fresh=fresh,
    )  # fmt: skip
    options = TrainOptions(
        cache=caching, out=out, init=init, layers=layers, hidden=hidden, epochs=epochs, steps=steps, beta=beta, lr=lr,
        batch=batch, accumulate=accumulate, seed=seed, domain=domain, license=license_, fresh=fresh,
    )  # fmt: skip
    from memdec_edge.train import train as run_training

    report = run_training(options)
    print(f"checkpoint {report.path}")
    if report.valid_perplexity is not None:
        print(f"validation perplexity of the memory alone {report.valid_perplexity:.3f}")
    print(report.notice, file=sys.stderr)
    if json_:
        print_json(asdict(report))


def demo(
    domain: Annotated[str, typer.Option("--domain", help="medicine or licences.")] = DemoOptions.domain,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller version, a few minutes.")] = DemoOptions.quick,
    json_: p.Json = False,
) -> None:
    """Train a small memory on real text and show what it does.

    Run again to go on after a stop, or to see the result again.
    """
    options = DemoOptions(domain, quick)
    from memdec_edge.demo import run_demo

    report = run_demo(options)
    if json_:
        print_json(report)
