"""Any linear layer as a Tversky head over attributes that classes share, with the same predictions.

Let ``B [C, K]`` say with 1 and 0 which class has which attribute, and let ``P`` take the mean over the classes away.
With ``A = (P B)^+ P``, the value of attribute k is ``z_k = (A (W x + bias))_k``: a direction ``omega = (A W)_k`` and a
threshold ``tau = -(A bias)_k``. Its feature has this value, and an opposite feature, "not k", has ``-r z_k``. A
prototype has the attributes of its class, with the value ``t``, and of the others "not k", with the value ``v``.

In the contrast model with product, ignorematch, hard membership and ``beta = 0``, an attribute with ``z_k > 0`` adds
``theta t z_k`` to the logits of the classes that have it and takes ``alpha z_k`` from the others. One with ``z_k < 0``
adds ``theta v r |z_k|`` to those that lack it and takes ``alpha r |z_k|`` from those that have it. With
``theta t + alpha = (theta v + alpha) r = 1``, classes that have it and classes that lack it differ by ``z_k``, as in
``B z``, whatever its sign is. ``B z`` is ``W x + bias`` but for a number that is the same for all classes, which no
softmax sees, and so are the logits of the head.

Since ``v`` is small beside ``t``, what an image shares with a prototype is mostly what speaks for its class, and what
only the image has is mostly what speaks against it: with ``v = t`` most of either would be the same for all classes.

The scalars say no more than the bank and the prototypes can: the logits stay as they are where the bank is multiplied
by a number, alpha is divided by it, and the prototypes follow. So a training leaves them as they are.

The sums are long, so the algebra is in float64, and the prototypes are kept as feature values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tnn_runtime.errors import UsageError
from tnn_train.heads.tversky.attributes import Attribute, class_attributes, code_of, completed, hierarchy
from tnn_train.heads.tversky.config import TverskyConfig

__all__ = ["FIXED", "FORM", "Unfolded", "gradients_by_class", "unfold"]

_HAS, _LACKS = 8.0, 1.0
"""t and v: the values of a prototype's attributes, and of the opposites of those that it lacks."""

_ALPHA = 0.25
_THETA = (1 - _ALPHA) / _HAS

FORM: dict[str, Any] = {
    "model": "contrast",
    "intersection": "product",
    "difference": "ignorematch",
    "membership": "hard",
    "normalize": False,
    "feature_bank": "learned",
    "num_prototypes": None,
    "thresholds": True,
    "opposites": 1 / (_THETA * _LACKS + _ALPHA),
    "prototype_space": "feature",
    "alpha": _ALPHA,
    "beta": 0.0,
    "theta": _THETA,
}
"""The form of an unfolded head."""

FIXED = ("alpha", "beta", "theta")
"""The scalars that a training of an unfolded head leaves as they are."""


def _find_attributes(weight: Tensor, code: str) -> tuple[Attribute, ...]:
    """Return attributes for the classes of a linear layer.

    Args:
        weight: ``[C, D]``.
        code: ``"classes"`` or ``"hierarchy"``.
    """
    return class_attributes(len(weight)) if code == "classes" else hierarchy(weight.detach().double().cpu())


class Unfolded(NamedTuple):
    """A Tversky head with the predictions of a linear layer; K attributes give 2 K features."""

    config: TverskyConfig
    """Its form."""

    feature_bank: Tensor
    """The directions of the attributes, float64 ``[K, D]``."""

    thresholds: Tensor
    """float64 ``[K]``."""

    prototypes: Tensor
    """The feature values of one prototype for each class, float64 ``[C, 2 K]``."""


def unfold(weight: Tensor, bias: Tensor | None, config: TverskyConfig) -> Unfolded:
    """Return the Tversky head with the predictions of a linear layer, in float64 on the CPU.

    Args:
        weight: ``[C, D]``.
        bias: ``[C]``; ``None`` for none.
        config: Whose attributes are used, and whose ``code`` where it has none; its form is that of `FORM`, and its
            fixed scalars stay fixed.

    Raises:
        UsageError: If a value is no finite number.
    """
    w = weight.detach().cpu().double()
    b = w.new_zeros(len(w)) if bias is None else bias.detach().cpu().double()
    for name, tensor in (("weight", w), ("bias", b)):
        if not bool(tensor.isfinite().all()):
            raise UsageError(
                f"the {name} of the linear layer has {int((~tensor.isfinite()).sum())} values that are no finite "
                "numbers, and cannot be unfolded; train it again"
            )
    attributes = completed(config.attributes or _find_attributes(w, config.code), len(w))
    code = code_of(attributes, len(w))
    solution = torch.linalg.pinv(code - code.mean(0))
    solution = solution - solution.mean(1, keepdim=True)
    return Unfolded(
        dataclasses.replace(config, **FORM, num_features=2 * len(attributes), attributes=attributes),
        solution @ w,
        -solution @ b,
        torch.cat([torch.where(code > 0, _HAS, -_HAS), torch.where(code > 0, -_HAS, _LACKS)], 1).double(),
    )


def gradients_by_class(attributes: Sequence[Attribute], num_classes: int) -> Tensor:
    """Return how the gradients of an unfolded bank follow from those of the linear layer's weight, float64 ``[K, C]``.

    A step of the value of an attribute is one of the logits of its classes, so its gradient is the sum of theirs. The
    gradients of all classes add up to 0, as the softmax sees differences alone: where most classes have the attribute,
    it is minus the sum of the others.

    Args:
        attributes: Of the head.
        num_classes: C.
    """
    code = code_of(attributes, num_classes)
    return torch.where(2 * code.sum(0) > num_classes, code - 1, code).T
