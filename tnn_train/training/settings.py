"""A nested configuration as one flat table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tnn_train.heads import HEADS
from tnn_train.model.config import options_field

__all__ = ["flatten"]


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{"model.tversky.alpha": 0.5, ...}``, without the options of heads that the model does not have."""
    model = config.get("model", {})
    unused = {
        f"model.{options_field(name)}" for name in HEADS if isinstance(model, Mapping) and name != model.get("head")
    }
    return dict(_leaves(config, "", unused))


def _leaves(config: Mapping[str, Any], prefix: str, unused: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in unused:
            yield from _leaves(value, f"{name}.", unused)
        elif not isinstance(value, Mapping):
            yield name, list(value) if isinstance(value, tuple) else value
