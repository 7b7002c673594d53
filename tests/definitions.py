"""The Tversky measures of arXiv 2506.11035, section 2, written term by term in float64: slow, and obviously right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tnn_train import TverskyConfig, TverskyHead

Array = NDArray[np.float64]


def measures(a: Array, b: Array, config: TverskyConfig) -> tuple[Array, Array, Array]:
    """Return f(A and B), f(A-B) and f(B-A), ``[N, P]``, of features ``a [N, F]`` and ``b [P, F]``."""
    a, b = a[:, None, :], b[None, :, :]
    has_a, has_b = a > 0, b > 0
    common = {"product": a * b * has_a * has_b}[config.intersection].sum(-1)
    input_only = np.where(has_a & ~has_b, a, 0)
    prototype_only = np.where(has_b & ~has_a, b, 0)
    if config.difference == "subtractmatch":
        input_only = input_only + np.where(has_a & has_b & (a > b), a - b, 0)
        prototype_only = prototype_only + np.where(has_a & has_b & (b > a), b - a, 0)
    return common, input_only.sum(-1), prototype_only.sum(-1)


def logits(head: TverskyHead, x: Array) -> tuple[Array, Array]:
    """Return the logits ``[N, P]`` of a head, and the magnitude of the largest term in each, for relative errors."""
    value = {
        name: getattr(head, name).detach().double().numpy()
        for name in ("feature_bank", "prototypes", "alpha", "beta", "theta", "logit_scale")
    }
    bank = value["feature_bank"]
    common, input_only, prototype_only = measures(x @ bank.T, value["prototypes"] @ bank.T, head.config)
    against = value["alpha"] * input_only, value["beta"] * prototype_only
    if head.config.model == "contrast":
        terms = (value["theta"] * common, *against)
        return terms[0] - terms[1] - terms[2], np.abs(terms).max(0)
    result = value["logit_scale"] * common / (common + against[0] + against[1] + value["theta"])
    return result, np.full_like(result, value["logit_scale"])
