"""TextStream against decoding everything at once."""

import codecs
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.text import TextStream

# few letters, so that stop strings are hit, overlap and nest; two- to four-byte characters, so that borders cut them
LETTERS = st.sampled_from(["a", "b", "\n", "é", "€", "😀", "�"])
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4).map(tuple)
BYTES = st.one_of(st.text(LETTERS, max_size=30).map(str.encode), st.binary(max_size=30))


@st.composite
def chunked(draw: st.DrawFn) -> list[bytes]:
    data = draw(BYTES)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[begin:end] for begin, end in pairwise([0, *cuts, len(data)])]


def all_at_once(data: bytes, stops: tuple[str, ...]) -> tuple[str, str | None]:
    text = data.decode("utf-8", errors="replace")
    hits = [(text.find(stop), len(stop), stop) for stop in stops if stop in text]
    if not hits:
        return text, None
    begin, _, stop = min(hits)
    return text[:begin], stop


@given(chunked(), STOPS)
def test_any_chunking_gives_the_text_decoded_at_once_and_cut_at_the_earliest_stop(
    pieces: list[bytes], stops: tuple[str, ...]
) -> None:
    stream = TextStream(stops)
    shown = "".join([*(stream.push(piece) for piece in pieces), stream.flush()])
    assert (shown, stream.stop) == all_at_once(b"".join(pieces), stops)
    assert stream.stopped == (stream.stop is not None)


@given(chunked(), STOPS)
def test_nothing_shown_ever_holds_a_stop_string(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    stream, shown = TextStream(stops), ""
    for piece in pieces:
        shown += stream.push(piece)
        assert not any(stop in shown for stop in stops)
    shown += stream.flush()
    assert not any(stop in shown for stop in stops)


@given(chunked(), STOPS)
def test_text_that_cannot_begin_a_stop_string_is_shown_at_once(pieces: list[bytes], stops: tuple[str, ...]) -> None:
    stream, shown, seen = TextStream(stops), "", b""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoded = ""
    for piece in pieces:
        shown += stream.push(piece)
        seen += piece
        decoded += decoder.decode(piece)
        if stream.stopped:
            break
        held = decoded[len(shown) :]
        assert decoded == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)


@given(chunked())
def test_without_stop_strings_every_whole_character_is_shown_at_once(pieces: list[bytes]) -> None:
    stream = TextStream()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    assert [stream.push(piece) for piece in pieces] == [decoder.decode(piece) for piece in pieces]


def test_a_character_cut_by_a_token_border_waits_for_its_last_byte() -> None:
    stream = TextStream()
    assert [stream.push(b"\xf0\x9f"), stream.push(b"\x98"), stream.push(b"\x80!")] == ["", "", "😀!"]


def test_an_unfinished_character_at_the_end_becomes_a_replacement_character() -> None:
    stream = TextStream()
    assert stream.push("ok €".encode()[:-1]) + stream.flush() == "ok �"


def test_invalid_bytes_in_the_middle_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.push(b"a\xffb\xc3(") + stream.flush() == "a�b�("


def test_the_beginning_of_a_stop_string_is_held_and_given_when_it_comes_to_nothing() -> None:
    stream = TextStream(("\nUser:",))
    assert [stream.push(b"yes\nUs"), stream.push(b"ual")] == ["yes", "\nUsual"]


def test_a_held_beginning_is_given_at_the_end() -> None:
    stream = TextStream(("###",))
    assert [stream.push(b"a##"), stream.flush(), stream.stopped] == ["a", "##", False]


def test_what_follows_a_stop_string_is_ignored() -> None:
    stream = TextStream(("STOP",))
    shown = [stream.push(b"one ST"), stream.push(b"OP two"), stream.push(b" three"), stream.flush()]
    assert (shown, stream.stop) == (["one ", "", "", ""], "STOP")


@pytest.mark.parametrize("stops", [("ab", "abc"), ("abc", "ab")])
def test_of_two_stop_strings_at_one_place_the_shorter_counts_at_once(stops: tuple[str, ...]) -> None:
    stream = TextStream(stops)
    assert (stream.push(b"xab"), stream.stop) == ("x", "ab")


def test_a_stop_string_waits_for_one_that_began_before_it() -> None:
    stream = TextStream(("abcd", "c"))
    assert (stream.push(b"xabc"), stream.stopped) == ("x", False)
    assert (stream.push(b"d"), stream.stop) == ("", "abcd")
    other = TextStream(("abcd", "c"))
    assert [other.push(b"xabc"), other.push(b"e"), other.stop] == ["x", "ab", "c"]
