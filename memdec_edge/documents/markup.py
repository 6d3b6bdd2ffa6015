"""HTML as text: headings as in Markdown, paragraphs, lists, tables, listings; without menus and other boilerplate.

selectolax parses a megabyte in hundredths of a second. What a page shows around its text is known by tags, roles and
usual class names, and a list that is almost all links is a menu. Knows nothing of files and of other kinds.
"""

import re
from typing import Any

from memdec_edge.documents.plain import mended
from memdec_edge.errors import CorpusError, MissingExtraError

DROPPED = {
    "head", "script", "style", "noscript", "template", "svg", "math", "nav", "footer", "aside", "form", "button",
    "select", "textarea", "input", "iframe", "object", "embed", "audio", "video", "canvas", "dialog", "map",
}  # fmt: skip
DROPPED_ROLES = {
    "navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar",
}  # fmt: skip
DROPPED_NAMES = {  # of classes and ids
    "nav", "navbar", "navigation", "navheader", "navfooter", "sidebar", "sphinxsidebar", "menu", "breadcrumb",
    "breadcrumbs", "docnav", "footer", "site-footer", "site-header", "cookie", "cookies", "cookie-banner", "toc",
    "tableofcontents", "table-of-contents", "related", "headerlink", "pagination", "skip-link", "skip-to-content",
    "advert", "advertisement", "ads", "share", "social", "newsletter",
}  # fmt: skip
PARAGRAPHS = {
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "ul", "ol", "dl", "table", "figure", "section",
    "article", "main", "body", "html", "hr", "address", "details",
}  # fmt: skip
LINES = {
    "li", "dt", "dd", "tr", "div", "br", "summary", "figcaption", "caption", "thead", "tbody", "tfoot", "header",
    "center", "option",
}  # fmt: skip
LISTS = {"ul", "ol", "dl", "table"}
CELLS = ("td", "th")
LISTS_DEEP = 8  # lists in lists, cells in cells, that are looked at: each look takes the time of all that is in it
TITLED = {"section", "h1", "h2", "h3", "h4", "h5", "h6", "a", "span", "dt"}
MENU_LINKS, MENU_SHARE = 4, 0.8  # a list of so many links, which are so much of its text, is a menu
MAIN_SHARE = 0.3  # of the page's text: less is no main part
DEEPEST = 5_000  # elements open at a time; 20,000 take two seconds to parse, 100,000 a minute
UNCLOSED = {  # by HTML's rules
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr", "p", "li",
    "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option",
}  # fmt: skip
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)")
_CHARSET = re.compile(rb"""<meta[^>]{0,200}charset=["' ]*([\w-]+)""", re.IGNORECASE)


def decode_html(data: bytes) -> str:
    """Return a page as text: UTF-8 where it is that, else in the encoding that it names, else in Windows-1252."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        named = _CHARSET.search(data[:4096])
        try:
            return data.decode(named[1].decode() if named else "cp1252", "replace")
        except LookupError:
            return data.decode("cp1252", "replace")


def html_text(page: str, name: str) -> str:
    """Return the text of a page or of a part of one.

    Raises CorpusError for one that nests too deeply, and MissingExtraError without selectolax.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise MissingExtraError("selectolax", "documents") from error
    if _depth(page) > DEEPEST:
        raise CorpusError(name, f"nests more than {DEEPEST:,} elements, as no honest page does; give its text alone")
    tree = LexborHTMLParser(mended(page))
    if tree.body is None:
        return ""
    writer = _Writer()
    writer.write(_main_part(tree.body))
    return writer.text


def _depth(page: str) -> int:
    """The most elements that are open at a time, about; parsing takes a time that grows with its square."""
    depth = deepest = 0
    for found in _TAG.finditer(page):
        depth = max(0, depth - 1) if found[1] else depth + (found[2].lower() not in UNCLOSED)
        deepest = max(deepest, depth)
    return deepest


