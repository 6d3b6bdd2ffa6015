"""Tool calls: what a model is told of its tools, what its text must look like, and how that text becomes calls.

Templates that know tools tell of them in their own way. For others the tools stand in the system message, in the form
that Hermes and Qwen have. Knows nothing of HTTP.
"""

import json
import re
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memdec_edge.errors import OptionError

BEGIN, END = "<tool_call>", "</tool_call>"
HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\n]|\\["\\/bfnrt])*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
EMPTY: Mapping[str, Any] = {"type": "object", "properties": {}}  # parameters of a function without any
CLOSING = re.compile(r"\s*\}\s*")
Taken = tuple[str, list["Call"], bool]
TOLD = """You may call these functions:
<tools>
{}
</tools>
To call one, write its name and its arguments as JSON, and nothing else:
<tool_call>
{{"name": "NAME", "arguments": {{}}}}
</tool_call>"""


@dataclass(frozen=True)
class Call:
    """One call of a function, or a piece of one, to which others with its id belong. arguments: JSON as written."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request. forced: names of those of which one must be called; empty: the model is free."""

    tools: tuple[Mapping[str, Any], ...] = ()
    forced: tuple[str, ...] = ()

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]] | None, choice: Any) -> "Toolbox":
        """Tools and tool_choice in OpenAI's form. Raises OptionError for what is none."""
        given = tuple(_checked(tool) for tool in tools or ())
        names = tuple(tool["function"]["name"] for tool in given)
        if choice in (None, "auto"):
            return cls(given)
        if choice == "none":
            return cls()
        if choice == "required" and names:
            return cls(given, names)
        if isinstance(choice, Mapping) and choice.get("type") == "function":
            inner = choice.get("function", choice)
            name = inner.get("name") if isinstance(inner, Mapping) else None
            if name in names:
                return cls(given, (str(name),))
            raise OptionError(
                "tool_choice", name, f"must name one of the tools: {', '.join(names) or 'there are none'}"
            )
        raise OptionError(
            "tool_choice", str(choice)[:80], "must be none, auto, required or a function that is among tools"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all functions."""
        return tuple(tool["function"]["name"] for tool in self.tools)

    @property
    def schema(self) -> dict[str, Any] | None:
        """What a forced call looks like, as a JSON schema; None where the model is free."""
        if not self.forced:
            return None
        calls = list[dict[str, Any]]()
        shared: dict[str, Any] = {}
        for tool in self.tools:
            if tool["function"]["name"] in self.forced:
                # A model that is small invents arguments where a schema does not say that there are no others.
                parameters = {"additionalProperties": False} | dict(tool["function"].get("parameters") or EMPTY)
                for key in ("$defs", "definitions"):  # references begin at the root
                    if key in parameters:
                        shared[key] = shared.get(key, {}) | parameters.pop(key)
                calls.append(
                    {
                        "type": "object",
                        "properties": {"name": {"const": tool["function"]["name"]}, "arguments": parameters},
                        "required": ["name", "arguments"],
                        "additionalProperties": False,
                    }
                )
        return shared | (calls[0] if len(calls) == 1 else {"anyOf": calls})


def _checked(tool: Any) -> Mapping[str, Any]:
    inner = tool.get("function") if isinstance(tool, Mapping) and tool.get("type", "function") == "function" else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise OptionError("tools", str(tool)[:80], 'must be {"type": "function", "function": {"name": ...}}')
    if not isinstance(inner.get("parameters") or {}, Mapping):
        raise OptionError("tools", inner["name"], "its parameters must be a JSON schema")
    return {"type": "function", "function": inner}


# --- messages of a template that knows no tools ---------------------------------------------------------------------


def told(messages: Sequence[Mapping[str, Any]], tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the tools in the system message, calls as text, and results as a user's."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        found = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id", "name")}
        if calls := message.get("tool_calls"):
            lines = [json.dumps({k: call["function"][k] for k in ("name", "arguments")}) for call in calls]
            found["content"] = "\n".join(
                [str(found.get("content") or ""), *(f"{BEGIN}\n{one}\n{END}" for one in lines)]
            )
            found["content"] = found["content"].lstrip("\n")
        if message.get("role") == "tool":
            found = {"role": "user", "content": f"<tool_response>\n{message.get('content')}\n</tool_response>"}
            if plain and plain[-1]["role"] == "user" and str(plain[-1]["content"]).startswith("<tool_response>"):
                plain[-1]["content"] += "\n" + found["content"]
                continue
        plain.append(found)
    lines = [json.dumps(dict(tool["function"]), ensure_ascii=False) for tool in tools]
    if not lines:
        return plain
    text = TOLD.format("\n".join(lines))
    if plain and plain[0].get("role") == "system" and isinstance(plain[0].get("content"), str):
        return [{"role": "system", "content": f"{plain[0]['content']}\n\n{text}"}, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


# --- text to calls --------------------------------------------------------------------------------------------------


def joined(calls: Iterable[Call]) -> list[Call]:
    """Whole calls, from their pieces in order."""
    found: dict[str, Call] = {}
    for call in calls:
        before = found[call.id].arguments if call.id in found else ""
        found[call.id] = replace(call, arguments=before + call.arguments)
    return list(found.values())


class CallReader:
    """Divides a text that comes in pieces into content and calls. A text without tools is all content.

    Calls stand between <tool_call> and </tool_call>, or the whole text is one call or a list of them. An object of
    arguments that follows the name is told as it is written; where the text is cut, half of it.
    """

    def __init__(self, box: Toolbox) -> None:
        self._names = box.names
        self._held = ""
        self._whole = True if box.forced else None  # whether the text itself is calls; None: nothing of it came yet
        self._head: Call | None = None  # of the call whose arguments are written now
        self._object = _Object()  # these arguments
        self._closing = False  # what ends a call is still to come
        self._called = False  # whether nothing but blanks came since a call

    def push(self, text: str) -> tuple[str, list[Call]]:
        """(content, calls) that may be told now."""
        if not self._names:
            return text, []
        self._held += text
        return self._advance(final=False)

    def flush(self) -> tuple[str, list[Call]]:
        """(content, calls) that were held back, at the end of the text."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> tuple[str, list[Call]]:
        content, calls, goes_on = "", list[Call](), True
        while goes_on:
            if self._head:
                told, found, goes_on = self._write(self._head)
            elif self._closing:
                told, found, goes_on = self._close(final)
            else:
                told, found, goes_on = self._find(final)
            content += told
            calls += found
        return content, calls

    # Each of these takes something from what is held, and says whether there may be more to take.

    def _write(self, head: Call) -> Taken:
        """Arguments of the call at work."""
        end = self._object.take(self._held)
        written, self._held = self._held[:end], self._held[end:]
        if self._object.over:
            self._head, self._closing = None, True
        return "", [replace(head, arguments=written)] if written else [], self._object.over

    def _close(self, final: bool) -> Taken:
        """What stands between the arguments and the end of the call."""
        brace = CLOSING.match(self._held)
        rest = self._held[brace.end() :] if brace else ""
        if brace and rest and not (END.startswith(rest) and rest != END):
            self._held = rest.removeprefix(END)
        elif END in self._held:
            self._held = self._held.partition(END)[2]
        elif final:
            self._held = rest if brace else self._held
        else:
            return "", [], False
        self._closing, self._called, self._whole = False, True, False
        return "", [], True

    def _find(self, final: bool) -> Taken:
        """Content, the beginning of a call, or a whole one."""
        if self._whole is None and self._held.strip():
            self._whole = self._held.lstrip()[0] in "{["
        if self._whole:
            if self._begin(self._held):
                return "", [], True
            return (*self._all(), False) if final else ("", [], False)
        if self._called:
            self._held = self._held.lstrip()
        before, tag, behind = self._held.partition(BEGIN)
        if tag and self._begin(behind):
            return before.rstrip(), [], True  # blanks before a call are no content
        inside, end, rest = behind.partition(END)
        if tag and (end or final):
            found = self._calls(inside)
            self._held, self._called = rest, bool(found)
            return before.rstrip() if found else f"{before}{BEGIN}{inside}{end}", found, True
        kept = 0 if final else len(tag + behind) or _beginning(before)
        told = self._held[: len(self._held) - kept]
        told = told if final else told.rstrip()
        self._held = self._held[len(told) :]
        self._called = self._called and not told
        return told, [], False

    def _begin(self, text: str) -> bool:
        """Begin a call if `text` does so with the name and an object of arguments."""
        found = HEAD.match(text)
        name = json.loads(found[1]) if found else None
        if not found or name not in self._names:
            return False
        self._head, self._object = Call(f"call_{secrets.token_hex(12)}", name, ""), _Object()
        self._held = text[found.end() :]
        return True

    def _all(self) -> tuple[str, list[Call]]:
        text, self._held = self._held, ""
        calls = self._calls(text)
        return ("", calls) if calls else (text, [])

    def _calls(self, text: str) -> list[Call]:
        """The calls that a JSON text makes; none where it is none, or of functions that are not there."""
        try:
            found = read_json(text.strip().removeprefix(BEGIN).removesuffix(END))
        except (ValueError, RecursionError):
            return []
        calls = []
        for one in found if isinstance(found, list) else [found]:
            if not isinstance(one, dict) or one.get("name") not in self._names:
                return []
            arguments = one.get("arguments", one.get("parameters", {}))
            written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(Call(f"call_{secrets.token_hex(12)}", one["name"], written))
        return calls


class _Object:
    """Follows a JSON object, in a text that comes in pieces, to its end."""

    def __init__(self) -> None:
        self.over = False
        self._depth = 0
        self._quoted = self._escaped = False

    def take(self, text: str) -> int:
        """How many characters of `text` belong to it."""
        for at, char in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._quoted, self._escaped = char != '"', char == "\\"
            elif char == '"':
                self._quoted = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.over = not self._depth
                if self.over:
                    return at
        return len(text)


def read_json(text: str) -> Any:
    """What a model wrote as JSON, so that it can be written again: numbers stay finite. Raises ValueError for none."""
    return json.loads(text, parse_float=_finite, parse_constant=_refuse)


def _finite(text: str) -> float:
    return max(min(float(text), sys.float_info.max), -sys.float_info.max)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _beginning(text: str) -> int:
    """Characters at the end of `text` that may be the beginning of a call."""
    return next((n for n in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:n])), 0)
