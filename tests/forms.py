"""Heads in every form, for property tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from covering import Row, covering_array, full_product
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
    "thresholds": (False, True),
    "opposites": (0.0, 0.7),
    "prototype_space": ("embedding", "feature"),
    "smooth": (False, True),
}
SPACE = ("thresholds", "opposites", "prototype_space")
"""What says where feature values come from."""

DEFAULTS: Row = {option: getattr(TverskyConfig(), option) for option in CHOICES}
CORNERS: list[Row] = [
    DEFAULTS,
    {**DEFAULTS, "model": "ratio", "intersection": "softmin"},
    {**DEFAULTS, "feature_bank": "diagonal", "difference": "ignorematch"},
    {**DEFAULTS, "normalize": True, "membership": "sigmoid"},
    {**DEFAULTS, "num_prototypes": 7},
    {**DEFAULTS, "num_prototypes": 7, "model": "ratio"},
    {**DEFAULTS, "difference": "excess", "model": "ratio", "smooth": True},
    {**DEFAULTS, "difference": "ignorematch", "thresholds": True, "opposites": 0.7, "prototype_space": "feature"},
]
"""Forms with a code path of their own, all else at its default."""

SIZE, CLASSES = 5, 4


def form(**options: object) -> TverskyConfig:
    """Return a small configuration with these options."""
    return TverskyConfig(6, alpha=0.4, beta=0.9, theta=1.3, **options)  # type: ignore[arg-type]


def is_form(row: Row) -> bool:
    """Return whether a head can have these options: a diagonal bank has no opposites, and only a ratio is smooth."""
    has_opposites = row.get("opposites") and row.get("feature_bank") == "diagonal"
    return not (has_opposites or (row.get("smooth") and row.get("model") == "contrast"))


def forms(**choices: Sequence[object]) -> list[TverskyConfig]:
    """Return one configuration for each combination of the choices that a head can have."""
    return [form(**row) for row in full_product(choices) if is_form(row)]


MEASURES = forms(**{name: CHOICES[name] for name in ("model", "intersection", "difference")})
"""Every combination of measures, the other options at their defaults."""


def has_all_or_none(config: TverskyConfig) -> bool:
    """Return whether a form has all the options of `SPACE` that it can have, or none."""
    is_default = {option: getattr(config, option) == DEFAULTS[option] for option in SPACE}
    if config.feature_bank == "diagonal":
        del is_default["opposites"]
    return len(set(is_default.values())) == 1


FORMS = [config for config in forms(**CHOICES) if has_all_or_none(config)]
"""Every combination of every option, those of `SPACE` taken together: 1,728."""


@cache
def covering_forms(strength: int = 3, **only: object) -> list[TverskyConfig]:
    """Return few forms, with every combination of the values of any ``strength`` options, and the corners.

    Args:
        strength: Of the covering array: forms find the faults that take so many options, or fewer.
        only: Options with one value in all of the forms.
    """
    corners = [corner for corner in CORNERS if only.items() <= corner.items()]
    return [form(**row) for row in covering_array(choices_of(only), strength, corners, is_form)]


def choices_of(only: dict[str, object]) -> dict[str, tuple[object, ...]]:
    return {**CHOICES, **{option: (value,) for option, value in only.items()}}


COVERING = covering_forms(3)
"""The forms that stand for all: with every combination of any three options."""


def each_form(strength: int = 3, **only: object) -> pytest.MarkDecorator:
    """Parametrize a test over ``config``: the covering forms, and under ``exhaustive`` the rest of `FORMS`.

    Args:
        strength: Of the covering forms; 2 for what takes long.
        only: Options with one value in all of the forms.
    """
    few = covering_forms(strength, **only)
    rest = [config for config in FORMS if config not in few]
    return _parametrize("config", few, [one for one in rest if all(getattr(one, o) == v for o, v in only.items())])


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
    values += ["thresholds"] * config.thresholds + ["opposites"] * bool(config.opposites)
    values += ["feature_space"] * (config.prototype_space == "feature") + ["smooth"] * config.smooth
    return "-".join(values)


def random_head(config: TverskyConfig, seed: int = 0) -> tuple[TverskyHead, Tensor]:
    """Return a head and inputs ``[6, SIZE]`` whose features are away from the membership boundary."""
    torch.manual_seed(seed)
    head = TverskyHead(SIZE, CLASSES, config)
    for parameter in head.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(60, SIZE)
    return head, x[away(head, x)][:6]


def head_with(prototypes: list[list[float]], bank: list[list[float]] | None = None, **options: object) -> TverskyHead:
    """Return a head with these prototypes.

    Args:
        prototypes: One for each class, unless the options have ``num_prototypes`` and ``classes``.
        bank: Rows of the feature bank; without it, features are the dimensions of the embedding.
        options: Of the form; also ``classes``, and the ``size`` of the embedding, that of the prototypes without it.
    """
    size, classes = (
        int(options.pop(name, default))  # type: ignore[call-overload]
        for name, default in (("size", len(prototypes[0])), ("classes", len(prototypes)))
    )
    rows = torch.eye(size) if bank is None else torch.tensor(bank)
    features = len(rows) * (2 if options.get("opposites") else 1)
    head = TverskyHead(size, classes, TverskyConfig(num_features=features, **options))  # type: ignore[arg-type]
    with torch.no_grad():
        if head.feature_bank is not None:
            head.feature_bank.copy_(rows)
        head.prototypes.copy_(torch.tensor(prototypes))
    return head


def away(head: TverskyHead, x: Tensor, share: float = 1e-3) -> Tensor:
    """Return which inputs ``[N, SIZE]`` have features at least this share of their reach away from the boundary."""
    return (head.switches(x).abs() > share * head.reach(x)).all(1)


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
