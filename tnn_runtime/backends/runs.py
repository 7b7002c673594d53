"""How a backend of ONNX Runtime runs its sessions: on arrays of the host, or bound to memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.backends.binding import ALWAYS, BoundSlot, failed_run
from tnn_runtime.backends.capture import GPU
from tnn_runtime.backends.slots import Slots
from tnn_runtime.errors import ClassifierClosed, RunError

__all__ = ["Bound", "Runs", "Unbound"]

_CLOSED = "this backend is closed; load the bundle again"


class Runs(Protocol):
    """What runs batches."""

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Sequence[NDArray[Any]]:
        """Return logits and embeddings of images ``[N, H, W, C]``, and the outputs of the names ``extra``.

        Errors are those of `Backend.run`.
        """
        ...

    def warm_up(self) -> None:
        """Run each batch size everywhere where it may run."""
        ...

    def close(self) -> None:
        """Release the sessions, after the calls that run. Closing twice is fine."""
        ...


class Unbound:
    """Sessions that take arrays of the host and copy them as they like; any number of calls may run at once.

    Args:
        sessions: The session for each batch size; that for ``None`` takes any.
        sizes: The batch sizes to warm up.
        shape: Of an image.
        on_gpu: Whether they run there.
    """

    def __init__(
        self, sessions: Mapping[int | None, Any], sizes: Sequence[int], shape: Sequence[int], on_gpu: bool
    ) -> None:
        self._sessions = sessions
        self._sizes = sizes
        self._shape = shape
        self._using: AbstractContextManager[None] = GPU if on_gpu else nullcontext()

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Sequence[NDArray[Any]]:
        """Return logits and embeddings, and the outputs that are named."""
        sessions = self._sessions
        session = sessions.get(None) or sessions.get(len(images))
        if session is None:
            if not sessions:
                raise ClassifierClosed(_CLOSED)
            raise RunError(f"got a batch of {len(images)}; expected one of {list(sessions)}: fill it up")
        with self._using:
            try:
                outputs: Sequence[NDArray[Any]] = session.run(ALWAYS + extra, {"images": images})
            except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
                raise failed_run(len(images), error) from error
        return outputs

    def warm_up(self) -> None:
        """Run each batch size."""
        for size in self._sizes:
            self.run(np.zeros((size, *self._shape), np.uint8))

    def close(self) -> None:
        """Release the sessions."""
        with self._using:
            self._sessions = {}


class Bound:
    """Slots of a GPU.

    Args:
        make_slot: Makes one.
        count: How many to make.
        graphs: Whether they record CUDA graphs, which is done at once: ONNX Runtime records and replays in one thread.

    Raises:
        NotAnswered: If the memory of a slot is not to be had, or a graph cannot be recorded.
    """

    def __init__(self, make_slot: Callable[[], BoundSlot], count: int, graphs: bool) -> None:
        self._thread = ThreadPoolExecutor(1, "tnn-cuda-graphs") if graphs else None
        made: list[BoundSlot] = []
        try:
            for _ in range(count):
                made.append(make_slot())
        except BaseException:
            Slots(made).close()
            raise
        self._slots = Slots(made)
        if self._thread is not None:
            try:
                self._thread.submit(self._slots.warm_up).result()
            except BaseException:
                self.close()
                raise

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Sequence[NDArray[Any]]:
        """Return logits and embeddings, and the outputs that are named."""
        if self._thread is None:
            return self._slots.run(images, extra)
        try:
            running = self._thread.submit(self._slots.run, images, extra)
        except RuntimeError as error:
            raise ClassifierClosed(_CLOSED) from error
        return running.result()

    def warm_up(self) -> None:
        """Run each batch size in each slot, where they have not been recorded."""
        if self._thread is None:
            self._slots.warm_up()

    def close(self) -> None:
        """Release the slots."""
        if self._thread is not None:
            self._thread.shutdown()
        self._slots.close()
