"""Similarity matching as a head family."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.text import a_head
from tnn_train.fields import Field, FieldError
from tnn_train.heads.base import Head, PrototypeView
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.linear import LinearHead
from tnn_train.heads.matching.circuit import Circuit, keep_positive
from tnn_train.heads.matching.config import NONE, MatchingConfig
from tnn_train.heads.matching.objective import encoder_loss, lateral_loss, shares_of_classes, weights_of_images
from tnn_train.heads.matching.scaling import Scaling
from tnn_train.heads.new_class import inserted
from tnn_train.heads.precision import full_precision

__all__ = ["MatchingHead"]

_TYPICAL = 50
"""The iterations that trained circuits need, so that an untrained one is as fast."""


class MatchingHead(Head):
    """A circuit whose units are alike where embeddings are, and a linear classifier on the units.

    The embedding ``x`` is centred and scaled, an encoder W drives the units, lateral weights M let them inhibit each
    other, and the activities ``y`` are where that settles: see `tnn_train.heads.matching.circuit`. W and M follow the
    objective of similarity matching (Pehlevan, Hu & Chklovskii 2015, arXiv 1503.00669; Pehlevan, Sengupta & Chklovskii
    2018, arXiv 1703.07914), ``min |X'X - Y'Y|^2``, beside the cross-entropy of the classifier.

    Args:
        in_features: D, the size of an embedding.
        num_classes: C, the number of logits.
        config: The form of the head.
    """

    family = "matching"
    evidence_meanings: ClassVar[Mapping[str, str]] = {"units": "activity of each unit of the circuit"}
    settled: Tensor

    def __init__(self, in_features: int, num_classes: int, config: MatchingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MatchingConfig()
        self.in_features, self.num_classes = in_features, num_classes
        self.scaling = Scaling(in_features, config.units)
        # Embeddings have the mean squared norm K: each unit starts with a drive of variance 1.
        self.encoder = nn.Parameter(torch.randn(config.units, in_features) / config.units**0.5)
        self.lateral = nn.Parameter(torch.eye(config.units))
        self.label_encoder = nn.Parameter(torch.zeros(config.units, num_classes)) if config.supervision else None
        self.classifier = LinearHead(config.units, num_classes)
        self.register_buffer("settled", torch.tensor(min(_TYPICAL, config.iterations)))

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: MatchingConfig | None = None) -> Self:
        """Build the head in the form ``options``."""
        return cls(in_features, num_classes, options)

    @property
    def options(self) -> MatchingConfig:
        """The form of the head."""
        return self.config

    @classmethod
    def resolve(
        cls,
        options: MatchingConfig,
        class_names: Sequence[str],
        in_features: int,
        *,
        is_frozen: bool,
        is_pixels: bool = False,
    ) -> MatchingConfig:
        """Return the form as it is, unless a linear circuit has more units than the embedding has values."""
        if not options.is_rectified and options.units > in_features:
            raise FieldError(
                *(
                    Field(MatchingConfig, "units"),
                    f" is {options.units}, and the embedding has {in_features} values; a ",
                ),
                *(
                    "linear circuit has at most as many units: lower ",
                    Field(MatchingConfig, "units"),
                    ", or choose the ",
                ),
                *(Field(MatchingConfig, "activation"), " non-negative"),
            )
        return options

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``."""
        if self.training:
            self.scaling.watch(x)
            keep_positive(self.lateral, self.config.leak / 2)
        units = self.activities(x)
        logits: Tensor = self.classifier(units if self.config.end_to_end else units.detach())
        return logits

    def activities(self, x: Tensor) -> Tensor:
        """Return the activities of the units, ``[N, K]``, of embeddings ``x [N, D]``.

        In training they are settled to the tolerance. In evaluation a non-negative circuit makes the same number of
        iterations for all images, and a linear one is where it would settle, ``M^-1 W x``.
        """
        with full_precision(x):
            inputs: Tensor = self.scaling(x)
            circuit = self.circuit
            if self.training:
                values, iterations, _ = circuit(functional.linear(inputs, self.encoder))
                # Batches differ, and circuits change: the number for validation falls by one where fewer are enough.
                self.settled.copy_((self.settled - 1).clamp_min(iterations))
                return values
            if circuit.is_rectified:
                return circuit.run(functional.linear(inputs, self.encoder), int(self.settled))
            settled: Tensor = functional.linear(inputs, self.projection.to(inputs.dtype))
            return settled

    @property
    def circuit(self) -> Circuit:
        """The circuit as it is now."""
        config = self.config
        lateral = (self.lateral + self.lateral.T) / 2
        lateral = lateral + config.leak * torch.eye(len(lateral), dtype=lateral.dtype, device=lateral.device)
        return Circuit(lateral, config.is_rectified, config.step, config.iterations, config.tolerance)

    @property
    def projection(self) -> Tensor:
        """``M^-1 W``, where a linear circuit settles, ``[K, D]`` in float64."""
        settled: Tensor = torch.linalg.solve(self.circuit.lateral.double(), self.encoder.double())
        return settled

    # Training

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Centre and scale the embeddings."""
        self.scaling.start(batches)

    def loss(self, x: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the cross-entropy, with the gradients of the matching objective added to its own.

        The objective is a saddle point, whose value says nothing of how far the training is: it is not in the sum.
        """
        loss = super().loss(x, logits, targets, weight, label_smoothing)
        with full_precision(x):
            matching = self.config.objective * self._matching(x.detach(), targets, weight, label_smoothing)
        return loss + matching - matching.detach()

    def _matching(self, x: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        config, inputs = self.config, self.scaling(x)
        weights = weights_of_images(targets, weight)
        encoders = [(self.encoder, inputs)]
        if self.label_encoder is not None:
            shares = shares_of_classes(targets, self.num_classes, label_smoothing) - 1 / self.num_classes
            encoders.append((self.label_encoder, shares * (config.supervision * config.units) ** 0.5))
        with torch.no_grad():
            drive = torch.stack([functional.linear(inputs, encoder) for encoder, inputs in encoders]).sum(0)
            units = self.circuit.settle(drive).values
        losses = [encoder_loss(encoder, inputs, units, weights, config.regularization) for encoder, inputs in encoders]
        return torch.stack([*losses, lateral_loss(self.lateral, units, weights)]).sum()

    def rates(self) -> Mapping[str, float]:
        """Return that the lateral weights learn faster than the encoder, by 1 / tau."""
        return {"lateral": 1 / self.config.tau}

    def undecayed(self) -> Collection[str]:
        """Return what the matching objective keeps small itself."""
        encoders = ("encoder", *(["label_encoder"] if self.label_encoder is not None else []))
        return ("lateral", *(() if self.config.regularization == NONE else encoders))

    def finish(self, batches: Iterable[tuple[Tensor, Tensor]]) -> bool:
        """Measure how many iterations a non-negative circuit needs for the training images, and make as many.

        Raises:
            TrainingError: If it does not settle.
        """
        if not self.config.is_rectified:
            return False
        circuit = self.circuit
        drives = (functional.linear(self.scaling(x), self.encoder) for x, _ in batches)
        self.settled.fill_(max(1, *(circuit.settle(drive).iterations for drive in drives)))
        return True

    # Export and its proof

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the activities of the units."""
        return {"units": self.activities(x)}

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the activities of the units, which are the features."""
        return self.activities(x)

    @property
    def has_feature_maps(self) -> bool:
        """Whether the circuit is linear: the units of others are not linear in the mean over all places."""
        return not self.config.is_rectified

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the maps through a linear circuit."""
        images, channels, *size = maps.shape
        places = self.activities(maps.flatten(2).mT.reshape(-1, channels))
        return places.reshape(images, -1, self.config.units).mT.reshape(images, -1, *size)

    def arrays(self) -> dict[str, Tensor]:
        """Return the classifier on the units, and what their activities follow from: ``M y = drive (x - center)``."""
        circuit = self.circuit
        return {
            "weight": self.classifier.weight,
            "bias": self.classifier.bias,
            "drive": self.encoder * self.scaling.factor,
            "center": self.scaling.center,
            "lateral": circuit.lateral,
            "step": torch.tensor(circuit.pace),
            "iterations": self.settled,
        }

    # Edits

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return that the features, the units, have no names."""
        return (None,) * self.config.units

    def without(self, features: Collection[int], prototypes: Collection[int]) -> Self:
        """Return the head whose classifier does not see some units; they still inhibit the others."""
        if prototypes:
            raise UsageError(f"{a_head(self.family)} has no prototypes; leave out features, the units of its circuit")
        head = copy.deepcopy(self)
        head.classifier = self.classifier.without(features, ())
        return head

    @torch.no_grad()
    def with_class(self, examples: Tensor, others: Tensor, place: int) -> Self:
        """Return the head whose classifier has a row for a new class, as that of a linear head on the units."""
        head = copy.deepcopy(self)
        head.num_classes += 1
        head.classifier = self.classifier.with_class(self.activities(examples), self.activities(others), place)
        if self.label_encoder is not None:
            columns = inserted(self.label_encoder.T, torch.zeros(self.config.units), place)
            head.label_encoder = nn.Parameter(columns.T.contiguous())
        return head

    # The report and the audit

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return the rows of the classifier beside the activities."""
        return self.classifier.prototype_view(self.activities(x))

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return the section on the circuit and its units."""
        from tnn_train.heads.matching.section import circuit_section

        units = None if sample is None else self.activities(sample.embeddings)
        return [circuit_section(self.circuit, int(self.settled), self.classifier.weight, sample, units)]
