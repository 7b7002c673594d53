"""The form of a head of learning vector quantisation, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Suppress

from tnn_train.fields import Field, FieldError, at_least, one_of
from tnn_train.heads.lvq.network import ACTIVATIONS

__all__ = [
    "AUTO",
    "CLASS_MEANS",
    "CROSS_ENTROPY",
    "GLVQ",
    "IDENTITY",
    "KMEANS",
    "MATRIX",
    "MIXTURE",
    "NEAREST",
    "NOISE",
    "NONE",
    "SIGMOID",
    "SWISH",
    "VECTOR",
    "LvqConfig",
]

AUTO = "auto"
"""What follows from the rest of the model."""

GLVQ, CROSS_ENTROPY = "glvq", "cross-entropy"
"""What is minimised."""

IDENTITY, SIGMOID, SWISH = "identity", "sigmoid", "swish"
"""What the relative difference of distances goes through in the loss of GLVQ."""

NONE, VECTOR, MATRIX = "none", "vector", "matrix"
"""What weighs the dimensions of the distance."""

NEAREST, MIXTURE = "nearest", "mixture"
"""How the prototypes of a class make its logit."""

CLASS_MEANS, KMEANS, NOISE = "class-means", "kmeans", "noise"
"""Where prototypes start."""

_MOST = 1 << 16
"""Prototypes of a class, and sizes of spaces and layers, at most: more do not fit into memory."""


@dataclass(frozen=True)
class LvqConfig:
    """The form of a head of learning vector quantisation: squared distances to learned prototypes decide.

    Args:
        prototypes: How many prototypes each class has.
        loss: glvq: the relative difference of the distances to the nearest prototype of the image's class and to that
            of all others; cross-entropy: of the softmax of minus the distances; or auto: glvq for embeddings that stay
            as they are, and cross-entropy behind a backbone that learns and for mixtures. A head that is built without
            a model takes auto for glvq.
        transfer: What the relative difference goes through, for glvq: identity; sigmoid(beta times it), which attends
            to images near the border; or swish, the product of both.
        beta: The factor in the sigmoid.
        margin: Added to the relative difference before the transfer; above 0, images count until they are that far
            from the border.
        pooling: nearest: the logit of a class follows from its nearest prototype; or mixture: from the log-sum-exp
            over its prototypes, for cross-entropy, which makes them a mixture of Gaussians (RSLVQ; an RBF head).
        relevances: What weighs the dimensions of the distance: none; vector, a weight for each (GRLVQ); or matrix, a
            learned linear map before it (GMLVQ).
        rank: Rows of that matrix, at most as many as it has columns; None for as many.
        latent: Size of the space in which the prototypes are, behind a network of the head's own (LVQMLN), at most that
            of the embedding; None for no network, and prototypes among the embeddings.
        hidden: Sizes of the layers of the network before its last one.
        activation: What follows each layer of the network but the last: sigmoid, relu, tanh, leaky_relu or selu.
        activate_latent: Let it follow the last layer, too, so that a sigmoid or a tanh bounds the latent space.
        start: Where prototypes start: class-means, means of images of the class; kmeans, the centres of its clusters;
            noise, images of the class, and noise; or auto: class-means for one prototype a class, else kmeans.
        noise: How large the noise is, as a share of the spread of each dimension.
        prototype_rate: What the learning rate of the prototypes is multiplied by.
        relevance_rate: The same of the relevances.
        owners: The class of each prototype, ascending, where the classes have not equally many; filled in by an edit.
        dropped: Features that count for nothing, as explanations number them; filled in by an edit.
        has_centre: Whether logits are relative to a point on record, not to the mean of the prototypes; filled in by an
            edit.
    """

    prototypes: int = 1
    loss: str = AUTO
    transfer: str = SIGMOID
    beta: float = 4.0
    margin: float = 0.0
    pooling: str = NEAREST
    relevances: str = NONE
    rank: int | None = None
    latent: int | None = None
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    activate_latent: bool = False
    start: str = AUTO
    noise: float = 0.1
    prototype_rate: float = 1.0
    relevance_rate: float = 1.0
    owners: Annotated[tuple[int, ...], Suppress] = ()
    dropped: Annotated[tuple[int, ...], Suppress] = ()
    has_centre: Annotated[bool, Suppress] = False

    def __post_init__(self) -> None:
        at_least(self, 1, "prototypes", most=_MOST)
        at_least(self, 0.0, "beta", "margin", "noise", "prototype_rate", "relevance_rate")
        one_of(self, "loss", (AUTO, GLVQ, CROSS_ENTROPY))
        one_of(self, "transfer", (IDENTITY, SIGMOID, SWISH))
        one_of(self, "pooling", (NEAREST, MIXTURE))
        one_of(self, "relevances", (NONE, VECTOR, MATRIX))
        one_of(self, "activation", ACTIVATIONS)
        one_of(self, "start", (AUTO, CLASS_MEANS, KMEANS, NOISE))
        if not isinstance(self.activate_latent, bool):
            raise FieldError(_field("activate_latent"), f" is {self.activate_latent!r}; expected True or False")
        for name in ("rank", "latent"):
            if getattr(self, name) is not None:
                at_least(self, 1, name, most=_MOST)
        if not isinstance(self.hidden, tuple | list) or not all(
            type(size) is int and 1 <= size <= _MOST for size in self.hidden
        ):
            raise FieldError(
                _field("hidden"), f" is {self.hidden!r}; expected sizes of layers, integers of 1 to {_MOST}"
            )
        for name in ("hidden", "owners", "dropped"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.loss == GLVQ and self.pooling == MIXTURE:
            raise FieldError(
                *(
                    _field("pooling"),
                    f" is {MIXTURE}, and ",
                    _field("loss"),
                    f" is {GLVQ}, which looks at the nearest ",
                ),
                *(f"prototypes alone; choose {CROSS_ENTROPY}, or leave ", _field("pooling"), " out"),
            )


def _field(name: str) -> Field:
    return Field(LvqConfig, name)
