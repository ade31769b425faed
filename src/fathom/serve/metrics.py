"""Counts and times of the server in Prometheus' form, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """`statistics` gives the engine's own numbers when somebody asks."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        disable_created_metrics()  # a line more for each, of when the server began
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fathom_requests", "Requests answered, by route and status", ["route", "status"], registry=self.registry
        )
        self.prompt_tokens = Counter("fathom_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.answer_tokens = Counter("fathom_answer_tokens", "Tokens of answers", registry=self.registry)
        self.failures = Counter("fathom_engine_failures", "Times that the engine failed", registry=self.registry)
        self.first_token = Histogram(
            "fathom_first_token_seconds", "From a request to its first token", buckets=_FIRST_S, registry=self.registry
        )
        self.token = Histogram(
            "fathom_token_seconds", "From one token of an answer to the next", buckets=_TOKEN_S, registry=self.registry
        )
        self.registry.register(_Gauges(statistics))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Gauges(Collector):
    """One gauge for every number that the engine tells."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]]) -> None:
        self._statistics = statistics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        for name, value in self._statistics().items():
            yield GaugeMetricFamily(f"fathom_engine_{name}", f"{name.replace('_', ' ')}, as of the last step", value)
