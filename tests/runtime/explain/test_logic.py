"""Explanations of logic heads: what would be, evaluated gate by gate, and nothing else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import logic as oracle

from tnn_export.bundle.write import write_head
from tnn_runtime import UsageError
from tnn_runtime.explain.logic import LogicExplainer, LogicExplanation
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LogicConfig, LogicHead

SIZE, CLASSES, BITS = 6, 3, 3
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def head() -> LogicHead:
    torch.manual_seed(0)
    head = LogicHead(SIZE, CLASSES, LogicConfig(bits=BITS, width=24, layers=2, residual=0.0))
    head.start([(torch.randn(100, SIZE), torch.zeros(100))])
    return head.eval()


@pytest.fixture
def explainer(head: LogicHead, tmp_path: Path) -> LogicExplainer:
    write_head(head, tmp_path)
    return LogicExplainer(tmp_path / "head.npz", None, NAMES, SIZE)


def test_each_feature_is_what_the_logit_would_lose_with_the_value_across_its_threshold(
    head: LogicHead, explainer: LogicExplainer
) -> None:
    x = torch.randn(8, SIZE)
    with torch.no_grad():
        logits = head(x).numpy()
    thresholds = head.thresholds.values.numpy()
    moved_any = False
    for row, own, explanations in zip(x.numpy(), logits, explainer(x.numpy(), logits, CLASSES, 99), strict=True):
        for e in explanations:
            assert isinstance(e, LogicExplanation)
            assert e.logit == pytest.approx(own[e.index], rel=1e-6)
            assert e.logit == e.part("votes").value
            assert e.gates == 8
            assert e.gates_on == round(e.logit * head.temperature)
            assert len(e.features) == SIZE * BITS
            for feature in e.features:
                d, b = divmod(feature.index, BITS)
                moved = row.copy()
                is_above = row[d] > thresholds[d, b]
                moved[d] = thresholds[d, b] if is_above else np.nextafter(thresholds[d, b], np.float32(np.inf))
                expected = oracle.logits(head, moved[None])[0, e.index]
                assert e.without([feature.index]) == pytest.approx(expected, rel=1e-6)
                assert feature.parts[0].signed == pytest.approx(e.logit - expected, abs=1e-6)
                moved_any |= bool(expected != e.logit)
            assert e.contrast is not None
            assert e.contrast.difference == pytest.approx(own[e.index] - own[e.contrast.index], rel=1e-5, abs=1e-6)
            for lead in e.leads:
                assert lead.present == (row[lead.index // BITS] > thresholds.flat[lead.index])
    assert moved_any


def test_several_features_cross_together(head: LogicHead, explainer: LogicExplainer) -> None:
    x = torch.randn(4, SIZE)
    with torch.no_grad():
        logits = head(x).numpy()
    thresholds = head.thresholds.values.numpy()
    for row, explanations in zip(x.numpy(), explainer(x.numpy(), logits, 1, 99), strict=True):
        moved = row.copy()
        for d in (0, 2, 5):
            t = thresholds[d, 1]
            moved[d] = t if row[d] > t else np.nextafter(t, np.float32(np.inf))
        (e,) = explanations
        expected = oracle.logits(head, moved[None])[0, e.index]
        assert e.without([1, 2 * BITS + 1, 5 * BITS + 1]) == pytest.approx(expected)
        assert e.without([]) == e.logit
        with pytest.raises(UsageError, match="expected some of those that this explanation lists"):
            e.without([99])
        again = pickle.loads(pickle.dumps(e))
        assert again == e
        assert again.without([1]) == e.without([1])
        assert "input" not in json.loads(json.dumps(e.to_dict()))


def test_features_are_named_by_value_or_by_pixel(explainer: LogicExplainer, head: LogicHead, tmp_path: Path) -> None:
    x, logits = np.zeros((1, SIZE), np.float32), np.array([[3.0, 2, 1]], np.float32)
    names = {feature.index: feature.name for feature in explainer(x, logits, 1, 99)[0][0].features}
    assert names[4] == f"value 1 above {head.thresholds.values[1, 1].item():.4g}"
    write_head(head, tmp_path)
    on_pixels = LogicExplainer(tmp_path / "head.npz", None, NAMES, SIZE)
    on_pixels.pixels = Preprocessing(1, 2, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    names = {feature.index: feature.name for feature in on_pixels(x, logits, 1, 99)[0][0].features}
    level = int(np.floor(255 * (head.thresholds.values[3, 0].item() * 0.25 + 0.5)))
    assert names[3 * BITS] == f"green of pixel (0, 1) above {level}"
