from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from forms import SIZE, form, random_head
from numpy.typing import NDArray
from torch import Tensor

from tnn_export import ExportError, ParityReport, Reference, check_parity
from tnn_export.formats.precision import PRECISIONS
from tnn_export.lowering.graph import ServingModel, extra_outputs
from tnn_export.lowering.tversky import affine
from tnn_export.proof.parity import BATCH_SIZES, proof_batch_sizes
from tnn_export.proof.reference import BOUNDARY
from tnn_export.proof.report import StageParity
from tnn_export.proof.running import Ran, Runner
from tnn_export.proof.samples import Samples, make_embeddings, make_samples
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_train import Checkpoint, ImageData, TverskyHead, load_checkpoint
from tnn_train.training.loop import TrainResult

Change = Callable[[ServingModel], object]


def serve(model: ServingModel) -> Runner:
    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        with torch.inference_mode():
            outputs = [model(torch.from_numpy(images)) for images in batches]
        return Ran([{name: value.numpy() for name, value in output.items()} for output in outputs], "here")

    return run


def refer(checkpoint: Checkpoint, data: ImageData, **wanted: bool) -> Reference:
    samples = make_samples(checkpoint.preprocessing, data.test.pixels, data.test.labels)
    return Reference.of(checkpoint.model, checkpoint.preprocessing, samples, **wanted)


def compare(checkpoint: Checkpoint, data: ImageData, change: Change = id, precision: str = "fp32") -> ParityReport:
    model = ServingModel(checkpoint.model, checkpoint.preprocessing, (), PRECISIONS[precision].dtype)
    change(model)
    return check_parity(refer(checkpoint, data), {"it": serve(model)}, precision)


def answers(reference: Reference, logits: NDArray[np.float32], embeddings: Tensor | None = None) -> Runner:
    """Return an artifact that gives certain logits, and embeddings, for each sample."""
    embeddings = reference.embeddings if embeddings is None else embeddings

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        samples = reference.samples.images
        rows = [[np.flatnonzero((samples == image).all((1, 2, 3)))[0] for image in images] for images in batches]
        return Ran([{"logits": logits[row], "embedding": embeddings.numpy()[row]} for row in rows])

    return run


@pytest.fixture
def trained(runs: dict[str, TrainResult]) -> dict[str, Checkpoint]:
    return {name: load_checkpoint(run.best) for name, run in runs.items()}


class TestSamples:
    def test_real_ones_come_first_and_once(self, trained: dict[str, Checkpoint], data: ImageData) -> None:
        images, labels = data.test.pixels, data.test.labels
        twice = np.concatenate([images, images])
        samples = make_samples(trained["linear"].preprocessing, twice, np.concatenate([labels, labels]))
        assert np.array_equal(samples.images[:8], images)
        assert np.array_equal(samples.labels[:8], labels)
        assert samples.kinds[:8] == ("real",) * 8
        assert set(samples.kinds[8:]) == {"random", "zeros", "constant", "saturated", "pattern"}
        assert (samples.labels[8:] == -1).all()
        assert len(np.unique(samples.images, axis=0)) == len(samples)
        assert samples.images[8:].max() == 255

    @pytest.mark.parametrize("channels", [1, 3])
    def test_made_ones_are_of_the_model_s_size(
        self, channels: int, trained: dict[str, Checkpoint], data: ImageData
    ) -> None:
        preprocessing = dataclasses.replace(
            trained["linear"].preprocessing, channels=channels, mean=(0.5,) * channels, std=(0.2,) * channels
        )
        samples = make_samples(preprocessing, data.test.pixels[..., :channels])
        assert samples.images.shape == (len(samples), 16, 16, channels)
        assert len(np.unique(samples.images, axis=0)) == len(samples)

    def test_embeddings_sit_on_both_sides_of_the_boundary(
        self, trained: dict[str, Checkpoint], data: ImageData
    ) -> None:
        head = trained["jumping"].model.head
        assert isinstance(head, TverskyHead)
        samples = make_embeddings(head, refer(trained["jumping"], data).embeddings)
        x = torch.from_numpy(samples.images)[[kind == "boundary" for kind in samples.kinds]]
        with torch.no_grad():
            near = (head.project(x).abs() / head.reach(x)).double() < 1e-6
        assert near.any(1).all()
        assert near.any(0).sum() == 4


