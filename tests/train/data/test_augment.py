from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tnn_runtime import UsageError
from tnn_train import ImageData, load_data
from tnn_train.data import AUGMENTATIONS, AugmentedSet, ImageSet, check_augmentations, mixing, seeded
from tnn_train.data import load as load_module
from tnn_train.data.augment import derived_seed

OF_AN_IMAGE = tuple(name for name in AUGMENTATIONS if name not in ("mixup", "cutmix"))


@pytest.fixture(scope="module", params=["grey", "rgb"])
def images(request: pytest.FixtureRequest) -> ImageSet:
    source = {"grey": "digits", "rgb": "fake"}[request.param]
    return load_data(source, image_size=24, limit=200).train


@pytest.mark.parametrize("name", OF_AN_IMAGE)
def test_every_augmentation_changes_images_and_keeps_their_form(name: str, images: ImageSet) -> None:
    augmented = AugmentedSet(images, (name,), seed=0)
    assert len(augmented) == len(images)
    changed = 0
    for epoch, index in itertools.product((1, 2), range(60)):
        image, label = augmented[epoch, index]
        plain, right = images[index]
        assert image.shape == plain.shape
        assert image.dtype == torch.uint8
        assert label == right
        changed += not torch.equal(image, plain)
    assert changed > 30


@pytest.mark.parametrize("names", [("crop",), OF_AN_IMAGE])
def test_an_item_depends_on_seed_epoch_and_index_only(names: tuple[str, ...], images: ImageSet) -> None:
    keys = list(itertools.product((1, 2, 3), range(10)))
    augmented = AugmentedSet(images, names, seed=5)
    first = {key: augmented[key][0] for key in keys}
    torch.manual_seed(99)
    torch.rand(3)
    again = AugmentedSet(images, tuple(reversed(names)), seed=5)
    for key in random.Random(0).sample(keys, len(keys)):
        assert torch.equal(again[key][0], first[key])
    other = AugmentedSet(images, names, seed=6)
    assert any(not torch.equal(other[key][0], first[key]) for key in keys)
    assert any(not torch.equal(first[1, index], first[2, index]) for index in range(10))


