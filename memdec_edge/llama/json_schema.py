"""Reads a JSON schema and makes llguidance's grammar of it.

llguidance enforces what it accepts, and names what it cannot enforce (uniqueItems, not, if, contains, unknown
formats). It takes oneOf as anyOf. As JSON Schema has it, an object may have further keys unless additionalProperties
is false. Knows nothing of vocabularies and of llama.cpp.
"""

import json
from typing import Any

from llguidance import LLMatcher

from memdec_edge.errors import OptionError
from memdec_edge.llama.guidance import one_line, tried, wrong_with

MAX_TEXT = 1 << 18  # characters of a schema
SMALL = 1 << 13  # characters of a schema that cannot overflow a stack
HARD = ('"pattern', '"allOf"', '"format"')  # what makes llguidance intersect regular expressions
# Compact JSON, and nothing that a schema's "x-guidance" could change.
OVERRIDES: Any = {
    "whitespace_flexible": False, "coerce_one_of": True, "lenient": False, "item_separator": ",", "key_separator": ":",
}  # fmt: skip


def schema_grammar(text: str) -> str:
    """Return the grammar of the JSON schema `text`.

    Raises OptionError for text that is no schema, for keywords that cannot be enforced, and for schemas that take too
    long or too much stack.
    """
    if len(text) > MAX_TEXT:
        raise refused(f"it has {len(text):,} characters; at most {MAX_TEXT:,} are read")
    try:
        schema = json.loads(text)
        plain = json.dumps({} if schema is True else schema)  # with one way to write each keyword
    except (ValueError, RecursionError) as error:
        raise refused(f"it is no JSON: {error}") from error
    if not isinstance(schema, dict) and schema is not True:
        raise refused(f"it must be a JSON object, not {plain[:30]}")
    try:
        grammar: str = LLMatcher.grammar_from_json_schema(plain, overrides=OVERRIDES)
    except ValueError as error:
        raise refused(one_line(str(error))) from error
    hard = len(plain) > SMALL or any(keyword in plain for keyword in HARD)
    reason = tried(grammar) if hard else wrong_with(grammar)
    if reason:
        raise refused(reason)
    return grammar


def refused(reason: str) -> OptionError:
    """Return the error for a schema that cannot be followed."""
    return OptionError("json_schema", "no schema that can be followed", f"{reason}; say it otherwise or leave it out")
