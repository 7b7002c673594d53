from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tnn_export import ParityReport, Reference, check_parity, lower_model
from tnn_export.lowering import affine
from tnn_export.parity import BATCH_SIZES, BOUNDARY
from tnn_export.serving import ServingModel
from tnn_train import Checkpoint, ImageData, TverskyHead, load_checkpoint
from tnn_train.loop import TrainResult

Change = Callable[[ServingModel], None]


def serve(model: ServingModel) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model(torch.from_numpy(images))[0].numpy()

    return run


def compare(checkpoint: Checkpoint, images: NDArray[np.uint8], change: Change = lambda model: None) -> ParityReport:
    model = ServingModel(lower_model(checkpoint.model), checkpoint.preprocessing)
    change(model)
    return check_parity(Reference(checkpoint.model, checkpoint.preprocessing, images), {"it": serve(model)})


@pytest.fixture
def trained(runs: dict[str, TrainResult]) -> dict[str, Checkpoint]:
    return {name: load_checkpoint(run.best) for name, run in runs.items()}


def test_lowered_models_pass(trained: dict[str, Checkpoint], data: ImageData) -> None:
    for checkpoint in trained.values():
        report = compare(checkpoint, data.test.pixels)
        parity = report.formats["it"]
        assert report.passed
        assert (parity.samples, parity.failed, parity.batch_sizes) == (8, 0, BATCH_SIZES)
        assert 0 < parity.max_rel_diff <= parity.tolerance
        assert parity.top1_agreement == 1


def drop_relu(model: ServingModel) -> None:
    model.backbone.forward = lambda x: model.backbone.norm(model.backbone.conv2(model.backbone.conv1(x))).mean((2, 3))


def wrong_mean(model: ServingModel) -> None:
    model.normalize.shift += 0.01


def swapped_classes(model: ServingModel) -> None:
    model.head.constant.copy_(model.head.constant.flip(0))
    model.head.weight.copy_(model.head.weight.flip(0))


def transposed_kernel(model: ServingModel) -> None:
    model.backbone.conv2.weight.copy_(model.backbone.conv2.weight.transpose(2, 3).clone())


def depends_on_the_batch(model: ServingModel) -> None:
    model.backbone.norm.train()


def not_a_number(model: ServingModel) -> None:
    model.head.constant[0] = float("nan")


def test_eager_logits_that_are_no_numbers_prove_nothing(trained: dict[str, Checkpoint], data: ImageData) -> None:
    checkpoint = trained["tversky"]
    with torch.no_grad():
        checkpoint.model.head.prototypes[0, 0] = float("nan")
    reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels)
    for answer in (7.0, np.nan, np.inf):
        report = check_parity(
            reference, {"it": lambda images, answer=answer: np.full((len(images), 2), answer, np.float32)}
        )
        assert report.formats["it"].failed == 8


def test_every_batch_has_the_size_that_is_reported(trained: dict[str, Checkpoint], data: ImageData) -> None:
    checkpoint = trained["linear"]
    model = ServingModel(lower_model(checkpoint.model), checkpoint.preprocessing)
    sizes = []
    run = serve(model)
    reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels)
    report = check_parity(reference, {"it": lambda images: (sizes.append(len(images)), run(images))[1]})
    assert sizes == [1] * 8 + [7] * 2 + [64]
    assert report.formats["it"].samples == 8


@pytest.mark.parametrize(
    "fault", [drop_relu, wrong_mean, swapped_classes, transposed_kernel, depends_on_the_batch, not_a_number]
)
@pytest.mark.parametrize("name", ["tversky", "jumping"])
def test_planted_faults_are_caught(fault: Change, name: str, trained: dict[str, Checkpoint], data: ImageData) -> None:
    report = compare(trained[name], data.test.pixels, fault)
    assert not report.passed
    assert report.formats["it"].failed > 0
    assert "FAILED" in report.summary()
    assert "FAILED" in report.table()


