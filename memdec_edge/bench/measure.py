"""Speed of base, memories and mixture, with drafts and without, side by side on one text.

Every system continues the same prompts with the same sampling chain. The systems take turns, so that other work on the
machine slows all alike, and figures are medians over the prompts. First each system has an untimed run; the mixture
with drafts runs until its policy has tried every length. The base's figure is the faster of our engine without memories
and llama-cpp-python's `Llama.generate` with our settings. Knows nothing of terminals.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from memdec_edge.bench.bandwidth import bandwidth_meter, model_bytes
from memdec_edge.bench.figures import Drafted, Figures, Speed, drafted, figures, one_after_another, speed
from memdec_edge.bench.systems import Costs, Run, cut_prompts, row_costs, run, run_llama
from memdec_edge.documents import GENERAL
from memdec_edge.engine import Engine, Memory, MemoryMixture
from memdec_edge.engine.drafting import MAX_ROWS
from memdec_edge.errors import ContextError, CorpusError
from memdec_edge.llama.context import default_threads
from memdec_edge.llama.library import has_gpu
from memdec_edge.llama.stock import StockLlama
from memdec_edge.options import (
    BenchOptions,
    GenerationOptions,
    LoadOptions,
    MemoryOptions,
    MixtureOptions,
    SamplingOptions,
)
from memdec_edge.progress import progress

LEARNING = 64  # rounds in which the policy tries each of 8 lengths three times and settles

NO_MEMORY = MemoryMixture.of(())
System = Callable[[Sequence[int]], Run]


@dataclass(frozen=True)
class Report:
    """base: for each phase the faster of base_llama_generate and base_engine. memory: all of `memories`, one after the
    other. Fields that need memories, a CPU or models that roll back are None or empty where there are none.
    """

    base: Speed
    memory: Speed | None
    mixture: Figures | None
    drafted: Drafted | None
    ratio_to_base: float | None  # of gen_tps: drafted over base
    ratio_to_mixture: float | None
    base_llama_generate: Speed
    base_engine: Figures
    memories: list[Figures]
    memory_files: list[Path]  # as many as `memories`, then indexes
    lambdas: list[float]  # of indexes after the longest matches
    base_rows_ms: dict[int, float]  # a pass of the base by its rows, logits on each
    memory_step_ms: float | None  # one token in all memories
    base_rows_beside_memory_ms: dict[int, float]  # both at the same time, where they do so
    read_bytes_per_second: float | None  # of the machine's memory at best, see bandwidth.py
    options: BenchOptions
    sampling: SamplingOptions  # its seed is the one that was drawn
    n_ctx: int
    threads: int
    memory_threads: int
    mixes_with: str
    warnings: list[str]  # of the engine


@dataclass
class Table:
    """What the systems gave in their turns."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    costs: list[Costs] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)


def bench(
    base: Path | str,
    memories: Iterable[MemoryOptions] = (),
    load: LoadOptions | None = None,
    sampling: SamplingOptions | None = None,
    options: BenchOptions | None = None,
    documents: Sequence[str] | None = None,
    weights: MixtureOptions | None = None,
) -> Report:
    """Measure on prompts cut from `documents` (None: general.txt). weights: see Engine.mixture().

    Memories of weight 0 are left out; grammars bind our engine only. All models are open at the same time. Raises what
    Engine raises, ContextError where a prompt and its continuation exceed the context, CorpusError for a text shorter
    than a prompt, Cancelled.
    """
    load, sampling, options = load or LoadOptions(), sampling or SamplingOptions(), options or BenchOptions()
    if sampling.seed < 0:
        sampling = replace(sampling, seed=secrets.randbelow(2**32 - 1))  # one for all systems
    with ExitStack() as opened:
        engine = opened.enter_context(closing(Engine(base, memories, replace(load, n_seq=1))))
        prompts = _prompts(engine, documents, options)
        load = replace(load, n_ctx=engine.n_ctx, n_seq=1)
        mixture = engine.mixture(weights).running()
        plain = GenerationOptions(options.n_predict, ignore_eos=True, draft=0)
        llama = opened.enter_context(closing(StockLlama(base, load, sampling)))
        systems: dict[str, System] = {
            "llama": partial(run_llama, llama, sampling, options.n_predict),
            "engine": partial(run, engine, sampling, plain, NO_MEMORY),
        }
        for memory in mixture.memories:
            alone = opened.enter_context(closing(Engine(memory.model.path, (), load.of_memories())))
            systems[f"memory {memory.number}"] = partial(run, alone, sampling, plain, NO_MEMORY)
        if mixture.voices:
            systems["mixture"] = partial(run, engine, sampling, plain, mixture)
            systems["drafted"] = partial(run, engine, sampling, replace(plain, draft=options.draft), mixture)
        table = _take_turns(engine, systems, list(mixture.memories), prompts, options)
        return _report(engine, mixture, table, load, sampling, options)


