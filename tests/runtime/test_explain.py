from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import definitions
import numpy as np
import pytest
from forms import CLASSES, FORMS, name, random_head

from tnn_export.bundle import write_head
from tnn_runtime import ArtifactError, Classifier, UsageError
from tnn_runtime import explain as module
from tnn_runtime.explain import HeadExplainer
from tnn_train import ImageData, TverskyConfig, TverskyHead, load_checkpoint
from tnn_train.loop import TrainResult
from tnn_train.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS

NAMES = ("tversky", "jumping", "ratio")


@pytest.mark.parametrize("run", NAMES)
def test_parts_add_up_to_the_logits_of_the_graph(run: str, bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles[run], "cpu") as classifier:
        logits = classifier.logits(data.test.pixels)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=99)
    for row, explanations in zip(logits, explained, strict=True):
        assert [e.index for e in explanations] == np.argsort(-row, kind="stable").tolist()
        for e in explanations:
            assert e.label == data.class_names[e.index]
            assert e.logit == pytest.approx(row[e.index], rel=1e-4, abs=1e-4)
            if run == "ratio":
                against = e.input_only + e.prototype_only + e.offset
                assert e.logit == pytest.approx(e.scale * e.common / (e.common + against), rel=1e-9)
            else:
                assert e.logit == pytest.approx(e.common - e.input_only - e.prototype_only, rel=1e-9)
            for part in ("common", "input_only", "prototype_only"):
                assert getattr(e, part) == pytest.approx(sum(getattr(f, part) for f in e.features), rel=1e-9)
            sizes = [max(f.common, f.input_only, f.prototype_only) for f in e.features]
            assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("run", NAMES)
def test_parts_are_the_measures_of_the_paper(
    run: str, bundles: dict[str, Path], runs: dict[str, TrainResult], data: ImageData
) -> None:
    head = load_checkpoint(runs[run].best).model.head
    assert isinstance(head, TverskyHead)
    with Classifier.load(bundles[run], "cpu") as classifier:
        x = classifier.embed(data.test.pixels).astype(np.float64)
        explained = classifier.explain(data.test.pixels, top_k=1)
    common, input_only, prototype_only = definitions.measures(
        definitions.feature_values(head, x),
        definitions.feature_values(head, definitions.as_array(head.prototypes)),
        head.config,
    )
    theta = 1.0 if run == "ratio" else head.theta.item()
    for number, (e,) in enumerate(explained):
        assert e.common == pytest.approx(theta * common[number, e.index], rel=1e-5, abs=1e-6)
        assert e.input_only == pytest.approx(head.alpha.item() * input_only[number, e.index], rel=1e-5, abs=1e-6)
        assert e.prototype_only == pytest.approx(head.beta.item() * prototype_only[number, e.index], rel=1e-5, abs=1e-6)
        assert len(e.features) == 5


@pytest.mark.parametrize("config", FORMS, ids=name)
def test_every_form_is_split_into_parts_that_add_up(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    write_head(head, tmp_path)
    explainer = HeadExplainer(tmp_path / "head.npz", json.loads(json.dumps(dataclasses.asdict(config))), CLASSES)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    for number, row in enumerate(x.numpy()):
        for index in range(CLASSES):
            e = explainer(row, index, "label", 99)
            assert e.logit == pytest.approx(expected[number, index], abs=1e-5 * (magnitude[number, index] + 1))
            parts = (e.common, e.input_only, e.prototype_only)
            for part_name, part in zip(("common", "input_only", "prototype_only"), parts, strict=True):
                assert part == pytest.approx(sum(getattr(f, part_name) for f in e.features), rel=1e-9, abs=1e-9)
            if config.model == "contrast":
                assert e.logit == pytest.approx(parts[0] - parts[1] - parts[2] + e.bias, rel=1e-9, abs=1e-9)
            elif config.num_prototypes is None:
                assert e.logit == pytest.approx(e.scale * parts[0] / (sum(parts) + e.offset), rel=1e-9)
            else:
                assert e.logit == pytest.approx(parts[0] + e.bias, rel=1e-9)


def test_every_measure_can_be_explained() -> None:
    assert set(module._COMMON) == set(INTERSECTIONS)
    assert set(module._DISTINCTIVE) == set(DIFFERENCES)
    assert set(module._MEMBERSHIPS) == set(MEMBERSHIPS)


def test_a_linear_head_has_no_parts(bundles: dict[str, Path], data: ImageData) -> None:
    with (
        Classifier.load(bundles["linear"], "cpu") as classifier,
        pytest.raises(UsageError, match="this bundle has a linear head; only Tversky heads have parts to explain"),
    ):
        classifier.explain(data.test.pixels)


def test_a_form_of_the_future_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.asdict(TverskyConfig())
    other_forms = [
        {**config, "intersection": "cosine"},
        {**config, "membership": "fuzzy"},
        {**config, "sharpness": "a"},
    ]
    for other in (*other_forms, None, {**config, "intersection": []}, {}):
        with pytest.raises(ArtifactError, match="cannot be explained by this version; upgrade"):
            HeadExplainer(bundles["tversky"] / "head.npz", other, 2)


def test_a_file_that_does_not_fit_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.asdict(TverskyConfig())
    with pytest.raises(ArtifactError, match=r"head.npz cannot be read .*expected the arrays prototype_features"):
        HeadExplainer(tmp_path / "head.npz", config, 2)
    (tmp_path / "head.npz").touch()
    with pytest.raises(ArtifactError, match="cannot be read"):
        HeadExplainer(tmp_path / "head.npz", config, 2)
    with pytest.raises(ArtifactError, match="for 3 classes; export the bundle again"):
        HeadExplainer(bundles["tversky"] / "head.npz", config, 3)
    arrays = dict(np.load(bundles["tversky"] / "head.npz"))
    for key, value in (("alpha", np.ones(3)), ("prototype_features", np.ones((4, 5))), ("feature_bank", np.ones(3))):
        np.savez(tmp_path / "head.npz", **{**arrays, key: value})
        with pytest.raises(ArtifactError, match="has the shapes"):
            HeadExplainer(tmp_path / "head.npz", config, 2)
