"""The proof of a conversion: llama.cpp on the GGUF against PyTorch on the checkpoint, over a page of real text.

Knows nothing of how the file was made.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from memdec_edge.documents import GENERAL, read_documents
from memdec_edge.errors import MissingExtraError, ModelFileError
from memdec_edge.llama.model import Model

from .compare import Distance, Logits, distance, rows, windows
from .probe import compare_tokenizers

MAX_TOKENS = 256  # that are compared
# Mean KL in nats that rounding to a type explains. A tensor in wrong order makes over 1.
MAX_MEAN_KL = {"f32": 1e-4, "f16": 0.01, "bf16": 0.03, "q8_0": 0.1}


@dataclass(frozen=True)
class Verification(Distance):
    """How far the GGUF's log-probs are from PyTorch's, and whether its tokens are those of the checkpoint."""

    token_difference: str  # a sentence on the first text that the two split differently; empty: they agree


def is_wanted(verify: bool | None, lora: Path | None = None) -> bool:
    """Whether to verify: what was asked for, or, for None, whether the packages that verify() needs are installed."""
    needed = ("torch", "transformers", *(["peft"] if lora else []))
    return all(map(find_spec, needed)) if verify is None else verify


def verify(gguf: Path, checkpoint: Path, outtype: str, lora: Path | None = None) -> Verification:
    """Compare a GGUF of type `outtype` with its checkpoint; F32 activations and KV cache, flash attention off.

    lora  what was merged into the checkpoint; peft computes it beside the weights, unmerged

    Raises ModelFileError where the mean KL is above MAX_MEAN_KL, or where transformers cannot load the checkpoint.
    Raises MissingExtraError without transformers or peft.
    """
    with closing(Model(gguf)) as model:
        parts = windows(model, read_documents(GENERAL), MAX_TOKENS)
        found = distance(_torch_rows(checkpoint, lora, parts), rows(model, parts))
        difference = compare_tokenizers(model, checkpoint)
    if not found.mean_kl <= MAX_MEAN_KL[outtype]:
        raise ModelFileError(
            checkpoint, f"the GGUF does not compute what PyTorch does (KL {found.mean_kl:.3g} nats); please report this"
        )
    return Verification(**vars(found), token_difference=difference)


def _torch_rows(checkpoint: Path, lora: Path | None, parts: Sequence[Sequence[int]]) -> Iterator[Logits]:
    """Logits of the checkpoint after each token of each part, float32 [rows of its embedding]."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        if lora:
            from peft import PeftModel
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "convert") from error
    logging.disable_progress_bar()
    try:
        network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
        if lora:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that tied embeddings are hard to merge: here nothing is
                network = PeftModel.from_pretrained(network, lora).eval()
    except Exception as error:  # of ten kinds: transformers passes on whatever strange files cause
        reason = str(error).strip().split("\n")[0]
        raise ModelFileError(checkpoint, f"transformers cannot load it to compare with ({reason:.200})") from error
    for part in parts:
        with torch.no_grad():
            yield from network(torch.tensor([part])).logits[0].numpy()
