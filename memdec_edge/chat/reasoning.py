"""The part of an answer between <think> and </think>, apart from its content, while the text still comes.

Knows nothing of tokens.
"""

from typing import Literal

BEGIN, END = "<think>", "</think>"


class Reasoning:
    """Divides a text that comes in pieces. thinks: whether the prompt has begun the reasoning already.

    Only an answer that begins with <think> has reasoning. Blanks at the edges of both parts are left out.
    """

    def __init__(self, thinks: bool) -> None:
        self._place: Literal["before", "inside", "behind", "content"] = "inside" if thinks else "before"
        self._held = ""
        self._begun = False  # whether reasoning was told

    def push(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that may be told now."""
        self._held += text
        reasoning = ""
        if self._place == "before":
            begin = self._held.lstrip()
            if BEGIN.startswith(begin) and begin != BEGIN:
                return "", ""
            if begin.startswith(BEGIN):
                self._held, self._place = begin.removeprefix(BEGIN), "inside"
            else:
                self._place = "content"
        if self._place == "inside":
            reasoning = self._inside()
        if self._place == "behind":
            self._held = self._held.lstrip()
            self._place = "content" if self._held else "behind"
        if self._place != "content":
            return reasoning, ""
        content, self._held = self._held, ""
        return reasoning, content

    def _inside(self) -> str:
        before, end, behind = self._held.partition(END)
        if end:
            told, self._held, self._place = before.rstrip(), behind, "behind"
        else:  # what may still become the end, or blanks before it
            kept = next((n for n in range(len(END) - 1, 0, -1) if before.endswith(END[:n])), 0)
            told = before[: len(before) - kept].rstrip()
            self._held = before[len(told) :]
        if not self._begun:
            told = told.lstrip()
            self._begun = bool(told)
        return told

    def flush(self) -> tuple[str, str]:
        """(reasoning, content) that were held back, at the end of the text."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._place == "inside" else ("", held)
