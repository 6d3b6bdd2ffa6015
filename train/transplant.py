"""What a vocabulary's tokens stand for, as bytes, and how the rows of another vocabulary follow from them.

A row of the new embedding starts from the old one (after FOCUS, 2305.14481, and WECHSEL, 2112.06598, without their
auxiliary embeddings):

- a token whose bytes both vocabularies have keeps its vector;
- any other text takes the mean of the vectors of the pieces into which the old tokenizer cuts it;
- bytes that are no text take the mean of those of the single bytes;
- BOS, EOS, padding and unknown token keep the vectors of the same part; whatever is left takes the mean of all.

Knows nothing of training.
"""

import copy
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .models import Source

PARTS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of each token that stands for text, by id; control tokens and padding are left out."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"] for token in model["added_tokens"]}
    letters = _byte_letters() if "ByteLevel" in json.dumps([model["pre_tokenizer"], model["decoder"]]) else {}
    found = {}
    for text, number in tokenizer.get_vocab().items():
        if number in added:
            continue
        if letters and all(letter in letters for letter in text):
            found[number] = bytes(letters[letter] for letter in text)
        elif not letters and len(text) == 6 and text.startswith("<0x"):  # how SentencePiece writes a byte
            found[number] = bytes([int(text[3:5], 16)])
        elif not letters:
            found[number] = text.replace("\u2581", " ").encode()
    return found


def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2): printable ones for themselves."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + place): byte for place, byte in enumerate(others)}


@dataclass(frozen=True)
class Rows:
    """How rows of a new vocabulary are made: the old rows whose mean each one is. Rows that are not here: of all."""

    sources: dict[int, list[int]]  # new id -> old ids, one or more
    kept: int  # tokens that both vocabularies have
    composed: int  # tokens made of pieces

    def of(self, old: Tensor, n_rows: int) -> Tensor:
        """A matrix [n_rows, width] from the old one, [rows, width], or a bias [n_rows] from one."""
        new = old.double().mean(0).expand(n_rows, *old.shape[1:]).clone()
        for number, rows in self.sources.items():
            new[number] = old[rows].double().mean(0)
        return new.to(old.dtype)


def rows_from(old: Source, new: Source) -> Rows:
    """How the rows of `new`'s vocabulary follow from those of `old`."""
    old_bytes = token_bytes(old.tokenizer)
    by_bytes = {text: number for number, text in sorted(old_bytes.items(), reverse=True)}  # the lowest id of several
    sources: dict[int, list[int]] = {}
    kept, pieces = 0, dict[int, str]()
    for number, text in token_bytes(new.tokenizer).items():
        if text in by_bytes:
            sources[number] = [by_bytes[text]]
            kept += 1
        elif (readable := _text(text)) is not None:
            pieces[number] = readable
        else:
            sources[number] = _singles(text, by_bytes)
    cut = old.encoder.encode(list(pieces.values())) if pieces else []
    sources |= {number: ids for number, ids in zip(pieces, cut, strict=True) if ids}
    for part in PARTS:
        theirs, mine = getattr(new.tokenizer, part), getattr(old.tokenizer, part)
        if theirs is not None and mine is not None:
            sources[theirs] = [mine]
    sources[new.encoder.eos] = [old.encoder.eos]  # what separates documents
    sources = {number: ids for number, ids in sources.items() if ids and number < new.n_vocab}
    return Rows(sources, kept, len(pieces))


def _text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _singles(data: bytes, by_bytes: dict[bytes, int]) -> list[int]:
    return [by_bytes[one] for one in (data[at : at + 1] for at in range(len(data))) if one in by_bytes]


def transplanted(old: Source, new: Source, rows: Rows) -> Any:
    """`old`'s model with embedding and head for `new`'s vocabulary, float32; it shares nothing with `old`."""
    config = copy.deepcopy(old.model.config)
    config.vocab_size = new.n_vocab
    for part in PARTS:
        setattr(config, part, getattr(new.tokenizer, part))
    model = type(old.model)(config)
    ends = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
    theirs = {"input": old.model.get_input_embeddings(), "output": old.model.get_output_embeddings()}
    skipped = {id(parameter) for end in ends.values() for parameter in end.parameters()}
    state = old.model.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) not in skipped:
                parameter.copy_(state[name])
        for end, module in ends.items():
            for (_, into), (_, matrix) in zip(module.named_parameters(), theirs[end].named_parameters(), strict=True):
                into.copy_(rows.of(matrix.detach(), new.n_vocab))
    return model.eval()
