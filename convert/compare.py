"""How far two models' predictions are apart, position by position, and how a GGUF predicts through llama.cpp.

Knows nothing of why the two should be near.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions

WINDOW = 512  # tokens that are evaluated together; each window begins with an empty context
BATCH = 64  # rows of logits that llama.cpp holds at a time; 40 MB for 152,000 ids
# With these options a row of logits does not depend on the batch that computes it.
EXACT = LoadOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32", n_batch=BATCH)
Logits = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Distance:
    """How far the log-probs of a model are from a reference's, in nats, over positions and token ids."""

    n_tokens: int  # positions compared
    max_delta: float  # largest |difference| of a log-prob
    mean_kl: float  # KL(reference || model), mean over positions
    same_top: float  # fraction of positions with the same likeliest token


def distance(reference: Iterable[Logits], model: Iterable[Logits]) -> Distance:
    """Compare rows of logits [n_vocab], as many of both; ids that only the reference has leave its softmax."""
    n_tokens, max_delta, kl, same_top = 0, 0.0, 0.0, 0
    for logits, ours in zip(reference, model, strict=True):
        p, q = log_softmax(logits[: len(ours)]), log_softmax(ours)
        n_tokens += 1
        max_delta = max(max_delta, float(np.abs(p - q).max()))
        kl += float(np.exp(p) @ (p - q))
        same_top += int(p.argmax() == q.argmax())
    return Distance(n_tokens, max_delta, kl / n_tokens, same_top / n_tokens)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """Log-probs over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def windows(model: Model, documents: list[str], n_tokens: int) -> list[list[int]]:
    """The first tokens of some documents, at most `n_tokens`, in pieces of at most WINDOW that a context holds."""
    size, ids = min(WINDOW, model.n_ctx_train), list[int]()
    for document in documents:
        ids += model.tokenize(document)
        if len(ids) >= n_tokens:
            break
    return [ids[start : min(start + size, n_tokens)] for start in range(0, min(len(ids), n_tokens), size)]


def rows(model: Model, parts: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """Logits after each token of each part, float32 [n_vocab]; a row is valid until the next one is asked for."""
    with closing(Context(model, EXACT, max(map(len, parts)))) as context:
        for part in parts:
            context.truncate(0)
            yield from context.feed_rows(part)
