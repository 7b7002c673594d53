"""The layer of the package tversky-nn: a ratio model over the absolute values of the embedding.

With ``a = |x| + 1e-8``, ``b = |p| + 1e-8`` and ``w = |feature_bank|`` between 0.1 and 5, its measures are the weighted
sums of the intersection of a and b, of ``(a - b)+`` (for both names of the difference) and of ``(b - a)+``; it
returns I / (I + alpha A + beta B + theta), with a denominator of at least 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tnn_export.importers.source import Converted, Options, Source, Tensors
from tnn_runtime.errors import UsageError
from tnn_train.fields import SMALLEST, choose
from tnn_train.heads.tversky.config import SPELLINGS

__all__ = ["TVERSKY_NN"]

_SMALLEST = 1e-8
_SMALLEST_DENOMINATOR = 1e-5
_WEIGHTS = (0.1, 5.0)
_SEPARATE = "it has a feature bank for each prototype, and this head one for all; train it with share_feature_bank=True"

_INTERSECTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": torch.mul,
    "mean": lambda a, b: (a + b) / 2,
    "gmean": lambda a, b: (a * b).sqrt(),
    "min": torch.minimum,
}
_OTHERS = {
    "softmin": "is negative for weak features, which this ratio model keeps positive",
    "max": "counts a feature whose value is exactly 0, as behind a ReLU, with all of the other's",
}
_DIFFERENCES = ("ignorematch", "subtractmatch")


def _convert(tensors: Tensors, options: Options) -> Converted:
    intersection = options["intersection"]
    if reason := _OTHERS.get(intersection):
        raise UsageError(
            f"the intersection {intersection} of tversky-nn {reason}; such a layer cannot be imported: train with "
            f"{', '.join(_INTERSECTIONS)}"
        )
    choose("intersection of tversky-nn", intersection, _INTERSECTIONS)
    choose("difference of tversky-nn", options["difference"], _DIFFERENCES)
    form = {
        "model": "ratio",
        "intersection": intersection,
        "difference": "subtractmatch",
        "feature_bank": "diagonal",
        **{name: options[name] for name in ("alpha", "beta", "theta")},
    }
    if intersection == "mean":
        # Here a value of exactly 0 is a feature too. A membership of 1/2 for all gives that: the saliences, and with
        # them the differences, are halved, the means are a fourth, and so are the denominators.
        form |= {"membership": "sigmoid", "sharpness": 0.0}
        form |= {name: options[name] / factor for name, factor in (("alpha", 2), ("beta", 2), ("theta", 4))}
    form["theta"] = form["theta"] or SMALLEST
    return Converted(form, tensors["prototypes"].abs() + _SMALLEST, _weight(tensors))


def _similarities(x: Tensor, tensors: Tensors, options: Options) -> Tensor:
    a, b = x.abs().unsqueeze(1) + _SMALLEST, tensors["prototypes"].abs() + _SMALLEST
    weight = _weight(tensors)
    common = _INTERSECTIONS[options["intersection"]](a, b) @ weight
    distinctive = options["alpha"] * ((a - b).relu() @ weight) + options["beta"] * ((b - a).relu() @ weight)
    result: Tensor = common / (common + distinctive + options["theta"]).clamp_min(_SMALLEST_DENOMINATOR)
    return result


def _weight(tensors: Tensors) -> Tensor:
    return tensors["similarity_fn.feature_bank"].abs().clamp(*_WEIGHTS)


TVERSKY_NN = Source(
    layer="TverskyProjectionLayer of tversky-nn",
    shapes={"prototypes": "PD", "similarity_fn.feature_bank": "D"},
    convert=_convert,
    options={"intersection": "product", "difference": "subtractmatch", "alpha": 0.5, "beta": 0.5, "theta": 1e-7},
    refused={"similarity_fns.0.feature_bank": _SEPARATE},
    spellings=SPELLINGS,
    left_out=(
        f"the layer adds {_SMALLEST:g} to each value of the embedding and keeps its denominators at "
        f"{_SMALLEST_DENOMINATOR:g} or more, which this head does not and which shows where embeddings are nearly 0"
    ),
    similarities=_similarities,
)
