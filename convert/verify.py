"""The proof of a conversion: llama.cpp on the GGUF against PyTorch on the checkpoint, on one short text.

Knows nothing of how the file was made.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdec_edge.context import Context
from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.llama import Model
from memdec_edge.options import LoadOptions

TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1969, 3 astronauts flew to the moon; they'd return after 8 days. "
    "Aspirin is a medicine that lowers fever, and its dose depends on age.\n\n  def add(a, b): return a + b\n"
)
MAX_TOKENS = 64
MAX_MEAN_KL = 0.1  # nats; a right conversion to q8_0 stands near 0.005, a permuted tensor above 1
LogProbs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verification:
    """Log-probs of the GGUF against PyTorch's, over all positions and token ids; nats."""

    n_tokens: int  # positions compared
    max_delta: float  # largest |difference| of a log-prob
    mean_kl: float  # KL(PyTorch || GGUF), mean over positions
    same_top: float  # fraction of positions with the same likeliest token
    same_tokens: bool | None  # the text splits into the same ids; None: the folder has no tokenizer.json


def verify(gguf: Path, checkpoint: Path) -> Verification:
    """Compare with F32 activations and KV cache, flash attention off.

    Raises ModelFileError where the two are different models (mean KL above MAX_MEAN_KL), MissingExtraError without
    transformers.
    """
    model = Model(gguf)
    try:
        ids = model.tokenize(TEXT)[: min(MAX_TOKENS, model.n_ctx_train)]
        options = LoadOptions(flash_attn="off", cache_type_k="f32", cache_type_v="f32")
        context = Context(model, options, len(ids))
        try:
            ours = log_softmax(np.stack([row.copy() for row in context.feed_rows(ids)]))
        finally:
            context.close()
        split = model.tokenize(TEXT, add_special=False)
    finally:
        model.close()
    theirs = log_softmax(_torch_logits(checkpoint, ids)[:, : ours.shape[1]])
    found = Verification(
        n_tokens=len(ids),
        max_delta=float(np.abs(ours - theirs).max()),
        mean_kl=float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        same_top=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        same_tokens=_same_tokens(checkpoint, split),
    )
    if not found.mean_kl <= MAX_MEAN_KL:
        raise ModelFileError(
            checkpoint, f"the GGUF does not compute what PyTorch does (KL {found.mean_kl:.3g} nats); please report this"
        )
    return found


def log_softmax(logits: npt.NDArray[np.floating]) -> LogProbs:
    """Log-probs over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: LogProbs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _torch_logits(checkpoint: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    """Logits of the checkpoint in float32, [len(ids), rows of its embedding]."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "convert") from error
    logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = network(torch.tensor([ids])).logits[0].numpy()
    return logits


def _same_tokens(checkpoint: Path, ids: list[int]) -> bool | None:
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        return None
    from tokenizers import Tokenizer  # comes with transformers

    try:
        theirs = Tokenizer.from_file(str(path)).encode(TEXT, add_special_tokens=False).ids
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelFileError(path, f"cannot be read ({error})") from error
    return bool(theirs == ids)
