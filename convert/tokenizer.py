"""The tokenizer block of a GGUF: copied byte for byte from a base GGUF, or built from the checkpoint's own files.

With the base GGUF at hand, copying is right: a pre-tokenizer that splits text otherwise than the base's is the classic
bug of converters. A built block is tried on a probe text first: its ids must be those of the checkpoint's tokenizer.
Knows nothing of tensors beyond how many rows the embedding has.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import Header
from memdec_edge.gguf.padding import MAX_PADDING, PADDING
from memdec_edge.gguf.writer import Value, pack_entry
from memdec_edge.hf_folder import read_json

from .folder import TOKENIZERS
from .pretokenizer import recognise
from .probe import Reference
from .tokenizer_files import ADVICE, PARTS, TokenizerFiles, find
from .vocabulary import BYTE, BYTE_LEVEL, NORMAL, SENTENCEPIECE, UNUSED, Vocabulary, read, well_formed

TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
SCORES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
PADDING_SCORE = -10000.0


@dataclass(frozen=True)
class TokenizerBlock:
    """Keys as they stand in the file, the tokens by id, and warnings for the user."""

    entries: dict[str, bytes]
    tokens: list[bytes]
    warnings: tuple[str, ...] = ()


def copied(base: Path, folder: Path, rows: int) -> TokenizerBlock:
    """The block of the GGUF `base` for a checkpoint whose embedding has `rows` rows.

    Rows beyond the tokens are dropped: padding, and tokens that were added to the checkpoint's tokenizer. Where
    `folder` has no tokenizer to tell, they may be MAX_PADDING. Tokens beyond the rows, as many at most, must be the
    base's padding; they are cut from the arrays, and the rest stays byte for byte. Raises ModelFileError where neither
    holds, or where the tokenizer in `folder` has another token under some id.
    """
    with Header(base) as header:
        tokens = header.strings(TOKENS)
        entries = {
            key: header.raw(entry.entry, entry.end)
            for key, entry in header.entries.items()
            if key.startswith("tokenizer.")
        }
    files = find(folder)
    vocabulary = read(files) if files else None
    sizes = f"the embedding has {rows} rows and the tokenizer of {base} {len(tokens)} tokens"
    if vocabulary:
        _compare(vocabulary, base, tokens)
    elif rows > len(tokens) + MAX_PADDING:
        raise ModelFileError(folder, f"{sizes}; give the base of the same family")
    if rows < len(tokens):
        if not all(map(PADDING.fullmatch, tokens[rows:])):
            raise ModelFileError(folder, f"{sizes}, which are no padding; give the base of the same family")
        if len(tokens) - rows > MAX_PADDING:  # a base would not take the memory
            raise ModelFileError(folder, f"{sizes}; at most {MAX_PADDING} padding tokens may differ")
        for key, width in ((TOKEN_TYPES, 4), (SCORES, 4)):
            if key in entries:
                entries[key] = _cut(entries[key], key, rows, width)
        entries[TOKENS] = pack_entry(TOKENS, tokens[:rows])
    return TokenizerBlock(entries, tokens[:rows], tuple(_difference(sizes, vocabulary, rows, len(tokens))))


def _difference(sizes: str, vocabulary: Vocabulary | None, rows: int, n_tokens: int) -> Iterator[str]:
    """What is said of an embedding and a base's tokens that are not as many."""
    if rows < n_tokens:
        yield f"{sizes}; its padding is cut"
    elif rows > n_tokens:
        added = [text for number, text in sorted(vocabulary.texts.items()) if number >= n_tokens] if vocabulary else []
        yield f"{sizes}; the rows beyond are dropped" + (f", those of {_first(added)} too" if added else "")


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if names[3:] else "")


def built(folder: Path, rows: int) -> TokenizerBlock:
    """The block of the tokenizer in `folder`; rows of the embedding without a token become `[PAD<id>]`.

    Raises ModelFileError for a tokenizer with which llama.cpp would split text in another way than the checkpoint's.
    """
    files = find(folder)
    if files is None:
        raise ModelFileError(folder, f"has no {', no '.join((*TOKENIZERS, ' with '.join(PARTS)))}; {ADVICE}")
    vocabulary, warnings = _fitted(read(files), rows)
    path, texts = vocabulary.path, vocabulary.texts
    if not vocabulary.model:
        raise ModelFileError(path, f"its model is {vocabulary.kind}; llama.cpp knows BPE and Unigram; {ADVICE}")
    if vocabulary.model == SENTENCEPIECE and sum(kind == BYTE for kind in vocabulary.types.values()) < 256:
        raise ModelFileError(path, f"its BPE has no byte tokens, without which llama.cpp cannot use it; {ADVICE}")
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(rows)]
    values: dict[str, Value] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": "default",  # byte-level BPE: replaced by what is recognised
        TOKENS: tokens,
    }
    if vocabulary.scores:
        values[SCORES] = [vocabulary.scores.get(number, PADDING_SCORE) for number in range(rows)]
    values[TOKEN_TYPES] = [vocabulary.types.get(number, UNUSED) for number in range(rows)]
    if vocabulary.model == BYTE_LEVEL:
        values[MERGES] = vocabulary.merges
    with well_formed(path):
        special = _special_ids(files, vocabulary)
        values |= {f"tokenizer.ggml.{SPECIAL[name]}": number for name, number in special.items()}
        for name in ("bos", "eos"):
            token = texts.get(special.get(name, -1))
            values[f"tokenizer.ggml.add_{name}_token"] = _adds(files, name, token)
        if template := _chat_template(files):
            values["tokenizer.chat_template"] = template
        entries = {key: pack_entry(key, value) for key, value in values.items()}
    variant, limits = recognise(vocabulary, entries, Reference(files))
    entries |= {key: pack_entry(key, value) for key, value in variant.items()}
    return TokenizerBlock(entries, [token.encode() for token in tokens], (*warnings, *limits))


