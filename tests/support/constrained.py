"""Texts that follow a grammar or JSON schema, sampled from rows of noise: a vocabulary is enough."""

from contextlib import closing
from dataclasses import replace

import numpy as np

from memdec_edge.llama.model import Model
from memdec_edge.llama.sampler import Sampler
from memdec_edge.options import SamplingOptions

CLOSING = (b'"', b"}", b"]", b'"}', b'"]', b"0", b"1", b")")  # likelier than others, or strings had no end


def follow(model: Model, options: SamplingOptions, most: int) -> bytes | None:
    """A text that ends by itself within `most` tokens, else None."""
    open_options = replace(options, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    random = np.random.default_rng(max(options.seed, 0))
    likely = [model.pieces.index(piece) for piece in CLOSING if piece in model.pieces]
    with closing(Sampler(open_options, model, model.n_vocab, most)) as chain:
        text = b""
        for position in range(most):
            row = random.normal(size=model.n_vocab).astype(np.float32)
            row[likely] += 12
            row[sorted(model.eog_tokens)] += 20
            token = chain.sample(row, position)
            if token in model.eog_tokens:
                return text
            text += model.piece(token)
            chain.accept(token)
    return None
