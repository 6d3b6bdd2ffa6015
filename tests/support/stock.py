"""llama-cpp-python's `Llama` on the tiny models, as tests of the drop-in open it. Knows nothing of memories."""

from typing import Any

import llama_cpp

PLAIN: dict[str, Any] = {  # no noise of batch shapes worth a word: F32 caches, no flash attention, one thread
    "n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "type_k": 0, "type_v": 0, "verbose": False,
    "chat_format": "chatml",
}  # fmt: skip


def text(llama: llama_cpp.Llama, prompt: str, **options: Any) -> str:
    """The completion of a prompt: greedy and 16 tokens long unless `options` say otherwise."""
    done = llama.create_completion(prompt, **({"max_tokens": 16, "temperature": 0.0, "seed": 3} | options))
    assert isinstance(done, dict)
    found: str = done["choices"][0]["text"]
    return found
