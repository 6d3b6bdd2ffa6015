"""docs/cli.md, made from what the program itself says. `python -m tests.docs.cli_page` writes it anew."""

import os
import re
import subprocess
import sys
from functools import cache

from tests.docs.pages import CLI

INTRODUCTION = """# Command line

This page is what `memdec-edge COMMAND --help` prints. Results go to stdout, everything else to stderr. With `--json`
the last line of stdout is one JSON object. [learn.md](learn.md), [run.md](run.md), [chat.md](chat.md),
[server.md](server.md), [index.md](index.md), [train.md](train.md), [convert.md](convert.md),
[evaluate.md](evaluate.md), [hub.md](hub.md) and [speed.md](speed.md) explain the commands by example.
"""


@cache
def help_of(*command: str) -> str:
    """What `memdec-edge COMMAND --help` prints, without a space at the end of a line."""
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "memdec_edge", *command, "--help"],
        env=environment, capture_output=True, encoding="utf-8", check=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


@cache
def commands() -> tuple[str, ...]:
    """The program's commands, in its own order."""
    return tuple(re.findall(r"^  ([a-z-]+)  ", help_of().partition("Commands:")[2], re.MULTILINE))


def page() -> str:
    """The text of docs/cli.md."""
    parts = [INTRODUCTION, f"```text\n{help_of()}\n```\n"]
    parts += (f"## {command}\n\n```text\n{help_of(command)}\n```\n" for command in commands())
    return "\n".join(parts)


if __name__ == "__main__":
    CLI.write_text(page(), encoding="utf-8")
