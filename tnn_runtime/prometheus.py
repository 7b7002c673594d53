"""The metrics of classifiers for Prometheus; needs the extra metrics.

    from prometheus_client import REGISTRY
    from tnn_runtime.prometheus import ClassifierCollector

    REGISTRY.register(ClassifierCollector({"digits": classifier}))

Names, types and meanings are those of `tnn_runtime.queue.metrics.MetricsSnapshot`. Each sample has the label ``model``,
and ``version``, the first digits of the digest of the bundle. Of a `Deployment`, the version before the current one is
still shown, so that what it has counted to its end is scraped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.queue.metrics import Distribution

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise UsageError(
        f"metrics for Prometheus need prometheus-client ({error}); run: {install_command('metrics')}"
    ) from error

if TYPE_CHECKING:
    from tnn_runtime.classifier import Health
    from tnn_runtime.queue.metrics import MetricsSnapshot

__all__ = ["ClassifierCollector", "prometheus_text"]


_LABELS = ["model", "version"]
_ABOUT = ["digest", "device", "backbone", "head", "precision"]

_FAMILIES: dict[Any, dict[str, tuple[str, str]]] = {
    CounterMetricFamily: {
        "requests": ("tnn_requests", "Requests that came in"),
        "images": ("tnn_images", "Images that the model was run on"),
        "rejected": ("tnn_rejected", "Images that were rejected, as the caller asked for"),
        "not_finite": ("tnn_not_finite", "Images with outputs of NaN or infinity"),
    },
    HistogramMetricFamily: {
        "request_seconds": ("tnn_request_seconds", "Time from a request to its answer"),
        "decode_seconds": ("tnn_decode_seconds", "Decoding and scaling of an image"),
        "queue_seconds": ("tnn_queue_seconds", "Wait of an image for its batch"),
        "inference_seconds": ("tnn_inference_seconds", "Duration of a run of the model"),
        "batch_sizes": ("tnn_batch_size", "Images a run of the model"),
        "batch_fill": ("tnn_batch_fill", "Images a run of the model, as a share of the largest batch"),
    },
    GaugeMetricFamily: {
        "decoding": ("tnn_decoding_images", "Images that are decoded, or wait for that, now"),
        "waiting": ("tnn_waiting_images", "Images that wait for their batch now, those that are decoded included"),
        "running": ("tnn_running_batches", "Runs of the model now"),
    },
}
"""For each kind of metric, the fields of a snapshot that are of it, each with its name and its meaning."""


class Counting(Protocol):
    """What counts: a `Classifier`, a `Deployment`, or what several of them have counted together."""

    @property
    def metrics_by_version(self) -> Sequence[MetricsSnapshot]:
        """As `Deployment.metrics_by_version`."""

    @property
    def info(self) -> dict[str, Any]:
        """As `Classifier.info`."""

    @property
    def health(self) -> Health:
        """As `Classifier.health`."""


class ClassifierCollector(Collector):
    """Reads the metrics of classifiers and deployments whenever a registry is scraped.

    Args:
        classifiers: The classifiers and deployments, by the names that their samples get as the label ``model``.
    """

    def __init__(self, classifiers: Mapping[str, Counting]) -> None:
        self._classifiers = dict(classifiers)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as prometheus-client wants them."""
        families = {
            field: kind(name, told, labels=_LABELS)
            for kind, entries in _FAMILIES.items()
            for field, (name, told) in entries.items()
        }
        failures = CounterMetricFamily("tnn_failures", "Requests that got no answer", labels=[*_LABELS, "reason"])
        ready = GaugeMetricFamily("tnn_ready", "1 if requests should be sent here, else 0", labels=_LABELS)
        bundle = GaugeMetricFamily("tnn_bundle_info", "Always 1; tells what serves now", labels=[*_LABELS, *_ABOUT])
        for name, classifier in self._classifiers.items():
            for found in classifier.metrics_by_version:
                labels = [name, found.version]
                for field, family in families.items():
                    value = getattr(found, field)
                    family.add_metric(labels, *(_histogram(value) if isinstance(value, Distribution) else (value,)))
                for reason, count in found.failures.items():
                    failures.add_metric([*labels, reason], count)
            info = classifier.info
            labels = [name, info["version"]]
            ready.add_metric(labels, classifier.health.ready)
            bundle.add_metric([*labels, *(str(info[key]) for key in _ABOUT)], 1)
        yield from (*families.values(), failures, ready, bundle)


def prometheus_text(**classifiers: Counting) -> str:
    """Return the metrics of classifiers and deployments in the text format of Prometheus, version 0.0.4.

    Args:
        **classifiers: The classifiers and deployments, by the names that their samples get as the label ``model``.
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
