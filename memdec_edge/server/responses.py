"""OpenAI's responses as a chat: the input is translated, the answer told as named events.

Nothing is kept between calls. Knows nothing of prompts and of the scheduler.
"""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from memdec_edge.errors import OptionError
from memdec_edge.server import chats
from memdec_edge.server.chats import Chat, Choice
from memdec_edge.server.events import STREAMED, Events, unless_gone
from memdec_edge.server.figures import progress_of, progress_timings, timings_of
from memdec_edge.server.logprobs import memory_of
from memdec_edge.server.schemas import ChatRequest, ResponsesRequest
from memdec_edge.server.service import Service, new_id
from memdec_edge.server.tools import Call

SAME = set(ChatRequest.model_fields) & set(ResponsesRequest.model_fields) - {"tools", "tool_choice"}


def chat_of(body: ResponsesRequest) -> ChatRequest:
    """The chat that a request amounts to. Raises OptionError for items that cannot be said so."""
    body.refuse_unknown()
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    for number, item in enumerate(items):
        _add(item, messages, f"input[{number}]")
    given = {name: getattr(body, name) for name in SAME if getattr(body, name) is not None}
    given |= {"messages": messages, "tools": _tools(body.tools), "tool_choice": body.tool_choice}
    if isinstance(body.text, dict) and isinstance(body.text.get("format"), dict):
        given["response_format"] = body.text["format"]
    if isinstance(body.reasoning, dict) and isinstance(body.reasoning.get("effort"), str):
        given["reasoning_effort"] = body.reasoning["effort"]
    given["n"] = 1
    return ChatRequest.model_validate(given, by_name=True)


