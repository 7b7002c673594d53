"""Families of heads as a newcomer would add them, their part in `tnn_export`."""

import torch
from torch import Tensor, nn

from toy.head import SHORTEST, NearestMeanHead
from toy.map_head import BestPlaceHead


def lower_nearest_mean(head: NearestMeanHead, *, parts: bool = False) -> nn.Module:
    """Return a module whose means are constant, of length 1."""
    return (_WithCosines if parts else _Logits)(head)


class _Logits(nn.Module):
    means: Tensor

    def __init__(self, head: NearestMeanHead) -> None:
        super().__init__()
        means = head.means.detach().cpu().double()
        self.register_buffer("means", (means / means.norm(dim=1, keepdim=True).clamp_min(SHORTEST)).float())
        self.scale = head.scale.item()

    def cosines(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-6)
        return nn.functional.linear(x / length, self.means)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.cosines(x)


class _WithCosines(nn.Module):
    def __init__(self, head: NearestMeanHead) -> None:
        super().__init__()
        self.logits = _Logits(head)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        cosines = self.logits.cosines(x)
        return {"logits": self.logits.scale * cosines, "cosines": cosines}


class LoweredBestPlace(nn.Module):
    """The head as a 1x1 convolution."""

    def __init__(self, head: BestPlaceHead) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(*reversed(head.weight.shape), 1, bias=False)
        self.convolution.weight = nn.Parameter(head.weight.detach().clone()[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).amax((2, 3))
