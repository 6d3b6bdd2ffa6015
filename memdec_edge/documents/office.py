"""Word documents and e-books as text, by way of HTML. Knows nothing of how HTML becomes text.

mammoth makes HTML of .docx, headings and footnotes included, headers and footers left out. A book is a zip of HTML
pages with a list of their order; the one library that reads it (ebooklib) has a licence that binds its users (AGPL).
"""

import io
import posixpath
import re
from urllib.parse import unquote
from xml.etree import ElementTree

from memdec_edge.documents.files import unzip
from memdec_edge.documents.markup import decode_html, html_text
from memdec_edge.errors import CorpusError, MissingExtraError
from memdec_edge.notes import warn

_CONTAINER = "META-INF/container.xml"
_WAY_BACK = re.compile(r'<a href="#(?:foot|end)note-ref-[^"]*">[^<]*</a>')  # from a note


def docx_text(data: bytes, name: str) -> str:
    """Return the text of a Word document. Raises CorpusError, and MissingExtraError without mammoth."""
    try:
        import mammoth
    except ImportError as error:
        raise MissingExtraError("mammoth", "documents") from error
    if data[:8] == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
        raise CorpusError(name, "is encrypted, or an old .doc; save it as .docx without a password")
    if "word/document.xml" not in unzip(data, name):
        raise CorpusError(name, "is no Word document: it has no word/document.xml; save it as .docx again")
    try:
        no_pictures = mammoth.images.img_element(lambda picture: {})  # they would stand in the page whole
        page = mammoth.convert_to_html(io.BytesIO(data), convert_image=no_pictures).value
    except MemoryError:
        raise
    except Exception as error:  # of many kinds: mammoth passes on whatever a damaged file runs into
        raise CorpusError(name, f"is no readable Word document ({_reason(error)}); save it as .docx again") from error
    return html_text(_WAY_BACK.sub("", page), name)


def epub_text(data: bytes, name: str) -> str:
    """Return the text of an e-book, its pages in reading order. Raises CorpusError, and MissingExtraError.

    stderr says how many pages the book names but does not hold.
    """
    files = unzip(data, name)
    if "META-INF/encryption.xml" in files and b"EncryptedKey" in files["META-INF/encryption.xml"]:
        raise CorpusError(name, "is protected against copying (DRM); give one that is not")
    try:
        package = next(each.get("full-path", "") for each in _all(files[_CONTAINER], "rootfile"))
        items = {each.get("id"): each for each in _all(files[package], "item")}
        order = [items[each.get("idref")] for each in _all(files[package], "itemref")]
    except (KeyError, StopIteration, ElementTree.ParseError) as error:
        raise CorpusError(name, f"is no readable EPUB ({_reason(error)}); download or convert it again") from error
    folder, pages, missing = posixpath.dirname(package), [], 0
    for item in order:
        path = posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        if path not in files:
            missing += 1
        elif "nav" not in item.get("properties", "").split():
            pages.append(html_text(decode_html(files[path]), f"{name}/{path}"))
    if missing:
        warn([f"{name}: {missing} of {len(order)} pages are not in the file, and left out"])
    return "\n\n".join(page for page in pages if page)


def _all(xml: bytes, tag: str) -> list[ElementTree.Element]:
    """Elements of a name, whatever its namespace. expat stops entities that grow without end."""
    return [each for each in ElementTree.fromstring(xml).iter() if each.tag.rpartition("}")[2] == tag]


def _reason(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
