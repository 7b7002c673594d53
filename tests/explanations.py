"""Explanations against the logits that they explain."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import definitions
import numpy as np
from forms import CLASSES, name
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.bundle.write import write_head
from tnn_runtime.explain.linear import LinearExplainer
from tnn_runtime.explain.tversky import TverskyExplainer
from tnn_train import LinearHead, TverskyHead

NAMES_OF_CLASSES = tuple(f"class {index}" for index in range(CLASSES))


def explainer_of(head: TverskyHead, folder: Path) -> TverskyExplainer:
    """Return the explainer of a head; its file is written into ``folder``."""
    folder.mkdir(exist_ok=True)
    write_head(head, folder)
    config = json.loads(json.dumps(dataclasses.asdict(head.config)))
    return TverskyExplainer(folder / "head.npz", config, NAMES_OF_CLASSES, head.in_features)


def linear_explainer_of(head: LinearHead, folder: Path) -> LinearExplainer:
    """Return the explainer of a linear head, as `explainer_of` does."""
    write_head(head, folder)
    return LinearExplainer(folder / "head.npz", None, NAMES_OF_CLASSES, head.in_features)


def check_explanations(head: TverskyHead, x: Tensor, logits: NDArray[np.float32], folder: Path) -> None:
    """Compare the sums of the parts with the logits of a graph: relative to an image's largest terms, within 1e-5."""
    _, magnitude = definitions.logits(head, x.double().numpy())
    largest = magnitude.max(1)
    explained = explainer_of(head, folder / "head")(x.numpy(), logits, CLASSES, 5)
    for number, explanations in enumerate(explained):
        for e in explanations:
            error = abs(e.logit - logits[number, e.index]) / largest[number]
            assert error <= 1e-5, (name(head.config), number, e.index, error)
