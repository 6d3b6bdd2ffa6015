"""The head of a causal LM, a chunk of tokens at a time, so that the logits of a whole batch never exist.

    last_hidden() -> logit_chunks() -> softmax_tiles()      what train/loss.py and predict() are made of
    predict()                                               what a model says at each position
    check_head()                                            whether a model's head is a plain matrix

Knows how transformers divides a causal LM into body and head. Knows nothing of training and targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from memdec_edge.errors import ModelFileError

CHUNK = 128 << 20  # bytes of logits; with a quarter of it the head's gradient takes 5 % longer, with more 1 % less
ROWS = 16  # of a chunk on a CPU: in float32 16 x 151,936 are 9.7 MB and stay in a cache
LARGE = 100.0  # logits at which a soft cap (30 or 50 in Gemma) shows


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    """The input of the head at every position but the last, [batch * length, width]; ids  int64 [batch, length + 1]."""
    hidden: Tensor = model.base_model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)


def logit_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor]]:
    """Yield positions and their logits [positions, n_vocab]; each chunk overwrites the one before.

    hidden  [n, width]; weight  [n_vocab, width]; bias  [n_vocab]
    """
    n, n_vocab = len(hidden), len(weight)
    count = -(-n * n_vocab * weight.element_size() // CHUNK)
    size = -(-n // count)
    buffer = hidden.new_empty(size, n_vocab)
    for low in range(0, n, size):
        chunk = slice(low, min(low + size, n))
        logits = torch.mm(hidden[chunk], weight.t(), out=buffer[: chunk.stop - low])
        if bias is not None:
            logits += bias
        yield chunk, logits


def softmax_tiles(logits: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows of a chunk, their probabilities and their logsumexps, in the type that wide_type() gives."""
    n, wide = len(logits), wide_type(logits)
    step = ROWS if logits.device.type == "cpu" else n
    for low in range(0, n, step):
        tile = slice(low, min(low + step, n))
        probs = logits[tile].softmax(1, dtype=wide)
        yield tile, probs, logits[tile].amax(1).to(wide) - probs.amax(1).log()  # the largest is 1 / sum(exp(x - max))


def wide_type(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own type where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass(frozen=True)
class Predicted:
    """What a model says of the next token at n positions."""

    losses: Tensor  # float32 [n], -log p(next token) in nats
    ids: Tensor  # int64 [n, most], the likeliest next tokens, likeliest first
    probs: Tensor  # float32 [n, most]

    @staticmethod
    def nothing() -> "Predicted":
        """The prediction at no position at all."""
        return Predicted(torch.empty(0), torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0))

    @staticmethod
    def of(logits: Tensor, labels: Tensor, most: int) -> "Predicted":
        """The prediction that logits make; logits  [n, n_vocab]; labels  int64 [n], the next tokens."""
        lse = torch.cat([tile for _, _, tile in softmax_tiles(logits)])
        own = logits.gather(1, labels[:, None])[:, 0]
        likeliest, ids = logits.topk(most) if most else (logits[:, :0], labels[:, None][:, :0])
        return Predicted((lse - own).float(), ids, (likeliest - lse[:, None]).exp().float())

    @staticmethod
    def join(parts: list["Predicted"]) -> "Predicted":
        """The predictions of `parts`, one after the other, as one."""
        some = [part for part in parts if len(part.losses)] or parts[:1]
        return Predicted(*(torch.cat([getattr(part, each.name) for part in some]) for each in fields(Predicted)))


@torch.no_grad()
def predict(model: Any, ids: Tensor, most: int = 0) -> Predicted:
    """What `model` says at each position, with the `most` likeliest next tokens; ids  int64 [batch, length + 1]."""
    hidden, head, labels = last_hidden(model, ids), model.get_output_embeddings(), ids[:, 1:].flatten()
    chunks = logit_chunks(hidden, head.weight, head.bias)
    return Predicted.join([Predicted.of(logits, labels[chunk], most) for chunk, logits in chunks])


@torch.no_grad()
def check_head(model: Any) -> None:
    """Raise ModelFileError unless logits are the product of the model's head and last hidden state, plus a bias.

    Some models cap or scale their logits. The comparison is made at large logits, where either shows.
    """
    reason = f"the logits of {type(model).__name__} are more than a matrix on its last hidden state; use another model"
    head, body = model.get_output_embeddings(), model.base_model
    if not isinstance(head, torch.nn.Linear) or body is model:
        raise ModelFileError(model.config.name_or_path, reason)
    expected: list[Tensor] = []

    def enlarge(module: torch.nn.Module, args: Any, output: Any) -> None:
        logits = head(output.last_hidden_state)
        output.last_hidden_state = output.last_hidden_state * (LARGE / logits.abs().max())
        expected.append(head(output.last_hidden_state))

    training, hook = model.training, body.register_forward_hook(enlarge)
    try:
        ids = torch.arange(8, device=head.weight.device)[None] % len(head.weight)
        found = model.eval()(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    tolerance = LARGE * torch.finfo(head.weight.dtype).eps ** 0.5
    if not torch.allclose(found, expected[0], rtol=0, atol=tolerance, equal_nan=True):  # NaN is another fault
        raise ModelFileError(model.config.name_or_path, reason)
