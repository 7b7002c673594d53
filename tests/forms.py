"""Heads in every form, for property tests."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS

CHOICES = {
    "model": tuple(MODELS),
    "intersection": tuple(INTERSECTIONS),
    "difference": tuple(DIFFERENCES),
    "membership": tuple(MEMBERSHIPS),
    "normalize": (False, True),
    "feature_bank": ("learned", "diagonal"),
    "num_prototypes": (None, 7),
}
SIZE, CLASSES = 5, 4


def forms(**choices: tuple[object, ...]) -> list[TverskyConfig]:
    """Return one configuration for each combination of the choices."""
    return [
        TverskyConfig(6, alpha=0.4, beta=0.9, theta=1.3, **dict(zip(choices, values, strict=True)))  # type: ignore[arg-type]
        for values in itertools.product(*choices.values())
    ]


MEASURES = forms(**{name: CHOICES[name] for name in ("model", "intersection", "difference")})
"""Every combination of measures, the other options at their defaults."""

FORMS = forms(**CHOICES)
"""Every combination of every option: 384."""


def name(config: TverskyConfig) -> str:
    """Return a short name of a form."""
    values = [str(getattr(config, choice)) for choice in ("model", "intersection", "difference")]
    values += ["sigmoid"] * (config.membership == "sigmoid") + ["normalize"] * config.normalize
    values += ["diagonal"] * (config.feature_bank == "diagonal") + ["linear"] * (config.num_prototypes is not None)
    return "-".join(values)


def random_head(config: TverskyConfig, seed: int = 0) -> tuple[TverskyHead, Tensor]:
    """Return a head and inputs ``[6, SIZE]`` whose features are away from the membership boundary."""
    torch.manual_seed(seed)
    head = TverskyHead(SIZE, CLASSES, config)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(60, SIZE)
    away = (head.project(x).abs() > 1e-3 * head.reach(x)).all(1)
    return head, x[away][:6]


seeds = st.integers(0, 10_000)


class Together(nn.Module):
    """Several heads on the same input: one export for all of them saves most of its time."""

    def __init__(self, heads: list[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(x) for head in self.heads]


def to_onnx(head: nn.Module, path: Path, size: int = SIZE) -> Path:
    """Write a head as one ONNX file with the input ``x [batch, size]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            head,
            (torch.zeros(2, size),),
            str(path),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            external_data=False,
            verbose=False,
        )
    return path
