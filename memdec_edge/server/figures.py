"""Usage and timings as clients know them. Knows nothing of where they come from."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from memdec_edge.api.results import Timings
from memdec_edge.server.job import Progress

FINGERPRINT = f"b{version('memdec-edge')}"  # what system_fingerprint says of the software


def usage_of(timings: Sequence[Timings], prompts: int = 1) -> dict[str, Any]:
    """Tokens of some streams, in OpenAI's names; streams of one prompt count it once. prompts: different ones."""
    each = max(len(timings) // max(prompts, 1), 1)
    read = sum(one.cache_n + one.prompt_n for one in timings[::each])
    written = sum(one.predicted_n for one in timings)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(one.cache_n for one in timings[::each])},
    }


def timings_of(timings: Timings, read: int | None = None) -> dict[str, Any]:
    """Times of one stream, in llama.cpp's names. read: tokens of the prompt that are decoded so far; None: all."""
    prompt_n = timings.prompt_n if read is None else read
    return {
        "cache_n": timings.cache_n,
        "prompt_n": prompt_n,
        "prompt_ms": timings.prompt_ms,
        "prompt_per_token_ms": timings.prompt_ms / max(prompt_n, 1),
        "prompt_per_second": 1e3 * prompt_n / timings.prompt_ms if timings.prompt_ms else 0.0,
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
        "predicted_per_token_ms": timings.predicted_ms / max(timings.predicted_n, 1),
        "predicted_per_second": timings.predicted_per_second,
        "draft_n": timings.draft_n,
        "draft_n_accepted": timings.draft_n_accepted,
    }


def progress_of(progress: Progress) -> dict[str, Any]:
    """How much of a prompt is read, in llama.cpp's names."""
    return {
        "total": progress.total,
        "cache": progress.cached,
        "processed": progress.processed,
        "time_ms": round(progress.timings.prompt_ms),
    }


def progress_timings(progress: Progress) -> dict[str, Any]:
    """Times while a prompt is read."""
    return timings_of(progress.timings, progress.processed - progress.cached)
