#!/usr/bin/env bash
# A memory on one GPU, from a Hugging Face folder. With --beta 0.5 --finetune-teacher 1 it imitates a retriever; up to 50
# million tokens the GPU finds the neighbours exactly.
#
#   examples/one-gpu.sh hf-folder corpus memory [more options of train]
set -euo pipefail
teacher=$1 corpus=$2 out=$3 gguf=$3/memdec-$(basename "$3").gguf

# 32 blocks in a pass keep a GPU busy.
memdec-edge train --teacher "$teacher" --corpus "$corpus" --out "$out" \
  --batch 32 --valid-every 200 --save-every 200 "${@:4}"
[[ -f $gguf ]] || memdec-edge convert "$out" --outfile "$gguf"
