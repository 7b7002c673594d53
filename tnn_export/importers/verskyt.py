"""The layer of the package verskyt: a smooth ratio model.

With ``a = x bank^T`` and ``b = p bank^T`` it returns (I + theta) / (I + alpha A + beta B + theta). Its ignorematch is
the paper's; its substractmatch counts what shared features exceed each other by, and nothing of the others: the excess
of this head. Its intersections but product and min count features that only one of the two has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tnn_export.importers.source import Converted, Options, Source, Tensors
from tnn_runtime.errors import UsageError
from tnn_train.fields import choose

__all__ = ["VERSKYT"]

_INTERSECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"product": torch.mul, "min": torch.minimum}
_OTHERS = {
    **dict.fromkeys(("mean", "max", "softmin"), "also counts features that only one of the two has"),
    "gmean": "adds 1e-4 for each feature that is not shared",
}
_DIFFERENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ignorematch": lambda a, b: a.relu() * (b <= 0),
    "substractmatch": lambda a, b: (a - b).relu() * (a > 0) * (b > 0),
}
_OURS = {"ignorematch": "ignorematch", "substractmatch": "excess"}


def _convert(tensors: Tensors, options: Options) -> Converted:
    intersection = options["intersection"]
    if reason := _OTHERS.get(intersection):
        raise UsageError(
            f"the intersection {intersection} of verskyt {reason}, which no form of this head does; such a layer "
            f"cannot be imported: train with {' or '.join(_INTERSECTIONS)}"
        )
    choose("intersection of verskyt", intersection, _INTERSECTIONS)
    if options["theta"] == 0:
        raise UsageError(
            "theta is 0, with which verskyt gives no number where an image and a prototype have no feature in common; "
            "pass a small one, such as 1e-7: elsewhere it makes no difference that matters"
        )
    form = {
        "model": "ratio",
        "smooth": True,
        "intersection": intersection,
        "difference": _OURS[choose("difference of verskyt", options["difference"], _OURS)],
        "normalize": options["normalize_prototypes"],
        "theta": options["theta"],
        **_weights(tensors),
    }
    return Converted(form, tensors["prototypes"], _bank(tensors, options), tensors.get("bias"))


def _similarities(x: Tensor, tensors: Tensors, options: Options) -> Tensor:
    prototypes, bank = tensors["prototypes"], _bank(tensors, options)
    if options["normalize_prototypes"]:
        x, prototypes = functional.normalize(x, dim=-1), functional.normalize(prototypes, dim=-1)
    a, b = (x @ bank.mT).unsqueeze(1), prototypes @ bank.mT
    common = _INTERSECTIONS[options["intersection"]](a.relu(), b.relu()).sum(-1) + options["theta"]
    difference, weights = _DIFFERENCES[options["difference"]], _weights(tensors)
    distinctive = weights["alpha"] * difference(a, b).sum(-1) + weights["beta"] * difference(b, a).sum(-1)
    bias = tensors.get("bias", common.new_zeros(()))
    result: Tensor = common / (common + distinctive) + bias
    return result


def _bank(tensors: Tensors, options: Options) -> Tensor:
    bank = tensors["feature_bank"]
    return functional.normalize(bank, dim=-1) if options["normalize_features"] else bank


def _weights(tensors: Tensors) -> dict[str, float]:
    return {name: max(0.0, float(tensors[name])) for name in ("alpha", "beta")}


VERSKYT = Source(
    layer="TverskyProjectionLayer of verskyt",
    shapes={"prototypes": "PD", "feature_bank": "FD", "alpha": "", "beta": ""},
    optional={"bias": "P"},
    convert=_convert,
    options={
        "intersection": "product",
        "difference": "substractmatch",
        "theta": 1e-7,
        "normalize_features": False,
        "normalize_prototypes": False,
    },
    spellings={"subtractmatch": "substractmatch"},
    left_out=(
        "this head computes in float32 and does not scale embeddings shorter than 1e-6 to unit norm, which shows where "
        "embeddings are nearly 0"
    ),
    similarities=_similarities,
)
