"""What an option says about itself, and the checks that follow from that.

    @dataclass(frozen=True)
    class SamplingOptions(Checked):
        top_k: int = option(40, "--top-k", low=0, high=INT_MAX, help="Likeliest tokens that are sampled; 0: all.")

The metadata of a field is the only home of its range, its choices, its flags and its help. In help and in messages
`backticks` mark the names of fields: a command line shows them as flags. Knows nothing of any particular option.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack, get_args, get_origin

from memdec_edge.errors import OptionError, plain

T = TypeVar("T")
KINDS = (  # of fields, what a value of each may be, and how a message calls it
    (bool, bool, "true or false"), (int, Integral, "a whole number"), (float, Real, "a number"), (str, str, "text"),
    (Path, Path, "a Path"),
)  # fmt: skip
INT_MAX = 2**31 - 1  # of a C int: llama.cpp's number of a token, a layer, a thread


class About(TypedDict, total=False):
    """The metadata of a field, beside its flags."""

    help: str  # a sentence that stands alone
    metavar: str  # how help names the value
    low: float  # the range of a number, both ends allowed
    high: float
    choices: Iterable[str]
    none: str  # the word that stands for None where a value is written
    unicode: bool  # whether a path must be UTF-8, since libraries that write there take no other


def about(*flags: str, **rest: Unpack[About]) -> Mapping[str, Any]:
    """The metadata of a field. Flags as a command line spells them, short ones first.

    Without flags a field is a positional argument if it has a metavar, and is no part of a command line else.
    """
    return {"flags": flags, **rest}


def option(default: T, *flags: str, **rest: Unpack[About]) -> T:
    """A field with a default. One without is spelled `field(metadata=about(...))`, for type checkers to see it."""
    found: T = field(default=default, metadata=about(*flags, **rest))
    return found


class Checked:
    """Base of the dataclasses of options: each value is checked against its field when an object is made."""

    def __post_init__(self) -> None:
        """Raise OptionError for the first value that its field does not allow."""
        for each in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            check(each, getattr(self, each.name))


def check(each: Field[Any], value: object) -> None:
    """Raise OptionError unless `value`, or each item of a tuple, has the field's type, range and choices."""
    kinds = get_args(each.type) or (each.type,)
    if get_origin(each.type) is not tuple:
        _check_item(each, value, kinds)
        return
    if not isinstance(value, tuple):
        raise OptionError(each.name, value, "must be a tuple")
    for item in value:
        _check_item(each, item, kinds[:1])


def _check_item(each: Field[Any], value: Any, kinds: tuple[Any, ...]) -> None:
    if value is None and type(None) in kinds:
        return
    for kind, allowed, name in KINDS:
        if kind in kinds and (not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool)):
            raise OptionError(each.name, value, f"must be {name}")
    if isinstance(value, str) or each.metadata.get("unicode"):
        check_text(each.name, str(value))
    if choices := each.metadata.get("choices"):
        check_choice(each.name, value, tuple(choices))
    if "low" in each.metadata:
        check_range(each.name, value, each.metadata["low"], each.metadata["high"])


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise OptionError unless low <= value <= high (so NaN fails too)."""
    if not low <= value <= high:
        bounds = f"from {plain(low)} to {plain(high)}" if high < math.inf else f">= {plain(low)}"
        raise OptionError(name, value, f"must be {bounds}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(name, value, f"must be one of {', '.join(filter(None, choices))}")


def check_text(name: str, value: str) -> None:
    """Raise OptionError for half a surrogate pair: an argument that was not UTF-8 carries its bytes in such halves."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        shown = value.encode(errors="backslashreplace").decode()
        raise OptionError(name, shown, f"not UTF-8 at character {error.start}; give valid text") from None