def test_the_generator_of_the_training_is_left_alone(images: ImageSet) -> None:
    before = torch.get_rng_state()
    AugmentedSet(images, OF_AN_IMAGE, seed=0)[1, 2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_so_are_the_generators_of_accelerators(images: ImageSet) -> None:
    before = torch.cuda.get_rng_state()
    AugmentedSet(images, OF_AN_IMAGE, seed=0)[1, 2]
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_seeds_that_differ_anywhere_are_unrelated() -> None:
    def draw(*numbers: int) -> float:
        with seeded(*numbers):
            return float(torch.rand((), dtype=torch.float64))

    draws = [draw(*numbers) for numbers in itertools.product(range(5), repeat=3)]
    assert len(set(draws)) == 125
    assert draw(1, 2, 3) == draw(1, 2, 3)
    neighbours = np.array([[draw(0, epoch, index) for index in range(30)] for epoch in range(30)])
    assert abs(np.corrcoef(neighbours[:, :-1].ravel(), neighbours[:, 1:].ravel())[0, 1]) < 0.15
    assert abs(np.corrcoef(neighbours[:-1].ravel(), neighbours[1:].ravel())[0, 1]) < 0.15


def test_sequences_that_differ_in_their_length_alone_are_unrelated() -> None:
    assert derived_seed(1, 2, 3) != derived_seed(1, 2, 3, 0)
    sequences = [numbers for length in range(7) for numbers in itertools.product((0, 1, 5), repeat=length)]
    assert len({derived_seed(*numbers) for numbers in sequences}) == len(sequences) == 1093


def test_images_are_augmented_as_they_always_were() -> None:
    """The seeds of earlier versions, which resumed trainings go on with."""
    assert derived_seed(0, 0, 0) == 15793235383387715774
    assert derived_seed(7, 2, 31) == 6567792329545502060
    assert derived_seed(4294967295, 19, 4095) == 13174172552399736606


@pytest.mark.parametrize("numbers", [(-1, 0, 0), (0, 0, 2**32), (2**32 * 7 + 5, 1)])
def test_numbers_that_could_be_taken_for_others_are_refused(numbers: tuple[int, ...]) -> None:
    with pytest.raises(OverflowError):
        derived_seed(*numbers)


@pytest.mark.parametrize("names", [(), ("mixup", "cutmix")])
def test_without_changes_the_pixels_are_untouched(names: tuple[str, ...], images: ImageSet) -> None:
    augmented = AugmentedSet(images, names, seed=0)
    for index in range(5):
        assert np.array_equal(augmented[1, index][0].numpy(), images.decoded(index))


def test_lazily_decoded_images_are_changed_alike(
    photos: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    lazy = load_data(photos).train
    ours, theirs = (AugmentedSet(part, OF_AN_IMAGE, seed=0) for part in (lazy, data.train))
    for index in range(len(lazy)):
        assert torch.equal(ours[3, index][0], theirs[3, index][0])


def test_erased_parts_get_the_mean_colour(data: ImageData) -> None:
    augmented = AugmentedSet(data.train, ("erase",), seed=0)
    mean = [int(255 * value) for value in data.preprocessing.mean]
    changed = [
        image[(image != data.train[index][0]).any(2)]
        for index in range(len(data.train))
        if not torch.equal(image := augmented[1, index][0], data.train[index][0])
    ]
    assert changed
    assert all(pixels.unique(dim=0).tolist() == [mean] for pixels in changed)


class TestMixing:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("names", [("mixup",), ("cutmix",), ("cutmix", "mixup", "crop")])
    def test_images_and_targets_are_blended_alike(self, names: tuple[str, ...], channels: int) -> None:
        """Images of one value each: the share of a value in the mixed image is that of its class in the target."""
        mix = mixing(names, num_classes=5)
        assert mix is not None
        labels = torch.tensor([0, 1, 2, 4])
        images = torch.eye(4)[:, :channels, None, None].repeat(1, 1, 16, 16) - 0.5
        for batch in range(10):
            with seeded(0, 1, batch):
                mixed, targets = mix(images, labels)
            assert mixed.shape == images.shape
            assert targets.shape == (4, 5)
            assert targets.dtype == torch.float32
            torch.testing.assert_close(targets.sum(1), torch.ones(4))
            torch.testing.assert_close(mixed.mean((2, 3)) + 0.5, targets[:, [0, 1, 2, 4]][:, :channels])

    @pytest.mark.parametrize("names", [("mixup",), ("cutmix",), ("cutmix", "mixup")])
    @pytest.mark.parametrize("parts", [2, 3, 5])
    def test_parts_of_a_batch_are_blended_as_the_whole(self, parts: int, names: tuple[str, ...]) -> None:
        torch.manual_seed(0)
        images, labels = torch.randn(13, 3, 8, 8), torch.randint(0, 4, (13,))
        whole, part = mixing(names, 4), mixing(names, 4, with_neighbour=True)
        assert whole is not None
        assert part is not None
        for batch in range(10):
            with seeded(0, 1, batch):
                expected = whole(images, labels)
            mixed = []
            for indices in np.array_split(np.arange(13), parts):
                with seeded(0, 1, batch):
                    mixed.append(part(*(rows[np.append(indices[0] - 1, indices)] for rows in (images, labels))))
            for ours, theirs in zip(zip(*mixed, strict=True), expected, strict=True):
                assert torch.equal(torch.cat(ours), theirs)

    def test_both_are_drawn(self) -> None:
        mix = mixing(("mixup", "cutmix"), num_classes=2)
        assert mix is not None
        images, labels = torch.zeros(2, 1, 16, 16), torch.tensor([0, 1])
        images[1] = 1
        kinds = set()
        for batch in range(20):
            with seeded(batch):
                kinds.add(mix(images, labels)[0][0].unique().numel())
        assert kinds == {1, 2}

    def test_nothing_to_mix(self) -> None:
        assert mixing((), num_classes=5) is None
        assert mixing(("crop", "flip"), num_classes=5) is None


class TestBadInput:
    def test_unknown_names(self, data: ImageData) -> None:
        message = "unknown augmentation 'rotate'; choose from crop, resized-crop, flip, randaugment, erase, mixup"
        for use in (
            lambda: check_augmentations(("crop", "rotate")),
            lambda: AugmentedSet(data.train, ("rotate",), 0),
            lambda: mixing(("rotate",), 5),
        ):
            with pytest.raises(UsageError, match=message):
                use()

    def test_a_name_that_is_no_tuple(self) -> None:
        with pytest.raises(UsageError, match="augment is 'crop'; expected a tuple of names out of crop, "):
            check_augmentations("crop")


def test_views_of_an_image_differ_in_colours_alone(images: ImageSet) -> None:
    one, several = AugmentedSet(images, ("flip",), seed=3), AugmentedSet(images, ("flip",), seed=3, views=2)
    views, label = several[4, 1]
    image, same = one[4, 1]
    assert label == same
    assert views.shape == (2, *image.shape)
    assert views.dtype == image.dtype
    assert not torch.equal(views[0], views[1])
    assert torch.equal(several[4, 1][0], views)
    assert not torch.equal(several[5, 1][0], views)
    for view in views.double().flatten(1):
        assert np.corrcoef(view, image.double().flatten())[0, 1] > 0.6
