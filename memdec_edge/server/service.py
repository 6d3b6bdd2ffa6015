"""The model behind the routes: it opens in the background, takes requests, and hands out what comes of them.

Knows nothing of HTTP and of the shapes of answers.
"""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from memdec_edge.api import LanguageModel
from memdec_edge.api.streams import Request
from memdec_edge.errors import MemdecError, UnavailableError
from memdec_edge.notes import note
from memdec_edge.options import ChatOptions, ServerOptions
from memdec_edge.server.job import End, Event, Job
from memdec_edge.server.scheduler import Scheduler
from memdec_edge.server.settings import Defaults

T = TypeVar("T")
LOADING = "the model is still loading"


@dataclass(frozen=True)
class Asked:
    """One stream that a request asks for. score and progress: see Job."""

    request: Request
    score: int | None = None
    progress: bool = False


class Answers:
    """The events of several streams, as (number of the stream, event), until all have ended.

    An error of one is raised, and ends all. close() ends them at once.
    """

    def __init__(self, scheduler: Scheduler, asked: Sequence[Asked]) -> None:
        self._scheduler = scheduler
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._jobs = [
            Job(one.request, self._listener(number), score=one.score, progress=one.progress)
            for number, one in enumerate(asked)
        ]

    def _listener(self, number: int) -> Callable[[Event], None]:
        def listen(event: Event) -> None:
            with suppress(RuntimeError):  # the loop is closed: no one listens any more
                self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

        return listen

    async def begin(self) -> None:
        """Check and submit all streams. Errors: see Scheduler.check() and submit()."""
        self._scheduler.require_place(len(self._jobs))
        for job in self._jobs:
            await asyncio.to_thread(self._scheduler.check, job)
        self._scheduler.submit(self._jobs)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        left = len(self._jobs)
        try:
            while left:
                number, event = await self._events.get()
                if isinstance(event, MemdecError):
                    raise event
                left -= isinstance(event, End)
                yield number, event
        finally:
            self.close()

    def close(self) -> None:
        """Give back what the streams hold that have not ended."""
        for job in self._jobs:
            self._scheduler.cancel(job)


class Service:
    """Opens a model with `load`, in a thread of its own, and serves it. `failure` is the error that ended that."""

    def __init__(
        self,
        load: Callable[[], LanguageModel],
        options: ServerOptions | None = None,
        defaults: Defaults | None = None,
        chat: ChatOptions | None = None,
    ) -> None:
        self.options, self.defaults, self.chat = (
            options or ServerOptions(),
            defaults or Defaults(),
            chat or ChatOptions(),
        )
        self.failure: BaseException | None = None
        self.created = int(time.time())
        self._load = load
        self._model: LanguageModel | None = None
        self._scheduler: Scheduler | None = None
        self.when_open: Callable[[], None] = lambda: None  # called once the model is open, or cannot be opened
        self._loading = threading.Thread(target=self._open, name="memdec-load", daemon=True)

    def start(self) -> None:
        """Begin to load."""
        self._loading.start()

    def _open(self) -> None:
        try:
            self._model = self._load()
            self._scheduler = Scheduler(self._model.engine, self.options.queue)
        except BaseException as error:  # run() raises it in the main thread
            self.failure = error
        self.when_open()

    @property
    def ready(self) -> bool:
        """Whether the model is open."""
        return self._scheduler is not None

    @property
    def model(self) -> LanguageModel:
        """The model. Raises UnavailableError until it is open."""
        if self._model is None:
            raise UnavailableError(LOADING)
        return self._model

    @property
    def scheduler(self) -> Scheduler:
        """What steps the engine. Raises UnavailableError until the model is open."""
        if self._scheduler is None:
            raise UnavailableError(LOADING)
        return self._scheduler

    @property
    def name(self) -> str:
        """What the model is called in answers."""
        return self.options.alias or self.model.engine.base.path.name

    async def ask(self, asked: Sequence[Asked]) -> Answers:
        """Begin streams. Raises ContextError, OptionError, OverloadError and UnavailableError."""
        if self.options.log_prompts:
            for one in asked:
                pieces = (self.model.engine.base.piece(token, special=True) for token in one.request.tokens)
                note(f"prompt {b''.join(pieces).decode('utf-8', 'replace')}")
        answers = Answers(self.scheduler, asked)
        await answers.begin()
        return answers

    async def call(self, work: Callable[[], T]) -> T:
        """Change something of the engine, between two of its steps."""
        return await asyncio.wrap_future(self.scheduler.call(work))

    def drain(self) -> None:
        """Take nothing more on; what runs has options.grace seconds."""
        if self._scheduler:
            self._scheduler.drain(self.options.grace)

    def close(self) -> None:
        """End all that runs, and free the model."""
        if self._loading.ident:
            self._loading.join()
        if self._scheduler:
            self._scheduler.stop()
        if self._model:
            self._model.close()


def new_id(prefix: str) -> str:
    """A name for an answer, such as chatcmpl-5f2c..."""
    return f"{prefix}{secrets.token_hex(12)}"
