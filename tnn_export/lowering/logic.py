"""A logic head as exact Boolean operators: few for each level of its circuit, however many gates it has."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tnn_runtime.circuits import KINDS, Circuit, Level, circuit_of
from tnn_train.heads import LogicHead

__all__ = ["lower_logic"]


def lower_logic(head: LogicHead) -> nn.Module:
    """Return a module with the discrete network of the head, simplified.

    Gates that pass an input on are wires, negations have moved to what uses a gate, and what no class counts is gone;
    see `tnn_runtime.circuits`.
    """
    arrays = {name: array.detach().cpu().numpy() for name, array in head.arrays().items()}
    return _LoweredLogic(circuit_of(arrays, head.num_classes), arrays["thresholds"], head.temperature)


class _LoweredLogic(nn.Module):
    """Embeddings ``[N, D]`` to logits ``[N, C]``.

    Bits and gates are a row each, ``[bits and gates, N]``: whole rows are gathered. Votes are a product with a matrix
    of whole numbers, which float32 sums exactly, in whatever order.

    Args:
        circuit: The network.
        thresholds: Of its bits, ``[D, B]``.
        temperature: What votes are divided by.
    """

    values: Tensor
    thresholds: Tensor
    voting: Tensor
    weight: Tensor
    constants: Tensor

    def __init__(self, circuit: Circuit, thresholds: NDArray[np.float32], temperature: float) -> None:
        super().__init__()
        value, bit = np.divmod(circuit.bits, thresholds.shape[1])
        self.register_buffer("values", torch.from_numpy(value.astype(np.int64)))
        self.register_buffer("thresholds", torch.from_numpy(thresholds[value, bit])[:, None])
        self.levels = nn.ModuleList([_LoweredLevel(level) for level in circuit.levels])
        weight = np.zeros((len(circuit.votes), circuit.size), np.float32)
        for row, places, signs in zip(weight, circuit.votes, circuit.signs, strict=True):
            np.add.at(row, places, signs)
        constants = [
            constant + (signs < 0).sum() for constant, signs in zip(circuit.constants, circuit.signs, strict=True)
        ]
        voting = np.flatnonzero(weight.any(0))
        self.register_buffer("voting", torch.from_numpy(voting))
        self.register_buffer("weight", torch.from_numpy(np.ascontiguousarray(weight[:, voting])))
        self.register_buffer("constants", torch.tensor(np.array(constants), dtype=torch.float32))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        h = x.t().index_select(0, self.values) > self.thresholds
        for level in self.levels:
            h = level(h)
        votes = h.index_select(0, self.voting).to(torch.float32).t()
        return (votes @ self.weight.t() + self.constants) / self.temperature


class _LoweredLevel(nn.Module):
    """Values ``[K, N]`` to these and those of the gates of a level."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        parts = zip(KINDS, level.parts(), strict=True)
        self.kinds = nn.ModuleList(
            [_GATES[kind](level.left[part], level.right[part]) for kind, part in parts if part.start < part.stop]
        )

    def forward(self, h: Tensor) -> Tensor:
        found = [h]
        for gates in self.kinds:
            found.append(gates(h))
        return torch.cat(found)


class _Gates(nn.Module):
    """Values ``[K, N]`` to those of gates of one kind, ``[G, N]``."""

    left: Tensor
    right: Tensor

    def __init__(self, left: NDArray[np.int32], right: NDArray[np.int32]) -> None:
        super().__init__()
        self.register_buffer("left", torch.from_numpy(left.astype(np.int64)))
        self.register_buffer("right", torch.from_numpy(right.astype(np.int64)))


class _And(_Gates):
    def forward(self, h: Tensor) -> Tensor:
        return h.index_select(0, self.left) & h.index_select(0, self.right)


class _AndNot(_Gates):
    def forward(self, h: Tensor) -> Tensor:
        return h.index_select(0, self.left) & ~h.index_select(0, self.right)


class _Or(_Gates):
    def forward(self, h: Tensor) -> Tensor:
        return h.index_select(0, self.left) | h.index_select(0, self.right)


class _Xor(_Gates):
    def forward(self, h: Tensor) -> Tensor:
        return h.index_select(0, self.left) ^ h.index_select(0, self.right)


_GATES: dict[str, type[_Gates]] = {"and": _And, "andnot": _AndNot, "or": _Or, "xor": _Xor}
