"""Anthropic's messages as a chat: the request is translated, the answer told in content blocks.

Knows nothing of prompts and of the scheduler.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from memdec_edge.api.results import Timings
from memdec_edge.errors import OptionError
from memdec_edge.server import chats
from memdec_edge.server.chats import Chat, Choice
from memdec_edge.server.events import STREAMED, Events, unless_gone
from memdec_edge.server.schemas import ChatRequest, MessagesRequest
from memdec_edge.server.service import Service, new_id
from memdec_edge.server.tools import Call, read_json

TRANSLATED = {"messages", "tools", "tool_choice", "n"}
SAME = set(ChatRequest.model_fields) & set(MessagesRequest.model_fields) - TRANSLATED
CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(body: MessagesRequest) -> ChatRequest:
    """The chat that a request amounts to. Raises OptionError for blocks that cannot be said so."""
    body.refuse_unknown()
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _texts(body.system, "system")})
    for number, message in enumerate(body.messages):
        messages += _message(message, f"messages[{number}]")
    given = {name: getattr(body, name) for name in SAME if getattr(body, name) is not None}
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    given |= {"messages": messages, "tools": _tools(body.tools), "tool_choice": _choice(body.tool_choice)}
    given["stop"] = [*stops, *(body.stop_sequences or [])]
    if isinstance(body.thinking, dict) and body.thinking.get("type") in ("enabled", "disabled"):
        given["chat_template_kwargs"] = {"enable_thinking": body.thinking["type"] == "enabled"}
    return ChatRequest.model_validate(given, by_name=True)


def _texts(content: Any, where: str) -> Any:
    """Text, or its blocks."""
    if not isinstance(content, list):
        return content
    return [_text(block, f"{where}[{number}]") for number, block in enumerate(content)]


def _text(block: Any, where: str) -> dict[str, Any]:
    if isinstance(block, Mapping) and block.get("type") == "text":
        return {"type": "text", "text": block.get("text")}
    kind = block.get("type") if isinstance(block, Mapping) else type(block).__name__
    if kind == "image":
        raise OptionError(where, kind, "image input is not supported; send text")
    raise OptionError(where, kind, "only text, thinking, tool_use and tool_result are read")


def _message(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The messages of a chat that one of Anthropic's stands for: results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    results: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thinking = ""
    for number, block in enumerate(content):
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            text = _texts(block.get("content", ""), f"{where}.content[{number}].content")
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        elif kind == "thinking":
            thinking += str(block.get("thinking", ""))
        elif kind != "redacted_thinking":
            rest.append(_text(block, f"{where}.content[{number}]"))
    found: dict[str, Any] = {"role": role, "content": rest or ""}
    found |= {"reasoning_content": thinking} if thinking else {}
    found |= {"tool_calls": calls} if calls else {}
    return results + ([found] if rest or calls or thinking or not results else [])


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name"),
                "description": tool.get("description", ""),
                "parameters": tool.get("input_schema") or {"type": "object", "properties": {}},
            },
        }
        for tool in tools or []
    ] or None


def _choice(choice: dict[str, Any] | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    kind = choice.get("type")
    if kind == "tool":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind not in CHOICES:
        raise OptionError("tool_choice", kind, f"must be of type tool, {', '.join(CHOICES)}")
    return CHOICES[kind]


# --- answers --------------------------------------------------------------------------------------------------------


def _usage(timings: Timings) -> dict[str, int]:
    return {
        "input_tokens": timings.prompt_n,
        "cache_read_input_tokens": timings.cache_n,
        "cache_creation_input_tokens": 0,
        "output_tokens": timings.predicted_n,
    }


def _stop(choice: Choice, body: MessagesRequest) -> dict[str, str | None]:
    """Why it stopped; a stop string of the template is the end of a turn."""
    stop = choice.end.stop if choice.end and choice.end.stop in (body.stop_sequences or []) else None
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    reason = reasons.get(choice.finish_reason or "", "stop_sequence" if stop else "end_turn")
    return {"stop_reason": reason, "stop_sequence": stop if reason == "stop_sequence" else None}


def _tool_use(call: Call, whole: bool) -> dict[str, Any]:
    try:
        given = read_json(call.arguments) if whole else {}
    except ValueError:
        given = {}
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given if isinstance(given, dict) else {}}


def _head(service: Service) -> dict[str, Any]:
    return {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": service.name}


async def answer(body: MessagesRequest, service: Service, request: Request) -> Response:
    """Answer a message."""
    chat = await chats.begin(chat_of(body), service, body.max_tokens)
    if body.stream:
        return Events(request, chat.answers, _events(chat, body, service))
    [choice] = await unless_gone(request, chat.answers, chat.whole())
    whole = choice.parts.whole
    content: list[dict[str, Any]] = []
    if whole.reasoning:
        content.append({"type": "thinking", "thinking": whole.reasoning, "signature": ""})
    if whole.content or not (whole.calls or whole.reasoning):
        content.append({"type": "text", "text": whole.content})
    content += [_tool_use(call, whole=True) for call in whole.calls]
    return JSONResponse(_head(service) | {"content": content, "usage": _usage(choice.timings)} | _stop(choice, body))


class Blocks:
    """Content blocks, one after the other."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""  # the kind of a call is its id

    def text(self, kind: str, text: str) -> list[dict[str, Any]]:
        """More of a block of text or thinking, which begins where another kind was before."""
        events: list[dict[str, Any]] = []
        if self._kind != kind:
            events += self.close()
            empty = {"type": "text", "text": ""} if kind == "text" else {"type": kind, "thinking": "", "signature": ""}
            events += self._begin(kind, empty)
        delta = {"type": "text_delta", "text": text} if kind == "text" else {"type": "thinking_delta", "thinking": text}
        return [*events, self._event("content_block_delta", delta=delta)]

    def call(self, call: Call) -> list[dict[str, Any]]:
        """More of a block of a call, which begins where another kind or call was before."""
        events: list[dict[str, Any]] = []
        if self._kind != call.id:
            events += self.close() + self._begin(call.id, _tool_use(call, whole=False))
        if call.arguments:
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            events.append(self._event("content_block_delta", delta=delta))
        return events

    def close(self) -> list[dict[str, Any]]:
        """End the block at work."""
        if not self._kind:
            return []
        events = []
        if self._kind == "thinking":
            signature = {"type": "signature_delta", "signature": ""}
            events.append(self._event("content_block_delta", delta=signature))
        self._kind = ""
        return [*events, self._event("content_block_stop")]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        self._index, self._kind = self._index + 1, kind
        return [self._event("content_block_start", content_block=block)]

    def _event(self, kind: str, **data: Any) -> dict[str, Any]:
        return {"type": kind, "index": self._index, **data}


