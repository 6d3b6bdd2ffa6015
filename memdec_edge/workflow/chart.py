"""A curve as the geometry of an SVG: one path, and ticks at round numbers. Knows nothing of what the numbers mean."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 460, 250  # of the picture, in the units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 52, 26, 12, 44  # margins; labels stand in the left and the lower one
MOST = 200  # points of a path; of longer curves each point is the mean of several
HUGE = 1e15  # larger numbers are left out: no loss and no count of tokens is as large


class Tick(NamedTuple):
    """A round number on an axis. place: its coordinate in the viewBox."""

    place: float
    label: str


class Chart(NamedTuple):
    """A curve, ready to be drawn.

    path    the `d` of a path
    x, y    ticks of both axes
    points  the pairs that the path joins
    merged  how many measured pairs a point is the mean of
    """

    path: str
    x: list[Tick]
    y: list[Tick]
    points: list[tuple[float, float]]
    merged: int


def chart(pairs: Iterable[Sequence[Any]] | None) -> Chart | None:
    """The chart of pairs (x, y), which may be in any order; None where fewer than two are numbers."""
    found = sorted((float(pair[0]), float(pair[1])) for pair in pairs or () if len(pair) == 2 and all(map(_ok, pair)))
    if len(found) < 2:
        return None
    merged = math.ceil(len(found) / MOST)
    points = [_mean(found[start : start + merged]) for start in range(0, len(found), merged)]
    x_axis = _Axis([x for x, _ in points], LEFT, WIDTH - RIGHT)
    y_axis = _Axis([y for _, y in points], HEIGHT - BOTTOM, TOP)
    path = "M" + " L".join(f"{x_axis.place(x):.1f} {y_axis.place(y):.1f}" for x, y in points)
    return Chart(path, x_axis.ticks(), y_axis.ticks(), points, merged)


class _Axis:
    """Numbers from the round one below the smallest to the round one above the largest, on a stretch of the picture."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        rough = (high - low or abs(high) or 1.0) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        self._step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
        self._first, self._last = math.floor(low / self._step), math.ceil(high / self._step)
        self._last = max(self._last, self._first + 1)
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (value / self._step - self._first) / (self._last - self._first)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)

    def ticks(self) -> list[Tick]:
        values = (self._step * number for number in range(self._first, self._last + 1))
        return [Tick(round(self.place(value), 1), _short(value)) for value in values]


def _short(value: float) -> str:
    """A round number in few characters: 20k, 1.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _ok(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
