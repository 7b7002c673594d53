"""The form of a parts head, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress

from tnn_train.fields import Field, FieldError, at_least, one_of
from tnn_train.heads.feature_name import FeatureName

__all__ = ["KINDS", "OF_KIND", "PIPNET", "PROTOPNET", "PartsConfig"]

PROTOPNET, PIPNET = "protopnet", "pipnet"
KINDS = (PROTOPNET, PIPNET)

OF_KIND = {
    PROTOPNET: ("per_class", "depth", "add_on", "similarity", "epsilon", "cluster", "separation", "start"),
    PIPNET: ("num_parts", "alignment", "presence", "fires_above"),
}
"""The options that one kind alone has."""

_SMALLEST_EPSILON = 1e-6
_SPARSITY = {PROTOPNET: 1e-3, PIPNET: 1e-4}
_MOST = 1 << 16
"""Prototypes of a class, parts, and values of a prototype, at most: more do not fit into memory."""


@dataclass(frozen=True)
class PartsConfig:
    """The form of a parts head: ProtoPNet (arXiv 1806.10574) or PIP-Net (Nauta et al., CVPR 2023).

    Args:
        kind: protopnet: prototypes that are patches of training images of their class, found again by distance; or
            pipnet: parts that are channels of the map, trained to stay the same in two views of an image.
        per_class: Prototypes of each class (protopnet).
        depth: The size of a prototype, after two 1x1 convolutions with ReLU and sigmoid; None for 128, or the size of
            the map at each place if that is less (protopnet).
        add_on: Put these two convolutions before the prototypes; without them a prototype is as large as the map at
            each place (protopnet).
        similarity: log: log((d + 1) / (d + epsilon)); or linear: -d, of the mean squared difference d (protopnet).
        epsilon: What bounds the log similarity, by log(1 / epsilon) (protopnet).
        cluster: Weight of the distance from each image to the nearest prototype of its class, in the loss (protopnet).
        separation: Weight of the distance to the nearest prototype of another class, which is to be large (protopnet).
        start: patches: prototypes start at patches of training images; or random: between 0 and 1 (protopnet).
        num_parts: Parts, after a 1x1 convolution; None for the channels of the backbone's map themselves (pipnet).
        alignment: Weight of how far parts differ between two views of an image; None for 0.5, or for 0 where the
            backbone is frozen and there is but one view (pipnet).
        presence: Weight of how far parts are absent from a whole batch (pipnet).
        fires_above: The share of a place that a part must exceed to count, 0 to below 1 (pipnet).
        sparsity: Weight of the sizes of the last layer's weights when it is fitted, after the last step: of all that
            are not of a prototype's own class (protopnet), or of all (pipnet). 0 for no sparsity; None for 0.001
            (protopnet) or 0.0001 (pipnet).
        owners: The class of each prototype where classes were added (protopnet); filled in by an edit.
        names: What a person calls parts; filled in by an edit.
    """

    kind: str = PROTOPNET
    per_class: int = 10
    depth: int | None = None
    add_on: bool = True
    similarity: str = "log"
    epsilon: float = 1e-4
    cluster: float = 0.8
    separation: float = 0.08
    start: str = "patches"
    num_parts: int | None = None
    alignment: float | None = None
    presence: float = 1.0
    fires_above: float = 0.1
    sparsity: float | None = None
    owners: Annotated[tuple[int, ...], Suppress] = ()
    names: Annotated[tuple[FeatureName, ...], Suppress] = ()

    def __post_init__(self) -> None:
        one_of(self, "kind", KINDS)
        one_of(self, "similarity", ("log", "linear"))
        one_of(self, "start", ("patches", "random"))
        given = [name for name in ("depth", "num_parts") if getattr(self, name) is not None]
        at_least(self, 1, "per_class", *given, most=_MOST)
        at_least(self, 0.0, "epsilon", "cluster", "separation", "presence", "fires_above")
        at_least(self, 0.0, *(name for name in ("alignment", "sparsity") if getattr(self, name) is not None))
        if not isinstance(self.add_on, bool):
            raise FieldError(Field(PartsConfig, "add_on"), f" is {self.add_on!r}; expected True or False")
        if not _SMALLEST_EPSILON <= self.epsilon < 1:
            raise FieldError(
                Field(PartsConfig, "epsilon"),
                f" is {self.epsilon:g}; expected {_SMALLEST_EPSILON:g} to below 1, so that float32 can tell distances",
            )
        if self.fires_above >= 1:
            raise FieldError(
                Field(PartsConfig, "fires_above"), f" is {self.fires_above:g}; expected a share from 0 to below 1"
            )
        if self.num_parts == 1:
            raise FieldError(
                Field(PartsConfig, "num_parts"), " is 1, and one part alone is everywhere; expected at least 2"
            )

    @property
    def strength(self) -> float:
        """The sparsity, with the default of the kind filled in."""
        return _SPARSITY[self.kind] if self.sparsity is None else self.sparsity
