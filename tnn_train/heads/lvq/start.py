"""Where a training of a head of learning vector quantisation starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tnn_train.errors import TrainingError
from tnn_train.heads.class_means import class_means
from tnn_train.heads.lvq.config import CLASS_MEANS, KMEANS, LvqConfig

__all__ = ["Start", "find_start"]

_MOST_VALUES = 1 << 25
_FEWEST_ROWS = 64
_MOST_ROWS = 2000
"""How many vectors of each class are kept, at most, beside the means of all."""

_RUNS = 3
_OPTION = "--lvq.prototypes (prototypes=)"
_SMALLEST_DISTANCE = 1e-6


class Start(NamedTuple):
    """What follows from the training data.

    Args:
        prototypes: ``[C * k, L]``, those of a class one after the other.
        axes: The principal axes of the vectors, ``[L, L]``, the one with the largest spread first.
        distance: The mean squared distance of the vectors to the nearest prototype of their class.
    """

    prototypes: Tensor
    axes: Tensor
    distance: float


def find_start(batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, config: LvqConfig) -> Start:
    """Return where prototypes start, in one pass.

    Only the means of the classes are those of all vectors; all else follows from up to 2,000 of each class, the first
    of their order, which the trainer shuffles.

    Args:
        batches: Vectors of the space of the prototypes, ``[n, L]``, and classes, int64 ``[n]``.
        num_classes: C.
        config: How prototypes start, and how many there are of each class.

    Raises:
        TrainingError: If a class has fewer vectors than prototypes, or fewer different ones.
    """
    kept = _Kept(num_classes, config.prototypes)
    count = num_classes * config.prototypes
    by_turn = class_means(kept.all_of(batches), num_classes, count, _OPTION)
    prototypes = by_turn.view(config.prototypes, num_classes, -1).transpose(0, 1)
    rows = [torch.cat(some) for some in kept.rows]
    generator = torch.Generator().manual_seed(torch.initial_seed() % (1 << 63))
    if config.start == KMEANS:
        found = [_centres(some, config.prototypes, label, generator) for label, some in enumerate(rows)]
        prototypes = torch.stack(found)
    elif config.start != CLASS_MEANS:
        spread = config.noise * torch.cat(rows).std(0)
        chosen = [some[torch.randperm(len(some), generator=generator)[: config.prototypes]] for some in rows]
        drawn = torch.stack(chosen)
        prototypes = drawn + spread * torch.randn(drawn.shape, generator=generator)
    nearest = [torch.cdist(some, own).amin(1).square() for some, own in zip(rows, prototypes, strict=True)]
    distance = float(torch.cat(nearest).mean())
    if not distance > _SMALLEST_DISTANCE:
        distance = max(float(torch.cat(rows).var(0).sum()), _SMALLEST_DISTANCE)
    return Start(prototypes.flatten(0, 1), _axes(torch.cat(rows)), distance)


class _Kept:
    """The first vectors of each class, kept while all pass by."""

    def __init__(self, num_classes: int, fewest: int) -> None:
        self.rows: list[list[Tensor]] = [[] for _ in range(num_classes)]
        self._fewest = max(fewest, _FEWEST_ROWS)
        self._counts = [0] * num_classes

    def all_of(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for vectors, labels in batches:
            x, y = vectors.detach().float().cpu(), labels.cpu()
            most = min(max(_MOST_VALUES // (len(self.rows) * x.shape[1]), self._fewest), max(_MOST_ROWS, self._fewest))
            for label in set(y.tolist()):
                some = x[y == label][: most - self._counts[label]]
                self._counts[label] += len(some)
                self.rows[label].append(some)
            yield x, y


def _centres(rows: Tensor, count: int, label: int, generator: torch.Generator) -> Tensor:
    """Return the centres of clusters of rows ``[n, L]``, ``[count, L]``."""
    from sklearn.cluster import KMeans

    if (different := len(np.unique(rows.numpy(), axis=0))) < count:
        raise TrainingError(
            f"class {label} has {different} different images for {count} prototypes to start at their clusters; choose "
            f"fewer with {_OPTION}"
        )
    seed = int(torch.randint(1 << 31, (), generator=generator))
    return torch.from_numpy(KMeans(count, n_init=_RUNS, random_state=seed).fit(rows.numpy()).cluster_centers_).float()


def _axes(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(0)
    axes: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors
    return axes.T.flip(0).float()
