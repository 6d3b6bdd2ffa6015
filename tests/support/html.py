"""A judge of HTML: elements that close, ids that occur once, tables with rows of one length, no requests.

Knows nothing of what a page says.
"""

from html.parser import HTMLParser

VOID = {"meta", "br", "line", "path", "img", "link", "hr", "input"}  # `line` and `path` close themselves in an SVG
REQUESTS = ("src", "href", "action", "poster", "data", "srcset", "background")  # attributes that make a browser ask


class Page(HTMLParser):
    """A page, judged while it is read: `faults` names what is wrong, `text` is what a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # the element, its text
        self._open: list[str] = []
        self._rows: list[list[int]] = []  # of each table, the columns of each row of its body
        self.feed(html)
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self._open]
        self._judge_references()

    @property
    def text(self) -> str:
        """The text, in order."""
        return "".join(text for tag, text in self.texts if tag not in ("style", "title"))

    def of(self, tag: str) -> list[str]:
        """The texts directly inside elements of a kind."""
        return [text for element, text in self.texts if element == tag]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.elements.append((tag, found))
        if len(found) < len(attributes):
            self.faults.append(f"<{tag}> has an attribute twice")
        self.faults += [f"{name} of <{tag}> makes a request" for name in found if name in REQUESTS]
        self.faults += [f"<{tag}> has {name}" for name in found if name.startswith("on")]
        if tag == "table":
            self._rows.append([])
        if tag == "tr" and "tbody" in self._open:
            self._rows[-1].append(0)
        if tag in ("td", "th") and "tbody" in self._open:
            self._rows[-1][-1] += int(found.get("colspan") or 1)
        if tag == "th" and "scope" not in found:
            self.faults.append("<th> says not of what")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes another element")
        if tag == "table" and len(set(self._rows[-1])) > 1:
            self.faults.append(f"the rows of the table before {self.getpos()} differ in length")

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def _judge_references(self) -> None:
        ids = [found["id"] for _, found in self.elements if "id" in found]
        self.faults += [f"the id {each} occurs twice" for each in ids if ids.count(each) > 1]
        named = " ".join(found.get("aria-labelledby") or "" for _, found in self.elements).split()
        self.faults += [f"no element has the id {name}" for name in named if name not in ids]
