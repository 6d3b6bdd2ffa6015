"""Does llama.cpp split a million bytes of text into the ids of each family's own tokenizer?

    python benchmarks/tokenization.py --text FOLDER [--gguf smollm=FILE] [--gguf qwen2=FILE] [--bytes 1000000]
                                      [--gpt2 VOCAB.JSON MERGES.TXT] [--sentencepiece FILE ...]

Each tokenizer is put into a folder as a checkpoint has it (tokenizer.json made of a GGUF's vocabulary and the family's
published pre-tokenizer; tokenizer.model as it is), convert's tokenizer block is built from it, and every document is
split by llama.cpp and by `tokenizers` or `sentencepiece`. The text is the hard probe and .jsonl files with
{"text": ...}, a document of each in turn, composed (NFC), since llama.cpp does not compose. The last line is one JSON
object: per tokenizer the documents, bytes and tokens, how many of them differ, and convert's warnings.
"""

import argparse
import itertools
import json
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from memdec_edge.convert.probe import HARD, ORDINARY, Reference, compare_tokenizers
from memdec_edge.convert.tokenizer import built
from memdec_edge.convert.tokenizer_files import find
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.writer import GgufFile
from memdec_edge.llama.model import Model

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
FAMILIES: dict[str, tuple[Any, Any]] = {  # as published: pre-tokenizer and normaliser
    "gpt2": (BYTE_LEVEL, None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]), None),
    "qwen2": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        normalizers.NFC(),
    ),
}
CONTROL = 3  # llama.cpp's type of special tokens
LONGEST = 4000  # characters of a document: one novel would be half of the text


def byte_level_folder(
    folder: Path, family: str, vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], eos: str
) -> int:
    """Write a byte-level BPE as a checkpoint folder has it; returns the rows of its embedding."""
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer, normalizer = FAMILIES[family]
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}), encoding="utf-8")
    return len(vocabulary)


def from_gguf(folder: Path, family: str, path: Path) -> int:
    """The vocabulary of a GGUF, with the family's published pre-tokenizer."""
    with Header(path) as header:
        tokens = [token.decode() for token in header.strings("tokenizer.ggml.tokens")]
        pairs = [merge.decode().split(" ", 1) for merge in header.strings("tokenizer.ggml.merges")]
        entry = header.entries["tokenizer.ggml.token_type"]
        types = np.frombuffer(header.raw(entry.start, entry.end), "<i4")
        eos = header.scalars()["tokenizer.ggml.eos_token_id"]
    special = [text for text, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    vocabulary = {text: number for number, text in enumerate(tokens)}
    return byte_level_folder(folder, family, vocabulary, [(a, b) for a, b in pairs], special, tokens[int(eos)])


def from_gpt2(folder: Path, vocabulary: Path, merges: Path) -> int:
    """OpenAI's own files: encoder.json or vocab.json, and vocab.bpe or merges.txt."""
    lines = merges.read_text(encoding="utf-8").splitlines()[1:]
    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in lines if line)]
    ids = json.loads(vocabulary.read_text(encoding="utf-8"))
    return byte_level_folder(folder, "gpt2", ids, pairs, ["<|endoftext|>"], "<|endoftext|>")


def from_sentencepiece(folder: Path, path: Path) -> int:
    """A tokenizer.model, as it is."""
    from sentencepiece import SentencePieceProcessor

    (folder / "tokenizer.model").write_bytes(path.read_bytes())
    return int(SentencePieceProcessor(model_file=str(path)).vocab_size())


def documents(folder: Path, n_bytes: int) -> Iterator[str]:
    """Documents of all .jsonl files below `folder` in turn, `n_bytes` of UTF-8 in all, composed (NFC)."""
    sources = [path.read_text(encoding="utf-8").split("\n") for path in sorted(folder.rglob("*.jsonl"))]
    taken = 0
    for line in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*sources))):
        text = unicodedata.normalize("NFC", str(json.loads(line).get("text") or ""))[:LONGEST]
        taken += len(text.encode())
        yield text
        if taken >= n_bytes:
            return


def measure(folder: Path, rows: int, texts: list[str]) -> dict[str, Any]:
    """Build the block in `folder` and split every text twice."""
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2}))
    block = built(folder, rows)
    file = GgufFile()
    file.add("general.architecture", "llama")
    file.entries |= block.entries
    path = folder / "vocabulary.gguf"
    file.write(path, [], lambda count: None)
    reference = Reference(find(folder))
    found: dict[str, Any] = {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts), "tokens": 0}
    found |= {"documents_that_differ": 0, "tokens_that_differ": 0, "warnings": block.warnings}
    with closing(Model(path, vocab_only=True)) as model:
        found["pre"] = model.metadata["tokenizer.ggml.pre"]
        for text in texts:
            theirs = reference.encode(text)
            ours = model.tokenize(text, add_special=False, parse_special=bool(reference.specials))
            found["tokens"] += len(theirs)
            found["documents_that_differ"] += ours != theirs
            found["tokens_that_differ"] += sum(a != b for a, b in itertools.zip_longest(ours, theirs))
        found["hard_probe"] = compare_tokenizers(model, folder) or "all ids agree"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--gguf", action="append", default=[], metavar="FAMILY=FILE")
    parser.add_argument("--gpt2", type=Path, nargs=2, metavar=("VOCABULARY", "MERGES"))
    parser.add_argument("--sentencepiece", type=Path, nargs="+", default=[])
    parser.add_argument("--bytes", type=int, default=1_000_000)
    options = parser.parse_args()
    texts = [*ORDINARY, *HARD, *documents(options.text, options.bytes)]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:

        def folder(name: str) -> Path:
            path = Path(scratch) / name
            path.mkdir()
            return path

        for family, _, path in (item.partition("=") for item in options.gguf):
            place = folder(family)
            results[Path(path).name] = measure(place, from_gguf(place, family, Path(path)), texts)
        if options.gpt2:
            results["gpt2"] = measure(folder("gpt2"), from_gpt2(Path(scratch) / "gpt2", *options.gpt2), texts)
        for path in options.sentencepiece:
            place = folder(path.name)
            results[path.name] = measure(place, from_sentencepiece(place, path), texts)
    for name, found in results.items():
        print(f"{name}: {found['documents_that_differ']} of {found['documents']} documents differ, "
              f"{found['tokens']} tokens, {found['bytes']} bytes, pre-tokenizer {found['pre']}")  # fmt: skip
    print(json.dumps(results, ensure_ascii=False))


if __name__ == "__main__":
    main()
