from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tnn_export import export_bundle
from tnn_runtime import ArtifactError, Classifier, UsageError
from tnn_train import Checkpoint, LinearHead, TverskyConfig, TverskyHead, load_checkpoint, save_checkpoint
from tnn_train.errors import UnfoldingError
from tnn_train.model import unfolding
from tnn_train.model.image_model import ImageModel
from tnn_train.model.unfolding import TOLERANCE, compare_heads, describe_unfolding, unfold_checkpoint
from tnn_train.training.loop import TrainResult


@pytest.fixture
def linear(runs: dict[str, TrainResult]) -> Checkpoint:
    return load_checkpoint(runs["linear"].best)


def test_the_predictions_stay_and_the_rest_of_the_checkpoint_too(linear: Checkpoint, tmp_path: Path) -> None:
    unfolded = unfold_checkpoint(linear)
    save_checkpoint(tmp_path / "unfolded", unfolded)
    loaded = load_checkpoint(tmp_path / "unfolded")
    assert isinstance(loaded.model.head, TverskyHead)
    assert loaded.config.head == "tversky"
    assert loaded.config.tversky == loaded.model.head.config
    for name in ("class_names", "preprocessing"):
        assert getattr(loaded, name) == getattr(linear, name)
    for name in ("samples", "labels", "calibration"):
        assert np.array_equal(getattr(loaded, name), getattr(linear, name))
    assert linear.metrics.items() <= loaded.metrics.items()
    assert linear.training.items() <= loaded.training.items()
    found = loaded.training["unfolded"]
    assert found["code"] == "hierarchy"
    assert (found["images"], found["random_images"]) == (len(linear.samples) + 32, 32)
    assert 0 <= found["difference"] == loaded.metrics["unfolded_difference"] <= TOLERANCE
    x = torch.randn(50, 24)
    one, other = (logits - logits.mean(1, keepdim=True) for logits in (linear.model.head(x), loaded.model.head(x)))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("code", ["classes", "hierarchy"])
def test_the_bundle_explains_with_names_and_predicts_as_the_linear_one(
    code: str, linear: Checkpoint, tmp_path: Path
) -> None:
    assert export_bundle(unfold_checkpoint(linear, code), tmp_path / "unfolded", formats=("onnx",)).passed
    assert export_bundle(linear, tmp_path / "linear", formats=("onnx",)).passed
    with Classifier.load(tmp_path / "unfolded") as ours, Classifier.load(tmp_path / "linear") as theirs:
        assert [best.label for best, *_ in ours.predict(linear.samples)] == [
            best.label for best, *_ in theirs.predict(linear.samples)
        ]
        summary = ours.explain(linear.samples[:1], top_k=1)[0][0].summary
    assert "'cat'" in summary or "'dog'" in summary


def test_what_was_found_is_told(linear: Checkpoint) -> None:
    lines = describe_unfolding(unfold_checkpoint(linear))
    assert lines[0] == "2 classes, 1 attribute (code hierarchy), 2 features: to have each, and not to have it"
    assert "(32 of random pixels)" in lines[-1]
    assert lines[-1].endswith("the first class is the same on all")


def test_the_largest_groups_are_told(linear: Checkpoint) -> None:
    names = ("frog", "cat", "dog", "car", "truck")
    wide = with_head(linear, torch.tensor([[9.0, 1.0], [9.0, 3.0], [9.0, 3.5], [-9.0, 2.0], [-9.0, 2.5]]), names)
    lines = describe_unfolding(unfold_checkpoint(wide))
    assert lines[1:4] == [
        "the largest groups of classes that share an attribute:",
        "  cat or dog",
        "  car or truck",
    ]


@pytest.mark.parametrize("family", ["tversky", "jumping", "ratio"])
def test_a_head_that_is_no_linear_map_is_refused(family: str, runs: dict[str, TrainResult]) -> None:
    with pytest.raises(
        UsageError, match=r"runs/x has a tversky head, which is no linear map .* expected a linear head"
    ):
        unfold_checkpoint(load_checkpoint(runs[family].best), source="runs/x")