def _fitted(vocabulary: Vocabulary, rows: int) -> tuple[Vocabulary, list[str]]:
    """The vocabulary without added tokens beyond the embedding's rows, and warnings that name those."""
    texts, path = vocabulary.texts, vocabulary.path
    beyond = sorted(number for number in texts if number >= rows)
    if not texts or not vocabulary.added.issuperset(beyond):
        highest = max(texts, default=-1)
        sizes = f"the highest token id is {highest} and the embedding has {rows} rows"
        raise ModelFileError(path, f"{sizes}; use the tokenizer that it was trained with")
    if not all(map(math.isfinite, vocabulary.scores.values())):
        raise ModelFileError(path, f"has a score that is no number; {ADVICE}")
    texts = {number: text for number, text in texts.items() if number < rows}
    if len(set(texts.values())) != len(texts):
        raise ModelFileError(path, f"has two tokens of one text; {ADVICE}")
    if not beyond:
        return vocabulary, []
    names = _first([vocabulary.texts[number] for number in beyond])
    left_out = f"added tokens without a row in the embedding are left out: {names}"
    return replace(vocabulary, texts=texts, added=vocabulary.added - set(beyond)), [left_out]


def _cut(entry: bytes, key: str, count: int, width: int) -> bytes:
    """The first `count` elements of a numeric array's entry."""
    start = 8 + len(key) + 4 + 4  # key, type, type of the elements; then the number of elements
    return entry[:start] + count.to_bytes(8, "little") + entry[start + 8 : start + 8 + count * width]


def _compare(vocabulary: Vocabulary, base: Path, tokens: list[bytes]) -> None:
    """Raise ModelFileError where `base` has another token under some id than the checkpoint, or lacks one."""
    for number, text in sorted(vocabulary.texts.items()):
        own = vocabulary.types[number] in (NORMAL, BYTE)  # the others are renamed and spelled in many ways
        if own and number < len(tokens) and tokens[number] != text.encode("utf-8", "replace"):
            theirs = tokens[number].decode("utf-8", "replace")
            raise ModelFileError(vocabulary.path, f"token {number} is {text!r} and {theirs!r} in {base}; give the base "
                                 "it was trained for")  # fmt: skip
        if own and number >= len(tokens):
            raise ModelFileError(vocabulary.path, f"token {number} is {text!r}, and {base} has {len(tokens)} tokens; "
                                 "give the base it was trained for")  # fmt: skip


def _special_ids(files: TokenizerFiles, vocabulary: Vocabulary) -> dict[str, int]:
    """The ids of BOS, EOS and the like, by their names in SPECIAL; tokenizer_config.json goes before config.json."""
    config, settings = read_json(files.folder / "config.json"), files.settings
    ids = {text: number for number, text in vocabulary.texts.items()}
    found = {} if vocabulary.unknown is None else {"unk": vocabulary.unknown}
    for name in SPECIAL:
        token = settings.get(f"{name}_token")
        number = ids.get(str(token["content"] if isinstance(token, dict) else token)) if token is not None else None
        if number is None:
            number = config.get(f"{name}_token_id")
            number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and number in vocabulary.texts:
            found[name] = int(number)
    if "eos" not in found:  # llama.cpp would take token 11
        raise ModelFileError(files.folder, "names no EOS token; set eos_token in tokenizer_config.json")
    return found


def _adds(files: TokenizerFiles, name: str, token: str | None) -> bool:
    """Whether the tokenizer by itself puts its BOS first or its EOS last; tokenizer_config.json overrules the rest."""
    setting = files.settings.get(f"add_{name}_token")
    if token is None or isinstance(setting, bool):
        return token is not None and setting is True
    if not files.body:  # tokenizer.model says nothing of it; its models are trained with BOS and without EOS
        return name == "bos"
    post = files.body.get("post_processor") or {"type": "ByteLevel"}
    for step in post.get("processors", [post]):
        if step["type"] == "TemplateProcessing":
            piece = step["single"][0 if name == "bos" else -1]
            return bool(piece.get("SpecialToken", {}).get("id") == token)
        if step["type"] != "ByteLevel":
            raise ModelFileError(files.path, f"its post-processor {step['type']} is unknown; {ADVICE}")
    return False


def _chat_template(files: TokenizerFiles) -> str:
    """The default chat template, or ""."""
    path = files.folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = files.settings.get("chat_template")
    if isinstance(template, list):  # several, each with a name
        template = next((item["template"] for item in template if item["name"] == "default"), "")
    return template if isinstance(template, str) else ""
