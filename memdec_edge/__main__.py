"""The command `memdec-edge`, also as `python -m memdec_edge`: loads the command line, and runs it.

Knows nothing of commands.
"""

import sys
from typing import NoReturn

INTERRUPTED = 130  # what a shell reports of a program that Ctrl-C ended


def main() -> NoReturn:
    """Run the command line. Ctrl-C while it is being loaded ends it as later on: with one line, and its own code."""
    try:
        from memdec_edge.cli import main
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("Error: stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    main()


if __name__ == "__main__":
    main()
