"""The Tversky projection as a head family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from tnn_train.heads.base import Head
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.precision import full_precision
from tnn_train.heads.tversky.config import CLASS_MEANS, LINEAR, SCALARS, TverskyConfig
from tnn_train.heads.tversky.inits import class_means
from tnn_train.heads.tversky.projection import TverskyProjection

__all__ = ["TverskyHead"]


class TverskyHead(TverskyProjection, Head):
    """Logits from the Tversky similarities of the embedding to learned prototypes; see `TverskyProjection`."""

    family = "tversky"
    reject_score = "lead"
    evidence_meanings: ClassVar[Mapping[str, str]] = {
        "similarities": "to each prototype",
        "common": "weighted measure of what image and prototype share",
        "input_only": "weighted measure of what only the image has",
        "prototype_only": "weighted measure of what only the prototype has",
    }

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: TverskyConfig | None = None) -> Self:
        """Build the head in the form ``options``."""
        return cls(in_features, num_classes, options)

    @property
    def options(self) -> TverskyConfig:
        """The form of the head."""
        return self.config

    @classmethod
    def resolve(cls, options: TverskyConfig, class_names: Sequence[str], *, is_frozen: bool) -> TverskyConfig:
        """Return the form with its start decided: see `tnn_train.heads.tversky.start`."""
        from tnn_train.heads.tversky.start import resolve_start

        return resolve_start(options, class_names, is_frozen=is_frozen)

    @classmethod
    def for_training(cls, in_features: int, num_classes: int, options: TverskyConfig) -> Head:
        """Build the head, or the linear layer that it starts as."""
        from tnn_train.heads.tversky.start import LinearStart

        if options.start == LINEAR:
            return LinearStart(in_features, num_classes, options)
        return cls.from_config(in_features, num_classes, options)

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Move the prototypes to means of the embeddings of their classes, if that is how they start."""
        if self.config.prototype_init == CLASS_MEANS:
            with torch.no_grad():
                means = class_means(batches, self.num_classes, len(self.prototypes)).to(self.prototypes.device)
                self.prototypes.copy_(means if self.config.prototype_space == "embedding" else self.project(means))

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the similarities ``[N, P]`` to the prototypes and the weighted measures that they are made of.

        Contrast model: ``similarities = common - input_only - prototype_only``.
        Ratio model: ``similarities = common / (common + input_only + prototype_only + theta)``.
        """
        with full_precision(x):
            a = self.with_opposites(self.directions(x) if switches is None else switches)
            b = self.prototype_values
            parts = self.parts(a, b)
            return {
                "similarities": self.compare(a, b),
                "common": parts.common * (self.theta if self.config.model == "contrast" else 1.0),
                "input_only": parts.input_only * self.alpha,
                "prototype_only": parts.prototype_only * self.beta,
            }

    def switches(self, x: Tensor) -> Tensor:
        """Return the values of `directions`: a feature is present where its value is above 0, its opposite below."""
        return self.directions(x)

    def arrays(self) -> dict[str, Tensor]:
        """Return the bank, the prototypes, also as features, the scalars, and the linear map if there is one."""
        tensors = {
            "feature_bank": self.feature_bank,
            "thresholds": self.thresholds,
            "feature_weight": self.feature_weight,
            "prototypes": self.prototypes,
            "prototype_features": self.prototype_values,
            **{name: getattr(self, name) for name in SCALARS},
            "linear_weight": None if self.linear is None else self.linear.weight,
            "linear_bias": None if self.linear is None else self.linear.bias,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return the section on prototypes and features."""
        from tnn_train.heads.tversky.section import prototype_section

        return [prototype_section(self, sample)]
