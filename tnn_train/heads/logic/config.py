"""The form of a logic head, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass

from tnn_train.fields import Field, FieldError, at_least, one_of

__all__ = ["AUTO", "DISTRIBUTIVE", "FIXED", "LEARNED", "RAW", "WARP", "LogicConfig"]

AUTO, FIXED, DISTRIBUTIVE, LEARNED = "auto", "fixed", "distributive", "learned"
"""Where thresholds come from."""

RAW, WARP = "raw", "warp"
"""What is learned of a gate."""

_MOST = 256
"""Thresholds of a value, and layers, at most: more would only take memory."""


@dataclass(frozen=True)
class LogicConfig:
    """The form of a logic head (arXiv 2210.08277).

    Args:
        bits: Thresholds for each value of the embedding; each gives a bit, whether the value is above it.
        thresholds: fixed: evenly spaced over the range of the training embeddings; distributive: for each value at
            equal shares of its distinct values in training; learned: these, and then trained with the gates; or auto:
            learned behind a backbone that learns, too, else distributive.
        layers: Layers of gates.
        width: Gates in each layer, a multiple of the number of classes; None for the smallest multiple that is twice
            the number of bits, and 128 gates a class.
        parametrization: What is learned of a gate. raw: 16 scores, whose softmax mixes the 16 Boolean functions of two
            inputs; warp: the 4 Walsh-Hadamard coefficients of one function (arXiv 2602.03527).
        residual: The probability with which each gate passes its first input on at the start (arXiv 2411.04732); 0 for
            gates that start at random.
        temperature: What the number of gates that are on is divided by to give a logit; None for half the square
            root of the number of gates of a class.
        wiring: The seed that draws which gates are connected.
    """

    bits: int = 3
    thresholds: str = AUTO
    layers: int = 3
    width: int | None = None
    parametrization: str = WARP
    residual: float = 0.9
    temperature: float | None = None
    wiring: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "bits", "layers", most=_MOST)
        if self.width is not None:
            at_least(self, 1, "width")
        at_least(self, 0, "wiring")
        one_of(self, "thresholds", (AUTO, FIXED, DISTRIBUTIVE, LEARNED))
        one_of(self, "parametrization", (RAW, WARP))
        at_least(self, 0.0, "residual")
        if self.parametrization == WARP and 0 < self.residual <= 0.5:
            raise FieldError(
                *(Field(LogicConfig, "residual"), f" is {self.residual:g}, with which warp gates start without a "),
                *("gradient; expected 0, or above 0.5 and below 1",),
            )
        if self.residual >= 1:
            raise FieldError(
                Field(LogicConfig, "residual"), f" is {self.residual!r}; expected a probability from 0 to below 1"
            )
        if self.temperature is not None:
            at_least(self, 1e-3, "temperature")
