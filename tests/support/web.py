"""A server in this process, on a port of its own, and plain HTTP to it: real sockets, no client library between.

Knows nothing of what a test asks.
"""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from memdec_edge.api import LanguageModel
from memdec_edge.options import ChatOptions, ServerOptions
from memdec_edge.server.run import Server
from memdec_edge.server.service import Service
from memdec_edge.server.settings import Defaults

PATIENCE = 30.0  # seconds


class Answer(NamedTuple):
    """What came back; body: as JSON where it is some, else text."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Web:
    """Requests to one server."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            given = {"Content-Type": "application/json"} | dict(headers or {})
            connection.request(method, path, data, given)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        found = {key.lower(): value for key, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return Answer(response.status, found, json.loads(text) if is_json else text)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def lines(self, path: str, body: Any) -> list[str]:
        """The lines of a stream of events, empty ones left out."""
        answer = self.post(path, body | {"stream": True})
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line for line in str(answer.body).splitlines() if line]

    def events(self, path: str, body: Any) -> list[Any]:
        """The data of a stream of events, [DONE] left out."""
        data = [line.removeprefix("data: ") for line in self.lines(path, body) if line.startswith("data: ")]
        return [json.loads(one) for one in data if one != "[DONE]"]

    @contextmanager
    def open_request(self, path: str, body: Any) -> Iterator[http.client.HTTPConnection]:
        """A request that was sent, and whose connection is closed afterwards, answered or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            yield connection
        finally:
            connection.close()

    def until(self, condition: Any, what: str = "the condition") -> None:
        """Wait until a function of the scheduler returns something true."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.service.scheduler):
            assert time.monotonic() < deadline, f"{what} never came"
            time.sleep(0.002)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The scheduler takes no turn: what has a slot keeps it, and what comes waits."""
        go, held = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            go.wait(PATIENCE)

        done = self.service.scheduler.call(hold)
        assert held.wait(PATIENCE)
        try:
            yield
        finally:
            go.set()
            done.result(PATIENCE)

    def until_idle(self) -> None:
        """Wait until no slot is taken, and check that nothing is left of anything."""
        self.until(lambda scheduler: not scheduler.active and not scheduler.waiting, "an idle server")
        engine = self.service.model.engine
        done = self.service.scheduler.call(lambda: (engine.cells.free, sorted(engine.cells._idle)))
        assert done.result(PATIENCE) == (engine.n_ctx, list(range(engine.cells.n_seq)))


@contextmanager
def serving(
    model: LanguageModel,
    options: ServerOptions | None = None,
    defaults: Defaults | None = None,
    chat: ChatOptions | None = None,
) -> Iterator[Web]:
    """A server of `model`, which is closed with it."""
    from dataclasses import replace

    service = Service(lambda: model, replace(options or ServerOptions(), port=0, grace=5), defaults, chat)
    server = Server(service)
    thread = threading.Thread(target=server.run_here, name="test-server")
    thread.start()
    try:
        deadline = time.monotonic() + PATIENCE
        while not (service.ready and server.started):
            assert time.monotonic() < deadline, f"the server did not start: {service.failure}"
            time.sleep(0.005)
        yield Web(service, int(server.url.rpartition(":")[2]))
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()
