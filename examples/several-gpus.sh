#!/usr/bin/env bash
# A memory on several GPUs of one machine that imitates a retriever: 100 million tokens of text and more. The output folder
# holds the kNN cache too, 1.5 kB a token for a teacher of width 576. For several machines see `accelerate launch --help`:
# the same command on each, with --num_machines, --machine_rank and --main_process_ip, and an output folder that all see.
#
#   GPUS=8 examples/several-gpus.sh hf-folder corpus memory [more options of train]
set -euo pipefail
teacher=$1 corpus=$2 out=$3 gguf=$3/memdec-$(basename "$3").gguf

# --batch is of each process: 8 x 16 blocks of 512 tokens in a step.
accelerate launch --num_processes "${GPUS:-8}" --num_machines 1 --mixed_precision no --dynamo_backend no \
  -m memdec_edge.train --teacher "$teacher" --corpus "$corpus" --out "$out" \
  --beta 0.5 --finetune-teacher 1 --epochs 1 --batch 16 --valid-every 200 --save-every 200 "${@:4}"
[[ -f $gguf ]] || memdec-edge convert "$out" --outfile "$gguf"