def test_an_unfolded_head_is_refused(linear: Checkpoint) -> None:
    with pytest.raises(UsageError, match="has a tversky head"):
        unfold_checkpoint(unfold_checkpoint(linear))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(name: str, value: float, linear: Checkpoint) -> None:
    with torch.no_grad():
        getattr(linear.model.head, name)[0] = value
    with pytest.raises(ArtifactError, match=f"values of head.{name} are NaN or infinite"):
        unfold_checkpoint(linear)


@pytest.mark.parametrize(
    ("value", "reason"), [(float("nan"), "values of backbone.conv2.weight are NaN"), (1e38, "are too large")]
)
def test_a_broken_backbone_is_named(value: float, reason: str, linear: Checkpoint) -> None:
    with torch.no_grad():
        linear.model.backbone.conv2.weight.fill_(value)
    with pytest.raises((ArtifactError, UsageError), match=reason):
        unfold_checkpoint(linear)


def test_a_difference_is_not_written(linear: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolding, "TOLERANCE", 0.0)
    with pytest.raises(UnfoldingError, match="differs by .* of the largest logit, allowed 0e"):
        unfold_checkpoint(linear)


def test_dependent_rows_are_a_note(linear: Checkpoint) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 24)
    names = ("a", "b", "c", "d", "e")
    dependent = unfold_checkpoint(with_head(linear, torch.cat([rows, rows[:1] + rows[1:2]]), names))
    (note,) = dependent.training["unfolded"]["notes"]
    assert note.startswith("the weight [5, 24] has rank 4, fewer than its 5 classes: ")
    assert "prototypes are kept as feature values" in note
    assert describe_unfolding(dependent)[-1] == f"note: {note}"
    assert unfold_checkpoint(linear).training["unfolded"]["notes"] == ()


def test_more_classes_than_values_of_the_embedding_are_a_note(linear: Checkpoint) -> None:
    torch.manual_seed(0)
    wide = with_head(linear, torch.randn(40, 24), tuple(map(str, range(40))))
    (note,) = unfold_checkpoint(wide).training["unfolded"]["notes"]
    assert "has rank 24, fewer than its 40 classes" in note


def test_a_table_that_does_not_tell_the_classes_apart_is_completed(linear: Checkpoint, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ("cat", "dog", "ship")
    table = tmp_path / "attributes.csv"
    table.write_text("class,an animal\ncat,1\ndog,1\nship,0\n")
    found = unfold_checkpoint(with_head(linear, torch.randn(3, 24), names), str(table))
    (note,) = found.training["unfolded"]["notes"]
    assert note.startswith("the table's 1 attribute does not tell all classes apart")
    assert "3 more were added" in note
    assert found.training["unfolded"]["code"] == "attributes.csv"


def test_equal_rows_may_change_places_and_are_counted() -> None:
    torch.manual_seed(0)
    linear = LinearHead(24, 300)
    with torch.no_grad():
        linear.weight[150:] = linear.weight[:150]
        linear.bias[150:] = linear.bias[:150]
    found = compare_heads(linear, TverskyHead.from_linear(linear, TverskyConfig()), torch.randn(100, 24))
    assert found.largest <= TOLERANCE
    assert 0 <= found.changed <= 100


def test_a_layer_of_zeros() -> None:
    linear = LinearHead(24, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    found = compare_heads(linear, TverskyHead.from_linear(linear, TverskyConfig()), torch.randn(10, 24))
    assert found == (0.0, 0.0, 0)


def with_head(checkpoint: Checkpoint, weight: torch.Tensor, names: tuple[str, ...]) -> Checkpoint:
    """Return the checkpoint with another linear layer; a narrow one sees the first values of the embedding."""
    head = LinearHead(24, len(weight))
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, : weight.shape[1]] = weight
    config = dataclasses.replace(checkpoint.config, num_classes=len(weight))
    model = ImageModel(checkpoint.model.backbone, head)
    return dataclasses.replace(checkpoint, model=model, config=config, class_names=names)
