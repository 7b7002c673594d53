"""Learning vector quantisation as a head family."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from tnn_train.fields import Field, FieldError
from tnn_train.heads.base import Head, PrototypeView
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.lvq.config import (
    AUTO,
    CLASS_MEANS,
    CROSS_ENTROPY,
    GLVQ,
    IDENTITY,
    KMEANS,
    MATRIX,
    MIXTURE,
    NOISE,
    NONE,
    LvqConfig,
)
from tnn_train.heads.lvq.editing import with_class, without
from tnn_train.heads.lvq.layer import LvqLayer
from tnn_train.heads.lvq.loss import cooling, glvq_loss
from tnn_train.heads.lvq.start import find_start

__all__ = ["LvqHead"]

_COOLING = 0.1
"""The share of Newton's step that the temperature makes for a batch, which is a sample of all images."""


class LvqHead(LvqLayer, Head):
    """The class of the nearest prototype; see `LvqLayer`."""

    family = "lvq"
    evidence_meanings: ClassVar[Mapping[str, str]] = {
        "distances": "squared, to each prototype",
        "nearest": "the number of the nearest prototype",
        "confidence": "(d- - d+) / (d- + d+), d+ the smallest distance and d- that to the nearest other class",
    }
    evidence_places: ClassVar[Mapping[str, str]] = {"nearest": "distances"}

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: LvqConfig | None = None) -> Self:
        """Build the head in the form ``options``."""
        return cls(in_features, num_classes, options)

    @property
    def options(self) -> LvqConfig:
        """The form of the head."""
        return self.config

    # Training

    @classmethod
    def resolve(
        cls,
        options: LvqConfig,
        class_names: Sequence[str],
        in_features: int,
        *,
        is_frozen: bool,
        is_pixels: bool = False,
    ) -> LvqConfig:
        """Return the form with its loss and its start decided.

        Raises:
            FieldError: If the latent space is larger than the embedding, or the rank than the space of the prototypes.
        """
        if options.latent is not None and options.latent > in_features:
            raise FieldError(
                *(
                    _field("latent"),
                    f" is {options.latent}, and embeddings have {in_features} values; expected at most ",
                ),
                "as many",
            )
        size = options.latent or in_features
        if options.relevances == MATRIX and (options.rank or 0) > size:
            raise FieldError(
                *(
                    _field("rank"),
                    f" is {options.rank}, and prototypes have {size} values; expected at most as many",
                )
            )
        if options.loss == AUTO:
            stays = (is_frozen or is_pixels) and options.pooling != MIXTURE
            options = dataclasses.replace(options, loss=GLVQ if stays else CROSS_ENTROPY)
        if options.start == AUTO:
            options = dataclasses.replace(options, start=CLASS_MEANS if options.prototypes == 1 else KMEANS)
        return options

    @classmethod
    def unused(cls, options: LvqConfig, resolved: LvqConfig) -> Iterable[tuple[str, str]]:
        """Yield the options that the form has no use for."""
        idle = {
            "transfer": ("loss", resolved.loss != GLVQ),
            "beta": ("loss", resolved.loss != GLVQ),
            "margin": ("loss", resolved.loss != GLVQ),
            "hidden": ("latent", resolved.latent is None),
            "activation": ("latent", resolved.latent is None),
            "activate_latent": ("latent", resolved.latent is None),
            "rank": ("relevances", resolved.relevances != MATRIX),
            "relevance_rate": ("relevances", resolved.relevances == NONE),
            "noise": ("start", resolved.start != NOISE),
        }
        if resolved.loss == GLVQ and resolved.transfer == IDENTITY:
            idle |= {"beta": ("transfer", True), "margin": ("transfer", True)}
        yield from ((name, reason) for name, (reason, is_idle) in idle.items() if is_idle)

    def loss(self, x: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the mean loss of a batch: that of GLVQ, or the cross-entropy.

        In training, the temperature makes a step to where the cross-entropy is lowest, so that the probabilities of the
        classes mean something. It is no parameter: the loss of GLVQ does not depend on it.
        """
        if self.training:
            with torch.no_grad():
                self.log_temperature += _COOLING * cooling(logits, targets, weight, label_smoothing)
        if self.config.loss == CROSS_ENTROPY:
            return super().loss(x, logits, targets, weight, label_smoothing)
        nearest = self.distances(x)[:, self.places].amin(2)
        return glvq_loss(nearest, targets, weight, label_smoothing, self.config)

    def rates(self) -> Mapping[str, float]:
        """Return the rates of the prototypes and the relevances."""
        rates = {"prototypes": self.config.prototype_rate}
        return rates if self.omega is None else {**rates, "omega": self.config.relevance_rate}

    def undecayed(self) -> Collection[str]:
        """Return the prototypes and the relevances: the origin is nothing that they should tend to."""
        return ("prototypes",) if self.omega is None else ("prototypes", "omega")

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Move the prototypes to where they start, and Omega, if it has fewer rows than columns, to the main axes.

        The temperature starts at the mean distance of an image to the nearest prototype of its class.
        """
        found = find_start(((self.latent(x), y) for x, y in batches), self.num_classes, self.config)
        with torch.no_grad():
            self.prototypes.copy_(found.prototypes)
            if self.omega is not None and self.omega.ndim == 2:
                self.omega.copy_(found.axes[: len(self.omega)])
            self.log_temperature.fill_(found.distance).log_()

    # Export

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the distances, the number of the nearest prototype, and the confidence."""
        distances = self.distances(x)
        best, other = distances[:, self.places].amin(2).topk(2, dim=1, largest=False).values.chunk(2, dim=1)
        return {
            "distances": distances,
            "nearest": distances.argmin(1, keepdim=True).to(distances.dtype),
            "confidence": (other - best) / (other + best).clamp_min(torch.finfo(torch.float32).tiny),
        }

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the values of the embedding, or the latent ones: ``[N, L]``."""
        return self.latent(x)

    @property
    def has_feature_maps(self) -> bool:
        """Whether the features are the values of the embedding: latent ones are no means over places."""
        return self.network is None

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps

    def similarities(self, x: Tensor) -> Tensor:
        """Return minus the distances."""
        return -self.distances(x)

    def arrays(self) -> dict[str, Tensor]:
        """Return the prototypes with their classes, the centre, Omega, the temperature and the network."""
        tensors = {
            "prototypes": self.prototypes,
            "owners": self.owners,
            "centre": self.centre,
            "temperature": self.temperature,
        }
        if self.omega is not None:
            tensors["omega"] = self.omega
        if self.network is not None:
            for place, layer in enumerate(self.network.layers):
                tensors |= {f"weight_{place}": layer.weight, f"bias_{place}": layer.bias}  # type: ignore[dict-item]
        return tensors

    # Edits, the report and the audit

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return that the features have no names."""
        return (None,) * self.size

    def without(self, features: Collection[int], prototypes: Collection[int]) -> Self:
        """Return the head without some features and prototypes: see `tnn_train.heads.lvq.editing`."""
        return without(self, features, prototypes)

    @torch.no_grad()
    def with_class(self, examples: Tensor, others: Tensor, place: int) -> Self:
        """Return the head with prototypes of a new class: see `tnn_train.heads.lvq.editing`."""
        return with_class(self, examples, place)

    def points(self) -> tuple[Tensor, Tensor] | None:
        """Return the prototypes, if they are not behind a network."""
        return None if self.network is not None else (self.prototypes, self.owners)

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return the prototypes beside the images, in the space of the distances and from the centre."""
        images, prototypes = self.compared(x)
        return PrototypeView(images, prototypes, self.similarities(x), self.owners.cpu())

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return the sections on the prototypes and the relevances."""
        from tnn_train.heads.lvq.section import sections

        return sections(self, sample)


def _field(name: str) -> Field:
    return Field(LvqConfig, name)
