"""Reasoning and content apart, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.chat.reasoning import Reasoning


def divided(pieces: list[str], thinks: bool = False) -> tuple[str, str]:
    parts = Reasoning(thinks)
    told = [parts.push(piece) for piece in pieces] + [parts.flush()]
    reasoning, content = zip(*told, strict=True)
    return "".join(reasoning), "".join(content)


@pytest.mark.parametrize(
    ("text", "thinks", "expected"),
    [
        ("Hello", False, ("", "Hello")),
        ("<think>\nhm </think>\n\nHello ", False, ("hm", "Hello ")),
        (" \n<think>a\n\nb</think>c", False, ("a\n\nb", "c")),
        ("a\nb\n</think>\n\nHello", True, ("a\nb", "Hello")),
        ("<think></think>x", False, ("", "x")),
        ("<think>never ends </th", False, ("never ends </th", "")),
        ("see <think>this</think>", False, ("", "see <think>this</think>")),
        ("<thin", False, ("", "<thin")),
        (" ", False, ("", " ")),
        ("", True, ("", "")),
    ],
)
@given(data=st.data())
def test_the_parts_do_not_depend_on_the_pieces(
    text: str, thinks: bool, expected: tuple[str, str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert divided(pieces, thinks) == expected


PIECES = st.sampled_from(["<think>", "</think>", " ", "\n", "a", "<", "</th", "ink>"])


@given(st.lists(PIECES, max_size=8), st.booleans())
def test_nothing_but_tags_and_blanks_is_lost(pieces: list[str], thinks: bool) -> None:
    whole = divided(["".join(pieces)], thinks)
    assert divided(pieces, thinks) == whole
    told = "".join(pieces).lstrip()
    if not thinks and told.startswith("<think>"):
        thinks, told = True, told.removeprefix("<think>")
    left = told.replace("</think>", "", 1) if thinks else told
    assert "".join("".join(whole).split()) == "".join(left.split())
