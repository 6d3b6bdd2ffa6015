"""Which tokens of a text are scored, and which ones stand before them: windows that slide over it.

Knows nothing of models.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Tokens [start, end) are decoded, [scored, end) are scored."""

    start: int
    scored: int
    end: int


def slide(n_tokens: int, window: int, stride: int) -> list[Window]:
    """Windows over n_tokens >= 2 tokens; the first scores all but its first token, the others `stride` new ones."""
    windows = [Window(0, 1, min(window, n_tokens))]
    while windows[-1].end < n_tokens:
        end = min(windows[-1].end + stride, n_tokens)
        windows.append(Window(max(end - window, 0), windows[-1].end, end))
    return windows


def thin(windows: list[Window], max_tokens: int) -> list[Window]:
    """Evenly spaced windows of full context that score at most `max_tokens` together; 0: all windows."""
    if not max_tokens or max_tokens >= windows[-1].end - 1:
        return windows
    # The first window scores more tokens, with less context; the last one may score few.
    full = windows[1:-1] or windows[:1]
    count = min(max_tokens // (full[0].end - full[0].scored), len(full))
    if not count:  # less than one window: the beginning of one
        middle = full[len(full) // 2]
        return [Window(middle.start, middle.scored, middle.scored + max_tokens)]
    return [full[(2 * index + 1) * len(full) // (2 * count)] for index in range(count)]
