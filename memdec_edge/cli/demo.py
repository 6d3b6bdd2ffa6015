"""The command demo: a small memory of real text, and what it is worth. Knows nothing of how that is shown."""

from memdec_edge.cli.flags import Given, spread
from memdec_edge.cli.output import print_json
from memdec_edge.cli.parameters import Json
from memdec_edge.options import DemoOptions


@spread
def demo(*, choices: Given[DemoOptions], json_: Json = False) -> None:
    """Train a small memory on real text and show what it does.

    Run again to go on after a stop, or to see the result again.
    """
    options = choices()
    from memdec_edge.workflow.demo import run_demo

    report = run_demo(options)
    if json_:
        print_json(report)
