"""Images that a training learns: the backbone embeds them, and parameters of the head follow from the embeddings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tnn_runtime.images.preprocess import Preprocessing

__all__ = ["LearnedImages"]

_GAIN = 10.0
"""The log odds of a pixel's value are so many times the parameter: the steps of a training are small beside them."""

_DARKEST = 0.02
"""How near to black and to white a pixel starts: a sigmoid hardly moves at its ends."""


class LearnedImages(nn.Module):
    """Learned images, those of each parameter of a head by its name; their pixels stay within 0 and 1.

    They are normalised as images are, and leave no trace in the running statistics of batch norm.

    Args:
        counts: How many images each parameter follows from.
        shape: Of an image, ``(C, H, W)``.

    Attributes:
        raw: The parameters ``[n, C, H, W]``: the log odds of the pixels, but for a factor.
        mean: Buffer ``[C, 1, 1]``: what is subtracted from the pixels of an image before it is embedded.
        std: Buffer ``[C, 1, 1]``: what they are divided by then.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, counts: Mapping[str, int], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.raw = nn.ParameterDict({name: nn.Parameter(torch.zeros(count, *shape)) for name, count in counts.items()})
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("std", torch.ones(shape[0], 1, 1))

    @property
    def counts(self) -> dict[str, int]:
        """How many images each parameter follows from."""
        return {name: len(raw) for name, raw in self.raw.items()}

    def pixels(self) -> dict[str, Tensor]:
        """Return the images of each parameter, ``[n, C, H, W]``, 0 to 1."""
        return {name: torch.sigmoid(_GAIN * raw) for name, raw in self.raw.items()}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, backbone: nn.Module, *, own_statistics: bool = False) -> dict[str, Tensor]:
        """Return what a backbone makes of the images of each parameter, ``[n, ...]``.

        Args:
            backbone: From normalised images to embeddings.
            own_statistics: Whether batch norm takes the statistics of these images, and leaves its running ones as they
                are, or the backbone works as in evaluation.
        """
        pixels = torch.cat(list(self.pixels().values()))
        with _unrecorded(backbone) if own_statistics else _evaluating(backbone):
            embeddings: Tensor = backbone((pixels - self.mean) / self.std)
        return dict(zip(self.raw, torch.split(embeddings, list(self.counts.values())), strict=True))

    @torch.no_grad()
    def start(self, preprocessing: Preprocessing, pixels: Mapping[str, Tensor]) -> None:
        """Let the training begin with these images.

        Args:
            preprocessing: How images are normalised.
            pixels: The images of each parameter, ``[n, C, H, W]``, 0 to 1.
        """
        self.mean.copy_(torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.std.copy_(torch.tensor(preprocessing.std).view(-1, 1, 1))
        for name, raw in self.raw.items():
            raw.copy_(torch.logit(pixels[name], _DARKEST) / _GAIN)

    @torch.no_grad()
    def without(self, name: str, places: Collection[int]) -> LearnedImages:
        """Return the images without some of those of one parameter."""
        state = self.state_dict()
        left = [place for place in range(len(self.raw[name])) if place not in places]
        state[f"raw.{name}"] = self.raw[name].detach()[left]
        shape = self.raw[name].shape[1:]
        images = LearnedImages({**self.counts, name: len(left)}, (shape[0], shape[1], shape[2]))
        images.load_state_dict(state)
        return images


@contextmanager
def _unrecorded(module: nn.Module) -> Iterator[None]:
    """Let running statistics stay as they are, whatever a module sees."""
    norms = [part for part in module.modules() if getattr(part, "running_mean", None) is not None]
    kept = [dict(part.named_buffers(recurse=False)) for part in norms]
    for part, buffers in zip(norms, kept, strict=True):
        for name, buffer in buffers.items():
            setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, buffers in zip(norms, kept, strict=True):
            for name, buffer in buffers.items():
                setattr(part, name, buffer)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Let a module work as in evaluation, and go on as it was."""
    in_training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in in_training:
            part.training = True
