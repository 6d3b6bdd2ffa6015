"""Pages as one text: no headers, footers and page numbers, no hyphens at line ends, paragraphs in one line.

Only text that comes in pages is cleaned; a text file is read as it is. Knows nothing of files.
"""

import re
from collections import Counter

EDGE = 2  # lines at the top and the bottom of a page that may be a header or a footer
REPEATED = 3  # pages: a line at their edge that stands on so many is no text
FULL = 0.75  # of the usual width: a line so wide goes on in the next one
NARROW = 35  # characters: no page is set in narrower lines
HYPHEN = "\x02"  # where PDFium has joined a word that was divided at a line's end
_NUMBER_ALONE = re.compile(r"(?:page\s*)?[-–—|\s]*(?:\d{1,5}|[ivxlc]{1,7})[-–—|\s]*(?:(?:of|/)\s*\d+)?", re.IGNORECASE)
_LEADERS = re.compile(r"(?:\.\s?){5,}\s*\d*$|(?:\s\.){4,}")  # of tables of contents
_DIVIDED = re.compile(r"([^\W\d_]{2,})[-\u2010\u00ad]\n([a-zß-öø-ÿ]{2,})")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\u00ad]")
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st", "\xa0": " "})
_BEGINS = re.compile(
    r"[•◦▪‣∙–*>$-]\s|\(?\d{1,3}[.)]\s|\(?[a-z][.)]\s|\d+(?:\.\d+)+\.?\s+[^\W\d_]"
)  # an item, a heading
_WIDE = re.compile(r"[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")  # scripts without blanks between words


def clean_pages(pages: list[str]) -> str:
    """Return the text of pages, one line a paragraph as far as layout tells."""
    lines = [[line.strip() for line in _plain(page).split("\n")] for page in pages]
    lines = [[line for line in page if not _LEADERS.search(line)] for page in lines]
    kept = _without_edges(lines)
    text = "\n".join("\n".join(page) for page in kept)
    return re.sub(r"\n{3,}", "\n\n", _unwrapped(_undivided(text))).strip("\n")


def _plain(page: str) -> str:
    text = page.replace("\r\n", "\n").replace("\r", "\n").replace(HYPHEN, "").translate(_LIGATURES)
    return _NO_TEXT.sub("", text)


def _without_edges(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the lines at their edges that repeat on others, digits aside, or carry the page's number."""
    edges = [_edge_lines(page) for page in pages]
    keys = Counter(key for page, edge in zip(pages, edges, strict=True) for key in {_key(page[i]) for i in edge})
    offsets = Counter(
        offset
        for number, (page, edge) in enumerate(zip(pages, edges, strict=True))
        for offset in {found - number for i in edge for found in _numbers(page[i])}
    )
    counted = {offset for offset, count in offsets.items() if count >= max(REPEATED, 0.3 * len(pages))}
    kept = []
    for number, (page, edge) in enumerate(zip(pages, edges, strict=True)):
        dropped = {
            i
            for i in edge
            if keys[_key(page[i])] >= REPEATED
            or _NUMBER_ALONE.fullmatch(page[i])
            or any(found - number in counted for found in _numbers(page[i]))
        }
        kept.append([line for i, line in enumerate(page) if i not in dropped])
    return kept


def _edge_lines(page: list[str]) -> list[int]:
    """Where the first and last lines of a page stand that are not blank."""
    filled = [i for i, line in enumerate(page) if line]
    return sorted({*filled[:EDGE], *filled[-EDGE:]}) if len(filled) > 2 * EDGE else filled[:1] + filled[1:][-1:]


def _key(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.casefold().split()))


def _numbers(line: str) -> list[int]:
    """The numbers that a line begins or ends with: one of them may be the page's."""
    return [int(found) for found in re.findall(r"^\d{1,5}(?=\s)|(?<=\s)\d{1,5}$|^\d{1,5}$", line)]


def _undivided(text: str) -> str:
    """Words that a line's end divides as one, unless the text has them with a hyphen elsewhere."""

    def joined(found: re.Match[str]) -> str:
        hyphened = f"{found[1]}-{found[2]}"
        return hyphened if hyphened in text else f"{found[1]}{found[2]}"

    return _DIVIDED.sub(joined, text)


def _unwrapped(text: str) -> str:
    """Lines that go on in the next one joined to it."""
    lines = text.split("\n")
    widths = sorted(_width(line) for line in lines if line)
    usual = max(NARROW, widths[int(0.9 * (len(widths) - 1))] if widths else 0)
    out: list[str] = []
    width = 0  # of the line of the page that `out` ends with
    for line in lines:
        goes_on = width >= FULL * usual or (
            width >= FULL / 2 * usual and out[-1][-1:] not in ".:;!?" and line[:1].islower()
        )
        if out and out[-1] and line and goes_on and not _BEGINS.match(line):
            wide = _WIDE.match(out[-1][-1]) and _WIDE.match(line[0])
            out[-1] += line if wide else f" {line}"
        else:
            out.append(line)
        width = _width(line)
    return "\n".join(out)


def _width(line: str) -> int:
    """Columns of a line: a character of a wide script takes two."""
    return len(line) + len(_WIDE.findall(line))
