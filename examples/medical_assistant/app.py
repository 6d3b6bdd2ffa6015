"""Questions of medicine in the browser: the base's own answer, and the one with a memory, side by side as they come.

    pip install 'memdec-edge[demo]' fastapi uvicorn && memdec-edge demo
    python examples/medical_assistant/app.py
    python examples/medical_assistant/app.py base.gguf memdec-medicine.gguf --port 8001

Without files it takes the demo's. It serves this machine alone, and index.html is all that a browser loads.
"""

import argparse
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from memdec_edge import (
    GenerationOptions,
    LanguageModel,
    LoadOptions,
    MemdecError,
    OptionError,
    SamplingOptions,
    open_model,
)
from memdec_edge.api.results import Chunk
from memdec_edge.workflow.demo import demo_base, demo_memory

SYSTEM = {"role": "system", "content": "You explain medical terms in a few plain sentences. You are no doctor."}
ROOM = GenerationOptions(n_predict=200)  # tokens of an answer
SOBER = SamplingOptions(temperature=0.3, repeat_penalty=1.1)
TWO_QUESTIONS = LoadOptions(n_ctx=2048, n_seq=4)  # at a time: each takes two slots

Answers = AsyncGenerator[tuple[int, Chunk], None]


def line(number: int, chunk: Chunk) -> str:
    """What the page reads: whose text it is, and how far the memory is behind it, 0 to 1."""
    side = "memory" if number else "base"
    return json.dumps({"side": side, "text": chunk.text, "share": chunk.share, "end": chunk.finish_reason}) + "\n"


async def lines(first: tuple[int, Chunk], answers: Answers) -> AsyncGenerator[str, None]:
    """All chunks, one a line. A page that is closed meanwhile stops the work and frees both slots."""
    async with aclosing(answers):
        yield line(*first)
        try:
            async for number, chunk in answers:
                yield line(number, chunk)
        except MemdecError as error:  # the response has begun: its status cannot tell
            yield json.dumps({"error": str(error)}) + "\n"


def make_app(model: LanguageModel) -> FastAPI:
    app = FastAPI(title="Medical assistant", docs_url=None, redoc_url=None)  # those load scripts from elsewhere
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(Path(__file__).with_name("index.html"))

    @app.post("/ask")
    async def ask(body: dict[str, Any]) -> StreamingResponse:
        """Answer {"messages": [...]}, roles and contents as OpenAI has them."""
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise OptionError("messages", messages, "send a list with one message or more")
        answers = model.aside_by_side([SYSTEM, *messages], sampling=SOBER, generation=ROOM)
        first = await anext(answers)  # what is refused is so before the response begins
        return StreamingResponse(lines(first, answers), media_type="application/x-ndjson")

    @app.exception_handler(MemdecError)
    def refuse(_: Request, error: MemdecError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=error.http_status)

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", help="GGUF of the base model; default: the demo's")
    parser.add_argument("memories", nargs="*", help="GGUF files of memories and indexes; default: the demo's memory")
    parser.add_argument("--port", type=int, default=8000, help="0: one that is free")
    args = parser.parse_args()
    if not 0 <= args.port < 1 << 16:
        raise OptionError("port", args.port, "must be from 0 to 65535")
    base, memories = args.base or demo_base(), args.memories or [demo_memory("medicine")]
    with open_model(base, memories, TWO_QUESTIONS) as model:
        model.template()  # a base without one ends here, not at the first question
        uvicorn.run(make_app(model), host="127.0.0.1", port=args.port)


if __name__ == "__main__":
    try:
        main()
    except MemdecError as error:
        sys.exit(f"Error: {error}")
