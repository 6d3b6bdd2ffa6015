"""Streams of an object: whole, and for asyncio. Each takes the arguments of the method that streams.

    stream = ...                    a method that yields chunks
    generate = whole("generate", stream)        all chunks as one
    astream = in_thread("astream", stream)      an async iterator; the work happens in another thread
    agenerate = awhole("agenerate", astream)    awaits all chunks as one

Cancelling a task that waits stops the work before its next step. The iterator is closed before the cancellation goes
on: what it held is free by then. Knows nothing of what is streamed.
"""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

from memdec_edge.api.results import Chunk, Completion
from memdec_edge.errors import Cancelled

P = ParamSpec("P")
Item = TypeVar("Item")  # a chunk, or one with the number of its answer
Method = TypeVar("Method", bound=Callable[..., Any])
_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


def check_wanted() -> None:
    """Raise Cancelled where the task that waits for the work of this thread was cancelled."""
    stopped = _stopped.get()
    if stopped and stopped.is_set():
        raise Cancelled()


def whole(name: str, stream: Callable[P, Iterator[Chunk]]) -> Callable[P, Completion]:
    """The method that returns all that `stream` yields."""

    @wraps(stream)
    def method(*args: P.args, **kwargs: P.kwargs) -> Completion:
        return Completion.of(list(stream(*args, **kwargs)))

    return _told(method, name, Completion, f"The whole of {stream.__name__}(), with the same arguments and errors.")


def in_thread(name: str, stream: Callable[P, Generator[Item, None, None]]) -> Callable[P, AsyncGenerator[Item, None]]:
    """The method that yields the same for asyncio, from another thread."""

    @wraps(stream)
    def method(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Item, None]:
        return _items(lambda: stream(*args, **kwargs))

    [item, *_] = get_args(inspect.signature(stream).return_annotation)
    return _told(
        method,
        name,
        AsyncGenerator[item, None],  # type: ignore[valid-type]  # known at run time alone
        f"{stream.__name__}() for asyncio, with the same arguments and errors; it works in another thread.\n\n"
        "Cancelling the task stops the work before its next step and gives the slot back.",
    )


def awhole(name: str, stream: Callable[P, AsyncGenerator[Chunk, None]]) -> Callable[P, Coroutine[Any, Any, Completion]]:
    """The method that awaits all that `stream` yields."""

    @wraps(stream)
    async def method(*args: P.args, **kwargs: P.kwargs) -> Completion:
        return Completion.of([chunk async for chunk in stream(*args, **kwargs)])

    return _told(method, name, Completion, f"The whole of {stream.__name__}(), with the same arguments and errors.")


def _told(method: Method, name: str, returns: Any, what: str) -> Method:
    """Let help() tell of a method by its own name."""
    signature = inspect.signature(method).replace(return_annotation=returns)
    of_class = method.__qualname__.rpartition(".")[0]
    named = {"__name__": name, "__qualname__": f"{of_class}.{name}", "__doc__": what, "__signature__": signature}
    for attribute, value in named.items():
        setattr(method, attribute, value)
    return method


async def _items(begin: Callable[[], Iterator[Item]]) -> AsyncGenerator[Item, None]:
    """The items of begin(), which a thread of its own asks for one by one."""
    loop, stopped = asyncio.get_running_loop(), threading.Event()
    iterator: list[Iterator[Item]] = []

    def following() -> list[Item]:
        """The next item, none at the end: StopIteration cannot leave a thread."""
        if not iterator:
            _stopped.set(stopped)
            iterator.append(begin())
        return [item for _, item in zip([0], iterator[0], strict=False)]

    def close() -> None:
        for each in iterator:
            getattr(each, "close", lambda: None)()

    worker = ThreadPoolExecutor(1, "memdec-stream")
    try:
        while items := await loop.run_in_executor(worker, following):
            yield items[0]
    finally:
        stopped.set()
        try:
            await asyncio.shield(loop.run_in_executor(worker, close))  # after the step at work, if there is one
        finally:
            worker.shutdown(wait=False)
