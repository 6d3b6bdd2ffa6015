"""Figures for Prometheus, with llama.cpp's suffixes where it has the same. Knows nothing of how they come about."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response

from memdec_edge.server.service import Service

PREFIX = "memdec_edge:"


class Figures(Collector):
    """Reads the totals of a service each time that it is asked."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield every figure."""
        scheduler, totals = self._service.scheduler, self._service.scheduler.totals
        counters = self._service.model.engine.counters
        written = max(totals.predicted_tokens, 1)
        counts: list[tuple[str, str, float]] = [
            ("prompt_tokens", "Tokens of prompts that were decoded.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Tokens of prompts that were decoded already.", totals.cached_tokens),
            ("prompt_seconds", "Time of reading prompts.", totals.prompt_seconds),
            ("tokens_predicted", "Tokens that were generated.", totals.predicted_tokens),
            ("tokens_predicted_seconds", "Time of generating.", totals.predicted_seconds),
            ("n_decode", "Passes of the base.", totals.steps + totals.reads),
            ("memory_decode", "Passes of the memories while generating.", counters.memory_steps),
            ("spec_decode_num_draft_tokens", "Drafted tokens that the mixture verified.", counters.drafted),
            ("spec_decode_num_accepted_tokens", "Drafted tokens that the mixture accepted.", counters.accepted),
            ("spec_decode_num_drafts", "Passes that verified a draft.", sum(
                count for length, count in counters.lengths.items() if length)),
            ("requests_finished", "Streams that came to their end.", totals.finished),
            ("requests_cancelled", "Streams whose client left.", totals.cancelled),
            ("requests_failed", "Streams that ended with an error.", totals.failed),
            ("requests_refused", "Streams that were refused since too many waited.", totals.refused),
            ("requests_suspended", "Times that a stream gave its cells to an older one.", totals.suspended),
        ]  # fmt: skip
        for name, text, value in counts:
            yield CounterMetricFamily(PREFIX + name, text, value=value)
        read = _rate(totals.prompt_tokens, totals.prompt_seconds)
        generated = _rate(totals.predicted_tokens, totals.predicted_seconds)
        gauges: list[tuple[str, str, float]] = [
            ("n_tokens_max", "Tokens of the longest stream.", totals.longest),
            ("prompt_tokens_seconds", "Tokens of prompts read in a second.", read),
            ("predicted_tokens_seconds", "Tokens generated in a second.", generated),
            ("requests_processing", "Streams that have a slot.", len(scheduler.active)),
            ("requests_deferred", "Streams that wait.", len(scheduler.waiting)),
            ("n_busy_slots_per_decode", "Streams in a step, on average.", totals.busy / max(totals.steps, 1)),
            ("memory_share", "Part of the memories in the probability of tokens, on average.", totals.share / written),
            ("memory_weight", "Weight of the memories together at a token, on average.", totals.weight / written),
            ("kv_cells_free", "Cells that no stream reserves.", self._service.model.engine.cells.free),
        ]  # fmt: skip
        for name, text, value in gauges:
            yield GaugeMetricFamily(PREFIX + name, text, value=value)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def answer(service: Service) -> Response:
    """All figures as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(service))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
