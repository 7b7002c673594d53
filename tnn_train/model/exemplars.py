"""Exemplars of a trained model: the training images that have its features most, and where in them these are."""

from __future__ import annotations

import logging
import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from tnn_runtime.explain.exemplars import NOWHERE, Faces, Gallery
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.images.reading import even_sample
from tnn_train.errors import NoMapsError
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = ["LOOKED_AT", "find_exemplars"]

_logger = logging.getLogger(__name__)

Floats: TypeAlias = NDArray[np.float32]
Places: TypeAlias = NDArray[np.int64]
Size: TypeAlias = tuple[int, int]

LOOKED_AT = 5000
"""How many training images are looked at, at most."""

_MOST_BYTES = 8 << 20
_SIDES = (64, 48, 32)
_BATCH = 64
_BINS = 64
_STRONGEST, _NOTABLE = 0.1, 0.2
"""A feature lies where its map is among this share of the largest values, and above this share of the largest one."""


@dataclass(frozen=True)
class _Candidates:
    """Images from which the exemplars of features, or of prototypes, are taken.

    Args:
        scores: How much each image that was looked at has of each, ``[N, K]``.
        shares: Of the images of each class that have it, ``[K, C]``.
        numbers: All of them, those that are to have exemplars most of all first, ``[K]``.
        rows: For each of ``numbers`` the images with the largest scores, ``[K, n]``, or `NOWHERE`.
        maps: Where each lies, ``[b, h, w]``, from maps ``[b, D, h, w]``, embeddings ``[b, D]`` and numbers ``[b]``.
    """

    scores: Floats
    shares: Floats
    numbers: Places
    rows: Places
    maps: Callable[[Tensor, Tensor, Tensor], Tensor]


def find_exemplars(
    model: ImageModel,
    preprocessing: Preprocessing,
    read: Callable[[Places], NDArray[np.uint8]],
    labels: Places,
    class_names: Sequence[str],
    count: int = 4,
    most_bytes: int = _MOST_BYTES,
    *,
    are_those_of_training: bool = False,
) -> Gallery | None:
    """Find the training images that have each feature most, and those most like each prototype.

    Up to 5,000 images are looked at, spread evenly, and those that features are taken from (`Head.training_sources`),
    which come first for these. An image counts as one that has a feature if its value is above `Head.feature_floor`,
    and above the threshold that splits the values of all images best (Otsu 1979, "A threshold selection method from
    gray-level histograms"); as one of a prototype, if that is the nearest one. In a picture, a feature lies around the
    largest value of its map, as far as the values are among the largest tenth. The map of a prototype is the gradient
    of the similarity with respect to the embedding, times the map of that (Selvaraju et al. 2017, arXiv 1610.02391); in
    a head that takes maps, it is the similarity at each place.

    Pictures have at most 64 pixels a side. They are made smaller, and fewer for each feature, until they fit into
    ``most_bytes``; if that is not enough, features that differ little between classes get none.

    Args:
        model: The model, in evaluation mode, on any device.
        preprocessing: Of the model.
        read: Returns the training images at some places, int64 ``[n]``, as uint8 ``[n, H, W, C]``.
        labels: The classes of all training images, int64 ``[N]``.
        class_names: What they stand for.
        count: Pictures of each feature and prototype, at least 1.
        most_bytes: What all pictures may take, uncompressed; the shares of classes come on top.
        are_those_of_training: Whether these are the images that the model was trained on, in their order.

    Returns:
        The exemplars; ``None`` if the head has no features, no image has any, or values are no finite numbers.
    """
    sources = model.head.training_sources() if are_those_of_training else None
    named = np.full(0, NOWHERE) if sources is None else sources[:, 0].cpu().numpy()
    places = np.union1d(even_sample(len(labels), LOOKED_AT), named[named != NOWHERE])
    classes = labels[places]
    first = np.where(named == NOWHERE, NOWHERE, np.searchsorted(places, named))
    kinds = _candidates(
        model, Normalize(preprocessing), lambda some: read(places[some]), classes, class_names, count, first
    )
    if not kinds:
        return None
    size, per_row, num_rows = _fitting([kind.rows for kind in kinds.values()], preprocessing.shape, most_bytes)
    if num_rows < (total := sum(len(kind.rows) for kind in kinds.values())):
        _logger.warning(
            "%d of %d features and prototypes have no exemplars, as their pictures would take more than %g MiB",
            *(total - num_rows, total, most_bytes / (1 << 20)),
        )
    chosen: dict[str, tuple[Places, Places]] = {}
    for name, kind in kinds.items():
        chosen[name] = kind.numbers[:num_rows], kind.rows[:num_rows, :per_row]
        num_rows -= len(chosen[name][0])
    kept = np.setdiff1d(np.concatenate([rows.ravel() for _, rows in chosen.values()]), [NOWHERE])
    if not len(kept):
        return None
    images = read(places[kept])
    locate = _locator(model, Normalize(preprocessing), images, size)
    faces = {
        name: Faces(
            numbers,
            pictures := np.where(rows == NOWHERE, NOWHERE, np.searchsorted(kept, rows)),
            np.where(rows == NOWHERE, 0, np.take_along_axis(kinds[name].scores.T[numbers], rows, 1)),
            kinds[name].shares[numbers],
            None if locate is None else locate(numbers, pictures, kinds[name].maps),
        )
        for name, (numbers, rows) in chosen.items()
    }
    return Gallery(
        np.stack([_small(image, size) for image in images]),
        classes[kept],
        tuple(class_names),
        np.bincount(classes, minlength=len(class_names)),
        faces["feature"],
        faces.get("prototype"),
    )


