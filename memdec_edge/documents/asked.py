"""Documents as questions and answers: a dialogue as it is, other text as headings and the passages below them.

    Part(text, turns)    a part of a document, and the same as turns; without turns where nothing in it can be asked

A heading is a line that begins with #, as in Markdown and in what HTML, Word files and e-books become, or one with a
rule below it, as in reStructuredText. Comments and prompts in listings begin with # too: so a heading stands below a
blank line, and one of a single # above one as well. What stands before the first heading is asked for by the title
beside the text. A text without headings may begin with a line that looks like a title. A passage too long for an answer
ends at a paragraph; what follows has no question. The texts of a document's parts join to its text. Knows nothing of
templates and tokens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from memdec_edge.documents.content import Turn
from memdec_edge.documents.corpus import Document

USER, ASSISTANT = "User", "Assistant"  # of documents/rows.py
LONGEST = 4_000  # characters of a part, and of an answer: some 1,000 tokens
TITLE = 120  # characters of a line that may be a title or a heading
SHORT = 0.75  # of the line below it; lines of a paragraph are about equally long
_HEADING = re.compile(r"(#{1,6})[ \t]+(\S.*)")
_RULE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}[ \t]*")
_FENCE = re.compile(r"[ \t]*(```|~~~)[`~]*[^`]*")
_ENDS = (".", ",", ";", ":", "!", "。", "、", "，", "।")  # of a sentence; a title may be a question


@dataclass(frozen=True)
class Part:
    """A part of a document; `turns` end with an answer. text: what it is as plain text."""

    text: str
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class _Section:
    """text[start:end], of which text[body:end] answers the question; "" where it has none."""

    start: int
    body: int
    end: int
    question: str


def parts_of(document: Document) -> list[Part]:
    """The parts of a document in their order, those without turns as long as they come."""
    if document.turns:
        return [Part(document.text, _answered(document.turns))]
    if document.title is None:
        return [Part(document.text)]
    text, title = document.text, document.title.strip()
    outline = _outline(text, title)
    name = title or next((section.question for section in outline if section.question), "")
    found: list[Part] = []
    for asked, some in groupby(_sections(text, outline), key=lambda section: bool(section.question)):
        run = list(some)
        if asked:
            found += [_part(text, group, name) for group in _groups(run)]
        else:
            found.append(Part(text[run[0].start : run[-1].end]))
    return found


def _answered(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns up to the last answer; none where no question has one."""
    last = max((number for number, (role, _) in enumerate(turns, 1) if role == ASSISTANT), default=0)
    return turns[:last] if any(role == USER for role, _ in turns[:last]) else ()


def _part(text: str, sections: list[_Section], name: str) -> Part:
    """Sections that follow one another as one conversation, which begins with the name of the document."""
    turns: list[Turn] = []
    for section in sections:
        apart = turns or section.question.startswith(name)
        question = section.question if apart else f"{name}: {section.question}"
        turns += [(USER, question), (ASSISTANT, text[section.body : section.end].strip())]
    return Part(text[sections[0].start : sections[-1].end], tuple(turns))


def _groups(sections: Iterable[_Section]) -> Iterator[list[_Section]]:
    """Sections in groups of at most LONGEST characters, or of one."""
    group: list[_Section] = []
    for section in sections:
        if group and section.end - group[0].start > LONGEST:
            yield group
            group = []
        group.append(section)
    if group:
        yield group


def _outline(text: str, title: str) -> list[_Section]:
    """The headings of a text, and before them its beginning, where that is more than blanks."""
    headings = list(_headings(text))
    if not headings:
        return [_beginning(text, len(text), title) if title else _first_line(text)]
    if text[: headings[0].start].strip():
        return [_beginning(text, headings[0].start, title), *headings]
    return [replace(headings[0], start=0, question=title or headings[0].question), *headings[1:]]


def _sections(text: str, outline: Sequence[_Section]) -> Iterator[_Section]:
    """The sections below the headings, which join to the text; none without text, none too long for an answer."""
    start = 0
    for section, after in pairwise([*outline, None]):
        assert section
        end = after.start if after else len(text)
        if after and not text[section.body : end].strip():
            continue  # a heading and nothing below it goes with the next section
        yield from _cut(text, replace(section, start=start, end=end))
        start = end


def _headings(text: str) -> Iterator[_Section]:
    """The headings of a text, each with where its passage begins; listings have none."""
    fence, at, before = "", 0, ""  # `before`: the line above, where that may be a heading with a rule below it
    for above, line, below in _lines(text):
        end, plain = at + len(line), line.rstrip("\r\n")
        if len(plain) > TITLE:
            at, before = end, ""
            continue
        marked = _FENCE.fullmatch(plain)
        if fence or marked:
            fence = "" if marked and marked[1] == fence else fence or (marked[1] if marked else "")
            before = ""
        elif (found := _HEADING.fullmatch(plain)) and not above.strip() and (found[1] != "#" or not below.strip()):
            yield _Section(at, end, end, found[2].rstrip(" \t#") or found[2])
            before = ""
        elif before and _RULE.fullmatch(plain) and len(plain.rstrip()) >= len(before.strip()):
            yield _Section(at - len(before), end, end, before.strip())
            before = ""
        else:
            before = line if plain[:1].strip() and any(map(str.isalnum, plain)) else ""
        at = end


def _lines(text: str) -> Iterator[tuple[str, str, str]]:
    """Each line between the one above and the one below; a first line counts as one between blank ones."""
    at, above = 0, ""
    while at < len(text):
        end = text.find("\n", at) + 1 or len(text)
        after = text.find("\n", end) + 1 or len(text)
        line = text[at:end]
        yield above, line, text[end:after] if at else ""
        at, above = end, line


def _beginning(text: str, end: int, title: str) -> _Section:
    """What stands before the first heading; the title asks for it, and is no answer where the text begins with it."""
    start = len(text) - len(text.lstrip())
    line = text[start:end].partition("\n")[0]
    body = start + len(line)
    repeated = title and line.casefold().startswith(title.casefold()) and text[body:end].strip()
    return _Section(0, body if repeated else 0, end, title)


def _first_line(text: str) -> _Section:
    """A text without headings; its first line asks for the rest where it looks like a title."""
    start = len(text) - len(text.lstrip())
    line, _, rest = text[start:].partition("\n")
    below = rest.partition("\n")[0]
    apart = not below.strip() or (len(line) < SHORT * len(below) and not below.lstrip()[:1].islower())
    looks = len(line) <= TITLE and line[:1].isalnum() and not line.rstrip().endswith(_ENDS)
    titled = looks and apart and bool(rest.strip())
    return _Section(0, start + len(line) if titled else 0, len(text), line.strip() if titled else "")


def _cut(text: str, section: _Section) -> Iterator[_Section]:
    """A section as long as an answer may be, and what follows as one without a question."""
    most = section.body + LONGEST
    if not section.question or section.end <= most:
        yield section if text[section.body : section.end].strip() else replace(section, question="")
        return
    breaks = (text.rfind(mark, section.body + LONGEST // 2, most) for mark in ("\n\n", "\n", " "))
    cut = next((at for at in breaks if at > 0), most)
    yield replace(section, end=cut)
    yield _Section(cut, cut, section.end, "")
