"""Routes that tell of the model and the server: health, models, props, slots, tokens, templates, metrics.

Knows nothing of answers.
"""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, PlainTextResponse, Response

from memdec_edge.chat.prompt import special_names
from memdec_edge.engine import Engine
from memdec_edge.engine.blend import Voice
from memdec_edge.errors import OptionError, TemplateError
from memdec_edge.llama.model import Model
from memdec_edge.server import chats, metrics
from memdec_edge.server.failures import failure
from memdec_edge.server.figures import FINGERPRINT
from memdec_edge.server.job import Job
from memdec_edge.server.native import settings_of
from memdec_edge.server.schemas import ChatRequest, DetokenizeRequest, TokenizeRequest
from memdec_edge.server.service import Service


def template_of(service: Service) -> str:
    """The source of the template in use; empty where there is none."""
    try:
        return service.model.template(service.chat).source
    except TemplateError:
        return ""


def props(service: Service) -> dict[str, Any]:
    """What the server and its model are, in llama.cpp's names."""
    engine, names = service.model.engine, special_names(service.model.engine.base)
    defaults = service.defaults
    return {
        "default_generation_settings": {
            "n_ctx": engine.longest(),
            "params": settings_of(defaults.sampling, defaults.generation, engine),
        },
        "total_slots": engine.cells.n_seq,
        "n_ctx": engine.n_ctx,
        "model_alias": service.name,
        "model_path": engine.base.path.name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": template_of(service),
        "bos_token": names.get("bos_token", ""),
        "eos_token": names.get("eos_token", ""),
        "build_info": FINGERPRINT,
        "mixture": asdict(defaults.mixture),
        "mixes_with": engine.mixes_with,
    }


def slots(service: Service) -> list[dict[str, Any]]:
    """Each slot and what it does; no text."""
    engine, active = service.model.engine, dict[int, Job]()
    for one in list(service.scheduler.active):
        if one.stream and not one.stream.session.closed and not one.stream.session.suspended:
            active[one.stream.session.slot] = one
    found = []
    for slot in range(engine.cells.n_seq):
        job = active.get(slot)
        shown: dict[str, Any] = {
            "id": slot, "n_ctx": engine.longest(), "is_processing": job is not None,
            "n_cached": len(engine.context.tokens[slot]),
        }  # fmt: skip
        if job and job.stream:
            done = job.stream.timings().predicted_n
            remain = job.cap - job.n_tokens
            shown |= {"id_task": job.born, "n_prompt_tokens": len(job.request.tokens), "is_reading": job.reading}
            shown["next_token"] = [{"n_decoded": done, "n_remain": remain, "has_next_token": remain > 0}]
        found.append(shown)
    return found


def _voices(engine: Engine) -> list[Voice]:
    return [*engine.memories, *engine.indexes]


def models(service: Service) -> dict[str, Any]:
    """The one model that is served."""
    engine = service.model.engine
    base = engine.base
    meta = {
        "n_vocab": base.n_vocab, "n_ctx": engine.n_ctx, "n_ctx_train": base.n_ctx_train, "n_embd": base.n_embd,
        "memories": [voice.path.stem for voice in _voices(engine)],
    }  # fmt: skip
    shown = {
        "id": service.name, "object": "model", "created": service.created, "owned_by": "memdec-edge", "aliases": [],
        "max_model_len": engine.longest(), "meta": meta,
    }  # fmt: skip
    return {"object": "list", "data": [shown]}


def tokenizer(service: Service) -> dict[str, Any]:
    """What lm-evaluation-harness asks of a tokenizer behind HTTP, in the names of Hugging Face."""
    base = service.model.engine.base
    names = special_names(base)
    return {
        "tokenizer_class": "memdec-edge", "model_max_length": service.model.engine.longest(),
        "vocab_size": base.n_vocab, "add_bos_token": base.add_bos, "add_eos_token": base.add_eos,
        "chat_template": template_of(service), "bos_token_id": base.bos, "eos_token_id": base.eos, **names,
    }  # fmt: skip


