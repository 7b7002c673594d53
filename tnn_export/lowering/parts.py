"""Parts heads as convolutions, a reduction over all places and a linear layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tnn_train.heads.parts.config import PIPNET, PROTOPNET
from tnn_train.heads.parts.head import PartsHead
from tnn_train.heads.parts.places import EachPlace

__all__ = ["lower_parts", "lower_parts_maps"]


def lower_parts(head: PartsHead, *, parts: bool = False) -> nn.Module:
    """Return a module from maps ``[N, D, h, w]`` to logits, or with ``parts`` to a dictionary with similarities."""
    return (_WithSimilarities if parts else _Logits)(head)


def lower_parts_maps(head: PartsHead) -> nn.Module:
    """Return what makes maps of the parts, ``[N, P, h, w]``, of the maps of the backbone."""
    return _Maps(head)


class _Distances(nn.Module):
    """ProtoPNet: ``-d`` at each place, so that the largest score is at the most similar one.

    ``d = mean(z²) - 2 mean(z w) + mean(w²)`` with everything less the mean prototype: what does not depend on z is in a
    convolution with the prototypes.
    """

    centre: Tensor

    def __init__(self, head: PartsHead) -> None:
        super().__init__()
        self.encode = nn.Sequential(*(_convolution(part) for part in head.detector.add_on))
        prototypes = head.arrays()["prototypes"].detach().cpu().double()
        centre = prototypes.mean(0)
        apart = prototypes - centre
        self.register_buffer("centre", centre.float()[:, None, None])
        self.compare = nn.Conv2d(apart.shape[1], apart.shape[0], 1, device="meta")
        self.compare.weight = nn.Parameter((-2 / apart.shape[1] * apart).float()[:, :, None, None])
        self.compare.bias = nn.Parameter(apart.square().mean(1).float())
        self.is_log = head.config.similarity == "log"
        self.epsilon = head.config.epsilon

    def forward(self, maps: Tensor) -> Tensor:
        z = self.encode(maps) - self.centre
        return -torch.relu((z * z).mean(1, keepdim=True) + self.compare(z))

    def similarity(self, scores: Tensor) -> Tensor:
        if self.is_log:
            return torch.log(1 + (1 - self.epsilon) / (self.epsilon - scores))
        return scores


class _Presences(nn.Module):
    """PIP-Net: the share of each part at each place."""

    def __init__(self, head: PartsHead) -> None:
        super().__init__()
        self.encode = nn.Sequential(*(_convolution(part) for part in head.detector.add_on))
        self.least = head.config.fires_above

    def forward(self, maps: Tensor) -> Tensor:
        return torch.softmax(self.encode(maps), 1)

    def similarity(self, scores: Tensor) -> Tensor:
        return torch.relu((scores - self.least) / (1 - self.least))


_SCORES: dict[str, Callable[[PartsHead], Any]] = {PROTOPNET: _Distances, PIPNET: _Presences}
"""For each kind what gives scores ``[N, P, h, w]``, larger ones at more similar places, and has their similarity."""


class _Logits(nn.Module):
    def __init__(self, head: PartsHead) -> None:
        super().__init__()
        arrays = {name: tensor.detach().cpu().float() for name, tensor in head.arrays().items()}
        self.scores = _SCORES[head.config.kind](head)
        self.last = nn.Linear(head.num_prototypes, head.num_classes, device="meta")
        self.last.weight = nn.Parameter(arrays["weight"].clone())
        self.last.bias = nn.Parameter(arrays["bias"].clone())

    def similarities(self, maps: Tensor) -> Tensor:
        similarities: Tensor = self.scores.similarity(self.scores(maps).amax((2, 3)))
        return similarities

    def forward(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.last(self.similarities(maps))
        return logits


class _WithSimilarities(nn.Module):
    def __init__(self, head: PartsHead) -> None:
        super().__init__()
        self.logits = _Logits(head)

    def forward(self, maps: Tensor) -> dict[str, Tensor]:
        similarities = self.logits.similarities(maps)
        return {"logits": self.logits.last(similarities), "similarities": similarities}


class _Maps(nn.Module):
    def __init__(self, head: PartsHead) -> None:
        super().__init__()
        self.scores = _SCORES[head.config.kind](head)

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        similarities: Tensor = self.scores.similarity(self.scores(maps))
        return similarities


def _convolution(part: nn.Module) -> nn.Module:
    """Return a layer at each place as a 1x1 convolution, and other layers as they are."""
    if not isinstance(part, EachPlace):
        return part
    plain = nn.Conv2d(part.in_features, part.out_features, 1, device="meta")
    plain.weight = nn.Parameter(part.weight.detach().cpu().float().clone()[:, :, None, None])
    plain.bias = nn.Parameter(part.bias.detach().cpu().float().clone())
    return plain
