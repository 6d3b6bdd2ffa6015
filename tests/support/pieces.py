"""Builders of SentencePiece tokenizers, trained on the tests' text: tokenizer.model, and folders that hold one."""

import io
import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

from memdec_edge.gguf.writer import GgufFile
from tests.support.tiny import TEXT

# The settings of Llama's tokenizers; SentencePiece's own defaults normalise text (NFKC) and merge spaces.
LLAMA: dict[str, Any] = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "byte_fallback": True,
}


def sentencepiece_model(kind: str, n_tokens: int, **options: Any) -> bytes:
    """A `kind` (bpe, unigram) model of exactly `n_tokens` pieces: <unk>, <s>, </s>, byte tokens, pieces."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in TEXT.split("\n") if line),
        model_writer=written,
        model_type=kind,
        vocab_size=n_tokens,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return written.getvalue()


def sentencepiece_folder(path: Path, kind: str, n_tokens: int, rows: int = 0, **options: Any) -> Path:
    """A folder of tokenizer.model and config.json; `rows` of the embedding, at least `n_tokens`."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.model").write_bytes(sentencepiece_model(kind, n_tokens, **options))
    facts = {"vocab_size": max(rows, n_tokens), "bos_token_id": 1, "eos_token_id": 2}
    (path / "config.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


def llama_merges(model: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The pieces' ids and the merges of a BPE model, best score first, as tokenizer.json lists them."""
    proto: Any = sentencepiece_model_pb2.ModelProto.FromString(model)
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    merges: list[tuple[float, str, str]] = []
    for piece in proto.pieces:
        text = piece.piece
        pairs = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ids and text[at:] in ids]
        if piece.type == 1:
            merges += [(-piece.score, *pair) for pair in sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))]
    return ids, [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]


def vocabulary_gguf(path: Path, entries: dict[str, bytes]) -> Path:
    """A GGUF of a tokenizer block and nothing else."""
    file = GgufFile()
    file.add("general.architecture", "llama")
    file.entries |= entries
    file.write(path, [], lambda count: None)
    return path
