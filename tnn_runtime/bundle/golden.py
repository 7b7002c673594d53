"""The golden samples of a bundle: images with the logits of eager PyTorch, replayed where the model will serve."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.manifest import GOLDEN_FILE
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError, SelfCheckError

__all__ = ["replay_golden_samples"]

_BYTES_OF_A_LOGIT = 8
_HEADERS = 1 << 12


def replay_golden_samples(
    bundle: Bundle,
    device: str,
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    max_batch_size: int,
) -> None:
    """Compare the logits of the golden samples with those that they had in eager PyTorch.

    Args:
        bundle: The bundle; its manifest has the largest difference that is allowed for each sample.
        device: What to call the device in an error.
        run: Runs the model there: from images, uint8 ``[n, H, W, C]``, to logits, float32 ``[n, classes]``.
        max_batch_size: The largest batch that it takes.

    Raises:
        SelfCheckError: If they differ by more.
        ArtifactError: If the samples do not fit the manifest.
    """
    manifest, path = bundle.manifest, bundle.folder / GOLDEN_FILE
    allowed = np.asarray(manifest.golden_tolerance)
    count, classes = len(allowed), len(manifest.class_names)
    most_bytes = count * (math.prod(manifest.preprocessing.shape) + _BYTES_OF_A_LOGIT * classes)
    content = bundle.contents[GOLDEN_FILE]
    golden = read_arrays(path, "images", "logits", content=content, most_bytes=most_bytes + _HEADERS)
    images, expected = golden["images"], golden["logits"]
    if (
        count == 0
        or images.dtype != np.uint8
        or images.shape != (count, *manifest.preprocessing.shape)
        or expected.shape != (count, classes)
    ):
        raise ArtifactError(
            f"{path} has images {list(images.shape)} and logits {list(expected.shape)} "
            f"for {count} tolerances and {classes} classes in the manifest; export the bundle again"
        )
    parts = (images[start : start + max_batch_size] for start in range(0, count, max_batch_size))
    worst = np.abs(np.concatenate([run(part) for part in parts]) - expected).max(axis=1)
    if not (worst <= allowed).all():
        raise SelfCheckError(
            f"{bundle.folder} does not reproduce its golden samples on {device}: "
            f"logits differ by up to {worst.max():.3g}, expected at most {allowed.min():.3g}; "
            "export again, or choose another device"
        )
