"""The linear head as the plain linear layer that it is."""

from torch import Tensor, nn

from tnn_train.heads import LinearHead

__all__ = ["lower_linear", "lower_linear_maps"]


def lower_linear(head: LinearHead) -> nn.Linear:
    """Return the layer, float32 on the CPU."""
    plain = nn.Linear(head.in_features, head.out_features, device="meta")
    plain.weight = nn.Parameter(head.weight.detach().cpu().float().clone())
    plain.bias = nn.Parameter(head.bias.detach().cpu().float().clone())
    return plain


def lower_linear_maps(head: LinearHead) -> nn.Module:
    """Return what makes feature maps: the maps of the backbone are those."""
    return _Channels()


class _Channels(nn.Module):
    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        return maps
