"""The page at `/`: files for a browser, and which requests are for them. Knows nothing of models and routes.

The page's scripts use the public routes, as any client does. Its policy lets it load nothing from elsewhere, and lets
no script turn text into HTML: what a model writes stays text.
"""

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = {path.name: path for path in sorted(Path(__file__).parent.iterdir()) if path.suffix in KINDS}
FOLDER = "/page/"  # where files of the page are, beside index.html
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-cache",
    "Vary": "Accept",
}


def is_page(path: str, accept: str) -> bool:
    """Whether a request is for a file of the page, which needs neither key nor model. accept: its header."""
    return (path == "/" and "text/html" in accept) or (path.startswith(FOLDER) and path[len(FOLDER) :] in FILES)


def router() -> APIRouter:
    """The routes of the page. `/` is none for a client that accepts no HTML."""
    routes = APIRouter()

    async def index(request: Request) -> Response:
        if not is_page("/", request.headers.get("accept", "")):
            raise HTTPException(404)
        return _file("index.html")

    async def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return _file(name)

    for path, found in (("/", index), (f"{FOLDER}{{name}}", file)):
        routes.add_api_route(path, found, methods=["GET", "HEAD"], include_in_schema=False)
    return routes


def _file(name: str) -> Response:
    path = FILES[name]
    return Response(path.read_bytes(), media_type=KINDS[path.suffix], headers=HEADERS)
