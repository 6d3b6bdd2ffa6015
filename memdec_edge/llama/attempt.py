"""Opening a GGUF where it may end the process: what the child process of trial.py does.

Knows nothing of verdicts.
"""

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Literal

from memdec_edge.llama.context import Context
from memdec_edge.llama.model import Model
from memdec_edge.llama.trial import DONE, READY
from memdec_edge.options import LoadOptions

TEXT = "Don't panic: naïve café, 12,345 東京 ﬁ 🙂\n\n\t<0x00>"
CELLS = 64


def main(path: str, vocab_only: str) -> None:
    """Use a file as its user would; print READY before, and DONE after unless the process has ended.

    `vocab_only` is 0 or 1.
    """
    _be_quiet_when_it_ends()
    print(READY, flush=True)
    with suppress(Exception):  # a refusal is no end
        attempt(Path(path), vocab_only=vocab_only == "1")
    print(DONE, flush=True)


def attempt(path: Path, *, vocab_only: bool) -> None:
    """Split a text, spell all tokens, and decode with flash attention and without, in one slot and in two."""
    with closing(Model(path, vocab_only=vocab_only, tried=True)) as model:
        tokens = [token for token in model.tokenize(TEXT) if 0 <= token < model.n_vocab] or [0]
        for token in range(model.n_vocab):
            model.piece(token, special=True)
        if vocab_only:
            return
        settings: tuple[tuple[Literal["auto", "off"], int], ...] = (("auto", 1), ("off", 2))
        for flash_attn, n_seq in settings:
            options = LoadOptions(flash_attn=flash_attn)
            n_ctx = min(CELLS, model.n_ctx_train)
            with closing(Context(model, options, n_ctx * n_seq, n_seq=n_seq)) as context:
                context.feed(tokens[: max(1, n_ctx // 2)])
                context.decode([(slot, tokens[:1]) for slot in range(n_seq) if len(context.tokens[slot]) < n_ctx])


def _be_quiet_when_it_ends() -> None:
    """No core file, and on Windows no window that waits for a click."""
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(0x8003)  # FAILCRITICALERRORS, NOGPFAULTERRORBOX, NOOPENFILEERRORBOX
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
