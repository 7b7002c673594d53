"""A trained Tversky head without some features or prototypes, with names of features, or with one more class."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.explain.attributes import feature_names
from tnn_train.heads.feature_name import FeatureName
from tnn_train.heads.new_class import Company, inserted
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.config import EMBEDDING, TverskyConfig
from tnn_train.heads.tversky.projection import TverskyProjection

__all__ = ["names_of_features", "renamed", "with_class", "without"]

H = TypeVar("H", bound=TverskyProjection)


def names_of_features(config: TverskyConfig, class_names: Sequence[str], num_features: int) -> tuple[str | None, ...]:
    """Return what explanations call each feature of a head, ``None`` for those without a name.

    Args:
        config: The form of the head.
        class_names: One name for each class.
        num_features: F.
    """
    attributes = [(attribute.name, attribute.classes) for attribute in config.attributes]
    given = {one.index: one.name for one in config.names}
    return feature_names(attributes, class_names, num_features, given, has_opposites=bool(config.opposites))


def without(head: H, features: Collection[int], prototypes: Collection[int]) -> H:
    """Return a head as it is without some features and prototypes; see `tnn_train.heads.Head.without`."""
    config = head.config
    if again := {*config.dropped} & {*features}:
        raise UsageError(f"feature {min(again)} is left out already")
    gone = tuple(sorted({*config.dropped, *features}))
    if len(gone) == head.num_features:
        raise UsageError(f"all {len(gone)} features are left out; leave at least one")
    state = head.state_dict()
    if prototypes:
        if head.linear is None:
            raise UsageError(
                f"prototype {min(prototypes)} is the only one of its class, which nothing could be without it; only "
                "heads with a linear map behind their prototypes (num_prototypes) can do without some"
            )
        left = [index for index in range(len(head.prototypes)) if index not in prototypes]
        if not left:
            raise UsageError(f"all {len(head.prototypes)} prototypes are left out; leave at least one")
        config = dataclasses.replace(config, num_prototypes=len(left))
        state |= {"prototypes": state["prototypes"][left], "linear.weight": state["linear.weight"][:, left]}
    return _made(head, head.num_classes, dataclasses.replace(config, dropped=gone), state)


def renamed(head: H, names: Mapping[int, str]) -> H:
    """Return a head whose explanations call features by these names; see `tnn_train.heads.Head.renamed`."""
    config = head.config
    attributes = config.attributes if config.opposites else ()
    given = {**{one.index: one.name for one in config.names}, **names}
    config = dataclasses.replace(
        config,
        attributes=tuple(
            dataclasses.replace(attribute, name=names.get(index, attribute.name))
            for index, attribute in enumerate(attributes)
        ),
        names=tuple(FeatureName(index, name) for index, name in sorted(given.items()) if index >= len(attributes)),
    )
    return _made(head, head.num_classes, config, head.state_dict())


def with_class(head: H, examples: Tensor, others: Tensor, place: int) -> H:
    """Return a head with one more class; see `tnn_train.heads.Head.with_class`.

    The new prototype is the mean of the embeddings, or the feature values of the mean where prototypes are feature
    values, times a scale: those that a training leaves have the scale that the loss gave them, and logits follow it.
    Where a linear map follows the prototypes, the new class gets its logit from the new prototype alone, with a weight
    and a bias. No image is known of the new prototype, so that those of the others are not kept either.
    """
    a = head.project(torch.cat([examples, others]))
    company = Company(head(torch.cat([examples, others])), torch.arange(len(a)) < len(examples))
    prototype, config, state = examples.mean(0), head.config, head.state_dict()
    if config.prototype_space == "feature":
        prototype = head.project(prototype)
    if head.linear is None:
        scaled = (scale * prototype for scale in _scales())
        prototype = min(scaled, key=lambda one: company.loss(_logit(head, a, one)))
        state["prototypes"] = inserted(state["prototypes"], prototype, place)
    else:
        logit = _logit(head, a, prototype)
        old = functional.pad(state["linear.weight"], (0, 1))
        new = torch.zeros_like(old[0])
        new[-1] = company.gain(logit)
        bias = torch.tensor(company.bias(new[-1] * logit))
        state |= {
            "prototypes": inserted(state["prototypes"], prototype, len(head.prototypes)),
            "linear.weight": inserted(old, new, place),
            "linear.bias": inserted(state["linear.bias"], bias, place),
        }
        config = dataclasses.replace(config, num_prototypes=len(head.prototypes) + 1)
    config = dataclasses.replace(config, domain=EMBEDDING)
    has = (_values(head, prototype) > 0).tolist()
    attributes = tuple(_shared(attribute, place, has[k]) for k, attribute in enumerate(config.attributes))
    return _made(head, head.num_classes + 1, dataclasses.replace(config, attributes=attributes), state)


def _scales() -> list[float]:
    """Return the scales to choose from, those near 1 first: of equally good ones, the first is taken."""
    return [10 ** (sign * step / 40) for step in range(121) for sign in (1, -1)]


def _logit(head: TverskyProjection, a: Tensor, prototype: Tensor) -> Tensor:
    """Return the scaled similarities ``[n]`` of feature values ``a [n, F]`` to one more prototype."""
    return head.logit_scale * head.compare(a, _values(head, prototype).unsqueeze(0)).squeeze(1)


def _values(head: TverskyProjection, prototype: Tensor) -> Tensor:
    """Return the feature values ``[F]`` of a prototype."""
    return head.project(prototype) if head.config.prototype_space == "embedding" else prototype


def _shared(attribute: Attribute, place: int, has: bool) -> Attribute:
    """Return an attribute after a class was put in at ``place``, which may have it."""
    classes = [index + (index >= place) for index in attribute.classes] + [place] * has
    return dataclasses.replace(attribute, classes=tuple(sorted(classes)))


def _made(head: H, num_classes: int, config: TverskyConfig, state: Mapping[str, Tensor]) -> H:
    made = type(head)(head.in_features, num_classes, config).to(head.prototypes)
    made.load_state_dict(state)
    return made.train(head.training)
