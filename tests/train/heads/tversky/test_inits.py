from __future__ import annotations

import pytest
import torch

from tnn_train import ImageData, ModelConfig, TrainConfig, TverskyConfig, TverskyHead, load_checkpoint, train
from tnn_train.data import EpochBatches
from tnn_train.errors import TrainingError
from tnn_train.heads.class_means import class_means
from tnn_train.model.image_model import Normalize, build_model


def test_means_of_classes_in_one_pass() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    means = class_means(zip(x.split(7), y.split(7), strict=True), 3, 3)
    expected = torch.stack([x[y == label].mean(0) for label in range(3)])
    torch.testing.assert_close(means, expected)


@pytest.mark.parametrize("prototypes", [1, 2, 3, 5, 7])
def test_several_prototypes_of_a_class_share_its_embeddings(prototypes: int) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(60, 4), torch.randint(3, (60,))
    means = class_means(zip(x.split(11), y.split(11), strict=True), 3, prototypes)
    assert means.shape == (prototypes, 4)
    for number, mean in enumerate(means):
        owned = len(range(number % 3, prototypes, 3))
        torch.testing.assert_close(mean, x[y == number % 3][number // 3 :: owned].mean(0))


def test_too_few_embeddings_are_named() -> None:
    with pytest.raises(TrainingError, match="class 1 has 1 images for 2 prototypes to start from; choose fewer"):
        class_means([(torch.randn(4, 2), torch.tensor([0, 0, 1, 0]))], 2, 4)
    with pytest.raises(TrainingError, match="class 0 has 0 images for 1 prototypes"):
        class_means([], 2, 2)


def test_training_starts_at_the_class_means(data: ImageData, tmp_path: object) -> None:
    """With a learning rate of nearly 0, the prototypes are still where they started."""
    config = ModelConfig(backbone="tiny", tversky=TverskyConfig(num_features=8, prototype_init="class-means"))
    recipe = TrainConfig(epochs=1, batch_size=13, learning_rate=1e-12, weight_decay=0.0, augment=())
    result = train(data, f"{tmp_path}/run", config, recipe)
    trained = load_checkpoint(result.best)
    head = trained.model.head
    assert isinstance(head, TverskyHead)
    torch.manual_seed(recipe.seed)
    model = build_model(trained.config).train()
    assert data.train.pixels is not None
    order = [index for batch in EpochBatches(len(data.train), 13, recipe.seed) for _, index in batch]
    pixels, labels = torch.from_numpy(data.train.pixels)[order], torch.from_numpy(data.train.labels)[order]
    with torch.no_grad():
        normalize = Normalize(data.preprocessing)
        embeddings = torch.cat([model.backbone(normalize(batch)) for batch in pixels.split(13)])
    expected = torch.stack([embeddings[labels == label].mean(0) for label in range(2)])
    assert len(data.train) == 26
    torch.testing.assert_close(head.prototypes.detach(), expected, rtol=1e-4, atol=1e-4)
