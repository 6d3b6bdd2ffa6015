#!/usr/bin/env bash
# A memory on a laptop, from the GGUF that you run: a million tokens of text (5 MB) take two hours.
#
#   examples/laptop-cpu.sh base.gguf corpus memory [more options of train]
set -euo pipefail
base=$1 corpus=$2 out=$3 gguf=$3/memdec-$(basename "$3").gguf

# All is as train does it by itself: the memory reads the text twice, and the best epoch is kept.
# Shorter blocks than the 512 of the default need less memory and lose little where documents are short.
memdec-edge train --teacher "$base" --corpus "$corpus" --out "$out" --block 256 "${@:4}"
[[ -f $gguf ]] || memdec-edge convert "$out" --outfile "$gguf" --base "$base"

# Held-out text: the corpus's own test split, or what train took out of it.
test=$corpus/test.jsonl
[[ -f $test ]] || test=$out/cache/test.jsonl
memdec-edge eval -m "$base" -M "$gguf" "$test"
