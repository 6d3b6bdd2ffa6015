"""PDF as text. pypdfium2 keeps the blanks that pypdf loses in half of the manuals tried, in a fifteenth of the time.

Knows nothing of what a page's text is cleaned of.
"""

from memdec_edge.documents.cleaning import clean_pages
from memdec_edge.errors import CorpusError, MissingExtraError
from memdec_edge.notes import warn

EMPTY = 0.2  # of the pages: more of them without text are worth a warning
SCANNED = "use OCR first, such as ocrmypdf"


def pdf_text(data: bytes, name: str) -> str:
    """Return the text of a PDF, cleaned. Raises CorpusError: damaged, encrypted, scanned; MissingExtraError."""
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingExtraError("pypdfium2", "documents") from error
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        reason = str(error)
        if "password" in reason.lower() or "security" in reason.lower():
            raise CorpusError(name, "is encrypted; remove its password first, such as with qpdf --decrypt") from error
        raise CorpusError(name, f"is no readable PDF ({reason}); make or download it again") from error
    pages, unread = [], 0
    try:
        for number in range(len(document)):
            try:
                page = document[number]
                text = page.get_textpage()
                pages.append(text.get_text_bounded())
                text.close()
                page.close()
            except (pypdfium2.PdfiumError, ValueError):
                unread += 1
    finally:
        document.close()
    if not any(page.strip() for page in pages):
        what = f"{unread} of its pages are damaged" if unread else f"its pages ({len(pages)}) are pictures without text"
        raise CorpusError(name, f"{what}; {SCANNED}")
    if unread:
        warn([f"{name}: {unread} of {unread + len(pages)} pages are damaged, and left out"])
    empty = sum(not page.strip() for page in pages)
    if empty > EMPTY * len(pages):
        warn([f"{name}: {empty} of {len(pages)} pages have no text; if they are pictures, {SCANNED}"])
    return clean_pages(pages)
