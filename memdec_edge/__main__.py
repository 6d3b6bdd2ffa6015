"""`python -m memdec_edge` is `memdec-edge`."""

from memdec_edge.cli import main

main()
