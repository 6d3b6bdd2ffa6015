"""Token ids of long texts in bounded memory: piece by piece, the same ids as of the whole.

A tokenizer takes 40 to 190 bytes of memory a byte of text, so it gets a text in pieces of PIECE characters. A piece
ends where a token ends in any case: after a word. A trial proves that on CONTEXT characters on both sides: the ids of
the left side must begin the ids of both sides together. The tokenizer then reads the next piece behind the same left
side, whose ids are dropped. So what it does at the beginning of a text happens at no cut (SentencePiece puts a blank
there).

What holds for a context holds for the text where a tokenizer looks no further than to the next gaps between words.
Pre-tokenizers and merges do so; therefore a context has GAPS of them on each side, and a text without gaps is not cut.
Knows nothing of models.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator

Encode = Callable[[list[str]], list[list[int]]]  # texts -> token ids, special tokens neither added nor parsed

PIECE = 100_000  # characters of a piece, at least
CONTEXT = 1_000  # characters on each side of a cut
GAPS = 8  # between words, on each side in the context
TRIES = 40  # places that are tried for a cut, before it is looked for a context further on
BATCH_CHARACTERS, BATCH = 400_000, 64  # of texts that are given to a tokenizer at a time


def token_ids(texts: Iterable[str], encode: Encode) -> Iterator[Iterator[list[int]]]:
    """Yield for each text its token ids, in one list or several that join to them."""
    batch: list[str] = []
    for text in texts:
        if batch and (len(batch) == BATCH or sum(map(len, batch)) + len(text) > BATCH_CHARACTERS):
            yield from (iter([ids]) for ids in encode(batch))
            batch = []
        if len(text) > 2 * PIECE:
            yield from (iter([ids]) for ids in encode(batch)) if batch else ()
            batch = []
            yield in_pieces(text, encode)
        else:
            batch.append(text)
    if batch:
        yield from (iter([ids]) for ids in encode(batch))


def in_pieces(text: str, encode: Encode) -> Iterator[list[int]]:
    """Yield the token ids of a text, piece by piece."""
    start, lead, known = 0, "", 0  # `known` ids belong to `lead`, the context before the piece
    while start < len(text):
        end = _next_cut(text, start + PIECE, encode)
        yield encode([lead + text[start:end]])[0][known:]
        lead = text[max(0, end - CONTEXT) : end]
        known = len(encode([lead])[0]) if end < len(text) else 0
        start = end


def _next_cut(text: str, target: int, encode: Encode) -> int:
    """Where the next piece ends: the first place from `target` on that passes the trial, else the end of the text."""
    while target + CONTEXT < len(text):
        left, right = text[target : target + CONTEXT], text[target + CONTEXT : target + 2 * CONTEXT]
        if _gaps(left) >= GAPS and _gaps(right) >= GAPS:
            tried = 0
            for at in range(target + CONTEXT, min(target + 2 * CONTEXT, len(text) - 1)):
                if _is_gap(text, at):
                    if _passes(text, at, encode):
                        return at
                    tried += 1
                    if tried == TRIES:
                        break
        target += CONTEXT
    return len(text)


def _passes(text: str, at: int, encode: Encode) -> bool:
    """Whether tokens end at `at`, as far as its context says."""
    left, right = text[max(0, at - CONTEXT) : at], text[at : at + CONTEXT]
    ids, joined = encode([left, left + right])
    return joined[: len(ids)] == ids


def _is_gap(text: str, at: int) -> bool:
    """Whether a word or number ends before `at` and no letter, digit, mark or apostrophe follows.

    All pre-tokenizers of GPT-2's family end a token there, for none joins words with what follows them.
    """
    after = text[at]
    return text[at - 1].isalnum() and (
        after.isspace() or (unicodedata.category(after)[0] in "PS" and after not in "'’")
    )


def _gaps(text: str) -> int:
    return sum(_is_gap(text, at) for at in range(1, len(text)))
