"""The sampler chain: llama.cpp's samplers in llama.cpp's order, applied to a row of logits, and the seeded pick.

Calls llama.cpp's sampler API and nothing else of it. Knows nothing of models beyond the vocabulary handle that a
grammar needs, and nothing of mixing: a row is a row.
"""

import ctypes
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import NumericsError, OptionError
from memdec_edge.options import SamplingOptions

TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """penalties -> top-k -> top-p -> min-p -> temperature -> seeded draw; greedy when the temperature is 0.

    Penalties look at the tokens given to accept() only, so not at the prompt, as in llama-cpp-python. A grammar is
    checked on the pick; only a refusal masks the whole row and draws again, as llama.cpp does.
    Raises OptionError for a grammar or JSON schema that cannot be parsed.
    """

    def __init__(self, options: SamplingOptions, vocab: Any, n_vocab: int, n_ctx: int) -> None:
        self.seed = options.seed if options.seed >= 0 else secrets.randbelow(2**32 - 1)
        self._chain: Any = None
        self._grammar = _grammar(options, vocab)
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        last_n = n_ctx if options.repeat_last_n < 0 else options.repeat_last_n
        self._add(
            llama_cpp.llama_sampler_init_penalties(
                n_vocab, last_n, options.repeat_penalty, options.frequency_penalty, options.presence_penalty
            )
        )
        if options.temperature == 0:
            self._add(llama_cpp.llama_sampler_init_greedy())
        else:
            self._add(llama_cpp.llama_sampler_init_top_k(options.top_k))
            self._add(llama_cpp.llama_sampler_init_top_p(options.top_p, 1))
            self._add(llama_cpp.llama_sampler_init_min_p(options.min_p, 1))
            self._add(llama_cpp.llama_sampler_init_temp(options.temperature))
            self._add(llama_cpp.llama_sampler_init_dist(self.seed))
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._data = np.zeros(n_vocab, TOKEN_DATA)
        self._pointer = ctypes.cast(self._data.ctypes.data, llama_cpp.llama_token_data_p)
        self._one = llama_cpp.llama_token_data(0, 0.0, 0.0)

    def _add(self, sampler: Any) -> None:
        llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def pick(self, row: npt.NDArray[np.float32], forbidden: Collection[int] = ()) -> int:
        """The next token id. `row`: logits, float32 [n_vocab], unchanged; `forbidden`: ids that are not picked.

        Raises NumericsError when no token is possible.
        """
        token = self._draw(row, forbidden, masked=False)
        if self._grammar and not self._allows(token):
            token = self._draw(row, forbidden, masked=True)
        return token

    def _draw(self, row: npt.NDArray[np.float32], forbidden: Collection[int], *, masked: bool) -> int:
        self._data["id"] = self._ids  # samplers reorder the array in place
        self._data["logit"] = row
        if len(forbidden):
            self._data["logit"][np.fromiter(forbidden, np.int64)] = -np.inf
        array = llama_cpp.llama_token_data_array(self._pointer, len(self._data), -1, False)
        if masked:
            llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if not (self._data["logit"] > -np.inf).any():
                raise NumericsError("the grammar allows no further token; end it where the text may end")
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        if array.selected < 0 or not array.data[array.selected].logit > -np.inf:
            raise NumericsError("no token is possible: every one that is left is forbidden")
        return int(array.data[array.selected].id)

    def _allows(self, token: int) -> bool:
        self._one.id, self._one.logit = token, 1.0
        array = llama_cpp.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return bool(self._one.logit > -np.inf)

    def accept(self, token: int) -> None:
        """Tell penalties and grammar of an emitted token. Only what pick() returned: others abort inside a grammar."""
        if self._grammar:
            llama_cpp.llama_sampler_accept(self._grammar, token)
        llama_cpp.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Free the samplers."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama_cpp.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def _grammar(options: SamplingOptions, vocab: Any) -> Any:
    """llama.cpp's grammar sampler, or None."""
    option, text = "--grammar", options.grammar
    if options.json_schema:
        option = "--json-schema"
        try:
            from llama_cpp.llama_grammar import json_schema_to_gbnf

            json.loads(options.json_schema)
            text = json_schema_to_gbnf(options.json_schema)
        except (ValueError, AssertionError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise OptionError(option, "no JSON schema that can be read", str(error) or type(error).__name__) from error
    if not text:
        return None
    with tempfile.TemporaryFile() as said, _stderr_to(said.fileno()):
        sampler = llama_cpp.llama_sampler_init_grammar(vocab, text.encode("utf-8", "replace"), b"root")
        said.seek(0)
        complaint = said.read().decode("utf-8", "replace")
    if not sampler:
        found = re.search(r"error parsing grammar: (.*)", complaint)
        reason = found[1].strip() if found else "it must have a rule `root` that does not begin with itself"
        raise OptionError(option, "no GBNF grammar that llama.cpp can read", reason)
    return sampler


@contextmanager
def _stderr_to(descriptor: int) -> Iterator[None]:
    """llama.cpp's grammar parser writes past its own log, straight to stderr: catch it."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
