"""Streams that arrive at once: how long until they speak, with prompts read together and one after the other?

    python benchmarks/arrivals.py BASE.gguf MEMORY.gguf TEXT [--streams 16] [--length 40] [--long 0] [--threads 2]

The server's scheduler serves the same requests both ways, in turn, from empty caches; --long N adds an older prompt of
N tokens. One after the other: each turn reads of one prompt alone, prompts take turns, and a turn ends with a step of
those that are read. Figures are medians over repeats: seconds until the median and the last short stream has its first
token, and until all have ended, by the clock and, in brackets, of all CPUs. The latter count on a busy machine with one
thread. The last line is one JSON object.
"""

import argparse
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from provenance import made_by

from memdec_edge.api.results import Chunk
from memdec_edge.api.streams import Request
from memdec_edge.bench.systems import cut_prompts
from memdec_edge.documents import read_documents
from memdec_edge.engine import Engine
from memdec_edge.errors import MemdecError
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, MixtureOptions, SamplingOptions
from memdec_edge.server import scheduler
from memdec_edge.server.job import End, Event, Job

Moment = tuple[float, float]  # seconds of the clock, of all CPUs
POINTS = ("median first", "last first", "end")
TURNS = count()


def one_in_turn(unread: Sequence[int], most: int) -> list[int]:
    """What a turn reads, one prompt after the other; see scheduler.divided()."""
    chosen = next(TURNS) % len(unread)
    return [min(left, most) if at == chosen else 0 for at, left in enumerate(unread)]


WAYS: dict[str, Callable[[Sequence[int], int], list[int]]] = {
    "one after the other": one_in_turn,
    "together": scheduler.divided,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("memory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--predict", type=int, default=16)
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    n_ctx = args.streams * (args.length + args.predict + 64) + args.long + 256
    load = LoadOptions(n_ctx=n_ctx, n_seq=args.streams + 1, threads=args.threads)
    found: dict[str, list[list[Moment]]] = {way: [] for way in WAYS}
    with closing(Engine(args.base, [MemoryOptions(args.memory)], load)) as engine:
        documents = read_documents(args.text)
        short = cut_prompts(engine, documents, args.length, args.streams * (args.repeats + 1))
        long = cut_prompts(engine, documents, args.long, 1) if args.long else []
        for number in range(args.repeats + 1):
            prompts = [*long, *short[number :: args.repeats + 1]]
            for way in WAYS if number % 2 else reversed(WAYS):
                moments = serve(engine, way, prompts, len(long), args.predict)
                if number:  # the first prompts warm up
                    found[way].append(moments)
    print(made_by(), end="")
    result = {}
    for way, runs in found.items():
        result[way] = {
            point: [median(run[at][clock] for run in runs) for clock in range(2)] for at, point in enumerate(POINTS)
        }
        shown = "  ".join(f"{point} {clock:6.2f} ({cpu:6.2f})" for point, (clock, cpu) in result[way].items())
        print(f"{way:20} {shown}")
    print(json.dumps({"benchmark": "arrivals", "streams": args.streams, "long": args.long, "ways": result}))


def serve(engine: Engine, way: str, prompts: list[list[int]], n_long: int, n_predict: int) -> list[Moment]:
    """The moments of POINTS, after all arrived."""
    for context in (engine.context, *(memory.context for memory in engine.memories)):
        context.clear()
    setattr(scheduler, "divided", WAYS[way])  # noqa: B010 - mypy takes a function for a constant
    firsts: list[Moment | None] = [None] * len(prompts)
    ends, over = list[Moment](), threading.Semaphore(0)
    begin, cpu_begin = perf_counter(), process_time()

    def listener(number: int) -> Callable[[Event], None]:
        def told(event: Event) -> None:
            now = perf_counter() - begin, process_time() - cpu_begin
            if isinstance(event, Chunk):
                firsts[number] = firsts[number] or now
            if isinstance(event, MemdecError):
                raise event
            if isinstance(event, End):
                ends.append(now)
                over.release()

        return told

    served = scheduler.Scheduler(engine, len(prompts))
    try:
        generation = GenerationOptions(n_predict=n_predict, ignore_eos=True, draft=0)
        jobs = []
        for number, prompt in enumerate(prompts):
            request = Request(prompt, None, SamplingOptions(seed=1), generation, engine.mixture(MixtureOptions()))
            jobs.append(Job(request, listener(number)))
            served.check(jobs[-1])
        served.submit(jobs)
        for _ in jobs:
            over.acquire()
    finally:
        served.stop()
    spoken = sorted(first for first in firsts[n_long:] if first)
    return [spoken[len(spoken) // 2], spoken[-1], max(ends)]


if __name__ == "__main__":
    main()
