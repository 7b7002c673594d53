"""An image that is drawn with its explanation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import UsageError
from tnn_runtime.explain.exemplars import Exemplars
from tnn_runtime.explain.result import Explanation
from tnn_runtime.images.limits import Limits
from tnn_runtime.images.preprocess import ImageSource, Preprocessing
from tnn_runtime.replies import Answer

__all__ = ["NEGLIGIBLE", "Item", "exemplars_of", "item_of", "strongest_features"]

_FACES = 3
"""Of how many features the exemplars are shown."""

NEGLIGIBLE = 0.05
"""A feature that does less than this share of what the strongest one does is not told of."""


@dataclass(frozen=True)
class Item:
    """An image and what is to be drawn of it.

    Args:
        explanations: What `Classifier.explain` returned for the image: the first one is drawn, and the others tell
            their scores. Or one explanation alone.
        picture: The image, best as the model sees it: a Pillow image, or uint8 ``[H, W]`` or ``[H, W, 1 or 3]``.
        exemplars: The exemplars of features by their index, for the `strongest_features`; those that are missing are
            not drawn.
        name: What the image is called, such as its path.
        rejected: Whether the answer is rejected, which is then said first.
        reject_score: How sure the model is, where the bundle has such a score.

    Raises:
        UsageError: If there is no explanation.
    """

    explanations: Explanation | Sequence[Explanation]
    picture: Image.Image | NDArray[np.uint8]
    exemplars: Mapping[int, Exemplars] = field(default_factory=dict)
    name: str = ""
    rejected: bool = False
    reject_score: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.explanations, Explanation) and not self.explanations:
            raise UsageError("got no explanation to draw; expected at least one: explain with top_k=1 or more")

    @property
    def explanation(self) -> Explanation:
        """The explanation that is drawn."""
        return self.all[0]

    @property
    def all(self) -> Sequence[Explanation]:
        """All explanations of the image, that of the answer first."""
        return [self.explanations] if isinstance(self.explanations, Explanation) else self.explanations


def item_of(classifier: Classifier, answer: Answer, image: ImageSource, name: str = "") -> Item:
    """Return what is to be drawn of an image, with the image as the model sees it.

    Args:
        classifier: What has answered.
        answer: All that it says of the image, with explanations.
        image: The image.
        name: What it is called.

    Raises:
        InputError: If the image cannot be read any more.
        UsageError: If the answer has no explanation.
    """
    info = classifier.info
    look = Preprocessing(**info["preprocessing"])
    explanations = answer.explanations or []
    return Item(
        explanations,
        look(image, limits=Limits(**info["limits"])),
        exemplars_of(classifier, explanations[0]) if explanations else {},
        name=name,
        rejected=answer.predictions.rejected,
        reject_score=answer.predictions.reject_score,
    )


def exemplars_of(classifier: Classifier, explanation: Explanation) -> dict[int, Exemplars]:
    """Return the exemplars of the strongest features by their index, as far as the bundle has them.

    Args:
        classifier: What has made the explanation.
        explanation: The one that is drawn.
    """
    found = {}
    for index in strongest_features(explanation):
        with contextlib.suppress(UsageError):
            found[index] = classifier.exemplars(feature=index)
    return found


def strongest_features(explanation: Explanation) -> list[int]:
    """Return the indices of the three features whose exemplars are drawn.

    These are the features that set the class apart; where fewer do, the strongest ones of the class follow. Features
    that do nothing in this image are none of them.
    """
    most = max((abs(lead.value) for lead in explanation.leads), default=0.0)
    apart = [lead.index for lead in explanation.leads if abs(lead.value) > NEGLIGIBLE * most]
    of_class = [one.index for one in explanation.features if any(part.value for part in one.parts)]
    return list(dict.fromkeys([*apart, *of_class]))[:_FACES]
