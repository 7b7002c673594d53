"""The one class that services embed."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.backends import Backend, BackendOptions, open_backend
from tnn_runtime.errors import ArtifactError, ClassifierClosed, InputError, SelfCheckError, UsageError
from tnn_runtime.explain import Explanation, HeadExplainer
from tnn_runtime.manifest import GOLDEN_FILE, HEAD_FILE, Manifest
from tnn_runtime.preprocess import ImageSource
from tnn_runtime.storage import read_arrays

__all__ = ["Classifier", "Prediction", "usable_cores"]


@dataclass(frozen=True)
class Prediction:
    """One class for one image.

    Args:
        label: Name of the class.
        score: Softmax probability, 0 to 1.
        index: Position of the class among the logits.
    """

    label: str
    score: float
    index: int


class Classifier:
    """A bundle, loaded and ready. Make one with `Classifier.load`.

    ``predict``, ``logits``, ``embed`` and ``explain`` may be called from several threads at once. Use it as a
    context manager, or call `close`.
    """

    def __init__(self, manifest: Manifest, folder: Path, backend: Backend, reason: str, max_batch_size: int) -> None:
        """Take parts that `load` has made and checked."""
        self._manifest = manifest
        self._folder = folder
        self._backend = backend
        self._reason = reason
        self._max_batch_size = min(max_batch_size, manifest.batch.largest or max_batch_size)
        self._closed = False
        self._explainer: HeadExplainer | None = None
        if manifest.model["head"] == "tversky":
            self._explainer = HeadExplainer(
                folder / HEAD_FILE, manifest.model.get("tversky"), len(manifest.class_names)
            )

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        device: str = "auto",
        *,
        threads: int | None = None,
        max_batch_size: int = 64,
        self_check: bool = True,
        public_key: str | Path | None = None,
    ) -> Self:
        """Load a bundle, check every file's hash, and replay its golden samples on the device.

        Args:
            bundle: The bundle folder.
            device: ``"auto"`` takes CUDA where it works and the CPU otherwise (`info` tells which and why);
                ``"cpu"``, ``"cuda"`` and ``"cuda:N"`` mean just that, or an error.
            threads: CPU threads for one call; by default all cores this process may use.
            max_batch_size: Larger inputs are split into batches of this size, or of the largest that the bundle takes.
            self_check: Whether to replay the golden samples.
            public_key: The PEM file of the Ed25519 key whose owner must have signed the bundle; without one, a
                signature is not looked at.

        Raises:
            SignatureError: If a key is given and the bundle is not signed with it.
            ArtifactError: If the bundle is missing, damaged, altered, or of a newer schema.
            SelfCheckError: If the golden samples come out differently here.
            ProviderUnavailable: If the device does not work on this machine.
            UsageError: If an argument is out of its range.
        """
        threads = usable_cores() if threads is None else threads
        _at_least_one(threads=threads, max_batch_size=max_batch_size)
        manifest, folder = Manifest.read(bundle, public_key)
        backend, reason = open_backend(folder, manifest, device, BackendOptions(threads, max_batch_size))
        classifier = cls(manifest, folder, backend, reason, max_batch_size)
        if self_check:
            classifier._replay_golden_samples()
        return classifier

    def predict(self, images: Sequence[ImageSource], top_k: int = 5) -> list[list[Prediction]]:
        """Classify images.

        Args:
            images: Paths, bytes of image files, PIL images, or uint8 arrays ``[H, W]``, ``[H, W, 1]`` or
                ``[H, W, 3]``, mixed as you like and of any size; or one uint8 array ``[N, H, W, C]``.
            top_k: How many classes to return for each image; all of them if there are fewer.

        Returns:
            For each image, in order, its ``top_k`` predictions, best first.

        Raises:
            InputError: If an image cannot be used; the message names it.
            ClassifierClosed: After `close`.
        """
        _at_least_one(top_k=top_k)
        logits = self.logits(images)
        best = _best(logits, top_k)
        scores = _softmax(logits)
        names = self._manifest.class_names
        return [
            [Prediction(names[index], float(row[index]), int(index)) for index in ranked]
            for ranked, row in zip(best, scores, strict=True)
        ]

    def logits(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits, float32 ``[N, classes]``, of the images that `predict` accepts.

        An array ``[N, height, width, channels]`` of the model's own size goes to the model as it is.
        """
        return self._run(images)[0]

    def embed(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the embeddings that the head sees, float32 ``[N, D]``."""
        return self._run(images)[1]

    def explain(self, images: Sequence[ImageSource], top_k: int = 3, num_features: int = 5) -> list[list[Explanation]]:
        """Split the logits of the ``top_k`` best classes of each image into their Tversky parts.

        Args:
            images: As for `predict`.
            top_k: How many classes to explain for each image.
            num_features: How many of the strongest features to list for each class.

        Raises:
            UsageError: If the bundle has a linear head, which has no such parts.
        """
        _at_least_one(top_k=top_k, num_features=num_features)
        explainer = self._explainer
        if explainer is None:
            head = self._manifest.model["head"]
            raise UsageError(f"this bundle has a {head} head; only Tversky heads have parts to explain")
        logits, embeddings = self._run(images)
        best = _best(logits, top_k)
        names = self._manifest.class_names
        return [
            [explainer(embedding, int(index), names[index], num_features) for index in ranked]
            for ranked, embedding in zip(best, embeddings, strict=True)
        ]

    @property
    def info(self) -> dict[str, Any]:
        """Where and how the bundle runs: device, the reason for it, threads, versions, classes and input shape."""
        return {
            "bundle": str(self._folder),
            "device": self._backend.device,
            "reason": self._reason,
            "threads": self._backend.threads,
            "backbone": self._manifest.model["backbone"],
            "head": self._manifest.model["head"],
            "precision": self._manifest.precision,
            "class_names": list(self._manifest.class_names),
            "input_shape": list(self._manifest.preprocessing.shape),
            "max_batch_size": self._max_batch_size,
            "versions": self._backend.versions,
        }

    def close(self) -> None:
        """Release the model. Later calls raise `ClassifierClosed`; closing twice is fine."""
        self._closed = True
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, images: Sequence[ImageSource] | NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._closed:
            raise ClassifierClosed("this classifier is closed; load the bundle again")
        if isinstance(images, str | bytes) or not isinstance(images, Sequence | np.ndarray):
            raise InputError(f"got one {type(images).__name__}; expected a list of images: pass [image]")
        outputs = [self._infer(batch) for batch in self._batches(images)]
        if len(outputs) == 1:
            return outputs[0]
        none = (np.empty((0, spec.shape[1] or 0), np.float32) for spec in self._manifest.outputs[:2])
        logits, embeddings = zip(tuple(none), *outputs, strict=True)
        return np.concatenate(logits), np.concatenate(embeddings)

    def _infer(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run one batch; one below the smallest that the graph takes is filled up with its own images."""
        count, smallest = len(images), self._manifest.batch.smallest
        if count >= smallest:
            return self._backend.run(images)
        logits, embeddings = self._backend.run(np.resize(images, (smallest, *images.shape[1:])))
        return logits[:count], embeddings[:count]

    def _batches(self, images: Sequence[ImageSource] | NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        preprocessing = self._manifest.preprocessing
        ready = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == preprocessing.shape
        if isinstance(images, np.ndarray) and not ready and images.ndim != 4:
            raise InputError(
                f"got an array of dtype {images.dtype} and shape {list(images.shape)}; expected uint8 [N, H, W, C] "
                f"(this model's own size is {list(preprocessing.shape)}), or a list of images"
            )
        images = images if isinstance(images, np.ndarray) else list(images)
        for start in range(0, len(images), self._max_batch_size):
            part = images[start : start + self._max_batch_size]
            yield np.ascontiguousarray(part) if ready else preprocessing.batch(list(part))

    def _replay_golden_samples(self) -> None:
        path = self._folder / GOLDEN_FILE
        golden = read_arrays(path, "images", "logits")
        images, expected = golden["images"], golden["logits"]
        allowed = np.asarray(self._manifest.golden_tolerance)
        count, classes = len(allowed), len(self._manifest.class_names)
        if (
            count == 0
            or images.dtype != np.uint8
            or images.shape != (count, *self._manifest.preprocessing.shape)
            or expected.shape != (count, classes)
        ):
            raise ArtifactError(
                f"{path} has images {list(images.shape)} and logits {list(expected.shape)} "
                f"for {count} tolerances and {classes} classes in the manifest; export the bundle again"
            )
        worst = np.abs(self.logits(images) - expected).max(axis=1)
        if not (worst <= allowed).all():
            raise SelfCheckError(
                f"{self._folder} does not reproduce its golden samples on {self._backend.device}: "
                f"logits differ by up to {worst.max():.3g}, expected at most {allowed.min():.3g}; "
                "export again, or choose another device"
            )


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        try:
            good = 1 <= operator.index(value) < _MANY
        except TypeError:
            good = False
        if not good:
            raise UsageError(f"{name} is {value!r}; expected an integer of at least 1 and below {_MANY}")


_MANY = 1 << 20


def _best(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indices of the ``count`` largest logits of each row, largest first."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :count]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
