"""Explanations of linear heads, and of families that are added to the table."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from explanations import NAMES_OF_CLASSES, linear_explainer_of
from forms import CLASSES, SIZE
from numpy.typing import NDArray
from toy.map_head import BestPlaceHead

from tnn_runtime import ArtifactError, Classifier, NearPrototype, UsageError
from tnn_runtime.bundle.storage import describe_files
from tnn_runtime.explain import EXPLAINERS
from tnn_runtime.explain.additive import AdditiveExplainer
from tnn_runtime.explain.base import Values
from tnn_train import ImageData, LinearHead
from tnn_train.heads import HEADS, Head


@pytest.fixture
def bundle(bundles: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the linear bundle, to be changed."""
    return Path(shutil.copytree(bundles["linear"], tmp_path / "bundle"))


def change(bundle: Path, *, model: Mapping[str, Any] | None = None, head: Mapping[str, Any] | None = None) -> None:
    """Change the model configuration of a bundle, or replace its ``head.npz``, which an empty one removes."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    content["model"] |= model or {}
    if head is not None:
        del content["files"]["head.npz"]
        (bundle / "head.npz").unlink()
        if head:
            np.savez(bundle / "head.npz", **head)
            content["files"] |= describe_files(bundle, ["head.npz"])
    path.write_text(json.dumps(content))


def random_linear(seed: int) -> tuple[LinearHead, NDArray[np.float32], NDArray[np.float32]]:
    """Return a head, embeddings and their logits."""
    torch.manual_seed(seed)
    head, x = LinearHead(SIZE, CLASSES), torch.randn(6, SIZE)
    with torch.no_grad():
        return head, x.numpy(), head(x).numpy()


def test_a_linear_logit_is_what_speaks_for_the_class_and_against_it(bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles["linear"], "cpu") as classifier:
        logits = classifier.logits(data.test.pixels)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=99)
        predicted = classifier.predict(data.test.pixels, top_k=2)
    for row, explanations, ranked in zip(logits, explained, predicted, strict=True):
        assert [(e.label, e.score, e.index) for e in explanations] == [(p.label, p.score, p.index) for p in ranked]
        for e in explanations:
            assert e.logit == pytest.approx(row[e.index], rel=1e-5, abs=1e-5)
            assert e.logit == e.part("supporting").value - e.part("opposing").value + e.bias
            assert {feature.index for feature in e.features} == set(range(24))
            shares = [part for feature in e.features for part in feature.parts]
            assert len(shares) == 24
            assert [part.value for part in shares] == sorted((part.value for part in shares), reverse=True)
            for part in e.parts:
                own = [share.value for share in shares if share.name == part.name]
                assert part.value == pytest.approx(sum(own), rel=1e-12)
                assert {share.sign for share in shares if share.name == part.name} <= {part.sign}
            assert [(part.name, part.sign) for part in e.parts] == [("supporting", 1), ("opposing", -1)]
            assert all(part.value >= 0 for part in (*e.parts, *shares))
            assert e.prototypes == ()


def test_a_linear_logit_is_exact(tmp_path: Path) -> None:
    head, x, logits = random_linear(0)
    weight, bias = (parameter.detach().double().numpy() for parameter in (head.weight, head.bias))
    for one, explanations in zip(
        x.astype(np.float64), linear_explainer_of(head, tmp_path)(x, logits, CLASSES, 99), strict=True
    ):
        assert len(explanations) == CLASSES
        for e in explanations:
            assert e.label == NAMES_OF_CLASSES[e.index]
            assert e.bias == bias[e.index]
            assert e.logit == pytest.approx(weight[e.index] @ one + bias[e.index], rel=1e-13, abs=1e-15)
            assert {f.index: f.parts[0].signed for f in e.features} == dict(enumerate(weight[e.index] * one))


def test_leaving_values_out_is_what_a_head_without_their_weights_gives(tmp_path: Path) -> None:
    head, x, logits = random_linear(1)
    explained = linear_explainer_of(head, tmp_path)(x, logits, CLASSES, 3)
    for one, explanations in zip(x, explained, strict=True):
        for e in explanations:
            assert len(e.features) == 3
            for count in range(4):
                gone = [feature.index for feature in e.features[:count]]
                weight = head.weight.detach().double()[e.index].clone()
                weight[gone] = 0
                found = weight @ torch.from_numpy(one).double() + head.bias[e.index].item()
                assert e.without(gone) == pytest.approx(found.item(), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": np.ones((2, 24))}, "expected the arrays weight, bias"),
        (
            {"weight": np.ones((3, 24)), "bias": np.ones(2)},
            "has the shapes .* for 2 classes and embeddings of 24 values",
        ),
        ({"weight": np.ones((2, 25)), "bias": np.ones(2)}, "has the shapes"),
        ({"weight": np.ones((2, 24)), "bias": np.ones(1)}, "has the shapes"),
        ({"weight": np.ones(24), "bias": np.ones(2)}, "has the shapes"),
        ({"weight": np.full((2, 24), np.nan), "bias": np.ones(2)}, "values that are no finite numbers"),
        ({"weight": np.full((2, 24), "x"), "bias": np.ones(2)}, "no array of numbers called weight"),
    ],
)
def test_wrong_arrays_of_a_linear_head_are_refused(bundle: Path, arrays: dict[str, Any], message: str) -> None:
    change(bundle, head=arrays)
    with pytest.raises(ArtifactError, match=message):
        Classifier.load(bundle, "cpu")


def test_a_linear_bundle_of_an_older_version_does_all_but_explain(
    bundle: Path, bundles: dict[str, Path], data: ImageData
) -> None:
    change(bundle, head={})
    with Classifier.load(bundles["linear"], "cpu") as newer, Classifier.load(bundle, "cpu") as classifier:
        assert classifier.predict(data.test.pixels) == newer.predict(data.test.pixels)
        message = "got a bundle with a linear head and no head.npz, as older versions exported it: export it again"
        with pytest.raises(UsageError, match=message):
            classifier.explain(data.test.pixels)
        with pytest.raises(UsageError, match=message):
            asyncio.run(classifier.explain_async([data.test.pixels[0]]))
        assert classifier.metrics.images == len(data.test)


def test_a_family_of_the_future_does_all_but_explain(bundle: Path, data: ImageData) -> None:
    change(bundle, model={"head": "toy"})
    with Classifier.load(bundle, "cpu") as classifier:
        assert classifier.predict(data.test.pixels)[0]
        with pytest.raises(UsageError, match=f"a toy head; this version explains {', '.join(EXPLAINERS)}: upgrade"):
            classifier.explain(data.test.pixels)


class ToyExplainer(AdditiveExplainer):
    """Classes whose logit is minus the squared distance of an embedding to their prototype."""

    def __init__(self, path: Path, options: Any, *others: Any) -> None:
        super().__init__(path, options, *others)
        self.scale: float = options["scale"]

    def shapes(self, options: Any) -> Mapping[str, str]:
        return {"prototypes": "CD"}

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        return -self.scale * (values - self.arrays["prototypes"][classes]) ** 2

    def prototypes(
        self, values: Values, ranked: NDArray[np.int64], index: int, count: int
    ) -> tuple[NearPrototype, ...]:
        logits = self.terms(values, ranked).sum(1)
        return tuple(
            NearPrototype(other, self.class_names[other], logit, logit if other == index else 0.0)
            for other, logit in zip(ranked[:count].tolist(), logits.tolist(), strict=False)
        )


def test_a_new_family_is_a_class_and_an_entry_in_the_table(
    bundle: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPLAINERS, "toy-metric", ToyExplainer)
    prototypes = np.random.default_rng(0).normal(size=(2, 24))
    change(bundle, model={"head": "toy-metric", "toy_metric": {"scale": 0.5}}, head={"prototypes": prototypes})
    with Classifier.load(bundle, "cpu") as classifier:
        embeddings = classifier.embed(data.test.pixels).astype(np.float64)
        explained = classifier.explain(data.test.pixels, top_k=2, num_features=4, num_prototypes=1)
    for x, explanations in zip(embeddings, explained, strict=True):
        for e in explanations:
            squares = (x - prototypes[e.index]) ** 2 / 2
            assert e.logit == pytest.approx(-squares.sum(), rel=1e-12)
            assert (e.part("supporting").value, e.bias) == (0, 0)
            strongest = np.argsort(-squares)[:4].tolist()
            assert [feature.index for feature in e.features] == strongest
            assert e.without(strongest) == pytest.approx(-np.delete(squares, strongest).sum(), rel=1e-12)
            assert [prototype.index for prototype in e.prototypes] == [explanations[0].index]
        assert explanations[0].prototypes[0].contribution == pytest.approx(explanations[0].logit, rel=1e-12)
        assert explanations[1].prototypes[0].contribution == 0


def test_a_new_family_needs_its_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPLAINERS, "toy", ToyExplainer)
    change(bundle, model={"head": "toy", "toy": {"scale": 1}}, head={})
    with pytest.raises(ArtifactError, match=r"manifest.json does not list head.npz; export the bundle again"):
        Classifier.load(bundle, "cpu")


class BestPlaceExplainer(AdditiveExplainer):
    """Classes whose logit is the largest projection onto their weights over all places of a map."""

    def shapes(self, options: Any) -> Mapping[str, str]:
        return {"weight": "CD"}

    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        terms = self.arrays["weight"][classes, :, None] * values.reshape(len(values), -1)
        best = terms.sum(1).argmax(1)
        return terms[np.arange(len(classes)), :, best]


def test_a_family_may_take_maps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head, x = BestPlaceHead(SIZE, CLASSES), torch.randn(6, SIZE, 3, 2)
    np.savez(tmp_path / "head.npz", weight=head.weight.detach().numpy())
    explainer = BestPlaceExplainer(tmp_path / "head.npz", None, NAMES_OF_CLASSES, SIZE)
    with torch.no_grad():
        logits = head(x).numpy()
    for row, explanations in zip(logits, explainer(x.numpy(), logits, CLASSES, 99), strict=True):
        assert [e.logit for e in explanations] == pytest.approx(sorted(row, reverse=True), rel=1e-5, abs=1e-6)
        assert all(e.without(range(SIZE)) == pytest.approx(0, abs=1e-12) for e in explanations)


def test_every_head_that_exports_arrays_can_be_explained() -> None:
    assert {name for name, head in HEADS.items() if head.arrays is not Head.arrays} == set(EXPLAINERS)
