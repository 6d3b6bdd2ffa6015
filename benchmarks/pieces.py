"""Do long texts give the same token ids piece by piece as at once?

    python benchmarks/pieces.py --text TEXT.txt ... -- VOCABULARY.gguf ...

Each text is tokenised at once and in pieces, with small pieces for many cuts and with those that training uses. The
GGUFs need only a vocabulary. The last line is one JSON object: bytes, and per tokenizer the cuts and the ids that
differ.
"""

import argparse
import json
from itertools import chain, zip_longest
from pathlib import Path

from memdec_edge import long_text
from memdec_edge.documents import read_documents
from memdec_edge.llama.model import Model

PIECES = (2_000, long_text.PIECE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("vocabulary", type=Path, nargs="+")
    arguments = parser.parse_args()
    texts = {path.name: "\n\n".join(read_documents(path)) for path in arguments.text}
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    print("bytes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    found = {}
    for path in arguments.vocabulary:
        cuts = differing = tokens = 0
        model = Model(path, vocab_only=True)
        encode = model.encode
        for text in texts.values():
            whole = encode([text])[0]
            tokens += len(whole)
            for long_text.PIECE in PIECES:
                pieces = list(long_text.in_pieces(text, encode))
                cuts += len(pieces) - 1
                differing += sum(a != b for a, b in zip_longest(whole, chain.from_iterable(pieces)))
        found[path.stem] = {"tokens": tokens, "cuts": cuts, "differing": differing}
        print(f"{path.stem:40} {tokens:9,} tokens {cuts:5} cuts {differing:6} ids differ", flush=True)
    print(json.dumps({"bytes": sum(sizes.values()), "texts": sizes, "tokenizers": found}))


if __name__ == "__main__":
    main()
