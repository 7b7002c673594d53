"""What a head family has to provide to be explained, and what the families have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import largest, softmax
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.explain.places import Values, proportions, spread
from tnn_runtime.explain.result import Contrast, Explanation, FeatureLead, Maps, Part
from tnn_runtime.explain.rival import RUNNER_UP
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.options import shown

__all__ = ["Added", "Counts", "Explainer", "Pairs", "Values", "contrasts", "pairs", "strongest"]


_CHANNELS = ("red", "green", "blue")


class Counts(NamedTuple):
    """How many classes to explain for each image, and how many features and prototypes to list for each class.

    Args:
        classes: How many classes.
        features: How many features.
        prototypes: How many prototypes.
        against: The class to compare them with; ``None`` for the best other one.
    """

    classes: int
    features: int
    prototypes: int
    against: int | None = None


class Pairs(NamedTuple):
    """Which classes have to be measured, and which of them are compared.

    Args:
        places: Where they are in the ranking, those to be explained first.
        rivals: For each of those to be explained which one of ``places`` it is compared with, counted from 0; ``None``
            if there is no other class.
    """

    places: list[int]
    rivals: list[int | None]


class Added(NamedTuple):
    """What is added to the logits of the K classes of `Pairs`: what each would lose without it.

    Args:
        features: By each feature, ``[K, F]``.
        biases: Whatever the input is, ``[K]``.
        parts: Returns what the parts do to the difference of the logits of two of the classes.
        logits: The logits, ``[K]``, where they are not the sums of these.
        names: The names of the features, ``None`` for those without one; ``None`` if none has a name.
        present: Which features the input has, ``[F]``; ``None`` if they are had to a degree.
    """

    features: Values
    biases: Values
    parts: Callable[[int, int], tuple[Part, ...]]
    logits: Values | None = None
    names: Sequence[str | None] | None = None
    present: NDArray[np.bool_] | None = None


class Explainer(ABC):
    """Explains the logits of a head from embeddings, in float64.

    A family is a subclass that implements `shapes` and `explain`, and has an entry in `tnn_runtime.explain.EXPLAINERS`.
    Where the logit is a sum over features, `tnn_runtime.explain.additive.AdditiveExplainer` does most of it.

    Args:
        path: ``head.npz`` of the bundle: what ``Head.arrays`` of the family returned at the export.
        options: The family's own configuration in the manifest; ``None`` if it has none.
        class_names: C names.
        size: D, the size of an embedding, or the channels of a map.
        content: What is in the file, if it has been read already.
        temperature: What logits are divided by for scores; ``None`` for nothing.

    Attributes:
        needs_file: Whether a bundle of the family without ``head.npz`` is damaged. Where that is normal, such as for
            bundles that an older version exported, it is loaded and cannot be explained.
        arrays: The arrays of the file by name, float64.
        class_names: The names of the classes.
        pixels: Where the embedding is the pixels themselves, what became of them; else ``None``.

    Raises:
        ArtifactError: If the file cannot be read or does not fit, or the options are unknown to this version.
    """

    needs_file: ClassVar[bool] = True
    pixels: Preprocessing | None = None

    def __init__(
        self,
        path: Path,
        options: Any,
        class_names: Sequence[str],
        size: int,
        content: bytes | None = None,
        temperature: float | None = None,
    ) -> None:
        self.class_names = tuple(class_names)
        self._temperature = temperature
        shapes = self.shapes(options)
        found = read_arrays(path, *shapes, content=content)
        self.arrays = {name: array.astype(np.float64) for name, array in found.items()}
        if not all(np.isfinite(array).all() for array in self.arrays.values()):
            raise ArtifactError(f"{path} has values that are no finite numbers; export the bundle again")
        sizes = {"C": len(self.class_names), "D": size}
        if not all(_fits(array.shape, shapes[name], sizes) for name, array in self.arrays.items()):
            shown = {name: list(array.shape) for name, array in self.arrays.items()}
            raise ArtifactError(
                f"{path} has the shapes {shown} for {len(self.class_names)} classes and embeddings of {size} values; "
                "export the bundle again"
            )

    def __call__(
        self,
        embeddings: NDArray[np.float32],
        logits: NDArray[np.float32],
        top_k: int = 3,
        num_features: int = 5,
        num_prototypes: int = 3,
        against: int | None = None,
        maps: NDArray[np.float32] | None = None,
    ) -> list[list[Explanation]]:
        """Explain the best classes of each image.

        Args:
            embeddings: What the head takes, as the graph gave it: ``[N, D]``, or maps ``[N, D, h, w]``.
            logits: What it gave with them, ``[N, C]``: they choose the classes.
            top_k: How many classes to explain for each image.
            num_features: How many of the strongest features to list for each class.
            num_prototypes: How many of the nearest prototypes to list, in families that have prototypes.
            against: The class to compare the others with, which is itself compared with the best one; ``None`` for the
                best other one.
            maps: The feature maps that the graph gave, ``[N, F, h, w]``, if the explanations shall have maps.

        Returns:
            For each image its explanations, the class with the largest logit first.

        Raises:
            UsageError: If the best class of an image is the one to compare it with.
            ArtifactError: If there are maps of another number of features than the head has.
        """
        counts = Counts(top_k, num_features, num_prototypes, against)
        values = self.prepare(embeddings.astype(np.float64))
        ranked = largest(logits, max(top_k, num_prototypes, 2))
        explained = [
            self.explain(one, self._with_rival(order, against), scores, counts)
            for one, order, scores in zip(values, ranked, softmax(logits, self._temperature), strict=True)
        ]
        if maps is None:
            return explained
        if maps.shape[:2] != values.shape:
            raise ArtifactError(
                f"the model gives maps of {maps.shape[1]} features, and its head has {values.shape[1]}; export the "
                "bundle again"
            )
        return [
            [replace(explanation, maps=self._maps(explanation, one, places)) for explanation in explanations]
            for explanations, one, places in zip(explained, values, maps.astype(np.float64), strict=True)
        ]

    def _maps(self, explanation: Explanation, values: Values, maps: Values) -> Maps:
        """Return where an explanation comes from, by feature values ``[F]`` and feature maps ``[F, h, w]``."""
        added = self.feature_parts(values, explanation.index)
        slopes = self.slopes(added, values, maps)
        parts = self.placed(added, slopes, maps)
        signs = np.array([[part.sign] for part in explanation.parts])
        features = [
            self.placed((signs * added)[:, [k]], (signs * slopes)[:, [k]], maps[[k]]).sum(0)
            for k in (feature.index for feature in explanation.features)
        ]
        logit = self.logit_map(explanation, parts)
        return Maps(*(np.asarray(values, np.float32) for values in (logit, parts, features)))

    def _with_rival(self, ranked: NDArray[np.int64], against: int | None) -> NDArray[np.int64]:
        """Return a ranking that has the class to compare with, last if it was not among the best ones."""
        if against is None:
            return ranked
        if ranked[0] == against:
            name = shown(self.class_names[against])
            raise UsageError(
                f"against is {name}, and {name} is the best class of the image itself; expected another class, or "
                f"{RUNNER_UP!r}"
            )
        return ranked if against in ranked else np.append(ranked, against)

    @abstractmethod
    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have, each with a letter for every dimension.

        C stands for the number of classes and D for ``size``; any other letter stands for a size that is the same
        wherever the letter is. A number is ``""``.
        """

    @cached_property
    def pixel_names(self) -> Sequence[str] | None:
        """The names of the values of an embedding, where these are the pixels themselves; else ``None``."""
        if self.pixels is None:
            return None
        height, width, channels = self.pixels.shape
        names = [f"pixel ({row}, {column})" for row in range(height) for column in range(width)]
        return names if channels == 1 else [f"{channel} of {name}" for channel in _CHANNELS for name in names]

    def prepare(self, embeddings: Values) -> Values:
        """Return what `explain` takes, ``[N, ...]``, of embeddings ``[N, D]`` or maps ``[N, D, h, w]``.

        By default it takes these as they are.
        """
        return embeddings

    @abstractmethod
    def explain(self, values: Values, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain the best classes of one image.

        Args:
            values: What `prepare` returned for it, by default its embedding ``[D]`` or map ``[D, h, w]``.
            ranked: The classes with the largest logits, largest first: enough for all `counts`, and at least two; or
                all classes. Then comes the class to compare with, if it is not among them.
            scores: The probabilities of the classes, ``[C]``.
            counts: How much to explain: the first ``counts.classes`` of ``ranked``.
        """

    def feature_parts(self, values: Values, index: int) -> Values:
        """Return what each feature adds to each part of the logit of a class, ``[parts, F]``.

        This and the next three are asked for by families whose features have maps.

        Args:
            values: As for `explain`, ``[F]``.
            index: The class.
        """
        raise NotImplementedError

    def slopes(self, added: Values, values: Values, maps: Values) -> Values:
        """Return how much more a place adds to each part for each unit of a feature, ``[parts, F]``; 0 spreads evenly.

        By default what is added is spread in proportion to the feature map.

        Args:
            added: What features add, ``[parts, F]``.
            values: As for `explain`, ``[F]``.
            maps: Where the features lie, ``[F, h, w]``.
        """
        return proportions(added, values)

    def placed(self, added: Values, slopes: Values, maps: Values) -> Values:
        """Return what features add to each part at each place, ``[parts, h, w]``.

        By default the mean over all places is what they add in all: `tnn_runtime.explain.places.spread`.

        Args:
            added: What features add, ``[parts, F]``.
            slopes: As `slopes` returns them, ``[parts, F]``.
            maps: Where the features lie, ``[F, h, w]``.
        """
        return spread(added, slopes, maps)

    def logit_map(self, explanation: Explanation, parts: Values) -> Values:
        """Return the map of the logit without the bias, ``[h, w]``, of those of its parts, ``[parts, h, w]``.

        By default these add up, each with its sign.
        """
        return np.tensordot([part.sign for part in explanation.parts], parts, 1)


def strongest(parts: Values, count: int) -> NDArray[np.int64]:
    """Return the features with the largest absolute values in parts ``[..., F]`` of any kind, strongest first."""
    return np.argsort(-np.abs(parts).reshape(-1, parts.shape[-1]).max(axis=0), kind="stable")[:count]


def pairs(ranked: NDArray[np.int64], counts: Counts) -> Pairs:
    """Return which classes of a ranking, as `Explainer.explain` gets it, have to be measured and compared."""
    explained = list(range(min(counts.classes, len(ranked))))
    if len(ranked) == 1:
        return Pairs(explained, [None])
    if counts.against is None:
        return Pairs(list(range(max(len(explained), 2))), [0 if place else 1 for place in explained])
    other = int(np.flatnonzero(ranked == counts.against)[0])
    places = explained if other in explained else [*explained, other]
    compared = places.index(other)
    return Pairs(places, [0 if place == compared else compared for place in explained])


def contrasts(
    found: Pairs, classes: NDArray[np.int64], added: Added, class_names: Sequence[str], scores: Values, count: int
) -> list[Contrast | None]:
    """Return for each class that is explained what sets it apart from the one that it is compared with.

    Args:
        found: Which classes are compared.
        classes: Those of ``found.places``, ``[K]``.
        added: What is added to their logits.
        class_names: The names of all classes.
        scores: The softmax probabilities of all classes.
        count: How many features to list, at most.
    """

    def contrast(one: int, other: int) -> Contrast:
        ahead = added.features[one] - added.features[other]
        bias = float(added.biases[one] - added.biases[other])
        parts = added.parts(one, other)
        whole = sum(part.signed for part in parts) + bias
        difference = whole if added.logits is None else float(added.logits[one] - added.logits[other])
        listed = [k for k in strongest(ahead, count).tolist() if ahead[k]]
        index = int(classes[other])
        return Contrast(
            label=class_names[index],
            index=index,
            score=float(scores[index]),
            difference=difference,
            parts=parts,
            bias=bias,
            features=tuple(
                FeatureLead(
                    k,
                    added.names[k] if added.names else None,
                    float(ahead[k]),
                    None if added.present is None else bool(added.present[k]),
                )
                for k in listed
            ),
            rest=float(np.delete(ahead, listed).sum())
            + (0.0 if added.logits is None else difference - bias - float(ahead.sum())),
            interplay=difference - whole,
            is_sum=added.logits is None,
        )

    return [None if other is None else contrast(one, other) for one, other in enumerate(found.rivals)]


def _fits(shape: tuple[int, ...], letters: str, sizes: dict[str, int]) -> bool:
    """Return whether a shape is what letters stand for, and enter the sizes of new letters into ``sizes``."""
    return len(shape) == len(letters) and all(
        sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True)
    )
