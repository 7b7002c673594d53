"""Any linear layer as a Tversky head over attributes that classes share, with the same predictions.

Let ``S [C, K]`` say with 1 and -1 which class has which attribute, and let ``P`` take the mean over the classes away.
With ``A = (P S)^+ P``, each attribute k is a direction ``omega = (A W)_k`` and a threshold ``tau = -(A bias)_k``; being
without it is the mirrored feature, ``-omega`` and ``-tau``. Prototypes have the feature values ``t S`` and ``-t S``. In
the contrast model with product, ignorematch, hard membership, ``theta t = alpha = 1`` and ``beta = 0``, an attribute and
its opposite add ``S_ck (omega_k x - tau_k)`` to the logit of class c, which is ``W x + bias`` in the sum: but for the
mean over the classes and for what all classes lose alike, which no softmax sees.

The sums are long, so the algebra is in float64, and the prototypes are kept as feature values.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from tnn_runtime.errors import UsageError
from tnn_train.heads.tversky.attributes import Attribute, class_attributes, code_of, completed, hierarchy
from tnn_train.heads.tversky.config import TverskyConfig
from tnn_train.heads.tversky.head import TverskyHead

__all__ = ["FORM", "find_attributes", "unfold"]

_SALIENCE = 2.0
"""t: powers of two leave no rounding error in ``theta t = alpha``."""

FORM = {
    "model": "contrast",
    "intersection": "product",
    "difference": "ignorematch",
    "membership": "hard",
    "normalize": False,
    "feature_bank": "learned",
    "num_prototypes": None,
    "thresholds": True,
    "mirrored": True,
    "prototype_space": "feature",
    "alpha": 1.0,
    "beta": 0.0,
    "theta": 1.0 / _SALIENCE,
}
"""The form of an unfolded head."""


def find_attributes(weight: Tensor, code: str) -> tuple[Attribute, ...]:
    """Return attributes for the classes of a linear layer.

    Args:
        weight: ``[C, D]``.
        code: ``"classes"`` or ``"hierarchy"``.
    """
    return class_attributes(len(weight)) if code == "classes" else hierarchy(weight.detach().double().cpu())


@torch.no_grad()
def unfold(weight: Tensor, bias: Tensor | None, config: TverskyConfig) -> TverskyHead:
    """Return the Tversky head with the predictions of a linear layer, float32 on the CPU.

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
    attributes = completed(config.attributes or find_attributes(w, config.code), len(w))
    code = code_of(attributes, len(w))
    solution = torch.linalg.pinv(code - code.mean(0))
    solution = solution - solution.mean(1, keepdim=True)
    form = dataclasses.replace(config, **FORM, num_features=2 * len(attributes), attributes=attributes)
    head = TverskyHead(w.shape[1], len(w), form)
    assert head.feature_bank is not None and head.thresholds is not None
    head.feature_bank.copy_(solution @ w)
    head.thresholds.copy_(-solution @ b)
    head.prototypes.copy_(_SALIENCE * torch.cat([code, -code], 1))
    return head
