"""The command tune: what your text adds to a memory's weight. Knows nothing of how it is found."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import Flags, Given, spread
from memdec_edge.cli.output import print_json, warn
from memdec_edge.cli.parameters import Base, Json, Verbose, base_file, memory_file, set_verbose
from memdec_edge.errors import OptionError
from memdec_edge.options import EvalOptions, LoadOptions, MemoryOptions


@spread
def tune(
    *,
    model: Base,
    memory: Annotated[Path, typer.Option("-M", "--memory", metavar="FILE", help="Memory GGUF, changed in place.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Validation text of the memory's domain.")],
    general: Annotated[
        Path | None,
        typer.Option("--general", metavar="PATH", help="Text outside the domain; else a page of general English."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change no file.")] = False,
    evaluation: Given[EvalOptions],
    load: Annotated[Callable[..., LoadOptions], Flags("n_ctx")],
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Find the weight, temperature and learning rates of a memory on your text.

    Half of each text chooses, the other half decides whether the choice is better than the defaults. The memory's file
    keeps what was found, and other commands use it.
    """
    named, options = model(), evaluation()
    loading = load(n_ctx=options.window)
    set_verbose(verbose)
    from memdec_edge.documents import GENERAL, read_documents
    from memdec_edge.engine import Engine
    from memdec_edge.evaluation.tune import keep, tune

    domain, other = read_documents(path), read_documents(general or GENERAL)
    file = memory_file(memory)
    if file != memory and not dry_run:
        advice = (
            f"copy it out of the Hub's cache, where other programs share it, or change nothing by `dry_run`: {file}"
        )
        raise OptionError("memory", memory, advice)
    with closing(Engine(base_file(named), [MemoryOptions(file)], loading)) as engine:
        warn(engine.warnings)
        found = tune(engine, domain, other, options)
    print(f"{'perplexity, second half of each text':42}{'domain':>10}{'general':>10}")
    for way, values in found.table.items():
        print(f"{way:42}{values['domain']:10.3f}{values['general']:10.3f}")
    rule = found.rule
    print(
        f"lambda {found.fixed:g} where it is fixed; temperature {rule.temperature:g}; where the weight learns: "
        f"first {rule.initial:g}, eta {rule.eta:g}, share {rule.share:g}"
    )
    better = f"{found.gain:.4f} ± {found.standard_error:.4f} nats a token better than the defaults"
    print(better if rule != found.default else f"the defaults stay: the best rule found is {better}")
    if not dry_run:
        warn(keep(file, found))
    if json_:
        print_json(asdict(found))
