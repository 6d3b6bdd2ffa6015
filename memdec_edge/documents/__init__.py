"""Reading what people have: files of many kinds, folders and zips of them, as documents of three splits.

    read_documents(path)                       the texts to evaluate: the test split, or all where no names say which
    split_documents(path, valid, test, seed)   training, validation and test documents, near-copies in one split

    parts_of(document)                         the same as questions and answers, as far as it has them

    files -> plain, content, rows, markup, office, pdf (with cleaning) -> kinds -> splits
    splits -> duplicates, divide -> corpus -> asked

Libraries of the extra [documents] are imported where a file needs them. Knows nothing of tokens and models.
"""

from pathlib import Path

from memdec_edge.documents.asked import Part, parts_of
from memdec_edge.documents.corpus import (
    Divided,
    Document,
    divide_corpus,
    read_documents,
    read_files,
    require_training,
    say_left_out,
    scored_files,
    show_text,
    split_documents,
)
from memdec_edge.documents.files import File, file_digests
from memdec_edge.documents.kinds import kind_of
from memdec_edge.documents.plain import decode_text, read_stream, read_text
from memdec_edge.documents.splits import NO_TEXT, SPLITS, Corpus, find_files

GENERAL = Path(__file__).with_name("general.txt")  # a page of general English: what a memory must not spoil

__all__ = [
    "GENERAL",
    "NO_TEXT",
    "SPLITS",
    "Corpus",
    "Divided",
    "Document",
    "File",
    "Part",
    "decode_text",
    "divide_corpus",
    "file_digests",
    "find_files",
    "kind_of",
    "parts_of",
    "read_documents",
    "read_files",
    "read_stream",
    "read_text",
    "require_training",
    "say_left_out",
    "scored_files",
    "show_text",
    "split_documents",
]
