"""Marked text against str: the same characters, and each character where it came from."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdec_edge.chat.marked import Marked, joined, origins

LETTERS = st.text(alphabet=" \n\tabcA<|>é", max_size=12)
SHORT = st.text(alphabet=" ab<|", min_size=1, max_size=2)
METHODS: dict[str, Callable[[str, str, str], object]] = {
    "slice": lambda a, b, c: [a[1:], a[:-1], a[::-1], a[2:9:2]],
    "index": lambda a, b, c: a[0] if a else "",
    "iterate": lambda a, b, c: list(a),
    "add": lambda a, b, c: a + b,
    "add plain": lambda a, b, c: "x" + a + "y",
    "multiply": lambda a, b, c: [a * 3, 2 * a, a * -1],
    "strip": lambda a, b, c: [a.strip(), a.lstrip(), a.rstrip(), a.strip("a<"), a.lstrip(" a"), a.rstrip("b")],
    "affixes": lambda a, b, c: [a.removeprefix(c), a.removesuffix(c), a.removesuffix("")],
    "split": lambda a, b, c: [a.split(), a.split(c), a.split(c, 1), a.split(None, 1)],
    "rsplit": lambda a, b, c: [a.rsplit(), a.rsplit(c), a.rsplit(c, 1), a.rsplit(None, 1)],
    "partition": lambda a, b, c: [*a.partition(c), *a.rpartition(c)],
    "lines": lambda a, b, c: [a.splitlines(), a.splitlines(True)],
    "replace": lambda a, b, c: [a.replace(c, b), a.replace(c, b, 1), a.replace("", b)],
    "case": lambda a, b, c: [a.lower(), a.upper(), a.capitalize(), a.title()],
    "join": lambda a, b, c: [b.join([a, c, a]), b.join([])],
    "other": lambda a, b, c: [
        a == str.__str__(a),
        hash(a) == hash(str.__str__(a)),
        a in b,
        len(a),
        a.startswith(c),
        {a: 1},
    ],
}


def plain(value: object) -> object:
    """The same value with every text as a str of Python's own."""
    if isinstance(value, str):
        return str.__str__(value) if type(value) is str else "".join(map(str.__str__, str.__iter__(value)))
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return {plain(key): item for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", METHODS)
@given(a=LETTERS, b=LETTERS, c=SHORT)
def test_a_marked_text_behaves_as_a_str(name: str, a: str, b: str, c: str) -> None:
    method = METHODS[name]
    assert plain(method(Marked(a, "A"), Marked(b, "B"), c)) == plain(method(a, b, c))


def parts_of(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [part for item in value for part in parts_of(item)]
    return [value] if isinstance(value, str) else []


# Each character of `a` is another one, so that a result tells where its characters come from.
@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("case", "other")])
@given(b=st.text(alphabet="xyz", max_size=3), separator=st.sampled_from(["b", "d ", " ", "\n"]))
def test_each_character_keeps_its_origin(name: str, b: str, separator: str) -> None:
    letters = "a b\ncd efg"
    own = dict(zip(letters, "0123456789", strict=True)) if len(set(letters)) == len(letters) else None
    a = Marked(letters, "".join(chr(65 + index) for index in range(len(letters))))
    for part in parts_of(METHODS[name](a, Marked(b, "#"), separator)):
        for character, origin in zip(part, origins(part), strict=True):
            known = {chr(65 + index) for index, letter in enumerate(letters) if letter == character}
            assert origin in known | {"#", "\1"}
            assert origin != "#" or character in b
    assert own is None or len(own) == len(letters)


def test_what_no_method_passes_on_counts_as_data() -> None:
    assert origins(Marked("ab", "A").title()) == "\1\1"
    assert origins("<{}>".format(Marked("ab", "A"))) == "\1" * 4
    assert list(joined([Marked("ab", "A"), 7, "c"], Marked("-", "B")).spans()) == [
        ("A", "ab"), ("B", "-"), ("\1", "7"), ("B", "-"), ("\1", "c"),
    ]  # fmt: skip
