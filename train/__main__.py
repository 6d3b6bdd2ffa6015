"""`python -m memdec_edge.train ...` is `memdec-edge train ...`: what `accelerate launch -m` and `torchrun -m` start."""

import sys

from memdec_edge.cli import main

main(["train", *sys.argv[1:]])