def _prompts(engine: Engine, documents: Sequence[str] | None, options: BenchOptions) -> list[list[int]]:
    """The prompts that every system continues."""
    if options.prompt_tokens + options.n_predict > engine.longest():
        raise ContextError(options.prompt_tokens, options.n_predict, engine.longest())
    documents = [GENERAL.read_text(encoding="utf-8")] if documents is None else documents
    prompts = cut_prompts(engine, documents, options.prompt_tokens, options.repetitions)
    if not prompts:
        reason = f"shorter than a prompt of {options.prompt_tokens} tokens; give a longer one or lower `prompt_tokens`"
        raise CorpusError("the text", reason)
    return prompts


def _take_turns(
    engine: Engine,
    systems: dict[str, System],
    mixed: list[Memory],
    prompts: list[list[int]],
    options: BenchOptions,
) -> Table:
    """Warm up, then let every system continue every prompt."""
    table = Table({name: [] for name in systems})
    meter = None if has_gpu() and engine.options.n_gpu_layers else bandwidth_meter(_threads(engine.options))
    rolls_back = all(context.can_roll_back for context in (engine.context, *(memory.context for memory in mixed)))
    rows = min(max(MAX_ROWS, (options.draft or 0) + 1), engine.context.n_batch, engine.longest() // 2)
    start = min(options.prompt_tokens + options.n_predict // 2, engine.longest() - rows)
    with progress("bench", (len(prompts) + 1) * len(systems), "runs") as advance:
        for system in systems.values():
            system(prompts[0])
            advance(1)
        if "drafted" in systems and options.draft is None:
            _learn(engine, lambda: systems["drafted"](prompts[0]))
        for number, prompt in enumerate(prompts):
            for name in list(systems)[:: -1 if number % 2 else 1]:  # no system always follows the same one
                table.runs[name].append(systems[name](prompt))
                advance(1)
            if rolls_back:
                table.costs.append(row_costs(engine, mixed, prompt, start, rows))
            if meter:
                table.bandwidths += [meter() for _ in range(3)]
    return table


def _learn(engine: Engine, draft: Callable[[], Run]) -> None:
    """Run until the policy has tried every length; once where it has none to choose from."""
    known, learned = -1, engine.policy.rounds + LEARNING * len(engine.policy.overlaps)
    while known < engine.policy.rounds < learned:
        known = engine.policy.rounds
        draft()


def _report(
    engine: Engine,
    mixture: MemoryMixture,
    table: Table,
    load: LoadOptions,
    sampling: SamplingOptions,
    options: BenchOptions,
) -> Report:
    costs = Costs.medians(table.costs) if table.costs else None
    bandwidth = max(table.bandwidths, default=None)  # other work only takes away
    sizes = [model_bytes(memory.model.path) for memory in mixture.memories]
    both = (model_bytes(engine.base.path), sum(sizes))
    theirs, ours = speed(table.runs["llama"], options), figures(table.runs["engine"], options, both, bandwidth)
    fastest = Speed(max(ours.prompt_tps, theirs.prompt_tps), max(ours.gen_tps, theirs.gen_tps))
    alone = [
        figures(table.runs[f"memory {memory.number}"], options, (size, 0), bandwidth)
        for memory, size in zip(mixture.memories, sizes, strict=True)
    ]
    plain = with_drafts = None
    if mixture.voices:
        plain = figures(table.runs["mixture"], options, both, bandwidth)
        runs = table.runs["drafted"]
        lengths = range(MAX_ROWS) if options.draft is None else [options.draft]
        found = figures(runs, options, both, bandwidth)
        with_drafts = drafted(found, runs, costs, lengths)
    return Report(
        base=fastest,
        memory=one_after_another(alone) if alone else None,
        mixture=plain,
        drafted=with_drafts,
        ratio_to_base=with_drafts.gen_tps / fastest.gen_tps if with_drafts else None,
        ratio_to_mixture=with_drafts.gen_tps / plain.gen_tps if with_drafts and plain else None,
        base_llama_generate=theirs,
        base_engine=ours,
        memories=alone,
        memory_files=[voice.path for voice in mixture.voices],
        lambdas=[*mixture.weights, *mixture.longest],
        base_rows_ms={n: 1e3 * seconds for n, seconds in costs.base.items()} if costs else {},
        memory_step_ms=1e3 * costs.memory if costs and mixture.memories else None,
        base_rows_beside_memory_ms={n: 1e3 * seconds for n, seconds in costs.beside.items()} if costs else {},
        read_bytes_per_second=bandwidth,
        options=options,
        sampling=sampling,
        n_ctx=engine.n_ctx,
        threads=_threads(load),
        memory_threads=_threads(load.of_memories()),
        mixes_with=engine.mixes_with,
        warnings=engine.warnings,
    )


def _threads(options: LoadOptions) -> int:
    return options.threads or default_threads()
