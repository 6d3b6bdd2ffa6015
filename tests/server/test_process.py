"""`memdec-edge serve` as a process: it listens, ends on signals, and says in one line what is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Family
from tests.support.command import COMMAND, error_of

PATIENCE = 60.0


class Process:
    """A running server and its stderr."""

    def __init__(self, *arguments: object) -> None:
        self.child = subprocess.Popen(
            [*COMMAND, "serve", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stderr
        self.lines.extend(iter(self.child.stderr.readline, ""))

    def line(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            time.sleep(0.01)
        raise AssertionError(f"no line like {pattern}: {self.lines}")

    def end(self) -> int:
        code = self.child.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.child.stderr
        self.child.stderr.close()
        return code


@contextmanager
def running(*arguments: object) -> Iterator[tuple[Process, str]]:
    process = Process(*arguments)
    try:
        yield process, process.line(r"listening on (http://\S+);")[1]
    finally:
        if process.child.poll() is None:
            process.child.kill()
            process.end()


def ask(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_server_answers_and_a_signal_lets_what_runs_finish(family: Family) -> None:
    with running("-m", family.base, "-M", family.memory, "--port", 0, "-c", 512, "-t", 1, "-np", 2) as (process, url):
        body = {"prompt": "Anaemia", "n_predict": 300, "ignore_eos": True, "temperature": 0}
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(ask(f"{url}/completion", body)))
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while not any(slot["is_processing"] for slot in json.loads(urllib.request.urlopen(f"{url}/slots").read())):
            assert time.monotonic() < deadline
            if found:
                break
        process.child.send_signal(signal.SIGTERM)
        thread.join(PATIENCE)
        assert found[0]["tokens_predicted"] == 300
        assert process.end() == 0
    assert not [line for line in process.lines if "Traceback" in line or "Error" in line], process.lines
    assert any("POST /completion 200" in line for line in process.lines)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_stream_that_takes_longer_than_the_grace_is_told(family: Family) -> None:
    with running("-m", family.base, "--port", 0, "-t", 1, "--grace", 0) as (process, url):
        body = {"prompt": "Anaemia", "ignore_eos": True, "stream": True, "n_predict": 490}
        request = urllib.request.Request(
            f"{url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answer.readline()
            process.child.send_signal(signal.SIGINT)
            rest = answer.read().decode()
        assert "about to end" in rest or '"stop":true' in rest
        assert process.end() == 0
    assert not [line for line in process.lines if "Traceback" in line], process.lines


def test_what_is_wrong_is_said_in_one_line(family: Family, tmp_path: Path) -> None:
    assert "no such" in error_of("serve", "-m", tmp_path / "absent.gguf", "--port", 0)
    assert "does not match" in error_of("serve", "-m", family.base, "-M", family.stranger, "--port", 0)
    assert "--host is 300.0.0.1" in error_of("serve", "-m", family.base, "--host", "300.0.0.1", code=2)
    assert "--memory-dir" in error_of("serve", "-m", family.base, "--memory-dir", tmp_path / "none", code=2)
    assert "--batch-size is 2: must be at least --parallel, 4" in error_of("serve", "-m", family.base, "-b", 2, code=2)


def test_a_port_that_is_taken_is_named(family: Family) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = error_of("serve", "-m", family.base, "--port", port, code=2)
    assert line.startswith(f"--port is {port}: cannot listen there")


def test_while_the_model_loads_health_says_so(family: Family) -> None:
    from memdec_edge.api import open_model
    from memdec_edge.options import ServerOptions
    from memdec_edge.server.run import Server
    from memdec_edge.server.service import Service
    from tests.support.web import Web

    go = threading.Event()

    def load() -> Any:
        assert go.wait(PATIENCE)
        return open_model(family.base)

    service = Service(load, ServerOptions(port=0))
    server = Server(service)
    web = Web(service, int(server.url.rpartition(":")[2]))
    thread = threading.Thread(target=server.run_here)
    thread.start()
    try:
        for answer in (web.get("/health"), web.post("/v1/completions", {"prompt": "x"}), web.get("/v1/models")):
            assert (answer.status, answer.body["error"]["type"]) == (503, "unavailable_error")
        go.set()
        deadline = time.monotonic() + PATIENCE
        while web.get("/health").status != 200:
            assert time.monotonic() < deadline
        assert web.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status == 200
    finally:
        go.set()
        server.stop()
        thread.join(PATIENCE)
