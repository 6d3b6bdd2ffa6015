"""Rows as documents: JSON, JSON Lines, CSV, Parquet. A row is a text, or a dialogue that its names give away.

    {"text": ...} or {"content": ...}                                a text
    {"messages": [{"role", "content"}, ...]}                         a dialogue (OpenAI, TRL); "conversation(s)" too,
    {"conversations": [{"from", "value"}, ...]}                      also in the words of ShareGPT
    {"prompt", "completion"}, {"instruction", "input", "output"},    a dialogue of two turns (TRL, Alpaca, SQuAD)
    {"question", "answer"}, ...

Names count in any case. A dialogue becomes "User: ...", "Assistant: ..." paragraphs; its turns are kept beside. So is
the "title" or "heading" of a text. Knows nothing of files.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from memdec_edge.documents.content import Content, Turn
from memdec_edge.documents.plain import decode_text
from memdec_edge.errors import CorpusError, MissingExtraError
from memdec_edge.notes import printable

TEXT_NAMES = ("text", "content")
TITLE_NAMES = ("title", "heading")
TURN_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog")
ASKED = ("prompt", "instruction", "question", "query")
ANSWERED = ("completion", "response", "output", "answer", "answers")
ROLES = {  # as data sets call them
    "system": "System", "developer": "System", "user": "User", "human": "User", "prompter": "User",
    "assistant": "Assistant", "gpt": "Assistant", "bot": "Assistant", "model": "Assistant", "chatbot": "Assistant",
    "tool": "Tool", "function": "Tool", "observation": "Tool",
}  # fmt: skip
KNOWN = 'a string "text", "messages", "prompt" and "completion", "instruction" and "output", or "question" and "answer"'


def row_content(row: Any) -> Content | None:
    """Return the document that a row is, None where its names give none away. A string is a document itself."""
    if isinstance(row, str):
        return Content(row)
    if not isinstance(row, Mapping):
        return None
    named = {str(name).strip().lower(): value for name, value in row.items()}
    for name in TEXT_NAMES:
        if isinstance(text := named.get(name), str):
            return Content(text, _title_of(named))
    found = turns(named)
    return Content.of(found) if found is not None else None


def _title_of(named: Mapping[str, Any]) -> str | None:
    """The title that stands beside a text, "" where none does; None where the row says that there is none."""
    found = [named[name] for name in TITLE_NAMES if name in named]
    return next((title for title in found if isinstance(title, str)), None if None in found else "")


def turns(named: Mapping[str, Any]) -> list[Turn] | None:
    """Return the turns of a row that is a dialogue, else None, each with a role as ROLES has it.

    Names of the row are in lower case.
    """
    for name in TURN_NAMES:
        if isinstance(messages := named.get(name), list):
            found = [_turn(message) for message in messages]
            return None if None in found else [turn for turn in found if turn]
    asked = [text for name in ASKED if (text := _text_of(named.get(name))) is not None]
    answered = [text for name in ANSWERED if (text := _answer_of(named.get(name))) is not None]
    if not asked or not answered:
        return None
    system, more = (_text_of(named.get(name)) or "" for name in ("system", "input"))
    question = "\n\n".join(part for part in (_text_of(named.get("context")), asked[0], more) if part)
    return [*([("System", system)] if system else []), ("User", question), ("Assistant", answered[0])]


def _turn(message: Any) -> Turn | None:
    if not isinstance(message, Mapping):
        return None
    role = next((message[name] for name in ("role", "from") if isinstance(message.get(name), str)), None)
    text = next((found for name in ("content", "value") if (found := _text_of(message.get(name))) is not None), None)
    if text is None and role is not None and any(message.get(name) for name in ("tool_calls", "function_call")):
        text = ""  # a call without words
    return None if role is None or text is None else (ROLES.get(role.lower(), role.capitalize()), text)


def _text_of(value: Any) -> str | None:
    """The text of a value: itself, or the strings and text parts of a list, each in lines of its own; None: no text."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        found = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        parts = [text for text in found if isinstance(text, str)]
        return "\n".join(parts) if parts else None
    return None


def _answer_of(value: Any) -> str | None:
    """The text of an answer: of several that say the same, as SQuAD has them, the first. Parts of one have a "type"."""
    if isinstance(value, Mapping):
        value = value.get("text")
    if isinstance(value, list) and not any(isinstance(part, Mapping) and "type" in part for part in value):
        value = value[0] if value else None
    return _text_of(value)


