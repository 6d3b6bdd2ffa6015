"""OpenAI's routes for text: chat completions and completions. Knows nothing of prompts and of the scheduler."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from memdec_edge.api.results import Chunk, Timings
from memdec_edge.api.streams import Request as Wanted
from memdec_edge.engine import Engine
from memdec_edge.errors import OptionError
from memdec_edge.server import chats
from memdec_edge.server.chats import Chat, Choice, Told, several
from memdec_edge.server.events import DONE, STREAMED, Events, unless_gone
from memdec_edge.server.figures import FINGERPRINT, progress_of, progress_timings, timings_of, usage_of
from memdec_edge.server.job import End, Progress, Scores
from memdec_edge.server.logprobs import Legacy, entry_with_tops, joined, memory_of
from memdec_edge.server.schemas import ChatRequest, Common, CompletionRequest
from memdec_edge.server.service import Answers, Asked, Service, new_id
from memdec_edge.server.settings import generation_of, mixture_of, sampling_of
from memdec_edge.server.tools import Call


class Envelope:
    """What all chunks of an answer have in common."""

    def __init__(self, service: Service, kind: str, prefix: str) -> None:
        self._head = {
            "id": new_id(prefix),
            "object": kind,
            "created": int(time.time()),
            "model": service.name,
            "system_fingerprint": FINGERPRINT,
        }

    def __call__(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "choices": choices, **more}


def most_of(body: ChatRequest | CompletionRequest) -> int | None:
    """New tokens that a request asks for, whatever it calls them."""
    given = (body.max_completion_tokens, body.max_tokens, body.n_predict)
    return next((most for most in given if most is not None), None)


def wants_usage(body: Common) -> bool:
    """Whether a stream is to end with a chunk of usage."""
    return bool(body.stream_options and body.stream_options.include_usage)


# --- chat -----------------------------------------------------------------------------------------------------------


async def chat_completion(body: ChatRequest, service: Service, request: Request) -> Response:
    """Answer a chat."""
    if body.top_logprobs and not body.logprobs:
        raise OptionError("top_logprobs", body.top_logprobs, "needs logprobs: true")
    chat = await chats.begin(body, service, most_of(body))
    engine = service.model.engine
    if body.stream:
        envelope = Envelope(service, "chat.completion.chunk", "chatcmpl-")
        return Events(request, chat.answers, _chat_chunks(body, chat, envelope, engine))
    choices = await unless_gone(request, chat.answers, chat.whole())
    envelope = Envelope(service, "chat.completion", "chatcmpl-")
    shown = [_chat_choice(body, number, choice, engine) for number, choice in enumerate(choices)]
    more: dict[str, Any] = {"usage": usage_of(chat.timings), "timings": timings_of(chat.timings[0])}
    if body.verbose:
        more["__verbose"] = {"prompt": chat.prompted.text}
    return JSONResponse(envelope(shown, **more))


def _chat_choice(body: ChatRequest, number: int, choice: Choice, engine: Engine) -> dict[str, Any]:
    whole = choice.parts.whole
    message: dict[str, Any] = {"role": "assistant", "content": whole.content}
    if whole.reasoning:
        message["reasoning_content"] = whole.reasoning
    if whole.calls:
        message["content"] = whole.content or None
        message["tool_calls"] = [_call(call) for call in whole.calls]
    shown: dict[str, Any] = {"index": number, "message": message, "logprobs": None}
    if body.logprobs:
        shown["logprobs"] = _chat_logprobs(body, choice.chunks, engine)
    if body.return_memory:
        shown["memory"] = [memory_of(engine.base, chunk) for chunk in choice.chunks]
    return shown | {"finish_reason": choice.finish_reason}


def _chat_logprobs(body: ChatRequest, chunks: Sequence[Chunk], engine: Engine) -> dict[str, Any]:
    return {"content": [entry_with_tops(engine.base, chunk, body.top_logprobs or 0) for chunk in chunks]}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


async def _chat_chunks(body: ChatRequest, chat: Chat, envelope: Envelope, engine: Engine) -> AsyncIterator[Any]:
    begun: set[int] = set()
    known = [list[str]() for _ in chat.choices]  # ids of calls that began
    async for told in chat.tell():
        if told.index not in begun:
            begun.add(told.index)
            yield envelope([_delta(told.index, {"role": "assistant", "content": None})])
        if told.progress:
            progress = {"prompt_progress": progress_of(told.progress)}
            if body.timings_per_token:
                progress["timings"] = progress_timings(told.progress)
            yield envelope([_delta(told.index, {})], **progress)
            continue
        deltas = _deltas(told, known[told.index])
        if told.chunk and (body.logprobs or body.return_memory or body.timings_per_token) and not deltas:
            deltas = [{"content": ""}]
        for number, delta in enumerate(deltas):
            shown, more = _delta(told.index, delta), dict[str, Any]()
            if told.chunk and number == len(deltas) - 1:
                if body.logprobs:
                    shown["logprobs"] = _chat_logprobs(body, [told.chunk], engine)
                if body.return_memory:
                    shown["memory"] = memory_of(engine.base, told.chunk)
                if body.timings_per_token:
                    more["timings"] = timings_of(told.chunk.timings)
            yield envelope([shown], **more)
        if told.end:
            choice = chat.choices[told.index]
            last = wants_usage(body) or any(other.end is None for other in chat.choices)
            more = {} if last else {"timings": timings_of(choice.timings)}
            yield envelope([_delta(told.index, {}) | {"finish_reason": choice.finish_reason}], **more)
    if wants_usage(body):
        yield envelope([], usage=usage_of(chat.timings), timings=timings_of(chat.timings[0]))
    yield DONE


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _deltas(told: Told, known: list[str]) -> list[dict[str, Any]]:
    """Deltas of OpenAI's streams. A call begins with its id and name, and pieces of its arguments follow."""
    found: list[dict[str, Any]] = []
    if told.delta.reasoning:
        found.append({"reasoning_content": told.delta.reasoning})
    if told.delta.content:
        found.append({"content": told.delta.content})
    for call in told.delta.calls:
        if call.id not in known:
            known.append(call.id)
            begun = _call(replace(call, arguments=""))
            found.append({"tool_calls": [{"index": len(known) - 1, **begun}]})
        if call.arguments:
            piece = {"index": known.index(call.id), "function": {"arguments": call.arguments}}
            found.append({"tool_calls": [piece]})
    return found


