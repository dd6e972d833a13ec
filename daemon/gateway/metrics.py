"""What Prometheus reads at `/metrics`: vLLM's names, under `hermes:`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from daemon.inference.views import EngineView, ModelView

Json = Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)


class Metrics:
    def __init__(
        self,
        models: Callable[[], Iterable[ModelView]],
        engines: Callable[[], Iterable[EngineView]],
        stats: Callable[[], dict[str, Json]],
        streams: Callable[[], int],
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._models, self._engines, self._stats, self._streams = models, engines, stats, streams
        self._registry.register(self)
        model = ["model_name"]

        def histogram(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"hermes:{name}", words, model, buckets=buckets, registry=self._registry)

        def counter(name: str, words: str, labels: list[str]) -> Counter:
            return Counter(f"hermes:{name}", words, labels, registry=self._registry)

        self.first_token_s = histogram("time_to_first_token_seconds", "From asked to the first token", _FIRST_S)
        self.between_tokens_s = histogram("inter_token_latency_seconds", "Between two tokens of a choice", _BETWEEN_S)
        self.whole_s = histogram("e2e_request_latency_seconds", "From asked to the whole answer", _WHOLE_S)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts", model)
        self.generated_tokens = counter("generation_tokens", "Tokens that were generated", model)
        self.success = counter("request_success", "Requests that were answered", ["model_name", "finished_reason"])
        self.failed = counter("request_failed", "Requests that were not answered, by why", ["model_name", "why"])
        self.http = counter("http_requests", "Answers over HTTP", ["route", "status"])

    def collect(self) -> Iterator[Metric]:
        """Gauges, as they are at this moment."""
        running = GaugeMetricFamily("hermes:num_requests_running", "Requests in an engine", labels=["model_name"])
        waiting = GaugeMetricFamily("hermes:num_requests_waiting", "Requests that wait", labels=["model_name"])
        for view in self._models():
            running.add_metric([view.name], view.running)
            waiting.add_metric([view.name], view.waiting)
        yield from (running, waiting)
        resident = GaugeMetricFamily("hermes:engine_resident_bytes", "Memory", labels=["model_name", "engine"])
        device = GaugeMetricFamily("hermes:engine_device_bytes", "Device memory", labels=["model_name", "engine"])
        for engine in self._engines():
            resident.add_metric([engine.model, engine.id], engine.rss_bytes)
            device.add_metric([engine.model, engine.id], engine.device_bytes)
        yield from (resident, device)
        yield GaugeMetricFamily("hermes:streams", "Streams that are read or kept", value=self._streams())
        for name, value in sorted(self._stats().items()):
            if type(value) in (int, float):
                yield GaugeMetricFamily(f"hermes:pool_{name}", "Of the engine pool", value=value)

    def text(self) -> bytes:
        return generate_latest(self._registry)
