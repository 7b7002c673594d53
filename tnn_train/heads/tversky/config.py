"""The form of a Tversky head, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress

from tnn_train.fields import SMALLEST, Field, FieldError, at_least, one_of
from tnn_train.heads.base import NOISE, SAMPLES
from tnn_train.heads.feature_name import FeatureName
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.inits import INITS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS

__all__ = ["AUTO", "CLASS_MEANS", "EMBEDDING", "IMAGE", "LINEAR", "RANDOM", "SCALARS", "SPELLINGS", "TverskyConfig"]

AUTO, LINEAR, CLASS_MEANS, RANDOM = "auto", "linear", "class-means", "random"
"""How a training of the head starts."""

EMBEDDING, IMAGE = "embedding", "image"
"""What prototypes and features are learned as."""

SCALARS = ("alpha", "beta", "theta", "logit_scale")

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
        difference: The measure of f(A-B) and f(B-A): ignorematch, what the other one lacks; excess, what it has less
            of; or subtractmatch (also in the paper's spelling, substractmatch), both.
        alpha: Initial weight of what only the input has.
        beta: Initial weight of what only the prototype has.
        theta: Initial weight of the common features (contrast), or offset of the denominator (ratio; see smooth).
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
        thresholds: Subtract a learned threshold from each feature's value, of inputs and prototypes alike.
        opposites: Give each feature an opposite, of minus so many times its value, and a bank of num_features / 2
            directions; 0 for no opposites.
        prototype_space: embedding: prototypes are points of the embedding space, whose features the bank decides; or
            feature: prototypes are feature values themselves.
        start: linear: train the head as a linear layer first, then unfold it, with the same predictions, into a
            Tversky head whose features are attributes of the classes; class-means: start the prototypes at the means
            of each class; random; or auto: class-means where the backbone is frozen, else linear, unless other options
            ask for a form that neither of them gives.
        unfold_at: The share of the training steps after which a linear start is unfolded, 0 to 1.
        code: The attributes that a linear start is unfolded into: classes, one for each class; hierarchy, also one for
            each group of similar classes; or a CSV file with a row for each class and a column for each attribute.
        smooth: Add theta to the numerator of the ratio model, too, so that two objects without any feature are alike.
        domain: embedding: prototypes and features are learned as vectors; or image: as images, which the backbone
            embeds at each step of the training, and once for an export.
        image_start: What these images start as: samples, training images, those of a prototype of its class; or noise.
        attributes: The attributes themselves; filled in by the training.
        dropped: Features that count for nothing, as explanations number them; filled in by an edit.
        names: What a person calls features that are no attributes; filled in by an edit.
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
    thresholds: bool = False
    opposites: float = 0.0
    prototype_space: str = "embedding"
    start: str = AUTO
    unfold_at: float = 0.7
    code: str = "hierarchy"
    smooth: bool = False
    domain: str = EMBEDDING
    image_start: str = SAMPLES
    attributes: Annotated[tuple[Attribute, ...], Suppress] = ()
    dropped: Annotated[tuple[int, ...], Suppress] = ()
    names: Annotated[tuple[FeatureName, ...], Suppress] = ()

    def __post_init__(self) -> None:
        at_least(self, 1, "num_features")
        if self.num_prototypes is not None:
            at_least(self, 1, "num_prototypes")
        at_least(self, 0.0, "alpha", "beta", "theta", "logit_scale", "sharpness", "prototype_gain", "opposites")
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
        for name in ("normalize", "thresholds", "smooth"):
            if not isinstance(getattr(self, name), bool):
                raise FieldError(Field(TverskyConfig, name), f" is {getattr(self, name)!r}; expected True or False")
        one_of(self, "prototype_space", ("embedding", "feature"))
        one_of(self, "domain", (EMBEDDING, IMAGE))
        one_of(self, "image_start", (SAMPLES, NOISE))
        one_of(self, "start", (AUTO, LINEAR, CLASS_MEANS, RANDOM))
        at_least(self, 0.0, "unfold_at")
        if self.unfold_at > 1:
            raise FieldError(Field(TverskyConfig, "unfold_at"), f" is {self.unfold_at!r}; expected a share from 0 to 1")
        if not self.code or not isinstance(self.code, str):
            raise FieldError(
                Field(TverskyConfig, "code"), f" is {self.code!r}; expected classes, hierarchy or the path of a file"
            )
        if self.opposites and (self.feature_bank != "learned" or self.num_features % 2):
            raise FieldError(
                *(
                    Field(TverskyConfig, "opposites"),
                    " above 0 needs a learned bank and an even number of features; got the ",
                ),
                *(Field(TverskyConfig, "feature_bank"), f" {self.feature_bank} and "),
                *(Field(TverskyConfig, "num_features"), f" {self.num_features}"),
            )
        if self.domain == IMAGE and self.prototype_space != "embedding":
            raise FieldError(
                *(Field(TverskyConfig, "domain"), f" is {IMAGE}, and images are embedded; got the "),
                *(Field(TverskyConfig, "prototype_space"), f" {self.prototype_space}: leave "),
                *(Field(TverskyConfig, "prototype_space"), " out"),
            )
        if self.domain == IMAGE and self.feature_bank == "learned" and self.num_directions < 2:
            raise FieldError(
                *(
                    Field(TverskyConfig, "domain"),
                    f" is {IMAGE}, and features are what tells their images apart; got the ",
                ),
                *(Field(TverskyConfig, "num_features"), f" {self.num_features}; expected at least two images"),
            )
        if self.smooth and self.model != "ratio":
            raise FieldError(
                *(Field(TverskyConfig, "smooth"), " adds theta to the numerator of the ratio model; got the "),
                *(Field(TverskyConfig, "model"), f" {self.model}"),
            )
        positive = [name for name in SCALARS if name not in self.fixed or name == "theta"]
        for name in positive if self.model == "ratio" else ():
            if getattr(self, name) < SMALLEST:
                raise FieldError(
                    Field(TverskyConfig, name),
                    f" is {getattr(self, name):g}; the ratio model "
                    + ("divides by it where nothing is shared" if name == "theta" else "learns it as a positive number")
                    + ", so choose it above 0"
                    + ("" if name == "theta" else ", or fix it"),
                )

    @property
    def num_directions(self) -> int:
        """The number of rows of a learned bank: half as many as there are features if these have opposites."""
        return self.num_features // 2 if self.opposites else self.num_features
