"""The application: all routes, and what stands before them. Knows nothing of processes and sockets."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from memdec_edge.errors import MemdecError
from memdec_edge.server import completions, facts, memories, messages, native, page, responses
from memdec_edge.server.failures import answer, failure, failure_of, headers_of, problem_of
from memdec_edge.server.guard import LOCAL, Guard
from memdec_edge.server.service import Service

log = logging.getLogger("memdec_edge.server")
STATUSES = {
    400: "What is asked cannot be", 401: "No valid key", 403: "Host or origin refused", 404: "Not found",
    409: "In conflict with what is there", 413: "Too large", 429: "Too many wait", 500: "The model failed",
    501: "Not served", 503: "Loading or ending", 507: "No memory",
}  # fmt: skip
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}


def make_app(service: Service) -> FastAPI:
    """The app of a service. Starting the app begins to load the model, and ending it closes it.

    Raises what guard.keys_of() raises.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield

    declared: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
        for status, text in STATUSES.items()
    }
    app = FastAPI(
        title="memdec-edge", version=version("memdec-edge"), lifespan=lifespan, responses=declared,
        docs_url=None, redoc_url=None,  # those load scripts from elsewhere
    )  # fmt: skip
    for part in (completions, responses, messages, native, facts, memories):
        app.include_router(part.router(service))
    app.include_router(page.router())
    _declare_failures(app)
    _forget_422(app)
    app.add_middleware(Guard, service=service)
    app.add_middleware(  # the outermost: pages may read refusals too
        CORSMiddleware,
        allow_origin_regex=LOCAL.pattern,
        allow_origins=service.options.origins,
        allow_credentials=True,
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    return app


def _forget_422(app: FastAPI) -> None:
    """Leave out of the description what FastAPI answers elsewhere: a body that does not fit is a 400 here."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        found = describe()
        for route in found["paths"].values():
            for operation in route.values():
                operation["responses"].pop("422", None)
        return found

    app.openapi = described  # type: ignore[method-assign]


def _declare_failures(app: FastAPI) -> None:
    """Let each error be an answer in the shape that clients expect."""

    @app.exception_handler(MemdecError)
    async def refuse(request: Request, error: MemdecError) -> Response:
        status, body = failure_of(error)
        return answer(request, status, body, headers_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, field = problem_of(error.errors())
        return answer(request, 400, failure(400, message, code="invalid_value", param=field))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"{request.url.path} is no route of this server; docs/server.md lists them"
        return answer(request, error.status_code, failure(error.status_code, message), error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        name = request.scope.get("request_id", "")
        log.error("request %s failed; its traceback follows", name)
        return answer(request, 500, failure(500, f"the server failed at this request; its log names {name}"))
