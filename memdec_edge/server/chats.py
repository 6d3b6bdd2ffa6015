"""A chat that is asked for, as streams of the scheduler; what comes of them, as deltas. Knows nothing of HTTP.

OpenAI's chat completions, its responses and Anthropic's messages are told in terms of this.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

from memdec_edge.api.results import Chunk, Timings
from memdec_edge.api.streams import Request
from memdec_edge.server.deltas import Delta, Parts
from memdec_edge.server.job import End, Progress
from memdec_edge.server.prompts import Prompted, prompt_of
from memdec_edge.server.schemas import ChatRequest
from memdec_edge.server.service import Answers, Asked, Service
from memdec_edge.server.settings import generation_of, mixture_of, sampling_of

MEMORY_TOPS = 5  # likeliest tokens that return_memory tells of


@dataclass
class Choice:
    """One answer, as far as it has come. chunk: the last token's; end: once it has ended."""

    parts: Parts
    chunks: list[Chunk] = field(default_factory=list)
    end: End | None = None

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, as OpenAI says it."""
        return self.parts.finish_reason(self.end.chunk.finish_reason) if self.end else None

    @property
    def timings(self) -> Timings:
        """Of the whole answer."""
        assert self.end
        return self.end.chunk.timings


@dataclass(frozen=True)
class Told:
    """What is new of one answer: text, progress of the prompt, or its end. chunk: the token behind it."""

    index: int
    delta: Delta
    chunk: Chunk | None = None
    progress: Progress | None = None
    end: End | None = None


@dataclass
class Chat:
    """A chat whose answers are on their way."""

    prompted: Prompted
    answers: Answers
    choices: list[Choice]

    async def tell(self) -> AsyncIterator[Told]:
        """What is new, as it comes."""
        async for index, event in self.answers:
            choice = self.choices[index]
            if isinstance(event, Progress):
                yield Told(index, Delta(), progress=event)
            elif isinstance(event, Chunk):
                choice.chunks.append(event)
                yield Told(index, choice.parts.push(event.text), event)
            elif isinstance(event, End):
                choice.end = event
                yield Told(index, choice.parts.end(event.chunk.text), end=event)

    async def whole(self) -> list[Choice]:
        """All answers, once they have ended."""
        async for _ in self.tell():
            pass
        return self.choices

    @property
    def timings(self) -> list[Timings]:
        """Of each answer, once all have ended."""
        return [choice.timings for choice in self.choices]


async def begin(body: ChatRequest, service: Service, most: int | None) -> Chat:
    """Begin the answers to a chat. most: tokens of each. Errors: see prompt_of(), the settings, and Service.ask()."""
    prompted, asked = await asyncio.to_thread(_asked, body, service, most)
    answers = await service.ask(asked)
    return Chat(prompted, answers, [Choice(Parts(prompted.thinks, prompted.box)) for _ in asked])


async def count(body: ChatRequest, service: Service) -> Prompted:
    """The prompt of a chat alone."""
    body.refuse_unknown()
    return await asyncio.to_thread(_prompt, body, service)


def _prompt(body: ChatRequest, service: Service) -> Prompted:
    generated = service.defaults.mixture.generated
    return prompt_of(body, service.model, service.chat, generated, service.options.allow_templates)


def _asked(body: ChatRequest, service: Service, most: int | None) -> tuple[Prompted, list[Asked]]:
    body.refuse_unknown()
    prompted, engine, defaults = _prompt(body, service), service.model.engine, service.defaults
    sampling = sampling_of(body, engine, defaults.sampling)
    if prompted.box.schema is not None:
        sampling = replace(sampling, json_schema=json.dumps(prompted.box.schema), grammar="")
    tops = (body.top_logprobs or 0) if body.logprobs else 0
    generation = generation_of(
        body,
        defaults,
        most=most,
        stop=prompted.stop,
        logprobs=max(tops, MEMORY_TOPS if body.return_memory else 0),
    )
    mixture = mixture_of(body.memory, engine, defaults.mixture)
    request = Request(prompted.tokens, prompted.rates, sampling, generation, mixture)
    return prompted, several(request, body.n or 1, progress=bool(body.return_progress and body.stream))


def several(request: Request, n: int, **more: Any) -> list[Asked]:
    """The same request `n` times, with a seed for each."""
    asked = []
    for number in range(n):
        seed = request.sampling.seed
        own = replace(request.sampling, seed=(seed + number) % (2**32 - 1)) if seed >= 0 else request.sampling
        asked.append(Asked(replace(request, sampling=own), **more))
    return asked
