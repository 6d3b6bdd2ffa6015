"""What a caller may give as messages, and what templates see of them. Knows nothing of templates.

    {"role": "user", "content": "What is anaemia?"}

as in OpenAI's interface. An answer of this library may carry its own token ids, `tokens`, and a prompt with it then
begins with what the model really wrote: the same text could be divided into other tokens.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from memdec_edge.chat.marked import FIRST, TEMPLATE, Marked
from memdec_edge.errors import OptionError
from memdec_edge.options.fields import check_choice, check_text

ROLES = ("system", "user", "assistant", "tool")
TEXTS = ("content", "reasoning_content")  # keys whose text a person or a model wrote
REASONING = ("reasoning_content", "thinking", "reasoning")  # names that others have for the second
MOST = 100_000


class Message(TypedDict, total=False):
    """One message. content: text, or a list of {"type": "text", "text": ...}; None beside tool_calls."""

    role: str
    content: Any
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    tokens: list[int]


Messages = Sequence[Message | Mapping[str, Any]]


def checked(messages: Messages) -> list[dict[str, Any]]:
    """Plain copies, without keys that are None, and with each content as one text.

    Raises OptionError for no messages, an unknown role, a content that is no text, and text that is not UTF-8.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise OptionError("messages", type(messages).__name__, "must be a list of messages with role and content")
    if not messages:
        raise OptionError("messages", "empty", "give at least one message")
    if len(messages) > MOST:
        raise OptionError("messages", f"{len(messages):,} messages", f"at most {MOST:,} are read")
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def marked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a template sees: roles as its own text, contents with their origins."""
    seen = []
    for index, message in enumerate(messages):
        found = {key: value for key, value in message.items() if key != "tokens"}
        found["role"] = Marked(message["role"], TEMPLATE)
        found |= {key: Marked(message[key], chr(FIRST + index)) for key in TEXTS if key in message}
        if "reasoning_content" in found:
            found["thinking"] = found["reasoning_content"]  # as gpt-oss calls it
        seen.append(found)
    return seen


def plain_data(value: Any, where: str) -> Any:
    """What JSON makes of a value: templates of strangers see no objects with methods of their own.

    Raises OptionError for what JSON cannot hold.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(where, type(value).__name__, f"must be what JSON can hold ({error})") from error


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise OptionError(where, type(message).__name__, "must be a mapping with role and content")
    plain = {
        str(key): value if key in TEXTS or key == "role" else plain_data(value, f"{where}.{key}")
        for key, value in message.items()
        if value is not None
    }
    role = plain.get("role")
    if not isinstance(role, str):
        raise OptionError(f"{where}.role", role, f"must be one of {', '.join(ROLES)}")
    check_choice(f"{where}.role", role, ROLES)
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    if reasoning is not None:
        plain["reasoning_content"] = reasoning
    if "content" not in plain and "tool_calls" not in plain:
        raise OptionError(f"{where}.content", "missing", "give a text")
    for key in TEXTS:
        if key in plain:
            plain[key] = _text(plain[key], f"{where}.{key}")
    return plain


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        check_text(where, content)
        return content
    if not isinstance(content, list | tuple):
        raise OptionError(where, type(content).__name__, "must be text")
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    if not all(isinstance(part, str) for part in parts):
        raise OptionError(where, "a list with other parts than text", "give text; images and sounds are not read")
    whole = "".join(map(str, parts))
    check_text(where, whole)
    return whole
