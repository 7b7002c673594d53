"""The Tversky projection as a head family."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter, functional

from tnn_train.heads.base import Head, PrototypeView
from tnn_train.heads.class_means import class_means
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.linear import LinearHead
from tnn_train.heads.precision import precise
from tnn_train.heads.tversky.config import CLASS_MEANS, IMAGE, LINEAR, SCALARS, TverskyConfig
from tnn_train.heads.tversky.editing import names_of_features, renamed, with_class, without
from tnn_train.heads.tversky.layer import SHORTEST
from tnn_train.heads.tversky.projection import TverskyProjection
from tnn_train.heads.tversky.start import resolve_start, unused
from tnn_train.heads.tversky.unfolding import gradients_by_class, unfold

__all__ = ["LinearStart", "TverskyHead"]


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

    @classmethod
    @torch.no_grad()
    def from_linear(cls, linear: nn.Linear, config: TverskyConfig) -> Self:
        """Build the head that has the predictions of a linear layer: see `tnn_train.heads.tversky.unfolding`.

        Args:
            linear: The layer, ``[C, D]``.
            config: Whose attributes and fixed scalars the head shall have.

        Raises:
            UsageError: If a value of the layer is no finite number.
        """
        unfolded = unfold(linear.weight, linear.bias, config)
        head = cls(linear.in_features, linear.out_features, unfolded.config).to(linear.weight.device)
        assert head.feature_bank is not None
        assert head.thresholds is not None
        head.feature_bank.copy_(unfolded.feature_bank)
        head.thresholds.copy_(unfolded.thresholds)
        head.prototypes.copy_(unfolded.prototypes)
        return head

    @property
    def options(self) -> TverskyConfig:
        """The form of the head."""
        return self.config

    @classmethod
    def resolve(
        cls,
        options: TverskyConfig,
        class_names: Sequence[str],
        in_features: int,
        *,
        is_frozen: bool,
        is_pixels: bool = False,
    ) -> TverskyConfig:
        """Return the form with its start decided: see `tnn_train.heads.tversky.start`."""
        return resolve_start(options, class_names, is_frozen=is_frozen)

    @classmethod
    def unused(cls, options: TverskyConfig, resolved: TverskyConfig) -> Iterable[tuple[str, str]]:
        """Yield the options that neither the form nor its start has a use for."""
        return unused(options, resolved)

    @classmethod
    def for_training(cls, in_features: int, num_classes: int, options: TverskyConfig) -> Head:
        """Build the head, or the linear layer that it starts as."""
        if options.start == LINEAR:
            return LinearStart(in_features, num_classes, options)
        return cls.from_config(in_features, num_classes, options)

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Move the prototypes to means of the embeddings of their classes, if that is how they start."""
        if self.config.prototype_init == CLASS_MEANS:
            with torch.no_grad():
                option = "--tversky.num-prototypes (num_prototypes=)"
                means = class_means(batches, self.num_classes, len(self.prototypes), option).to(self.prototypes.device)
                self.prototypes.copy_(means if self.config.prototype_space == "embedding" else self.project(means))

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the values ``[N, F]`` of the rows of the bank, less the thresholds, and of their opposites."""
        return self.project(x)

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return the maps projected onto the rows of the bank; what is not linear in ``x`` is as it is for ``x``."""
        places = precise(maps.flatten(2).mT)
        if self.config.normalize:
            length = torch.linalg.vector_norm(x, dim=1).clamp_min(SHORTEST)
            places = places / length[:, None, None]
        bank = self.feature_bank
        values = places * x.sign().unsqueeze(1) if bank is None else places @ precise(bank).mT
        if self.thresholds is not None:
            values = values - precise(self.thresholds)
        found = self.with_opposites(values).mT
        return found.reshape(*found.shape[:2], *maps.shape[2:])

    @classmethod
    def learns_images(cls, options: TverskyConfig) -> bool:
        """Return whether prototypes and features are learned as images."""
        return options.domain == IMAGE

    @property
    def image_counts(self) -> Mapping[str, int]:
        """One image for each prototype and each direction of a learned bank, if they are learned as images."""
        if self.config.domain != IMAGE:
            return {}
        directions = {} if self.feature_bank is None else {"feature_bank": len(self.feature_bank)}
        return {"prototypes": len(self.prototypes), **directions}

    @property
    def start_images(self) -> str:
        """What learned images start as."""
        return self.config.image_start

    def image_titles(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """Return the number of each prototype with the class that it speaks for, and the features by their names."""
        speaks_for = range(self.num_classes) if self.linear is None else self.linear.weight.argmax(0).tolist()
        named = self.feature_names(class_names)[: 0 if self.feature_bank is None else len(self.feature_bank)]
        return {
            "prototypes": [f"prototype {place}, {class_names[label]}" for place, label in enumerate(speaks_for)],
            "feature_bank": [f"feature {place}" + (f", {name}" if name else "") for place, name in enumerate(named)],
        }

    def from_images(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the embeddings themselves as prototypes, and what sets each apart from their mean as directions.

        Embeddings lie close together on one side of the origin. As directions, they would all be nearly the same.
        """
        values = {name: precise(rows) for name, rows in embeddings.items()}
        if "feature_bank" in values:
            bank = values["feature_bank"]
            values["feature_bank"] = functional.normalize(bank - bank.mean(0), dim=1, eps=SHORTEST)
        return values

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

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return the names of the features."""
        return names_of_features(self.config, class_names, self.num_features)

    @property
    def num_prototypes(self) -> int:
        """P."""
        return len(self.prototypes)

    def without(self, features: Collection[int], prototypes: Collection[int]) -> Self:
        """Return the head with features that count for nothing, and fewer prototypes."""
        return without(self, features, prototypes)

    def renamed(self, names: Mapping[int, str]) -> Self:
        """Return the head with other names of some features; an attribute gets a name of its own."""
        return renamed(self, names)

    @torch.no_grad()
    def with_class(self, examples: Tensor, others: Tensor, place: int) -> Self:
        """Return the head with a prototype at the mean of the embeddings of a new class."""
        return with_class(self, examples, others, place)

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return the prototypes beside the images by their feature values."""
        owners = torch.arange(self.num_prototypes) if self.linear is None else self.linear.weight.argmax(0)
        return PrototypeView(self.project(x), self.prototype_values, self.similarities(x), owners)

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return the section on prototypes and features."""
        from tnn_train.heads.tversky.section import prototype_section

        return [prototype_section(self, sample)]


class LinearStart(LinearHead):
    """A Tversky head before its unfolding: a linear layer.

    Args:
        in_features: D, the size of the embedding.
        num_classes: C, the number of logits.
        config: The form that the head will have; see `tnn_train.heads.tversky.start`.
    """

    family = TverskyHead.family

    def __init__(self, in_features: int, num_classes: int, config: TverskyConfig) -> None:
        super().__init__(in_features, num_classes)
        self.config = config

    @property
    def final_from(self) -> float:
        """The share of the training steps after which the head is unfolded."""
        return self.config.unfold_at

    def final_form(self, like: Head | None = None) -> TverskyHead:
        """Return the unfolded head, whose predictions are the same.

        Args:
            like: A head whose attributes it shall have, so that the two can be averaged.
        """
        return TverskyHead.from_linear(self, self.config if like is None else like.options)

    def inherited(self, final: Head) -> Sequence[tuple[Parameter, Tensor, Tensor]]:
        """Return how the gradients of bank and thresholds follow from those of weight and bias."""
        assert isinstance(final, TverskyHead)
        assert final.feature_bank is not None
        assert final.thresholds is not None
        by_class = gradients_by_class(final.config.attributes, self.out_features)
        return (final.feature_bank, self.weight, by_class), (final.thresholds, self.bias, -by_class)
