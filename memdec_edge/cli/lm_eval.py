"""The command lm-eval: lm-evaluation-harness with memories. Knows nothing of how tasks run."""

from typing import Annotated

import typer

from memdec_edge.cli.flags import CommandError
from memdec_edge.errors import MemdecError, MissingExtraError

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}  # lm-eval knows its own options


def lm_eval(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[OPTIONS OF LM-EVAL]...", help="Passed on to lm-eval.")
    ] = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a base with memories.

    --model-args base=FILE,memory=FILE,lam=auto names the models. lam is the weight of the memories and indexes
    together, 0 to 1; auto: the weights follow the text. Several files are memory=["FILE","FILE"]. More arguments:
    n_ctx=8192, max_length=2048, flash_attn=off and other options of loading and mixing, by their names in Python.

    --tasks NAME,NAME or a YAML file; --include-path DIR with tasks of your own; --num-fewshot N examples before each
    item; --limit N items of a task; --batch-size N sequences at a time; --gen-kwargs temperature=0.5; --output-path DIR
    for results, with --log-samples for every item; --apply-chat-template. `lm-eval ls tasks` lists tasks, and
    `lm-eval run -h` all options. With --model another model than ours runs.

    Tasks of lm-eval download their data sets; tasks of your own may name local files.
    """
    try:
        from memdec_edge.evaluation.harness_command import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lm_eval":
            raise
        missing = MissingExtraError("lm_eval", "eval")
        raise CommandError(str(missing), missing.exit_code) from error
    try:
        run(arguments or [])
    except MemdecError as error:
        raise CommandError(error.spelled({}), error.exit_code) from error