def _candidates(
    model: ImageModel,
    normalize: Normalize,
    read: Callable[[Places], NDArray[np.uint8]],
    classes: Places,
    class_names: Sequence[str],
    count: int,
    first: Places,
) -> dict[str, _Candidates]:
    """Return the candidates by the kinds that the head has; prototypes come first, as they are fewer.

    Args:
        model: The model.
        normalize: Its normalisation.
        read: Returns some of the images.
        classes: Of the images, ``[N]``.
        class_names: What they stand for.
        count: Rows of each feature and prototype.
        first: The image that comes first for each feature, ``[F]`` or `NOWHERE`; empty for none.
    """
    head = model.head
    starts = range(0, len(classes), _BATCH)
    found = []
    with torch.inference_mode():
        for start in tqdm(starts, desc="exemplars", unit="batch", disable=None, leave=False, delay=2):
            images = read(np.arange(start, min(start + _BATCH, len(classes))))
            x = model.backbone(_inputs(model, normalize, images))
            found.append((head.feature_values(x), head.similarities(x)))
    features, similarities = (_joined(column) for column in zip(*found, strict=True))
    if features is None:
        return {}
    if not all(np.isfinite(scores).all() for scores in (features, similarities) if scores is not None):
        _logger.warning("there are no exemplars: for some training images the model gives no finite numbers")
        return {}

    def sensitivity(scores: Callable[[Tensor], Tensor | None], maps: Tensor, x: Tensor, which: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        found = scores(x)
        assert found is not None
        (slopes,) = torch.autograd.grad(found.gather(1, which[:, None]).sum(), x)
        return (slopes[:, :, None, None] * maps).sum(1)

    def lie(maps: Tensor, x: Tensor, which: Tensor) -> Tensor:
        if not head.has_feature_maps:
            return sensitivity(head.feature_values, maps, x, which)
        return head.feature_maps(maps, x)[range(len(x)), which]

    kinds = {}

    if similarities is not None:
        nearest = similarities.argmax(1)[:, None] == np.arange(similarities.shape[1])
        shares = _shares(nearest, classes, len(class_names))
        numbers = np.arange(similarities.shape[1])
        # Of a head that takes maps, prototypes are features.
        is_feature = head.takes == "map"
        rows = _most(similarities, count)
        kinds["prototype"] = _Candidates(
            similarities,
            shares,
            numbers,
            _with_first(rows, first) if is_feature else rows,
            lie if is_feature else partial(sensitivity, head.similarities),
        )
    shares = _shares(_has(features, head.feature_floor), classes, len(class_names))
    numbers = np.argsort(-np.ptp(shares, axis=1), kind="stable")
    rows = _with_first(_most(features, count, above=head.feature_floor), first)[numbers]
    kinds["feature"] = _Candidates(features, shares, numbers, rows, lie)
    return kinds


def _inputs(model: ImageModel, normalize: Normalize, images: NDArray[np.uint8]) -> Tensor:
    """Return what the backbone takes of images, on its device."""
    device = next(model.parameters()).device
    normalized: Tensor = normalize.to(device)(torch.from_numpy(images).to(device))
    return normalized


def _joined(batches: Sequence[Tensor | None]) -> Floats | None:
    there = [batch.float().cpu() for batch in batches if batch is not None]
    return torch.cat(there).numpy() if there else None


def _has(values: Floats, floor: float) -> NDArray[np.bool_]:
    """Return which images have which features, ``[N, K]``: those above `Head.feature_floor`, and Otsu's threshold."""
    return np.stack([column > max(floor, _threshold(column)) for column in values.T], axis=1)


def _threshold(values: Floats) -> float:
    """Return the threshold with the largest variance between the values above it and those below it."""
    if values.min() == values.max():
        return float(values[0])
    counts, edges = np.histogram(values.astype(np.float64), _BINS)  # values that nearly agree have no bins in float32
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], len(values)
    sums = np.cumsum(counts * middles)
    means = sums[-1] / total
    between = (means * below - sums[:-1]) ** 2 / np.maximum(below * (total - below), 1)
    return float(edges[1 + between.argmax()])


