"""Validation and test parts taken out of training documents: whole families, or tails where those are too large.

Parts are measured in characters, so that they are about as large as asked whatever the documents' lengths and scripts.
Knows nothing of files.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Part = list[tuple[int, str]]  # index of a document, and what of its text is in the part

LEAST_TAIL = 500  # characters: where less is asked for, a whole document is taken
BREAKS = ("\n\n", "\n", "。", "．", "！", "？", "। ", "؟ ", ". ", "! ", "? ", " ", "、", "，")  # best first


def divide(texts: Sequence[str], family: Sequence[int], shares: Mapping[str, float], seed: int) -> dict[str, Part]:
    """Return the parts "train" and those of `shares`, each in seeded random order.

    family  a number for each text: texts with one number stay together
    shares  part -> fraction of all characters

    A part takes families in random order, as near to its share as they come. Where those that are small enough make
    less than half of it, tails of the largest family are cut off. A document is left for each part, and for training.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    groups: dict[int, dict[int, str]] = defaultdict(dict)
    for i in order.tolist():
        groups[family[i]][i] = texts[i]
    total = sum(map(len, texts))
    parts: dict[str, Part] = {}
    for later, (part, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        wanted = share * total
        found = [each for number in _families(groups, wanted, later + 1) for each in groups.pop(number).items()]
        missing = wanted - _size(dict(found))
        largest = max(groups, key=lambda number: _size(groups[number]))
        if not found and wanted < LEAST_TAIL and len(groups) > later + 1:
            smallest = min(groups, key=lambda number: _size(groups[number]))
            found = list(groups.pop(smallest).items())
        elif not found or missing > max(LEAST_TAIL, wanted / 2):
            found += _tails(groups[largest], missing)
        parts[part] = found
    rank = {i: place for place, i in enumerate(order.tolist())}
    rest = {i: text for group in groups.values() for i, text in group.items()}
    return {
        part: sorted(some, key=lambda each: rank[each[0]])
        for part, some in {"train": list(rest.items()), **parts}.items()
    }


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return the items in seeded random order."""
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def _size(group: Mapping[int, str]) -> int:
    return sum(map(len, group.values()))


def _families(groups: Mapping[int, Mapping[int, str]], wanted: float, left: int) -> list[int]:
    """Families that are about `wanted` characters together; `left` families at least are not taken."""
    taken: list[int] = []
    chars = 0
    for number, group in groups.items():
        size = _size(group)
        if len(groups) - len(taken) > left and chars + size / 2 <= wanted:
            taken.append(number)
            chars += size
    return taken


def _tails(group: dict[int, str], wanted: float) -> Part:
    """Cut the same share off the end of each text of a family, `wanted` characters together; return what was cut."""
    share, tails = min(0.5, wanted / max(1, _size(group))), []
    for i, text in group.items():
        head, tail = _cut(text, share)
        if tail.strip():
            group[i] = head
            tails.append((i, tail))
    return tails


def _cut(text: str, share: float) -> tuple[str, str]:
    """Head and tail, about `share` of the text, cut at the best break near by, else between two characters."""
    target = len(text) - int(share * len(text))
    nearest = max(1, target - min(2000, (len(text) - target) // 4 + 1))
    for mark in BREAKS:
        at = text.rfind(mark, nearest, target)
        if at > 0:
            at += len(mark.rstrip())  # what ends a sentence stays with it
            return text[:at], text[at:]
    while 1 < target < len(text) and re.match(r"[\u0300-\u036f\u200d\ufe0f\u3099\u309a]", text[target]):
        target -= 1
    return text[:target], text[target:]