def test_a_wrong_sign_of_beta_is_caught(
    trained: dict[str, Checkpoint], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = affine.DIFFERENCES["ignorematch"]

    def negated(prototypes: affine.Prototypes) -> tuple[affine.Affine, affine.Affine]:
        input_only, prototype_only = right(prototypes)
        return input_only, torch.tensor(-1.0) * prototype_only

    monkeypatch.setitem(affine.DIFFERENCES, "ignorematch", negated)
    assert not compare(trained["jumping"], data.test.pixels).passed


class TestMembershipBoundary:
    """A sample whose first feature sits on the boundary, and an artifact that puts it on the other side."""

    @pytest.fixture
    def checkpoint(self, trained: dict[str, Checkpoint], data: ImageData) -> Checkpoint:
        """The jumping model, its bank turned so that feature 0 of the first test image is just above 0."""
        checkpoint = trained["jumping"]
        head = checkpoint.model.head
        assert isinstance(head, TverskyHead)
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels[:1])
        x = reference._embeddings[0].clone().double()
        with torch.no_grad():
            row = head.feature_bank[0].double()
            row = row - (row @ x - 1e-7 * x.norm() * row.norm()) / (x @ x) * x
            head.feature_bank[0] = row.float()
            # The prototypes need the feature for its membership to matter.
            head.prototypes += 3 * head.feature_bank[0] / head.feature_bank[0].norm()
            value = float(head.project(x.float()[None])[0, 0])
        assert 0 < abs(value) < BOUNDARY * float(x.norm() * row.norm())
        return checkpoint

    @staticmethod
    def jump(checkpoint: Checkpoint, reference: Reference) -> NDArray[np.float32]:
        """Return the logits with feature 0 on the other side."""
        head = checkpoint.model.head
        assert isinstance(head, TverskyHead)
        with torch.inference_mode():
            a = head.project(reference._embeddings).clone()
            a[:, 0] = torch.where(a[:, 0] > 0, 0.0, 1e-30)
            return head.score(a).numpy()

    def test_a_flip_is_explained_and_counted(self, checkpoint: Checkpoint, data: ImageData) -> None:
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels[:1])
        jumped = self.jump(checkpoint, reference)
        assert np.abs(jumped - reference.logits).max() > 100 * 1e-4 * reference.scale.max()
        parity = check_parity(reference, {"it": lambda images: jumped}).formats["it"]
        assert parity.passed
        assert (parity.explained, parity.failed) == (1, 0)

    def test_an_error_of_the_same_size_in_one_class_fails(self, checkpoint: Checkpoint, data: ImageData) -> None:
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels[:1])
        wrong = self.jump(checkpoint, reference)
        wrong[0, 0] = 2 * reference.logits[0, 0] - wrong[0, 0]
        parity = check_parity(reference, {"it": lambda images: wrong}).formats["it"]
        assert not parity.passed
        assert (parity.explained, parity.failed) == (0, 1)

    def test_an_error_of_the_same_size_away_from_the_boundary_fails(
        self, checkpoint: Checkpoint, data: ImageData
    ) -> None:
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels)
        jumped = self.jump(checkpoint, reference)
        near = reference.margins() < BOUNDARY
        assert near[0]
        assert not near.all()
        parity = check_parity(reference, {"it": lambda images: wanted(reference, jumped, images)}).formats["it"]
        assert parity.explained == near.sum()
        assert parity.failed == (~near).sum()

    def test_a_continuous_measure_explains_nothing(self, checkpoint: Checkpoint, data: ImageData) -> None:
        head = checkpoint.model.head
        assert isinstance(head, TverskyHead)
        head.config = dataclasses.replace(head.config, difference="subtractmatch")
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels[:1])
        wrong = reference.logits - 0.5 * reference.scale
        parity = check_parity(reference, {"it": lambda images: wrong.astype(np.float32)}).formats["it"]
        assert (parity.explained, parity.failed) == (0, 1)

    def test_golden_samples_keep_away_from_the_boundary(self, checkpoint: Checkpoint, data: ImageData) -> None:
        reference = Reference(checkpoint.model, checkpoint.preprocessing, data.test.pixels)
        assert reference.margins()[0] < BOUNDARY
        assert np.argmin(reference.margins()) == 0


def wanted(reference: Reference, logits: NDArray[np.float32], images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the rows of ``logits`` that belong to ``images``."""
    rows = [next(i for i, image in enumerate(reference.images) if np.array_equal(image, wish)) for wish in images]
    return logits[rows]
