"""Errors as answers: OpenAI's shape with llama.cpp's fields beside it, and Anthropic's for its own routes.

Knows nothing of what fails.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from memdec_edge.errors import ContextError, MemdecError, OptionError, OverloadError
from memdec_edge.server.settings import NAMES

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 413: "invalid_request_error", 429: "rate_limit_error", 501: "not_supported_error",
    503: "unavailable_error",
}  # fmt: skip
ANTHROPIC = {413: "request_too_large", 503: "overloaded_error", 500: "api_error"}


def failure(
    status: int, message: str, *, code: str | None = None, param: str | None = None, **more: Any
) -> dict[str, Any]:
    """The body of an error."""
    kind = more.pop("kind", None) or TYPES.get(status, "server_error")
    shown = [text and text.encode("utf-8", "backslashreplace").decode() for text in (message, param)]  # half surrogates
    return {"error": {"message": shown[0], "type": kind, "param": shown[1], "code": code, **more}}


def failure_of(error: MemdecError) -> tuple[int, dict[str, Any]]:
    """The status and the body for an error of this package, which names fields as requests do."""
    status = error.http_status
    if isinstance(error, ContextError):
        message = (
            f"the prompt has {error.prompt} tokens, which exceeds the available context size: this model's maximum "
            f"context length is {error.n_ctx} tokens; shorten the prompt, or start the server with a larger --ctx-size"
        )
        return status, failure(
            status, message, code="context_length_exceeded", param="messages", kind="exceed_context_size_error",
            n_prompt_tokens=error.prompt, n_ctx=error.n_ctx,
        )  # fmt: skip
    message = error.spelled(NAMES)
    if isinstance(error, OptionError):
        field = NAMES.get(error.field, error.field)
        return status, failure(status, message, code="invalid_value", param=field)
    if isinstance(error, OverloadError):
        return status, failure(status, message, code="rate_limit_exceeded")
    return status, failure(status, message)


def headers_of(error: MemdecError) -> Mapping[str, str]:
    """What the answer says beside its body."""
    return {"Retry-After": str(error.retry_after)} if isinstance(error, OverloadError) else {}


def as_anthropic(status: int, body: Mapping[str, Any]) -> dict[str, Any]:
    """The same error as Anthropic's clients expect it."""
    inner = dict(body["error"])
    inner["type"] = ANTHROPIC.get(status, TYPES.get(status, "api_error"))
    return {"type": "error", "error": {"type": inner.pop("type"), "message": inner.pop("message")}}


def answer(request: Request, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response, in the shape of the route that was asked."""
    shown = as_anthropic(status, body) if is_anthropic(request.url.path) else body
    return JSONResponse(shown, status, dict(headers or {}))


def is_anthropic(path: str) -> bool:
    """Whether a route is one of Anthropic's."""
    return path.removeprefix("/v1").startswith("/messages")


def problem_of(errors: Sequence[Any]) -> tuple[str, str | None]:
    """What is wrong with a body that does not fit its schema: a sentence, and the field."""
    first = errors[0] if errors else {}
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body")
    message = str(first.get("msg", "it does not fit"))
    return f"{where or 'the body'}: {message[:1].lower()}{message[1:]}; see docs/server.md", where or None
