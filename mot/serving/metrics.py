"""Prometheus metrics of one server, in a registry of their own. docs/serving.md lists them.

metrics = Metrics(engine)
metrics.requests.labels("/v1/completions", "200").inc()
generate_latest(metrics.registry)
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mot.serving.engine import Engine

STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)  # bucket bounds
ENGINE_COUNTS = {
    "prefills": "prompts computed",
    "prefill_tokens": "tokens of prompts computed",
    "steps": "forward passes of decoding",
    "tokens": "tokens generated",
    "accepted": "prompts accepted",
}


class Metrics:
    """Counters of the API, and the engine's own numbers, read at every scrape."""

    def __init__(self, engine: Engine):
        self.registry, self.engine = CollectorRegistry(), engine
        here = {"registry": self.registry}
        self.requests = Counter("mot_requests", "requests answered", ["path", "status"], **here)
        self.prompt_tokens = Counter("mot_prompt_tokens", "tokens of accepted prompts", **here)
        help = "texts by thought (of a thought sequence: its first token)"
        self.thoughts = Counter("mot_thoughts", help, ["thought"], **here)
        name, bounds = "mot_time_to_first_token_seconds", (*STEP_SECONDS, 30, 60)
        self.first_token = Histogram(name, "arrival to first text", buckets=bounds, **here)
        name = "mot_time_per_token_seconds"
        self.per_token = Histogram(name, "between tokens of a text", buckets=STEP_SECONDS, **here)
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The engine's numbers. The registry calls this."""
        counts = self.engine.counts
        for name, help in ENGINE_COUNTS.items():
            yield CounterMetricFamily(f"mot_{name}", help, counts[name])
        finished = CounterMetricFamily("mot_finished", "accepted prompts by their end", labels=["outcome"])
        for outcome in ("completed", "aborted", "failed"):
            finished.add_metric([outcome], counts[outcome])
        yield finished
        yield GaugeMetricFamily("mot_queue", "prompts waiting", len(self.engine.waiting))
        yield GaugeMetricFamily("mot_running", "prompts running", len(self.engine.running))
        yield GaugeMetricFamily("mot_texts_running", "texts running", self.engine.texts_running())
