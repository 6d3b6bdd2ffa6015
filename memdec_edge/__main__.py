"""`python -m memdec_edge` is `memdec-edge`. Knows nothing of commands."""

from memdec_edge.cli import main

main()
