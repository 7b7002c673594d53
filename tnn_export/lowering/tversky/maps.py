"""Where the features of a Tversky head lie: the map of the backbone through a 1x1 convolution with the feature bank."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads import TverskyHead
from tnn_train.heads.tversky.layer import SHORTEST

__all__ = ["lower_tversky_maps"]


def lower_tversky_maps(head: TverskyHead) -> nn.Module:
    """Return what makes feature maps of the maps of the backbone and of the embeddings."""
    return _FeatureMaps(head)


class _FeatureMaps(nn.Module):
    """Maps ``[N, D, h, w]`` and embeddings ``[N, D]`` to the values of the features at each place, ``[N, F, h, w]``."""

    bank: Tensor
    bias: Tensor

    def __init__(self, head: TverskyHead) -> None:
        super().__init__()
        self.normalize, self.opposites = head.config.normalize, head.config.opposites
        self.is_diagonal = head.feature_bank is None
        self.shortest = SHORTEST
        bank = torch.empty(0) if head.feature_bank is None else head.feature_bank.detach().cpu().float()
        self.register_buffer("bank", bank[:, :, None, None] if not self.is_diagonal else bank)
        thresholds = head.thresholds
        bias = torch.zeros(1) if thresholds is None else -thresholds.detach().cpu().float()
        self.register_buffer("bias", bias[:, None, None])

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        if self.normalize:
            length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True).clamp_min(self.shortest)
            maps = maps / length.unsqueeze(-1).unsqueeze(-1)
        if self.is_diagonal:
            maps = maps * embedding.sign().unsqueeze(-1).unsqueeze(-1)
        else:
            maps = functional.conv2d(maps, self.bank)
        maps = maps + self.bias
        return torch.cat([maps, -self.opposites * maps], dim=1) if self.opposites else maps
