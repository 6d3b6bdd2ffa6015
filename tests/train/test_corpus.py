"""train/corpus.py: packing documents into one stream of tokens."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.train.corpus import Encoder, pack


def encode(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def test_documents_are_packed_between_bos_and_eos() -> None:
    tokens = pack(["ab", "c"], Encoder(encode, 500, 501), 0)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [500, 97, 98, 501, 500, 99, 501]
    assert pack(["ab", "c"], Encoder(encode, None, 501), 0).tolist() == [97, 98, 501, 99, 501]


def test_a_token_limit_is_kept_to_the_token() -> None:
    assert pack(["abc"] * 200, Encoder(encode, None, 0), 301).tolist() == ([97, 98, 99, 0] * 200)[:301]
    assert pack([], Encoder(encode, 1, 2), 0).tolist() == []


@given(
    documents=st.lists(st.text(max_size=20), max_size=9),
    bos=st.none() | st.integers(300, 400),
    limit=st.integers(0, 60),
)
def test_packed_tokens_are_the_documents_one_after_the_other(documents: list[str], bos: int | None, limit: int) -> None:
    truth: list[int] = []
    for document in documents:
        truth += [*([] if bos is None else [bos]), *document.encode(), 2**32 - 1]
    tokens = pack(documents, Encoder(encode, bos, 2**32 - 1), limit)
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == (truth[:limit] if limit else truth)
