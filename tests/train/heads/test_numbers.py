"""Numbers that only a mistake can give are refused, in every option of every head and of the recipe."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import pytest

from tnn_train import ModelConfig, TrainConfig
from tnn_train.fields import FieldError
from tnn_train.heads import HEADS
from tnn_train.model.config import options_field

CONFIGS = [TrainConfig, *(type(getattr(ModelConfig(), options_field(name))) for name in HEADS if name != "linear")]
NUMBERS = [
    (config, field.name)
    for config in CONFIGS
    for field in dataclasses.fields(config)
    if get_type_hints(config)[field.name] in (float, float | None)
]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30, 1e5, -1.0])
@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=[f"{config.__name__}.{name}" for config, name in NUMBERS])
def test_each_has_bounds(config: Any, name: str, value: float) -> None:
    with pytest.raises(FieldError, match=f"^{name} is "):
        config(**{name: value})