def _add(item: Mapping[str, Any], messages: list[dict[str, Any]], where: str) -> None:
    """Append what an item of the input says."""
    kind = item.get("type", "message")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        if last is None:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        else:
            last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        text = "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))
        if text:
            messages.append({"role": "assistant", "content": "", "reasoning_content": text})
    else:
        raise OptionError(where, kind, "must be a message, a function_call, its output, or reasoning")


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Functions in the form of chats. Tools that a server would run itself, such as web_search, are left out."""
    keep = ("name", "description", "parameters", "strict")
    functions = [tool for tool in tools or [] if tool.get("type", "function") == "function"]
    return [
        {"type": "function", "function": tool.get("function", {key: tool[key] for key in keep if key in tool})}
        for tool in functions
    ] or None


class Written:
    """A response, as far as it has come: its items, and the events that tell of them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.id, self._created = new_id("resp_"), int(time.time())
        self.output: list[dict[str, Any]] = []
        self._sequence = -1
        self._open: dict[str, Any] | None = None  # the item at work

    def body(self, status: str, choice: Choice | None = None) -> dict[str, Any]:
        """The response object."""
        found: dict[str, Any] = {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._service.name, "output": list(self.output), "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": [], "metadata": {}, "instructions": None, "temperature": None,
            "top_p": None,
        }  # fmt: skip
        if choice:
            timings = choice.timings
            read = timings.cache_n + timings.prompt_n
            found["completed_at"] = int(time.time())
            found["usage"] = {
                "input_tokens": read,
                "input_tokens_details": {"cached_tokens": timings.cache_n, "cache_write_tokens": 0},
                "output_tokens": timings.predicted_n,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": read + timings.predicted_n,
            }
        return found

    def event(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        """A named event, numbered."""
        self._sequence += 1
        return kind, {"type": kind, "sequence_number": self._sequence, **data}

    def text(self, kind: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """More of the reasoning, or of the message."""
        part = "reasoning_text" if kind == "reasoning" else "output_text"
        if self._open is None or self._open["type"] != kind:
            yield from self.close()
            item: dict[str, Any] = {
                "id": new_id("rs_" if kind == "reasoning" else "msg_"),
                "type": kind,
                "status": "in_progress",
            }
            item |= {"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []}
            self._open = item
            yield self.event("response.output_item.added", output_index=len(self.output), item={**item})
            item["content"] = [_part(part, "")]
            yield self._of_part("response.content_part.added", part=_part(part, ""))
        self._open["content"][0]["text"] += text
        more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        yield self._of_part(f"response.{part}.delta", delta=text, **more)

    def call(self, call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
        """More of a call of a function."""
        if self._open is None or self._open.get("call_id") != call.id:
            yield from self.close()
            self._open = {
                "id": new_id("fc_"), "type": "function_call", "status": "in_progress", "call_id": call.id,
                "name": call.name, "arguments": "",
            }  # fmt: skip
            yield self.event("response.output_item.added", output_index=len(self.output), item={**self._open})
        if call.arguments:
            self._open["arguments"] += call.arguments
            yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def close(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """End the item at work."""
        if self._open is None:
            return
        item = self._open
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._of_item("response.function_call_arguments.done", **done)
        else:
            [part] = item["content"]
            more: dict[str, Any] = {} if item["type"] == "reasoning" else {"logprobs": []}
            yield self._of_part(f"response.{part['type']}.done", text=part["text"], **more)
            yield self._of_part("response.content_part.done", part=part)
        item["status"] = "completed"
        yield self.event("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._open = None

    def _of_item(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        assert self._open
        return self.event(kind, item_id=self._open["id"], output_index=len(self.output), **data)

    def _of_part(self, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
        return self._of_item(kind, content_index=0, **data)


def _part(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text} | ({} if kind == "reasoning_text" else {"annotations": [], "logprobs": []})


def _status(choice: Choice) -> str:
    return "incomplete" if choice.finish_reason == "length" else "completed"


async def respond(body: ResponsesRequest, service: Service, request: Request) -> Response:
    """Answer a request for a response."""
    chat = await chats.begin(chat_of(body), service, body.max_output_tokens or body.max_tokens)
    written = Written(service)
    if body.stream:
        return Events(request, chat.answers, _events(body, chat, written, service))
    [choice] = await unless_gone(request, chat.answers, chat.whole())
    whole = choice.parts.whole
    if whole.reasoning:
        list(written.text("reasoning", whole.reasoning))
    if whole.content or not whole.calls:
        list(written.text("message", whole.content))
    for call in whole.calls:
        list(written.call(call))
    list(written.close())
    return JSONResponse(written.body(_status(choice), choice) | {"timings": timings_of(choice.timings)})


async def _events(
    body: ResponsesRequest, chat: Chat, written: Written, service: Service
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    yield written.event("response.created", response=written.body("in_progress"))
    yield written.event("response.in_progress", response=written.body("in_progress"))
    async for told in chat.tell():
        if told.progress:
            name, data = written.event("response.in_progress", response=written.body("in_progress"))
            data["prompt_progress"] = progress_of(told.progress)
            if body.timings_per_token:
                data["timings"] = progress_timings(told.progress)
            yield name, data
            continue
        events: list[tuple[str, dict[str, Any]]] = []
        if told.delta.reasoning:
            events += written.text("reasoning", told.delta.reasoning)
        if told.delta.content:
            events += written.text("message", told.delta.content)
        for call in told.delta.calls:
            events += written.call(call)
        if told.chunk and events:
            if body.timings_per_token:
                events[-1][1]["timings"] = timings_of(told.chunk.timings)
            if body.return_memory:
                events[-1][1]["memory"] = memory_of(service.model.engine.base, told.chunk)
        for event in events:
            yield event
    for event in written.close():
        yield event
    [choice] = chat.choices
    status = _status(choice)
    name, data = written.event(f"response.{status}", response=written.body(status, choice))
    yield name, data | {"timings": timings_of(choice.timings)}


def router(service: Service) -> APIRouter:
    """The routes, with and without /v1."""
    routes = APIRouter(tags=["OpenAI"])

    async def response(body: ResponsesRequest, request: Request) -> Response:
        return await respond(body, service, request)

    async def tokens(body: ResponsesRequest) -> dict[str, Any]:
        prompted = await chats.count(chat_of(body), service)
        return {"object": "response.input_tokens", "input_tokens": len(prompted.tokens)}

    for prefix in ("/v1", ""):
        routes.add_api_route(
            f"{prefix}/responses", response, methods=["POST"], summary="Answer, as a response", responses=STREAMED
        )
        routes.add_api_route(
            f"{prefix}/responses/input_tokens",
            tokens,
            methods=["POST"],
            summary="Count the tokens of a response's input",
        )
    return routes
