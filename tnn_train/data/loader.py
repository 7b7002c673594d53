"""Batches of images: the one place where data loaders are made."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from tnn_runtime.errors import TnnError, UsageError
from tnn_train.data.worker_faults import worker_fault

__all__ = ["EpochBatches", "Items", "evaluation_loader", "training_loader"]

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images, uint8 ``[N, H, W, C]``, and labels, int64 ``[N]``."""

_MOST_WORKERS = 4
_FEWEST_IMAGES = 2
"""Batch norm cannot train on one image."""
_CAN_SHIELD = hasattr(signal, "sigwaitinfo")
"""Whether this system tells who has sent a signal, as Linux does."""


class Items(Protocol):
    """Labelled items of a data set: images, augmented images or embeddings."""

    @property
    def is_in_memory(self) -> bool:
        """Whether fetching an item takes next to no time."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> tuple[Tensor, int]: ...


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The keys ``(epoch, index)`` of the images of each batch of an epoch, in an order that seed and epoch decide.

    Iterating starts where `set_position` says, by default at the beginning of epoch 0, and ends with that epoch; the
    position stays where it is. A last batch that would leave a process with fewer than two images is left out.

    Args:
        count: Images in the data set.
        batch_size: Images a step, of all processes together.
        seed: Decides the order.
        rank: Which process this is: it gets the ``rank``-th of ``world_size`` parts of each batch.
        world_size: How many processes train together.
        with_neighbour: Whether the image before its part comes first, for `mixing` to blend with; before the first
            image of a batch there is the last.

    Raises:
        UsageError: If a batch or the data set is too small for so many processes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        with_neighbour: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UsageError(f"rank is {rank} of {world_size} processes; expected 0 to {world_size - 1}")
        fewest = _FEWEST_IMAGES * world_size
        for name, value in (("batch_size", batch_size), ("the number of training images", count)):
            if value < fewest:
                raise UsageError(f"{name} is {value}; expected at least {fewest}, for batch norm two a process")
        self.batch_size = batch_size
        self._count, self._seed, self._rank, self._world_size = count, seed, rank, world_size
        self._with_neighbour = with_neighbour
        whole, rest = divmod(count, batch_size)
        self._batches = whole + (rest >= fewest)
        self._epoch = self._batch = 0
        self._order = self._shuffled()

    def __len__(self) -> int:
        return self._batches

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Let the next iteration start at a batch, counted from 0, of an epoch; nothing before it is decoded.

        Raises:
            UsageError: If an epoch has fewer batches.
        """
        if epoch < 0 or not 0 <= batch <= len(self):
            raise UsageError(f"there is no batch {batch} in epoch {epoch}; expected 0 to {len(self)}")
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._shuffled()
        self._batch = batch

    def whole(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the images of the batches from ``start`` to before ``stop`` of the epoch, of all processes."""
        return self._order[start * self.batch_size : min(stop, len(self)) * self.batch_size]

    def part(self, batch: int) -> NDArray[np.int64]:
        """Return the images of a batch of the epoch that this process learns from."""
        return self._part(self.whole(batch, batch + 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self._batch, len(self)):
            indices = self.part(batch)
            if self._with_neighbour:
                before = self._part(np.roll(self.whole(batch, batch + 1), 1))
                indices = np.append(before[0], indices)
            yield [(self._epoch, index) for index in indices.tolist()]

    def _part(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array_split(indices, self._world_size)[self._rank]

    def _shuffled(self) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, self._epoch]).permutation(self._count)


def training_loader(items: Items, batches: EpochBatches, workers: int | None = None) -> DataLoader[Any]:
    """Return the batches `Batch` of an epoch, in the order of ``batches``; what they hold does not depend on workers.

    Args:
        items: The images, by ``(epoch, index)``.
        batches: Which images are in which batch, and where to start.
        workers: Processes that decode; ``None`` for none if the pixels are in memory, else up to four.

    Raises:
        InputError: While iterating, if an image cannot be decoded; the message names it.
        WorkerError: While iterating, if workers cannot work on this machine.
    """
    return _loader(items, batches, workers, persistent=True)


def evaluation_loader(
    items: Items, batch_size: int, rank: int = 0, world_size: int = 1, workers: int | None = None
) -> DataLoader[Any]:
    """Return batches `Batch` of a set in its own order; over all processes, every image comes exactly once.

    Args:
        items: The images, by index.
        batch_size: Images a step, of this process.
        rank: Which process this is: it gets every ``world_size``-th image.
        world_size: How many processes evaluate together.
        workers: As for `training_loader`.

    Raises:
        InputError: While iterating, if an image cannot be decoded; the message names it.
        WorkerError: While iterating, if workers cannot work on this machine.
    """
    indices = range(rank, len(items), world_size)
    batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
    return _loader(items, batches, workers, persistent=False)


class _Batches(Dataset[Batch | TnnError]):
    """Whole batches by the keys of their images, or the error that stopped one.

    A worker process hands errors over as text with its own traceback; as an item, an error arrives as it was.
    """

    def __init__(self, items: Items) -> None:
        self._items = items

    def __getitem__(self, keys: list[Any]) -> Batch | TnnError:
        is_worker = get_worker_info() is not None
        try:
            images, labels = default_collate([self._items[key] for key in keys])
            if is_worker:
                labels.share_memory_()  # Later, an error would be printed, and the batch never arrive.
        except TnnError as error:
            return error
        except (OSError, RuntimeError) as error:
            if is_worker and (fault := worker_fault(error)) is not None:
                return fault
            raise
        return images, labels


class _Loader(DataLoader[Any]):
    """A loader of `_Batches` that raises the errors among them, and whose workers are ended by this process alone."""

    def __iter__(self) -> Any:
        batches = self._attempt(self._start)
        while (batch := self._attempt(partial(next, batches, None))) is not None:
            if isinstance(batch, TnnError):
                raise batch
            yield batch

    def _start(self) -> Any:
        with _shielding():
            return super().__iter__()

    def _attempt(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (OSError, RuntimeError) as error:
            if self.num_workers and (fault := worker_fault(error)) is not None:
                raise fault from error
            raise


def _loader(items: Items, batches: Any, workers: int | None, *, persistent: bool) -> DataLoader[Any]:
    workers = _default_workers(items) if workers is None else workers
    return _Loader(
        _Batches(items),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_hear_parent if _CAN_SHIELD else None,
        persistent_workers=persistent and workers > 0,
        pin_memory=torch.cuda.is_available(),
        # A generator of its own: seeding the workers must not move the one that training draws from.
        generator=torch.Generator(),
    )


@contextmanager
def _shielding() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM from the processes that start within this context.

    A terminal, ``timeout`` and service managers send these to all processes of a program. The workers are needed until
    the running step is done and saved.
    """
    if not _CAN_SHIELD:
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _hear_parent(worker: int) -> None:
    """Let this process, which started within `_shielding`, end on a SIGTERM of the process that started it."""

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _unchanged(batch: Any) -> Any:
    return batch


def _default_workers(items: Items) -> int:
    if items.is_in_memory:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MOST_WORKERS, cores)
