"""Servers of a load test, each a process of its own: ours, llama.cpp's, and llama-cpp-python's. Knows no load.

llama.cpp's own comes from the package xllamacpp, in the environment of another Python; server_judge.py starts it.
llama-cpp-python's needs its extra [server]; where that is not installed it is left out, with a line that says so.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import llama_cpp

OURS, MIXED, PLAIN, LLAMA_SERVER, PYTHON = (
    "ours, base",
    "ours, base + memory",
    "ours, base + memory, no drafts",
    "llama-server",
    "llama-cpp-python",
)
PATIENCE = 120.0  # seconds until a server answers
BATCH = 512  # tokens


@dataclass
class Server:
    """A server that runs. body: what its requests say beside OpenAI's fields."""

    name: str
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    build: str = ""
    body: dict[str, Any] = field(default_factory=dict)

    def wait(self) -> None:
        """Return once it answers."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if httpx2.get(f"{self.url}/v1/models", timeout=5).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"{self.name} does not start: {self.said}")

    @property
    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-800:]


@dataclass(frozen=True)
class Settings:
    """What all servers have in common. context: tokens of all streams together; slots: streams."""

    base: Path
    memory: Path
    threads: int
    context: int
    slots: int
    real: str  # a Python that has xllamacpp; empty: none
    python: str  # one that has llama-cpp-python's server
    eog: tuple[int, ...]  # tokens that end a text


def commands(settings: Settings, say: Callable[[str], object]) -> dict[str, list[str]]:
    """The command of each server that can be started, without its port; `say` is told of the others."""
    threads, context, slots = (str(n) for n in (settings.threads, settings.context, settings.slots))
    ours = [sys.executable, "-m", "memdec_edge", "serve", "-m", str(settings.base), "-t", threads, "-c", context,
            "-np", slots, "-b", str(BATCH), "--grace", "0"]  # fmt: skip
    mixed = [*ours, "-M", str(settings.memory)]
    found = {OURS: ours, MIXED: mixed, PLAIN: [*mixed, "--draft", "0"]}
    if settings.real:
        judge = Path(__file__).with_name("server_judge.py")
        found[LLAMA_SERVER] = [
            settings.real, str(judge), "--model", str(settings.base), "--be", "real", "--kv-unified", "--threads",
            threads, "--ctx-size", context, "--parallel", slots, "--batch-size", str(BATCH), "--host", "127.0.0.1",
        ]  # fmt: skip
    else:
        say("llama-server is left out: give a Python that has xllamacpp as --real")
    tried = subprocess.run(
        [settings.python, "-c", "import llama_cpp.server.app"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        reason = tried.stderr.strip().rpartition("\n")[2]
        say(f"llama-cpp-python's server is left out ({reason}): pip install 'llama-cpp-python[server]'")
    else:
        found[PYTHON] = [
            settings.python, "-m", "llama_cpp.server", "--model", str(settings.base), "--n_threads", threads,
            "--n_threads_batch", threads, "--n_ctx", str(settings.context // 2), "--n_batch", str(BATCH),
            "--flash_attn", "true", "--interrupt_requests", "false", "--verbose", "false", "--host", "127.0.0.1",
        ]  # fmt: skip
    return found


def build_of(name: str, python: str, real: str) -> str:
    """Package, version and instruction sets of the llama.cpp behind a server."""
    code = "import importlib.metadata as m, llama_cpp as l; print(m.version('llama_cpp_python'), l.llama_print_system_info().decode())"  # noqa: E501
    package = "llama-cpp-python"
    if name == LLAMA_SERVER:
        package, python = "xllamacpp", real
        code = "import importlib.metadata as m, xllamacpp as x; print(m.version('xllamacpp'), x.get_system_info())"
    if name not in (LLAMA_SERVER, PYTHON):
        own = llama_cpp.llama_print_system_info().decode()
        return f"memdec-edge {version('memdec-edge')}, {package} {version('llama-cpp-python')} {own}"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return f"{package} {done.stdout.strip() or done.stderr.strip().rpartition(chr(10))[2]}"


@contextmanager
def running(settings: Settings, say: Callable[[str], object]) -> Iterator[dict[str, Server]]:
    """All servers, one port each. They end with the block."""
    servers: dict[str, Server] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, command in commands(settings, say).items():
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                log = Path(folder) / f"{len(servers)}.log"
                with log.open("wb") as file:
                    process = subprocess.Popen([*command, "--port", str(port)], stdout=file, stderr=file)
                server = Server(name, f"http://127.0.0.1:{port}", process, log)
                servers[name] = server
                server.wait()
                server.build = build_of(name, settings.python, settings.real)
                # llama-cpp-python's server knows no ignore_eos.
                server.body = {"logit_bias": {str(token): -100 for token in settings.eog}}
                if name != PYTHON:
                    server.body = {"ignore_eos": True}
            yield servers
        finally:
            for server in servers.values():
                server.process.send_signal(signal.SIGTERM)
            for server in servers.values():
                try:
                    server.process.wait(10)
                except subprocess.TimeoutExpired:
                    os.kill(server.process.pid, signal.SIGKILL)
                    server.process.wait()
