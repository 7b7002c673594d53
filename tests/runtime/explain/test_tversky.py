from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import definitions
import numpy as np
import onnxruntime
import pytest
import torch
from explanations import NAMES_OF_CLASSES, check_explanations, explainer_of
from forms import CLASSES, MEASURES, SIZE, Together, away, each_form, form, random_head, to_onnx

from tnn_export import lower_head
from tnn_runtime import ArtifactError, Classifier, UsageError
from tnn_runtime.explain import measures
from tnn_runtime.explain.tversky import TverskyExplainer
from tnn_train import ImageData, TverskyConfig, TverskyHead, load_checkpoint
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS
from tnn_train.training.loop import TrainResult

NAMES = ("tversky", "jumping", "ratio")


@pytest.mark.parametrize("run", NAMES)
def test_parts_add_up_to_the_logits_of_the_graph(run: str, bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles[run], "cpu") as classifier:
        logits = classifier.logits(data.test.pixels)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=99)
        predicted = classifier.predict(data.test.pixels, top_k=2)
    for row, explanations, ranked in zip(logits, explained, predicted, strict=True):
        assert [(e.label, e.score) for e in explanations] == [(best.label, best.score) for best in ranked]
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
        definitions.prototype_values(head),
        head.config,
    )
    theta = 1.0 if run == "ratio" else head.theta.item()
    for number, (e,) in enumerate(explained):
        assert e.common == pytest.approx(theta * common[number, e.index], rel=1e-5, abs=1e-6)
        assert e.input_only == pytest.approx(head.alpha.item() * input_only[number, e.index], rel=1e-5, abs=1e-6)
        assert e.prototype_only == pytest.approx(head.beta.item() * prototype_only[number, e.index], rel=1e-5, abs=1e-6)
        assert len(e.features) == 5


