"""What a head sets from all training images after the last step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest
import torch
from conftest import RECIPE
from torch import Tensor
from torch.nn import functional

from tnn_train import ImageData, LinearHead, ModelConfig, TrainConfig, evaluate, load_checkpoint, train
from tnn_train.heads import HEADS
from tnn_train.model.image_model import Normalize


class NearestMeans(LinearHead):
    """A linear head that ends as the nearest class mean of the embeddings, and whose loss looks at these."""

    family = "nearest-means"

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        return cls(in_features, num_classes)

    def loss(self, x: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        assert torch.allclose(functional.linear(x, self.weight, self.bias), logits, atol=1e-4)
        assert x.dtype == torch.float32
        return super().loss(x, logits, targets, weight, label_smoothing)

    def finish(self, batches: Iterable[tuple[Tensor, Tensor]]) -> bool:
        first, second = list(batches), list(batches)
        assert all(torch.equal(one, other) for one, other in zip(first[0], second[0], strict=True))
        embeddings, labels = (torch.cat(column) for column in zip(*first, strict=True))
        for label in range(self.out_features):
            mean = embeddings[labels == label].mean(0)
            self.weight[label], self.bias[label] = 2 * mean, -mean.square().sum()
        return True


@pytest.fixture(autouse=True)
def family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, NearestMeans.family, NearestMeans)


MODEL = ModelConfig("tiny", head=NearestMeans.family)
RECIPES = {
    "whole": replace(RECIPE, epochs=2),
    "half precision": replace(RECIPE, epochs=2, precision="bf16"),
    "averaged": replace(RECIPE, epochs=2, ema_decay=0.5),
    "frozen": replace(RECIPE, epochs=2, freeze_backbone=True, augment=None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_set_for_the_best_epoch(name: str, data: ImageData, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", MODEL, RECIPES[name])
    checkpoint = load_checkpoint(result.best)
    pixels = torch.from_numpy(data.train.sample(len(data.train)))
    with torch.inference_mode():
        embeddings = checkpoint.model.backbone(Normalize(data.preprocessing)(pixels))
    means = torch.stack([embeddings[torch.from_numpy(data.train.labels) == label].mean(0) for label in range(2)])
    torch.testing.assert_close(checkpoint.model.head.weight, 2 * means, atol=1e-4, rtol=1e-4)


def test_validation_is_told_before_and_after(data: ImageData, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", MODEL, RECIPES["whole"])
    results = json.loads((result.folder / "results.json").read_text())
    best = max(row["val_accuracy"] for row in result.history)
    assert results["unfinished_val_accuracy"] == best
    after = evaluate(load_checkpoint(result.best).model, data.val)
    assert results["val_accuracy"] == load_checkpoint(result.best).metrics["val_accuracy"] == after.accuracy
    assert result.test.accuracy == evaluate(load_checkpoint(result.best).model, data.test).accuracy


def test_a_finished_training_is_not_finished_again(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train(data, tmp_path / "run", MODEL, RECIPES["whole"])
    before = (result.folder / "results.json").read_text()
    monkeypatch.setattr(NearestMeans, "finish", lambda head, batches: pytest.fail("it was finished"))
    again = train(data, tmp_path / "run", MODEL, RECIPES["whole"], resume=True)
    after = json.loads((again.folder / "results.json").read_text())
    assert {**after, "seconds": 0} == {**json.loads(before), "seconds": 0}


def test_heads_that_set_nothing_say_nothing(data: ImageData, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", ModelConfig("tiny", head="linear"), TrainConfig(epochs=1, batch_size=8))
    assert json.loads((result.folder / "results.json").read_text())["unfinished_val_accuracy"] is None
    assert "unfinished_val_accuracy" not in load_checkpoint(result.best).metrics
