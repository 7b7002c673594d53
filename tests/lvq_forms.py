"""Heads of learning vector quantisation in every form, for property tests."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from covering import Row, covering_array, full_product
from torch import Tensor, nn

from tnn_train import LvqConfig, LvqHead

SIZE, CLASSES = 6, 4

CHOICES: dict[str, tuple[object, ...]] = {
    "loss": ("glvq", "cross-entropy"),
    "transfer": ("identity", "sigmoid", "swish"),
    "pooling": ("nearest", "mixture"),
    "relevances": ("none", "vector", "matrix"),
    "rank": (None, 2),
    "network": (
        None,
        ((), "relu", False),
        ((5,), "sigmoid", True),
        ((5,), "relu", False),
        ((4, 5), "tanh", True),
        ((5,), "leaky_relu", False),
        ((5,), "selu", True),
    ),
    "prototypes": (1, 3),
    "edit": ("none", "owners", "dropped", "both"),
}
EDITS: dict[object, Row] = {
    "none": {},
    "owners": {"owners": (0, 0, 1, 2, 2, 2, 3), "has_centre": True},
    "dropped": {"dropped": (0, 2), "has_centre": True},
    "both": {"owners": (0, 1, 1, 2, 3, 3), "dropped": (1,), "has_centre": True},
}


def is_form(row: Row) -> bool:
    """Return whether a head can have these options."""
    return not (
        (row["rank"] and row["relevances"] != "matrix")
        or (row["pooling"] == "mixture" and row["loss"] == "glvq")
        or (row["loss"] != "glvq" and row["transfer"] != "sigmoid")
    )


def form(row: Row) -> LvqConfig:
    """Return the configuration with the options of a row."""
    options = {name: value for name, value in row.items() if name not in ("network", "edit")}
    if row["network"] is not None:
        hidden, activation, activate_latent = row["network"]  # type: ignore[misc]
        options |= {"latent": 3, "hidden": hidden, "activation": activation, "activate_latent": activate_latent}
    return LvqConfig(margin=0.2, **options, **EDITS[row["edit"]])  # type: ignore[arg-type]


@cache
def forms() -> list[LvqConfig]:
    """Return few forms with every combination of the values of any two options."""
    return [form(row) for row in covering_array(CHOICES, 2, allowed=is_form)]


def rest() -> list[LvqConfig]:
    """Return all other forms."""
    few = set(forms())
    return [config for row in full_product(CHOICES) if is_form(row) and (config := form(row)) not in few]


def name(config: LvqConfig) -> str:
    """Return a short name of a form: the options that are not at their defaults."""
    default = LvqConfig()
    fields = [field.name for field in dataclasses.fields(config)]
    values = [f"{one}={getattr(config, one)}" for one in fields if getattr(config, one) != getattr(default, one)]
    return "-".join(values).replace(" ", "")


each_form = pytest.mark.parametrize(
    "config",
    [*forms(), *(pytest.param(config, marks=pytest.mark.exhaustive) for config in rest())],
    ids=name,
)
"""Runs a test on the forms of the covering array, and under ``exhaustive`` on all others."""


def random_head(config: LvqConfig, seed: int = 0) -> tuple[LvqHead, Tensor]:
    """Return a head and inputs ``[7, SIZE]``."""
    torch.manual_seed(seed)
    head = LvqHead(SIZE, CLASSES, config)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    if config.has_centre:
        nn.init.normal_(head.own_centre)
    return head, 2 * torch.randn(7, SIZE)


class TogetherWithParts(nn.Module):
    """All outputs of several heads, as one list."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for head in self.heads:
            outputs: dict[str, Tensor] = head(x)
            found += [outputs["logits"], outputs["distances"], outputs["nearest"], outputs["confidence"]]
        return found
