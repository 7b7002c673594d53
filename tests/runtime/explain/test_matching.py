"""Explanations of similarity matching heads against their logits and their definition."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from explanations import NAMES_OF_CLASSES
from forms import CLASSES
from matching_heads import SIZE, random_matching
from oracles import matching as oracle

from tnn_export.bundle.write import write_head
from tnn_runtime import ArtifactError
from tnn_runtime.explain.matching import MatchingExplainer, MatchingExplanation
from tnn_train import MatchingConfig
from tnn_train.heads.matching.head import MatchingHead


def explainer_of(head: MatchingHead, folder: Path) -> MatchingExplainer:
    write_head(head, folder)
    options = json.loads(json.dumps(dataclasses.asdict(head.config)))
    return MatchingExplainer(folder / "head.npz", options, NAMES_OF_CLASSES, SIZE)


@pytest.mark.parametrize("config", oracle.forms(tau=0.5, objective=1.0), ids=oracle.name)
def test_a_logit_is_the_sum_over_the_units(config: MatchingConfig, tmp_path: Path) -> None:
    head, x = random_matching(config)
    with torch.no_grad():
        logits = head(x).numpy()
        units = oracle.activities(head, x.double().numpy())
    weight = oracle.array(head.classifier.weight)
    explained = explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, config.units)
    for number, explanations in enumerate(explained):
        assert len(explanations) == CLASSES
        for e in explanations:
            assert e.logit == pytest.approx(logits[number, e.index], rel=1e-4, abs=1e-4)
            assert e.logit == pytest.approx(e.part("supporting").value - e.part("opposing").value + e.bias)
            added = {feature.index: feature.parts[0].signed for feature in e.features}
            found = [added[k] for k in range(config.units)]
            np.testing.assert_allclose(found, weight[e.index] * units[number], rtol=1e-4, atol=1e-4)
            assert e.contrast is not None


def test_the_activities_are_those_of_the_same_number_of_iterations(tmp_path: Path) -> None:
    head, x = random_matching(MatchingConfig(5, tolerance=0.3))
    with torch.no_grad():
        units = head.activities(x)
        apart = np.abs(units.numpy() - oracle.activities(head, x.double().numpy())).max()
    assert apart > 1e-2
    found = explainer_of(head, tmp_path).prepare(x.double().numpy())
    np.testing.assert_allclose(found, units, rtol=1e-4, atol=1e-4)


def test_leaving_units_out_is_what_a_head_without_them_gives(tmp_path: Path) -> None:
    head, x = random_matching(MatchingConfig(5))
    with torch.no_grad():
        logits = head(x).numpy()
        for number, explanations in enumerate(explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, 2)):
            for e in explanations:
                gone = [feature.index for feature in e.features]
                expected = head.without(gone, ())(x)[number, e.index].item()
                assert e.without(gone) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_linear_circuit_tells_what_the_values_of_the_embedding_add(tmp_path: Path) -> None:
    head, x = random_matching(MatchingConfig(6, "linear"))
    explainer = explainer_of(head, tmp_path)
    with torch.no_grad():
        logits = head(x).numpy()
        center = head.scaling.center
        for number, explanations in enumerate(explainer(x.numpy(), logits, CLASSES, num_features=SIZE)):
            for e in explanations:
                assert isinstance(e, MatchingExplanation)
                assert sum(share.value for share in e.embedding) == pytest.approx(e.logit - e.bias, rel=1e-6, abs=1e-6)
                assert [abs(share.value) for share in e.embedding] == sorted(
                    (abs(share.value) for share in e.embedding), reverse=True
                )
                for share in e.embedding:
                    moved = x[number].clone()
                    moved[share.index] = center[share.index]
                    lost = logits[number, e.index] - head(moved[None])[0, e.index].item()
                    assert share.value == pytest.approx(lost, rel=1e-3, abs=1e-4)
                assert e.to_dict()["embedding"][0]["index"] == e.embedding[0].index
        assert len(explainer(x.numpy(), logits, 1, num_features=2)[0][0].embedding) == 2
    other, x = random_matching(MatchingConfig(6))
    with torch.no_grad():
        ((one,), *_) = explainer_of(other, tmp_path)(x.numpy(), other(x).numpy(), 1)
    assert not isinstance(one, MatchingExplanation)


@pytest.mark.parametrize("options", [None, {}, {"activation": "sigmoid"}, "linear"])
def test_options_of_the_future_are_refused(options: object, tmp_path: Path) -> None:
    head, _ = random_matching(MatchingConfig(5))
    write_head(head, tmp_path)
    with pytest.raises(ArtifactError, match="a matching head with the activation .*; this version knows"):
        MatchingExplainer(tmp_path / "head.npz", options, NAMES_OF_CLASSES, SIZE)


def test_wrong_arrays_are_refused(tmp_path: Path) -> None:
    head, _ = random_matching(MatchingConfig(5))
    arrays = {name: tensor.detach().numpy() for name, tensor in head.arrays().items()}
    np.savez(tmp_path / "head.npz", **{**arrays, "lateral": np.eye(4)})
    with pytest.raises(ArtifactError, match="has the shapes"):
        MatchingExplainer(tmp_path / "head.npz", {"activation": "linear"}, NAMES_OF_CLASSES, SIZE)