async def _events(chat: Chat, body: MessagesRequest, service: Service) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    usage = {"input_tokens": len(chat.prompted.tokens), "cache_read_input_tokens": 0, "output_tokens": 0}
    begun = _head(service) | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield "message_start", {"type": "message_start", "message": begun}
    blocks = Blocks()
    async for told in chat.tell():
        events = blocks.text("thinking", told.delta.reasoning) if told.delta.reasoning else []
        if told.delta.content:
            events += blocks.text("text", told.delta.content)
        for call in told.delta.calls:
            events += blocks.call(call)
        for event in events:
            yield event["type"], event
    for event in blocks.close():
        yield event["type"], event
    [choice] = chat.choices
    yield "message_delta", {"type": "message_delta", "delta": _stop(choice, body), "usage": _usage(choice.timings)}
    yield "message_stop", {"type": "message_stop"}


def router(service: Service) -> APIRouter:
    """The routes, with and without /v1."""
    routes = APIRouter(tags=["Anthropic"])

    async def message(body: MessagesRequest, request: Request) -> Response:
        if body.max_tokens is None:
            raise OptionError("max_tokens", "missing", "give a number")
        return await answer(body, service, request)

    async def tokens(body: MessagesRequest) -> dict[str, int]:
        return {"input_tokens": len((await chats.count(chat_of(body), service)).tokens)}

    for prefix in ("/v1", ""):
        routes.add_api_route(
            f"{prefix}/messages", message, methods=["POST"], summary="Answer a message", responses=STREAMED
        )
        routes.add_api_route(
            f"{prefix}/messages/count_tokens", tokens, methods=["POST"], summary="Count the tokens of a message"
        )
    return routes
