"""What a server counts, and its exposition for Prometheus.

Counting is plain arithmetic; prometheus-client is imported when somebody asks. Names follow OpenTelemetry's
conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from lib_mlx.generation import Failed, Finished, Usage

_DURATIONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


class Histogram:
    """Counts of values by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count `value`."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return cumulative counts by bound, as Prometheus wants them."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """The counts of one server, by model. Belongs to its event loop."""

    def __init__(self) -> None:
        self.duration: defaultdict[tuple[str, str], Histogram] = defaultdict(lambda: Histogram(_DURATIONS))
        """Seconds of finished requests, by model and error code ("" if there was none)."""
        self.first_token: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_FIRST))
        self.each_token: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(_EACH))
        self.tokens: Counter[tuple[str, str]] = Counter()
        """By model and kind: input, output, cached, reasoning."""
        self.requests: Counter[tuple[str, str]] = Counter()
        """By model and outcome."""

    def finished(self, model: str, event: Finished) -> None:
        """Count an answer that went well."""
        timings = event.timings
        self.duration[model, ""].observe(timings.ttft + timings.decode)
        self.first_token[model].observe(timings.ttft)
        if event.usage.completion > 1:
            self.each_token[model].observe(timings.decode / (event.usage.completion - 1))
        self.requests[model, event.reason] += 1
        self._count(model, event.usage)

    def failed(self, model: str, event: Failed) -> None:
        """Count an answer that did not."""
        self.requests[model, event.error.code] += 1
        self._count(model, event.usage)

    def left(self, model: str) -> None:
        """Count an answer that nobody waits for any more."""
        self.requests[model, "cancelled"] += 1

    def hit_rate(self) -> float | None:
        """Return the share of prompt tokens that were known already; None before the first prompt."""
        read = self._total("input")
        return self._total("cached") / read if read else None

    def _total(self, kind: str) -> int:
        return sum(count for (_, of), count in self.tokens.items() if of == kind)

    def _count(self, model: str, usage: Usage) -> None:
        self.tokens[model, "input"] += usage.prompt
        self.tokens[model, "cached"] += usage.cached
        self.tokens[model, "output"] += usage.completion
        self.tokens[model, "reasoning"] += usage.reasoning


def exposition(metrics: Metrics, gauges: dict[str, tuple[str, float]]) -> bytes:
    """Return `metrics` and `gauges` (name -> description, value) as text for Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            yield from _families(metrics, gauges)

    registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return bytes(generate_latest(registry))


def _families(metrics: Metrics, gauges: dict[str, tuple[str, float]]) -> Iterable[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    model = "gen_ai_request_model"
    duration = HistogramMetricFamily(
        "gen_ai_server_request_duration_seconds", "Submission to last token.", labels=[model, "error_type"]
    )
    for (name, error), histogram in metrics.duration.items():
        duration.add_metric([name, error], histogram.buckets(), histogram.sum)
    yield duration
    for title, text, histograms in (
        ("gen_ai_server_time_to_first_token_seconds", "Submission to first token.", metrics.first_token),
        ("gen_ai_server_time_per_output_token_seconds", "Between tokens, after the first.", metrics.each_token),
    ):
        family = HistogramMetricFamily(title, text, labels=[model])
        for name, histogram in histograms.items():
            family.add_metric([name], histogram.buckets(), histogram.sum)
        yield family
    tokens = CounterMetricFamily("gen_ai_server_token_usage", "Tokens.", labels=[model, "gen_ai_token_type"])
    for labels, count in metrics.tokens.items():
        tokens.add_metric(labels, count)
    yield tokens
    requests = CounterMetricFamily("lib_mlx_requests", "Requests that have ended.", labels=[model, "outcome"])
    for labels, count in metrics.requests.items():
        requests.add_metric(labels, count)
    yield requests
    for title, (text, value) in gauges.items():
        gauge = GaugeMetricFamily(title, text)
        gauge.add_metric([], value)
        yield gauge
