"""Documents into tokens in two forms: plain text, and chats in a base's template, of which answers alone are learned.

Dialogues are chats. Of other documents a share becomes questions and answers (documents/asked.py), spread evenly over
them; what is left of a document stays text. Whichever form a passage has, the stream has it once. Knows nothing of
models, and of templates only that they may refuse a chat.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from typing import TYPE_CHECKING, Protocol

import numpy as np

from memdec_edge.documents import Document, parts_of
from memdec_edge.long_text import token_ids

from .corpus import Counted, Encoder, Tokens

if TYPE_CHECKING:  # it needs llama.cpp, which text alone does not
    from memdec_edge.chat import Transcript


class Writer(Protocol):
    """What makes a chat of turns; None where its template cannot."""

    def write(self, turns: Sequence[tuple[str, str]]) -> "Transcript | None": ...


@dataclass(frozen=True)
class Packed:
    """A stream in two forms. chats: in it; refused: chats that the template cannot write, and which stay text."""

    tokens: Tokens
    counted: Counted
    chats: int
    refused: int


class _Refused:
    """How many chats were refused so far."""

    count = 0


def pack_forms(documents: Sequence[Document], encoder: Encoder, writer: Writer, share: float, limit: int) -> Packed:
    """Documents one after the other, each ended by EOS; at most `limit` tokens unless it is 0.

    share  of the characters that become chats, as far as there are questions; dialogues always do
    """
    refused, chats = _Refused(), 0
    pieces, again = tee(_pieces(documents, writer, share, refused))
    texts = token_ids((piece for piece in again if isinstance(piece, str)), encoder.encode)
    tokens, counted = array("I"), bytearray()
    for piece in pieces:
        if isinstance(piece, str):
            tokens.extend([] if encoder.bos is None else [encoder.bos])
            for part in next(texts):
                tokens.extend(part)
                if limit and len(tokens) >= limit:
                    break
            counted.extend(b"\1" * (len(tokens) - len(counted)))
        else:
            chats += 1
            tokens.extend(piece.tokens)
            counted.extend(piece.answers)
        tokens.append(encoder.eos)
        counted.append(isinstance(piece, str))
        if limit and len(tokens) >= limit:
            break
    end = limit or len(tokens)
    stream = np.frombuffer(tokens, np.uint32) if tokens else np.empty(0, np.uint32)
    return Packed(stream[:end], np.frombuffer(counted, np.bool_)[:end], chats, refused.count)


def _pieces(
    documents: Sequence[Document], writer: Writer, share: float, refused: _Refused
) -> "Iterator[str | Transcript]":
    """The documents in their order, in pieces of text and chats."""
    rate = _rate(documents, share)
    due = 0.0  # characters that should be chats by now and are not
    for document in documents:
        text: list[str] = []
        for part in parts_of(document):
            asked = bool(part.turns)
            if asked and not document.turns:
                due += rate * len(part.text)
                asked = due >= len(part.text) / 2
            chat = writer.write(part.turns) if asked else None
            refused.count += asked and chat is None
            if chat is None:
                text.append(part.text)
                continue
            due -= 0 if document.turns else len(part.text)
            yield from _text(text)
            yield chat
            text = []
        yield from _text(text)


def _rate(documents: Sequence[Document], share: float) -> float:
    """The share of the text with questions, dialogues aside, that must become chats for `share` of all to be chats."""
    every = dialogues = asked = 0
    for document in documents:
        every += len(document.text)
        sizes = sum(len(part.text) for part in parts_of(document) if part.turns)
        if document.turns:
            dialogues += sizes
        else:
            asked += sizes
    return min(1.0, max(0.0, share * every - dialogues) / asked) if asked else 0.0


def _text(parts: list[str]) -> Iterator[str]:
    """Parts of a document that follow one another, as one text, unless that is blank."""
    text = "".join(parts)
    if text and not text.isspace():
        yield text
