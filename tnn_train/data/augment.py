"""Random changes of training images, each decided by the seed, the epoch and the image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.data.images import ImageSet
from tnn_train.fields import choose

__all__ = ["AUGMENTATIONS", "MIXING", "AugmentedSet", "check_augmentations", "derived_seed", "mixing", "seeded"]

_OF_AN_IMAGE: dict[str, Callable[[Preprocessing], Callable[[Tensor], Tensor]]] = {
    "crop": lambda seen: v2.RandomCrop((seen.height, seen.width), padding=max(1, min(seen.height, seen.width) // 8)),
    "resized-crop": lambda seen: v2.RandomResizedCrop((seen.height, seen.width)),
    "flip": lambda seen: v2.RandomHorizontalFlip(),
    "randaugment": lambda seen: v2.RandAugment(),
    "erase": lambda seen: v2.RandomErasing(value=[255 * value for value in seen.mean]),
}
"""Changes of an image uint8 ``[C, H, W]``, in the order in which they happen."""

_OF_A_BATCH: dict[str, Callable[[int], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]] = {
    "mixup": lambda classes: v2.MixUp(alpha=0.2, num_classes=classes),
    "cutmix": lambda classes: v2.CutMix(alpha=1.0, num_classes=classes),
}
"""Changes of a batch, with the parameters of the ImageNet recipes of torchvision."""

_RECOLOURED = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), v2.RandomAdjustSharpness(2), v2.RandomAutocontrast(0.2)])
"""How views of an image differ: in brightness, contrast, colours and sharpness, never in where something is."""

MIXING = tuple(_OF_A_BATCH)
AUGMENTATIONS = (*_OF_AN_IMAGE, *MIXING)
"""``crop``: a shift by up to an eighth, with black at the edges; ``resized-crop``: a part of 8 to 100% of the area with
another aspect ratio, scaled to the input's size; ``flip``: left and right swapped, half of the time; ``randaugment``:
two of fourteen changes of shape and colour (arXiv 1909.13719); ``erase``: a rectangle gets the mean colour, half of the
time (arXiv 1708.04896); ``mixup`` (arXiv 1710.09412) and ``cutmix`` (arXiv 1905.04899) blend pairs of images and their
labels; of both, one is drawn for each batch."""


_OF_AN_ITEM = 3
"""How many numbers decide an item of `AugmentedSet`: seed, epoch and index."""


class AugmentedSet(Dataset[tuple[Tensor, int]]):
    """Images with random changes; an item is (uint8 ``[H, W, C]``, label), and its key is ``(epoch, index)``.

    An item depends on seed, epoch and index only: not on the process that computes it, nor on what was computed before.

    Several views of an image, uint8 ``[views, H, W, C]``, are that image with other colours each: places correspond.

    Args:
        images: The images as they are.
        names: Which of `AUGMENTATIONS` to apply; those of batches are left to `mixing`.
        seed: Decides the changes.
        views: How many views of an image make an item; with one, an item is the image itself.

    Raises:
        UsageError: If a name is unknown.
    """

    def __init__(self, images: ImageSet, names: tuple[str, ...], seed: int, views: int = 1) -> None:
        check_augmentations(names)
        self.images = images
        self.seed = seed
        self._views = views
        self._steps = [make(images.preprocessing) for name, make in _OF_AN_IMAGE.items() if name in names]

    @property
    def is_in_memory(self) -> bool:
        """Whether no image has to be decoded any more."""
        return self.images.is_in_memory

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image, label = self.images[index]
        if self._steps:
            image = image.permute(2, 0, 1)
            with seeded(self.seed, epoch, index):
                for step in self._steps:
                    image = step(image)
            image = image.permute(1, 2, 0)
        return (image if self._views == 1 else self._recoloured(image, key)), label

    def _recoloured(self, image: Tensor, key: tuple[int, int]) -> Tensor:
        views = []
        for view in range(self._views):
            with seeded(self.seed, *key, view):
                views.append(_RECOLOURED(image.permute(2, 0, 1)).permute(1, 2, 0))
        return torch.stack(views)


def check_augmentations(names: Sequence[str]) -> None:
    """Make sure that all the names are `AUGMENTATIONS`.

    Raises:
        UsageError: With the choices, if one is not.
    """
    if isinstance(names, str):
        raise UsageError(f"augment is {names!r}; expected a tuple of names out of {', '.join(AUGMENTATIONS)}")
    for name in names:
        choose("augmentation", name, AUGMENTATIONS)


def mixing(
    names: Sequence[str], num_classes: int, *, with_neighbour: bool = False
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return what blends each image of a batch with the one before it, or ``None`` if no such name is given.

    It takes normalised images, float ``[N, C, H, W]``, and labels, int64 ``[N]``, and returns images of the same shape
    and soft targets, float32 ``[N, num_classes]``. Its choices come from torch's CPU generator: see `seeded`.

    Args:
        names: Some of `AUGMENTATIONS`.
        num_classes: The number of classes.
        with_neighbour: Whether the first image is only there for the second one to be blended with, as in a part of a
            batch; then ``N - 1`` images are returned.

    Raises:
        UsageError: If a name is unknown.
    """
    check_augmentations(names)
    mixers = [make(num_classes) for name, make in _OF_A_BATCH.items() if name in names]
    if not mixers:
        return None
    choose_and_mix = v2.RandomChoice(mixers)

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        mixed, targets = choose_and_mix(images, labels)
        return (mixed[1:], targets[1:]) if with_neighbour else (mixed, targets)

    return mix


def derived_seed(*numbers: int) -> int:
    """Return a seed for torch that depends on all of ``numbers``; other sequences give unrelated randomness.

    `numpy.random.SeedSequence` fills what is shorter than four numbers up with zeros, so that ``(1, 2, 3)`` and
    ``(1, 2, 3, 0)`` are one to it. Their length therefore goes in as its ``spawn_key``, except that of three numbers:
    with them, the seed, epoch and index of an image, images were always augmented, and a training that is resumed must
    draw what it would have drawn.

    Args:
        numbers: Each from 0 to 2**32 - 1.

    Raises:
        OverflowError: If one is not: two of them could be one larger number.
    """
    length = () if len(numbers) == _OF_AN_ITEM else (len(numbers),)
    sequence = np.random.SeedSequence(np.array(numbers, np.uint32), spawn_key=length)
    return int(sequence.generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within this context, torch's CPU generator depends on ``numbers`` alone; afterwards it is as it was before.

    Args:
        numbers: As for `derived_seed`, such as seed, epoch and index.
    """
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would reset the generators of the accelerators too.
        torch.default_generator.manual_seed(derived_seed(*numbers))
        yield
