"""Streams side by side: how fast do ours and other servers answer 1, 4, 8 and 16 of them at a time?

    python benchmarks/load.py BASE.gguf MEMORY.gguf TEXT --real PYTHON [--python PYTHON] [--out FILE]

Servers run as processes of their own, with the same base, threads, context and batch (load_servers.py): ours with the
base alone, with base and memory, and the same without drafts; llama.cpp's own (--real names a Python that has
xllamacpp); llama-cpp-python's (--python names one that has its extra [server]; default: this one). Four parts:

1. A mixed load, half short and half long prompts cut from TEXT, 32 to 128 tokens each, for all but the one without
   drafts. Every prompt begins elsewhere, so no cache helps. The servers take turns, and all get the same prompts.
   Figures: generated tokens a second, prompts included; milliseconds to the first token; milliseconds between tokens.
2. Streams that decode all at once: tokens a second while every one of them writes, without drafts, over those of one
   stream. Beside it what the pair's own table of rows allows: N rows in the time of one, base and memory in turn,
   decoded without a server.
3. A prompt of 3,000 tokens that arrives among seven streams: the gap between their tokens before it, and while it is
   read.
4. The builds: versions and instruction sets, which differ.

Tokens that come within 2 ms of each other, as drafted ones do, count as one for gaps. A full run takes about 6 minutes
on two cores with SmolLM2 and needs a machine without other work. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
from load_servers import BATCH, PLAIN, PYTHON, Server, Settings, running
from provenance import made_by

from memdec_edge.documents import read_documents
from memdec_edge.files import atomic_path
from memdec_edge.llama.context import Context, default_threads
from memdec_edge.llama.model import Model
from memdec_edge.options import LoadOptions

SHORT, LONG, WRITTEN = (16, 64), (200, 500), (32, 128)  # tokens, from and to
TOGETHER = 0.002  # seconds
SLOTS, CONTEXT = 16, 16_384
HELD, TIMED = 64, 15  # tokens that each slot holds in the table of rows, and decodes of each number of rows
ROWS_WRITTEN = 48  # tokens of each stream beside it
ARRIVING, BESIDE = 3000, 7  # tokens of the long prompt, and streams beside it
FRESH = httpx2.Limits(max_keepalive_connections=0)  # llama-server may close one that waits for its next request
QUIET = 3.0  # seconds that these streams run before it


@dataclass
class Asked:
    """A request, and when its tokens came."""

    prompt: str
    n_tokens: int
    begin: float = 0.0
    times: list[float] = field(default_factory=list)
    finish: str | None = None

    @property
    def gaps(self) -> list[float]:
        """Seconds between tokens that did not come together."""
        return [gap for before, after in pairwise(self.times) if (gap := after - before) > TOGETHER]


async def ask(client: httpx2.AsyncClient, server: Server, asked: Asked, seed: int) -> None:
    """Stream one completion. Raises SystemExit for an answer that is none."""
    try:
        await stream(client, server, asked, seed)
    except httpx2.TransportError as error:
        raise SystemExit(f"{server.name}: {error}; its log ends: {server.said}") from error


async def stream(client: httpx2.AsyncClient, server: Server, asked: Asked, seed: int) -> None:
    """Ask, and note when each piece of text comes."""
    body = {"prompt": asked.prompt, "max_tokens": asked.n_tokens, "temperature": 0.8, "seed": seed, "stream": True}
    asked.begin = time.perf_counter()
    async with client.stream("POST", f"{server.url}/v1/completions", json=body | server.body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{server.name}: {answer.status_code} {(await answer.aread()).decode()[:300]}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SystemExit(f"{server.name}: {event['error']}")
            for choice in event.get("choices", ()):
                if choice.get("text"):
                    asked.times.append(time.perf_counter())
                asked.finish = choice.get("finish_reason") or asked.finish


async def together(server: Server, every: Sequence[Asked], streams: int, seed: int) -> float:
    """Answer all requests, so many at a time; return the seconds."""
    waiting = list(enumerate(every))[::-1]
    begin = time.perf_counter()
    async with httpx2.AsyncClient(timeout=600, limits=FRESH) as client:

        async def work() -> None:
            while waiting:
                number, asked = waiting.pop()
                await ask(client, server, asked, seed + number)

        await asyncio.gather(*(work() for _ in range(streams)))
    return time.perf_counter() - begin


class Text:
    """Cuts prompts out of documents, each from a place of its own."""

    def __init__(self, model: Model, path: Path) -> None:
        self._model = model
        self._tokens = model.tokenize("\n\n".join(read_documents(path)), add_special=False)

    def cut(self, rng: random.Random, length: int) -> str:
        """A text of about so many tokens."""
        start = rng.randrange(len(self._tokens) - length)
        pieces = map(self._model.piece, self._tokens[start : start + length])
        return b"".join(pieces).decode("utf-8", "ignore").strip()

    def mixed(self, rng: random.Random, count: int) -> list[Asked]:
        """Requests, every other one with a short prompt."""
        lengths = [rng.randint(*(LONG if number % 2 else SHORT)) for number in range(count)]
        return [Asked(self.cut(rng, length), rng.randint(*WRITTEN)) for length in lengths]


# --- the parts ------------------------------------------------------------------------------------------------------


def mixed_load(servers: dict[str, Server], text: Text, streams: Sequence[int], rounds: int) -> dict[str, Any]:
    """Part 1, by server and number of streams."""
    names = [name for name in servers if name != PLAIN]
    rates: dict[tuple[str, int], list[float]] = {}
    answered: dict[tuple[str, int], list[Asked]] = {}
    for number in range(rounds):
        for n in streams:
            for name in names[number % len(names) :] + names[: number % len(names)]:
                every = text.mixed(random.Random(f"{number} {n}"), max(4, n))
                seconds = asyncio.run(together(servers[name], every, n, 1000 * number))
                cut = [asked for asked in every if asked.finish != "length"]
                if cut:
                    raise SystemExit(f"{name}: {len(cut)} answers ended early, by {cut[0].finish}")
                rates.setdefault((name, n), []).append(sum(asked.n_tokens for asked in every) / seconds)
                answered.setdefault((name, n), []).extend(every)
    found: dict[str, Any] = {}
    say("streams  server                        tokens/s   first token ms (95th)   between ms (95th)")
    for n in streams:
        for name in names:
            every = answered[name, n]
            first = [1e3 * (asked.times[0] - asked.begin) for asked in every]
            gaps = [1e3 * gap for asked in every for gap in asked.gaps]
            row = {
                "tokens_per_second": median(rates[name, n]),
                "first_token_ms": median(first),
                "first_token_ms_95": percentile(first, 0.95),
                "gap_ms": median(gaps),
                "gap_ms_95": percentile(gaps, 0.95),
            }
            found.setdefault(name, {})[str(n)] = row
            say(
                f"{n:7}  {name:28} {row['tokens_per_second']:9.1f} {row['first_token_ms']:14.0f} "
                f"({row['first_token_ms_95']:6.0f}) {row['gap_ms']:13.1f} ({row['gap_ms_95']:6.1f})"
            )
    return found


def all_at_once(server: Server, text: Text, streams: Sequence[int], repeats: int) -> dict[int, float]:
    """Part 2: tokens a second while every stream writes, by number of streams."""
    found: dict[int, list[float]] = {}
    for number in range(repeats):
        for n in streams:
            rng = random.Random(f"rows {number} {n}")
            every = [Asked(text.cut(rng, SHORT[0]), ROWS_WRITTEN) for _ in range(n)]
            asyncio.run(together(server, every, n, number))
            begin, end = max(asked.times[0] for asked in every), min(asked.times[-1] for asked in every)
            written = sum(begin < at <= end for asked in every for at in asked.times)
            found.setdefault(n, []).append(written / (end - begin))
    return {n: median(rates) for n, rates in found.items()}


def row_table(path: Path, threads: int, counts: Sequence[int]) -> dict[int, float]:
    """Milliseconds of a decode of so many sequences by one token each, with logits of all."""
    slots = max(counts)
    with closing(Model(path)) as model:
        options = LoadOptions(threads=threads, n_batch=BATCH)
        with closing(Context(model, options, slots * 2 * HELD, n_seq=slots)) as context:
            for slot in range(slots):
                context.prefill([(7 * slot + 3 * at) % 1000 + 100 for at in range(HELD)], slot)
            context.use_threads(0)
            times: dict[int, list[float]] = {count: [] for count in counts}
            for _ in range(TIMED):
                for count in counts:
                    begin = time.perf_counter()
                    context.decode([(slot, [100]) for slot in range(count)])
                    context.rows(0, count)
                    times[count].append(1e3 * (time.perf_counter() - begin))
    return {count: median(found) for count, found in times.items()}


def against_the_table(server: Server, text: Text, given: argparse.Namespace) -> dict[str, Any]:
    """Part 2: what N streams give over one, and what the table allows."""
    counts = sorted({1, *given.streams})
    tables = {
        name: row_table(path, given.threads, counts) for name, path in (("base", given.base), ("memory", given.memory))
    }
    rates = all_at_once(server, text, counts, given.rounds)
    pair = {n: tables["base"][n] + tables["memory"][n] for n in counts}
    found: dict[str, Any] = {}
    say("\nrows    base ms  memory ms   allowed   tokens/s of the streams   gained   of what is allowed")
    for n in counts:
        allowed, gained = n * pair[1] / pair[n], rates[n] / rates[1]
        found[str(n)] = {
            "base_ms": tables["base"][n], "memory_ms": tables["memory"][n], "allowed": allowed,
            "tokens_per_second": rates[n], "gained": gained, "part": gained / allowed,
        }  # fmt: skip
        say(
            f"{n:4} {tables['base'][n]:10.2f} {tables['memory'][n]:10.2f} {allowed:9.2f} {rates[n]:25.1f} "
            f"{gained:8.2f} {gained / allowed:20.0%}"
        )
    return found


async def arrival(server: Server, text: Text, length: int, seed: int) -> dict[str, float]:
    """Part 3: gaps of the streams, milliseconds, before a long prompt and while it is read."""
    rng = random.Random(seed)
    beside = [Asked(text.cut(rng, SHORT[0]), 1500) for _ in range(BESIDE)]
    late = Asked(text.cut(rng, length), 4)
    async with httpx2.AsyncClient(timeout=600, limits=FRESH) as client:
        tasks = [asyncio.create_task(ask(client, server, asked, seed + n)) for n, asked in enumerate(beside)]
        while min(len(asked.times) for asked in beside) < 10:
            await asyncio.sleep(0.05)
        settled = time.perf_counter()
        await asyncio.sleep(QUIET)
        await ask(client, server, late, seed)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(1)  # until the server has freed its slots

    def gaps(begin: float, end: float) -> list[float]:
        pairs = [pair for asked in beside for pair in pairwise(asked.times)]
        return [1e3 * (b - a) for a, b in pairs if begin < b and a < end and b - a > TOGETHER]

    before, during = gaps(settled, late.begin), gaps(late.begin, late.times[0])
    return {
        "before_ms": median(before), "before_ms_95": percentile(before, 0.95), "before_ms_most": max(before),
        "during_ms": median(during), "during_ms_95": percentile(during, 0.95), "during_ms_most": max(during),
        "prompt_seconds": late.times[0] - late.begin,
        "ratio_95": percentile(during, 0.95) / percentile(before, 0.95),
    }  # fmt: skip


def arrivals(servers: dict[str, Server], text: Text, length: int, rounds: int) -> dict[str, Any]:
    """Part 3, by server: medians of the rounds. llama-cpp-python's answers one stream after the other."""
    rows: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for name in (name for name in servers if name not in (PLAIN, PYTHON)):
            rows.setdefault(name, []).append(asyncio.run(arrival(servers[name], text, length, 100 + number)))
    found = {name: {key: median(row[key] for row in each) for key in each[0]} for name, each in rows.items()}
    say(f"\n{length} tokens among {BESIDE} streams    before ms (95th, most)   during ms (95th, most)   95th grows")
    for name, row in found.items():
        before, during = (
            f"{row[f'{when}_ms']:6.0f} ({row[f'{when}_ms_95']:6.0f}, {row[f'{when}_ms_most']:6.0f})"
            for when in ("before", "during")
        )
        say(f"{name:30} {before:>26} {during:>26} {row['ratio_95']:9.2f}")
    return found


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of the others lies."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def main() -> None:
    """All parts, printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--real", default="", help="a Python that has xllamacpp")
    parser.add_argument("--python", default="", help="a Python that has llama-cpp-python's server; default: this one")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--arriving", type=int, default=ARRIVING, help="tokens of the long prompt")
    parser.add_argument("--out", type=Path, help="where the report goes too")
    given = parser.parse_args()
    with closing(Model(given.base, vocab_only=True)) as vocabulary:
        settings = Settings(
            given.base, given.memory, given.threads, CONTEXT, SLOTS, given.real, given.python or sys.executable,
            tuple(sorted(vocabulary.eog_tokens)),
        )  # fmt: skip
        text = Text(vocabulary, given.text)
        with running(settings, say) as servers:
            builds = {server.build: server.name.partition(",")[0] for server in servers.values()}
            for build, name in builds.items():
                say(f"{name}: {build}")
            result = {
                "benchmark": "load",
                "threads": given.threads,
                "mixed": mixed_load(servers, text, given.streams, given.rounds),
                "rows": against_the_table(servers[PLAIN], text, given),
                "arrival": arrivals(servers, text, given.arriving, max(given.rounds // 2, 1)),
                "builds": {name: build for build, name in builds.items()},
            }
    say(json.dumps(result))
    if given.out:
        with atomic_path(given.out) as part:
            part.write_text(made_by() + "".join(f"{line}\n" for line in SAID), encoding="utf-8")


SAID: list[str] = []


def say(line: str) -> None:
    """Print a line, and keep it for the report."""
    SAID.append(line)
    print(line, flush=True)


if __name__ == "__main__":
    main()
