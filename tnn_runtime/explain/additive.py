"""What families have in common whose logit is a sum over features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.explain.base import Added, Counts, Explainer, Values, contrasts, pairs, strongest
from tnn_runtime.explain.result import Explanation, FeatureParts, NearPrototype, Part

__all__ = ["AdditiveExplainer", "sides", "single"]


class AdditiveExplainer(Explainer):
    """Explains a head whose logit is one term a feature, and a bias: ``logit = supporting - opposing + bias``.

    ``supporting`` is the sum of the positive terms, ``opposing`` the size of the sum of the negative ones. A family
    implements `shapes` and `terms`, and `bias`, `names` and `prototypes` where it has them.
    """

    @abstractmethod
    def terms(self, values: Values, classes: NDArray[np.int64]) -> Values:
        """Return what each of F features adds to the logits of K classes, ``[K, F]``."""

    def bias(self, classes: NDArray[np.int64]) -> Values:
        """Return what is added to the logits of K classes whatever the input is, ``[K]``; by default nothing."""
        return np.zeros(len(classes))

    @property
    def names(self) -> Sequence[str | None] | None:
        """The names of the features, ``None`` for those without one; by default none has a name."""
        return None

    def prototypes(
        self, values: Values, ranked: NDArray[np.int64], index: int, count: int
    ) -> tuple[NearPrototype, ...]:
        """Return the nearest prototypes, most similar first; by default none.

        Args:
            values: As for `explain`.
            ranked: As for `explain`.
            index: The class that is explained.
            count: How many, at most.
        """
        return ()

    def explain(self, values: Values, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain the best classes of one image."""
        compared = pairs(ranked, counts)
        classes = ranked[compared.places]
        added = self.terms(values, classes)
        biases, names = self.bias(classes), self.names
        apart = Added(added, biases, lambda one, other: sides(added[one] - added[other]), names=names)
        found = []
        for place, contrast in enumerate(
            contrasts(compared, classes, apart, self.class_names, scores, counts.features)
        ):
            index, terms, bias = int(classes[place]), added[place], float(biases[place])
            supporting, opposing = sides(terms)
            found.append(
                Explanation(
                    label=self.class_names[index],
                    index=index,
                    score=float(scores[index]),
                    logit=supporting.value - opposing.value + bias,
                    parts=(supporting, opposing),
                    bias=bias,
                    features=tuple(
                        FeatureParts(k, (single(term),), names[k] if names else None)
                        for k, term in ((k, float(terms[k])) for k in strongest(terms, counts.features).tolist())
                    ),
                    prototypes=self.prototypes(values, ranked, index, counts.prototypes),
                    contrast=contrast,
                )
            )
        return found

    def feature_parts(self, values: Values, index: int) -> Values:
        """Return the terms above 0 and the sizes of those below, ``[2, F]``."""
        terms = self.terms(values, np.array([index]))
        return np.concatenate([np.maximum(terms, 0), np.maximum(-terms, 0)])


def sides(terms: Values) -> tuple[Part, Part]:
    """Return the sum of the terms above 0, and the size of that of the others."""
    return _supporting(float(terms[terms > 0].sum())), _opposing(float(np.abs(terms[terms < 0]).sum()))


def single(term: float) -> Part:
    """Return the part that one term is of."""
    return _supporting(term) if term >= 0 else _opposing(-term)


def _supporting(value: float) -> Part:
    return Part("supporting", 1, value)


def _opposing(value: float) -> Part:
    return Part("opposing", -1, value)
