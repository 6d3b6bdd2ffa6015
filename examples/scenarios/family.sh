#!/usr/bin/env bash
# One memory, a whole family of bases: does it help the bases that it never met, and does lambda transfer?
#
#   examples/scenarios/family.sh OUT memdec.gguf valid.jsonl test.jsonl smallest.gguf larger.gguf ...
#
# Memory and bases are files, or names on the Hub: the paper's family is Qwen/Qwen2.5-0.5B-Instruct-GGUF:q8_0 and its
# larger sisters. GENERAL names a text outside the domain, TOKENS how much of each text is scored. With TASKS, names of
# lm-eval tasks in the folder INCLUDE, every base answers them alone, with the lambda of the smallest, with its own, and
# with weights that follow the text. SHOTS examples stand before each of LIMIT items.
set -euo pipefail
out=$1 memory=$2 valid=$3 test=$4
here=$(dirname "$0")
shift 4

# Perplexity first: it finds the lambdas. OUT/family.json keeps them.
python "$here/family.py" "$out" "$memory" --valid "$valid" --test "$test" ${GENERAL:+--general "$GENERAL"} \
  --tokens "${TOKENS:-8192}" --window "${WINDOW:-1024}" -- "$@"

[[ -n ${TASKS:-} ]] || exit 0
read -ra tasks <<<"$TASKS"
read -ra shots <<<"${SHOTS:-0}"
lambdas=($(python -c 'import json, sys; print(*[each["lambda"] for each in json.load(open(sys.argv[1]))["bases"]])' \
  "$out/family.json"))
number=0
for base in "$@"; do
  both=base=$base,memory=$memory
  echo "tasks on $base"
  python "$here/table.py" --include-path "${INCLUDE:-$out/tasks}" --tasks "${tasks[@]}" --shots "${shots[@]}" \
    --limit "${LIMIT:-100}" --system "base: base=$base" --system "first: $both,lam=${lambdas[0]}" \
    --system "own: $both,lam=${lambdas[number]}" --system "auto: $both,lam=auto" | tee "$out/tasks-$number.txt"
  number=$((number + 1))
done
