"""The systems that a benchmark compares: a continuation by an engine or by llama-cpp-python, the cost of rows.

Knows nothing of repetitions and reports.
"""

from collections.abc import Sequence
from contextlib import closing
from itertools import cycle, islice
from statistics import median
from time import perf_counter
from typing import NamedTuple

from memdec_edge.engine import Counters, Engine, Memory, MemoryMixture
from memdec_edge.engine.drafting import SETTLING
from memdec_edge.evaluation.perplexity import join_documents
from memdec_edge.llama.context import Context
from memdec_edge.llama.stock import StockLlama
from memdec_edge.options import GenerationOptions, SamplingOptions


class Run(NamedTuple):
    """One continuation: seconds of prefill and of generation, and what the engine counted in generation.

    weights: at its end, of base and memories without a match, then of indexes after the longest ones.
    """

    prompt_seconds: float
    gen_seconds: float
    counters: Counters
    weights: tuple[float, ...] = ()


class Costs(NamedTuple):
    """Seconds. base: of a pass of the base by its rows, with logits on each. memory: of one token in all memories.
    beside: of such a pass with such a step at the same time, by rows; empty where the two take turns.
    """

    base: dict[int, float]
    memory: float
    beside: dict[int, float]

    @classmethod
    def medians(cls, costs: "Sequence[Costs]") -> "Costs":
        """The medians of several measurements of the same rows, at least one."""
        base = {n: median(one.base[n] for one in costs) for n in costs[0].base}
        beside = {n: median(one.beside[n] for one in costs) for n in costs[0].beside}
        return cls(base, median(one.memory for one in costs), beside)


def cut_prompts(engine: Engine, documents: Sequence[str], length: int, count: int) -> list[list[int]]:
    """`count` prompts of `length` tokens, evenly spaced over the documents; they overlap where the text is short.

    BOS stands first iff the vocabulary adds it; EOS joins the documents. Empty where the text is too short.
    """
    base, tokens = engine.base, join_documents(engine, documents)
    bos = tokens[:1] if base.add_bos and base.bos >= 0 else []
    spare = len(tokens) - length
    if spare < 0:
        return []
    starts = [len(bos) + index * spare // max(count - 1, 1) for index in range(count)]
    return [bos + tokens[start : start + length - len(bos)] for start in starts]


def run(
    engine: Engine,
    sampling: SamplingOptions,
    generation: GenerationOptions,
    mixture: MemoryMixture,
    prompt: Sequence[int],
) -> Run:
    """Continue a prompt of at least 2 tokens, from empty caches, with the memories of `mixture`; no other session open.

    Generation begins with the prompt's last token and ends with the session: after n_predict tokens where the options
    ignore end-of-text.
    """
    limit = len(prompt) + generation.n_predict
    with closing(engine.session((), sampling, generation, mixture=mixture, limit=limit)) as session:
        session.extend(prompt)
        begin = perf_counter()
        session.prefill()
        for context in session.contexts:
            context.wait()
        prefilled = perf_counter()
        engine.rounds.counters = Counters()
        while not session.finished:
            engine.step([session])
        at_end, n = session.mixture, len(session.memories)
        weights = (*at_end.shares[: 1 + n], *at_end.vectors[-1][n:])
        return Run(prefilled - begin, perf_counter() - prefilled, engine.counters, weights)


def run_llama(llama: StockLlama, sampling: SamplingOptions, n_predict: int, prompt: Sequence[int]) -> Run:
    """As run(), by Llama.generate."""
    begin = perf_counter()
    llama.prefill(prompt[:-1])
    prefilled = perf_counter()
    llama.generate(prompt, sampling, n_predict)
    return Run(prefilled - begin, perf_counter() - prefilled, Counters())


def row_costs(engine: Engine, mixed: Sequence[Memory], prompt: Sequence[int], start: int, rows: int) -> Costs:
    """The cost of passes of 1 to `rows` rows at position `start`, after the prompt repeated; no session open.

    As in a round the memories' step precedes the pass of the base, and an untimed pair of the same shape precedes both.
    The models must be able to roll back.
    """
    tokens = list(islice(cycle(prompt), start + rows))
    memories = [memory.context for memory in mixed]
    for context in (engine.context, *memories):
        context.prefill(tokens[:start])
    base, steps, beside = dict[int, float](), list[float](), dict[int, float]()

    def step() -> float:
        return sum(pass_seconds(context, tokens[start : start + 1]) for context in memories)

    for n in range(1, rows + 1):
        for _ in range(2):
            seconds = step()
            base[n] = pass_seconds(engine.context, tokens[start : start + n])
        steps.append(seconds)
    if engine.rounds.division and mixed:
        engine.context.use_threads(engine.rounds.division[0])
        for context in memories:
            context.use_threads(engine.rounds.division[1])
        for n in range(1, rows + 1 if engine.policy.overlaps_drafts else 2):
            for _ in range(2 if n > 1 else 2 + SETTLING):
                begin = perf_counter()
                running = engine.rounds.worker.submit(step)
                pass_seconds(engine.context, tokens[start : start + n])
                running.result()
                beside[n] = perf_counter() - begin
    return Costs(base, median(steps), beside)


def pass_seconds(context: Context, tokens: Sequence[int]) -> float:
    """Seconds of one pass with logits on every row; the context then holds what it held."""
    held = len(context.tokens[0])
    begin = perf_counter()
    context.decode([(0, tokens)])
    context.rows(0, len(tokens))
    seconds = perf_counter() - begin
    context.truncate(held)
    return seconds
