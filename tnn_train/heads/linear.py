"""The baseline: a linear layer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.text import a_head
from tnn_train.heads.base import Head, PrototypeView
from tnn_train.heads.new_class import Company, inserted
from tnn_train.heads.precision import full_precision, precise

__all__ = ["LinearHead"]


class LinearHead(nn.Linear, Head):
    """``nn.Linear`` from embeddings ``[N, D]`` to logits ``[N, C]``."""

    family = "linear"

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        """Build the head; it has no options."""
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``, in the parameters' dtype, at least float32."""
        with full_precision(x):
            weight = precise(self.weight)
            return functional.linear(x.to(weight.dtype), weight, precise(self.bias))

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the embeddings: their values are the features."""
        return x

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps

    def arrays(self) -> dict[str, Tensor]:
        """Return ``weight [C, D]`` and ``bias [C]``."""
        return {"weight": self.weight, "bias": self.bias}

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return that the features, the values of an embedding, have no names."""
        return (None,) * self.in_features

    @torch.no_grad()
    def without(self, features: Collection[int], prototypes: Collection[int]) -> LinearHead:
        """Return the head without some values of the embedding: their weights are 0."""
        if prototypes:
            raise UsageError(
                f"{a_head(self.family)} has no prototypes; leave out features, the values of its embedding"
            )
        head = copy.deepcopy(self)
        head.weight[:, list(features)] = 0
        if not bool(head.weight.any()):
            raise UsageError("all features that have a weight are left out; leave at least one")
        return head

    @torch.no_grad()
    def with_class(self, examples: Tensor, others: Tensor, place: int) -> LinearHead:
        """Return the head with a row for a new class.

        The row is the mean of all rows and, from it, a step from the mean of the other embeddings to that of the new
        ones. The step is as long as gives the new logit the spread of the others, and the bias fits best.
        """
        x = torch.cat([examples, others])
        company = Company(self(x), torch.arange(len(x)) < len(examples))
        step = examples.mean(0) - others.mean(0)
        row = self.weight.mean(0) + company.gain(x @ step) * step
        head = type(self)(self.in_features, self.out_features + 1).to(self.weight)
        head.weight.copy_(inserted(self.weight, row, place))
        head.bias.copy_(inserted(self.bias, torch.tensor(company.bias(x @ row)), place))
        return head.train(self.training)

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return the rows of the weight beside the embeddings: what comes nearest to prototypes in a linear head."""
        return PrototypeView(x, self.weight, self(x), torch.arange(self.out_features))
