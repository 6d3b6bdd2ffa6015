"""A process that asks llama.cpp's own grammars, which may end it, what ours allows; and one that fuzzes schemas.

    python -m tests.support.grammar_judge grammars FIRST END
    python -m tests.support.grammar_judge schemas FIRST END

Prints every seed before it is tried, what differs, and `done` at the end.
"""

import ctypes
import json
import resource
import sys
from contextlib import closing
from random import Random
from time import thread_time
from typing import Any

import jsonschema
import llama_cpp
import numpy as np
import numpy.typing as npt

from memdec_edge.errors import OptionError
from memdec_edge.llama.constraint import Constraint
from memdec_edge.llama.gbnf import gbnf_grammar
from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import TOKEN_DATA
from memdec_edge.options import SamplingOptions
from tests.support.constrained import follow
from tests.support.grammars import grammar, schema
from tests.support.real import SMOLLM2

STRICTER = ("no text fits", "at most", "before it begins", "more than")  # errors where llama.cpp hangs or ends
SECONDS = 0.3  # of llama.cpp's for one row: the next might take hours


def compare_grammars(model: Model, seeds: range) -> None:
    """Print tokens that only one side allows. Left out are NUL, pieces of characters and control tokens.

    llama.cpp takes control tokens for the text of their names, never allows NUL, and is lax about pieces.
    """
    judged = np.array([_whole(piece) and not model.is_control(token) for token, piece in enumerate(model.pieces)])
    judged[sorted(model.eog_tokens)] = True
    for seed in seeds:
        print(seed, flush=True)
        random = Random(seed)
        text = grammar(random)
        if "{3,1}" in text or "<" in text or "!" in text:  # without end in llama.cpp; the end of it after other text
            continue
        try:
            ours = Constraint("grammar", gbnf_grammar(text, model.token_of), model)
        except OptionError as error:
            if any(reason in error.allowed for reason in STRICTER):
                continue
            if llama_cpp.llama_sampler_init_grammar(model.vocab, text.encode(), b"root"):
                print("refused by us alone:", repr(text))
            continue
        theirs = llama_cpp.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        for _ in range(6 if theirs else 0):
            begin = thread_time()
            allowed = _mask(theirs, model.n_vocab) & judged
            if thread_time() - begin > SECONDS:
                break
            tokens = {*np.nonzero(allowed)[0][:300].tolist(), *random.sample(range(model.n_vocab), 300)}
            for token in (token for token in tokens | model.eog_tokens if judged[token]):
                if ours.allows(token) != allowed[token]:
                    print("differs:", repr(text), token, model.pieces[token], bool(allowed[token]))
            ways = [token for token in np.nonzero(allowed)[0].tolist() if token not in model.eog_tokens]
            if not ways:
                break
            token = random.choice(ways)
            ours.accept(token)
            llama_cpp.llama_sampler_accept(theirs, token)
        if theirs:
            llama_cpp.llama_sampler_free(theirs)


def _whole(piece: bytes) -> bool:
    try:
        return b"\0" not in piece and bool(piece.decode())
    except UnicodeDecodeError:
        return False


def _mask(sampler: Any, n_vocab: int) -> npt.NDArray[np.bool_]:
    data = np.zeros(n_vocab, TOKEN_DATA)
    data["id"] = np.arange(n_vocab)
    pointer = ctypes.cast(data.ctypes.data, llama_cpp.llama_token_data_p)
    array = llama_cpp.llama_token_data_array(pointer, len(data), -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
    return np.asarray(data["logit"] > -np.inf)


def follow_schemas(model: Model, seeds: range) -> None:
    """Print finished texts that are no JSON of their schema; oneOf may be more than one, as llguidance says."""
    finished = 0
    for seed in seeds:
        print(seed, flush=True)
        asked = schema(Random(seed))
        try:
            text = follow(model, SamplingOptions(json_schema=json.dumps(asked), seed=seed), 150)
        except OptionError:
            continue
        if text is None:
            continue
        finished += 1
        try:
            jsonschema.Draft202012Validator(asked).validate(json.loads(text))
        except jsonschema.ValidationError as error:
            if error.validator != "oneOf":
                print("invalid:", json.dumps(asked), repr(text), error.message)
    print(finished, "texts")


if __name__ == "__main__":
    # llama.cpp took 14 GB for seed 234, a hidden left recursion; no seed of the tests is such a grammar.
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    work = {"grammars": compare_grammars, "schemas": follow_schemas}[sys.argv[1]]
    with closing(Model(SMOLLM2, vocab_only=True)) as opened:
        work(opened, range(int(sys.argv[2]), int(sys.argv[3])))
    print("done")
