"""Text divided at the names of special tokens, as llama.cpp divides it, but only where the caller allows a name.

llama.cpp reads every name of a control token in a text as that token, or none. A prompt of a chat has both kinds of
text: what its template wrote, and what people wrote. Knows nothing of chats.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import llama_cpp

from memdec_edge.llama.model import Model

BLANKS = " \t\n\v\f\r"  # C's isspace()
CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
SPECIAL = CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED


class Special(NamedTuple):
    """A token that is found by its name in a text. control: only where names are read; else everywhere.

    before, after: blanks beside the name belong to it.
    """

    name: str
    token: int
    control: bool
    before: bool
    after: bool


class Piece(NamedTuple):
    """Part of a text from character `start` on: text to be divided into tokens, or the ids that stand for it."""

    start: int
    text: str
    tokens: tuple[int, ...] | None = None


def special_tokens(model: Model) -> list[Special]:
    """The special tokens of a vocabulary, the longest name first, as llama.cpp looks for them."""
    vocab, found = model.vocab, []
    for token in range(model.n_vocab):
        attributes = llama_cpp.llama_vocab_get_attr(vocab, token)
        if not attributes & SPECIAL:
            continue
        name = model.token_text(token).decode("utf-8", "replace")
        before, after = llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP, llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP
        if name:
            found.append(
                Special(name, token, bool(attributes & CONTROL), bool(attributes & before), bool(attributes & after))
            )
    return sorted(found, key=lambda special: -len(special.name.encode()))


def divide(pieces: Iterable[Piece], specials: Iterable[Special], allows: Callable[[int, int], bool]) -> list[Piece]:
    """Divide the texts of `pieces` at names of special tokens.

    allows: whether characters [start, end) may be read as a control token.
    """
    found = list(pieces)
    for special in specials:
        if any(piece.tokens is None and special.name in piece.text for piece in found):
            found = [part for piece in found for part in _divide(piece, special, allows)]
    return found


def _divide(piece: Piece, special: Special, allows: Callable[[int, int], bool]) -> list[Piece]:
    if piece.tokens is not None:
        return [piece]
    parts: list[Piece] = []
    length, begin, search = len(special.name), 0, 0
    while (at := piece.text.find(special.name, search)) >= 0:
        search = at + length
        if special.control and not allows(piece.start + at, piece.start + search):
            continue
        left = piece.text[begin:at]
        parts.append(Piece(piece.start + begin, left.rstrip(BLANKS) if special.before else left))
        parts.append(Piece(piece.start + at, special.name, (special.token,)))
        begin = search
        if special.after:
            begin = search = len(piece.text) - len(piece.text[search:].lstrip(BLANKS))
    parts.append(Piece(piece.start + begin, piece.text[begin:]))
    return [part for part in parts if part.text]
