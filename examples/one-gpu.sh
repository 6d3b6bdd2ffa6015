#!/usr/bin/env bash
# A memory on one GPU: up to about 50 million tokens of text, whose neighbours a GPU finds exactly.
#
#   examples/one-gpu.sh hf-folder corpus memory [more options of train]
set -euo pipefail
teacher=$1 corpus=$2 out=$3 gguf=$3/memdec-$(basename "$3").gguf

# From some 10 million tokens on, one pass of the teacher and two of the memory do: text that is seldom read again is not
# learned by heart. 32 blocks in a pass keep a GPU busy.
memdec-edge train --teacher "$teacher" --corpus "$corpus" --out "$out" \
  --finetune-teacher 1 --epochs 2 --batch 32 --valid-every 200 --save-every 200 "${@:4}"
[[ -f $gguf ]] || memdec-edge convert "$out" --outfile "$gguf"
