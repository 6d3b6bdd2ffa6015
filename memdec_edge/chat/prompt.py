"""A rendered chat as the tokens of a prompt, and from which message each token is.

Names of control tokens are read where the template wrote them, and nowhere else. Knows nothing of templates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from memdec_edge.chat.template import Rendered
from memdec_edge.llama.model import Model
from memdec_edge.llama.special import Piece, divide, special_tokens

SPECIALS = ("bos", "eos", "unknown", "padding", "eot", "mask")  # of tokenizer.ggml.*_token_id
CALLED = {"unknown": "unk", "padding": "pad"}  # what templates call them


@dataclass(frozen=True)
class ChatPrompt:
    """Token ids, and for each the index of the message that it is content of, None for what the template added.

    text: of which the tokens were made. thinks: whether the answer goes on inside of reasoning, which the template or
    the message that is continued began.
    """

    tokens: list[int]
    sources: list[int | None]
    roles: tuple[str, ...]
    text: str
    thinks: bool

    def rates(self, generated: float) -> list[float]:
        """How much each token counts for the weights (Session.extend): contents 1, those of answers `generated`.

        Text of the template is no evidence.
        """
        return [
            0.0 if source is None else generated if self.roles[source] == "assistant" else 1.0
            for source in self.sources
        ]


def special_names(model: Model) -> dict[str, str]:
    """What templates know of a vocabulary: bos_token, eos_token and the like."""
    found = ((name, model.metadata.get(f"tokenizer.ggml.{name}_token_id")) for name in SPECIALS)
    ids = {name: token for name, token in found if isinstance(token, int) and 0 <= token < model.n_vocab}
    return {
        f"{CALLED.get(name, name)}_token": model.token_text(token).decode("utf-8", "replace")
        for name, token in ids.items()
    }


class Tokenizer:
    """Makes prompts for one vocabulary, whose special tokens it knows."""

    def __init__(self, model: Model) -> None:
        self.model, self.specials = model, special_tokens(model)
        prefix = model.metadata.get("tokenizer.ggml.add_space_prefix", True)
        self._adds_blanks = model.metadata.get("tokenizer.ggml.model") == "llama" and bool(prefix)

    def prompt(self, rendered: Rendered, *, parse_special: bool = False) -> ChatPrompt:
        """The tokens of a rendered chat, with BOS where the vocabulary asks for it and the template has none.

        parse_special: names of control tokens in contents are those tokens too. A message that carries its own
        `tokens` keeps them, where they spell what the template shows of it. Errors: see Model.tokenize().
        """
        text = rendered.text
        ends = list(accumulate((len(segment.text) for segment in rendered.segments), initial=0))
        mine, whose = bytearray(len(text)), list[int | None]()
        for (start, end), segment in zip(pairwise(ends), rendered.segments, strict=True):
            mine[start:end] = bytes([segment.template or parse_special]) * (end - start)
            whose += [segment.message] * (end - start)
        pieces = divide(self._known(rendered, ends), self.specials, lambda start, end: all(mine[start:end]))
        tokens: list[int] = []
        sources: list[int | None] = []
        for piece in pieces:
            ids = list(piece.tokens or self.model.tokenize(piece.text, add_special=False, parse_special=False))
            tokens += ids
            sources += self._sources(ids, piece, whose)
        if self.model.add_bos and tokens[:1] != [self.model.bos]:
            tokens, sources = [self.model.bos, *tokens], [None, *sources]
        roles = tuple(message["role"] for message in rendered.messages)
        return ChatPrompt(tokens, sources, roles, text, _thinks(rendered))

    def _known(self, rendered: Rendered, ends: list[int]) -> Iterator[Piece]:
        """The text in pieces: contents whose tokens are known, and all between them."""
        text, begin = rendered.text, 0
        for start, segment in zip(ends, rendered.segments, strict=False):
            end = start + len(segment.text)
            ids = None if segment.message is None else rendered.messages[segment.message].get("tokens")
            if ids and self._spells(ids, segment.text) and (not self._adds_blanks or self._special_at(text, end)):
                if begin < start:
                    yield Piece(begin, text[begin:start])
                yield Piece(start, segment.text, tuple(ids))
                begin = end
        if begin < len(text):
            yield Piece(begin, text[begin:])

    def _spells(self, ids: Any, text: str) -> bool:
        known = isinstance(ids, list | tuple) and all(isinstance(i, int) and 0 <= i < self.model.n_vocab for i in ids)
        return known and b"".join(map(self.model.piece, ids)).decode("utf-8", "replace") == text

    def _special_at(self, text: str, at: int) -> bool:
        return at == len(text) or any(text.startswith(special.name, at) for special in self.specials)

    def _sources(self, ids: list[int], piece: Piece, whose: list[int | None]) -> Iterator[int | None]:
        """The message of each token of a piece: of most of its bytes, where several have a part in it."""
        found = set(whose[piece.start : piece.start + len(piece.text)])
        if len(found) == 1:
            yield from [found.pop()] * len(ids)
            return
        lengths = [len(self.model.piece(token, special=True)) for token in ids]
        owners = [whose[at] for at, char in enumerate(piece.text, piece.start) for _ in range(len(char.encode()))]
        before = sum(lengths) - len(owners)  # a blank that the vocabulary puts in front
        for start, end in pairwise(accumulate(lengths, initial=-before)):
            mine = owners[max(start, 0) : max(end, start + 1, 1)] or owners[-1:]
            yield mine[0] if mine.count(mine[0]) == len(mine) else max(mine, key=mine.count)


def _thinks(rendered: Rendered) -> bool:
    last = rendered.segments[-1] if rendered.segments else None
    if last and last.message is not None:  # a message that is continued
        begun = str(rendered.messages[last.message].get("content")).lstrip()
        return begun.startswith("<think>") and "</think>" not in begun
    return rendered.text.rstrip().endswith("<think>")
