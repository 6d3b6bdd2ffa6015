"""Makes a benchmark's figures from continuations and their counters. Knows nothing of models and of how they ran."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from memdec_edge.bench.systems import Costs, Run
from memdec_edge.engine.drafting import expected_tokens
from memdec_edge.options import BenchOptions


@dataclass(frozen=True)
class Speed:
    """Tokens per second: of a prompt without its last token, from an empty cache (prompt_tps), and from there on."""

    prompt_tps: float
    gen_tps: float


@dataclass(frozen=True)
class Figures(Speed):
    """time_split: per cent of generation that goes into `base`, `memory`, `mix_and_sample` and `python` (the rest).

    model_bytes_per_token: weights that generation reads for a token, without KV cache and embedding look-ups.
    bandwidth_share: bytes of weights read in a second over what the machine can read; None on a GPU.
    """

    time_split: dict[str, float]
    model_bytes_per_token: float
    bandwidth_share: float | None


@dataclass(frozen=True)
class Drafted(Figures):
    """acceptance: accepted tokens over verified ones, guesses of rounds without a draft included; None without either.

    draft_lengths: rounds by drafted tokens. predicted_tps: what the measured costs and this acceptance allow, were
    mixing and Python free, at predicted_length: the best length, or the one that the user asked for. predicted_share:
    what all runs together reached of that. None where the costs are unknown. weights: see Run,
    the mean of all runs.
    """

    weights: tuple[float, ...]
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
        median(options.n_predict / run.gen_seconds for run in runs),
    )


def figures(runs: Sequence[Run], options: BenchOptions, n_bytes: tuple[int, int], bandwidth: float | None) -> Figures:
    """Figures of an engine. n_bytes: of a pass of the base, of a step of its memories; bandwidth: bytes per second."""
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
    """The figures with what drafting adds. lengths: those that could be drafted."""
    counted = [run.counters for run in runs]
    emitted = sum(one.emitted for one in counted)
    verified = sum(one.drafted + one.guessed for one in counted)
    accepted = sum(one.accepted + one.guessed_right for one in counted)
    acceptance = accepted / verified if verified else None
    best: tuple[float, int] | None = None
    if costs and acceptance is not None:
        known = [length for length in lengths if length + 1 in costs.base]
        best = max(((predicted_tps(costs, acceptance, length), length) for length in known), default=None)
    return Drafted(
        **asdict(found),
        weights=tuple(sum(each) / len(runs) for each in zip(*(run.weights for run in runs), strict=True)),
        acceptance=acceptance,
        tokens_per_base_pass=emitted / sum(one.rounds for one in counted),
        draft_lengths=dict(sorted(sum((one.lengths for one in counted), Counter()).items())),
        predicted_tps=best[0] if best else None,
        predicted_length=best[1] if best else None,
        predicted_share=emitted / sum(run.gen_seconds for run in runs) / best[0] if best else None,
    )


def predicted_tps(costs: Costs, acceptance: float, length: int) -> float:
    """Tokens per second of rounds that draft `length` tokens.

    The memories decode the last drafted token only after a whole draft was accepted, or always beside the base where
    that was measured and is faster.
    """
    seconds = costs.base[length + 1] + acceptance**length * costs.memory
    if length + 1 in costs.beside:
        seconds = min(seconds, costs.beside[length + 1])
    return expected_tokens(acceptance, length) / (seconds + length * costs.memory)


def one_after_another(speeds: Sequence[Speed]) -> Speed:
    """The speed of models that run on every token one after the other."""
    return Speed(1 / sum(1 / one.prompt_tps for one in speeds), 1 / sum(1 / one.gen_tps for one in speeds))
