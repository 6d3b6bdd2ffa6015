"""The command lm-eval: lm-evaluation-harness with memories. Knows nothing of how tasks run."""

from typing import Annotated

import typer

from memdec_edge.cli.flags import CommandError
from memdec_edge.errors import MemdecError, MissingExtraError

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}  # lm-eval knows its own options


def lm_eval(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENTS", help="Arguments of lm-eval.")] = None,
) -> None:
    """Run tasks of lm-evaluation-harness on a base with memories.

    All arguments are lm-eval's own, with - or _ inside their names. The main ones:

    \b
    --model-args base=FILE,memory=FILE,lam=auto   the models, see below
    --tasks NAME,NAME          tasks of lm-eval, or YAML files
    --include-path DIR         a folder with more tasks
    --num-fewshot N            examples before each item
    --limit N                  items of each task
    --batch-size N             sequences side by side; default: 16
    --gen-kwargs NAME=VALUE    options of generation, such as temperature=0.5
    --apply-chat-template      prompts in the base's chat template
    --output-path DIR          results as JSON
    --log-samples              every item as JSON lines, too
    --model NAME               another model than ours, such as hf

    lam is the weight of the memories and indexes together, 0 to 1; auto: the weights follow the text. Several files are
    'memory=["FILE","FILE"]', in quotes; user/repo[:FILE] names one of the Hub. Options of loading and mixing go by
    their names in Python, such as n_ctx=8192 and flash_attn=off.

    `lm-eval run -h` shows all options, `lm-eval ls tasks` all tasks. They download their data sets; tasks of your own
    may name local files.
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
