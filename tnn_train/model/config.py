"""What a model is built from, as a frozen dataclass that checks its own values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from tyro.conf import Suppress, arg

from tnn_train.fields import Field, FieldError, at_least, one_of
from tnn_train.heads import DEFAULT, HEADS, TverskyHead
from tnn_train.heads.logic.config import LogicConfig
from tnn_train.heads.lvq.config import LvqConfig
from tnn_train.heads.matching.config import MatchingConfig
from tnn_train.heads.parts.config import PartsConfig
from tnn_train.heads.tversky.config import EMBEDDING, IMAGE, TverskyConfig

__all__ = ["PIXELS", "ModelConfig", "options_field"]

PIXELS = "pixels"
"""The backbone without weights: its embedding is the normalised pixels, its map the image."""


@dataclass(frozen=True)
class ModelConfig:
    """A backbone and a head; each head family with options has a field, of the family's name.

    Args:
        backbone: A classifier of torchvision with a linear last layer, such as resnet50; or pixels, the image itself.
        head: The family of the head, a key of `tnn_train.heads.HEADS`.
        num_classes: C, the number of logits.
        in_channels: 1 (grey) or 3 (RGB).
        stem: How a ResNet begins: small, a 3x3 convolution with stride 1 and no pooling; imagenet, torchvision's 7x7
            convolution with stride 2 and pooling; auto, small for images below 96 pixels unless weights decide.
        image_size: Rows and columns of the images where the model depends on them: its backbone is pixels, or its
            head's prototypes and features are learned as images; else empty.
        tversky: The form of the head if it is tversky.
        lvq: The form of the head if it is lvq.
        parts: The form of the head if it is parts.
        logic: The form of the head if it is logic.
        matching: The form of the head if it is matching.
    """

    backbone: str = "resnet18"
    head: Annotated[str, arg(help=f"The family of the head: {', '.join(HEADS)}.")] = DEFAULT
    num_classes: Annotated[int, Suppress] = 10
    in_channels: Annotated[int, Suppress] = 3
    stem: str = "auto"
    image_size: Annotated[tuple[int, ...], Suppress] = ()
    tversky: TverskyConfig = field(default_factory=TverskyConfig)
    lvq: LvqConfig = field(default_factory=LvqConfig)
    parts: PartsConfig = field(default_factory=PartsConfig)
    logic: LogicConfig = field(default_factory=LogicConfig)
    matching: MatchingConfig = field(default_factory=MatchingConfig)

    def __post_init__(self) -> None:
        at_least(self, 2, "num_classes")
        one_of(self, "in_channels", (1, 3))
        one_of(self, "stem", ("auto", "imagenet", "small"))
        if self.tversky.domain == IMAGE and self.head != TverskyHead.family:
            domain = Field(TverskyConfig, "domain")
            raise FieldError(
                *(
                    domain,
                    f" is {IMAGE}, and ",
                    Field(ModelConfig, "head"),
                    f" is {self.head}, which learns no images; ",
                ),
                *(f"choose {TverskyHead.family}, or leave ", domain, " out"),
            )

    @property
    def options(self) -> Any:
        """The options of the head that it has; ``None`` if its family has none."""
        return getattr(self, options_field(self.head), None)

    @property
    def depends_on_size(self) -> bool:
        """Whether a model for images of another size is another model."""
        return self.backbone == PIXELS or HEADS[self.head].learns_images(self.options)

    def for_size(self, height: int, width: int) -> ModelConfig:
        """Return the configuration for images of that size, which it notes if the model depends on it."""
        return replace(self, image_size=(height, width) if self.depends_on_size else ())

    def with_head(self, head: str) -> ModelConfig:
        """Return the configuration with another head; nothing is learned as images where it cannot be."""
        options = self.tversky if head == TverskyHead.family else replace(self.tversky, domain=EMBEDDING)
        return replace(self, head=head, tversky=options)

    def resolved(self, class_names: Sequence[str], in_features: int, *, is_frozen: bool) -> ModelConfig:
        """Return the configuration with what data and recipe decide of the head: see `Head.resolve`."""
        return self.with_options(
            HEADS[self.head].resolve(
                self.options, class_names, in_features, is_frozen=is_frozen, is_pixels=self.backbone == PIXELS
            )
        )

    def with_options(self, options: Any) -> ModelConfig:
        """Return the configuration with other options of the head; as it is if its family has none."""
        name = options_field(self.head)
        return replace(self, **{name: options}) if hasattr(self, name) else self


def options_field(family: str) -> str:
    """Return the name of the field that holds the options of a head family."""
    return family.replace("-", "_")
