"""Commands that make memories: train, cache, demo."""

import sys
from dataclasses import asdict, replace
from typing import Annotated

import typer

from memdec_edge.cli import params as p
from memdec_edge.cli.flags import spread
from memdec_edge.cli.output import print_json
from memdec_edge.options import DemoOptions
from memdec_edge.progress import is_first_process


@spread
def cache(
    teacher: p.Teacher, corpus: p.Corpus, out: p.Out, caching: p.Caching = p.CACHE, json_: p.Json = False
) -> None:
    """Build the kNN cache of a corpus.

    A teacher runs over the text; what the nearest neighbours of each position predict is kept. `train` does this by
    itself; run again to go on after a stop.
    """
    options = replace(caching, teacher=teacher, corpus=corpus, out=out)
    from memdec_edge.train import build_cache

    report = build_cache(options)
    if not is_first_process():
        return
    print(f"cache {report.path}")
    if json_:
        print_json(asdict(report))


@spread
def train(
    teacher: p.Teacher,
    corpus: p.Corpus,
    out: p.Out,
    training: p.Training = p.TRAIN,
    caching: p.Caching = p.CACHE,
    json_: p.Json = False,
) -> None:
    """Train a memory on a corpus.

    The kNN cache is kept in DIR/cache. Run again to go on after a stop.
    """
    cache = replace(caching, teacher=teacher, corpus=corpus, out=out / "cache", batch=training.batch)
    options = replace(training, cache=cache, out=out, seed=caching.seed, fresh=caching.fresh)
    from memdec_edge.train import train as run_training

    report = run_training(options)
    if not is_first_process():
        return
    print(f"checkpoint {report.path}")
    if report.valid_perplexity is not None:
        print(f"validation perplexity of the memory alone {report.valid_perplexity:.3f}, mixed with the teacher "
              f"{report.mixture_perplexity:.3f} (lambda {report.mixture_lambda:g})")  # fmt: skip
    if report.best_step < report.steps:
        print(f"the weights are those after step {report.best_step} of {report.steps}: "
              "more training did worse on validation text")  # fmt: skip
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
    from memdec_edge.workflow.demo import run_demo

    report = run_demo(options)
    if json_:
        print_json(report)
