"""A family of heads as a newcomer would add one, its part in `tnn_train`: the nearest class mean by cosine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_train.heads.base import Head
from tnn_train.heads.description import Card, Cards, Image, Sample, Section, Text
from tnn_train.heads.precision import full_precision

SHORTEST = 1e-6
"""Vectors shorter than this are divided by it, not by their norm."""


class NearestMeanHead(Head):
    """Logits are the cosines of the embedding to a learned mean of each class, times a learned scale."""

    family = "nearest-mean"
    evidence_meanings: ClassVar[Mapping[str, str]] = {"cosines": "to the mean of each class"}
    reject_score = "logit"

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.means = nn.Parameter(torch.randn(num_classes, in_features))
        self.scale = nn.Parameter(torch.tensor(10.0))

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: None) -> Self:
        return cls(in_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.cosines(x)

    def cosines(self, x: Tensor) -> Tensor:
        with full_precision(x):
            x, means = (functional.normalize(rows.float(), dim=1, eps=SHORTEST) for rows in (x, self.means))
            return x @ means.T

    def penalty(self) -> Tensor:
        return 1e-4 * self.scale.square()

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        embeddings, labels = (torch.cat(rows) for rows in zip(*batches, strict=True))
        for label, mean in enumerate(self.means):
            mean.copy_(embeddings[labels == label].mean(0))

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        return {"cosines": self.cosines(x)}

    def arrays(self) -> dict[str, Tensor]:
        return {"means": self.means, "scale": self.scale}

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        if sample is None:
            return ()
        cosines = self.cosines(torch.as_tensor(sample.embeddings))
        cards = [
            Card(
                f"Mean of {name}",
                f"Nearest to {int((cosines.argmax(1) == label).sum())} images.",
                [
                    Image(place, (sample.class_names[sample.labels[place]], f"{cosines[place, label].item():.2f}"))
                    for place in cosines[:, label].topk(3).indices.tolist()
                ],
            )
            for label, name in enumerate(sample.class_names)
        ]
        return [Section("Class means", [Text("Each class has a mean, and the images most like it."), Cards(cards)])]