# --- completions ----------------------------------------------------------------------------------------------------


async def completion(body: CompletionRequest, service: Service, request: Request) -> Response:
    """Continue one text or several."""
    prompts, asked = await asyncio.to_thread(_wanted, body, service)
    answers = await service.ask(asked)
    texts = [Text(body, prompts[number * len(prompts) // len(asked)], service) for number in range(len(asked))]
    if body.stream:
        return Events(request, answers, _text_chunks(body, answers, texts, len(prompts), service))
    await unless_gone(request, answers, _read(answers, texts))
    envelope = Envelope(service, "text_completion", "cmpl-")
    timings = [text.timings for text in texts]
    shown = [text.choice(number) for number, text in enumerate(texts)]
    return JSONResponse(envelope(shown, usage=usage_of(timings, len(prompts)), timings=timings_of(timings[0])))


def _wanted(body: CompletionRequest, service: Service) -> tuple[list[list[int]], list[Asked]]:
    """The prompts as tokens, and all streams that they ask for."""
    body.refuse_unknown()
    engine, defaults = service.model.engine, service.defaults
    given = body.prompt
    single = isinstance(given, str) or all(isinstance(one, int) for one in given)
    each: list[Any] = [given] if single or isinstance(given, str) else list(given)
    prompts = [tokens_of(one, engine) for one in each]
    sampling = sampling_of(body, engine, defaults.sampling)
    tops = _tops(body)
    generation = generation_of(
        body,
        defaults,
        most=most_of(body),
        logprobs=max(tops or 0, chats.MEMORY_TOPS if body.return_memory else 0),
    )
    mixture = mixture_of(body.memory, engine, defaults.mixture)
    score = tops if body.echo and tops is not None else None
    asked = []
    for tokens in prompts:
        wanted = Wanted(tokens, None, sampling, generation, mixture)
        asked += several(wanted, body.n or 1, score=score, progress=bool(body.return_progress and body.stream))
    return prompts, asked


def tokens_of(prompt: str | list[int], engine: Engine) -> list[int]:
    """The tokens of one prompt; names of control tokens in a text are those tokens. Raises OptionError."""
    if isinstance(prompt, str):
        return engine.base.tokenize(prompt)
    if any(not 0 <= token < engine.base.n_vocab for token in prompt):
        raise OptionError(
            "prompt", "a token id outside of the vocabulary", f"ids are from 0 to {engine.base.n_vocab - 1}"
        )
    return list(prompt)


def _tops(body: CompletionRequest) -> int | None:
    """Likeliest tokens that are told of each; None: no log-probs."""
    if body.logprobs is None or body.logprobs is False:
        return None
    return int(body.logprobs)


class Text:
    """One text that goes on, as far as it has come."""

    def __init__(self, body: CompletionRequest, prompt: list[int], service: Service) -> None:
        self._body, self._prompt, self._base = body, prompt, service.model.engine.base
        self.legacy = Legacy(self._base, _tops(body) or 0)
        self.text = ""
        self.finish_reason: str | None = None
        self.chunks: list[Chunk] = []
        self._logprobs: list[dict[str, Any]] = []
        self._timings: Timings | None = None

    @property
    def timings(self) -> Timings:
        """Of the whole text."""
        assert self._timings
        return self._timings

    def begin(self) -> str:
        """What stands before all: the prompt, where it was asked for."""
        if not self._body.echo:
            return ""
        self.text = b"".join(map(self._base.piece, self._prompt)).decode("utf-8", "replace")
        return self.text

    def take(self, event: Scores | Chunk | End) -> tuple[str, dict[str, Any] | None]:
        """(text, log-probs) that an event adds."""
        asked = _tops(self._body) is not None
        if isinstance(event, Scores):
            self._logprobs.append(self.legacy.prompt(self._prompt, event.scores))
            return "", self._logprobs[-1]
        chunk = event.chunk if isinstance(event, End) else event
        self.text += chunk.text
        if isinstance(event, End):
            self.finish_reason, self._timings = chunk.finish_reason, chunk.timings
            return chunk.text, None
        self.chunks.append(chunk)
        found = self.legacy.chunks([chunk]) if asked else None
        self._logprobs += [found] if found else []
        return chunk.text, found

    def choice(self, index: int) -> dict[str, Any]:
        """All of it."""
        logprobs = joined(self._logprobs) if self._logprobs else None
        shown = {"index": index, "text": self.text, "logprobs": logprobs, "finish_reason": self.finish_reason}
        if self._body.return_memory:
            shown["memory"] = [memory_of(self._base, chunk) for chunk in self.chunks]
        return shown


async def _read(answers: Answers, texts: Sequence[Text]) -> None:
    for text in texts:
        text.begin()
    async for index, event in answers:
        if isinstance(event, Scores | Chunk | End):
            texts[index].take(event)


async def _text_chunks(
    body: CompletionRequest, answers: Answers, texts: Sequence[Text], prompts: int, service: Service
) -> AsyncIterator[Any]:
    envelope, base = Envelope(service, "text_completion", "cmpl-"), service.model.engine.base
    if body.echo:
        for index, text in enumerate(texts):
            yield envelope([_piece(index, text.begin())])
    left = len(texts)
    async for index, event in answers:
        if isinstance(event, Progress):
            timed = {"timings": progress_timings(event)} if body.timings_per_token else {}
            yield envelope([_piece(index, "")], prompt_progress=progress_of(event), **timed)
            continue
        assert isinstance(event, Scores | Chunk | End)
        added, logprobs = texts[index].take(event)
        shown, more = _piece(index, added) | {"logprobs": logprobs}, dict[str, Any]()
        if isinstance(event, Chunk):
            if body.return_memory:
                shown["memory"] = memory_of(base, event)
            if body.timings_per_token:
                more["timings"] = timings_of(event.timings)
        if added or logprobs or "memory" in shown or more:
            yield envelope([shown], **more)
        if isinstance(event, End):
            left -= 1
            more = {} if left or wants_usage(body) else {"timings": timings_of(event.chunk.timings)}
            yield envelope([_piece(index, "") | {"finish_reason": event.chunk.finish_reason}], **more)
    timings = [text.timings for text in texts]
    if wants_usage(body):
        yield envelope([], usage=usage_of(timings, prompts), timings=timings_of(timings[0]))
    yield DONE


def _piece(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": None}


def router(service: Service) -> APIRouter:
    """The routes, with and without /v1."""
    routes = APIRouter(tags=["OpenAI"])

    async def chat(body: ChatRequest, request: Request) -> Response:
        return await chat_completion(body, service, request)

    async def text(body: CompletionRequest, request: Request) -> Response:
        return await completion(body, service, request)

    async def tokens(body: ChatRequest) -> dict[str, Any]:
        prompted = await chats.count(body, service)
        return {"object": "response.input_tokens", "input_tokens": len(prompted.tokens)}

    for prefix in ("/v1", ""):
        for path, answer, summary in (
            ("chat/completions", chat, "Answer a chat"),
            ("completions", text, "Continue a text"),
        ):
            routes.add_api_route(f"{prefix}/{path}", answer, methods=["POST"], summary=summary, responses=STREAMED)
        routes.add_api_route(
            f"{prefix}/chat/completions/input_tokens", tokens, methods=["POST"], summary="Count the tokens of a chat"
        )
    return routes
