"""The figures of one model, and of two seeds, by the names of `tnn_train.audit.measures.MEASURES`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tnn_train.audit.pixels import (
    REFERENCES,
    Margins,
    margin_maps,
    need_captum,
    relevance_of,
    remove_pixels,
)
from tnn_train.audit.prototypes import (
    activation_entropy,
    centrality,
    duplicate_share,
    margin_to_nearest,
    nearest_of_class,
    separation,
    typicality,
)
from tnn_train.audit.removal import Curves, remove_features
from tnn_train.audit.seeds import correlations, match, within_classes
from tnn_train.audit.shifts import SHIFTS, named_overlap, same_class, shifted
from tnn_train.audit.sizes import entropy, gini, size
from tnn_train.audit.subject import Subject

__all__ = ["Figures", "audit_pair", "audit_subject"]

_LISTED = 64
"""How many features to list where only the named ones are asked for."""


@dataclass(frozen=True)
class Figures:
    """What was measured of a model.

    Args:
        values: By the names of the measures; what cannot be measured of it is left out.
        curves: The deletion and insertion curves, if they were asked for.
    """

    values: Mapping[str, float]
    curves: Curves | None = field(default=None, compare=False)


def audit_subject(subject: Subject, sections: Collection[str]) -> Figures:
    """Measure one model.

    Args:
        subject: The model and its images.
        sections: Keys of `tnn_train.audit.measures.SECTIONS`; of ``seeds`` there is nothing in a single model.

    Raises:
        UsageError: If a section is about explanations and the head has none.
    """
    values: dict[str, float] = {}
    curves: list[Curves] = []
    for section, measure in _OF_ONE.items():
        if section in sections:
            values |= measure(subject, curves)
    known = {name: value for name, value in values.items() if not np.isnan(value)}
    return Figures(known, curves[0] if curves else None)


def audit_pair(first: Subject, second: Subject) -> dict[str, float]:
    """Measure how far two seeds lead to the same; both have the same images.

    Args:
        first: The model of one seed.
        second: That of the other.
    """
    values = {"stability_features": match(feature_values(first), feature_values(second), signed=False).mean}
    ours, theirs = first.prototypes, second.prototypes
    if ours is None or theirs is None:
        return values
    profiles = [_array(view.similarities) for view in (ours, theirs)]
    matched = match(*profiles)
    first_places, second_places = matched.pairs.T
    within = [within_classes(one, first.labels) for one in profiles]
    same_owner = ours.owners[first_places] == theirs.owners[second_places]
    return {
        "stability": matched.mean,
        "stability_within": float(correlations(within[0][:, first_places], within[1][:, second_places]).mean()),
        "paired_by_class": float(same_owner.double().mean()),
        **values,
    }


def feature_values(subject: Subject) -> NDArray[np.float64]:
    """Return the values of the features that explanations speak of, float64 ``[n, F]``."""
    return subject.explainer.prepare(subject.embeddings.numpy().astype(np.float64))


def _features(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    removal = remove_features(subject.explained)
    curves.append(removal.curves)
    shares = removal.curves.steps / removal.curves.steps[-1]
    return {
        "named_win": removal.wins,
        "named_drop": float(removal.named.mean()),
        "random_drop": float(removal.random.mean()),
        "margin": float(removal.margin.mean()),
        "logit_win": removal.wins_of_logit,
        "sufficient": removal.suffices,
        "deletion": float(np.trapezoid(removal.curves.deletion, shares)),
        "random_deletion": float(np.trapezoid(removal.curves.random_deletion, shares)),
    }


def _explanations(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    total = len(subject.explained[0].best.features)
    effects = np.zeros((len(subject.explained), total))
    for row, one in zip(effects, subject.explained, strict=True):
        leads = [lead.value for lead in one.contrast.features]
        row[: len(leads)] = leads
    values = feature_values(subject)
    return {
        "size": float(np.mean([size(row) for row in effects])),
        "entropy": float(np.mean([entropy(row) for row in effects])),
        "sparsity": float(np.mean([gini(row) for row in effects])),
        "duplicate_features": duplicate_share((values - values.mean(0)).T),
    }


def _shifts(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    before = subject.explain(subject.embeddings, _LISTED)
    moved = [subject.explain(subject.embed(shifted(subject.images, *shift)), _LISTED) for shift in SHIFTS]
    overlaps = [named_overlap(before, after) for after in moved]
    return {
        "same_class": float(np.mean([same_class(before, after) for after in moved])),
        "same_named": float(np.nanmean(overlaps)) if not np.isnan(overlaps).all() else float("nan"),
    }


def _pixels(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    relevance = relevance_of(margin_maps(subject), *subject.images.shape[1:3])
    return {f"map_{name}": value for name, value in remove_pixels(relevance, Margins(subject).drop).items()}


def _references(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    need_captum()
    margins = Margins(subject)
    found = {name: remove_pixels(margins.attribute(method), margins.drop) for name, method in REFERENCES.items()}
    return {f"{name}_{what}": values[what] for name, values in found.items() for what in ("win", "drop")}


def _prototypes(subject: Subject, curves: list[Curves]) -> dict[str, float]:
    view = subject.prototypes
    if view is None:
        return {}
    images, prototypes, similarities = map(_array, (view.images, view.prototypes, view.similarities))
    owners = view.owners.cpu().numpy()
    placed = images, subject.labels, prototypes, owners
    return {
        "centrality": _mean(centrality(*placed)),
        "centred": _mean(centrality(images - images.mean(0), subject.labels, prototypes - prototypes.mean(0), owners)),
        "nearest_margin": _mean(margin_to_nearest(*placed)),
        "typicality": _mean(typicality(*placed)),
        "purity": _mean(nearest_of_class(similarities, subject.labels, owners)),
        "separation": separation(prototypes, owners),
        "duplicate_prototypes": duplicate_share(prototypes),
        "activation_entropy": _mean(activation_entropy(similarities)),
    }


_OF_ONE: dict[str, Callable[[Subject, list[Curves]], dict[str, float]]] = {
    "features": _features,
    "explanations": _explanations,
    "shifts": _shifts,
    "pixels": _pixels,
    "references": _references,
    "prototypes": _prototypes,
}


def _array(tensor: torch.Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