def tokens_of(body: TokenizeRequest, base: Model) -> list[int]:
    """The tokens of `content`, without special ones unless asked, or of `prompt`, with them unless not."""
    if body.prompt is not None:
        added = body.add_special_tokens is not False
        return base.tokenize(body.prompt, add_special=added, parse_special=body.parse_special is not False)
    if not isinstance(body.content, str):
        raise OptionError("content", type(body.content).__name__, "give a text as content or prompt")
    return base.tokenize(
        body.content, add_special=bool(body.add_special), parse_special=body.parse_special is not False
    )


def _piece(base: Model, token: int) -> dict[str, Any]:
    piece = base.piece(token, special=True)
    try:
        return {"id": token, "piece": piece.decode("utf-8")}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}


def router(service: Service) -> APIRouter:
    """The routes; most with and without /v1."""
    routes = APIRouter(tags=["facts"])

    async def health() -> Response:
        if not service.ready:
            return JSONResponse(failure(503, "Loading model", code="loading"), 503)
        return JSONResponse({"status": "ok"})

    async def model_list() -> dict[str, Any]:
        return models(service)

    async def one_model(name: str) -> Response:
        [shown] = models(service)["data"]
        if name != shown["id"]:
            return JSONResponse(failure(404, f"the model {name} is not served; {shown['id']} is", param="model"), 404)
        return JSONResponse(shown)

    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        if body.messages is None:
            return await asyncio.to_thread(tokenized, body, None)
        chat = ChatRequest(messages=body.messages, tools=body.tools)
        return await asyncio.to_thread(tokenized, body, (await chats.count(chat, service)).tokens)

    def tokenized(body: TokenizeRequest, known: list[int] | None) -> dict[str, Any]:
        base = service.model.engine.base
        ids = tokens_of(body, base) if known is None else known
        shown = [_piece(base, token) for token in ids] if body.with_pieces else ids
        found: dict[str, Any] = {"tokens": shown, "count": len(ids), "max_model_len": service.model.engine.longest()}
        if body.return_token_strs:
            found["token_strs"] = [base.piece(token, special=True).decode("utf-8", "replace") for token in ids]
        return found

    def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        base = service.model.engine.base
        for token in body.tokens:
            if not 0 <= token < base.n_vocab:
                raise OptionError("tokens", token, f"ids are from 0 to {base.n_vocab - 1}")
        text = b"".join(base.piece(token, special=True) for token in body.tokens).decode("utf-8", "replace")
        return {"content": text, "prompt": text}

    async def template(body: ChatRequest) -> dict[str, str]:
        return {"prompt": (await chats.count(body, service)).text}

    async def embeddings() -> Response:
        reason = "embeddings are not served: a mixture of distributions has no hidden state of its own"
        return JSONResponse(failure(501, f"{reason}; use another server for them"), 501)

    async def slot_list() -> list[dict[str, Any]]:
        return slots(service)

    for prefix in ("", "/v1"):
        routes.add_api_route(f"{prefix}/health", health, methods=["GET"], summary="Whether the model is loaded")
        routes.add_api_route(f"{prefix}/models", model_list, methods=["GET"], summary="The model")
        routes.add_api_route(f"{prefix}/models/{{name:path}}", one_model, methods=["GET"], summary="The model")
        routes.add_api_route(f"{prefix}/tokenize", tokenize, methods=["POST"], summary="Text to token ids")
        routes.add_api_route(f"{prefix}/detokenize", detokenize, methods=["POST"], summary="Token ids to text")
        routes.add_api_route(f"{prefix}/embeddings", embeddings, methods=["POST"], summary="Not served")
    routes.add_api_route("/props", lambda: props(service), methods=["GET"], summary="Model, template, defaults")
    routes.add_api_route("/slots", slot_list, methods=["GET"], summary="What each slot does")
    routes.add_api_route("/apply-template", template, methods=["POST"], summary="A chat as the text of a prompt")
    routes.add_api_route("/tokenizer_info", lambda: tokenizer(service), methods=["GET"], summary="The tokenizer")
    routes.add_api_route(
        "/metrics", lambda: metrics.answer(service), methods=["GET"], summary="Figures for Prometheus",
        response_class=PlainTextResponse,
    )  # fmt: skip
    return routes
