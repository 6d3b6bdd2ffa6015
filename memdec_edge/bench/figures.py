"""From continuations and their counters to the figures of a benchmark. Knows nothing of models and of how they ran."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from memdec_edge.bench.systems import Costs, Run
from memdec_edge.engine.drafting import expected_tokens
from memdec_edge.options import BenchOptions


@dataclass(frozen=True)
class Speed:
    """Tokens per second. Prompt: all but a prompt's last token, from an empty cache; gen: from there on."""

    prompt_tps: float
    gen_tps: float


@dataclass(frozen=True)
class Figures(Speed):
    """time_split: per cent of generation in decoding `base` and `memory`, in `mix_and_sample`, in `python` (the rest).

    model_bytes_per_token: weights read in generation, without KV cache and embedding look-ups; bandwidth_share: those
    read in a second over what the machine can read, None on a GPU.
    """

    time_split: dict[str, float]
    model_bytes_per_token: float
    bandwidth_share: float | None


@dataclass(frozen=True)
class Drafted(Figures):
    """acceptance: share of the judged drafted tokens that were right, what would have been drafted where nothing was
    among them; None where there was neither. draft_lengths: rounds by drafted tokens.

    predicted_tps: at the measured costs and this acceptance, mixing and Python for nothing, by the best length or the
    one that was asked for (predicted_length); predicted_share: what all runs together reached of it, since it is their
    acceptance. None where the costs are unknown.
    """

    acceptance: float | None
    tokens_per_base_pass: float
    draft_lengths: dict[int, int]
    predicted_tps: float | None
    predicted_length: int | None
    predicted_share: float | None


def speed(runs: Sequence[Run], options: BenchOptions) -> Speed:
    """Medians over the runs."""
    return Speed(
        median((options.prompt_tokens - 1) / run.prompt_seconds for run in runs),
        median(options.new_tokens / run.gen_seconds for run in runs),
    )


def figures(runs: Sequence[Run], options: BenchOptions, n_bytes: tuple[int, int], bandwidth: float | None) -> Figures:
    """Of an engine. n_bytes: that a pass of the base reads, and a step of its memories; bandwidth: bytes per second."""
    counted = [run.counters for run in runs]
    seconds = {
        "base": sum(one.base_seconds for one in counted),
        "memory": sum(one.memory_seconds for one in counted),
        "mix_and_sample": sum(one.sample_seconds for one in counted),
    }
    total = sum(run.gen_seconds for run in runs)
    seconds["python"] = total - sum(seconds.values())
    passes = (sum(one.rounds for one in counted), sum(one.memory_steps for one in counted))
    per_token = sum(n * size for n, size in zip(passes, n_bytes, strict=True)) / sum(one.emitted for one in counted)
    found = speed(runs, options)
    return Figures(
        **asdict(found),
        time_split={name: 100 * value / total for name, value in seconds.items()},
        model_bytes_per_token=per_token,
        bandwidth_share=per_token * found.gen_tps / bandwidth if bandwidth else None,
    )


def drafted(found: Figures, runs: Sequence[Run], costs: Costs | None, lengths: Iterable[int]) -> Drafted:
    """What drafting adds to its figures. lengths: those that could be drafted."""
    counted = [run.counters for run in runs]
    emitted = sum(one.emitted for one in counted)
    judged = sum(one.drafted + one.guessed for one in counted)
    right = sum(one.accepted + one.guessed_right for one in counted)
    acceptance = right / judged if judged else None
    best: tuple[float, int] | None = None
    if costs and acceptance is not None:
        known = [length for length in lengths if length + 1 in costs.base]
        best = max(((predicted_tps(costs, acceptance, length), length) for length in known), default=None)
    return Drafted(
        **asdict(found),
        acceptance=acceptance,
        tokens_per_base_pass=emitted / sum(one.rounds for one in counted),
        draft_lengths=dict(sorted(sum((one.lengths for one in counted), Counter()).items())),
        predicted_tps=best[0] if best else None,
        predicted_length=best[1] if best else None,
        predicted_share=emitted / sum(run.gen_seconds for run in runs) / best[0] if best else None,
    )


def predicted_tps(costs: Costs, acceptance: float, length: int) -> float:
    """Tokens per second of rounds that draft `length` tokens.

    The memories' step after the last drafted token is taken only where all were right, or always beside the base where
    that is measured and faster.
    """
    seconds = costs.base[length + 1] + acceptance**length * costs.memory
    if length + 1 in costs.beside:
        seconds = min(seconds, costs.beside[length + 1])
    return expected_tokens(acceptance, length) / (seconds + length * costs.memory)


def one_after_another(speeds: Sequence[Speed]) -> Speed:
    """Of models that run on every token in turn."""
    return Speed(1 / sum(1 / one.prompt_tps for one in speeds), 1 / sum(1 / one.gen_tps for one in speeds))