def jsonl_rows(data: bytes, name: str) -> list[Content]:
    """Documents of JSON Lines. Raises CorpusError for a line that is no row with text."""
    found: list[Content] = []
    start = number = 0
    while start < len(data):  # line by line: the whole text beside the documents would double the memory
        end = data.find(b"\n", start) + 1 or len(data)
        line, number = decode_text(data[start:end], name, start), number + 1
        start = end
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            content = None if isinstance(row, str) else row_content(row)
            if content is None:
                raise CorpusError(name, f"line {number} is no JSON object with {KNOWN}; mend that line")
            found.append(content)
    return _kept(found)


def json_rows(data: bytes, name: str) -> list[Content]:
    """Documents of a JSON list of rows, or of one under "data" or the like. Raises CorpusError for other JSON."""
    try:
        found = json.loads(decode_text(data, name))
    except (ValueError, RecursionError) as error:
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise CorpusError(
            name, f"is no JSON ({reason}); mend it, or name it .jsonl if each line is an object"
        ) from error
    if isinstance(found, dict) and row_content(found) is None:
        lists = [value for value in found.values() if isinstance(value, list)]
        found = found["data"] if isinstance(found.get("data"), list) else lists[0] if len(lists) == 1 else found
    rows = found if isinstance(found, list) else [found]
    return _kept(_contents(rows, name, "object"))


def csv_rows(data: bytes, name: str) -> list[Content]:
    """Documents of a table with names in its first line.

    Raises CorpusError where no column is text, and for a row that would lose text: one with more values than names, or
    with a quote that nothing closes.
    """
    text = decode_text(data, name)
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)  # at equal counts the tab, which hardly stands in a name
    delimiter = delimiter if delimiter in first else ","
    csv.field_size_limit(1 << 30)
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, begin = [], 1  # of the row that is read, in lines
    try:
        names = table.fieldnames
        begin = table.line_num + 1
        for row in table:
            beyond = row.pop(None, [])  # where DictReader puts values without a name
            if any(value.strip() for value in beyond):
                raise CorpusError(
                    name,
                    f"line {begin} has {len(names or ()) + len(beyond)} values for {len(names or ())} columns; "
                    f'put a value with "{printable(delimiter)}" in it between quotes',
                )
            rows.append(row)
            begin = table.line_num + 1
    except csv.Error as error:
        reason = f"{error}, in the row from line {begin}"
        raise CorpusError(name, f"is no table of comma-separated values ({reason}); mend its quotes") from error
    return _kept(_contents(rows, name, "row"))


def parquet_rows(data: bytes, name: str) -> list[Content]:
    """Documents of a Parquet file. Raises CorpusError where no column is text, MissingExtraError without pyarrow."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "documents") from error
    wanted = {*TEXT_NAMES, *TITLE_NAMES, *TURN_NAMES, *ASKED, *ANSWERED, "system", "input", "context"}
    try:
        file = parquet.ParquetFile(io.BytesIO(data))
        columns = [column for column in file.schema_arrow.names if column.strip().lower() in wanted]
        if not any(column.strip().lower() not in TITLE_NAMES for column in columns):
            raise CorpusError(name, f"its columns are {', '.join(file.schema_arrow.names)}, and none is {KNOWN}")
        batches = file.iter_batches(batch_size=1024, columns=columns)
        return _kept(_contents((row for batch in batches for row in batch.to_pylist()), name, "row"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise CorpusError(name, f"is no readable Parquet file ({reason}); make it again") from error


def _contents(rows: Iterable[Any], name: str, kind: str) -> Iterator[Content]:
    """The document of each row; an empty value is an empty document. Raises CorpusError for the first without one."""
    for number, row in enumerate(rows, 1):
        content = row_content(row)
        if content is None and isinstance(row, Mapping):
            named = {str(key).strip().lower() for key in row}
            if any(each in named for each in (*TEXT_NAMES, *TURN_NAMES)) and None in row.values():
                content = Content("")  # a row that is empty there, as null in Parquet
        if content is None:
            keys = ", ".join(map(str, list(row)[:12])) if isinstance(row, Mapping) else type(row).__name__
            raise CorpusError(name, f"{kind} {number} has {keys}, and none of {KNOWN}; rename what is text")
        yield content


def _kept(found: Iterable[Content]) -> list[Content]:
    return [content for content in found if content.text and not content.text.isspace()]
