"""A grammar or JSON schema as llguidance follows it: which tokens may come next.

llguidance has a typed end for everything, where llama.cpp's own grammars end the process or take hours: it follows all
ways through a grammar at once, each by itself, and their number may grow ninefold with every `(`. Knows nothing of
the languages, which gbnf.py and json_schema.py read, and nothing of sampling.
"""

from threading import Lock
from typing import Self
from weakref import WeakKeyDictionary, ref

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from memdec_edge.errors import DecodeError, NumericsError, OptionError
from memdec_edge.llama.gbnf import gbnf_grammar
from memdec_edge.llama.guidance import LIMITS, one_line
from memdec_edge.llama.json_schema import schema_grammar
from memdec_edge.llama.model import Model
from memdec_edge.llama.stack import call_with_stack
from memdec_edge.mixture.rows import Row
from memdec_edge.options import SamplingOptions

SMALL = 1 << 13  # characters of a grammar that any thread's stack is enough for
STACK = 1 << 28  # bytes, while a larger one is read, which a trial has read with 8 MiB

_tokenizers: WeakKeyDictionary[Model, LLTokenizer] = WeakKeyDictionary()
_building = Lock()


def constraint_of(options: SamplingOptions, model: Model) -> "Constraint | None":
    """Return what the options ask of the text, at its start; None where they ask for nothing.

    Raises OptionError for a grammar or JSON schema that cannot be followed.
    """
    if options.grammar:
        return Constraint("grammar", gbnf_grammar(options.grammar, model.token_of), model)
    if options.json_schema:
        return Constraint("json_schema", schema_grammar(options.json_schema), model)
    return None


class Constraint:
    """Where a text stands in a grammar of llguidance's. Not for several threads at once.

    field: the option that it comes from; `name` is for a person. Raises OptionError where no text fits the grammar.
    """

    def __init__(self, field: str, grammar: str, model: Model) -> None:
        self.name, self._ends, tokenizer = field.replace("json_", "JSON "), model.eog_tokens, tokenizer_of(model)

        def begin() -> LLMatcher:
            matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
            matcher.compute_bitmask()  # finds out whether any text begins
            return matcher

        self._matcher = call_with_stack(begin, STACK if len(grammar) > SMALL else 0)
        if self._matcher.is_error():
            reason = f"no text fits it ({self._reason()}); say it otherwise or leave it out"
            raise OptionError(field, "nothing that can be followed", reason)

    def allows(self, token: int) -> bool:
        """Return whether `token` may come next; an end of generation where the text may end.

        Raises NumericsError, as mask() and accept() do, where llguidance has given up on the text so far.
        """
        ends = token in self._ends
        allowed = self._matcher.is_accepting() if ends else self._matcher.validate_tokens([token]) == 1
        self._require_sound()
        return allowed

    def mask(self, row: Row) -> Row:
        """Return a copy of a row of logits, float32 [n_vocab], with -inf for every token that may not come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, count=len(row), bitorder="little").view(bool)
        allowed[list(self._ends)] = self._matcher.is_accepting()
        return np.where(allowed, row, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Go on by `token`. Raises DecodeError where it may not come next."""
        if not self.allows(token) or not self._matcher.consume_token(token):
            self._require_sound()
            raise DecodeError(f"token {token} does not follow the {self.name} here")

    def reset(self) -> None:
        """Go back to the start."""
        self._matcher.reset()

    def fork(self) -> Self:
        """Return a second one that goes on from here by itself."""
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__ | {"_matcher": self._matcher.deep_copy()}
        return twin

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise NumericsError(f"the {self.name} cannot be followed any further here ({self._reason()})")

    def _reason(self) -> str:
        return one_line(self._matcher.get_error()) or self._matcher.stop_reason()


def tokenizer_of(model: Model) -> LLTokenizer:
    """Return llguidance's view of a model's vocabulary; made once for each model, in .4 s for 49,000 tokens.

    Its end of text is an id of its own beyond the vocabulary: Constraint decides about the model's ends.
    """
    with _building:
        if model not in _tokenizers:
            _tokenizers[model] = LLTokenizer(
                TokenizerWrapper(_Vocabulary(model)),
                n_vocab=model.n_vocab + 1,
                eos_token=model.n_vocab,
                slices=LLTokenizer.json_slices(),
            )
        return _tokenizers[model]


class _Vocabulary:
    """What llguidance asks of a tokenizer. It does not keep the model alive."""

    def __init__(self, model: Model) -> None:
        self._model = ref(model)
        self.tokens = [*model.pieces, b"<end>"]
        self.eos_token_id, self.bos_token_id = model.n_vocab, None
        # Tokens without text, which a string must not hold, and those that end it.
        invisible = (token for token in range(model.n_vocab) if not model.piece(token))
        special = {model.n_vocab, *model.eog_tokens, *invisible}
        self.special_token_ids = sorted(special)
        self._ids = {piece: token for token, piece in enumerate(self.tokens) if token not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Return ids that spell `text`, which the grammar leaves no other way: the model's own where they do."""
        data, model = text.encode() if isinstance(text, str) else text, self._model()
        plain = data.decode("utf-8", "replace")
        ids = model.tokenize(plain, add_special=False, parse_special=False) if model else []
        return ids if b"".join(self.tokens[token] for token in ids) == data else self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        """SentencePiece puts a blank before a text: then the longest tokens, one after the other."""
        ids, at = [], 0
        while at < len(data):
            size = next((n for n in range(self._longest, 0, -1) if data[at : at + n] in self._ids), 0)
            if not size:
                break
            ids.append(self._ids[data[at : at + size]])
            at += size
        return ids
