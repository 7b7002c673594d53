"""What has to be known of a public Tversky layer so that its state dicts can be imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["REQUIRED", "Converted", "Options", "Source", "Tensors"]

Tensors: TypeAlias = Mapping[str, Tensor]
Options: TypeAlias = Mapping[str, Any]

REQUIRED = object()
"""Stands for the default of an option that has none."""


@dataclass(frozen=True)
class Converted:
    """A layer in the terms of `tnn_train.TverskyConfig` and `tnn_train.TverskyHead`.

    Args:
        form: Arguments of the configuration; the scalars are those of the trained layer.
        prototypes: ``[P, D]``.
        feature_bank: ``[F, D]`` of a learned bank, or the positive weights ``[D]`` of a diagonal one.
        bias: What is added to the similarities, ``[P]``; ``None`` if nothing.
    """

    form: Mapping[str, Any]
    prototypes: Tensor
    feature_bank: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """A public Tversky layer.

    Args:
        layer: What it is called, for errors.
        shapes: The names of its tensors in a state dict, the prototypes first, with their shapes in letters: P
            prototypes, F features, D the size of the embedding; a number by itself has none.
        convert: From these tensors, float64, and every option, to our terms.
        options: What the state dict does not tell, with the layer's own defaults, or `REQUIRED`.
        optional: Names and shapes of tensors that the layer may lack.
        refused: Endings of names that some form of the layer has which cannot be imported, with the reason.
        spellings: Other names of values that options may have, with the layer's own.
        left_out: What of the layer's own formula the head leaves out, and where it shows, for errors.
        similarities: The layer's own formula: embeddings ``[N, D]``, its tensors and every option to what it returns,
            ``[N, P]``, all float64; ``None`` if it is the head's by definition.
    """

    layer: str
    shapes: Mapping[str, str]
    convert: Callable[[Tensors, Options], Converted]
    options: Options
    optional: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    spellings: Mapping[Any, str] = field(default_factory=dict)
    left_out: str = ""
    similarities: Callable[[Tensor, Tensors, Options], Tensor] | None = None
