"""Places for calls that run at once, each with buffers of its own that are made once."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.backends.batches import fill_up
from tnn_runtime.backends.capture import GPU
from tnn_runtime.backends.cuda import Buffer, Cuda
from tnn_runtime.bundle.manifest import TensorSpec
from tnn_runtime.errors import ClassifierClosed, NotAnswered, RunError

__all__ = ["AT_ONCE", "Slot", "Slots", "Tensors"]

AT_ONCE = 2
"""Calls that keep a GPU busy: while one computes, the images of the next are copied."""


class Slot(ABC):
    """Where one call at a time runs.

    Args:
        cuda: The GPU.
        tensors: Its inputs and outputs.
        sizes: The batch sizes that it is prepared for, smallest first.
        graphs: Whether work is recorded once for each batch size, which `warm_up` does.
    """

    def __init__(self, cuda: Cuda, tensors: Tensors, sizes: Sequence[int], graphs: bool = False) -> None:
        self._cuda = cuda
        self._tensors = tensors
        self._sizes = sizes
        self._graphs = graphs

    def warm_up(self) -> None:
        """Run each batch size once, since its first run plans, compiles and allocates; then record it, if asked to.

        Errors are those of `run`.
        """
        images = self._tensors.images
        for size in self._sizes:
            batch = np.zeros((size, *images.host.shape[1:]), images.dtype)
            self.run(batch)
            if self._graphs:
                with GPU.alone():
                    self._record(size)
                self.run(batch)

    def run(self, images: NDArray[Any], extra: tuple[str, ...] = ()) -> list[NDArray[Any]]:
        """Return the outputs for a batch of one of the sizes, in memory of their own.

        Args:
            images: The batch.
            extra: The names of further outputs that are to come back, too.

        Raises:
            RunError: If the model fails on it.
            DeviceLost: If the device failed for good.
        """
        with self._running():
            self._fill(images)
            self._compute(len(images))
            return self._tensors.read(len(images), extra)

    def timed_run(self, images: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Return for how many seconds the GPU computes, and the first of the outputs.

        The batch is filled up to the next of the sizes. The time is that of the tensors' stream, without the copies:
        what computes must do so on this stream.
        """
        filled = fill_up(images, self._sizes)
        with self._running():
            self._fill(filled)
            seconds = self._cuda.seconds(self._tensors.stream, lambda: self._compute(len(filled)))
            return seconds, self._tensors.read(len(images))[0]

    def close(self) -> None:
        """Release it."""
        self._tensors.close()

    @abstractmethod
    def _compute(self, count: int) -> None:
        """Compute the outputs for the first images that the tensors have, or queue that on their stream."""

    @abstractmethod
    def _record(self, count: int) -> None:
        """Record what `_compute` does for this batch size, so that it is replayed from then on."""

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Keep recordings away, and leave nothing on the way: the next run writes to the same memory."""
        with GPU:
            try:
                yield
            except BaseException:
                with contextlib.suppress(NotAnswered):  # what failed first is told
                    self._cuda.wait(self._tensors.stream)
                raise

    def _check_size(self, count: int) -> None:
        if count not in self._sizes:
            raise RunError(f"got a batch of {count}; expected one of {list(self._sizes)}: fill it up")

    def _fill(self, images: NDArray[Any]) -> None:
        self._check_size(len(images))
        self._tensors.fill(images)


AnySlot = TypeVar("AnySlot", bound=Slot)


class Slots(Generic[AnySlot]):
    """Lends slots to callers; those that find none wait for one.

    Args:
        slots: What to lend.
    """

    def __init__(self, slots: Sequence[AnySlot]) -> None:
        self._count = len(slots)
        self._closing = threading.Lock()
        self._free: SimpleQueue[AnySlot | None] = SimpleQueue()
        for slot in slots:
            self._free.put(slot)

    def run(self, images: NDArray[Any], extra: tuple[str, ...] = ()) -> list[NDArray[Any]]:
        """Run a batch in the next slot that is free; arguments are those of `Slot.run`.

        Raises:
            ClassifierClosed: After `close`.
        """
        with self._lent() as slot:
            return slot.run(images, extra)

    def warm_up(self) -> None:
        """Warm up each of the slots; see `Slot.warm_up`."""
        taken = [self._free.get() for _ in range(self._count)]
        try:
            for slot in taken:
                if slot is not None:
                    slot.warm_up()
        finally:
            for slot in taken:
                self._free.put(slot)

    def close(self) -> None:
        """Wait for the calls that run, then release all slots. Closing twice is fine."""
        with self._closing:
            for _ in range(self._count):
                slot = self._free.get()
                if slot is not None:
                    with contextlib.suppress(NotAnswered), GPU:  # a lost device has nothing left to release
                        slot.close()
            if self._count:
                self._free.put(None)
            self._count = 0

    @contextmanager
    def _lent(self) -> Iterator[AnySlot]:
        slot = self._free.get()
        try:
            if slot is None:
                raise ClassifierClosed("this backend is closed; load the bundle again")
            yield slot
        finally:
            self._free.put(slot)


class Tensors:
    """Buffers for the inputs and outputs of a call, and the stream that fills and empties them.

    Args:
        cuda: The GPU.
        images: The input; rows of it are images.
        outputs: The outputs.
        largest: The largest batch.
        wanted: How many of the outputs, from the first on, come back to the host.
        stream: The stream, which stays the caller's; by default one of its own.
    """

    def __init__(
        self,
        cuda: Cuda,
        images: TensorSpec,
        outputs: Sequence[TensorSpec],
        largest: int,
        wanted: int = 2,
        stream: Any = None,
    ) -> None:
        self._cuda = cuda
        self._made: list[Buffer] = []
        cuda.use()
        self._owns_stream = stream is None
        self.stream = cuda.stream() if stream is None else stream
        try:
            for spec in (images, *outputs):
                shape = [size or 1 for size in spec.shape[1:]]
                self._made.append(Buffer(cuda, [largest, *shape], spec.dtype))
        except NotAnswered:
            self.close()
            raise
        self.images, *self.outputs = self._made
        self.buffers = dict(zip([spec.name for spec in (images, *outputs)], self._made, strict=True))
        """Each under the name of its tensor."""
        self._wanted = self.outputs[:wanted]

    def fill(self, images: NDArray[Any]) -> None:
        """Queue the copy of a batch to the GPU.

        Raises:
            RunError: If it has another shape.
        """
        count, shape = len(images), self.images.host.shape
        if images.shape[1:] != shape[1:] or count > shape[0]:
            raise RunError(f"got a batch of shape {images.shape}; expected at most {shape[0]} images of {shape[1:]}")
        self._cuda.use()
        np.copyto(self.images.host[:count], images)
        self.images.upload(count, self.stream)

    def read(self, count: int, extra: tuple[str, ...] = ()) -> list[NDArray[Any]]:
        """Copy ``count`` rows of each output that is wanted, or named, from the GPU, and wait for them."""
        wanted = self._wanted + [self.buffers[name] for name in extra]
        for output in wanted:
            output.download(count, self.stream)
        self._cuda.wait(self.stream)
        return [output.host[:count].copy() for output in wanted]

    def close(self) -> None:
        """Release everything."""
        self._cuda.use()
        for buffer in self._made:
            buffer.close()
        if self._owns_stream:
            self._cuda.destroy(self.stream)
