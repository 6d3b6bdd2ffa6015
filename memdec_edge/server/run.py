"""The process around the app: a socket, uvicorn, signals. SIGTERM and Ctrl-C let what runs come to its end.

Knows nothing of routes.
"""

import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from memdec_edge.errors import OptionError
from memdec_edge.notes import note
from memdec_edge.options import ServerOptions
from memdec_edge.server.app import make_app
from memdec_edge.server.service import Service

KEEP_ALIVE = 30  # seconds that a connection may be idle
LATE = 5  # seconds after the grace in which the last bytes leave


class Server(uvicorn.Server):
    """Serves one service. `url` is where; a second signal ends it at once."""

    def __init__(self, service: Service) -> None:
        """Raises OptionError for an address that cannot be had, and what make_app() raises."""
        self.service, options = service, service.options
        app = make_app(service)
        self._socket = listen(options)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        super().__init__(
            uvicorn.Config(
                app, log_level="warning", access_log=False, lifespan="on", timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=options.grace + LATE, server_header=False, ws="none",
            )
        )  # fmt: skip

    def run_here(self) -> None:
        """Serve until a signal or stop(), which is no error. Raises that for which the model cannot be opened."""
        try:
            self.run(sockets=[self._socket])
        except KeyboardInterrupt:  # uvicorn passes the signal on once it has ended
            pass
        finally:
            self._socket.close()
            self.service.close()
        if self.service.failure:
            raise self.service.failure

    def stop(self) -> None:
        """End as after a signal; for other threads."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let streams end by themselves, or by the scheduler's word, before connections are closed."""
        self.service.drain()
        await super().shutdown(sockets)


def listen(options: ServerOptions) -> socket.socket:
    """A socket that listens. Raises OptionError where the address is none or taken."""
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        field = "host" if isinstance(error, socket.gaierror) else "port"
        raise OptionError(field, getattr(options, field), f"cannot listen there ({reason}); choose another") from error


def serve(service: Service, told: Callable[[str], Any] = note) -> None:
    """Serve until a signal ends it; `told` is given what a person wants to know. Errors: see Server."""
    server = Server(service)

    def opened() -> None:
        if service.failure:
            server.stop()
        else:
            told(f"listening on {server.url}; Ctrl-C ends it")

    service.when_open = opened
    server.run_here()
