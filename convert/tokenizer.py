"""The tokenizer block of a GGUF: copied byte for byte from a base GGUF, or built from tokenizer.json.

Copying is right whenever the base GGUF is at hand: a pre-tokenizer that splits text in another way than the base's is
the classic bug of converters. Built are byte-level BPE tokenizers whose pre-tokenizer llama.cpp has, recognised by
definition. Knows nothing of tensors beyond how many rows the embedding has.
"""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memdec_edge.errors import ModelFileError
from memdec_edge.header import Header
from memdec_edge.pairing import MAX_PADDING

from .checkpoint import Facts, read_json
from .writer import Value, pack_entry

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SCORES = "tokenizer.ggml.scores"
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class TokenizerBlock:
    """Keys as they stand in the file, the tokens by id, and what a person should know."""

    entries: dict[str, bytes]
    tokens: list[bytes]
    warnings: tuple[str, ...] = ()


def copied(base: Path, folder: Path, rows: int) -> TokenizerBlock:
    """The block of the GGUF `base` for a checkpoint whose embedding has `rows` rows.

    More rows than tokens (at most MAX_PADDING): the rows beyond are padding and are dropped by the caller. Fewer rows
    than tokens: the tokens beyond must be the base's padding and are cut from the arrays; the rest stays byte for byte.
    Raises ModelFileError where neither holds, or where tokenizer.json in `folder` has another token under some id.
    """
    with Header(base) as header:
        tokens = header.strings(TOKENS)
        entries = {
            key: header.raw(entry.entry, entry.end)
            for key, entry in header.entries.items()
            if key.startswith("tokenizer.")
        }
        sizes = f"the embedding has {rows} rows and the tokenizer of {base} {len(tokens)} tokens"
        if rows > len(tokens) + MAX_PADDING:
            raise ModelFileError(folder, f"{sizes}; give the base of the same family")
        if rows < len(tokens):
            if any(token != b"[PAD%d]" % number for number, token in enumerate(tokens[rows:], rows)):
                raise ModelFileError(folder, f"{sizes}, which are no padding; give the base of the same family")
            for key, width in ((TOKEN_TYPES, 4), (SCORES, 4)):
                if key in entries:
                    entries[key] = _cut(entries[key], key, rows, width)
            entries[TOKENS] = pack_entry(TOKENS, tokens[:rows])
    _compare_with_json(folder, base, tokens)
    warning = f"{sizes}; " + ("the rows beyond are dropped" if rows > len(tokens) else "its padding is cut")
    return TokenizerBlock(entries, tokens[:rows], (warning,) if rows != len(tokens) else ())


def built(folder: Path, rows: int) -> TokenizerBlock:
    """The block of tokenizer.json and tokenizer_config.json in `folder`; rows without a token become `[PAD<id>]`.

    Raises ModelFileError for a tokenizer that is no byte-level BPE, or whose pre-tokenizer llama.cpp does not have.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(folder, "has no tokenizer.json; give the base's GGUF with --base to copy its tokenizer")
    with _well_formed(path):
        return _built(folder, path, read_json(path), rows)


def _built(folder: Path, path: Path, body: Facts, rows: int) -> TokenizerBlock:
    pre = _pre_tokenizer(path, body)
    texts = {number: text for text, number in _vocabulary(path, body).items()}
    added = {item["id"]: item for item in body.get("added_tokens") or []}
    texts |= {number: item["content"] for number, item in added.items()}
    if len(set(texts.values())) != len(texts) or max(texts) >= rows or min(texts) < 0:
        raise ModelFileError(
            path, f"the highest token id is {max(texts)} and the embedding has {rows} rows, or tokens repeat"
        )
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    special = _special_ids(folder, settings, {text: number for number, text in texts.items()})
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    values: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        TOKENS: tokens,
        TOKEN_TYPES: [_token_type(number, texts, added) for number in range(rows)],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge) for merge in body["model"]["merges"]
        ],
        **{f"tokenizer.ggml.{SPECIAL[name]}": number for name, number in special.items()},
        **{
            f"tokenizer.ggml.add_{name}_token": _adds(path, body, settings, name, texts.get(special.get(name, -1)))
            for name in ("bos", "eos")
        },
    }
    if template := _chat_template(folder, settings):
        values["tokenizer.chat_template"] = template
    return TokenizerBlock({key: pack_entry(key, value) for key, value in values.items()}, [t.encode() for t in tokens])


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Turn what broken JSON structure raises deep in its reading into one error that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, struct.error) as error:
        raise ModelFileError(path, f"is malformed ({error!r}); save the tokenizer again") from error


def _cut(entry: bytes, key: str, count: int, width: int) -> bytes:
    """The first `count` elements of a numeric array's entry."""
    start = 8 + len(key) + 4 + 4  # key, type, type of the elements; then the number of elements
    return entry[:start] + count.to_bytes(8, "little") + entry[start + 8 : start + 8 + count * width]


