"""Prototypes at patches of training images: where they start, where they end, and what that may change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tnn_train.errors import TrainingError
from tnn_train.heads.parts.last_layer import LastLayer
from tnn_train.heads.parts.patches import PatchDetector, Projection

__all__ = ["NOWHERE", "changeable", "project", "start_patches", "strongest_places"]

NOWHERE = -1
"""The source of a part that is no patch of a training image."""

_CANDIDATES = 1000
_OF_AN_IMAGE = 4

Batches = Iterable[tuple[Tensor, Tensor]]


def start_patches(detector: PatchDetector, batches: Batches) -> Tensor:
    """Return patches to start prototypes at, ``[P, K]``: of each class some that differ, by k-means++.

    Args:
        detector: The detector, untrained.
        batches: Maps and classes.

    Raises:
        TrainingError: If a class has fewer patches than prototypes.
    """
    from sklearn.cluster import kmeans_plusplus

    generator = torch.Generator().manual_seed(0)
    needed = torch.bincount(detector.owners)
    found: dict[int, list[Tensor]] = {label: [] for label in range(len(needed))}
    for x, labels in batches:
        patches = detector.encode(x.float()).flatten(2).cpu()
        count = min(patches.shape[2], max(_OF_AN_IMAGE, int(needed.max())))
        for image, label in zip(patches, labels.tolist(), strict=True):
            if len(found[label]) < _CANDIDATES:
                found[label] += list(image.T[torch.randperm(patches.shape[2], generator=generator)[:count]])
    _refuse_too_few(needed.tolist(), {label: len(patches) for label, patches in found.items()})
    chosen = torch.empty_like(detector.prototypes)
    for label, candidates in found.items():
        points = torch.stack(candidates).numpy()
        _, places = kmeans_plusplus(points, int(needed[label]), random_state=0)
        chosen[detector.owners == label] = torch.from_numpy(points[places]).to(chosen)
    return chosen


@torch.no_grad()
def project(detector: PatchDetector, batches: Batches) -> Projection:
    """Move each prototype onto the nearest patch of the training images of its class, each onto another one.

    Where several prototypes of a class have the same nearest patch, the nearest of them gets it. In the paper all of
    them would, and be one prototype.

    Args:
        detector: The detector; its prototypes are changed.
        batches: Maps and classes, of all training images in their order.

    Raises:
        TrainingError: If a class has fewer patches than prototypes.
    """
    prototypes, owners = detector.prototypes, detector.owners
    needed = torch.bincount(owners)
    count, kept = len(prototypes), int(needed.max())
    distances = prototypes.new_full((count, 0), torch.inf).double()
    patches, sources = prototypes.new_empty((count, 0, prototypes.shape[1])), owners.new_empty((count, 0, 3))
    there: dict[int, int] = {}
    seen = 0
    for x, labels in batches:
        encoded = detector.encode(x.double())
        height, width = encoded.shape[2:]
        apart = detector.apart(encoded, prototypes)
        strangers = labels.to(owners.device)[:, None] != owners
        apart = apart.masked_fill(strangers[:, :, None, None], torch.inf).permute(1, 0, 2, 3).flatten(1)
        near, places = apart.topk(min(kept, apart.shape[1]), dim=1, largest=False)
        image, row, column = places // (height * width), places // width % height, places % width
        distances = torch.cat([distances, near], 1)
        patches = torch.cat([patches, encoded[image, :, row, column].to(patches)], 1)
        sources = torch.cat([sources, torch.stack([seen + image, row, column], 2)], 1)
        distances, best = distances.topk(min(kept, distances.shape[1]), dim=1, largest=False)
        patches, sources = (torch.take_along_dim(rows, best[:, :, None], 1) for rows in (patches, sources))
        seen += len(labels)
        for label in labels.tolist():
            there[label] = there.get(label, 0) + height * width
    _refuse_too_few(needed.tolist(), there)
    chosen = _one_each(distances, sources)
    rows = torch.arange(count, device=chosen.device)
    prototypes.copy_(patches[rows, chosen])
    return Projection(sources[rows, chosen], distances[rows, chosen].sqrt())


def _one_each(distances: Tensor, sources: Tensor) -> Tensor:
    """Return which of its candidates each prototype gets, int64 ``[P]``, so that no two get the same patch.

    Args:
        distances: Of each from its candidates, nearest first, ``[P, k]``.
        sources: What these are, ``[P, k, 3]``.
    """
    count = distances.shape[1]
    patches = [[tuple(one) for one in row] for row in sources.tolist()]
    chosen, taken = torch.full((len(distances),), NOWHERE, device=distances.device), set()
    for pair in distances.flatten().argsort(stable=True).tolist():
        prototype, candidate = divmod(pair, count)
        if chosen[prototype] == NOWHERE and patches[prototype][candidate] not in taken:
            chosen[prototype] = candidate
            taken.add(patches[prototype][candidate])
    return chosen


def changeable(detector: PatchDetector, layer: LastLayer, distances: Tensor, moved: Tensor) -> float:
    """Return the share of images to which a move of the prototypes may give another answer, at most.

    A prototype that moves by ``m`` is at most ``m`` nearer to any patch, and at most ``m`` farther, by the triangle
    inequality for the root of the mean squared difference. So is the nearest patch of an image, and its similarity lies
    between those of both ends. An answer is safe if its logit stays the largest wherever they lie.

    Args:
        detector: The detector.
        layer: The last layer.
        distances: Before the move, the mean squared difference of each prototype from the nearest patch, ``[N, P]``.
        moved: How far each prototype moved, ``[P]``.
    """
    lengths = distances.double().sqrt()
    low = detector.similarity((lengths + moved).square())
    high = detector.similarity((lengths - moved).clamp_min(0).square())
    answers, weight = layer(detector.similarity(distances.double())).argmax(1), layer.weight.double()
    safe = torch.ones(len(answers), dtype=torch.bool, device=answers.device)
    for label in range(len(weight)):
        rows = answers == label
        lead = weight[label] - weight
        least = low[rows] @ lead.clamp_min(0).T + high[rows] @ lead.clamp_max(0).T
        if layer.bias is not None:
            least += layer.bias[label] - layer.bias
        least[:, label] = torch.inf
        safe[rows] = (least > 0).all(1)
    return float((~safe).double().mean())


def strongest_places(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Return the training image, the row and the column where each part is most, int64 ``[P, 3]``.

    Args:
        batches: Maps of the parts, ``[n, P, h, w]``, and classes, of all training images in their order.
        count: P.
    """
    best, sources, seen = torch.full((count,), 0.0), torch.full((count, 3), NOWHERE), 0
    for maps, labels in batches:
        height, width = maps.shape[2:]
        values, places = maps.permute(1, 0, 2, 3).flatten(1).cpu().max(1)
        rows = torch.stack([seen + places // (height * width), places // width % height, places % width], 1)
        better = values > best
        best, sources[better] = torch.where(better, values.to(best), best), rows[better]
        seen += len(labels)
    return sources


def _refuse_too_few(needed: list[int], there: dict[int, int]) -> None:
    for label, count in enumerate(needed):
        if there.get(label, 0) < count:
            raise TrainingError(
                f"class {label} has {there.get(label, 0)} patches in its training images for {count} prototypes; "
                "choose fewer with --parts.per-class (per_class=), or give it more images"
            )
