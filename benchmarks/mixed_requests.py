"""Mixed requests at a server, and clients that vanish: is any lost, does any fail, does memory grow?

    python benchmarks/mixed_requests.py BASE.gguf MEMORY.gguf [--count 2000] [--workers 12]

Starts `memdec-edge serve` and asks it from several threads at a time: short and long prompts, streams, schemas, tools,
log-probs; malformed, oversized and without a valid key; and clients that leave at once, in the middle of a stream, or
by kill -9. The order is drawn from --seed. Every request must come to the end that its kind has: an answer with the
right status, or our own leaving. Afterwards every slot and cell must be free. Resident memory may grow by 2 % over the
second half of the requests; the first some hundred fill the allocator's arenas. Exits with 1 where one of this does not
hold. The last line is one JSON object.
"""

import argparse
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

KEY = "the right one"
HEADERS = {"X-Api-Key": KEY, "Content-Type": "application/json"}
PATIENCE = 300.0  # seconds for one request
MOST_BODY = 1 << 18  # bytes that the server takes
GROWTH = 0.02  # of resident memory that is let pass
WORDS = [
    "heart",
    "blood",
    "a",
    "fever",
    "the",
    "lungs",
    "of",
    "disease",
    "with",
    "is",
    "no",
    "iron",
    "in",
    "red",
    "cells",
]
CLIENT = """import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=300)
connection.request("POST", "/completion", sys.argv[2], {"X-Api-Key": sys.argv[3], "Content-Type": "application/json"})
answer = connection.getresponse()
while answer.read1(64):
    print("more", flush=True)
"""
MALFORMED: list[tuple[str, Any]] = [
    ("/v1/chat/completions", {"messages": [{}]}),
    ("/v1/chat/completions", {"messages": "hello"}),
    ("/v1/chat/completions", b'{"messages": ['),
    ("/v1/completions", {"prompt": [-1]}),
    ("/v1/completions", {"prompt": "x", "temperature": "hot"}),
    ("/v1/completions", {"prompt": "x", "grammar": "root ::= ("}),
    ("/v1/completions", {"prompt": "x", "memory": [{"id": 99}]}),
    ("/completion", {"prompt": None}),
    ("/v1/messages", {"max_tokens": 3}),
    ("/memories", {"load": "../x.gguf"}),
]


class Server:
    """A server that runs, and what it wrote."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen([sys.executable, "-m", "memdec_edge", "serve", *command], stderr=file)
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+);", log.read_text("utf-8"))):
            if self.process.poll() is not None:
                raise SystemExit(log.read_text("utf-8"))
            time.sleep(0.05)
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: Any = None, key: str = KEY) -> tuple[int, str]:
        """Status and text of an answer."""
        connection = self.connect()
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, HEADERS | {"X-Api-Key": key})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def figures(self) -> dict[str, float]:
        """What /metrics says, without the prefix."""
        lines = (line.split(" ") for line in self.ask("GET", "/metrics")[1].splitlines() if not line.startswith("#"))
        return {name.partition(":")[2]: float(value) for name, value in lines}

    @property
    def resident(self) -> float:
        """Memory, MB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6


