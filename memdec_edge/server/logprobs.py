"""Log-probs in the shapes that clients know: OpenAI's for chats, its older one for completions, and llama.cpp's.

The sampled token has one log-prob, and the same number stands in the list of the likeliest. Knows nothing of HTTP.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from memdec_edge.api.results import Chunk
from memdec_edge.llama.model import Model
from memdec_edge.mixture.rows import Likely, Sampled

LEAST = -9999.0  # stands for an impossible token, since JSON has no infinity


def finite(log_prob: float | None) -> float:
    """A log-prob that JSON can hold."""
    return min(max(LEAST if log_prob is None else log_prob, LEAST), 0.0)


def entry(base: Model, token: int, log_prob: float) -> dict[str, Any]:
    """One token as OpenAI's chats and llama.cpp show it."""
    piece = base.piece(token, special=True)
    text = piece.decode("utf-8", "replace")
    return {"id": token, "token": text, "logprob": finite(log_prob), "bytes": list(piece)}


def entry_with_tops(base: Model, chunk: Chunk, count: int) -> dict[str, Any]:
    """A chunk's token, and the `count` likeliest in its place."""
    assert chunk.token is not None
    own = entry(base, chunk.token, finite(chunk.log_prob))
    tops = _tops(chunk.token, chunk.log_prob, chunk.top.mixture if chunk.top else ())[:count]
    return own | {"top_logprobs": [entry(base, *likely) for likely in tops]}


class Legacy:
    """Log-probs of a text as OpenAI's completions have them, token by token. top: likeliest ones told of each."""

    def __init__(self, base: Model, top: int) -> None:
        self._base, self._top, self._offset = base, top, 0

    def prompt(self, tokens: Sequence[int], scores: Sequence[Sampled]) -> dict[str, Any]:
        """Of a prompt; nothing stands before the first token, so it has none."""
        rows: list[tuple[int, float | None, Sequence[Likely]]] = [(tokens[0], None, ())]
        rows += [(score.token, score.log_prob, score.top.mixture if score.top else ()) for score in scores]
        return self._shape(rows)

    def chunks(self, chunks: Iterable[Chunk]) -> dict[str, Any]:
        """Of emitted tokens."""
        return self._shape(
            [(c.token, c.log_prob, c.top.mixture if c.top else ()) for c in chunks if c.token is not None]
        )

    def _shape(self, rows: Sequence[tuple[int, float | None, Sequence[Likely]]]) -> dict[str, Any]:
        found: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, log_prob, tops in rows:
            name = self._name(token)
            found["tokens"].append(name)
            found["token_logprobs"].append(None if log_prob is None else finite(log_prob))
            found["text_offset"].append(self._offset)
            self._offset += len(self._base.piece(token).decode("utf-8", "ignore"))
            if log_prob is None or not self._top:
                found["top_logprobs"].append(None)
                continue
            pairs = _tops(token, log_prob, tops)[: self._top]
            if token not in (each for each, _ in pairs):
                pairs.append((token, log_prob))  # the sampled token is told in any case
            found["top_logprobs"].append({self._name(each): finite(value) for each, value in pairs})
        if not self._top:
            found["top_logprobs"] = None
        return found

    def _name(self, token: int) -> str:
        piece = self._base.piece(token, special=True)
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:  # part of a character: each such token keeps a name of its own
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def joined(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Several pieces of Legacy as one."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            whole[key] = value if whole.get(key) is None else whole[key] + value
    return whole


def memory_of(base: Model, chunk: Chunk) -> dict[str, Any]:
    """What base, memories and indexes had to do with a chunk's token; the base's numbers stand first."""
    assert chunk.token is not None
    found: dict[str, Any] = {
        "id": chunk.token,
        "token": base.piece(chunk.token).decode("utf-8", "replace"),
        "share": chunk.share,
        "logprob": finite(chunk.log_prob),
        "logprobs": [finite(value) for value in chunk.log_probs],
        "weights": list(chunk.weights),
    }
    if chunk.top:
        voices = [[entry(base, *likely) for likely in model] for model in chunk.top.models]
        found["top"] = {"mixture": [entry(base, *likely) for likely in chunk.top.mixture], "voices": voices}
    if chunk.source:
        source = chunk.source
        found["source"] = {
            "memory": source.index.stem, "document": source.document, "start": source.start, "end": source.end
        }  # fmt: skip
    return found


def _tops(token: int, log_prob: float | None, tops: Sequence[Likely]) -> list[tuple[int, float]]:
    """The likeliest tokens, with the sampled token's own number where it is among them."""
    return [(one.token, finite(log_prob) if one.token == token else one.log_prob) for one in tops]
