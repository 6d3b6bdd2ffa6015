#!/usr/bin/env bash
# Table 1 of 2508.09874: GPT-2 small to XL on WikiText-103, each alone, trained further, with a datastore, with a control
# and with one memory of 124M weights. wikitext.py says what stands in the table, and has the paper's numbers.
#
#   examples/scenarios/wikitext.sh OUT [more options of wikitext.py]
#
# Text and models come from the Hub: extras train, hub and documents. The paper's recipe wants a GPU of 80 GB, a day or
# more of it, and 1 TB of disk for the keys of four models. Cheaper: --ways base memory with a memory that was released.
#
#   examples/scenarios/wikitext.sh OUT --ways base memory --memory Clover-Hill/MemoryDecoder-gpt2-small
#
# Without a network, name folders instead:
#
#   TEXT=DIR MODELS="DIR DIR" TEACHER=DIR INIT=DIR examples/scenarios/wikitext.sh OUT
#
# A LoRA takes the place of a model once it is merged: memdec-edge convert LORA --lora-base MODEL --role model makes a GGUF,
# and memdec-edge eval scores it on TEXT/test.jsonl.
set -euo pipefail
out=$1
shift
made=()
if [[ -z ${TEXT:-} ]]; then
  hf download Salesforce/wikitext --repo-type dataset --include 'wikitext-103-raw-v1/*' --local-dir "$out/parquet"
  made=(--parquet "$out/parquet")
fi

# As the paper's authors have it (github LUMIA-Group/MemoryDecoder): the retriever is that of an XL which was trained
# further, and the memory begins as a small one which was. Their temperature of 16 belongs to these keys.
read -ra models <<<"${MODELS:-openai-community/gpt2 openai-community/gpt2-medium openai-community/gpt2-large \
openai-community/gpt2-xl}"
python "$(dirname "$0")/wikitext.py" "$out" "${TEXT:-$out/text}" "${models[@]}" "${made[@]}" \
  --teacher "${TEACHER:-Clover-Hill/gpt2-xl-finetuned-wikitext103}" \
  --init "${INIT:-neulab/gpt2-finetuned-wikitext103}" "$@"
