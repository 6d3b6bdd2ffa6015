"""Kinds of files by suffix, and the documents of a file. A new kind gets a row in KINDS.

The suffix alone decides, in a folder as for a file named directly; a .gz is unpacked, and the suffix before it decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath

from memdec_edge.documents.content import Content
from memdec_edge.documents.files import File, Reader
from memdec_edge.documents.markup import decode_html, html_text
from memdec_edge.documents.office import docx_text, epub_text
from memdec_edge.documents.pdf import pdf_text
from memdec_edge.documents.plain import decode_text
from memdec_edge.documents.rows import csv_rows, json_rows, jsonl_rows, parquet_rows
from memdec_edge.errors import CorpusError

PROSE = (".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex")
CODE = (
    ".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".cs",
    ".js", ".jsx", ".mjs", ".ts", ".tsx", ".vue", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".swift", ".m",
    ".mm", ".sh", ".bash", ".zsh", ".ps1", ".sql", ".hs", ".ml", ".fs", ".el", ".lisp", ".clj", ".ex", ".exs",
    ".erl", ".f90", ".f95", ".dart", ".nim", ".zig", ".v", ".sv", ".vhd", ".asm", ".proto",
)  # fmt: skip
OTHER_WAYS = {  # suffixes that people give, and what makes text of them
    ".doc": "save it as .docx", ".odt": "save it as .docx", ".rtf": "save it as .docx", ".pages": "save it as .docx",
    ".mobi": "convert it to .epub", ".azw3": "convert it to .epub", ".djvu": "convert it to .pdf",
    ".xlsx": "save it as .csv", ".xls": "save it as .csv", ".pptx": "save it as .pdf", ".ppt": "save it as .pdf",
    ".tar": "unpack it into a folder", ".tgz": "unpack it into a folder", ".7z": "unpack it into a folder",
    ".rar": "unpack it into a folder", ".zst": "unpack it first", ".xz": "unpack it first", ".bz2": "unpack it first",
    ".npy": "only train and cache take token ids; give the text",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """How a file becomes documents. Of a folder, a file is left out where it cannot be read, unless it is `exact`.

    rows: a file of a split, as data sets have them
    """

    read: Callable[[bytes, str], list[Content]]
    exact: bool = False
    rows: bool = False


def _whole(text_of: Callable[[bytes, str], str], title: str | None = "") -> Callable[[bytes, str], list[Content]]:
    """A reader of files that are one document each."""
    return lambda data, name: [Content(text, title) for text in [text_of(data, name)] if text and not text.isspace()]


def _page(data: bytes, name: str) -> str:
    return html_text(decode_html(data), name)


_TEXT, _HTML = Kind(_whole(decode_text), exact=True), Kind(_whole(_page))
_CODE = Kind(_whole(decode_text, title=None), exact=True)
KINDS: dict[str, Kind] = {
    **dict.fromkeys(PROSE, _TEXT),
    **dict.fromkeys(CODE, _CODE),
    ".jsonl": Kind(jsonl_rows, exact=True, rows=True),
    ".ndjson": Kind(jsonl_rows, exact=True, rows=True),
    ".json": Kind(json_rows, rows=True),
    ".csv": Kind(csv_rows, rows=True),
    ".tsv": Kind(csv_rows, rows=True),
    ".parquet": Kind(parquet_rows, rows=True),
    ".html": _HTML,
    ".htm": _HTML,
    ".xhtml": _HTML,
    ".pdf": Kind(_whole(pdf_text, title=None)),  # what is a heading is not known
    ".docx": Kind(_whole(docx_text)),
    ".epub": Kind(_whole(epub_text)),
}
KNOWN = (
    ".txt .md .rst .html .pdf .docx .epub .json .jsonl .csv .parquet .zip, source code such as .py, and .gz of these"
)


def suffix_of(name: str | PurePath) -> str:
    """Return the suffix that decides the kind, in lower case: that before .gz, "" where there is none."""
    path = PurePath(name)
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def kind_of(file: File) -> Kind | None:
    """Return the kind of a file, None for one that is unknown."""
    return KINDS.get(suffix_of(file.inside))


def read_file(file: File, reader: Reader) -> list[Content]:
    """Return the documents of a file, blank ones left out: rows of tables, else the whole file.

    A file without a suffix is text: a pipe, a README. Raises MissingFileError, MissingExtraError, and CorpusError for a
    suffix that is unknown and for what cannot be read.
    """
    suffix = suffix_of(file.inside)
    kind = KINDS.get(suffix) if suffix else _TEXT
    if kind is None:
        raise CorpusError(file.name, f"{suffix} files are not read; {OTHER_WAYS.get(suffix, f'give {KNOWN}')}")
    found = kind.read(reader.read(file), file.name)
    return found if kind in (_TEXT, _CODE) else [content.mended for content in found]
