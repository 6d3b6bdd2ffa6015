"""Proof that two GGUFs share one vocabulary, or the first difference.

The check compares tokenizers and does not count tokens: model families pad their vocabularies differently. It needs
the vocabularies of two models and no weights. Knows nothing of mixing.
"""

from dataclasses import dataclass

from memdec_edge.errors import PairingError, RoleError
from memdec_edge.gguf.metadata import is_memory
from memdec_edge.gguf.padding import MAX_PADDING, PADDING
from memdec_edge.llama.model import Model

PROBE = (
    "Don't panic: it's 12,345.67 €  (naïve café).\n\n\tif (x_1 >= 0) { return\"日本語\"; }\r\n"
    "HELLOWorld 3rd ½ a\u0301 👩‍🔬 ...!!! we'll they've I'M 1000000 ἀρχή   end\n"
)


@dataclass(frozen=True)
class Pairing:
    """The outcome: `difference` is None where the models match; `warning` is a sentence for a person, or empty."""

    difference: str | None
    warning: str = ""


def compare(base: Model, memory: Model) -> Pairing:
    """Compare the vocabularies of two open models and return the outcome.

    Two models match when their tokenizer models, add_bos, add_eos and the ids those insert are the same, and so is the
    text of every token that both have. Their sizes may differ by MAX_PADDING padding tokens. Where the pre-tokenizers
    have different names, a probe text decides.
    """
    mine, theirs = (model.metadata.get("tokenizer.ggml.model", "none") for model in (base, memory))
    if mine != theirs:
        return Pairing(f"tokenizer.ggml.model is {mine} in the base and {theirs} in the memory")
    for name, mine_adds, theirs_adds, mine_id, theirs_id in (
        ("bos", base.add_bos, memory.add_bos, base.bos, memory.bos),
        ("eos", base.add_eos, memory.add_eos, base.eos, memory.eos),
    ):
        if mine_adds != theirs_adds:
            return Pairing(f"add_{name}_token is {mine_adds} in the base and {theirs_adds} in the memory")
        if mine_adds and mine_id != theirs_id:
            return Pairing(f"the {name} token that is added is {mine_id} in the base and {theirs_id} in the memory")
    return _compare_tokens(base, memory) or _compare_pretokenizers(base, memory)


def _compare_tokens(base: Model, memory: Model) -> Pairing | None:
    shared = min(base.n_vocab, memory.n_vocab)
    for token in range(shared):
        mine, theirs = base.token_text(token), memory.token_text(token)
        if mine != theirs and not (PADDING.fullmatch(mine) and PADDING.fullmatch(theirs)):
            return Pairing(f"token {token} is {_shown(mine)} in the base and {_shown(theirs)} in the memory")
    longer, name = (base, "base") if base.n_vocab > shared else (memory, "memory")
    sizes = f"the base has {base.n_vocab} tokens and the memory {memory.n_vocab}"
    if longer.n_vocab - shared > MAX_PADDING:
        return Pairing(f"{sizes}; at most {MAX_PADDING} padding tokens may differ")
    for token in range(shared, longer.n_vocab):
        if not PADDING.fullmatch(longer.token_text(token)):
            return Pairing(
                f"{sizes}, and token {token} of the {name} is {_shown(longer.token_text(token))}, no padding"
            )
    return None


def _compare_pretokenizers(base: Model, memory: Model) -> Pairing:
    mine, theirs = (model.metadata.get("tokenizer.ggml.pre", "default") for model in (base, memory))
    if mine == theirs:
        return Pairing(None)
    names = f"the pre-tokenizer is {mine} in the base and {theirs} in the memory"
    if base.tokenize(PROBE) != memory.tokenize(PROBE):
        return Pairing(f"{names}, and they split a probe text differently")
    return Pairing(None, f"{names}; they split a probe text alike")


def require_match(base: Model, memory: Model, *, force: bool = False) -> str:
    """Return a warning for a person, or an empty string; with `force` a difference is a warning too.

    Raises RoleError for a memory in the place of the base and for a plain model in the place of the memory, and
    PairingError for vocabularies that differ.
    """
    if not force:
        if is_memory(base.metadata):
            raise RoleError(base.path, "memory", "base model", "give it as `memory`, and its base as `model`")
        if not is_memory(memory.metadata):
            raise RoleError(
                memory.path, "plain model", "memory", "give a file made by memdec-edge convert, or `force` to mix it"
            )
    pairing = compare(base, memory)
    if pairing.difference is None:
        return pairing.warning
    if not force:
        raise PairingError(base.path, memory.path, pairing.difference)
    return f"{memory.path} is mixed by force: {pairing.difference}"


def _shown(text: bytes) -> str:
    return repr(text.decode("utf-8", "replace"))
