"""Explanations of parts heads: what each part adds, and where it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import parts as oracle
from part_heads import ALL, CLASSES, SIZE, name, random_parts

from tnn_export.bundle.write import write_head
from tnn_runtime import ArtifactError
from tnn_runtime.explain.parts import PartsExplainer
from tnn_train import PartsConfig
from tnn_train.heads.parts.head import PartsHead

NAMES = tuple(f"class {index}" for index in range(CLASSES))


def explainer_of(head: PartsHead, folder: Path, **changes: Any) -> PartsExplainer:
    write_head(head, folder)
    options = json.loads(json.dumps(dataclasses.asdict(head.config))) | changes
    return PartsExplainer(folder / "head.npz", options, NAMES, SIZE)


@pytest.mark.parametrize("config", ALL, ids=name)
def test_a_logit_is_what_each_part_adds(config: PartsConfig, tmp_path: Path) -> None:
    head, x = random_parts(config)
    maps = x.double().numpy()
    with torch.no_grad():
        logits = head(x).numpy()
    expected, similarities = oracle.logits(head, maps), oracle.similarities(head, maps)
    weight, parts = head.arrays()["weight"].detach().double().numpy(), head.num_prototypes
    explained = explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, parts)
    for image, explanations in enumerate(explained):
        for e in explanations:
            assert e.logit == pytest.approx(expected[image, e.index], rel=1e-9, abs=1e-9)
            assert e.logit == pytest.approx(sum(part.signed for part in e.parts) + e.bias, rel=1e-9)
            added = weight[e.index] * similarities[image]
            assert {f.index: f.parts[0].signed for f in e.features} == pytest.approx(dict(enumerate(added)), abs=1e-9)
            assert e.features[0].name == head.feature_names(NAMES)[e.features[0].index]
            nearest = e.prototypes[0]
            assert nearest.index == similarities[image].argmax()
            assert nearest.similarity == pytest.approx(similarities[image].max(), rel=1e-9)
            assert nearest.contribution == pytest.approx(added[nearest.index], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("config", [PartsConfig(per_class=2), PartsConfig("pipnet", num_parts=7)], ids=name)
def test_without_a_part_it_is_the_logit_of_the_head_without_it(config: PartsConfig, tmp_path: Path) -> None:
    head, x = random_parts(config)
    with torch.no_grad():
        logits = head(x).numpy()
        edited = head.without([0, 3], []).eval()(x).numpy()
    for image, explanations in enumerate(explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, 99)):
        for e in explanations:
            assert e.without([0, 3]) == pytest.approx(edited[image, e.index], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("config", [PartsConfig(per_class=2), PartsConfig("pipnet", num_parts=7)], ids=name)
def test_the_map_of_a_part_is_its_similarity_times_its_weight(config: PartsConfig, tmp_path: Path) -> None:
    head, x = random_parts(config)
    with torch.no_grad():
        logits, maps = head(x).numpy(), head.feature_maps(x, x).numpy()
    weight = head.arrays()["weight"].detach().double().numpy()
    explained = explainer_of(head, tmp_path)(x.numpy(), logits, 2, 99, maps=maps)
    places = oracle.similarity_maps(head, x.double().numpy())
    for image, explanations in enumerate(explained):
        for e in explanations:
            assert e.maps is not None
            expected = weight[e.index][:, None, None] * places[image]
            for feature, found in zip(e.features, e.maps.features, strict=True):
                np.testing.assert_allclose(found, expected[feature.index], rtol=1e-4, atol=1e-4)
                best = np.unravel_index(places[image, feature.index].argmax(), found.shape)
                assert found[best] == pytest.approx(feature.parts[0].signed, rel=1e-4, abs=1e-4)
            np.testing.assert_allclose(e.maps.logit, expected.sum(0), rtol=1e-4, atol=1e-3)


def test_where_nothing_is_nothing_speaks(tmp_path: Path) -> None:
    head, x = random_parts(PartsConfig("pipnet", fires_above=0.9))
    logits = np.zeros((len(x), CLASSES), np.float32)
    with torch.no_grad():
        assert not head(0 * x).any()
    for explanations in explainer_of(head, tmp_path)(0 * x.numpy(), logits, 1):
        assert explanations[0].logit == 0
        assert [part.value for part in explanations[0].parts] == [0, 0]
        assert explanations[0].summary == explanations[0].label


@pytest.mark.parametrize(
    "changes", [{"kind": "deformable"}, {"similarity": "cosine"}, {"epsilon": None}, {"names": [{"index": 1}]}]
)
def test_a_form_that_is_not_known(changes: dict[str, Any], tmp_path: Path) -> None:
    head, _ = random_parts(PartsConfig(per_class=2))
    with pytest.raises(ArtifactError, match="the form of the parts head, .*, is unknown to this version"):
        explainer_of(head, tmp_path, **changes)
