"""What mixing adds to two models that run anyway, and what a round costs in Python.

    python benchmarks/overhead.py MEMORY.gguf [--base BASE.gguf] [--threads 2] [--blocks 12]

Part 1, plain mixture (draft 0) against base alone + memory alone, SmolLM2-135M unless another base is given. Each model
alone is a bare loop over ctypes: a token id that is known before is put into a llama_batch, then llama_decode and
llama_get_logits_ith (which waits for the result); all of that is counted, picking a token is not, there is none. Of the
mixture all of Engine.step() is counted, once with base and memory in turn, as the sum is, and once as the engine
chooses, which may be at the same time. The three take turns of 32 tokens at the same positions; the ratio is the median
over the turns, for greedy and for default sampling.

Part 2, Python in a round, on a base and a memory of 2 layers: the time of Engine.step() less the time inside
llama_decode and the functions of memdec_edge._native (other calls of llama.cpp count as Python); median over rounds.

The last line is one JSON object. Medians need a machine without other work.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import llama_cpp

from memdec_edge import _native
from memdec_edge.documents import GENERAL
from memdec_edge.engine import Engine
from memdec_edge.llama.context import default_threads
from memdec_edge.options import GenerationOptions, LoadOptions, MemoryOptions, SamplingOptions
from memdec_edge.workflow.demo import demo_base

PROMPT, TURN, N_CTX = 64, 32, 512  # tokens
CHAINS = {"greedy": SamplingOptions(temperature=0), "default": SamplingOptions(seed=1)}


class Bare:
    """A model in a loop of llama_decode; settings are those of LoadOptions(n_ctx=N_CTX)."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = N_CTX
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(N_CTX, 0, 1)
        for i in range(N_CTX):
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0

    def start(self, tokens: list[int]) -> None:
        """Hold `tokens` and nothing else."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.context), 0, -1, -1)
        self.batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, i, 0
        llama_cpp.llama_decode(self.context, self.batch)

    def turn(self, tokens: list[int], position: int) -> float:
        """Seconds of decoding `tokens` from `position` on, one by one."""
        batch = self.batch
        batch.n_tokens = batch.logits[0] = 1
        begin = perf_counter()
        for i, token in enumerate(tokens):
            batch.token[0], batch.pos[0] = token, position + i
            if llama_cpp.llama_decode(self.context, batch):
                raise SystemExit("llama.cpp cannot decode")
            llama_cpp.llama_get_logits_ith(self.context, 0)
        return perf_counter() - begin

    def close(self) -> None:
        """Free everything."""
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def plain_against_bare(base: Path, memory: Path, threads: int, blocks: int) -> dict[str, Any]:
    """Part 1: milliseconds a token and their ratio, by chain."""
    found: dict[str, Any] = {}
    load = LoadOptions(n_ctx=N_CTX, n_batch=N_CTX, threads=threads)
    with (
        closing(Engine(base, [MemoryOptions(memory, 0.6)], load)) as engine,
        closing(Bare(base, threads)) as bare_base,
        closing(Bare(memory, threads)) as bare_memory,
    ):
        ways = {"in turn": (False,), "by choice": engine.policy.overlaps}
        text = engine.base.tokenize(GENERAL.read_text(encoding="utf-8"))[:N_CTX]
        generation = GenerationOptions(ignore_eos=True, draft=0)
        for (way, overlaps), (chain, sampling) in product(ways.items(), CHAINS.items()):
            engine.policy.overlaps = overlaps
            times: list[tuple[float, float, float]] = []
            with closing(engine.session(text[:PROMPT], sampling, generation)) as session:
                engine.step([session])  # reads the prompt
                for bare in (bare_base, bare_memory):
                    bare.start(text[: PROMPT + 1])
                for block in range(blocks + 1):
                    at = PROMPT + 1 + block * TURN
                    tokens = text[at : at + TURN]
                    base_seconds, memory_seconds = bare_base.turn(tokens, at), bare_memory.turn(tokens, at)
                    begin = perf_counter()
                    for _ in range(TURN):
                        engine.step([session])
                    times.append((base_seconds, memory_seconds, perf_counter() - begin))
            times = times[1:]  # the first warms up
            found[f"{chain}, {way}"] = {
                "base_ms": 1e3 * median(b for b, _, _ in times) / TURN,
                "memory_ms": 1e3 * median(m for _, m, _ in times) / TURN,
                "mixture_ms": 1e3 * median(both for _, _, both in times) / TURN,
                "ratio": median(both / (b + m) for b, m, both in times),
            }
    return found


class Inside:
    """Seconds that passed inside wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, module: Any, name: str) -> None:
        """Time a function of a module from now on."""
        call: Callable[..., Any] = getattr(module, name)

        def timed(*given: Any) -> Any:
            begin = perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds += perf_counter() - begin

        setattr(module, name, timed)


def python_per_round(rounds: int) -> dict[str, float]:
    """Part 2: microseconds of Python in a round, by draft length."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where tests/ lies
    from tests.support.tiny import tiny_checkpoint, tiny_gguf

    inside, found = Inside(), dict[str, float]()
    inside.wrap(llama_cpp, "llama_decode")
    for name in ("sample", "draft", "verify", "mix"):
        inside.wrap(_native, name)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_gguf(folder / "base.gguf", tiny_checkpoint(folder / "base", n_ctx=4096, seed=1))
        memory = tiny_gguf(
            folder / "memdec.gguf", tiny_checkpoint(folder / "memory", n_ctx=4096, seed=2), role="memory"
        )
        load = LoadOptions(n_ctx=4096, threads=1)
        for draft in (0, 3, 8, None):
            with closing(Engine(base, [MemoryOptions(memory, 0.6)], load)) as engine:
                engine.policy.overlaps = (False,)  # time in two threads at once could not be told apart
                generation = GenerationOptions(ignore_eos=True, draft=draft)
                times: list[float] = []
                while len(times) < rounds:
                    with closing(engine.session([1, 2, 3], SamplingOptions(seed=len(times)), generation)) as session:
                        engine.step([session])
                        for _ in range(40):
                            before, begin = inside.seconds, perf_counter()
                            engine.step([session])
                            times.append(perf_counter() - begin - (inside.seconds - before))
                found["auto" if draft is None else str(draft)] = 1e6 * median(times)
    return found


def main() -> None:
    """Both parts, printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("memory", type=Path)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=400)
    args = parser.parse_args()
    if not 1 <= args.blocks <= (N_CTX - PROMPT) // TURN - 2:
        parser.error(f"--blocks must be from 1 to {(N_CTX - PROMPT) // TURN - 2}")
    plain = plain_against_bare(args.base or demo_base(), args.memory, args.threads, args.blocks)
    print("milliseconds a token         base   memory      sum  mixture   ratio")
    for chain, ms in plain.items():
        alone = ms["base_ms"] + ms["memory_ms"]
        print(
            f"{chain:24} {ms['base_ms']:8.2f} {ms['memory_ms']:8.2f} {alone:8.2f} {ms['mixture_ms']:8.2f} "
            f"{ms['ratio']:7.3f}"
        )
    python = python_per_round(args.rounds)
    for draft, us in python.items():
        print(f"python in a round, 2 layers, draft {draft:>4}: {us:6.0f} us")
    print(json.dumps({"benchmark": "overhead", "threads": args.threads, "plain": plain, "python_us": python}))


if __name__ == "__main__":
    main()