class Kinds:
    """Requests of every kind. Each method returns how one ended: a status, or "left"."""

    def __init__(self, server: Server, longest: int) -> None:
        self.server, self._longest = server, longest
        self.expected: dict[str, tuple[Callable[[random.Random], int | str], int | str]] = {
            "short": (self.short, 200), "chat": (self.chat, 200), "stream": (self.stream, 200),
            "long": (self.long, 200), "several": (self.several, 200), "schema": (self.schema, 200),
            "tools": (self.tools, 200), "echo": (self.echo, 200), "malformed": (self.malformed, 400),
            "too many tokens": (self.too_many, 400), "too many bytes": (self.too_large, 413),
            "wrong key": (self.wrong_key, 401), "leaves at once": (self.leave_at_once, "left"),
            "leaves a stream": (self.leave_stream, "left"), "killed": (self.killed, "left"),
        }  # fmt: skip

    def _words(self, rng: random.Random, most: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))

    def _memory(self, rng: random.Random) -> Any:
        return rng.choice(["auto", "none", 0.4, [{"id": 0, "lambda": 0.7}]])

    def _post(self, path: str, body: Any) -> int:
        return self.server.ask("POST", path, body)[0]

    def _chat(self, rng: random.Random, **more: Any) -> int:
        messages = [{"role": "user", "content": self._words(rng, 30)}]
        return self._post("/v1/chat/completions", {"messages": messages, "memory": self._memory(rng)} | more)

    def short(self, rng: random.Random) -> int:
        return self._post("/v1/completions", {"prompt": self._words(rng, 8), "max_tokens": 4, "logprobs": 2})

    def chat(self, rng: random.Random) -> int:
        return self._chat(rng, max_tokens=rng.randint(0, 40))

    def stream(self, rng: random.Random) -> int | str:
        body = {"prompt": self._words(rng, 20), "n_predict": 30, "stream": True, "ignore_eos": True}
        status, text = self.server.ask("POST", "/completion", body | {"memory": self._memory(rng)})
        return status if '"stop":true' in text else f"{status}, a stream without an end"

    def long(self, rng: random.Random) -> int:
        prompt = [rng.randint(5, 300) for _ in range(int(self._longest * rng.uniform(0.2, 0.6)))]
        return self._post("/v1/completions", {"prompt": prompt, "max_tokens": 4, "memory": self._memory(rng)})

    def several(self, rng: random.Random) -> int:
        return self._chat(rng, n=3, max_tokens=8, temperature=1.5)

    def schema(self, rng: random.Random) -> int:
        return self._chat(rng, max_tokens=16, response_format={"type": "json_object"})

    def tools(self, rng: random.Random) -> int:
        tools = [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "boolean"}}}}]
        messages = [{"role": "user", "content": self._words(rng, 9)}]
        asked = {"messages": messages, "max_tokens": 16, "tools": tools, "tool_choice": {"type": "any"}}
        return self._post("/v1/messages", asked)

    def echo(self, rng: random.Random) -> int:
        return self._post(
            "/v1/completions", {"prompt": self._words(rng, 30), "max_tokens": 1, "echo": True, "logprobs": 1}
        )

    def malformed(self, rng: random.Random) -> int:
        return self._post(*rng.choice(MALFORMED))

    def too_many(self, rng: random.Random) -> int:
        return self._post("/v1/completions", {"prompt": [5] * (self._longest + rng.randint(0, 99))})

    def too_large(self, rng: random.Random) -> int:
        return self._post("/v1/completions", {"prompt": "x" * (MOST_BODY + rng.randint(1, 999))})

    def wrong_key(self, rng: random.Random) -> int:
        return self.server.ask("POST", "/v1/completions", {"prompt": "x"}, rng.choice(["", "wrong", KEY[:-1]]))[0]

    def _endless(self, rng: random.Random) -> bytes:
        return json.dumps({"prompt": self._words(rng, 60), "ignore_eos": True, "stream": rng.random() < 0.7}).encode()

    def leave_at_once(self, rng: random.Random) -> str:
        connection = self.server.connect()
        connection.request("POST", "/completion", self._endless(rng), HEADERS)
        time.sleep(rng.random() * 0.2)
        connection.close()
        return "left"

    def leave_stream(self, rng: random.Random) -> str:
        body = {"prompt": self._words(rng, 20), "ignore_eos": True, "stream": True}
        connection = self.server.connect()
        connection.request("POST", "/completion", json.dumps(body).encode(), HEADERS)
        answer = connection.getresponse()
        for _ in range(rng.randint(1, 6)):
            answer.readline()
        answer.close()  # it keeps the socket open by itself
        connection.close()
        return "left"

    def killed(self, rng: random.Random) -> str:
        """A client in a process of its own, which is killed before or after its first token."""
        body = self._endless(rng)
        command = [sys.executable, "-SE", "-c", CLIENT, str(self.server.port), body.decode(), KEY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
            assert client.stdout
            if b'"stream": true' in body and rng.random() < 0.5:
                client.stdout.readline()
            else:
                time.sleep(rng.random() * 0.5)
            client.kill()
        return "left"


def storm(kinds: Kinds, count: int, workers: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str], list[float]]:
    """Ask `count` requests; return how often each kind ended how, what went wrong, and resident memory, MB."""
    rng = random.Random(seed)
    order = [rng.choice(list(kinds.expected)) for _ in range(count)]
    ended, wrong, resident, lock = Counter[tuple[str, str]](), list[str](), list[float](), threading.Lock()
    numbers = iter(range(count))

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
                if number is not None and number % max(count // 8, 1) == 0:
                    resident.append(kinds.server.resident)
            if number is None:
                return
            kind = order[number]
            run, expected = kinds.expected[kind]
            try:
                found: int | str = run(random.Random(f"{seed} {number}"))
            except Exception as error:
                found = repr(error)
            with lock:
                ended[kind, str(found)] += 1
                if found != expected:
                    wrong.append(f"request {number}, {kind}: {found}")

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended, wrong, resident


def left_over(server: Server, n_ctx: int) -> list[str]:
    """What is taken although nothing runs any more."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        figures = server.figures()
        busy = [slot["id"] for slot in json.loads(server.ask("GET", "/slots")[1]) if slot["is_processing"]]
        found = [f"slot {slot} is busy" for slot in busy]
        found += [f"{n_ctx - figures['kv_cells_free']:.0f} cells"] if figures["kv_cells_free"] != n_ctx else []
        found += [name for name in ("requests_processing", "requests_deferred") if figures[name]]
        if not found:
            return []
        time.sleep(0.1)
    return found


def main() -> None:
    """Serve, ask, look, and say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--ctx-size", type=int, default=2048)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = ["-m", given.base, "-M", given.memory, "--port", 0, "--api-key", KEY, "-c", given.ctx_size, "-np", 4,
                   "-t", given.threads, "--queue", 256, "--max-body", MOST_BODY, "--memory-dir", folder]  # fmt: skip
        server = Server([str(part) for part in command], Path(folder) / "log")
        try:
            props = json.loads(server.ask("GET", "/props")[1])
            kinds = Kinds(server, props["default_generation_settings"]["n_ctx"])
            begin = time.monotonic()
            ended, wrong, resident = storm(kinds, given.count, given.workers, given.seed)
            seconds = time.monotonic() - begin
            wrong += left_over(server, props["n_ctx"])
            figures = server.figures()
            resident.append(server.resident)
        finally:
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait()
        log = server.log.read_text("utf-8", "replace")
    wrong += [f"the server ended with {code}"] if code else []
    wrong += [line for line in log.splitlines() if "Traceback" in line or "failed" in line][:10]
    wrong += [f"{figures['requests_failed_total']:.0f} streams failed"] if figures["requests_failed_total"] else []
    growth = resident[-1] / resident[len(resident) // 2] - 1
    for (kind, end), times in sorted(ended.items()):
        print(f"{kind:18} {end:10} {times:6}")
    print(f"resident MB: {' '.join(f'{one:.1f}' for one in resident)}; from half on {growth:+.1%}")
    print("\n".join(wrong) or "nothing went wrong")
    names = ("requests_finished", "requests_cancelled", "requests_suspended", "requests_refused")
    result = {
        "benchmark": "mixed_requests", "requests": given.count, "seconds": seconds, "wrong": wrong,
        "killed": ended["killed", "left"], "resident_mb": resident, "growth": growth,
        **{name: figures[f"{name}_total"] for name in names},
    }  # fmt: skip
    print(json.dumps(result))
    sys.exit(bool(wrong or (given.count >= 1000 and growth > GROWTH)))


if __name__ == "__main__":
    main()
