"""The documents as tests read them: pages, code fences with their marks, prose. Knows nothing of what is checked.

A fence that a test cannot run has a comment above it, which no reader of the rendered page sees:

    <!-- not run: compiles llama-cpp-python for a GPU -->
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLI = ROOT / "docs" / "cli.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Fence:
    """A block of code. line: where it begins; not_run: why no test can run it, empty where one does."""

    page: Path
    line: int
    language: str
    text: str
    not_run: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The commands of a shell fence, split into words; comments left out, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, *languages: str) -> Iterator[Fence]:
    """The fences of a page in some languages, in order."""
    text = read(page)
    for match in FENCE.finditer(text):
        if match["language"] in languages:
            line = text.count("\n", 0, match.start("text")) + 1
            yield Fence(page, line, match["language"], match["text"], match["why"] or "")


def prose(page: Path) -> str:
    """A page without code blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", read(page)), flags=re.DOTALL)


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page: tables left out, each piece of `code` one word, links as their text."""
    text = re.sub(r"^\s*\|.*$", "", prose(page), flags=re.MULTILINE)
    text = re.sub(r"`[^`]+`", "code", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text))
    for block in re.split(r"\n\s*\n|^\s*(?:[-*]|\d+\.)\s+|^#+ ", text, flags=re.MULTILINE):
        yield from filter(None, re.split(r"(?<=[.!?])[*_)\"]*\s+", " ".join(block.split())))
