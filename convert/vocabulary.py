"""The tokens of a checkpoint by id: their texts, llama.cpp's types of them, and what splits text into them.

They come from tokenizer.json (byte-level BPE, BPE with byte fallback, Unigram) or from SentencePiece's tokenizer.model.
Where both are there, tokenizer.model is read, since it holds the scores. Files are hostile until proven otherwise.
Knows nothing of GGUF files, nor of whether llama.cpp splits text as the checkpoint does.
"""

import base64
import itertools
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.gguf.writer import Value
from memdec_edge.hf_folder import Json, read_json

from .tokenizer_files import ADVICE, TokenizerFiles

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types, SentencePiece's too
BYTE_LEVEL, SENTENCEPIECE, UNIGRAM = "gpt2", "llama", "t5"  # llama.cpp's names of tokenizer models
ADD_SPACE, MERGE_SPACES = "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces"
CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
ADDED_SCORE = -1000.0  # of tokens that no merge makes
SPACE = "▁"  # SentencePiece's spelling of a space

# tokenizer.ggml.pre: one name for each way in which llama.cpp splits text into words. They are tried in this order:
# common ones first. Where only some vocabularies tell two apart, the one that splits more stands first. Left out are
# those without merges or without byte-level spelling (kimi-k2, gemma4, sarvam-moe, whitespace).
PRE_TOKENIZERS = (
    "smollm", "gpt-2", "qwen2", "llama-bpe", "dbrx", "tekken", "gpt-4o", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "qwen35", "default", "falcon", "bloom", "viking", "chameleon", "seed-coder", "bailingmoe",
    "exaone-moe", "granite-embed-multi-97m", "tiny_aya", "superbpe", "ufakzeka", "laguna", "afmoe", "youtu", "spark2_5",
    "jais-2", "minicpm5",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. With one of `variants`, sets of keys, llama.cpp should split text as the checkpoint does."""

    path: Path
    model: str  # llama.cpp's name of the kind; "" where it lacks that kind
    kind: str  # in the words of the checkpoint's file
    texts: dict[int, str]
    types: dict[int, int]
    scores: dict[int, float]  # {} for byte-level BPE
    merges: list[str]
    variants: tuple[Mapping[str, Value], ...]
    unknown: int | None = None  # the id that stands for text which no other token covers
    added: frozenset[int] = frozenset()  # ids of tokens that the tokenizer finds before it splits text


def read(files: TokenizerFiles) -> Vocabulary:
    """The vocabulary of a checkpoint. Raises ModelFileError, and MissingExtraError without sentencepiece."""
    with well_formed(files.path):
        found = _from_json(files.path, files.body) if files.body else None
    if files.model and (found is None or found.model != BYTE_LEVEL):
        found = _from_sentencepiece(files.model)
    assert found is not None
    with well_formed(files.path if files.body else files.settings_path):
        return _with_added(found, added_tokens(files))


@contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Turn what a broken structure of JSON raises deep inside into one error that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, struct.error) as error:
        raise ModelFileError(path, f"is malformed ({error!r:.100}); save the tokenizer again") from error


def _from_json(path: Path, body: Json) -> Vocabulary:
    model = body.get("model")
    listed = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(listed, dict | list):
        raise ModelFileError(path, f"has no vocabulary (model.vocab); {ADVICE}")
    kind = f"{model.get('type')}"
    pairs = listed.items() if isinstance(listed, dict) else [(item[0], number) for number, item in enumerate(listed)]
    texts = {_whole(number): str(text) for text, number in pairs}
    if len(texts) != len(listed):
        raise ModelFileError(path, "gives one id to two tokens; save the tokenizer again")
    types = {number: _type(text) if model.get("byte_fallback") else NORMAL for number, text in texts.items()}
    if kind == "Unigram" and isinstance(listed, list):
        unknown = model.get("unk_id")
        scores = {number: float(item[1]) for number, item in enumerate(listed)}
        charsmap = _charsmap(body.get("normalizer") or {})
        variants = tuple(
            {ADD_SPACE: space, MERGE_SPACES: merge} | ({CHARSMAP: charsmap} if charsmap else {})
            for space, merge in itertools.product((True, False), repeat=2)
        )
        return Vocabulary(path, UNIGRAM, kind, texts, _unknown(types, unknown), scores, [], variants, unknown)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
    if kind == "BPE" and isinstance(listed, dict) and model.get("byte_fallback"):
        unknown = listed.get(model.get("unk_token"))
        ranks: dict[str, int] = {}
        # llama.cpp merges the pair with the highest score, tokenizers the one with the lowest rank
        for rank, merge in enumerate(merges):
            ranks.setdefault("".join(merge.split(" ")), rank)
        scores = {number: -float(ranks.get(text, len(merges))) for number, text in texts.items()}
        prefixes = tuple({ADD_SPACE: space} for space in (True, False))
        return Vocabulary(path, SENTENCEPIECE, kind, texts, _unknown(types, unknown), scores, [], prefixes, unknown)
    marks = [key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if kind != "BPE" or marks:  # llama.cpp has neither word pieces nor the marks on them
        return Vocabulary(path, "", " with ".join([kind, *marks]), texts, types, {}, merges, ())
    names = tuple({"tokenizer.ggml.pre": name} for name in PRE_TOKENIZERS)
    return Vocabulary(path, BYTE_LEVEL, kind, texts, types, {}, merges, names)


def _from_sentencepiece(path: Path) -> Vocabulary:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "sentencepiece", "convert") from error
    try:
        proto: Any = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ModelFileError(path, f"is no SentencePiece model ({error}); {ADVICE}") from error
    kinds = {1: ("Unigram", UNIGRAM), 2: ("BPE", SENTENCEPIECE), 3: ("Word", ""), 4: ("Char", "")}
    kind, model = kinds.get(proto.trainer_spec.model_type, ("unknown", ""))
    rules = proto.normalizer_spec
    keys: dict[str, Value] = {ADD_SPACE: rules.add_dummy_prefix, MERGE_SPACES: rules.remove_extra_whitespaces}
    if model == UNIGRAM and rules.precompiled_charsmap:
        keys[CHARSMAP] = bytes(rules.precompiled_charsmap)
    pieces = dict(enumerate(proto.pieces))
    broken = [number for number, piece in pieces.items() if not isinstance(piece.piece, str)]
    if broken:
        raise ModelFileError(path, f"piece {broken[0]} is no UTF-8, the file is damaged; {ADVICE}")
    return Vocabulary(
        path,
        model,
        f"SentencePiece {kind}",
        {number: piece.piece for number, piece in pieces.items()},
        {number: piece.type for number, piece in pieces.items()},
        {number: piece.score for number, piece in pieces.items()},
        [],
        (keys,),
        next((number for number, piece in pieces.items() if piece.type == UNKNOWN), None),
    )


def added_tokens(files: TokenizerFiles) -> dict[int, Json]:
    """Tokens that were added to the vocabulary, by id, as {"content", "special"}."""
    if files.body:
        return {_whole(item["id"]): item for item in files.body.get("added_tokens") or []}
    path = files.folder / "added_tokens.json"
    found: dict[int, Json] = {}
    if path.is_file():
        found |= {_whole(number): {"content": text} for text, number in read_json(path).items()}
    return found | {int(number): item for number, item in (files.settings.get("added_tokens_decoder") or {}).items()}


def _with_added(vocabulary: Vocabulary, added: dict[int, Json]) -> Vocabulary:
    texts, types = dict(vocabulary.texts), dict(vocabulary.types)
    for number, item in added.items():
        texts[number] = str(item["content"])
        types[number] = CONTROL if item.get("special") or _looks_special(texts[number]) else USER_DEFINED
    if vocabulary.model != BYTE_LEVEL:  # llama.cpp looks for these before it turns spaces into ▁
        spaced = (number for number, kind in types.items() if kind == USER_DEFINED)
        texts |= {number: texts[number].replace(SPACE, " ") for number in spaced}
    scores = vocabulary.scores | dict.fromkeys(added, ADDED_SCORE) if vocabulary.scores else {}
    return replace(vocabulary, texts=texts, types=types, scores=scores, added=frozenset(added))


def _looks_special(text: str) -> bool:
    """Whether llama.cpp's own converter takes an added token for a control token, whatever the file calls it."""
    return re.fullmatch(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>", text, re.DOTALL) is not None


def _type(text: str) -> int:
    return BYTE if re.fullmatch("<0x[0-9A-F]{2}>", text) else NORMAL


def _unknown(types: dict[int, int], unknown: int | None) -> dict[int, int]:
    return types if unknown is None else types | {_whole(unknown): UNKNOWN}


def _charsmap(normalizer: Json) -> bytes:
    """SentencePiece's table of character replacements in a tokenizer.json; empty where it has none."""
    for step in [normalizer, *(normalizer.get("normalizers") or [])]:
        if step.get("precompiled_charsmap"):
            return base64.b64decode(step["precompiled_charsmap"])
    return b""


def _whole(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
        raise ValueError(f"token id {number!r}")
    return number
