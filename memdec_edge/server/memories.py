"""Memories over HTTP: listed, loaded from one folder, unloaded, weighed. Knows nothing of files but their names.

A change comes between two steps of the engine: streams that run keep what they mix.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from memdec_edge.engine import Engine, Index
from memdec_edge.engine.blend import Voice
from memdec_edge.errors import MemdecError, MissingFileError, OptionError
from memdec_edge.options import MemoryOptions
from memdec_edge.server.schemas import MemoriesRequest
from memdec_edge.server.service import Service
from memdec_edge.server.settings import name_of, voice_of

ENDING = ".gguf"


def listed(service: Service) -> dict[str, Any]:
    """The memories and indexes that new requests mix, and the files that may be loaded."""
    engine = service.model.engine
    mixture = engine.mixture(service.defaults.mixture)
    weights = [*mixture.weights, *mixture.longest] if mixture.indexes else list(mixture.weights)
    pairs = zip(mixture.voices, weights, strict=True)
    loaded = [_shown(voice, weight, mixture.learning is not None) for voice, weight in pairs]
    folder = service.options.memory_dir
    files = sorted(path.name for path in folder.glob(f"*{ENDING}") if path.is_file()) if folder else []
    return {"object": "list", "data": loaded, "files": files, "auto": mixture.learning is not None}


def _shown(voice: Voice, weight: float, learns: bool) -> dict[str, Any]:
    """One of them. lambda: of new requests, where weights learn that with which they begin."""
    meta = voice.metadata
    return {
        "id": voice.number,
        "name": name_of(voice),
        "kind": "index" if isinstance(voice, Index) else "memory",
        "file": voice.path.name,
        "domain": meta.domain,
        "lambda": weight,
        "recommended": meta.weight,
        "auto": learns,
        "users": voice.users,
        "facts": {name: value for name, value in _facts(voice).items() if value not in (None, "")},
    }


def _facts(voice: Voice) -> dict[str, Any]:
    """What a file says of itself: an index how much it holds, a memory how it was trained and how good it is."""
    meta = voice.metadata
    if isinstance(voice, Index):
        return {"license": voice.file.license, "documents": voice.file.n_documents, "tokens": len(voice.file.tokens)}
    general = voice.model.metadata
    return {
        "license": general.get("general.license"),
        "made_for": general.get("general.base_model.0.name"),
        "layers": voice.model.n_layer,
        "n_ctx_train": voice.model.n_ctx_train,
        "temperature": meta.temperature,
        "train": dict(meta.train or {}) or None,
        "eval_dataset": meta.eval_dataset,
        "ppl_base": meta.ppl_base,
        "ppl_memory": meta.ppl_memory,
        "ppl_mixture": meta.ppl_mixture,
    }


async def change(body: MemoriesRequest, service: Service) -> None:
    """Make one change. Raises what Engine.open(), attach(), reweight() and remove() do, and OptionError."""
    try:
        asked = [name for name in ("load", "unload", "weights") if getattr(body, name) is not None]
        if len(asked) != 1:
            raise OptionError("memories", " and ".join(asked) or "empty", "give one of load, unload and weights")
        if body.load is None:
            await service.call(lambda: _change(body, service.model.engine))
        else:
            await _load(MemoryOptions(file_of(body.load, service.options.memory_dir), body.weight), service)
    except MemdecError as error:
        folder = service.options.memory_dir
        places = [service.model.engine.base.path.parent, *([folder, folder.resolve()] if folder else [])]
        text = str(error)
        for place in places:  # a client learns names of files, and not where they lie
            text = text.replace(f"{place}{os.sep}", "")
        error.args = (text,)
        raise


async def _load(options: MemoryOptions, service: Service) -> None:
    """Open a file while streams run; only to attach it takes its turn among their steps."""
    engine = service.model.engine
    voice = await asyncio.to_thread(engine.open, options)
    try:
        await service.call(lambda: engine.attach(voice))
    except BaseException:
        voice.close()
        raise


def _change(body: MemoriesRequest, engine: Engine) -> None:
    if body.unload is not None:
        engine.remove(voice_of(body.unload, engine))
        return
    pairs = [(voice_of(one.id, engine), one.weight) for one in body.weights or []]
    before = [(voice, voice.options.weight) for voice, _ in pairs]
    try:
        for voice, weight in pairs:
            engine.reweight(voice, weight)
    except OptionError:
        for voice, weight in before:
            engine.reweight(voice, weight)
        raise


def file_of(name: str, folder: Path | None) -> Path:
    """The file of that name in the folder. Raises OptionError where it lies elsewhere, MissingFileError for none."""
    if folder is None:
        raise OptionError("load", name, "this server loads no memories; start it with --memory-dir")
    if not name.endswith(ENDING) or "\0" in name:
        raise OptionError("load", name[:80], f"must be the name of a {ENDING} file of the memory folder")
    inside, path = folder.resolve(), (folder / name).resolve()
    if not path.is_relative_to(inside):
        raise OptionError("load", name[:80], "lies outside of the memory folder")
    if not path.is_file():
        raise MissingFileError(name, "file of the memory folder", "GET /memories lists them")
    return path


def router(service: Service) -> APIRouter:
    """The routes, with and without /v1."""
    routes = APIRouter(tags=["memories"])

    async def memories() -> dict[str, Any]:
        return listed(service)

    async def changed(body: MemoriesRequest) -> dict[str, Any]:
        await change(body, service)
        return listed(service)

    for prefix in ("", "/v1"):
        routes.add_api_route(f"{prefix}/memories", memories, methods=["GET"], summary="Memories and indexes")
        routes.add_api_route(f"{prefix}/memories", changed, methods=["POST"], summary="Load, unload, weigh")
    return routes
