"""The form of a similarity matching head, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from dataclasses import dataclass

from tnn_train.fields import SMALLEST, Field, FieldError, at_least, one_of

__all__ = ["LINEAR", "NONE", "NON_NEGATIVE", "WEIGHT", "WHITEN", "MatchingConfig"]

LINEAR, NON_NEGATIVE = "linear", "non-negative"
"""What the activities of the units may be."""

WEIGHT, WHITEN, NONE = "weight", "whiten", "none"
"""What keeps an encoder from growing."""

_MOST_UNITS, _MOST_ITERATIONS = 4096, 10_000


@dataclass(frozen=True)
class MatchingConfig:
    """The form of a similarity matching head (Pehlevan, Sengupta & Chklovskii 2018, arXiv 1703.07914).

    Args:
        units: K, the units of the circuit; a linear one has at most as many as the embedding has values.
        activation: non-negative: a ReLU follows each step of the circuit; or linear, which is exported as one matrix
            product.
        step: How far the circuit moves in an iteration; None for a step that follows from the lateral weights, and
            always holds.
        iterations: How many steps the circuit has to settle, at most. In evaluation a non-negative one makes as many
            as the training images were found to need.
        tolerance: The circuit has settled when no unit is driven by more than this share of the strongest drive.
        leak: How fast each unit calms down by itself: what is added to the diagonal of the lateral weights. It
            thresholds weak directions of the embeddings softly, and bounds the iterations.
        tau: The learning rate of the encoder divided by that of the lateral weights.
        regularization: What keeps the encoder from growing: weight, its norm; whiten, the variance of the drive, so
            that all directions of the embeddings count alike; or none, only the weight decay of the recipe.
        supervision: How much the similarities of labels count beside those of embeddings in training; 0 for not at
            all. Labels reach the circuit through an encoder of their own, which is not used in predictions.
        objective: The weight of the matching objective beside the cross-entropy of the classifier.
        end_to_end: Whether the gradient of the classifier reaches the circuit and the backbone before it; without it,
            the circuit learns from the matching objective alone.
    """

    units: int = 64
    activation: str = NON_NEGATIVE
    step: float | None = None
    iterations: int = 1000
    tolerance: float = 1e-2
    leak: float = 0.1
    tau: float = 0.5
    regularization: str = WEIGHT
    supervision: float = 0.0
    objective: float = 0.01
    end_to_end: bool = True

    def __post_init__(self) -> None:
        at_least(self, 1, "units", "iterations")
        for name, most in (("units", _MOST_UNITS), ("iterations", _MOST_ITERATIONS)):
            if getattr(self, name) > most:
                raise FieldError(Field(MatchingConfig, name), f" is {getattr(self, name)}; expected at most {most}")
        one_of(self, "activation", (NON_NEGATIVE, LINEAR))
        one_of(self, "regularization", (WEIGHT, WHITEN, NONE))
        at_least(self, 0.0, "leak", "supervision", "objective", "tau", "tolerance")
        for name in ("objective", "tau", "tolerance"):
            if getattr(self, name) < SMALLEST:
                raise FieldError(Field(MatchingConfig, name), f" is {getattr(self, name)!r}; expected a number above 0")
        if self.tolerance >= 1:
            raise FieldError(
                Field(MatchingConfig, "tolerance"),
                f" is {self.tolerance!r}; expected a share of the strongest drive, above 0 and below 1",
            )
        if not isinstance(self.end_to_end, bool):
            raise FieldError(Field(MatchingConfig, "end_to_end"), f" is {self.end_to_end!r}; expected True or False")
        self._check_step()

    @property
    def is_rectified(self) -> bool:
        """Whether a ReLU follows each step of the circuit."""
        return self.activation == NON_NEGATIVE

    def _check_step(self) -> None:
        """Refuse a step that diverges at the start, where the lateral weights are the identity."""
        if self.step is None:
            return
        at_least(self, 0.0, "step")
        limit = 2 / (1 + self.leak)
        if not SMALLEST <= self.step < limit:
            raise FieldError(
                *(
                    Field(MatchingConfig, "step"),
                    f" is {self.step!r}; expected a number above 0 and below {limit:.3g}, ",
                ),
                *("where the circuit still settles at the start of a training, with a ", Field(MatchingConfig, "leak")),
                *(f" of {self.leak:g}; or leave ", Field(MatchingConfig, "step"), " out"),
            )
