"""``exemplars.npz``: what was written comes back, what does not belong together is refused, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tnn_runtime import ArtifactError
from tnn_runtime.explain.exemplars import KINDS, NOWHERE, Exemplars, Faces, Gallery

CLASSES = ("cat", "dog", "owl", "“x”")


def gallery(boxes: bool = True, prototypes: bool = True, seed: int = 0) -> Gallery:
    rng = np.random.default_rng(seed)

    def faces(numbers: list[int]) -> Faces:
        count = len(numbers)
        pictures = rng.integers(0, 9, (count, 3))
        pictures[0, 2] = NOWHERE
        return Faces(
            np.array(numbers),
            pictures,
            rng.random((count, 3), np.float32),
            rng.random((count, len(CLASSES)), np.float32),
            rng.integers(0, 8, (count, 3, 4)) if boxes else None,
        )

    return Gallery(
        rng.integers(0, 256, (9, 8, 6, 3), np.uint8),
        rng.integers(0, len(CLASSES), 9),
        CLASSES,
        np.array([5, 6, 7, 0]),
        faces([7, 0, 31]),
        faces([0, 1, 2, 3]) if prototypes else None,
    )


def same(one: Exemplars | None, other: Exemplars | None) -> bool:
    assert one is not None
    assert other is not None
    assert (one.labels, one.values, one.boxes, one.shares, one.description) == (
        *(other.labels, other.values, other.boxes, other.shares, other.description),
    )
    return np.array_equal(one.images, other.images)


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("prototypes", [True, False])
def test_what_was_written_comes_back(boxes: bool, prototypes: bool, tmp_path: Path) -> None:
    made = gallery(boxes, prototypes)
    made.write(tmp_path / "exemplars.npz")
    read = Gallery.read(tmp_path / "exemplars.npz")
    for kind, numbers in (("feature", (7, 0, 31)), ("prototype", range(4 * prototypes))):
        assert all(same(read.find(kind, number), made.find(kind, number)) for number in numbers)
        assert read.find(kind, 5) is None
    first = read.find("feature", 7)
    assert first is not None
    assert len(first.images) == len(first.labels) == len(first.values) == 2, "a picture that there is not"
    assert (first.boxes is None) is not boxes
    assert read.told("prototype") == (
        "those of 4 prototypes, numbered from 0 to 3" if prototypes else "those of no prototype"
    )


DAMAGE: dict[str, tuple[str, Any]] = {
    "pictures of floats": ("pictures", lambda array: array.astype(np.float32)),
    "pictures without channels": ("pictures", lambda array: array[..., 0]),
    "pictures of four channels": ("pictures", lambda array: array[..., [0, 1, 2, 2]]),
    "a picture less": ("pictures", lambda array: array[:-1]),
    "a label of no class": ("labels", lambda array: array + len(CLASSES)),
    "labels of floats": ("labels", lambda array: array.astype(np.float32)),
    "a class less": ("class_names", lambda array: array[:-1]),
    "counts of other classes": ("counts", lambda array: array[:-1]),
    "a number twice": ("feature_numbers", lambda array: array * 0),
    "a number less": ("prototype_numbers", lambda array: array[:-1]),
    "a negative number": ("prototype_numbers", lambda array: array - 1),
    "a place of no picture": ("feature_pictures", lambda array: array + 9),
    "a value less": ("prototype_values", lambda array: array[:, :-1]),
    "values that are no numbers": ("feature_values", lambda array: array * np.nan),
    "shares above 1": ("feature_shares", lambda array: array + 1),
    "shares of other classes": ("prototype_shares", lambda array: array[:, :-1]),
    "boxes without an edge": ("feature_boxes", lambda array: array[..., :3]),
    "boxes outside": ("prototype_boxes", lambda array: array + 9),
}


@pytest.mark.parametrize(("name", "change"), DAMAGE.values(), ids=DAMAGE)
def test_arrays_that_do_not_belong_together_are_refused(name: str, change: Any, tmp_path: Path) -> None:
    path = tmp_path / "exemplars.npz"
    gallery().write(path)
    with np.load(path) as arrays:
        changed = {**arrays, name: change(arrays[name])}
    np.savez(path, **changed)
    with pytest.raises(ArtifactError, match=r"exemplars.npz has arrays that do not belong together; make it again"):
        Gallery.read(path)


@pytest.mark.parametrize("missing", ["pictures", "counts", "feature_pictures", "class_names"])
def test_files_that_lack_something_are_refused(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "exemplars.npz"
    gallery().write(path)
    with np.load(path) as arrays:
        np.savez(path, **{name: array for name, array in arrays.items() if name != missing})
    with pytest.raises(ArtifactError, match=r"exemplars.npz cannot be read"):
        Gallery.read(path)


@pytest.mark.parametrize("gone", [[0], [3], [1, 2], []])
def test_prototypes_that_are_left_are_numbered_anew(gone: list[int]) -> None:
    made = gallery()
    left = [number for number in range(4) if number not in gone]
    edited = made.without_prototypes(gone)
    assert all(same(edited.find("prototype", new), made.find("prototype", old)) for new, old in enumerate(left))
    assert edited.find("prototype", len(left)) is None
    assert gallery(prototypes=False).without_prototypes(gone).prototypes is None


@pytest.mark.parametrize("gone", [[7], [0, 31], [5]])
def test_features_that_are_left_keep_their_numbers(gone: list[int]) -> None:
    made = gallery()
    edited = made.without_features(gone)
    for number in (7, 0, 31):
        assert (
            edited.find("feature", number) is None
            if number in gone
            else same(edited.find("feature", number), made.find("feature", number))
        )


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_new_prototype_has_none(place: int) -> None:
    made = gallery()
    larger = made.with_prototype_before(place)
    assert larger.find("prototype", place) is None
    for number in range(4):
        assert same(larger.find("prototype", number + (number >= place)), made.find("prototype", number))


@pytest.mark.parametrize(
    ("shares", "description"),
    [
        ([0.94, 0.03, 0.04, 0.0], "Seen in 94% of “cat” and 3% of all others"),
        ([0.81, 0.9, 0.1, 0.0], "Seen in 90% of “dog”, 81% of “cat” and 10% of all others"),
        ([0.79, 0.0, 0.0, 0.0], None),
        ([0.9, 0.11, 0.11, 0.0], None),
        ([1.0, 1.0, 1.0, 1.0], None),
        ([0.0, 0.0, 0.0, 0.0], None),
    ],
)
def test_a_description_is_plain_or_there_is_none(shares: list[float], description: str | None) -> None:
    counts = np.array([100, 100, 100, 0])
    faces = Faces(np.array([0]), np.array([[0]]), np.ones((1, 1), np.float32), np.array([shares], np.float32))
    pictures = np.zeros((1, 2, 2, 1), np.uint8)
    made = Gallery(pictures, np.array([0]), CLASSES, counts, faces, faces)
    feature, prototype = (made.find(kind, 0) for kind in KINDS)
    assert feature is not None
    assert prototype is not None
    assert feature.description == description
    if description is not None:
        assert prototype.description == description.replace("Seen in", "The nearest one for")
