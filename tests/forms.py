"""Heads in every form, for property tests."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from covering import Row, covering_array
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
DEFAULTS: Row = {option: getattr(TverskyConfig(), option) for option in CHOICES}
CORNERS: list[Row] = [
    DEFAULTS,
    {**DEFAULTS, "model": "ratio", "intersection": "softmin"},
    {**DEFAULTS, "feature_bank": "diagonal", "difference": "ignorematch"},
    {**DEFAULTS, "normalize": True, "membership": "sigmoid"},
    {**DEFAULTS, "num_prototypes": 7},
    {**DEFAULTS, "num_prototypes": 7, "model": "ratio"},
]
"""Forms with a code path of their own, all else at its default."""

SIZE, CLASSES = 5, 4


def form(**options: object) -> TverskyConfig:
    """Return a small configuration with these options."""
    return TverskyConfig(6, alpha=0.4, beta=0.9, theta=1.3, **options)  # type: ignore[arg-type]


def forms(**choices: Sequence[object]) -> list[TverskyConfig]:
    """Return one configuration for each combination of the choices."""
    return [form(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


MEASURES = forms(**{name: CHOICES[name] for name in ("model", "intersection", "difference")})
"""Every combination of measures, the other options at their defaults."""

FORMS = forms(**CHOICES)
"""Every combination of every option: 384."""


def covering_forms(strength: int = 3, **only: object) -> list[TverskyConfig]:
    """Return few forms, with every combination of the values of any ``strength`` options, and the corners.

    Args:
        strength: Of the covering array: forms find the faults that take so many options, or fewer.
        only: Options with one value in all of the forms.
    """
    corners = [corner for corner in CORNERS if only.items() <= corner.items()]
    return [form(**row) for row in covering_array(choices_of(only), strength, corners)]


def choices_of(only: dict[str, object]) -> dict[str, tuple[object, ...]]:
    return {**CHOICES, **{option: (value,) for option, value in only.items()}}


COVERING = covering_forms()
"""The forms that stand for all: with every combination of any three options."""


def each_form(strength: int = 3, **only: object) -> pytest.MarkDecorator:
    """Parametrize a test over ``config``: the covering forms, and under ``exhaustive`` the rest of the full product.

    Args:
        strength: Of the covering forms; 2 for what takes long.
        only: Options with one value in all of the forms.
    """
    few = covering_forms(strength, **only)
    return _parametrize("config", few, [config for config in forms(**choices_of(only)) if config not in few])


def each_batch_of_forms(size: int = 24) -> pytest.MarkDecorator:
    """Parametrize a test over ``configs``, the forms of `each_form` in batches: one export for many saves most time."""
    rest = [config for config in FORMS if config not in COVERING]
    few, others = (
        [configs[start : start + size] for start in range(0, len(configs), size)] for configs in (COVERING, rest)
    )
    return _parametrize("configs", few, others)


def _parametrize(argument: str, few: Sequence[object], rest: Sequence[object]) -> pytest.MarkDecorator:
    always, exhaustive = [pytest.mark.forms], [pytest.mark.forms, pytest.mark.exhaustive]
    values = [pytest.param(one, marks=always) for one in few] + [pytest.param(one, marks=exhaustive) for one in rest]
    return pytest.mark.parametrize(
        argument, values, ids=lambda value: name(value) if isinstance(value, TverskyConfig) else None
    )


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
