"""A loss that tells near mistakes from far ones, where the names of the classes are paths, such as ``animal/cat``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from tnn_runtime.answers.hierarchy import levels_of
from tnn_train.fields import Field, FieldError
from tnn_train.training.recipe import TrainConfig

__all__ = ["HierarchyLoss", "hierarchy_loss"]


class HierarchyLoss:
    """The cross-entropy of the parents of the classes, the mean over the levels above the classes.

    The probability of a parent is the sum of the softmax over the classes below it. Together with the cross-entropy of
    the classes this is the hierarchical cross-entropy of Bertinetto et al. 2020 (arXiv 1912.09393, equation 3), whose
    factors telescope: with L levels above the classes, the conditional probability of the class given its parent has
    the weight 1, and that of the parents at level l (1 at the top) the weight 1 + w (L - l + 1) / L.

    Args:
        class_names: The classes.
        weight: What it is multiplied by, w.
        device: Where logits are.
    """

    def __init__(self, class_names: Sequence[str], weight: float, device: torch.device) -> None:
        self.weight = weight
        levels = levels_of(tuple(class_names))
        self._owners = [torch.from_numpy(level.owners).to(device) for level in levels]
        self._members = [functional.one_hot(owners).float() for owners in self._owners]

    def __call__(self, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the weighted loss of a batch, a scalar in nats.

        Class weights, smoothing and blended images mean what they do in `Head.loss`: an image counts by the weight of
        its class, or of the classes that it is blended of by their shares; smoothing spreads its probability evenly
        over all parents of a level; the share of a parent in a blended image is the sum of those of its classes.

        Args:
            logits: float32 ``[n, C]``.
            targets: Classes, int64 ``[n]``, or shares of classes, float ``[n, C]``.
            weight: How much images of each class count, ``[C]``; ``None`` for all alike.
            label_smoothing: The probability to spread over all parents of a level.
        """
        is_blended = targets.ndim == 2
        shares = targets if is_blended else functional.one_hot(targets, logits.shape[1]).to(logits.dtype)
        shares = shares if weight is None else shares * weight
        # As in torch: the sum of the weights of plain images, and the number of blended ones.
        whole = len(logits) if is_blended else shares.sum()
        logarithms = torch.log_softmax(logits, 1)
        losses = []
        for owners, members in zip(self._owners, self._members, strict=True):
            parents = _sums(logarithms, owners, members)
            right = (shares * parents[:, owners]).sum(1)
            spread = shares.sum(1) * parents.mean(1)
            losses.append(-((1 - label_smoothing) * right + label_smoothing * spread).sum() / whole)
        return self.weight * torch.stack(losses).mean()


def _sums(logarithms: Tensor, owners: Tensor, members: Tensor) -> Tensor:
    """Return the logarithms ``[n, P]`` of the sums over the classes of each parent, of values with ``logarithms``.

    Args:
        logarithms: ``[n, C]``.
        owners: The parent of each class, ``[C]``.
        members: 1 for the classes of each parent, else 0, ``[C, P]``.
    """
    lowest = logarithms.new_full((len(logarithms), members.shape[1]), -torch.inf)
    most = lowest.scatter_reduce(1, owners.expand_as(logarithms), logarithms.detach(), "amax")
    return most + ((logarithms - most[:, owners]).exp() @ members).log()


def hierarchy_loss(class_names: Sequence[str], config: TrainConfig, device: torch.device) -> HierarchyLoss | None:
    """Return the loss that the recipe asks for; ``None`` if it asks for none.

    Raises:
        FieldError: If the classes have no parents.
    """
    if not config.hierarchy_loss:
        return None
    if not levels_of(tuple(class_names)):
        raise FieldError(
            *(Field(TrainConfig, "hierarchy_loss"), f" is {config.hierarchy_loss:g}, and no two classes have a "),
            "parent in common; expected names such as animal/cat and animal/dog: name the classes so, or leave it out",
        )
    return HierarchyLoss(class_names, config.hierarchy_loss, device)
