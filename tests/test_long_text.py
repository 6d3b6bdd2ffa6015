"""Token ids of long texts, piece by piece, against those of the whole text."""

import random
import re
from itertools import chain

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from memdec_edge import long_text
from memdec_edge.documents import GENERAL
from memdec_edge.llama.model import Model
from memdec_edge.long_text import Encode, in_pieces, token_ids
from tests.support.tiny import tiny_checkpoint

SCRIPTS = {
    "Latin": "It isn't so, she'd said: 1,234.5 metres\n\n\tof  trailing   blanks … and 'quotes'. ",
    "Cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю — 42 раза!\n",
    "Japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n　「はい」",
    "Arabic": "نص حكيم له سر قاطع وذو شأن عظيم، مكتوب على ثوب أخضر ومغلف بجلد أزرق. ",
    "code": "def f(x):\n\treturn {'a': x[0] + 1_000}  # noqa\r\n\n",
}


def mixed(seed: int, length: int) -> str:
    dice = random.Random(seed)
    text = ""
    while len(text) < length:
        words = dice.choice(list(SCRIPTS.values()))
        at = dice.randrange(len(words))
        text += words[at:] + words[:at] * dice.randrange(6)
    return text


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many cuts in little text."""
    monkeypatch.setattr(long_text, "PIECE", 700)
    monkeypatch.setattr(long_text, "CONTEXT", 300)


@pytest.fixture(scope="module", params=["llama.cpp", "transformers"])
def encode(request: pytest.FixtureRequest, smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Encode:
    if request.param == "llama.cpp":
        return smollm2.encode
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_checkpoint(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda texts: list(tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids)


@pytest.mark.parametrize("script", [*SCRIPTS, "all"])
def test_pieces_give_the_ids_of_the_whole(script: str, encode: Encode, small: None) -> None:
    text = mixed(1, 40_000) if script == "all" else SCRIPTS[script] * (20_000 // len(SCRIPTS[script]))
    pieces = list(in_pieces(text, encode))
    assert len(pieces) > 10
    assert list(chain.from_iterable(pieces)) == encode([text])[0]


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.sampled_from([*SCRIPTS.values(), " ", "\n\n", "a" * 40, "  - ", "ab12", "́"]), min_size=30, max_size=200)
)
def test_any_text_gives_the_ids_of_the_whole(encode: Encode, parts: list[str]) -> None:
    text = "".join(parts)
    piece, context = long_text.PIECE, long_text.CONTEXT
    long_text.PIECE, long_text.CONTEXT = 300, 150
    try:
        assert list(chain.from_iterable(in_pieces(text, encode))) == encode([text])[0]
    finally:
        long_text.PIECE, long_text.CONTEXT = piece, context


def test_text_without_gaps_is_not_cut(encode: Encode, small: None) -> None:
    for text in ("a" * 5000, " " * 5000, "=" * 5000, "ab" * 2500):
        assert list(in_pieces(text, encode)) == encode([text])


def test_a_tokenizer_that_joins_words_is_not_cut_in_a_token(small: None) -> None:
    """Where a token spans a gap, the trial refuses it: here three words and what is between them are one token."""
    ids: dict[str, int] = {}

    def encode(texts: list[str]) -> list[list[int]]:
        found = (re.findall(r"one of the|\w+|\W", text) for text in texts)
        return [[ids.setdefault(token, len(ids)) for token in tokens] for tokens in found]

    text = "".join(f"one of the {'one of the ' * (i % 9)}{i} " for i in range(600))
    pieces = list(in_pieces(text, encode))
    assert len(pieces) > 10
    assert list(chain.from_iterable(pieces)) == encode([text])[0]


def test_texts_come_in_order_whatever_their_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "PIECE", 700)
    monkeypatch.setattr(long_text, "CONTEXT", 300)
    monkeypatch.setattr(long_text, "BATCH_CHARACTERS", 1000)
    texts = ["short", SCRIPTS["Latin"] * 40, "", "b " * 300, "c", SCRIPTS["code"] * 60, "end"]
    asked: list[int] = []

    def encode(some: list[str]) -> list[list[int]]:
        asked.append(sum(map(len, some)))
        return [list(text.encode()) for text in some]

    found = [list(chain.from_iterable(ids)) for ids in token_ids(texts, encode)]
    assert found == [list(text.encode()) for text in texts]
    assert max(asked) < 2000


def test_a_page_of_english_is_as_it_was(encode: Encode) -> None:
    text = GENERAL.read_text(encoding="utf-8")
    assert list(in_pieces(text, encode)) == encode([text])
