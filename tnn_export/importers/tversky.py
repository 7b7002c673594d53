"""The layer of the paper's authors, from what is documented of its state dict and the paper's formulas.

Its feature bank and prototypes are tables of vectors, and alpha, beta and theta are numbers (arXiv 2506.11035). Which
measures it was trained with, the state dict does not tell.
"""

from __future__ import annotations

from tnn_export.importers.source import REQUIRED, Converted, Options, Source, Tensors
from tnn_runtime.errors import UsageError

__all__ = ["TVERSKY"]


def _convert(tensors: Tensors, options: Options) -> Converted:
    if (options["model"], options["intersection"]) == ("ratio", "softmin"):
        raise UsageError(
            "the paper's softmin is negative for weak features, which this ratio model keeps positive; such a layer "
            "cannot be imported: train with another intersection, such as min"
        )
    scalars = {name: float(tensors[name]) for name in ("alpha", "beta", "theta")}
    return Converted({**options, **scalars}, tensors["prototypes.weight"], tensors["feature_bank.weight"])


TVERSKY = Source(
    layer="the authors' tversky",
    shapes={"prototypes.weight": "PD", "feature_bank.weight": "FD", "alpha": "", "beta": "", "theta": ""},
    convert=_convert,
    options={"model": REQUIRED, "intersection": REQUIRED, "difference": REQUIRED, "normalize": False},
)
