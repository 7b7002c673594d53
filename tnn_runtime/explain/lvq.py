"""How the logit of a head of learning vector quantisation came about, and how far an image is from another answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.ranking import logsumexp, softmax
from tnn_runtime.explain.additive import sides, single
from tnn_runtime.explain.base import Added, Counts, Explainer, Values, contrasts, pairs, strongest
from tnn_runtime.explain.certificate import NORMS, Certificate
from tnn_runtime.explain.result import Explanation, FeatureParts, NearPrototype

__all__ = ["LvqExplainer", "LvqExplanation", "LvqFeatureParts"]

_SELU = (1.0507009873554805, 1.6732632423543772)
_LEAK = 0.01

_ACTIVATIONS: dict[str, tuple[Callable[[Values], Values], float]] = {
    "sigmoid": (lambda x: np.exp(-np.logaddexp(0, -x)), 0.25),
    "relu": (lambda x: np.maximum(x, 0), 1.0),
    "tanh": (np.tanh, 1.0),
    "leaky_relu": (lambda x: np.where(x > 0, x, _LEAK * x), 1.0),
    "selu": (
        lambda x: _SELU[0] * np.where(x > 0, x, _SELU[1] * np.expm1(np.minimum(x, 0))),
        _SELU[0] * _SELU[1],
    ),
}
"""What may follow a layer of the network, each with the largest slope that it has."""

_MARGINS = "distances to the prototypes"
_GRADIENT = "a bound of the gradients of the logits"
_NETWORK = ", divided by a bound of how far the network stretches (a product over its layers)"


@dataclass(frozen=True)
class LvqFeatureParts(FeatureParts):
    """What one feature adds to the logit.

    Args:
        by_prototype: What it adds to the lead of each prototype of the class.
    """

    by_prototype: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class LvqExplanation(Explanation):
    """Why a class of a head of learning vector quantisation got its logit.

    ``l_p = (2 (x - s)' Lambda (w_p - s) - |Omega (w_p - s)|^2) / T`` is how much nearer an image is to the prototype
    ``w_p`` than to the centre s. The logit is that of the nearest prototype of the class: a feature adds
    ``2 (x - s)_k (Lambda (w_p - s))_k / T``, and the rest is ``bias``. In a mixture, these are means over the
    prototypes of the class by their responsibilities, and the bias has the logarithm that is left.

    Args:
        leads_of: ``l_p`` of the prototypes of the class.
        is_mixture: Whether the logit is their log-sum-exp, not the largest.
    """

    features: tuple[LvqFeatureParts, ...]
    leads_of: tuple[float, ...] = field(default=(), repr=False)
    is_mixture: bool = field(default=False, repr=False)

    def without(self, features: Iterable[int]) -> float:
        """Return what the logit would be if the image had these features as the centre has them.

        Another prototype of the class may be the nearest then.

        Args:
            features: Indices of features that `features` lists.

        Raises:
            UsageError: If one of them is not listed.
        """
        gone = [self.features[place].by_prototype for place in self._places(features)]
        left = np.array(self.leads_of) - np.array(gone).reshape(-1, len(self.leads_of)).sum(0)
        return float(logsumexp(left[None])[0] if self.is_mixture else left.max())


class LvqExplainer(Explainer):
    """Explains logits from distances to prototypes; the features are the values of the embedding, or latent ones.

    ``head.npz`` has the ``prototypes [P, L]``, their ``owners [P]``, the ``centre [L]``, the ``temperature``, and where
    the head has them ``omega``, ``[L]`` or ``[R, L]``, and of each layer of the network ``weight_N`` and ``bias_N``.
    """

    def shapes(self, options: Any) -> Mapping[str, str]:
        """Return the arrays that ``head.npz`` must have."""
        self._options = options
        latent = "D" if options["latent"] is None else "L"
        shapes = {"prototypes": f"P{latent}", "owners": "P", "centre": latent, "temperature": ""}
        if options["relevances"] != "none":
            shapes["omega"] = latent if options["relevances"] == "vector" else f"R{latent}"
        if options["latent"] is not None:
            # Letters of no use elsewhere stand for the sizes of hidden layers.
            sizes = ["D", *(chr(0x3B1 + place) for place in range(len(options["hidden"]))), "L"]
            for place, (before, after) in enumerate(pairwise(sizes)):
                shapes |= {f"weight_{place}": after + before, f"bias_{place}": after}
            self._layers = len(sizes) - 1
        else:
            self._layers = 0
        return shapes

    def prepare(self, embeddings: Values) -> Values:
        """Return the embeddings, or what the network makes of them, ``[N, L]``."""
        activate, _ = _ACTIVATIONS[self._options["activation"]]
        for place in range(self._layers):
            embeddings = embeddings @ self.arrays[f"weight_{place}"].T + self.arrays[f"bias_{place}"]
            if place < self._layers - 1 or self._options["activate_latent"]:
                embeddings = activate(embeddings)
        return embeddings

    def explain(self, values: Values, ranked: NDArray[np.int64], scores: Values, counts: Counts) -> list[Explanation]:
        """Explain the best classes of one image."""
        compared = pairs(ranked, counts)
        classes = ranked[compared.places]
        terms, leads = self._terms(values), self._leads(values)
        owned = [np.flatnonzero(self._owners == label) for label in classes]
        weights = [self._shares(leads[own]) for own in owned]
        logits = np.array([self._pooled(leads[own]) for own in owned])
        added = np.stack([share @ terms[own] for share, own in zip(weights, owned, strict=True)])
        biases = logits - added.sum(1)
        names = None if self._layers else self.pixel_names
        apart = Added(added, biases, lambda one, other: sides(added[one] - added[other]), names=names)
        found: list[Explanation] = []
        compared_with = contrasts(compared, classes, apart, self.class_names, scores, counts.features)
        for place, contrast in enumerate(compared_with):
            index, own = int(classes[place]), owned[place]
            found.append(
                LvqExplanation(
                    label=self.class_names[index],
                    index=index,
                    score=float(scores[index]),
                    logit=float(logits[place]),
                    parts=sides(added[place]),
                    bias=float(biases[place]),
                    features=tuple(
                        LvqFeatureParts(
                            k,
                            (single(float(added[place, k])),),
                            names[k] if names else None,
                            tuple(terms[own, k].tolist()),
                        )
                        for k in strongest(added[place], counts.features).tolist()
                    ),
                    prototypes=self._prototypes(values, own, weights[place], terms, counts.prototypes),
                    contrast=contrast,
                    certificate=self.certificate(values, index) if place == 0 else None,
                    leads_of=tuple(leads[own].tolist()),
                    is_mixture=self._is_mixture,
                )
            )
        return found

    def feature_parts(self, values: Values, index: int) -> Values:
        """Return what features add above 0, and the sizes of what they add below, ``[2, F]``."""
        added = self._weight_of(values, index) * (values - self.arrays["centre"])
        return np.stack([np.maximum(added, 0), np.maximum(-added, 0)])

    def slopes(self, added: Values, values: Values, maps: Values) -> Values:
        """Return how much more a place adds for each unit of a feature: what is added is linear in it."""
        apart = values - self.arrays["centre"]
        return np.asarray(np.divide(added, apart, out=np.zeros_like(added), where=apart != 0))

    def certificate(self, values: Values, index: int) -> Certificate:
        """Return how far the embedding may move before another class than ``index`` can be the answer.

        The distance of an image to a prototype i less that to another one j is linear in the image, with the gradient
        ``2 Lambda (w_j - w_i)``. It stays below 0 for perturbations shorter than ``(d_j - d_i) / (2 |Lambda (w_i -
        w_j)|)``, with the length of the gradient in the dual norm (Hoelder's inequality). The answer stays as long as
        one prototype i of the class is nearer than all j of other classes, so that the radius is the largest over i of
        the smallest over j (Voracek and Hein 2022, ICML, arXiv 2207.07208). It is at least the hypothesis margin, half
        the difference of the distances themselves (Saralajew, Holdijk and Villmann 2020, NeurIPS 33).

        In a mixture the gradients of logits are means of those of ``l_p``, by responsibilities. So the gradient of the
        difference of two logits is at most the largest ``2 |Lambda (w_i - w_j)| / T`` over prototypes of the two
        classes, and the radius their difference divided by it, the smallest over the other classes.

        Behind a network, the radius is one in the latent space, divided by how far the network stretches in the same
        norm at most: the product of the operator norms of its layers and the largest slopes of the activations.

        Args:
            values: As for `explain`.
            index: The class that is answered.
        """
        is_own = self._owners == index
        own, others = np.flatnonzero(is_own), np.flatnonzero(~is_own)
        gradients = self._kept * ((self._vectors[own, None] - self._vectors[others]) @ self._omega)
        leads = self._leads(values)
        radii = {}
        for norm, (order, dual) in NORMS.items():
            steepest = 2 * np.linalg.norm(gradients, dual, axis=-1) / self._temperature_of
            if self._is_mixture:
                rivals = [self._owners[others] == label for label in np.unique(self._owners[others])]
                ahead = [self._pooled(leads[own]) - self._pooled(leads[others[some]]) for some in rivals]
                radius = _lasting(np.array(ahead), np.array([steepest[:, some].max() for some in rivals])).min()
            else:
                radius = _lasting(leads[own, None] - leads[others], steepest).min(1).max()
            radii[norm] = float(radius / self._stretch(order))
        method = _GRADIENT if self._is_mixture else _MARGINS
        return Certificate("embedding", method + _NETWORK * bool(self._layers), radii)

    # What follows from the arrays alone

    @cached_property
    def _is_mixture(self) -> bool:
        return bool(self._options["pooling"] == "mixture")

    @cached_property
    def _temperature_of(self) -> float:
        return float(self.arrays["temperature"])

    @cached_property
    def _owners(self) -> NDArray[np.int64]:
        return self.arrays["owners"].astype(np.int64)

    @cached_property
    def _kept(self) -> Values:
        kept = np.ones(len(self.arrays["centre"]))
        kept[list(self._options.get("dropped", ()))] = 0
        return kept

    @cached_property
    def _omega(self) -> Values:
        """Omega, ``[R, L]``."""
        omega = self.arrays.get("omega", np.ones(len(self.arrays["centre"])))
        return np.diag(omega) if omega.ndim == 1 else omega

    @cached_property
    def _vectors(self) -> Values:
        """The prototypes from the centre in the space of the distances, ``[P, R]``."""
        return np.asarray((self.arrays["prototypes"] - self.arrays["centre"]) @ self._omega.T)

    @cached_property
    def _weights(self) -> Values:
        """What a unit of each feature adds to ``l_p``, ``[P, L]``."""
        return np.asarray(2 * self._kept * (self._vectors @ self._omega) / self._temperature_of)

    def _stretch(self, order: float) -> float:
        """Return how far the network stretches at most, in the norm of that order."""
        _, slope = _ACTIVATIONS[self._options["activation"]]
        activations = self._layers - (not self._options["activate_latent"])
        norms = [np.linalg.norm(self.arrays[f"weight_{place}"], order) for place in range(self._layers)]
        return float(np.prod(norms) * slope ** max(activations, 0))

    # What depends on the image

    def _terms(self, values: Values) -> Values:
        """Return what each feature adds to ``l_p`` of each prototype, ``[P, L]``."""
        return np.asarray(self._weights * (values - self.arrays["centre"]))

    def _leads(self, values: Values) -> Values:
        """Return ``l_p`` of each prototype, ``[P]``."""
        return np.asarray(self._terms(values).sum(1) - np.square(self._vectors).sum(1) / self._temperature_of)

    def _pooled(self, leads: Values) -> float:
        return float(logsumexp(leads[None])[0] if self._is_mixture else leads.max())

    def _shares(self, leads: Values) -> Values:
        """Return how much each prototype of a class counts in its logit, ``[k]``, which sums to 1."""
        if self._is_mixture:
            return np.asarray(softmax(leads[None])[0])
        return np.asarray(np.arange(len(leads)) == leads.argmax(), np.float64)

    def _weight_of(self, values: Values, index: int) -> Values:
        """Return what a unit of each feature adds to the logit of a class, ``[L]``."""
        own = np.flatnonzero(self._owners == index)
        return np.asarray(self._shares(self._leads(values)[own]) @ self._weights[own])

    def _prototypes(
        self, values: Values, own: NDArray[np.int64], shares: Values, terms: Values, count: int
    ) -> tuple[NearPrototype, ...]:
        """Return the nearest prototypes, each with minus its squared distance as similarity."""
        image = self._omega @ (self._kept * (values - self.arrays["centre"]))
        distances = np.square(image - self._vectors).sum(1)
        contributions = np.zeros(len(distances))
        contributions[own] = shares * terms[own].sum(1)
        return tuple(
            NearPrototype(
                place,
                self.class_names[self._owners[place]],
                -float(distances[place]),
                float(contributions[place]),
            )
            for place in np.argsort(distances, kind="stable")[:count].tolist()
        )


def _lasting(ahead: Values, steepest: Values) -> Values:
    """Return how far leads last, of any shape; not at all where the prototypes are at the same place."""
    return np.asarray(np.divide(np.maximum(ahead, 0), steepest, out=np.zeros_like(ahead), where=steepest > 0))
