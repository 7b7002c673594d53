"""The network before the prototypes: linear layers, each followed by an activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.precision import precise

__all__ = ["ACTIVATIONS", "Network"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "leaky_relu": functional.leaky_relu,
    "selu": functional.selu,
}
"""What may follow a layer, by name; ``leaky_relu`` has a slope of 0.01 below 0."""


class Network(nn.Module):
    """A multi-layer perceptron.

    Args:
        sizes: Of its input, of each hidden layer, and of its output.
        activation: A key of `ACTIVATIONS`.
        activate_last: Whether it follows the last layer, too.
    """

    def __init__(self, sizes: Sequence[int], activation: str, *, activate_last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.activation = activation
        self.activate_last = activate_last

    def forward(self, x: Tensor) -> Tensor:
        """Return the output ``[N, L]`` for ``x [N, D]``, in the parameters' dtype, at least float32."""
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            weight = precise(layer.weight)
            x = functional.linear(x.to(weight.dtype), weight, precise(layer.bias))
            if self.activate_last or place < len(self.layers) - 1:
                x = ACTIVATIONS[self.activation](x)
        return x
