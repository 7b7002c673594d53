"""Where prototypes start, and more prototypes than images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lvq_forms import random_head
from torch import Tensor

from tnn_train import LvqConfig
from tnn_train.errors import TrainingError
from tnn_train.heads.lvq.config import CLASS_MEANS, KMEANS, NOISE
from tnn_train.heads.lvq.start import find_start


def clusters(count: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Return vectors of 4 classes, each of two far clusters, their classes, and the middles ``[4, 2, 6]``."""
    generator = torch.Generator().manual_seed(3)
    middles = 20 * torch.randn(4, 2, 6, generator=generator)
    labels = torch.arange(4).repeat_interleave(count)[torch.randperm(4 * count, generator=generator)]
    side = torch.randint(2, labels.shape, generator=generator)
    return middles[labels, side] + torch.randn(len(labels), 6, generator=generator), labels, middles


def batches(x: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(13), labels.split(13), strict=True))


def test_class_means_are_those_of_all_images() -> None:
    x, labels, _ = clusters()
    found = find_start(batches(x, labels), 4, LvqConfig(start=CLASS_MEANS))
    expected = torch.stack([x[labels == label].mean(0) for label in range(4)])
    torch.testing.assert_close(found.prototypes, expected, rtol=1e-5, atol=1e-5)
    assert found.distance == pytest.approx((x - expected[labels]).square().sum(1).mean().item(), rel=1e-4)


def test_kmeans_finds_the_clusters_of_each_class() -> None:
    x, labels, middles = clusters()
    found = find_start(batches(x, labels), 4, LvqConfig(prototypes=2, start=KMEANS)).prototypes.view(4, 2, 6)
    assert torch.cdist(middles, found).amin(2).max() < 2
    assert torch.cdist(found, middles).amin(2).max() < 2


def test_noise_starts_near_images_of_the_class() -> None:
    x, labels, _ = clusters()
    config = LvqConfig(prototypes=3, start=NOISE, noise=0.01)
    found = find_start(batches(x, labels), 4, config).prototypes
    owners = torch.arange(4).repeat_interleave(3)
    for prototype, owner in zip(found, owners, strict=True):
        distance = torch.cdist(prototype[None], x[labels == owner]).amin()
        assert 0 < distance < 0.1 * x.std(0).norm()
    assert len(found.unique(dim=0)) == 12


def test_the_same_seed_gives_the_same_start() -> None:
    x, labels, _ = clusters()
    for start in (KMEANS, NOISE):
        config = LvqConfig(prototypes=2, start=start)
        found = []
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            torch.rand(seed)  # what was drawn before has no influence
            found.append(find_start(batches(x, labels), 4, config).prototypes)
        assert torch.equal(found[0], found[1])
        assert start == KMEANS or not torch.equal(found[0], found[2])


@pytest.mark.parametrize("start", [CLASS_MEANS, KMEANS, NOISE])
def test_more_prototypes_than_images_of_a_class_are_refused(start: str) -> None:
    x, labels, _ = clusters(5)
    with pytest.raises(TrainingError, match="class 0 has 5 images for 6 .*choose fewer with --lvq.prototypes"):
        find_start(batches(x, labels), 4, LvqConfig(prototypes=6, start=start))


def test_equal_images_are_no_clusters() -> None:
    x, labels, _ = clusters(5)
    x[labels == 2] = x[labels == 2][:1]
    with pytest.raises(TrainingError, match="class 2 has 1 different images for 2 prototypes"):
        find_start(batches(x, labels), 4, LvqConfig(prototypes=2, start=KMEANS))


def test_the_head_starts_among_its_latent_values_along_the_main_axes() -> None:
    x, labels, _ = clusters()
    head, _ = random_head(LvqConfig(relevances="matrix", rank=2, start=CLASS_MEANS))
    head.start(batches(x, labels))
    _, _, axes = np.linalg.svd(x.double().numpy() - x.double().numpy().mean(0))
    cosines = np.abs(head.omega.detach().double().numpy() @ axes[:2].T)
    np.testing.assert_allclose(cosines, np.eye(2), atol=1e-3)
    latent, _ = random_head(LvqConfig(latent=3, hidden=(5,), start=CLASS_MEANS))
    latent.start(batches(x, labels))
    with torch.no_grad():
        expected = latent.network(x[labels == 1]).mean(0)
    torch.testing.assert_close(latent.prototypes[1], expected, rtol=1e-4, atol=1e-5)
    assert latent.prototypes.requires_grad


def test_embeddings_that_are_all_alike_give_finite_numbers() -> None:
    head, _ = random_head(LvqConfig(start=CLASS_MEANS))
    head.start([(torch.ones(8, 6), torch.arange(4).repeat(2))])
    assert torch.isfinite(head.log_temperature)
    assert torch.isfinite(head(torch.ones(2, 6))).all()