def test_lowered_models_pass(trained: dict[str, Checkpoint], data: ImageData) -> None:
    for checkpoint in trained.values():
        report = compare(checkpoint, data)
        parity = report.stages["it"]
        assert report.passed
        assert parity.problems == ()
        assert parity.samples["real"] == 8
        assert parity.failed == 0
        assert parity.batch_sizes == BATCH_SIZES
        assert 0 < parity.max_rel_diff <= 1e-4
        assert parity.top1_agreement == 1
        assert parity.accuracy == parity.eager_accuracy is not None
        assert len(parity.relative) == sum(parity.samples.values())
        assert max(parity.relative) == pytest.approx(parity.max_rel_diff, rel=1e-2)
        json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["tversky", "jumping", "ratio"])
def test_every_output_is_compared(name: str, trained: dict[str, Checkpoint], data: ImageData) -> None:
    checkpoint = trained[name]
    model = ServingModel(checkpoint.model, checkpoint.preprocessing, extra_outputs("tversky"))
    reference = refer(checkpoint, data, parts=True, maps=True)
    assert check_parity(reference, {"it": serve(model)}).passed
    with pytest.raises(ExportError, match=r"for a reference without maps; make it with Reference.of\(..., maps=True"):
        check_parity(refer(checkpoint, data, parts=True), {"it": serve(model)})
    for output in extra_outputs("tversky"):

        def changed(batches: Sequence[NDArray[Any]], output: str = output) -> Ran:
            ran = serve(model)(batches)
            return Ran([{**values, output: values[output] + np.float32(0.01)} for values in ran.outputs])

        parity = check_parity(reference, {"it": changed}, "fp32", (64,)).stages["it"]
        assert parity.failed == len(reference.samples)


def drop_relu(model: ServingModel) -> None:
    model.backbone.forward = lambda x: model.backbone.conv2(model.backbone.conv1(x)).mean((2, 3))


def wrong_mean(model: ServingModel) -> None:
    model.normalize.shift += 0.01


def swapped_classes(model: ServingModel) -> None:
    model.head.map.bias.copy_(model.head.map.bias.flip(0))
    model.head.map.weight.copy_(model.head.map.weight.flip(0))


def transposed_kernel(model: ServingModel) -> None:
    model.backbone.conv2.weight.copy_(model.backbone.conv2.weight.transpose(2, 3).clone())


def depends_on_the_batch(model: ServingModel) -> None:
    model.backbone.register_forward_hook(lambda module, inputs, output: output + 0.01 * output.mean(0))


def not_a_number(model: ServingModel) -> None:
    model.head.map.bias[0] = float("nan")


@pytest.mark.parametrize(
    "fault", [drop_relu, wrong_mean, swapped_classes, transposed_kernel, depends_on_the_batch, not_a_number]
)
@pytest.mark.parametrize("name", ["tversky", "jumping"])
def test_planted_faults_are_caught(fault: Change, name: str, trained: dict[str, Checkpoint], data: ImageData) -> None:
    report = compare(trained[name], data, fault)
    parity = report.stages["it"]
    assert not report.passed
    assert parity.failed > 0
    assert f"it: {parity.failed} of" in report.summary()
    assert "FAILED" in report.table()
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_fault_of_one_batch_size_is_caught(trained: dict[str, Checkpoint], data: ImageData) -> None:
    reference = refer(trained["tversky"], data)
    good = serve(ServingModel(trained["tversky"].model, trained["tversky"].preprocessing))

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        ran = good(batches)
        return Ran(
            [
                {**values, "logits": values["logits"] * (1.001 if len(images) == 7 else 1)}
                for images, values in zip(batches, ran.outputs, strict=True)
            ]
        )

    assert check_parity(reference, {"it": run}, "fp32", (1, 64)).passed
    assert not check_parity(reference, {"it": run}).passed


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_an_overflow_in_half_precision_is_caught(
    precision: str, trained: dict[str, Checkpoint], data: ImageData
) -> None:
    checkpoint = trained["tversky"]
    backbone = checkpoint.model.backbone
    with torch.no_grad():
        backbone.conv1.weight *= 1e5
        backbone.conv2.weight /= 1e5
    parity = compare(checkpoint, data, precision=precision).stages["it"]
    assert parity.passed == (precision != "fp16")
    if precision == "fp16":
        assert parity.max_embedding_diff > 1e30


