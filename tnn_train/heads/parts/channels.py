"""Parts that are channels of a map, after PIP-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tnn_train.heads.parts.config import PartsConfig
from tnn_train.heads.parts.places import EachPlace, largest

__all__ = ["VIEWS", "ChannelDetector"]

VIEWS = 2
"""Views of an image that the alignment compares."""

_TINY = 1e-8


class ChannelDetector(nn.Module):
    """Which part each place of a map is, after Nauta et al. (2023, PIP-Net, CVPR).

    At each place the softmax over the channels says to which share the place is each part: its presence ``p``, 0 to 1.
    Outside of the training, a part counts from a presence of ``fires_above`` on, as ``(p - fires_above) / (1 -
    fires_above)``. The paper sets presences below 0.1 to 0; this form has no jump there.

    Args:
        in_features: D, the size of the map at each place.
        num_classes: C.
        config: The form.
    """

    def __init__(self, in_features: int, num_classes: int, config: PartsConfig) -> None:
        super().__init__()
        self.config = config
        self.num_parts = config.num_parts or in_features
        self.add_on = nn.Sequential(*([EachPlace(in_features, self.num_parts)] if config.num_parts else []))

    def presences(self, x: Tensor) -> Tensor:
        """Return to which share each place is each part, ``[N, P, h, w]``."""
        return torch.softmax(self.add_on(x), 1)

    def fired(self, presences: Tensor) -> Tensor:
        """Return what presences count outside of the training."""
        least = self.config.fires_above
        return ((presences - least) / (1 - least)).clamp_min(0)

    def maps(self, x: Tensor) -> Tensor:
        """Return how far each part is at each place, ``[N, P, h, w]``."""
        presences = self.presences(x)
        return presences if self.training else self.fired(presences)

    def forward(self, x: Tensor) -> Tensor:
        """Return how far each part is where it is most, ``[N, P]``."""
        return largest(self.maps(x))

    def first_weight(self, num_classes: int) -> Tensor:
        """Return the last layer at its start, ``[C, P]``: near 1."""
        return 1 + 0.1 * torch.randn(num_classes, self.num_parts)

    def terms(self, x: Tensor) -> Tensor:
        """Return the alignment and presence terms of a batch, weighted, a scalar.

        The alignment is ``-mean(log(sum over the parts of p p'))`` over all places of two views; the presence term, the
        paper's tanh loss, is ``-mean over the parts of log(tanh(sum over the images of the largest p))``.

        Args:
            x: Maps ``[n, D, h, w]``; where there is an alignment, those of the first views, then those of the second.
        """
        config, presences = self.config, self.presences(x)
        views = presences.chunk(VIEWS if config.alignment else 1)
        present = torch.stack([torch.tanh(largest(view).sum(0)).add(_TINY).log().mean() for view in views])
        loss = -config.presence * present.mean()
        if config.alignment:
            alike = (views[0] * views[1]).sum(1).add(_TINY).log().mean()
            loss = loss - config.alignment * alike
        return loss
