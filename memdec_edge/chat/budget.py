"""What one rendering of a stranger's template may cost: passes of loops, lengths of texts, items of lists.

C code cannot be interrupted, so sizes are known before something is made, as upper bounds. Knows nothing of Jinja.
"""

import re
import threading
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

MAX_STEPS = 2_000_000  # passes of loops, calls of macros, pieces of texts in one rendering; some seconds
MAX_LENGTH = 1 << 26  # characters of a text, items of a list
MAX_BITS = 1 << 14  # of a whole number
MAX_DIGITS = 400  # to which a number is rounded; a float has no more
PER_STEP = 1024  # characters or items that cost as much as a pass of a loop

WORD, LINE = re.compile(r"\S+"), re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
ITERATES = {
    "list",
    "sort",
    "unique",
    "map",
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "groupby",
    "min",
    "max",
    "wordwrap",
}


class BudgetError(Exception):
    """A template ran for too long, or made something too large."""


class Budget(threading.local):
    """Counts what the rendering of this thread has cost."""

    steps = 0

    def spend(self, steps: int = 1) -> None:
        """So many passes of a loop more."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise BudgetError(f"it makes more than {MAX_STEPS:,} passes of its loops")

    def make(self, size: int, how: str) -> None:
        """Something of `size` characters or items will be made."""
        if size > MAX_LENGTH:
            raise BudgetError(f"it makes something too large with {how}")
        self.spend(size // PER_STEP)

    def method(self, owner: str | bytes | int, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A method of a text or number will be called; what `join` takes is a list."""
        given = (*args, *kwargs.values())
        numbers = [abs(value) for value in given if isinstance(value, int)]
        if isinstance(owner, int):
            self.make(max(numbers, default=0), name)
            return
        size = len(owner)
        if name in ("ljust", "rjust", "center", "zfill"):
            size += max(numbers, default=0)
        elif name == "expandtabs":
            size += owner.count("\t" if isinstance(owner, str) else b"\t") * max(numbers, default=8)  # type: ignore[arg-type]
        elif name == "join" and args:
            size = joined_size(args[0], owner)
        elif name == "translate" and args:
            size *= max([1, *map(printed, args[0].values())])
        elif name == "replace" and len(args) > 1:
            times = min([owner.count(args[0]), *numbers[:1]])
            size += times * len(args[1])
            self.spend(times)
        elif name in ("split", "rsplit", "splitlines"):
            limit = next((value for value in reversed(given) if isinstance(value, int) and value >= 0), MAX_STEPS)
            self.spend(min(_pieces(owner, name, given), MAX_STEPS if name == "splitlines" else limit))
        self.make(size, name)

    def filter(self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A filter will be applied to `value`."""
        given = (*args, *kwargs.values())
        numbers = [abs(other) for other in given if isinstance(other, int)]
        size = len(value) if hasattr(value, "__len__") else 1
        self.spend(size if name in ITERATES else 1)
        if name == "center":
            size = printed(value) + max(numbers, default=80)
        elif name == "indent":
            width = max([4, *numbers, *(len(other) for other in given if isinstance(other, str))])
            size += (len(LINE.findall(str(value))) + 1) * width
        elif name == "wordwrap":
            size *= max([2, *(1 + len(other) for other in given if isinstance(other, str))])
        elif name == "format":
            size = formatted_size(str(value), given)
        elif name == "join":
            size = joined_size(value, str(given[0]) if given else "")
        elif name == "replace":
            self.method(str(value), name, tuple(map(str, given[:2])), {})
        elif name in ("string", "tojson", "e", "escape", "upper", "lower", "title", "capitalize", "trim"):
            size = printed(value) * (1 + max(numbers, default=0))  # each item may begin a line of its own, indented
        elif name == "round" and max(numbers, default=0) > MAX_DIGITS:
            raise BudgetError(f"it rounds to more than {MAX_DIGITS} digits")
        elif name == "sum" and any(isinstance(other, list | tuple) for other in given):
            raise BudgetError("it sums lists")
        self.make(size, name)

    def operator(self, name: str, left: Any, right: Any) -> None:
        """left + right, left * right, left ** right or left % right will be computed."""
        if name == "%":
            self.make(formatted_size(left, (right,)) if isinstance(left, str) else 0, name)
        elif isinstance(left, int | float) and isinstance(right, int | float):
            bits = _bits(left) * abs(right) if name == "**" else _bits(left) + _bits(right)
            self.make(0 if bits <= MAX_BITS else MAX_LENGTH + 1, name)
        elif name == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.make(len(left) + len(right), name)
        elif name == "*" and isinstance(left, int):
            self.operator(name, right, left)
        elif name == "*" and hasattr(left, "__len__") and isinstance(right, int):
            self.make(len(left) * right, name)


def printed(value: Any, known: dict[int, int] | None = None) -> int:
    """Characters of str(value), at most; what a container holds twice counts twice, but is looked at once."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return _bits(value) + 1
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return 64
    known = {} if known is None else known
    if id(value) not in known:
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        known[id(value)] = 2 + sum(printed(part, known) + 4 for part in parts)
    return known[id(value)]


def joined_size(parts: Iterable[Any], between: str | bytes) -> int:
    """Characters of the parts with `between` between them."""
    return sum(printed(part) + len(between) for part in parts)


def formatted_size(text: str, given: tuple[Any, ...]) -> int:
    """Characters of a text whose fields, {} or %, are filled: widths in the text, and what is given in each field."""
    values = [inner for value in given for inner in (value if isinstance(value, tuple) else (value,))]
    widths = [abs(value) for value in values if isinstance(value, int)] if re.search(r"\*|\{[^}]*\{", text) else []
    digits = sum(min(int(number[:9]), MAX_LENGTH + 1) for number in re.findall(r"\d+", text))
    fields = text.count("{") + text.count("%")
    return len(text) + digits + fields * max([0, *map(printed, values), *widths])


def _pieces(text: str | bytes, method: str, given: tuple[Any, ...]) -> int:
    """Into how many pieces a text is split; from MAX_STEPS on they are not counted."""
    separators = [value for value in given if isinstance(value, str | bytes)]
    if separators and method != "splitlines":
        return text.count(separators[0]) + 1  # type: ignore[arg-type]  # of the same type, or split() refuses it
    pattern = LINE if method == "splitlines" else WORD
    return sum(1 for _ in islice(pattern.finditer(text), MAX_STEPS + 1)) + 1 if isinstance(text, str) else len(text)


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 64
