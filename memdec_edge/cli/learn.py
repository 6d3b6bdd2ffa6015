"""The command learn: documents become a memory and an index. Knows nothing of how that is done."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.lines import Lines
from memdec_edge.cli.output import print_json
from memdec_edge.cli.parameters import Base, Json, base_file
from memdec_edge.options import LearnOptions


@spread
def learn(
    *,
    model: Base,
    learning: Given[LearnOptions],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking.")] = False,
    json_: Json = False,
) -> None:
    """Learn from documents: an index in seconds, then a memory, both measured.

    The plan comes first: what is done, what it needs and how long it takes. Run again to go on after a stop.
    """
    named = model()
    options = learning(base=named.model or Path(named.hf_repo))  # what cannot be is refused before a download
    if not options.add:
        options = replace(options, base=base_file(named))
    from memdec_edge.hub import local

    options = replace(options, teacher=options.teacher and local(options.teacher))
    from memdec_edge.workflow.learn import learn
    from memdec_edge.workflow.tell import result_lines, summary

    asks = not yes and sys.stdin.isatty()
    found = learn(options, lambda plan: not asks or Lines().agrees("begin?"))
    for line in result_lines(found):
        print(line)
    if json_:
        print_json(summary(found))
