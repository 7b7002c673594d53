"""A network of logic gates on the bits of an embedding."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from tnn_train.fields import Field, FieldError
from tnn_train.heads.base import Head
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.logic.config import AUTO, DISTRIBUTIVE, FIXED, LEARNED, LogicConfig
from tnn_train.heads.logic.gates import GateLayer, connections
from tnn_train.heads.logic.section import section
from tnn_train.heads.logic.thresholds import Thresholds, sample
from tnn_train.heads.precision import full_precision, precise

__all__ = ["LogicHead"]

_GATES_OF_A_CLASS = 128
_RATE = 50.0
"""Scores of gates need larger steps than weights: their softmax hardly moves with small ones."""


class LogicHead(Head):
    """A differentiable logic gate network (Petersen et al., arXiv 2210.08277).

    Values of the embedding become bits (`Thresholds`), layers of gates follow (`GateLayer`), and the gates of the last
    layer vote: each class owns an equal share of them, and its logit is how many of these are on, divided by a
    temperature (the group sum). In training all that is relaxed to real numbers; in evaluation every gate is one
    Boolean function, and each logit a whole number divided by the temperature.

    Args:
        in_features: D, the size of an embedding.
        num_classes: C, the number of logits.
        config: The form of the head, as `resolve` returns it.
    """

    family = "logic"

    def __init__(self, in_features: int, num_classes: int, config: LogicConfig | None = None) -> None:
        super().__init__()
        self.config = config = _resolved(config or LogicConfig(), in_features, num_classes)
        assert config.width is not None
        assert config.temperature is not None
        self.in_features, self.num_classes, self.temperature = in_features, num_classes, config.temperature
        self.thresholds = Thresholds(in_features, config.bits, is_learned=config.thresholds == LEARNED)
        generator = torch.Generator().manual_seed(config.wiring)
        layers, inputs = [], in_features * config.bits
        for _ in range(config.layers):
            wires = connections(inputs, config.width, generator)
            layers.append(GateLayer(*wires, config.parametrization, config.residual))
            inputs = config.width
        self.layers = nn.ModuleList(layers)

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: LogicConfig | None) -> Self:
        """Build an untrained head."""
        return cls(in_features, num_classes, options)

    @property
    def options(self) -> LogicConfig:
        """The form of the head."""
        return self.config

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of embeddings ``x [N, D]``, in float32 or wider."""
        with full_precision(x):
            return self._vote(self.thresholds(precise(x)))

    @classmethod
    def resolve(
        cls,
        options: LogicConfig,
        class_names: Sequence[str],
        in_features: int,
        *,
        is_frozen: bool,
        is_pixels: bool = False,
    ) -> LogicConfig:
        """Return the options with the thresholds, and the width and the temperature that the classes decide.

        Raises:
            UsageError: If a layer has more gates than there are pairs of bits, too few gates to use every bit, or a
                number of gates that the classes cannot share.
        """
        if options.thresholds == AUTO and not is_frozen and not is_pixels:
            options = dataclasses.replace(options, thresholds=LEARNED)
        return _resolved(options, in_features, len(class_names))

    def undecayed(self) -> Collection[str]:
        """Return all parameters: scores that decay would make gates undecided."""
        return [name for name, _ in self.named_parameters()]

    def rates(self) -> Mapping[str, float]:
        """Return a larger learning rate for the scores of gates."""
        return {name: _RATE for name, _ in self.named_parameters() if name.endswith(".scores")}

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the thresholds from the embeddings of training images.

        Raises:
            TrainingError: If they are all the same.
        """
        self.thresholds.set(sample(batches), is_even=self.config.thresholds == FIXED)

    def switches(self, x: Tensor) -> Tensor:
        """Return how far each value is above each threshold, ``[N, D * B]``: logits jump where one crosses 0."""
        return (precise(x)[:, :, None] - self.thresholds.values).flatten(1)

    def score(self, switches: Tensor) -> Tensor:
        """Return the logits ``[N, C]`` of the discrete network on the signs of `switches`."""
        return self._vote((switches > 0).to(switches.dtype))

    def reach(self, x: Tensor) -> Tensor:
        """Return the length of ``x`` plus the size of each threshold, ``[N, D * B]``."""
        lengths: Tensor = torch.linalg.vector_norm(precise(x), dim=1, keepdim=True)
        return lengths + self.thresholds.values.abs().flatten()

    def arrays(self) -> dict[str, Tensor]:
        """Return the discrete network.

        ``thresholds [D, B]``; ``left``, ``right`` and ``tables [L, W]``, the inputs and the truth table of each gate;
        and the ``temperature``. Bit ``d * B + b`` is whether value d is above its threshold b.
        """
        layers = [layer for layer in self.layers if isinstance(layer, GateLayer)]
        return {
            "thresholds": self.thresholds.values,
            "left": torch.stack([layer.left for layer in layers]).int(),
            "right": torch.stack([layer.right for layer in layers]).int(),
            "tables": torch.stack([layer.tables() for layer in layers]).to(torch.uint8),
            "temperature": torch.tensor(self.temperature),
        }

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return what the gates have become, and how the relaxed network answers beside the discrete one."""
        arrays = self.arrays()
        size = (self.in_features, self.config.bits)
        answers: list[Tensor] = []
        if sample is not None:
            both = (logits.argmax(1).cpu() for logits in self.relaxed_and_discrete(sample.embeddings))
            answers = [torch.as_tensor(sample.labels), *both]
        return [section(arrays["tables"].cpu(), size, self.num_classes, self.temperature, answers)]

    @torch.no_grad()
    def relaxed_and_discrete(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits ``[N, C]`` of embeddings as they are in training, and those of the discrete network."""
        return copy.deepcopy(self).train()(x), copy.deepcopy(self).eval()(x)

    def _vote(self, bits: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of bits ``[N, I]``."""
        h = bits.T
        for layer in self.layers:
            h = layer(h)
        groups = h.reshape(self.num_classes, -1, h.shape[1])
        return groups.sum(1).T / self.temperature


def _resolved(config: LogicConfig, in_features: int, num_classes: int) -> LogicConfig:
    inputs = in_features * config.bits
    pairs = inputs * (inputs - 1) // 2
    width = config.width
    if width is None:
        width = max(2 * inputs, _GATES_OF_A_CLASS * num_classes)
        width = min(-(-width // num_classes), max(pairs // num_classes, 1)) * num_classes
    where = Field(LogicConfig, "width"), f" is {width}, "
    of_bits = f"the {inputs} bits of {in_features} values"
    if pairs < num_classes:
        raise FieldError(
            *(Field(LogicConfig, "bits"), f" is {config.bits}, and {of_bits} make {pairs} pairs, fewer than the "),
            f"{num_classes} classes; expected more bits",
        )
    if width > pairs:
        raise FieldError(
            *(*where, f"and {of_bits} make {pairs} pairs, one for each gate; expected at most "),
            f"{pairs // num_classes * num_classes}",
        )
    if 2 * width < inputs:
        least = -(-inputs // (2 * num_classes)) * num_classes
        raise FieldError(
            *where,
            f"too few gates to use {of_bits}, two each; expected at least {least}, or fewer ",
            Field(LogicConfig, "bits"),
        )
    if width % num_classes:
        below, above = width // num_classes * num_classes, -(-width // num_classes) * num_classes
        raise FieldError(
            *where,
            f"which {num_classes} classes cannot share equally; expected a multiple of {num_classes}, such as "
            f"{below or above} or {above if below else 2 * above}",
        )
    if width > width * (width - 1) // 2 and config.layers > 1:
        raise FieldError(
            *where,
            f"too few for {config.layers} layers; expected at least 3 gates, or one of ",
            Field(LogicConfig, "layers"),
        )
    temperature = config.temperature
    if temperature is None:
        temperature = round(math.sqrt(width // num_classes) / 2, 2)
    thresholds = DISTRIBUTIVE if config.thresholds == AUTO else config.thresholds
    return dataclasses.replace(config, thresholds=thresholds, width=width, temperature=temperature)
