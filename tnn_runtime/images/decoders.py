"""Images decoded by several threads: Pillow lets others run while it decodes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import InputError, ResourcesExhausted
from tnn_runtime.images.limits import Limits
from tnn_runtime.images.preprocess import AnyImage, ImageSource, Preprocessing, taken

__all__ = ["Decoders", "numbered"]

T = TypeVar("T")
_Image = NDArray[np.uint8]
_AHEAD = 2


class DecodeWatch(Protocol):
    """Who keeps account of decoding; every method may be called from any thread."""

    def decoding(self, change: int) -> None:
        """Count images that begin to wait for being decoded, or are decoded or given up."""

    def decoded(self, seconds: float) -> None:
        """Record how long decoding an image took."""


class Decoders:
    """Threads that make model inputs of images. They start when there is something for them to do.

    Args:
        preprocessing: What happens to an image.
        limits: What an image may be.
        threads: How many images may be decoded at once.
        watch: Is told how many more or fewer images wait or are decoded, and how long each took.
    """

    def __init__(self, preprocessing: Preprocessing, limits: Limits, threads: int, watch: DecodeWatch) -> None:
        self._preprocessing = preprocessing
        self._limits = limits
        self._watch = watch
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tnn-decode")

    def taken(self, source: AnyImage) -> ImageSource:
        """Return a source that the caller cannot change any more; see `tnn_runtime.images.preprocess.taken`."""
        return taken(source, self._limits)

    def decode(self, source: ImageSource) -> _Image:
        """Return an image as the model takes it, uint8 ``[height, width, channels]``.

        Raises:
            InputError: If it cannot be used.
        """
        started = time.perf_counter()
        try:
            return self._preprocessing(source, self._limits)
        finally:
            self._watch.decoded(time.perf_counter() - started)

    def do_soon(self, work: Callable[[], object]) -> None:
        """Do work in the background, or at once where that is not possible."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            work()

    def do(self, source: ImageSource, work: Callable[[], T]) -> Future[T]:
        """Do work that decodes an image: in the background if it is a file, or the bytes of one.

        A Pillow image or an array is worked on at once, since the caller may change it afterwards.

        Raises:
            ResourcesExhausted: If the system does not allow a thread for it.
        """
        if isinstance(source, str | Path | bytes):
            self._watch.decoding(1)
            try:
                future = self._pool.submit(work)
            except RuntimeError as error:
                self._watch.decoding(-1)
                raise ResourcesExhausted(
                    f"no thread can be started that decodes this image ({error}); send it later, or raise the limit of "
                    "processes (ulimit -u, or pids of the container)"
                ) from error
            future.add_done_callback(lambda _: self._watch.decoding(-1))
            return future
        done: Future[T] = Future()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
        return done

    def batches(self, sources: Sequence[AnyImage], size: int) -> Iterator[_Image]:
        """Yield the images in order, in batches uint8 ``[N, height, width, channels]`` of at most ``size``.

        The next batch is decoded while the caller works on one.

        Raises:
            InputError: If an image cannot be used; the message tells which.
        """
        if len(sources) == 1:
            yield self.decode(self.taken(sources[0]))[None]
            return
        coming: deque[tuple[int, list[Future[_Image]]]] = deque()
        try:
            for start in range(0, len(sources), size):
                coming.append((start, [self._decode(source) for source in sources[start : start + size]]))
                if len(coming) == _AHEAD:
                    yield _join(*coming[0])
                    coming.popleft()
            while coming:
                yield _join(*coming[0])
                coming.popleft()
        finally:
            for _, futures in coming:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        """End the threads when their work is done."""
        self._pool.shutdown()

    def _decode(self, source: AnyImage) -> Future[_Image]:
        try:
            still = self.taken(source)
        except InputError as error:
            failed: Future[_Image] = Future()
            failed.set_exception(error)
            return failed
        return self.do(still, partial(self.decode, still))


def numbered(error: InputError, index: int) -> InputError:
    """Return the error for one image of several, which says which one it is."""
    named = InputError(f"images[{index}]: {error}")
    named.index = index
    return named


def _join(start: int, futures: list[Future[_Image]]) -> _Image:
    images = []
    for index, future in enumerate(futures, start):
        try:
            images.append(future.result())
        except InputError as error:
            raise numbered(error, index) from error
    return np.stack(images)