def _shares(has: NDArray[np.bool_], classes: Places, num_classes: int) -> Floats:
    """Return the share of the images of each class that have each feature, ``[K, C]``; 0 for classes without any."""
    counts = np.bincount(classes, minlength=num_classes)
    found = (np.bincount(classes[column], minlength=num_classes) / np.maximum(counts, 1) for column in has.T)
    return np.stack([shares.astype(np.float32) for shares in found])


def _most(scores: Floats, count: int, above: float = -np.inf) -> Places:
    """Return for each column the rows with the largest scores above a bound, ``[K, count]``, or `NOWHERE`."""
    values, places = torch.from_numpy(scores).T.topk(min(count, len(scores)))
    found = torch.where(values > above, places, NOWHERE).numpy()
    return np.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=NOWHERE)


def _with_first(rows: Places, first: Places) -> Places:
    """Return rows ``[K, n]`` that begin with some ``[K]``, unless these are `NOWHERE`; the others follow."""
    if not len(first):
        return rows
    found = rows.copy()
    for row, one in zip(found, first.tolist(), strict=True):
        if one != NOWHERE:
            row[:] = [one, *row[row != one]][: len(row)]
    return found


def _fitting(groups: Sequence[Places], shape: tuple[int, int, int], most_bytes: int) -> tuple[Size, int, int]:
    """Return the size of pictures, how many there are of each row, and of how many rows, so that they all fit."""
    rows = np.concatenate(groups)
    num_rows, most = rows.shape

    def takes(num_rows: int, per_row: int, size: Size) -> int:
        different = np.setdiff1d(rows[:num_rows, :per_row], [NOWHERE])
        return len(different) * size[0] * size[1] * shape[2]

    for side, per_row in [*((side, most) for side in _SIDES), *((_SIDES[-1], n) for n in range(most - 1, 0, -1))]:
        size = _scaled(shape, side)
        if takes(num_rows, per_row, size) <= most_bytes:
            return size, per_row, num_rows
    return size, 1, bisect(range(1, num_rows + 1), most_bytes, key=lambda count: takes(count, 1, size))


def _scaled(shape: tuple[int, int, int], side: int) -> Size:
    scale = min(1.0, side / max(shape[:2]))
    return max(1, round(scale * shape[0])), max(1, round(scale * shape[1]))


def _small(image: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    height, width = size
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS)).reshape(height, width, -1)


def _locator(
    model: ImageModel, normalize: Normalize, images: NDArray[np.uint8], size: Size
) -> Callable[[Places, Places, Callable[[Tensor, Tensor, Tensor], Tensor]], Places] | None:
    """Return what finds features in pictures, or ``None`` if the backbone has no map with places to tell apart.

    It takes numbers ``[K]``, places among the images ``[K, n]``, and `_Candidates.maps`, and returns boxes in pixels of
    pictures of that size, ``[K, n, 4]``.
    """
    try:
        trunk = model.trunk()
    except NoMapsError:
        return None
    with torch.inference_mode():
        if trunk(_inputs(model, normalize, images[:1])).shape[2:].numel() == 1:
            return None

    def locate(numbers: Places, pictures: Places, find: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Places:
        boxes = np.zeros((pictures.size, 4), np.int64)
        there = np.flatnonzero(pictures != NOWHERE)
        which = np.repeat(numbers, pictures.shape[1])
        for start in range(0, len(there), _BATCH):
            some = there[start : start + _BATCH]
            with torch.no_grad():
                maps = trunk(_inputs(model, normalize, images[pictures.ravel()[some]])).float()
            found = find(maps, model.taken(maps), torch.from_numpy(which[some]).to(maps.device))
            boxes[some] = [_box(one, size) for one in found.detach().cpu().numpy()]
        return boxes.reshape(*pictures.shape, 4)

    return locate


def _box(places: Floats, size: Size) -> tuple[int, int, int, int]:
    """Return the box around the largest value of a map ``[h, w]``, in pixels of a picture of that size."""
    least = np.sort(places, axis=None)[-math.ceil(_STRONGEST * places.size)]
    regions, _ = ndimage.label(places >= max(least, min(_NOTABLE * places.max(), places.max())))
    rows, columns = np.nonzero(regions == regions[np.unravel_index(places.argmax(), places.shape)])
    (height, width), (h, w) = size, places.shape
    return (
        int(rows.min() * height // h),
        int(columns.min() * width // w),
        int(-(-(rows.max() + 1) * height // h)),
        int(-(-(columns.max() + 1) * width // w)),
    )