@each_form()
def test_every_form_is_split_into_parts_that_add_up(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    expected, magnitude = definitions.logits(head, x.double().numpy())
    explained = explainer_of(head, tmp_path)(x.numpy(), expected.astype(np.float32), CLASSES, 99)
    for number, explanations in enumerate(explained):
        ranked = np.argsort(-expected[number].astype(np.float32), kind="stable")
        assert [e.index for e in explanations] == ranked.tolist()
        for e in explanations:
            assert e.label == NAMES_OF_CLASSES[e.index]
            assert e.logit == pytest.approx(expected[number, e.index], abs=1e-5 * (magnitude[number, e.index] + 1))
            parts = (e.common, e.input_only, e.prototype_only)
            for part_name, part in zip(("common", "input_only", "prototype_only"), parts, strict=True):
                assert part == pytest.approx(sum(getattr(f, part_name) for f in e.features), rel=1e-9, abs=1e-9)
            if config.model == "contrast":
                assert e.logit == pytest.approx(parts[0] - parts[1] - parts[2] + e.bias, rel=1e-9, abs=1e-9)
            elif config.num_prototypes is None:
                numerator = parts[0] + config.smooth * e.offset
                assert e.logit == pytest.approx(e.scale * numerator / (sum(parts) + e.offset), rel=1e-9)
            else:
                assert e.logit == pytest.approx(parts[0] + e.offset + e.bias, rel=1e-9)
                assert (e.offset != 0) == config.smooth


def test_parts_of_larger_heads_add_up_to_the_logits_of_onnx_runtime(tmp_path: Path) -> None:
    heads = []
    for number, config in enumerate(MEASURES):
        torch.manual_seed(number)
        heads.append(TverskyHead(48, CLASSES, dataclasses.replace(config, num_features=100)))
    # Features on the boundary may belong to the input in float32 and not in float64: what to do about these is the
    # business of the proof of an export.
    x = torch.randn(20_000, 48).relu()
    x = x[torch.stack([away(head, x, 1e-6) for head in heads]).all(0)][:8]
    file = to_onnx(Together([lower_head(head) for head in heads]), tmp_path / "heads.onnx", x.shape[1])
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for head, logits in zip(heads, session.run(None, {"x": x.numpy()}), strict=True):
        check_explanations(head, x, logits, tmp_path)


@each_form()
def test_deleting_the_strongest_features_moves_the_logit_by_what_was_said(
    config: TverskyConfig, tmp_path: Path
) -> None:
    head, x = random_head(config, 3)
    with torch.no_grad():
        logits = head(x)
    explained = explainer_of(head, tmp_path)(x.numpy(), logits.numpy(), CLASSES, 5)
    for number, explanations in enumerate(explained):
        for e in explanations:
            strongest = [feature.index for feature in e.features[:3]]
            found = lower_head(deleted(head, strongest))(x[[number]])[0, e.index].item()
            _, magnitude = definitions.logits(head, x[[number]].double().numpy())
            allowed = 1e-5 * (magnitude[0, e.index] + 1)
            assert e.without(strongest) == pytest.approx(found, abs=allowed)
            if config.model == "contrast":
                moved = sum(f.common - f.input_only - f.prototype_only for f in e.features[:3])
                assert logits[number, e.index].item() - moved == pytest.approx(found, abs=allowed)
            assert e.without([]) == pytest.approx(e.logit, rel=1e-9, abs=1e-9)


def deleted(head: TverskyHead, features: list[int]) -> TverskyHead:
    """Return a head that has not got some features: without their rows of the bank, or with the weight 0."""
    if head.feature_bank is None:
        other = copy.deepcopy(head)
        with torch.no_grad():
            other.raw_feature_weight[features] = -torch.inf
        return other
    head = without_opposites(head)
    kept = [row for row in range(head.num_features) if row not in features]
    state = head.state_dict()
    for name in ("feature_bank", "thresholds"):
        if name in state:
            state[name] = state[name][kept]
    if head.config.prototype_space == "feature":
        state["prototypes"] = state["prototypes"][:, kept]
    other = TverskyHead(SIZE, CLASSES, dataclasses.replace(head.config, num_features=len(kept)))
    other.load_state_dict(state)
    return other


def without_opposites(head: TverskyHead) -> TverskyHead:
    """Return the same head with a row of the bank for each feature."""
    ratio = head.config.opposites
    if not ratio:
        return head
    state = head.state_dict()
    for name in ("feature_bank", "thresholds"):
        if name in state:
            state[name] = torch.cat([state[name], -ratio * state[name]])
    other = TverskyHead(SIZE, CLASSES, dataclasses.replace(head.config, opposites=0.0))
    other.load_state_dict(state)
    return other


@each_form()
def test_the_nearest_prototypes_are_those_of_the_head(config: TverskyConfig, tmp_path: Path) -> None:
    head, x = random_head(config, 4)
    with torch.no_grad():
        logits = head(x).numpy()
    similarities, magnitude = definitions.similarities_to_prototypes(head, x.double().numpy())
    count = len(head.prototypes)
    for number, explanations in enumerate(explainer_of(head, tmp_path)(x.numpy(), logits, 2, 5, count)):
        expected = similarities[number]
        for e in explanations:
            assert sorted(p.index for p in e.prototypes) == list(range(count))
            found = [p.similarity for p in e.prototypes]
            assert found == sorted(found, reverse=True)
            for p in e.prototypes:
                assert p.similarity == pytest.approx(expected[p.index], abs=1e-5 * (magnitude[number].max() + 1))
                assert p.label == (NAMES_OF_CLASSES[p.index] if head.linear is None else None)
            assert sum(p.contribution for p in e.prototypes) + e.bias == pytest.approx(e.logit, rel=1e-9, abs=1e-9)
        first = explainer_of(head, tmp_path)(x.numpy(), logits, 1, 5, 2)[number][0]
        assert first.prototypes == explanations[0].prototypes[:2]


def test_only_listed_features_can_be_left_out(bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        (explanation,) = classifier.explain(data.test.pixels[:1], top_k=1, num_features=3)[0]
    listed = [feature.index for feature in explanation.features]
    other = min(set(range(16)) - set(listed))
    with pytest.raises(UsageError, match=rf"got the features \[{other}\]; expected some of those that this"):
        explanation.without([other])
    assert explanation.without(listed[:1]) != explanation.logit


def test_every_measure_can_be_explained() -> None:
    assert set(measures.COMMON) == set(INTERSECTIONS)
    assert set(measures.DISTINCTIVE) == set(DIFFERENCES)
    assert set(measures.MEMBERSHIPS) == set(MEMBERSHIPS)


def head_with_attributes() -> tuple[TverskyHead, torch.Tensor]:
    """Return a head of three features and their opposites; the first two are attributes."""
    attributes = (Attribute((0, 1)), Attribute((2,), "wings"))
    return random_head(form(opposites=0.7, thresholds=True, prototype_space="feature", attributes=attributes))


def test_features_are_named_after_the_classes_that_share_them(tmp_path: Path) -> None:
    head, x = head_with_attributes()
    with torch.no_grad():
        logits = head(x).numpy()
    for row in explainer_of(head, tmp_path)(x.numpy(), logits, CLASSES, 6):
        for e in row:
            assert {f.index: f.name for f in e.features} == {
                0: "class 0 or class 1",
                1: "wings",
                2: None,
                3: "not class 0 or class 1",
                4: "not wings",
                5: None,
            }
            assert {f.title for f in e.features if f.name is None} == {"feature 2", "feature 5"}
            assert all(lead.name == next(f.name for f in e.features if f.index == lead.index) for lead in e.leads)
            assert [feature["name"] for feature in e.to_dict()["features"]] == [f.name for f in e.features]


def test_attributes_without_opposites_name_nothing(tmp_path: Path) -> None:
    head, x = random_head(form(attributes=(Attribute((0, 1)),)))
    ((e,), *_) = explainer_of(head, tmp_path)(x.numpy(), head(x).detach().numpy(), 1, 6)
    assert {f.name for f in e.features} == {None}


def test_forms_of_before_need_not_say_what_they_have_not(bundles: dict[str, Path], data: ImageData) -> None:
    config = dataclasses.asdict(TverskyConfig(num_features=16))
    new = ("thresholds", "opposites", "prototype_space", "start", "unfold_at", "code", "smooth", "attributes")
    old = {name: value for name, value in config.items() if name not in new}
    assert len(old) == len(config) - len(new)
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        x, logits = classifier.embed(data.test.pixels), classifier.logits(data.test.pixels)
    ours, theirs = (
        TverskyExplainer(bundles["tversky"] / "head.npz", form, ("cat", "dog"), 24)(x, logits) for form in (config, old)
    )
    assert ours == theirs


def test_a_bank_that_does_not_fit_its_opposites_is_refused(tmp_path: Path) -> None:
    head, _ = head_with_attributes()
    explainer_of(head, tmp_path)
    file, config = tmp_path / "head.npz", dataclasses.asdict(head.config)
    arrays = dict(np.load(file))
    np.savez(file, **{**arrays, "prototype_features": arrays["prototype_features"][:, :5]})
    with pytest.raises(ArtifactError, match="has 3 rows of the bank for 5 features and their opposites, and 2 attri"):
        TverskyExplainer(file, config, NAMES_OF_CLASSES, SIZE)
    np.savez(file, **arrays)
    with pytest.raises(
        ArtifactError, match="6 features and their opposites, and 4 attributes; export the bundle again"
    ):
        TverskyExplainer(file, {**config, "attributes": 2 * config["attributes"]}, NAMES_OF_CLASSES, SIZE)
    np.savez(file, **{**arrays, "thresholds": np.zeros(6)})
    with pytest.raises(ArtifactError, match="has the shapes"):
        TverskyExplainer(file, config, NAMES_OF_CLASSES, SIZE)


def test_a_form_of_the_future_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.asdict(TverskyConfig())
    other_forms = [
        {**config, "intersection": "cosine"},
        {**config, "membership": "fuzzy"},
        {**config, "sharpness": "a"},
        {**config, "thresholds": "yes"},
        {**config, "thresholds": 1},
        {**config, "smooth": 1},
        *({**config, "opposites": value} for value in (True, "1", None, -1.0, float("inf"), float("nan"))),
        *({**config, "prototype_space": value} for value in ("pixels", None, [])),
        *({**config, "attributes": value} for value in (None, 3, "ab", [3], [{}], [{"name": None}])),
        *(
            {**config, "attributes": [{"name": name, "classes": classes}]}
            for name, classes in (
                (1, [0]),
                (None, []),
                (None, [2]),
                (None, [-1]),
                (None, ["0"]),
                (None, [0.0]),
                ("a", 0),
            )
        ),
    ]
    for other in (*other_forms, None, {**config, "intersection": []}, {}):
        with pytest.raises(ArtifactError, match="cannot be explained by this version; upgrade"):
            TverskyExplainer(bundles["tversky"] / "head.npz", other, ("a", "b"), 24)


def test_a_file_that_does_not_fit_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    config = dataclasses.asdict(TverskyConfig())
    with pytest.raises(ArtifactError, match=r"head.npz cannot be read .*expected the arrays prototype_features"):
        TverskyExplainer(tmp_path / "head.npz", config, ("a", "b"), 24)
    (tmp_path / "head.npz").touch()
    with pytest.raises(ArtifactError, match="cannot be read"):
        TverskyExplainer(tmp_path / "head.npz", config, ("a", "b"), 24)
    for names, size, found in ((("a", "b", "c"), 24, "3 classes"), (("a", "b"), 23, "2 classes")):
        with pytest.raises(
            ArtifactError, match=f"for {found} and embeddings of {size} values; export the bundle again"
        ):
            TverskyExplainer(bundles["tversky"] / "head.npz", config, names, size)
    arrays = dict(np.load(bundles["tversky"] / "head.npz"))
    for key, value in (("alpha", np.ones(3)), ("prototype_features", np.ones((4, 5))), ("feature_bank", np.ones(3))):
        np.savez(tmp_path / "head.npz", **{**arrays, key: value})
        with pytest.raises(ArtifactError, match="has the shapes"):
            TverskyExplainer(tmp_path / "head.npz", config, ("a", "b"), 24)
