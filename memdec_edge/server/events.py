"""Server-sent events, and clients that leave: what a client no longer waits for stops at once.

A stream that is silent sends comments, so that proxies and clients keep the connection. Knows nothing of models.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from memdec_edge.errors import Cancelled, MemdecError
from memdec_edge.server.failures import as_anthropic, failure_of, is_anthropic
from memdec_edge.server.service import Answers

T = TypeVar("T")
PING = 10  # seconds of silence
DONE = "[DONE]"
STREAMED: dict[int | str, dict[str, Any]] = {  # for the description of routes that also answer with events
    200: {"description": "The answer, or its events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}

AppStatus.enable_automatic_graceful_drain = False  # the scheduler ends all streams, and tells them why


class Events(EventSourceResponse):
    """The stream of some answers, whose places are given back however it ends."""

    def __init__(self, request: Request, answers: Answers, events: AsyncIterator[Any]) -> None:
        self._answers = answers
        super().__init__(
            _written(request, events),
            ping=PING,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


async def _written(request: Request, events: AsyncIterator[Any]) -> AsyncIterator[ServerSentEvent]:
    """Objects as JSON; those with a name as named events; an error as the last one."""
    try:
        async for event in events:
            name, data = event if isinstance(event, tuple) else (None, event)
            yield ServerSentEvent(data if isinstance(data, str) else dumps(data), event=name, sep="\n")
    except MemdecError as error:
        status, body = failure_of(error)
        if is_anthropic(request.url.path):
            yield ServerSentEvent(dumps(as_anthropic(status, body)), event="error", sep="\n")
        else:
            body["error"]["code"] = body["error"]["code"] or status
            yield ServerSentEvent(dumps(body), sep="\n")


def dumps(value: Any) -> str:
    """JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


async def unless_gone(request: Request, answers: Answers, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, unless the client leaves before: then its answers are given up, and Cancelled is raised."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client left")
        return task.result()
    finally:
        answers.close()
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
