"""Batches of images: the one place where data loaders are made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from tnn_runtime.errors import TnnError, UsageError
from tnn_train.data.augment import AugmentedSet
from tnn_train.data.images import ImageSet

__all__ = ["EpochBatches", "evaluation_loader", "training_loader"]

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images, uint8 ``[N, H, W, C]``, and labels, int64 ``[N]``."""

_MOST_WORKERS = 4
_FEWEST_IMAGES = 2
"""Batch norm cannot train on one image."""


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The keys ``(epoch, index)`` of the images of each batch of an epoch, in an order that seed and epoch decide.

    Iterating starts where `set_position` says, by default at the beginning of epoch 0, and ends with that epoch; the
    position stays where it is. A last batch that would leave a process with fewer than two images is left out.

    Args:
        count: Images in the data set.
        batch_size: Images a step, of all processes together.
        seed: Decides the order.
        rank: Which process this is: it gets every ``world_size``-th image of each batch.
        world_size: How many processes train together.

    Raises:
        UsageError: If a batch or the data set is too small for so many processes.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of {world_size} processes; expected 0 to {world_size - 1}")
        fewest = _FEWEST_IMAGES * world_size
        for name, value in (("batch_size", batch_size), ("the number of training images", count)):
            if value < fewest:
                raise UsageError(f"{name} is {value}; expected at least {fewest}, for batch norm two a process")
        self.batch_size = batch_size
        self._count, self._seed, self._rank, self._world_size = count, seed, rank, world_size
        whole, rest = divmod(count, batch_size)
        self._batches = whole + (rest >= fewest)
        self._epoch = self._batch = 0

    def __len__(self) -> int:
        return self._batches

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration start at a batch, counted from 0, of an epoch; nothing before it is decoded.

        Raises:
            UsageError: If an epoch has fewer batches.
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise UsageError(f"there is no batch {batch} in epoch {epoch}; expected 0 to {len(self)}")
        self._epoch, self._batch = epoch, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._epoch
        order = np.random.default_rng([self._seed, epoch]).permutation(self._count).tolist()
        for batch in range(self._batch, len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(epoch, index) for index in indices[self._rank :: self._world_size]]


def training_loader(dataset: AugmentedSet, batches: EpochBatches, workers: int | None = None) -> DataLoader[Any]:
    """Return the batches `Batch` of an epoch, in the order of ``batches``; what they hold does not depend on workers.

    Args:
        dataset: The images.
        batches: Which images are in which batch, and where to start.
        workers: Processes that decode; ``None`` for none if the pixels are in memory, else up to four.

    Raises:
        InputError: While iterating, if an image cannot be decoded; the message names it.
    """
    workers = _default_workers(dataset.images) if workers is None else workers
    return _loader(dataset, batches, workers, persistent=workers > 0)


def evaluation_loader(images: ImageSet, batch_size: int, rank: int = 0, world_size: int = 1) -> DataLoader[Any]:
    """Return batches `Batch` of a set in its own order; over all processes, every image comes exactly once.

    Args:
        images: The images.
        batch_size: Images a step, of this process.
        rank: Which process this is: it gets every ``world_size``-th image.
        world_size: How many processes evaluate together.

    Raises:
        InputError: While iterating, if an image cannot be decoded; the message names it.
    """
    indices = range(rank, len(images), world_size)
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return _loader(images, batches, _default_workers(images), persistent=False)


class _Batches(Dataset[Batch | TnnError]):
    """Whole batches by the keys of their images, or the error that stopped one.

    A worker process hands errors over as text with its own traceback; as an item, an error arrives as it was.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]]) -> None:
        self._images = images

    def __getitem__(self, keys: list[Any]) -> Batch | TnnError:
        try:
            images, labels = default_collate([self._images[key] for key in keys])
        except TnnError as error:
            return error
        return images, labels


class _Loader(DataLoader[Any]):
    """A loader of `_Batches` that raises the errors among them."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            if isinstance(batch, TnnError):
                raise batch
            yield batch


def _loader(images: Dataset[tuple[Tensor, int]], batches: Any, workers: int, *, persistent: bool) -> DataLoader[Any]:
    return _Loader(
        _Batches(images),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        persistent_workers=persistent,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: seeding the workers must not move the one that training draws from.
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _default_workers(images: ImageSet) -> int:
    if images.pixels is not None:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, cores)
