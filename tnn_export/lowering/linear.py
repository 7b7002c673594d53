"""The linear head as the plain linear layer that it is."""

from __future__ import annotations

from torch import nn

from tnn_train.heads import LinearHead

__all__ = ["lower_linear"]


def lower_linear(head: LinearHead) -> nn.Linear:
    """Return the layer, float32 on the CPU."""
    plain = nn.Linear(head.in_features, head.out_features, device="meta")
    plain.weight = nn.Parameter(head.weight.detach().cpu().float().clone())
    plain.bias = nn.Parameter(head.bias.detach().cpu().float().clone())
    return plain
