"""What features and prototypes look like: the training images that have them most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError

__all__ = ["KINDS", "NOWHERE", "Exemplars", "Faces", "Gallery"]

KINDS = ("feature", "prototype")
"""What has exemplars."""

_VERBS = {"feature": "Seen in", "prototype": "The nearest one for"}
NOWHERE = -1
"""The place of a picture that there is not."""

_PLAIN, _RARE = 0.8, 0.1
"""A description is plain if so many images of a few classes have the feature at least, and so many others at most."""

_FEW = 3
"""Classes that a plain description names, at most."""


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The training images that have a feature most, or are most like a prototype.

    Args:
        images: Small pictures of them, uint8 ``[n, h, w, c]``, those with the largest values first.
        labels: The class of each.
        values: How much of the feature each has.
        boxes: Where it is in each, ``(top, left, bottom, right)`` in pixels of these pictures; ``None`` where there are
            no maps.
        shares: For the name of each class, the share of its training images that have the feature, 0 to 1.
        description: What it is, in a plain sentence, if there is one.
    """

    images: NDArray[np.uint8]
    labels: tuple[str, ...]
    values: tuple[float, ...]
    boxes: tuple[tuple[int, int, int, int], ...] | None
    shares: Mapping[str, float]
    description: str | None


@dataclass(frozen=True, eq=False)
class Faces:
    """The exemplars of K features or prototypes.

    Args:
        numbers: Which ones these are, as explanations number them, int64 ``[K]``.
        pictures: Places in `Gallery.pictures`, int64 ``[K, n]``, the largest value first; -1 where there are fewer.
        values: How much of the feature each picture has, float32 ``[K, n]``.
        shares: Of the images of each class that have the feature, float32 ``[K, C]``, 0 to 1.
        boxes: Where it is in each picture, int64 ``[K, n, 4]``, see `Exemplars`; ``None`` where there are no maps.
    """

    numbers: NDArray[np.int64]
    pictures: NDArray[np.int64]
    values: NDArray[np.float32]
    shares: NDArray[np.float32]
    boxes: NDArray[np.int64] | None = None

    def take(self, places: Sequence[int], numbers: Sequence[int]) -> Faces:
        """Return some of them, with other numbers."""
        at = np.array(places, np.int64)
        boxes = None if self.boxes is None else self.boxes[at]
        return Faces(np.array(numbers, np.int64), self.pictures[at], self.values[at], self.shares[at], boxes)


