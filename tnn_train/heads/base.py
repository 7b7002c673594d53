"""What a head is: the questions that the rest of the project asks of a head family, with an answer for each.

A family is a subclass of `Head`. It says how it is built and what its logits are; everything else has a default here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.text import a_head
from tnn_train.heads.description import Sample, Section

__all__ = ["NOISE", "SAMPLES", "Head", "PrototypeView"]

SAMPLES, NOISE = "samples", "noise"
"""What learned images start as."""


@dataclass(frozen=True, eq=False)
class PrototypeView:
    """The prototypes of a head beside images, in a space that both have.

    Args:
        images: Each image as a vector, ``[N, K]``.
        prototypes: Each prototype as a vector, ``[P, K]``.
        similarities: How like each prototype the images are by the head's own measure, ``[N, P]``.
        owners: The class that each prototype speaks for, int64 ``[P]``.
    """

    images: Tensor
    prototypes: Tensor
    similarities: Tensor
    owners: Tensor


class Head(nn.Module):
    """A classification head: embeddings to logits.

    In all of this class ``x`` is what `takes` says: embeddings ``[N, D]``, or maps ``[N, D, h, w]``.

    Attributes:
        family: What the family is called, on the command line and in configurations, checkpoints and manifests.
        takes: ``"embedding"``, or ``"map"`` for what the backbone has at each place before it pools them.
        evidence_meanings: For each output of `evidence` what it means, in a few words for a model card.
        evidence_places: For each output of `evidence` that is the place of the smallest value in each row of another
            one, ``[N, 1]`` as a float, that other one. Of values that differ by rounding alone, two right programs may
            take either place.
        reject_score: The score of `tnn_runtime.answers.reject` that measures best how sure such a head is of an image.
    """

    family: ClassVar[str]
    takes: ClassVar[str] = "embedding"
    evidence_meanings: ClassVar[Mapping[str, str]] = {}
    evidence_places: ClassVar[Mapping[str, str]] = {}
    reject_score: ClassVar[str] = "probability"

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: Any) -> Self:
        """Build an untrained head.

        Args:
            in_features: D, the size of an embedding, or of a map at each place.
            num_classes: C, the number of logits.
            options: The family's own configuration, a field of `tnn_train.ModelConfig`; ``None`` if it has none.
        """
        raise NotImplementedError

    @property
    def options(self) -> Any:
        """The family's own configuration that `from_config` builds such a head from; ``None`` if it has none."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x``.

        They are float32 or wider, in mixed precision too: see `tnn_train.heads.precision`.
        """
        raise NotImplementedError

    # Training

    @classmethod
    def resolve(
        cls, options: Any, class_names: Sequence[str], in_features: int, *, is_frozen: bool, is_pixels: bool = False
    ) -> Any:
        """Return the options with what the data and the recipe decide; by default as they are.

        To resolve them again changes nothing.

        Args:
            options: As for `from_config`.
            class_names: The classes.
            in_features: As for `from_config`.
            is_frozen: Whether the head alone is trained, on the embeddings of a frozen backbone.
            is_pixels: Whether embeddings are the pixels themselves.

        Raises:
            UsageError: If they contradict each other, or do not suit the classes or the backbone.
        """
        return options

    @classmethod
    def unused(cls, options: Any, resolved: Any) -> Iterable[tuple[str, str]]:
        """Yield the options that do nothing, each with the name of the option whose value is why; by default none.

        Args:
            options: As they were given.
            resolved: As `resolve` returned them.
        """
        return ()

    @classmethod
    def for_training(cls, in_features: int, num_classes: int, options: Any) -> Head:
        """Build the head that a training begins with; by default `from_config` does.

        Args:
            in_features: As for `from_config`.
            num_classes: As for `from_config`.
            options: As `resolve` returned them.
        """
        return cls.from_config(in_features, num_classes, options)

    @property
    def final_from(self) -> float | None:
        """The share of the training steps after which training goes on with `final_form`; ``None`` if it is final."""
        return None

    def final_form(self, like: Head | None = None) -> Head:
        """Return the head in the form in which it is saved and exported, with the same predictions; itself if it is.

        Args:
            like: A head in its final form, whose parameters those of the returned one can be averaged with.
        """
        return self

    def inherited(self, final: Head) -> Sequence[tuple[nn.Parameter, Tensor, Tensor]]:
        """Return which gradients in the final form follow from gradients of this head, for the optimizer's memory.

        Args:
            final: What `final_form` returned.

        Returns:
            A parameter of the final form, ``[K, ...]``, a parameter of this head, ``[C, ...]``, and the matrix
            ``[K, C]`` whose product with the gradient of the latter is that of the former; by default none.
        """
        return ()

    def loss(self, x: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the mean loss of a batch, a scalar; by default the cross-entropy in nats.

        With weights and classes as targets it is the weighted mean: the sum over the images, each times the weight of
        its class, divided by the sum of these weights. The trainer counts on it where several batches make a step. With
        shares of classes as targets, the weighted sum is divided by the number of images. Both are as in
        `torch.nn.functional.cross_entropy`.

        Args:
            x: What the head took, float32.
            logits: What it gave, float32 ``[n, C]``.
            targets: Classes, int64 ``[n]``, or where images are blended the shares of classes, float ``[n, C]``.
            weight: How much images of each class count, ``[C]``; ``None`` for all alike.
            label_smoothing: The probability to spread over all classes, 0 to below 1.
        """
        return functional.cross_entropy(logits, targets, weight, label_smoothing=label_smoothing)

    def penalty(self) -> Tensor | float:
        """Return what is added to the loss of each batch, such as a norm of parameters; by default nothing."""
        return 0.0

    def rates(self) -> Mapping[str, float]:
        """Return what the learning rate of some parameters is multiplied by, by their names; by default 1."""
        return {}

    def undecayed(self) -> Collection[str]:
        """Return the names of matrices without weight decay; by default none. Vectors and scalars never have any."""
        return ()

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set parameters that follow from the training data, before the first step; by default none.

        Args:
            batches: Embeddings and classes, int64 ``[n]``. They are computed as they are asked for: a head
                that does not iterate costs nothing. Gradients are off.

        Raises:
            TrainingError: If the data does not suit the head.
        """

    def finish(self, batches: Iterable[tuple[Tensor, Tensor]]) -> bool:
        """Set parameters that follow from the training data, after the last step; by default none.

        The trainer calls it on the head of the best epoch. The backbone is as it will be exported.

        Args:
            batches: Embeddings and classes, int64 ``[n]``, of all training images in their order, without
                augmentations. Each iteration computes them anew; a head that does not iterate costs nothing. Gradients
                are off.

        Returns:
            Whether anything has changed.

        Raises:
            TrainingError: If the data does not suit the head.
        """
        return False

    # Parameters that follow from learned images

    @classmethod
    def learns_images(cls, options: Any) -> bool:
        """Return whether parameters of such a head follow from images that the training learns; by default not."""
        return False

    @property
    def start_images(self) -> str:
        """What learned images start as: ``"samples"``, training images, or ``"noise"``."""
        return SAMPLES

    @property
    def image_counts(self) -> Mapping[str, int]:
        """How many learned images each of some parameters follows from, by its name; by default there are none."""
        return {}

    def from_images(self, embeddings: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the values of the parameters that follow from learned images.

        Args:
            embeddings: Of the images of each parameter, ``[n, ...]``.
        """
        raise NotImplementedError

    def image_titles(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """Return what each learned image of each parameter shows, in a few words.

        Args:
            class_names: The classes.
        """
        return {}

    # Views of training images

    @classmethod
    def views(cls, options: Any) -> int:
        """Return how many views of each training image the `loss` compares; by default one.

        They differ in colours alone, so that places in their maps correspond. Of n images, `loss` gets ``views * n``
        maps or embeddings: the first view of each image, then the second of each; targets likewise.

        Args:
            options: As for `from_config`.
        """
        return 1

    # Export and its proof

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return what the logits are made of, float32 ``[N, ...]`` by the names of `evidence_meanings`.

        Args:
            x: Embeddings.
            switches: What to take in place of ``self.switches(x)``.
        """
        return {}

    def feature_values(self, x: Tensor) -> Tensor | None:
        """Return the values ``[N, F]`` of the features that explanations speak of; by default ``None``: it has none."""
        return None

    @property
    def feature_floor(self) -> float:
        """The value of a feature that an image has to exceed to have it; by default 0."""
        return 0.0

    def similarities(self, x: Tensor) -> Tensor | None:
        """Return how similar embeddings are to the prototypes, ``[N, P]``; by default ``None``: there are none."""
        return None

    @property
    def has_feature_maps(self) -> bool:
        """Whether `feature_maps` can tell where features lie; by default if the family implements it."""
        return type(self).feature_maps is not Head.feature_maps

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return where each feature lies, ``[N, F, h, w]``: what `pool` makes of it is what `feature_values` returns.

        Args:
            maps: What the backbone has before it takes the mean over all places, ``[N, D, h, w]``.
            x: The embeddings; the maps for a head that takes these.
        """
        raise NotImplementedError

    def pool(self, maps: Tensor) -> Tensor:
        """Return the values ``[N, F]`` of features with maps ``[N, F, h, w]``; by default the means over all places."""
        return maps.mean((2, 3))

    def training_sources(self) -> Tensor | None:
        """Return which training image each feature is taken from, and at which place; by default ``None``: from none.

        Returns:
            The number of the image in the order of `finish`, the row and the column in its map, int64 ``[F, 3]``; -1 in
            rows of features that are taken from none.
        """
        return None

    def switches(self, x: Tensor) -> Tensor | None:
        """Return the values ``[N, K]`` whose sign decides, where logits jump as one of them crosses 0; else ``None``.

        Two right programs may differ where such a value is 0 but for rounding. The proof of an export moves values to
        the other side, or to 0, and asks `score` what the head would give. What switches together is one value.
        """
        return None

    def score(self, switches: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` that follow from values ``[N, K]`` of `switches`."""
        raise NotImplementedError

    def reach(self, x: Tensor) -> Tensor:
        """Return how large the `switches` of embeddings as long as ``x`` can be, ``[N, K]``."""
        raise NotImplementedError

    def arrays(self) -> dict[str, Tensor]:
        """Return what the family's explainer in `tnn_runtime.explain` needs, by name; by default nothing."""
        return {}

    # Edits

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return what explanations call each feature, ``None`` for those without a name; by default there are none.

        Args:
            class_names: The classes.
        """
        return ()

    @property
    def num_prototypes(self) -> int:
        """How many prototypes the head has; by default none."""
        return 0

    def without(self, features: Collection[int], prototypes: Collection[int]) -> Head:
        """Return a head with the logits that this one would have without some features and prototypes.

        The features that are left keep their numbers; the prototypes that are left are numbered anew.

        Args:
            features: As explanations number them.
            prototypes: As explanations number them; where they are none, none.

        Raises:
            UsageError: If none would be left, or the family has none to leave out.
        """
        raise UsageError(
            f"{a_head(self.family)} has no features and prototypes that can be left out; train a head that has "
            "some, such as linear"
        )

    def renamed(self, names: Mapping[int, str]) -> Head:
        """Return the head with other names of some features.

        Args:
            names: By the numbers that explanations give features.

        Raises:
            UsageError: If features of the family have no names.
        """
        raise UsageError(f"the features of {a_head(self.family)} have no names; leave --rename-feature out")

    def with_class(self, examples: Tensor, others: Tensor, place: int) -> Head:
        """Return a head with one more class, from what this one sees of some images, without a training.

        The logits of the other classes stay as they are.

        Args:
            examples: Embeddings of images of the class, ``[n, ...]``.
            others: Embeddings of images of the other classes, ``[m, ...]``.
            place: Where among the logits the new one will be.

        Raises:
            UsageError: If the family cannot do that.
        """
        raise UsageError(
            f"{a_head(self.family)} cannot get another class without a training; train it again with the images of "
            "that class among the others"
        )

    def points(self) -> tuple[Tensor, Tensor] | None:
        """Return prototypes that are points among the embeddings, ``[P, D]``, and their classes, int64 ``[P]``.

        Reject scores measure distances to them; by default ``None``: to the means of the classes.
        """
        return None

    # The report and the audit

    def prototype_view(self, x: Tensor) -> PrototypeView | None:
        """Return the prototypes beside images; by default ``None``: there are none.

        Args:
            x: Embeddings.
        """
        return None

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return what the report of a training says of the head; by default nothing.

        Args:
            sample: Training images, as the head sees them; ``None`` where there are none at hand.
        """
        return ()
