"""Which tensors of a state dict are the Tversky layer, and the linear map behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tnn_export.importers.registry import IMPORTERS
from tnn_export.importers.source import Source
from tnn_runtime.errors import UsageError

__all__ = ["LinearMap", "take_layer", "take_linear"]

_NAMED = 3


class LinearMap(NamedTuple):
    """What follows the similarities to P prototypes."""

    weight: Tensor
    """``[C, P]``"""

    bias: Tensor
    """``[C]``"""


def take_layer(state: dict[str, Tensor], source: Source, prefix: str | None) -> dict[str, Tensor]:
    """Remove the layer's tensors from a state dict and return them, float64, by their names in the layer.

    Args:
        state: The state dict.
        source: The layer.
        prefix: The layer's name in the model; found if ``None``.

    Raises:
        UsageError: If there is no such layer, or several, or its tensors do not fit together.
    """
    place = _find(state, source, prefix)
    start = _start(place)
    shapes = {**source.shapes, **source.optional}
    for ending, reason in source.refused.items():
        if start + ending in state:
            raise UsageError(f"{_quoted(place)} cannot be imported: {reason}")
    if missing := [name for name in source.shapes if start + name not in state]:
        raise UsageError(
            f"{_quoted(place)} lacks {', '.join(missing)}; expected {', '.join(source.shapes)}, as {source.layer} has"
            f"{_hint(state, source)}"
        )
    inside = [name.removeprefix(start) for name in state if place and name.startswith(start)]
    if others := [name for name in inside if name not in shapes]:
        raise UsageError(
            f"{_quoted(place)} has {', '.join(others[:_NAMED])}, which {source.layer} has not; expected "
            f"{', '.join(shapes)}{_hint(state, source)}"
        )
    layer = {name: state.pop(start + name) for name in shapes if start + name in state}
    _check(layer, shapes, place)
    return {name: value.double().reshape(value.shape if shapes[name] else ()) for name, value in layer.items()}


def take_linear(state: dict[str, Tensor], prototypes: int) -> LinearMap | None:
    """Remove the one linear map of the similarities from what is left of a state dict, if there is one.

    Args:
        state: The state dict without layer and backbone.
        prototypes: P.
    """
    weights = [
        name
        for name, value in state.items()
        if name.rpartition(".")[2] == "weight" and value.ndim == 2 and value.shape[1] == prototypes
    ]
    if len(weights) != 1:
        return None
    weight = state.pop(weights[0]).double()
    bias = state.pop(weights[0].removesuffix("weight") + "bias", torch.zeros(len(weight)))
    return LinearMap(weight, bias.double())


def _find(state: Mapping[str, Tensor], source: Source, prefix: str | None) -> str:
    places = _places(state, source)
    if prefix is not None:
        if prefix in places:
            return prefix
        raise UsageError(
            f"there is no layer {prefix!r} of {source.layer}; "
            + (f"there are {', '.join(map(repr, places))}" if places else _expected(state, source))
        )
    if not places:
        raise UsageError(f"no layer was found; {_expected(state, source)}")
    whole = [place for place in places if all(_start(place) + name in state for name in source.shapes)]
    candidates = whole or places
    if len(candidates) > 1:
        raise UsageError(
            f"there are {len(candidates)} layers of {source.layer}, {', '.join(map(repr, candidates))}; choose the "
            "last one of the classifier with --prefix (prefix=)"
        )
    return candidates[0]


def _places(state: Mapping[str, Tensor], source: Source) -> list[str]:
    anchor = next(iter(source.shapes))
    names = [name for name in state if name == anchor or name.endswith(f".{anchor}")]
    return sorted(name.removesuffix(anchor).removesuffix(".") for name in names)


def _expected(state: Mapping[str, Tensor], source: Source) -> str:
    return f"expected tensors named {', '.join(source.shapes)}, as {source.layer} has{_hint(state, source)}"


def _hint(state: Mapping[str, Tensor], wrong: Source) -> str:
    """Say which other layer the state dict does have."""
    found = [
        name
        for name, source in IMPORTERS.items()
        if source is not wrong
        and any(all(_start(place) + key in state for key in source.shapes) for place in _places(state, source))
    ]
    return f"; there is a layer as of {found[0]}: pass --from {found[0]}" if found else ""


def _start(place: str) -> str:
    return f"{place}." if place else ""


def _quoted(place: str) -> str:
    return f"the layer {place!r}" if place else "the layer"


def _check(layer: Mapping[str, Tensor], shapes: Mapping[str, str], place: str) -> None:
    sizes: dict[str, int] = {}
    for name, value in layer.items():
        letters, shape = shapes[name], tuple(value.shape)
        fits = len(shape) == len(letters) if letters else value.numel() == 1
        if not fits or any(
            sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=False)
        ):
            known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
            raise UsageError(
                f"{name} of {_quoted(place)} has the shape {list(shape)}; expected "
                + (f"[{', '.join(letters)}]" if letters else "a single number")
                + (f" with {known}" if known and letters else "")
            )
        if not value.is_floating_point():
            raise UsageError(f"{name} of {_quoted(place)} is of {value.dtype}; expected floating-point numbers")
