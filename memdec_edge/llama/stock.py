"""llama-cpp-python's own `Llama` with our settings: what a benchmark compares the engine with.

Its defaults are half the cores and no flash attention. Knows nothing of memories.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import llama_cpp

from memdec_edge.gguf.header import Header
from memdec_edge.llama.context import default_threads
from memdec_edge.llama.trial import refuse_what_ends
from memdec_edge.options import CACHE_TYPES, LoadOptions, SamplingOptions


class StockLlama:
    """One `llama_cpp.Llama`; close it."""

    def __init__(self, path: Path | str, load: LoadOptions, sampling: SamplingOptions) -> None:
        with Header(path) as header:
            refuse_what_ends(header)
        threads = load.threads or default_threads()
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=load.n_ctx, n_batch=load.n_batch, n_ubatch=load.n_batch, n_threads=threads,
            n_threads_batch=load.threads_batch or threads, n_gpu_layers=load.n_gpu_layers,
            flash_attn=load.flash_attn != "off", type_k=CACHE_TYPES[load.cache_type_k],
            type_v=CACHE_TYPES[load.cache_type_v], seed=sampling.seed,
            last_n_tokens_size=sampling.repeat_last_n if sampling.repeat_last_n >= 0 else load.n_ctx, verbose=False,
        )  # fmt: skip

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget everything and decode `tokens`; a GPU has finished them when this returns."""
        self._llama.reset()
        self._llama.eval(tokens)
        llama_cpp.llama_synchronize(self._llama.ctx)

    def generate(self, prompt: Sequence[int], sampling: SamplingOptions, n_predict: int) -> list[int]:
        """The `n_predict` token ids after `prompt`; what prefill() decoded of it is not decoded again."""
        tokens = self._llama.generate(
            prompt, temp=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty, presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
        )  # fmt: skip
        return list(islice(tokens, n_predict))

    def close(self) -> None:
        """Free the model and its context."""
        self._llama.close()