def _compare_with_json(folder: Path, base: Path, tokens: list[bytes]) -> None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    with _well_formed(path):
        body = read_json(path)
        added = {item["id"] for item in body.get("added_tokens") or []}
        vocabulary = sorted(_vocabulary(path, body).items(), key=lambda item: item[1])
    for text, number in vocabulary:
        if number not in added and number < len(tokens) and tokens[number] != text.encode():
            theirs = tokens[number].decode("utf-8", "replace")
            raise ModelFileError(path, f"token {number} is {text!r} and {theirs!r} in {base}; give the base it was "
                                 "trained for")  # fmt: skip


def _vocabulary(path: Path, body: Facts) -> dict[str, int]:
    model = body.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # Unigram: [text, score] by id
        return {str(item[0]): number for number, item in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise ModelFileError(path, "has no vocabulary (model.vocab); give the base's GGUF with --base")
    return vocabulary


def _pre_tokenizer(path: Path, body: Facts) -> str:
    """llama.cpp's name of the pre-tokenizer, by its definition."""
    model, pre = body["model"], body.get("pre_tokenizer") or {}
    advice = "give the base's GGUF with --base to copy its tokenizer"
    marks = [key for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(key)]
    if model.get("type") != "BPE" or marks:  # llama.cpp's BPE knows no marks on subwords and no byte tokens
        raise ModelFileError(path, f"its model {model.get('type')} {' '.join(marks)} is no byte-level BPE; {advice}")
    steps = [_step(step) for step in pre.get("pretokenizers", [pre])]
    found = steps, (body.get("normalizer") or {}).get("type"), model.get("ignore_merges", False)
    known = {
        "gpt-2": ([("ByteLevel", True)], None, False),
        "smollm": ([("Digits", True), ("ByteLevel", True)], None, False),
        "llama-bpe": ([("Split", LLAMA3_SPLIT), ("ByteLevel", False)], None, True),
        "qwen2": ([("Split", QWEN2_SPLIT), ("ByteLevel", False)], "NFC", False),
    }
    for name, definition in known.items():
        if found == definition:
            return name
    raise ModelFileError(path, f"its pre-tokenizer {json.dumps(pre)[:120]} is none of {', '.join(known)}; {advice}")


def _step(step: dict[str, Any]) -> tuple[str, object]:
    """One pre-tokenizer as its type and the one setting that tells llama.cpp's apart."""
    kind = str(step.get("type"))
    if kind == "ByteLevel":
        return kind, "prefix space" if step.get("add_prefix_space") else step.get("use_regex", True)
    if kind == "Digits":
        return kind, step.get("individual_digits", False)
    if kind == "Split":
        isolated = step["behavior"] == "Isolated" and not step.get("invert")
        return kind, step["pattern"].get("Regex") if isolated else None
    return kind, None


def _token_type(number: int, texts: dict[int, str], added: dict[int, Any]) -> int:
    if number not in texts:
        return UNUSED
    if number not in added:
        return NORMAL
    # Families mark some <|...|> tokens as ordinary text; llama.cpp's own converter takes them for control tokens.
    looks_special = texts[number].startswith("<|") and texts[number].endswith("|>")
    return CONTROL if added[number].get("special") or looks_special else USER_DEFINED


def _special_ids(folder: Path, settings: Facts, ids: dict[str, int]) -> dict[str, int]:
    config = read_json(folder / "config.json")
    found = {}
    for name in SPECIAL:
        token = settings.get(f"{name}_token")
        number = ids.get(str(token["content"] if isinstance(token, dict) else token))
        if number is None:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and number in ids.values():
            found[name] = number
    if "eos" not in found:  # llama.cpp would take token 11
        raise ModelFileError(folder, "names no EOS token; set eos_token in tokenizer_config.json")
    return found


def _adds(path: Path, body: Facts, settings: Facts, name: str, token: str | None) -> bool:
    """Whether the tokenizer puts its BOS first or its EOS last by itself; tokenizer_config.json overrules."""
    setting = settings.get(f"add_{name}_token")
    if isinstance(setting, bool):
        return setting
    post = body.get("post_processor") or {"type": "ByteLevel"}
    for step in post.get("processors", [post]):
        if step["type"] == "TemplateProcessing":
            piece = step["single"][0 if name == "bos" else -1]
            return token is not None and piece.get("SpecialToken", {}).get("id") == token
        if step["type"] != "ByteLevel":
            raise ModelFileError(
                path, f"its post-processor {step['type']} is unknown; give the base's GGUF with --base"
            )
    return False


def _chat_template(folder: Path, settings: Facts) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    return template if isinstance(template, str) else ""
