from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from image_files import encode
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from rooms import ROOT
from waiting import FOREVER, until

from tnn_runtime import Classifier, InputError, UsageError
from tnn_runtime.prometheus import prometheus_text


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return the value of each sample by its name and its labels, but for the version."""
    return {
        (
            sample.name,
            *(sample.labels[name] for name in ("model", "reason", "le") if name in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name != "tnn_bundle_info"
    }


def test_the_text_of_prometheus_has_every_metric(small_bundle: Path) -> None:
    with Classifier.load(small_bundle, "cpu", max_batch_size=4) as classifier:
        before = samples(prometheus_text(digits=classifier))
        assert before["tnn_requests_total", "digits"] == before["tnn_images_total", "digits"] == 0
        classifier.logits(np.zeros((10, 8, 8, 3), np.uint8))
        with pytest.raises(InputError):
            classifier.predict(["nothing.png"])
        classifier.submit(np.zeros((8, 8, 3), np.uint8)).result(FOREVER)
        content = encode(Image.new("RGB", (9, 7)))
        classifier.submit(content).result(FOREVER)
        until(lambda: classifier.metrics.decoding == 0)
        found = samples(prometheus_text(digits=classifier))
    assert found["tnn_requests_total", "digits"] == 4
    assert found["tnn_images_total", "digits"] == 12
    assert found["tnn_failures_total", "digits", "InputError"] == 1
    assert found["tnn_batch_size_bucket", "digits", "1.0"] == 2
    assert found["tnn_batch_size_bucket", "digits", "2.0"] == 3
    assert found["tnn_batch_size_bucket", "digits", "4.0"] == found["tnn_batch_size_count", "digits"] == 5
    assert found["tnn_batch_size_sum", "digits"] == 12
    assert found["tnn_queue_seconds_count", "digits"] == 2
    assert found["tnn_inference_seconds_count", "digits"] == 5
    assert found["tnn_inference_seconds_sum", "digits"] > 0
    assert found["tnn_request_seconds_count", "digits"] == 3
    assert found["tnn_decode_seconds_count", "digits"] == 2, "the file that is missing, and the one that is there"
    assert found["tnn_batch_fill_bucket", "digits", "0.25"] == 2
    assert found["tnn_batch_fill_bucket", "digits", "0.5"] == 3
    assert found["tnn_batch_fill_sum", "digits"] == 3
    assert found["tnn_decoding_images", "digits"] == found["tnn_rejected_total", "digits"] == 0
    assert found["tnn_waiting_images", "digits"] == found["tnn_running_batches", "digits"] == 0
    assert found["tnn_ready", "digits"] == 1
    assert samples(prometheus_text(digits=classifier))["tnn_ready", "digits"] == 0


def test_the_dashboard_shows_metrics_that_there_are(small_bundle: Path) -> None:
    with Classifier.load(small_bundle, "cpu") as classifier:
        with pytest.raises(InputError):
            classifier.predict(["nothing.png"])
        families = list(text_string_to_metric_families(prometheus_text(digits=classifier)))
    names = {sample.name for family in families for sample in family.samples if not sample.name.endswith("_created")}
    dashboard = (ROOT / "examples" / "grafana.json").read_text()
    shown = {target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]}
    used = set(re.findall(r"\btnn_\w+", " ".join(shown)))
    assert used <= names
    assert {re.sub("_(bucket|sum|count|total)$", "", name) for name in used} == {
        re.sub("_(bucket|sum|count|total)$", "", name) for name in names
    }, "a metric is in no panel"


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "tnn_runtime.prometheus")
    with pytest.raises(UsageError, match=r"need prometheus-client .*pip install 'prometheus-client<1,>=0.20'"):
        import tnn_runtime.prometheus  # noqa: F401
