"""The metrics of classifiers for Prometheus; needs the extra metrics.

    from prometheus_client import REGISTRY
    from tnn_runtime.prometheus import ClassifierCollector

    REGISTRY.register(ClassifierCollector({"digits": classifier}))

Names, types and meanings are those of `tnn_runtime.queue.metrics.MetricsSnapshot`; each sample has the label ``model``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.queue.metrics import Distribution, MetricsSnapshot

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise UsageError(
        f"metrics for Prometheus need prometheus-client ({error}); run: {install_command('metrics')}"
    ) from error

if TYPE_CHECKING:
    from tnn_runtime.classifier import Classifier

__all__ = ["ClassifierCollector", "prometheus_text"]


class ClassifierCollector(Collector):
    """Reads the metrics of classifiers whenever a registry is scraped.

    Args:
        classifiers: The classifiers, by the names that their samples get as the label ``model``.
    """

    def __init__(self, classifiers: Mapping[str, Classifier]) -> None:
        self._classifiers = dict(classifiers)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as prometheus-client wants them."""
        requests = CounterMetricFamily("tnn_requests", "Requests that came in", labels=["model"])
        images = CounterMetricFamily("tnn_images", "Images that the model was run on", labels=["model"])
        failures = CounterMetricFamily("tnn_failures", "Requests that got no answer", labels=["model", "reason"])
        not_finite = CounterMetricFamily("tnn_not_finite", "Images with outputs of NaN or infinity", labels=["model"])
        queue = HistogramMetricFamily("tnn_queue_seconds", "Wait of an image for its batch", labels=["model"])
        sizes = HistogramMetricFamily("tnn_batch_size", "Images a run of the model", labels=["model"])
        inference = HistogramMetricFamily("tnn_inference_seconds", "Duration of a run of the model", labels=["model"])
        waiting = GaugeMetricFamily("tnn_waiting_images", "Images that wait for their batch now", labels=["model"])
        running = GaugeMetricFamily("tnn_running_batches", "Runs of the model now", labels=["model"])
        ready = GaugeMetricFamily("tnn_ready", "1 if requests should be sent here, else 0", labels=["model"])
        for name, classifier in self._classifiers.items():
            found: MetricsSnapshot = classifier.metrics
            requests.add_metric([name], found.requests)
            images.add_metric([name], found.images)
            for reason, count in found.failures.items():
                failures.add_metric([name, reason], count)
            not_finite.add_metric([name], found.not_finite)
            queue.add_metric([name], *_histogram(found.queue_seconds))
            sizes.add_metric([name], *_histogram(found.batch_sizes))
            inference.add_metric([name], *_histogram(found.inference_seconds))
            waiting.add_metric([name], found.waiting)
            running.add_metric([name], found.running)
            ready.add_metric([name], classifier.health.ready)
        yield from (requests, images, failures, not_finite, queue, sizes, inference, waiting, running, ready)


def prometheus_text(**classifiers: Classifier) -> str:
    """Return the metrics of classifiers in the text format of Prometheus, version 0.0.4.

    Args:
        **classifiers: The classifiers, by the names that their samples get as the label ``model``.
    """
    registry = CollectorRegistry()
    registry.register(ClassifierCollector(classifiers))
    return generate_latest(registry).decode()


def _histogram(found: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative counts by upper bound, and the sum of the observations."""
    bounds, total = [*(str(float(bound)) for bound in found.bounds), "+Inf"], 0
    buckets = []
    for bound, count in zip(bounds, found.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets, found.total
