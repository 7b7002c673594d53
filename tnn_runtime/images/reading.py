"""Many images at once, by several threads: all that cannot be used are found before the first error is raised."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.errors import InputError
from tnn_runtime.images.files import REPLACE
from tnn_runtime.images.preprocess import Preprocessing, Traits
from tnn_runtime.text import printable

__all__ = ["even_sample", "list_unusable", "read_each", "read_images", "refuse_unusable", "tell_traits"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_CHUNK = 16
"""What a thread does at a time: arrays take less time to read than to hand over."""
_WAITING = 256
_LISTED = 20

_TWELVE_BITS = 4095
_MUCH_CROPPED = 0.25


def even_sample(total: int, limit: int = 5000) -> NDArray[np.int64]:
    """Return up to ``limit`` indices spread evenly over ``total``, int64, ascending."""
    return np.unique(np.linspace(0, total - 1, min(limit, total)).astype(np.int64))


def tell_traits(traits: Sequence[Traits], name: Callable[[int], str]) -> None:
    """Log what people should know of the images of a data set, as notes: nearly black ones, and much that is cropped.

    Args:
        traits: Of each image.
        name: From the place of an image to what it is called.
    """
    deep = [place for place, one in enumerate(traits) if one.peak is not None]
    dark = [place for place in deep if 0 < (traits[place].peak or 0) <= _TWELVE_BITS]
    if dark:
        _logger.warning(
            "%d of %d images of more than 8 bits never pass the value %d, and come out nearly black, as 65535 is "
            "white; the first is %s: scale their values to 0 to 65535, or save them with 8 bits",
            len(dark),
            len(deep),
            _TWELVE_BITS,
            min(map(name, dark)),
        )
    cropped = float(np.median([one.cropped for one in traits])) if traits else 0.0
    if cropped > _MUCH_CROPPED:
        _logger.warning(
            "half of the images lose %.0f%% or more at their sides, as each is scaled to cover the model's input and "
            "cropped at the centre; to keep all of them, train or import with --fit pad (fit='pad') or --fit squash, "
            "or with an --image-size HEIGHT WIDTH of their shape",
            100 * cropped,
        )


def read_each(read: Callable[[int], T], count: int) -> Iterator[T | InputError]:
    """Yield ``read(0)`` to ``read(count - 1)`` in order, or the error in place of what cannot be used.

    Args:
        read: Called by several threads, as Pillow lets others run while it decodes.
        count: How often.
    """

    def chunk(start: int) -> list[T | InputError]:
        return [_attempt(read, index) for index in range(start, min(start + _CHUNK, count))]

    waiting: deque[Future[list[T | InputError]]] = deque()
    with ThreadPoolExecutor(thread_name_prefix="tnn-read") as pool:
        try:
            for start in range(0, count, _CHUNK):
                if len(waiting) == _WAITING:
                    yield from waiting.popleft().result()
                waiting.append(pool.submit(chunk, start))
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def read_images(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Return image files as one array, uint8 ``[len(paths), height, width, channels]``; see `tell_traits` for notes.

    Raises:
        InputError: If any cannot be used; the message lists them.
    """
    images = np.empty((len(paths), *preprocessing.shape), np.uint8)

    def read(index: int) -> Traits:
        images[index], traits = preprocessing.decode(paths[index])
        return traits

    results = list(read_each(read, len(paths)))
    errors = {path: str(one) for path, one in zip(paths, results, strict=True) if isinstance(one, InputError)}
    refuse_unusable(errors, len(paths))
    tell_traits([one for one in results if isinstance(one, Traits)], lambda place: printable(str(paths[place])))
    return images


def refuse_unusable(unusable: Mapping[Path, str], count: int, hint: str = "") -> None:
    """Make sure that there is no unusable file.

    Args:
        unusable: What is wrong with each, as one sentence that names it.
        count: How many files there are, with these.
        hint: What else can be done than to replace them.

    Raises:
        InputError: If there is one; the message lists the first 20.
    """
    if len(unusable) == 1:
        raise InputError(next(iter(unusable.values())) + hint)
    if unusable:
        listed = list_unusable(unusable)
        raise InputError(f"{len(unusable)} of {count} files cannot be used: {listed}; replace or remove them{hint}")


def list_unusable(unusable: Mapping[Path, str]) -> str:
    """Return what is wrong with the first 20 files, in sorted order, and how many more there are."""
    told = [why.removesuffix(REPLACE) for _, why in sorted(unusable.items())[:_LISTED]]
    more = [f"and {len(unusable) - _LISTED} more"] if len(unusable) > _LISTED else []
    return "; ".join(told + more)


def _attempt(read: Callable[[int], T], index: int) -> T | InputError:
    try:
        return read(index)
    except InputError as error:
        return error
