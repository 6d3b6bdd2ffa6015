"""What stands before all routes: hosts, origins, keys, sizes, headers, and one line in the log for each request.

A web page of a stranger can make a browser send requests to this machine, under a name that it lets point here. So
names of other hosts are refused, unless a key is needed on a public address, and so are requests of foreign pages.
Knows nothing of what routes do.
"""

import hmac
import ipaddress
import os
import re
import secrets
import socket
import time
from hashlib import sha256

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memdec_edge.errors import MissingFileError, OptionError
from memdec_edge.notes import note
from memdec_edge.options import ServerOptions
from memdec_edge.server.failures import answer, failure
from memdec_edge.server.page import is_page
from memdec_edge.server.service import LOADING, Service

LOCAL = re.compile(r"https?://(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?")
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
KEYS = "MEMDEC_API_KEY"  # in the environment, with commas between several
OPEN = ("/health", "/v1/health")  # routes without a key
WITHOUT_MODEL = (*OPEN, "/openapi.json")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def keys_of(options: ServerOptions) -> list[str]:
    """The keys of options, file and environment. Raises MissingFileError, OptionError for an empty file."""
    keys = [key for given in options.api_keys for key in given.split(",")]
    keys += os.environ.get(KEYS, "").split(",")
    if options.api_key_file is not None:
        try:
            lines = options.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise MissingFileError(options.api_key_file, "file of keys") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise OptionError("api_key_file", options.api_key_file, "has no key; write one on a line")
        keys += found
    return [key.strip() for key in keys if key.strip()]


def is_private(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service, self._options = app, service, service.options
        self._keys = [_digest(key) for key in keys_of(self._options)]
        self._private = is_private(self._options.host)
        self._hosts = {*LOCAL_HOSTS, *(name.lower() for name in self._options.hosts)}
        if not self._private:
            self._hosts |= {socket.gethostname().lower(), f"{socket.gethostname()}.local".lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name, begin, status = secrets.token_hex(6), time.perf_counter(), [0]
        headers = Headers(scope=scope)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                found = MutableHeaders(scope=message)
                found["X-Request-Id"] = name
                for key, value in HEADERS.items():
                    found.setdefault(key, value)
            await send(message)

        scope["request_id"] = name
        try:
            refused = self._refused(scope, headers)
            if refused:
                code, message = refused
                body = failure(code, message, code="invalid_api_key" if code == 401 else None)
                await answer(Request(scope), code, body)(scope, receive, marked)
                return
            await self._app(scope, self._counted(receive), marked)
        finally:
            seconds = time.perf_counter() - begin
            note(f"{name} {scope['method']} {scope['path']} {status[0] or 'left'} {1e3 * seconds:.0f} ms")

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """The status and the reason for which a request goes no further."""
        host = headers.get("host", "").lower()
        if not self._serves(re.sub(r":\d+$", "", host)):
            return 403, f"the host {host or 'without a name'} is not served here; start the server with --allowed-host"
        origin = headers.get("origin")
        if origin and scope["method"] != "OPTIONS" and not self.allows(origin, headers):
            return 403, f"pages of {origin} may not call this server; start it with --cors-origin"
        path = scope["path"]
        is_open = path in OPEN or is_page(path, headers.get("accept", ""))
        if self._keys and not is_open and scope["method"] != "OPTIONS" and not self._knows(headers):
            return 401, "Invalid API Key: send one as Authorization: Bearer KEY"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._options.max_body:
            return 413, f"the body has {length} bytes, more than {self._options.max_body}; send less at a time"
        if not self._service.ready and path not in WITHOUT_MODEL and not is_open:
            return 503, LOADING
        return None

    def _serves(self, host: str) -> bool:
        """Whether a name is this server's. On a public address an IP address is, and any name where keys are needed."""
        if host in self._hosts:
            return True
        return not self._private and ((bool(self._keys) and not self._options.hosts) or _is_address(host))

    def allows(self, origin: str, headers: Headers) -> bool:
        """Whether pages of an origin may call: this server's own, those of this machine, and those that are named."""
        own = origin.partition("://")[2] == headers.get("host")
        return own or bool(LOCAL.fullmatch(origin)) or origin in self._options.origins

    def _knows(self, headers: Headers) -> bool:
        """Whether a request carries a key; every key is compared, each in constant time."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = _digest(token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", ""))
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0  # all of them, whichever fits

    def _counted(self, receive: Receive) -> Receive:
        """Receive a body, as long as it is no longer than may be: one without a length too."""
        count = 0

        async def counted() -> Message:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._options.max_body:
                raise HTTPException(413, f"the body has more than {self._options.max_body} bytes; send less at a time")
            return message

        return counted


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        return False


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
