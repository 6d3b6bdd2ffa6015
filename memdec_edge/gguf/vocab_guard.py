"""Vocabularies with which llama.cpp would end the process (GGML_ASSERT, an exception nobody catches): refused before.

Knows nothing of llama.cpp's API: it reads the file's header.
"""

import struct

import numpy as np

from memdec_edge.errors import ModelFileError
from memdec_edge.gguf.header import Header

TOKENS, CHARSMAP = "tokenizer.ggml.tokens", "tokenizer.ggml.precompiled_charsmap"
NONE = 2**32
FEW = 12  # tokens: with as many or more, every default id of DEFAULTS is in the vocabulary
# By tokenizer model: the ids that llama.cpp takes for a BOS or EOS which the file does not name.
DEFAULTS = {"gpt2": {"bos": 11, "eos": 11}, "llama": {"bos": 1, "eos": 2}, "t5": {"bos": NONE, "eos": 1}}


def refuse_what_aborts(header: Header) -> bool:
    """Raise ModelFileError for a vocabulary that llama.cpp would not survive.

    Returns whether the rules here cover the tokenizer; where not, only a trial can tell.
    """
    if TOKENS not in header.entries:
        return False  # llama.cpp refuses it by itself, or it has no tokenizer
    tokens = header.strings(TOKENS)
    if not tokens:
        raise ModelFileError(header.path, f"{TOKENS} is empty; the file is damaged")
    seen: set[bytes] = set()
    for token, text in enumerate(tokens):
        # llama.cpp reads C strings, and names empty ones by their number.
        text = text.partition(b"\0")[0] or b"[EMPTY_%d]" % token
        if text in seen:
            raise ModelFileError(header.path, f"its token {token} stands in the vocabulary twice; the file is damaged")
        seen.add(text)
    facts = header.scalars()
    model = facts.get("tokenizer.ggml.model")
    if model == "llama":
        for byte in range(256):
            if b"<0x%02X>" % byte not in seen and bytes([byte]) not in seen:
                raise ModelFileError(
                    header.path, f"its SentencePiece vocabulary has no token for byte {byte}, which llama.cpp needs"
                )
    for name, default in DEFAULTS.get(str(model), {}).items():
        named = facts.get(f"tokenizer.ggml.{name}_token_id")
        token = named if isinstance(named, int) and 0 <= named < len(tokens) else default
        if facts.get(f"tokenizer.ggml.add_{name}_token") is True and not token < len(tokens):
            raise ModelFileError(header.path, f"it adds a token {name.upper()} that its vocabulary does not have")
    if model == "t5" and CHARSMAP in header.entries:
        entry = header.entries[CHARSMAP]
        if not _sound(header.raw(entry.start, entry.end)):
            raise ModelFileError(header.path, f"{CHARSMAP} points outside itself; the file is damaged")
    # A pre-tokenizer may add BOS or EOS where no key says so, and Gemma 4's does where a key says otherwise.
    return model in DEFAULTS and len(tokens) >= FEW and facts.get("tokenizer.ggml.pre") != "gemma4"


def _sound(charsmap: bytes) -> bool:
    """Whether no text can lead outside a SentencePiece table: u32 size, double array of u32, replacements ended by NUL.

    Layout of a node: value 31 bits where bit 31 is set, else offset bits 10-30 (times 256 where bit 9), leaf bit 8.
    """
    if len(charsmap) < 8:
        return False
    (size,) = struct.unpack_from("<I", charsmap)
    if size % 4 or not size or 4 + size >= len(charsmap) or charsmap[-1] != 0:
        return False
    nodes = np.frombuffer(charsmap, "<u4", size // 4, 4).astype(np.int64)
    n_replacements = len(charsmap) - 4 - size
    base = np.arange(len(nodes)) ^ ((nodes >> 10) << ((nodes & 0x200) >> 6))
    reached, waiting = np.zeros(len(nodes), bool), np.array([0])
    while len(waiting):
        reached[waiting] = True
        if (base[waiting] | 0xFF).max() >= len(nodes):
            return False
        leaves = waiting[(nodes[waiting] & 0x100 != 0) & (waiting != 0)]
        if len(leaves) and (nodes[base[leaves]] & 0x7FFFFFFF).max() >= n_replacements:
            return False
        bytes_ = np.arange(1, 256)
        children = base[waiting][:, None] ^ bytes_
        waiting = np.unique(children[nodes[children] & 0x800000FF == bytes_])
        waiting = waiting[~reached[waiting]]
    return True