def test_a_wrong_sign_of_beta_is_caught(
    trained: dict[str, Checkpoint], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = affine.DIFFERENCES["ignorematch"]

    def negated(prototypes: affine.Prototypes) -> tuple[affine.Affine, affine.Affine]:
        input_only, prototype_only = right(prototypes)
        return input_only, torch.tensor(-1.0) * prototype_only

    monkeypatch.setitem(affine.DIFFERENCES, "ignorematch", negated)
    assert not compare(trained["jumping"], data).passed


def test_eager_logits_that_are_no_numbers_prove_nothing(trained: dict[str, Checkpoint], data: ImageData) -> None:
    checkpoint = trained["tversky"]
    with torch.no_grad():
        checkpoint.model.head.prototypes[0, 0] = float("nan")
    reference = refer(checkpoint, data)
    count = len(reference.samples)
    for answer in (7.0, np.nan, np.inf):
        wrong = answers(reference, np.full((count, 2), answer, np.float32))
        assert check_parity(reference, {"it": wrong}).stages["it"].failed == count


def test_every_batch_has_the_size_that_is_reported(trained: dict[str, Checkpoint], data: ImageData) -> None:
    checkpoint = trained["linear"]
    reference = refer(checkpoint, data)
    sizes: list[int] = []
    run = serve(ServingModel(checkpoint.model, checkpoint.preprocessing))

    def counted(batches: Sequence[NDArray[Any]]) -> Ran:
        sizes.extend(len(images) for images in batches)
        return run(batches)

    check_parity(reference, {"it": counted})
    count = len(reference.samples)
    assert sizes == [1] * count + [7] * -(-count // 7) + [64]


@pytest.mark.parametrize(
    ("bounds", "sizes"),
    [
        (BatchBounds(), (1, 7, 64)),
        (BatchBounds(9, None), (9, 64)),
        (BatchBounds(1, 32), (1, 7, 32)),
        (BatchBounds(4, 4), (4,)),
        (BatchBounds(1, 2), (1, 2)),
    ],
)
def test_batch_sizes_keep_within_the_bounds(bounds: BatchBounds, sizes: tuple[int, ...]) -> None:
    assert proof_batch_sizes(bounds) == sizes


class TestMembershipBoundary:
    """A sample whose first feature sits on the boundary, and an artifact that puts it on the other side."""

    @pytest.fixture
    def checkpoint(self, trained: dict[str, Checkpoint], data: ImageData) -> Checkpoint:
        """The jumping model, its bank turned so that feature 0 of the first test image is just above 0."""
        checkpoint = trained["jumping"]
        head = checkpoint.model.head
        assert isinstance(head, TverskyHead)
        x = refer(checkpoint, data).embeddings[0].clone().double()
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
            a = head.project(reference.embeddings).clone()
            a[:, 0] = torch.where(a[:, 0] > 0, 0.0, 1e-30)
            return head.score(a).numpy()

    @staticmethod
    def judge(reference: Reference, logits: NDArray[np.float32], embeddings: Tensor | None = None) -> StageParity:
        return check_parity(reference, {"it": answers(reference, logits, embeddings)}).stages["it"]

    @pytest.fixture
    def first(self, checkpoint: Checkpoint, data: ImageData) -> Reference:
        samples = Samples(data.test.pixels[:1], ("real",), np.array([-1]))
        return Reference.of(checkpoint.model, checkpoint.preprocessing, samples)

    def test_a_flip_is_explained_and_counted(self, checkpoint: Checkpoint, first: Reference) -> None:
        jumped = self.jump(checkpoint, first)
        size = np.abs(jumped - first.logits).max()
        assert size > 100 * 1e-4 * first.scale.max()
        parity = self.judge(first, jumped)
        assert parity.passed
        assert (parity.explained, parity.failed) == (1, 0)
        (flip,) = parity.flips
        assert (flip.sample, flip.features) == (0, (0,))
        assert flip.jump == pytest.approx(size, rel=1e-3)

    def test_an_error_of_the_same_size_in_one_class_fails(self, checkpoint: Checkpoint, first: Reference) -> None:
        wrong = self.jump(checkpoint, first)
        wrong[0, 0] = 2 * first.logits[0, 0] - wrong[0, 0]
        parity = self.judge(first, wrong)
        assert not parity.passed
        assert (parity.explained, parity.failed) == (0, 1)

    def test_an_error_of_the_same_size_away_from_the_boundary_fails(
        self, checkpoint: Checkpoint, data: ImageData
    ) -> None:
        reference = refer(checkpoint, data)
        near = reference.margins() < BOUNDARY
        assert near[0]
        assert not near.all()
        parity = self.judge(reference, self.jump(checkpoint, reference))
        assert parity.explained == near.sum()
        assert parity.failed == (~near).sum()

    def test_a_continuous_measure_explains_nothing(self, checkpoint: Checkpoint, first: Reference) -> None:
        head = first.head
        assert isinstance(head, TverskyHead)
        head.config = dataclasses.replace(head.config, difference="subtractmatch")
        reference = Reference(head, first.samples, first.embeddings)
        wrong = reference.logits - 0.5 * reference.scale
        parity = self.judge(reference, wrong.astype(np.float32))
        assert (parity.explained, parity.failed) == (0, 1)

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_a_less_precise_embedding_may_flip_what_it_moves(
        self, precision: str, checkpoint: Checkpoint, first: Reference
    ) -> None:
        head = checkpoint.model.head
        assert isinstance(head, TverskyHead)
        with torch.no_grad():
            row = head.feature_bank[0]
            moved = first.embeddings - 1e-3 * first.embeddings.norm() * row / row.norm()
            logits = head(moved).numpy()
        assert np.abs(logits - first.logits).max() > 0.02 * first.scale.max()
        parity = check_parity(first, {"it": answers(first, logits, moved)}, precision).stages["it"]
        assert (parity.explained, parity.failed) == ((1, 0) if precision == "fp16" else (0, 1))
        if precision == "fp16":
            assert 0 in parity.flips[0].features
        logits[0, 0] = 2 * first.logits[0, 0] - logits[0, 0]
        assert not check_parity(first, {"it": answers(first, logits, moved)}, precision).passed

    def test_golden_samples_keep_away_from_the_boundary(self, checkpoint: Checkpoint, data: ImageData) -> None:
        reference = refer(checkpoint, data)
        assert reference.margins()[0] < BOUNDARY
        assert np.argmin(reference.margins()[:8]) == 0


class TestOpposites:
    """A feature and its opposite switch together: exactly one of them is present, or neither where the value is 0."""

    @pytest.fixture
    def head(self) -> TverskyHead:
        """A head of three features and their opposites, whose measures jump."""
        return random_head(form(opposites=0.7, difference="ignorematch", thresholds=True))[0]

    @pytest.fixture
    def reference(self, head: TverskyHead) -> Reference:
        """Of one embedding, whose first value is just above 0."""
        with torch.no_grad():
            x = torch.randn(SIZE)
            row = head.feature_bank[0]
            x -= (head.directions(x)[0] - 1e-6 * head.reach(x)[0]) / (row @ row) * row
            assert 0 < head.directions(x)[0] < BOUNDARY * head.reach(x)[0]
        return Reference(head, Samples(x[None].numpy(), ("real",), np.array([-1])), x[None])

    @staticmethod
    def judged(reference: Reference, logits: Tensor) -> StageParity:
        def run(batches: Sequence[NDArray[Any]]) -> Ran:
            rows = [np.zeros(len(batch), np.int64) for batch in batches]
            return Ran(
                [{"logits": logits.numpy()[row], "embedding": reference.embeddings.numpy()[row]} for row in rows]
            )

        return check_parity(reference, {"it": run}).stages["it"]

    @pytest.mark.parametrize("value", [-1e-30, 0.0])
    def test_both_flip(self, value: float, head: TverskyHead, reference: Reference) -> None:
        with torch.no_grad():
            moved = head.directions(reference.embeddings)
            moved[0, 0] = value
            logits = head.score(moved)
        assert np.abs(logits.numpy() - reference.logits).max() > 10 * 1e-4 * reference.scale.max()
        parity = self.judged(reference, logits)
        assert (parity.explained, parity.failed) == (1, 0)
        assert parity.flips[0].features == (0,)

    def test_one_alone_does_not(self, head: TverskyHead, reference: Reference) -> None:
        with torch.no_grad():
            a = head.project(reference.embeddings)
            a[0, 3] = 1e-30
            logits = head.compare(a, head.prototype_values)
        assert np.abs(logits.numpy() - reference.logits).max() > 10 * 1e-4 * reference.scale.max()
        parity = self.judged(reference, logits)
        assert (parity.explained, parity.failed) == (0, 1)


class TestAgreement:
    """In int8 the head must still follow from the embedding, and the classes must stay."""

    @pytest.fixture
    def reference(self, trained: dict[str, Checkpoint], data: ImageData) -> Reference:
        return refer(trained["linear"], data)

    @staticmethod
    def turned(reference: Reference, count: int) -> Tensor:
        """Return embeddings that give ``count`` of the samples the other class."""
        head = reference.head
        across = head.weight[0] - head.weight[1]
        moved = reference.embeddings.clone()
        with torch.no_grad():
            gap = head(moved).diff(dim=1).flatten()
            change = 1.2 * gap[:, None] / (across @ across) * across
        moved[:count] += change[:count]
        return moved

    def test_another_class_is_counted(self, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(PRECISIONS, "int8", dataclasses.replace(PRECISIONS["int8"], embedding_tolerance=10.0))
        for count in (0, 1, 4):
            moved = self.turned(reference, count)
            with torch.no_grad():
                logits = reference.head(moved).numpy()
            parity = check_parity(reference, {"it": answers(reference, logits, moved)}, "int8").stages["it"]
            assert parity.failed == 0
            assert parity.top1_agreement == 1 - count / 8
            assert parity.accuracy == (parity.eager_accuracy or 0) - count / 8
            assert parity.passed == (count < 4)
            assert len(parity.problems) == (count == 4)
            assert len(parity.undecided) == 2 - (count == 4)
        assert "the best class is the same on 4 of 8 real images" in parity.problems[0]

    @pytest.mark.parametrize("kind", ["random", "zeros", "constant", "saturated", "pattern"])
    def test_made_images_beyond_the_calibrated_ranges_refuse_nothing(self, kind: str, reference: Reference) -> None:
        moved = reference.embeddings.clone()
        moved[[one == kind for one in reference.samples.kinds]] *= 3
        with torch.no_grad():
            run = answers(reference, reference.head(moved).numpy(), moved)
        parity = check_parity(reference, {"it": run}, "int8").stages["it"]
        assert parity.problems == ()
        assert parity.max_embedding_diff == pytest.approx(2, rel=1e-3)
        alone = Samples(reference.samples.images, (kind,) * len(moved), np.full(len(moved), -1))
        made = Reference(reference.head, alone, reference.embeddings)
        (problem,) = check_parity(made, {"it": run}, "int8").stages["it"].problems
        assert "the embedding by up to 2.00e+00 (sample " in problem
        assert f", {kind}; allowed 5e-01)" in problem

    def test_a_real_image_that_moves_refuses_with_the_bound_that_it_exceeds(self, reference: Reference) -> None:
        moved = reference.embeddings.clone()
        moved[1] *= 2
        with torch.no_grad():
            run = answers(reference, reference.head(moved).numpy(), moved)
        (problem,) = check_parity(reference, {"it": run}, "int8").stages["it"].problems
        assert problem.startswith("1 of ")
        assert problem.endswith(": the embedding by up to 1.00e+00 (sample 1, real; allowed 5e-01)")

    def test_a_head_that_does_not_follow_from_its_embedding_fails(self, reference: Reference) -> None:
        logits = reference.logits * 1.01
        parity = check_parity(reference, {"it": answers(reference, logits)}, "int8").stages["it"]
        assert parity.failed == sum(np.abs(reference.logits[:, :]).max(1) / 100 > 1e-4 * reference.scale[:, 0])
