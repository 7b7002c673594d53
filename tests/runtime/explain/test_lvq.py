"""Explanations of learning vector quantisation, and the radius within which an answer stays, attacked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lvq_forms import CLASSES, SIZE, each_form, forms, name, random_head
from oracles import lvq as oracle
from torch import Tensor

from tnn_export.bundle.write import write_head
from tnn_runtime import ArtifactError, UsageError
from tnn_runtime.explain import EXPLAINERS
from tnn_runtime.explain.certificate import NORMS, Certificate
from tnn_runtime.explain.lvq import LvqExplainer, LvqExplanation
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LvqConfig, LvqHead

NAMES = tuple(f"class {index}" for index in range(CLASSES))


def explainer_of(head: LvqHead, folder: Path) -> LvqExplainer:
    write_head(head, folder)
    options = json.loads(json.dumps(dataclasses.asdict(head.config)))
    return LvqExplainer(folder / "head.npz", options, NAMES, head.in_features)


def explained(head: LvqHead, x: Tensor, folder: Path, **asked: object) -> list[list[LvqExplanation]]:
    with torch.no_grad():
        logits = head(x).numpy()
    return explainer_of(head, folder)(x.numpy(), logits, CLASSES, 20, 20, **asked)  # type: ignore[arg-type,return-value]


@each_form
def test_parts_features_and_prototypes_add_up_to_the_logit(config: LvqConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    inputs = x.double().numpy()
    logits, distances = oracle.logits(head, inputs), oracle.distances(head, inputs)
    contributions = oracle.contributions(head, inputs)
    for number, explanations in enumerate(explained(head, x, tmp_path)):
        for place, e in enumerate(explanations):
            assert e.logit == pytest.approx(logits[number, e.index], rel=1e-9, abs=1e-9)
            assert e.logit == pytest.approx(sum(part.signed for part in e.parts) + e.bias)
            assert e.logit == pytest.approx(sum(part.signed for f in e.features for part in f.parts) + e.bias)
            assert e.logit == pytest.approx(sum(one.contribution for one in e.prototypes) + e.bias)
            for one in e.prototypes:
                expected = contributions[number, one.index] if head.owners[one.index] == e.index else 0
                assert one.contribution == pytest.approx(expected, rel=1e-9, abs=1e-9)
            found = {one.index: -one.similarity for one in e.prototypes}
            assert [found[p] for p in range(len(distances[number]))] == pytest.approx(distances[number].tolist())
            assert list(found.values()) == sorted(found.values())
            assert {NAMES[head.owners[one.index]] for one in e.prototypes} == {one.label for one in e.prototypes}
            assert (e.certificate is None) == (place > 0)
            contrast = e.contrast
            assert contrast is not None
            assert contrast.difference == pytest.approx(e.logit - logits[number, contrast.index])
            assert contrast.difference == pytest.approx(
                sum(f.value for f in contrast.features) + contrast.bias + contrast.rest
            )


@each_form
def test_without_a_feature_the_logit_is_that_of_the_edited_head(config: LvqConfig, tmp_path: Path) -> None:
    head, x = random_head(dataclasses.replace(config, dropped=()))
    edited = head.without([0, 2], [])
    expected = oracle.logits(edited, x.double().numpy())
    for number, explanations in enumerate(explained(head, x, tmp_path)):
        for e in explanations:
            assert e.without([0, 2]) == pytest.approx(expected[number, e.index], rel=1e-6, abs=1e-6)
            assert e.without([]) == pytest.approx(e.logit)
    with pytest.raises(UsageError, match="expected some of those that this explanation lists"):
        explained(head, x, tmp_path)[0][0].without([SIZE + 1])


@pytest.mark.parametrize("config", [config for config in forms() if config.latent is None], ids=name)
def test_maps_add_up_and_follow_the_weights(config: LvqConfig, tmp_path: Path) -> None:
    head, x = random_head(config)
    maps = x[:, :, None, None] + torch.tensor([[0.5, -0.5], [-0.2, 0.2]])
    for number, explanations in enumerate(explained(head, x, tmp_path, maps=maps.numpy())):
        for e in explanations:
            assert e.maps is not None
            assert e.maps.logit.mean() + e.bias == pytest.approx(e.logit, rel=1e-4, abs=1e-4)
            edge = torch.stack([maps[number, :, row, column] for row in (0, 1) for column in (0, 1)])
            slopes = {f.index: f.parts[0].signed for f in e.features}
            apart = x[number].double().numpy() - oracle.centre(head)
            added = [
                sum(slopes[k] / apart[k] * (place[k] - oracle.centre(head)[k]) for k in slopes)
                for place in edge.double().numpy()
            ]
            np.testing.assert_allclose(e.maps.logit.flatten(), added, rtol=1e-3, atol=1e-3)


def radii_of(head: LvqHead, x: Tensor, norm: str, folder: Path) -> Tensor:
    """Return the radii of the certificates of embeddings, float64 ``[N]``."""
    explainer = explainer_of(head, folder)
    with torch.no_grad():
        answers = head(x).argmax(1).tolist()
    values = explainer.prepare(x.double().numpy())
    pairs = zip(values, answers, strict=True)
    return torch.tensor([explainer.certificate(*pair).radius(norm) for pair in pairs]).double()


def attacked(head: LvqHead, x: Tensor, radii: Tensor, norm: str, steps: int = 30) -> Tensor:
    """Return whether projected gradient descent within the radii ``[N]`` changes answers, bool ``[N]``."""
    head = head.double()
    answer = head(x).argmax(1)
    moved, best = torch.zeros_like(x), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for step in range(steps):
        moved.requires_grad_()
        logits = head(x + moved)
        own = logits.gather(1, answer[:, None]).squeeze(1)
        other = logits.scatter(1, answer[:, None], -torch.inf).amax(1)
        best = torch.maximum(best, (other - own).detach())
        (slope,) = torch.autograd.grad((other - own).sum(), moved)
        size = radii[:, None] * (0.5 if step < steps // 2 else 0.1)
        with torch.no_grad():
            if norm == "l2":
                moved = moved + size * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
                moved *= (radii[:, None] / moved.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
            elif norm == "linf":
                moved = (moved + size * slope.sign()).clamp(-radii[:, None], radii[:, None])
            else:
                steepest = torch.nn.functional.one_hot(slope.abs().argmax(1), x.shape[1])
                moved = moved + size * slope.sign() * steepest
                moved *= (radii[:, None] / moved.abs().sum(1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
    with torch.no_grad():
        assert (moved.norm(float(NORMS[norm][0]), dim=1) <= radii * (1 + 1e-9)).all()
    return best > 0


CERTIFIED = [
    LvqConfig(),
    LvqConfig(prototypes=3, relevances="matrix"),
    LvqConfig(relevances="vector", dropped=(1,), has_centre=True),
    LvqConfig(loss="cross-entropy", pooling="mixture", prototypes=3, relevances="matrix", rank=2),
    LvqConfig(latent=3, hidden=(5,), activation="selu"),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("config", CERTIFIED, ids=name)
def test_no_attack_within_the_radius_changes_an_answer(config: LvqConfig, norm: str, tmp_path: Path) -> None:
    head, _ = random_head(config)
    x = 2 * torch.randn(1000, SIZE, generator=torch.Generator().manual_seed(7))
    radii = radii_of(head, x, norm, tmp_path)
    assert (radii >= 0).all()
    assert attacked(head, x.double(), 0.999 * radii, norm).sum() == 0
    if config.latent is None:
        assert (radii > 0).double().mean() > 0.99


@pytest.mark.parametrize("norm", NORMS)
def test_attacks_beyond_the_radius_change_answers(norm: str, tmp_path: Path) -> None:
    """With one prototype a class the radius is exact: slightly beyond it, most answers fall."""
    head, _ = random_head(LvqConfig(relevances="matrix"))
    x = 2 * torch.randn(1000, SIZE, generator=torch.Generator().manual_seed(7))
    radii = radii_of(head, x, norm, tmp_path)
    assert attacked(head, x.double(), 2 * radii, norm).double().mean() > 0.95
    exact = attacked(head, x.double(), 1.01 * radii, norm, 60).double().mean()
    assert exact > 0.5


def test_the_radius_is_at_least_the_hypothesis_margin(tmp_path: Path) -> None:
    head, x = random_head(LvqConfig(prototypes=3))
    distances = np.sqrt(oracle.distances(head, x.double().numpy()))
    owners = head.owners.numpy()
    for row, (e, *_) in zip(distances, explained(head, x, tmp_path), strict=True):
        own = owners == e.index
        assert e.certificate is not None
        assert e.certificate.radius() >= (row[~own].min() - row[own].min()) / 2 - 1e-9


def test_prototypes_at_one_place_certify_nothing(tmp_path: Path) -> None:
    head, x = random_head(LvqConfig())
    with torch.no_grad():
        head.prototypes[:] = head.prototypes[:1]
    for e, *_ in explained(head, x, tmp_path):
        assert e.certificate is not None
        assert set(e.certificate.radii.values()) == {0.0}


@pytest.mark.parametrize("norm", ["l3", "L2", "", 2, None])
def test_other_norms_are_refused_in_one_line(norm: object) -> None:
    certificate = Certificate("embedding", "margins", {"l1": 2.0, "l2": 1.0, "linf": 0.5})
    assert certificate.radius() == certificate.radius("l2") == 1.0
    with pytest.raises(UsageError, match="this certificate holds for l1, l2, linf"):
        certificate.radius(norm)  # type: ignore[arg-type]


def test_it_is_written_as_json(tmp_path: Path) -> None:
    head, x = random_head(LvqConfig(latent=3))
    ((best, *others), *_) = explained(head, x, tmp_path)
    found = json.loads(json.dumps(best.to_dict()))
    assert found["certificate"]["space"] == "embedding"
    assert "divided by a bound" in found["certificate"]["method"]
    assert set(found["certificate"]["radii"]) == set(NORMS)
    assert all(other.to_dict()["certificate"] is None for other in others)


def test_a_file_that_does_not_fit_is_told(tmp_path: Path) -> None:
    head, _ = random_head(LvqConfig(latent=3, hidden=(5,)))
    write_head(head, tmp_path)
    options = json.loads(json.dumps(dataclasses.asdict(head.config)))
    with pytest.raises(ArtifactError, match="has the shapes"):
        LvqExplainer(tmp_path / "head.npz", options, NAMES, SIZE + 1)
    with pytest.raises(ArtifactError, match="omega"):
        LvqExplainer(tmp_path / "head.npz", {**options, "relevances": "matrix"}, NAMES, SIZE)


@pytest.mark.parametrize("head", ["linear", "lvq"])
def test_features_of_pixels_are_named_by_their_places(head: str, tmp_path: Path) -> None:
    shape = Preprocessing(2, 3, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    random = np.random.default_rng(0)
    if head == "lvq":
        prototypes = random.normal(size=(2, 18))
        arrays = {"prototypes": prototypes, "owners": [0, 1], "centre": prototypes.mean(0), "temperature": 1.0}
    else:
        arrays = {"weight": random.normal(size=(2, 18)), "bias": [0.0, 0.0]}
    np.savez(tmp_path / "head.npz", **arrays)
    options = dataclasses.asdict(LvqConfig()) if head == "lvq" else None
    explainer = EXPLAINERS[head](tmp_path / "head.npz", options, ("a", "b"), 18)
    explainer.pixels = shape
    x, logits = random.normal(size=(1, 18)).astype(np.float32), np.array([[1.0, 0.0]], np.float32)
    ((explanation,),) = explainer(x, logits, 1, 18)
    names = {feature.index: feature.name for feature in explanation.features}
    assert names[0] == "red of pixel (0, 0)"
    assert names[10] == "green of pixel (1, 1)"
    assert {lead.name for lead in explanation.contrast.features} <= set(names.values())
