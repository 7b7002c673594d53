"""What a model is built from, as frozen dataclasses that check their own values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from tyro.conf import Suppress

from tnn_train.errors import Field, FieldError
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS

__all__ = ["CLASS_MEANS", "SCALARS", "SPELLINGS", "ModelConfig", "TverskyConfig", "at_least", "choose", "one_of"]

CLASS_MEANS = "class-means"
SCALARS = ("alpha", "beta", "theta", "logit_scale")

T = TypeVar("T")

_SMALLEST, _LARGEST = 1e-30, 1e30
"""Numbers beyond these are 0 or infinite in float32, or in a product of two of them."""

SPELLINGS = {"substractmatch": "subtractmatch"}
"""The names of differences that are taken for others."""


@dataclass(frozen=True)
class TverskyConfig:
    """The form of a Tversky head (arXiv 2506.11035).

    Args:
        num_features: F, the size of a learned feature bank; a diagonal one has as many features as the embedding.
        model: contrast: theta f(A and B) - alpha f(A-B) - beta f(B-A); or ratio: a logit scale times f(A and B) /
            (f(A and B) + alpha f(A-B) + beta f(B-A) + theta).
        intersection: The measure of f(A and B): product, mean, gmean, min, max or softmin.
        difference: The measure of f(A-B) and f(B-A): ignorematch or subtractmatch (also in the paper's spelling,
            substractmatch).
        alpha: Initial weight of what only the input has.
        beta: Initial weight of what only the prototype has.
        theta: Initial weight of the common features (contrast), or offset of the denominator (ratio).
        logit_scale: Initial factor of the ratio model's similarities, which could not reach a low cross-entropy within
            0 and 1; not used by the contrast model.
        fixed: Which of alpha, beta, theta and logit_scale keep their initial values; the others are learned, as
            positive numbers in the ratio model.
        normalize: Scale embeddings and prototypes to unit norm first.
        membership: hard: a feature is present where its value is above 0; or sigmoid: to the degree
            sigmoid(sharpness times value), which has no jump.
        sharpness: The factor in the sigmoid; not used by hard membership.
        feature_bank: learned: num_features directions; or diagonal: the features are the absolute values of the
            embedding, each with a learned positive weight.
        num_prototypes: P, followed by a linear map to the classes; None for one prototype a class and no map.
        init: How the feature bank starts: uniform, normal, xavier_uniform or orthogonal.
        prototype_init: How the prototypes start: such a name, None for the same as the bank, or class-means: at means
            of the embeddings of each class, which are computed in one pass over the data.
        prototype_gain: The norm of the prototypes at the start, but for class-means.
    """

    num_features: int = 64
    model: str = "contrast"
    intersection: str = "product"
    difference: str = "subtractmatch"
    alpha: float = 0.5
    beta: float = 0.5
    theta: float = 1.0
    logit_scale: float = 20.0
    fixed: tuple[str, ...] = ()
    normalize: bool = False
    membership: str = "hard"
    sharpness: float = 10.0
    feature_bank: str = "learned"
    num_prototypes: int | None = None
    init: str = "uniform"
    prototype_init: str | None = None
    prototype_gain: float = 2.3

    def __post_init__(self) -> None:
        at_least(self, 1, "num_features")
        if self.num_prototypes is not None:
            at_least(self, 1, "num_prototypes")
        at_least(self, 0.0, "alpha", "beta", "theta", "logit_scale", "sharpness", "prototype_gain")
        one_of(self, "model", MODELS)
        one_of(self, "intersection", INTERSECTIONS)
        object.__setattr__(self, "difference", SPELLINGS.get(self.difference, self.difference))
        one_of(self, "difference", DIFFERENCES)
        one_of(self, "membership", MEMBERSHIPS)
        one_of(self, "feature_bank", ("learned", "diagonal"))
        one_of(self, "init", INITS)
        if self.prototype_init is not None:
            one_of(self, "prototype_init", (*INITS, CLASS_MEANS))
        if not isinstance(self.fixed, tuple | list) or not all(name in SCALARS for name in self.fixed):
            raise FieldError(
                Field(TverskyConfig, "fixed"),
                f" is {self.fixed!r}; expected a tuple of names out of {', '.join(SCALARS)}",
            )
        object.__setattr__(self, "fixed", tuple(sorted(self.fixed)))
        if not isinstance(self.normalize, bool):
            raise FieldError(Field(TverskyConfig, "normalize"), f" is {self.normalize!r}; expected True or False")
        positive = [name for name in SCALARS if name not in self.fixed or name == "theta"]
        for name in positive if self.model == "ratio" else ():
            if getattr(self, name) < _SMALLEST:
                raise FieldError(
                    Field(TverskyConfig, name),
                    f" is {getattr(self, name):g}; the ratio model "
                    + ("divides by it where nothing is shared" if name == "theta" else "learns it as a positive number")
                    + ", so choose it above 0"
                    + ("" if name == "theta" else ", or fix it"),
                )


@dataclass(frozen=True)
class ModelConfig:
    """A backbone and a head.

    Args:
        backbone: A classifier of torchvision whose last layer is linear, such as resnet18, resnet50, efficientnet_b0.
        head: linear or tversky.
        num_classes: C, the number of logits.
        in_channels: 1 (grey) or 3 (RGB).
        stem: How a ResNet begins: small, a 3x3 convolution with stride 1 and no pooling; imagenet, torchvision's 7x7
            convolution with stride 2 and pooling; auto, small for images below 96 pixels unless weights decide.
        tversky: The form of the head if it is tversky.
    """

    backbone: str = "resnet18"
    head: str = "tversky"
    num_classes: Annotated[int, Suppress] = 10
    in_channels: Annotated[int, Suppress] = 3
    stem: str = "auto"
    tversky: TverskyConfig = field(default_factory=TverskyConfig)

    def __post_init__(self) -> None:
        at_least(self, 2, "num_classes")
        one_of(self, "in_channels", (1, 3))
        one_of(self, "stem", ("auto", "imagenet", "small"))


def choose(what: str | Field, value: T, choices: Iterable[T]) -> T:
    """Return ``value`` if it is one of ``choices``.

    Raises:
        UsageError: With the choices, if it is not.
    """
    choices = list(choices)
    if value not in choices:
        raise FieldError("unknown ", what, f" {value!r}; choose from {', '.join(map(str, choices))}")
    return value


def one_of(config: Any, name: str, choices: Iterable[Any]) -> None:
    """Refuse a field that is none of ``choices``.

    Raises:
        FieldError: With the name, the value and the choices.
    """
    choose(Field(type(config), name), getattr(config, name), choices)


def at_least(config: Any, lowest: float, *names: str) -> None:
    """Refuse fields below ``lowest``, which are to be integers where it is one, and finite.

    Raises:
        FieldError: With the name and the value of the first of them.
    """
    for name in names:
        value = getattr(config, name)
        if (
            isinstance(value, bool)
            or not isinstance(value, type(lowest) if isinstance(lowest, int) else int | float)
            or not lowest <= value <= _LARGEST
        ):
            raise FieldError(
                Field(type(config), name),
                f" is {value!r}; expected {'an integer' if isinstance(lowest, int) else 'a finite number'} of at least "
                f"{lowest}",
            )
