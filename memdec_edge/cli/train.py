"""The commands train and adapt: a memory from a corpus, or from another memory. Knows nothing of how it is trained."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from memdec_edge.cli.flags import Flags, Given, of, spread
from memdec_edge.cli.output import note, print_json, warn
from memdec_edge.cli.parameters import Json, ShowText, shows_text
from memdec_edge.options import AdaptOptions, CacheOptions, TrainOptions
from memdec_edge.options.training import OF_RETRIEVER
from memdec_edge.progress import is_first_process

if TYPE_CHECKING:
    from memdec_edge.train import TrainReport


@spread
def train(
    *,
    caching: Given[CacheOptions],
    training: Annotated[Callable[..., TrainOptions], Flags("out")],
    show_text: ShowText = None,
    json_: Json = False,
) -> None:
    """Train a memory on a corpus.

    The tokens, and the kNN cache where a retriever is imitated, are kept in DIR/cache. Run again to go on after a stop.
    """
    cache = caching()
    options = training(cache=caching(out=cache.out / "cache"), out=cache.out)
    if shows_text(show_text, cache):
        return
    _warn_of_unused(options)
    from memdec_edge.hub import local
    from memdec_edge.train import train_apart

    init = options.init and local(options.init)
    options = replace(options, cache=replace(options.cache, teacher=local(cache.teacher)), init=init)
    _tell(train_apart(options), options, json_)


@spread
def adapt(
    *,
    adapting: Annotated[Callable[..., AdaptOptions], Flags("to")],
    to: Annotated[Path, of(AdaptOptions, "to")],
    caching: Annotated[Callable[..., CacheOptions], Flags("teacher")],
    training: Annotated[
        Callable[..., TrainOptions], Flags("out", "init", "from_scratch", "layers", "hidden", "epochs", "steps")
    ],
    json_: Json = False,
) -> None:
    """Give a memory another vocabulary, for a base of another family.

    Its body stays, embedding and head start from what both vocabularies share, and a short training follows. Run again
    to go on after a stop.
    """
    cache = caching(teacher=to)
    options = training(cache=caching(teacher=to, out=cache.out / "cache"), out=cache.out)
    memory = adapting(to=to, training=options).memory  # what cannot be is refused before a download
    _warn_of_unused(options)
    from memdec_edge.hub import checkpoint_of, local
    from memdec_edge.train import adapt_apart

    memory, base = local(memory, checkpoint_of), local(to)
    options = replace(options, cache=replace(options.cache, teacher=base))
    _tell(adapt_apart(adapting(memory=memory, to=base, training=options)), options, json_)


def _warn_of_unused(options: TrainOptions) -> None:
    """Name the flags of a retriever that were given where none is imitated; `--finetune-teacher 0` is none of these."""
    given = {each: getattr(options.cache, each.name) for each in fields(CacheOptions) if each.name in OF_RETRIEVER}
    unused = [each.metadata["flags"][0] for each, value in given.items() if value not in (each.default, 0)]
    if options.beta == 0 and unused and is_first_process():
        warn([f"{', '.join(unused)}: no retriever is imitated, so this has no effect; --beta 0.5 imitates one"])


def _tell(report: "TrainReport", options: TrainOptions, json_: bool) -> None:
    """What a finished training made, and the command that comes next."""
    if not is_first_process():
        return
    print(f"checkpoint {report.path}")
    if report.valid_perplexity is not None:
        print(f"validation perplexity of the memory alone {report.valid_perplexity:.3f}, mixed with the teacher "
              f"{report.mixture_perplexity:.3f} (lambda {report.mixture_lambda:g})")  # fmt: skip
    if 0 < report.best_step < report.steps:
        print(f"the weights are those after step {report.best_step} of {report.steps}: "
              "more training did worse on validation text")  # fmt: skip
    note(report.notice)
    note(f"next: {shlex.join(_conversion(options))}")
    if json_:
        print_json(asdict(report))


def _conversion(options: TrainOptions) -> list[str]:
    """The command that makes a GGUF of the memory."""
    teacher = options.cache.teacher
    base = ["--base", str(teacher)] if teacher.is_file() else []
    return ["memdec-edge", "convert", str(options.out), "--outfile", f"memdec-{options.out.resolve().name}.gguf", *base]