def _main_part(body: Any) -> Any:
    """The one element that a page calls its main part, where that holds enough of the text; else the body."""
    for selector in ("main, [role=main]", "article"):
        found = body.css(selector)
        if len(found) == 1 and len(found[0].text()) >= MAIN_SHARE * len(body.text()):
            return found[0]
    return body


class _Writer:
    """Text in blocks. Nodes are visited with a stack of our own: pages nest deeper than Python recurses."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._line: list[str] = []
        self._gap = 0  # line feeds before the next block
        self._listing = 0  # depth of <pre>
        self._prefix = ""
        self._lists = 0  # open ones
        self._cells: list[bool] = []  # of tables, open ones: whether each is one paragraph

    @property
    def text(self) -> str:
        return "".join(self._blocks).strip("\n")

    def write(self, root: Any) -> None:
        stack: list[tuple[Any, bool]] = [(root, False)]
        while stack:
            node, leaving = stack.pop()
            tag = node.tag
            if tag == "-text":
                self._line.append(node.text_content or "")
            elif leaving:
                self._leave(tag)
            elif tag[0] not in "-_!" and not _is_dropped(node, tag) and not self._is_menu(node, tag):
                self._enter(node, tag)
                stack.append((node, True))
                children = []
                child = node.child
                while child is not None:
                    children.append((child, False))
                    child = child.next
                stack += reversed(children)

    def _enter(self, node: Any, tag: str) -> None:
        self._lists += tag in LISTS
        if tag == "pre":
            self._break(2)
            self._listing += 1
        elif tag in CELLS:
            self._cells.append(len(self._cells) < LISTS_DEEP and len(node.css("p, div")) <= 1)
        else:
            self._leave_line(tag)
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self._prefix = "#" * int(tag[1]) + " "
        elif tag == "li":
            self._prefix = "- "

    def _leave(self, tag: str) -> None:
        if tag in CELLS:
            self._line.append(" | ")
            self._cells.pop()
        self._lists -= tag in LISTS
        if tag == "pre":
            self._break(2)
            self._listing = max(0, self._listing - 1)
        else:
            self._leave_line(tag)

    def _leave_line(self, tag: str) -> None:
        """Break where an element begins or ends; the one paragraph of a table's cell stays in the row."""
        if tag in ("p", "div") and self._cells and self._cells[-1]:
            self._line.append(" ")
        elif tag in PARAGRAPHS or tag in LINES:
            self._break(2 if tag in PARAGRAPHS else 1)

    def _is_menu(self, node: Any, tag: str) -> bool:
        """Whether a list is almost all links."""
        if tag not in LISTS or self._lists >= LISTS_DEEP or len(links := node.css("a[href]")) < MENU_LINKS:
            return False
        linked = sum(len("".join(link.text().split())) for link in links)
        return linked >= MENU_SHARE * max(1, len("".join(node.text().split())))

    def _break(self, gap: int) -> None:
        """End a block, and have at least `gap` line feeds before the next one."""
        text, self._line = "".join(self._line), []
        text = text.strip("\n").rstrip() if self._listing else " ".join(text.split()).rstrip("| ")
        if text and not text.isspace():
            self._blocks.append("\n" * self._gap + ("" if self._listing else self._prefix) + text)
            self._gap, self._prefix = 0, ""
        self._gap = max(self._gap, gap)


def _is_dropped(node: Any, tag: str) -> bool:
    if tag in DROPPED:
        return True
    named = node.attributes
    if named:
        if named.get("role") in DROPPED_ROLES or "hidden" in named or named.get("aria-hidden") == "true":
            return True
        words = (named.get("class") or "").lower().split()
        if tag not in TITLED and "section" not in words:  # the id of a section is its title: "Menu", "Share"
            words.append((named.get("id") or "").lower())
        return tag not in ("body", "main", "article") and not DROPPED_NAMES.isdisjoint(words)
    return False
