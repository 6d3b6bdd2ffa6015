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
Span = tuple[int, int, int]  # index of a document, begin and end: no text is copied before it is known where it ends

LEAST_TAIL = 500  # characters: where less is asked for, a whole document is taken
BREAKS = ("\n\n", "\n", "。", "．", "！", "？", "। ", "؟ ", ". ", "! ", "? ", " ", "、", "，")  # best first
_BOUND = re.compile("[\u0300-\u036f\u200d\ufe0f\u3099\u309a]")  # to the character before it


def divide(texts: Sequence[str], family: Sequence[int], shares: Mapping[str, float], seed: int) -> dict[str, Part]:
    """Return the parts "train" and those of `shares`, each in seeded random order.

    family  a number for each text: texts with one number stay together
    shares  part -> fraction of all characters

    A part takes families in random order, as near to its share as they come. Where those that are small enough make
    less than half of it, tails of the largest family are cut off. A document is left for each part, and for training.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    groups: dict[int, dict[int, int]] = defaultdict(dict)  # family -> document -> where its training text ends
    for i in order.tolist():
        groups[family[i]][i] = len(texts[i])
    total = sum(map(len, texts))
    parts: dict[str, list[Span]] = {}
    for later, (part, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        wanted = share * total
        chosen = [groups.pop(number) for number in _families(groups, wanted, later + 1)]
        missing = wanted - sum(map(_size, chosen))
        tails: list[Span] = []
        if not chosen and wanted < LEAST_TAIL and len(groups) > later + 1:
            chosen = [groups.pop(min(groups, key=lambda number: _size(groups[number])))]
        elif not chosen or missing > max(LEAST_TAIL, wanted / 2):
            tails = _tails(texts, groups[max(groups, key=lambda number: _size(groups[number]))], missing)
        parts[part] = [(i, 0, end) for group in chosen for i, end in group.items()] + tails
    rest = [(i, 0, end) for group in groups.values() for i, end in group.items()]
    rank = {i: place for place, i in enumerate(order.tolist())}
    return {
        part: [(i, texts[i][begin:end]) for i, begin, end in sorted(spans, key=lambda span: rank[span[0]])]
        for part, spans in {"train": rest, **parts}.items()
    }


def shuffled(items: Sequence[T], seed: int) -> list[T]:
    """Return the items in seeded random order."""
    return [items[i] for i in np.random.default_rng(seed).permutation(len(items))]


def _size(group: Mapping[int, int]) -> int:
    return sum(group.values())


def _families(groups: Mapping[int, Mapping[int, int]], wanted: float, left: int) -> list[int]:
    """Families that are about `wanted` characters together; `left` families at least are not taken."""
    taken: list[int] = []
    chars = 0
    for number, group in groups.items():
        size = _size(group)
        if len(groups) - len(taken) > left and chars + size / 2 <= wanted:
            taken.append(number)
            chars += size
    return taken


def _tails(texts: Sequence[str], group: dict[int, int], wanted: float) -> list[Span]:
    """Cut the same share off the end of each text of a family, `wanted` characters together; return what was cut."""
    share, tails = min(0.5, wanted / max(1, _size(group))), []
    for i, end in group.items():
        at = _cut(texts[i], end, share)
        if texts[i][at:end].strip():
            group[i] = at
            tails.append((i, at, end))
    return tails


def _cut(text: str, end: int, share: float) -> int:
    """Where about `share` of text[:end] is cut off: at the best break near by, else between two characters."""
    target = end - int(share * end)
    nearest = max(1, target - min(2000, (end - target) // 4 + 1))
    for mark in BREAKS:
        at = text.rfind(mark, nearest, target)
        if at > 0:
            return at + len(mark.rstrip())  # what ends a sentence stays with it
    while 1 < target < end and _BOUND.match(text[target]):
        target -= 1
    return target