@dataclass(frozen=True, eq=False)
class Gallery:
    """The exemplars of all features and prototypes of a model, as ``exemplars.npz`` has them.

    Args:
        pictures: Small pictures of training images, uint8 ``[U, h, w, c]``, each once.
        labels: The class of each picture, int64 ``[U]``.
        class_names: What the labels stand for: the classes of the training, C names.
        counts: How many images of each class were looked at, int64 ``[C]``.
        features: Of the features.
        prototypes: Of the prototypes; ``None`` if the head has none.
    """

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    counts: NDArray[np.int64]
    features: Faces
    prototypes: Faces | None = None

    def find(self, kind: str, number: int) -> Exemplars | None:
        """Return the exemplars of a feature or a prototype; ``None`` if there are none of it.

        Args:
            kind: One of `KINDS`.
            number: As explanations number it.
        """
        faces = self.features if kind == KINDS[0] else self.prototypes
        places = [] if faces is None else np.flatnonzero(faces.numbers == number).tolist()
        if faces is None or not places:
            return None
        (place,) = places
        there = np.flatnonzero(faces.pictures[place] != NOWHERE)
        pictures, shares = faces.pictures[place][there], faces.shares[place]
        boxes = None if faces.boxes is None else faces.boxes[place][there].tolist()
        return Exemplars(
            images=self.pictures[pictures],
            labels=tuple(self.class_names[label] for label in self.labels[pictures].tolist()),
            values=tuple(faces.values[place][there].tolist()),
            boxes=None if boxes is None else tuple((top, left, bottom, right) for top, left, bottom, right in boxes),
            shares=dict(zip(self.class_names, shares.tolist(), strict=True)),
            description=self._description(kind, shares),
        )

    def told(self, kind: str) -> str:
        """Return of which features or prototypes there are exemplars, in words."""
        faces = self._faces().get(kind)
        if faces is None or not len(faces.numbers):
            return f"those of no {kind}"
        first, last = faces.numbers.min(), faces.numbers.max()
        return f"those of {len(faces.numbers)} {kind}s, numbered from {first} to {last}"

    def without_prototypes(self, gone: Sequence[int]) -> Gallery:
        """Return the exemplars without those of some prototypes; those that are left are numbered anew."""
        if self.prototypes is None:
            return self
        kept = [place for place, number in enumerate(self.prototypes.numbers.tolist()) if number not in gone]
        numbers = [int(number) - sum(other < number for other in gone) for number in self.prototypes.numbers[kept]]
        return replace(self, prototypes=self.prototypes.take(kept, numbers))._compact()

    def without_features(self, gone: Sequence[int]) -> Gallery:
        """Return the exemplars without those of some features; the others keep their numbers."""
        kept = [place for place, number in enumerate(self.features.numbers.tolist()) if number not in gone]
        return replace(self, features=self.features.take(kept, self.features.numbers[kept].tolist()))._compact()

    def with_prototype_before(self, place: int) -> Gallery:
        """Return the exemplars where a prototype without any was put in at ``place``."""
        if self.prototypes is None:
            return self
        numbers = self.prototypes.numbers
        return replace(self, prototypes=replace(self.prototypes, numbers=numbers + (numbers >= place)))

    def write(self, path: Path) -> None:
        """Write ``exemplars.npz``."""
        arrays = {"pictures": self.pictures, "labels": self.labels, "counts": self.counts}
        for kind, faces in self._faces().items():
            found = {name: getattr(faces, name) for name in ("numbers", *_ARRAYS)}
            arrays |= {f"{kind}_{name}": array for name, array in found.items() if array is not None}
        np.savez_compressed(path, class_names=np.array(self.class_names), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path, content: bytes | None = None) -> Gallery:
        """Read ``exemplars.npz``.

        Args:
            path: The file.
            content: What is in it, if it has been read already.

        Raises:
            ArtifactError: If it cannot be read, or its arrays do not belong together.
        """
        names = [f"{kind}_{name}" for kind in KINDS for name in ("numbers", *_ARRAYS)]
        needed = ("pictures", "labels", "counts", "class_names", *names[:4])
        found = read_arrays(path, *needed, optional=[*names[4:]], text=("class_names",), content=content)
        features, prototypes = (
            Faces(*(found.get(f"{kind}_{name}") for name in ("numbers", *_ARRAYS)))  # type: ignore[arg-type]
            for kind in KINDS
        )
        gallery = cls(
            found["pictures"],
            found["labels"],
            tuple(found["class_names"].tolist()),
            found["counts"],
            features,
            None if prototypes.numbers is None else prototypes,
        )
        if not gallery._fits():
            raise ArtifactError(f"{path} has arrays that do not belong together; make it again")
        return gallery

    def _compact(self) -> Gallery:
        """Return the same without pictures that show nothing any more."""
        shown = np.setdiff1d(np.concatenate([faces.pictures.ravel() for faces in self._faces().values()]), [NOWHERE])

        def moved(faces: Faces) -> Faces:
            there = faces.pictures != NOWHERE
            return replace(faces, pictures=np.where(there, np.searchsorted(shown, faces.pictures), NOWHERE))

        return replace(
            self,
            pictures=self.pictures[shown],
            labels=self.labels[shown],
            features=moved(self.features),
            prototypes=None if self.prototypes is None else moved(self.prototypes),
        )

    def _faces(self) -> dict[str, Faces]:
        return {kind: one for kind, one in zip(KINDS, (self.features, self.prototypes), strict=True) if one is not None}

    def _fits(self) -> bool:
        """Return whether all arrays have the types and shapes that belong together."""
        pictures, labels, classes = self.pictures, self.labels, len(self.class_names)
        if not (
            pictures.dtype == np.uint8
            and pictures.ndim == 4
            and pictures.shape[3] in (1, 3)
            and labels.shape == (len(pictures),)
            and _within(labels, 0, classes)
            and self.counts.shape == (classes,)
            and self.counts.dtype == np.int64
        ):
            return False
        for faces in self._faces().values():
            shape = np.shape(faces.pictures)
            if not (
                len(shape) == 2
                and np.shape(faces.numbers) == shape[:1]
                and _within(faces.numbers, 0, np.iinfo(np.int64).max)
                and len({*faces.numbers.tolist()}) == shape[0]
                and _within(faces.pictures, NOWHERE, len(pictures))
                and (np.shape(faces.values), np.shape(faces.shares)) == (shape, (shape[0], classes))
                and np.isfinite(faces.values).all()
                and ((faces.shares >= 0) & (faces.shares <= 1)).all()
                and (faces.boxes is None or np.shape(faces.boxes) == (*shape, 4))
                and (faces.boxes is None or _within(faces.boxes, 0, 1 + max(pictures.shape[1:3])))
            ):
                return False
        return True

    def _description(self, kind: str, shares: NDArray[np.float32]) -> str | None:
        """Return in which classes a feature is, if it is plain: most images of a few classes, and hardly any others."""
        order = np.argsort(-shares, kind="stable")
        for count in range(1, min(_FEW, len(order) - 1) + 1):
            most, others = order[:count], order[count:]
            rest = float(np.average(shares[others], weights=np.maximum(self.counts[others], 1)))
            if shares[most[-1]] >= _PLAIN and rest <= _RARE:
                shown = [f"{shares[place]:.0%} of “{self.class_names[place]}”" for place in most.tolist()]
                return f"{_VERBS[kind]} {_joined([*shown, f'{rest:.0%} of all others'])}"
        return None


_ARRAYS = ("pictures", "values", "shares", "boxes")


def _within(values: NDArray[np.int64], low: int, end: int) -> bool:
    return values.dtype == np.int64 and bool(((values >= low) & (values < end)).all())


def _joined(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
