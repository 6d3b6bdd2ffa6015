"""llama.cpp's own route for text: /completion, in its names. Knows nothing of prompts of chats and of the scheduler."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from memdec_edge.api.results import Chunk, Timings
from memdec_edge.api.streams import Request as Wanted
from memdec_edge.engine import Engine
from memdec_edge.errors import OptionError
from memdec_edge.options import GenerationOptions, SamplingOptions
from memdec_edge.server import chats
from memdec_edge.server.completions import tokens_of
from memdec_edge.server.events import STREAMED, Events, unless_gone
from memdec_edge.server.figures import progress_of, progress_timings, timings_of
from memdec_edge.server.job import End, Progress
from memdec_edge.server.logprobs import entry_with_tops, memory_of
from memdec_edge.server.schemas import NativeRequest
from memdec_edge.server.service import Answers, Asked, Service
from memdec_edge.server.settings import generation_of, mixture_of, sampling_of

STOPS = {"length": "limit", "stop": "eos"}
NEUTRAL = {  # samplers of llama.cpp that this server leaves out, as they do nothing
    "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0, "xtc_threshold": 0.1,
    "typical_p": 1.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1,
    "dry_sequence_breakers": [], "mirostat": 0, "mirostat_tau": 5.0, "mirostat_eta": 0.1, "adaptive_target": -1.0,
    "adaptive_decay": 0.9, "n_keep": 0, "n_discard": 0, "min_keep": 0, "post_sampling_probs": False, "lora": [],
}  # fmt: skip


def settings_of(sampling: SamplingOptions, generation: GenerationOptions, engine: Engine) -> dict[str, Any]:
    """Options of a request, in llama.cpp's names."""
    found = asdict(sampling)
    biases = [(token, None if bias == float("-inf") else bias) for token, bias in found.pop("logit_bias")]
    if generation.ignore_eos:
        biases += [(token, None) for token in sorted(engine.base.eog_tokens)]
    return NEUTRAL | found | {
        "logit_bias": [{"token": token, "bias": bias} for token, bias in biases],
        "max_tokens": generation.n_predict,
        "n_predict": generation.n_predict,
        "ignore_eos": generation.ignore_eos,
        "stop": list(generation.stop),
        "n_probs": generation.logprobs,
        "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    }  # fmt: skip


class Text:
    """One text that goes on, as far as it has come."""

    def __init__(self, body: NativeRequest, index: int, wanted: Wanted, service: Service) -> None:
        self._body, self._index, self._wanted, self._service = body, index, wanted, service
        self._engine = service.model.engine
        self.text, self.chunks = "", list[Chunk]()
        self.end: End | None = None

    def take(self, event: Chunk | End) -> str:
        """The text that an event adds."""
        chunk = event.chunk if isinstance(event, End) else event
        self.text += chunk.text
        if isinstance(event, End):
            self.end = event
        else:
            self.chunks.append(event)
        return chunk.text

    def piece(self, text: str, tokens: Sequence[int], timings: Timings) -> dict[str, Any]:
        """What one event of a stream says."""
        return {
            "index": self._index, "content": text, "tokens": list(tokens), "stop": False, "id_slot": -1,
            "tokens_predicted": len(self.chunks), "tokens_evaluated": timings.cache_n + timings.prompt_n,
        }  # fmt: skip

    def probabilities(self, chunks: Sequence[Chunk]) -> list[dict[str, Any]]:
        """Log-probs of emitted tokens."""
        return [entry_with_tops(self._engine.base, chunk, self._body.n_probs or 0) for chunk in chunks]

    def whole(self, streamed: bool) -> dict[str, Any]:
        """All that is told at the end."""
        assert self.end
        end, tokens = self.end, [chunk.token for chunk in self.chunks]
        timings, reason = end.chunk.timings, str(end.chunk.finish_reason)
        base = self._engine.base
        found = {
            "index": self._index,
            "content": "" if streamed else self.text,
            "tokens": tokens if self._body.return_tokens and not streamed else [],
            "id_slot": end.slot,
            "stop": True,
            "model": self._service.name,
            "tokens_predicted": timings.predicted_n,
            "tokens_evaluated": timings.cache_n + timings.prompt_n,
            "generation_settings": settings_of(self._wanted.sampling, self._wanted.generation, self._engine),
            "prompt": b"".join(base.piece(token, special=True) for token in self._wanted.tokens).decode(
                "utf-8", "replace"
            ),
            "has_new_line": "\n" in self.text,
            "truncated": end.truncated,
            "stop_type": "word" if end.stop else STOPS[reason],
            "stopping_word": end.stop or "",
            "tokens_cached": len(self._wanted.tokens) + len(tokens),
            "timings": timings_of(timings),
        }
        if self._body.n_probs and not streamed:
            found["completion_probabilities"] = self.probabilities(self.chunks)
        if self._body.return_memory and not streamed:
            found["memory"] = [memory_of(base, chunk) for chunk in self.chunks]
        return _only(found, self._body.response_fields)


def _only(found: dict[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Some fields of an answer; a/b stands for a field inside of another."""
    if not fields:
        return found
    kept = {}
    for name in fields:
        value: Any = found
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            kept[name] = value
    return kept


async def complete(body: NativeRequest, service: Service, request: Request) -> Response:
    """Continue one text or several."""
    several, asked = await asyncio.to_thread(_wanted, body, service)
    answers = await service.ask(asked)
    texts = [Text(body, index, one.request, service) for index, one in enumerate(asked)]
    if body.stream:
        return Events(request, answers, _events(body, answers, texts, service))
    await unless_gone(request, answers, _read(answers, texts))
    found = [text.whole(streamed=False) for text in texts]
    return JSONResponse(found if several else found[0])


def _wanted(body: NativeRequest, service: Service) -> tuple[bool, list[Asked]]:
    """Whether there are several texts, and the streams that they ask for."""
    body.refuse_unknown()
    engine, defaults = service.model.engine, service.defaults
    prompts = _prompts(body.prompt, engine)
    sampling = sampling_of(body, engine, defaults.sampling)
    most = body.n_predict if body.n_predict is not None else body.max_tokens
    logprobs = max(body.n_probs or 0, chats.MEMORY_TOPS if body.return_memory else 0)
    generation = generation_of(body, defaults, most=most, logprobs=logprobs)
    mixture = mixture_of(body.memory, engine, defaults.mixture)
    asked: list[Asked] = []
    for tokens in prompts:
        wanted = Wanted(tokens, None, sampling, generation, mixture)
        asked += chats.several(wanted, body.n or 1, progress=bool(body.return_progress and body.stream))
    return _is_list(body.prompt) or len(asked) > 1, asked


def _is_list(prompt: Any) -> bool:
    """Whether a prompt is a list of prompts; one of texts and ids is a single one."""
    return isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt)


def _prompts(prompt: Any, engine: Engine) -> list[list[int]]:
    if _is_list(prompt) and prompt:
        return [_tokens(one, engine, first=True) for one in prompt]
    return [_tokens(prompt, engine, first=True)]


def _tokens(prompt: Any, engine: Engine, *, first: bool) -> list[int]:
    """The tokens of a text, of ids, of both mixed, or of {"prompt_string": ...}."""
    if isinstance(prompt, dict) and isinstance(prompt.get("prompt_string"), str):
        if prompt.get("multimodal_data"):
            raise OptionError("prompt", "multimodal_data", "images and sounds are not read; send text")
        prompt = prompt["prompt_string"]
    if isinstance(prompt, str):
        return engine.base.tokenize(prompt, add_special=first)
    if isinstance(prompt, list) and prompt and all(isinstance(part, int | str) for part in prompt):
        found: list[int] = []
        for number, part in enumerate(prompt):
            found += _tokens(part, engine, first=not number) if isinstance(part, str) else tokens_of([part], engine)
        return found
    raise OptionError("prompt", type(prompt).__name__, "must be a text, token ids, both in a list, or a list of these")


async def _read(answers: Answers, texts: Sequence[Text]) -> None:
    async for index, event in answers:
        if isinstance(event, Chunk | End):
            texts[index].take(event)


async def _events(
    body: NativeRequest, answers: Answers, texts: Sequence[Text], service: Service
) -> AsyncIterator[dict[str, Any]]:
    async for index, event in answers:
        text = texts[index]
        if isinstance(event, Progress):
            timed = {"timings": progress_timings(event)} if body.timings_per_token else {}
            yield text.piece("", (), event.timings) | {"prompt_progress": progress_of(event)} | timed
        elif isinstance(event, Chunk):
            found = text.piece(text.take(event), [] if event.token is None else [event.token], event.timings)
            if body.n_probs:
                found["completion_probabilities"] = text.probabilities([event])
            if body.timings_per_token:
                found["timings"] = timings_of(event.timings)
            if body.return_memory:
                found["memory"] = memory_of(service.model.engine.base, event)
            yield found
        elif isinstance(event, End):
            rest = text.take(event)
            yield text.whole(streamed=True) | ({"content": rest} if rest else {})


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["llama.cpp"])

    @routes.post("/completion", summary="Continue a text", responses=STREAMED)
    async def completion(body: NativeRequest, request: Request) -> Response:
        return await complete(body, service, request)

    return routes
