"""What heads do at each place of a map, and over all places."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["EachPlace", "largest", "smallest"]


class EachPlace(nn.Linear):
    """A 1x1 convolution: a linear layer at each place of maps ``[N, D, h, w]``, in their dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``[N, K, h, w]``."""
        found = self.weight.to(x.dtype) @ x.flatten(2) + self.bias.to(x.dtype)[:, None]
        return found.reshape(*found.shape[:2], *x.shape[2:])


def largest(maps: Tensor) -> Tensor:
    """Return the largest value over all places of maps ``[N, P, h, w]``, ``[N, P]``."""
    return maps.flatten(2).amax(2)


def smallest(maps: Tensor) -> Tensor:
    """Return the smallest value over all places of maps ``[N, P, h, w]``, ``[N, P]``."""
    return maps.flatten(2).amin(2)
