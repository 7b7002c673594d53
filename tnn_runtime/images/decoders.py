"""Images decoded by several threads: Pillow lets others run while it decodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import InputError, ResourcesExhausted
from tnn_runtime.images.preprocess import AnyImage, ImageSource, Preprocessing, taken

__all__ = ["Decoders"]

T = TypeVar("T")
_Image = NDArray[np.uint8]
_AHEAD = 2


class Decoders:
    """Threads that make model inputs of images. They start when there is something for them to do.

    Args:
        preprocessing: What happens to an image.
        threads: How many images may be decoded at once.
    """

    def __init__(self, preprocessing: Preprocessing, threads: int) -> None:
        self._preprocessing = preprocessing
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tnn-decode")

    def do(self, source: ImageSource, work: Callable[[], T]) -> Future[T]:
        """Do work that decodes an image: in the background if it is a file, or the bytes of one.

        A Pillow image or an array is worked on at once, since the caller may change it afterwards.

        Raises:
            ResourcesExhausted: If the system does not allow a thread for it.
        """
        if isinstance(source, str | Path | bytes):
            try:
                return self._pool.submit(work)
            except RuntimeError as error:
                raise ResourcesExhausted(
                    f"no thread can be started that decodes this image ({error}); send it later, or raise the limit of "
                    "processes (ulimit -u, or pids of the container)"
                ) from error
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
            yield self._preprocessing(sources[0])[None]
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
            still = taken(source)
        except InputError as error:
            failed: Future[_Image] = Future()
            failed.set_exception(error)
            return failed
        return self.do(still, partial(self._preprocessing, still))


def _join(start: int, futures: list[Future[_Image]]) -> _Image:
    images = []
    for index, future in enumerate(futures, start):
        try:
            images.append(future.result())
        except InputError as error:
            named = InputError(f"images[{index}]: {error}")
            named.index = index
            raise named from error
    return np.stack(images)
