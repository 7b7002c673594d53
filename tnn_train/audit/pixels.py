"""What the pixels are worth that a map shows as strongest: the margin without them.

A pixel that is removed becomes the mean colour that the model normalises with, 0 after the normalisation. A random
choice is the same set of pixels, moved to a random place, over the edge of the image if it has to be: as many pixels in
as many pieces. Pixels that are scattered at random are another comparison, an easier or a harder one by how a model
takes to noise.

Source: deletion of Petsiuk et al. (2018, arXiv 1806.07421), and the random regions of Samek et al. (2017, arXiv
1509.06321).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.text import a_head
from tnn_train.audit.subject import Subject
from tnn_train.model.image_model import ImageModel, Normalize

__all__ = [
    "REFERENCES",
    "Margins",
    "margin_maps",
    "moved",
    "need_captum",
    "need_maps",
    "relevance_of",
    "remove_pixels",
    "strongest_pixels",
]

SHARE = 0.1
"""Which share of the pixels is removed."""

DRAWS = 4
"""How many random choices each image is compared with."""

_BATCH = 32
_STEPS = 16
_WINDOWS = 4
_EXTRA = "audit"

Relevance = NDArray[np.float32]
Margin = Callable[[Tensor, Tensor], Tensor]
Attribution = Callable[[Margin, Tensor, Tensor], Tensor]


@torch.no_grad()
def margin_maps(subject: Subject) -> Relevance:
    """Return where the margin of the best class over the runner-up comes from, float32 ``[n, h, w]``.

    It is the map of the logit of the one less that of the other: the map of the difference in drawings.

    Raises:
        UsageError: If the backbone has no feature maps.
    """
    model = subject.checkpoint.model
    trunk, normalize = model.trunk(), Normalize(subject.checkpoint.preprocessing)
    found = []
    for images in torch.split(torch.from_numpy(subject.images), _BATCH):
        maps = trunk(normalize(images))
        embeddings = model.taken(maps)
        features = model.head.feature_maps(maps, embeddings).numpy()
        logits = model.head(embeddings).numpy()
        for best, other in subject.explainer(embeddings.numpy(), logits, 2, 1, 0, maps=features):
            assert best.maps is not None
            assert other.maps is not None
            found.append(best.maps.logit - other.maps.logit)
    return np.stack(found)


def relevance_of(maps: Relevance, height: int, width: int) -> Relevance:
    """Return maps ``[n, h, w]`` for each pixel, ``[n, height, width]``: bilinear between the centres of the places."""
    pixels = functional.interpolate(torch.from_numpy(maps)[:, None], (height, width), mode="bilinear")
    return np.asarray(pixels[:, 0].numpy())


def strongest_pixels(relevance: Relevance, share: float = SHARE) -> NDArray[np.bool_]:
    """Return the strongest pixels of each image, bool ``[n, H, W]``, as many in each.

    Args:
        relevance: ``[n, H, W]``.
        share: Which share of all pixels, above 0 and at most 1.
    """
    flat = relevance.reshape(len(relevance), -1)
    count = max(1, round(share * flat.shape[1]))
    chosen = np.zeros(flat.shape, bool)
    np.put_along_axis(chosen, np.argsort(-flat, 1, kind="stable")[:, :count], True, 1)
    return chosen.reshape(relevance.shape)


def moved(chosen: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the same pixels at another place, drawn for each image; what leaves on one side comes in on the other."""
    height, width = chosen.shape[1:]
    places = random.integers(1, height * width, len(chosen))
    return np.stack([np.roll(one, divmod(int(k), width), (0, 1)) for one, k in zip(chosen, places, strict=True)])


def remove_pixels(
    relevance: Relevance, drop: Callable[[NDArray[np.bool_]], NDArray[np.float64]], *, seed: int = 0
) -> dict[str, float]:
    """Remove the strongest tenth of the pixels, and random ones, and compare what the margin loses.

    Args:
        relevance: Of each pixel, ``[n, H, W]``.
        drop: Returns how much the margin of each image drops, float64 ``[n]``, without some pixels, bool ``[n, H, W]``.
        seed: Decides the random choices.

    Returns:
        ``win``, the share of images and of random choices where the strongest pixels drop it more; ``scattered_win``,
        the same with scattered ones; the mean ``drop`` of the strongest ones, and the ``random_drop``.
    """
    random = np.random.default_rng(seed)
    chosen = strongest_pixels(relevance)
    ours = drop(chosen)
    elsewhere = [drop(moved(chosen, random)) for _ in range(DRAWS)]
    scattered = [drop(strongest_pixels(random.random(relevance.shape, np.float32))) for _ in range(DRAWS)]
    return {
        "win": float(np.mean([ours > theirs for theirs in elsewhere])),
        "scattered_win": float(np.mean([ours > theirs for theirs in scattered])),
        "drop": float(ours.mean()),
        "random_drop": float(np.mean(elsewhere)),
    }


class Margins:
    """How far the logit of the best class of each image lies above that of the runner-up, whatever becomes of it.

    Args:
        subject: The model and its images.
    """

    def __init__(self, subject: Subject) -> None:
        self._model = subject.checkpoint.model
        self._normalize = Normalize(subject.checkpoint.preprocessing)
        self._images = subject.images
        with torch.no_grad():
            self._pairs = self._model.head(subject.embeddings).topk(2, 1).indices
        mean = np.rint(255 * np.array(subject.checkpoint.preprocessing.mean))
        self._fill = np.clip(mean, 0, 255).astype(np.uint8)
        self._before = self._of(self._images)

    def drop(self, removed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return how much the margins drop, float64 ``[n]``, without some pixels, bool ``[n, H, W]``."""
        return self._before - self._of(np.where(removed[..., None], self._fill, self._images))

    def attribute(self, method: Attribution) -> Relevance:
        """Return what a method makes of the margin as a function of normalised images, float32 ``[n, H, W]``.

        Args:
            method: One of `REFERENCES`.
        """
        found = []
        for images, pairs in self._batches(self._images):
            found.append(method(self._margin, self._normalize(images), pairs).sum(1).detach().float())
        return np.asarray(torch.cat(found).numpy())

    @torch.no_grad()
    def _of(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        margins = [self._margin(self._normalize(batch), pairs) for batch, pairs in self._batches(images)]
        return np.asarray(torch.cat(margins).double().numpy())

    def _batches(self, images: NDArray[np.uint8]) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(torch.split(torch.from_numpy(images), _BATCH), torch.split(self._pairs, _BATCH), strict=True)

    def _margin(self, x: Tensor, pairs: Tensor) -> Tensor:
        logits: Tensor = self._model(x).gather(1, pairs)
        return logits[:, 0] - logits[:, 1]


def _saliency(margin: Margin, x: Tensor, pairs: Tensor) -> Tensor:
    from captum.attr import Saliency

    found: Tensor = Saliency(margin).attribute(x.requires_grad_(), additional_forward_args=pairs)
    return found


def _integrated(margin: Margin, x: Tensor, pairs: Tensor) -> Tensor:
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(margin).attribute(
        x, additional_forward_args=pairs, n_steps=_STEPS, internal_batch_size=_BATCH
    )
    return found


def _occlusion(margin: Margin, x: Tensor, pairs: Tensor) -> Tensor:
    from captum.attr import Occlusion

    window = (x.shape[1], *(max(1, side // _WINDOWS) for side in x.shape[2:]))
    found: Tensor = Occlusion(margin).attribute(
        x, window, strides=(1, *window[1:]), additional_forward_args=pairs, perturbations_per_eval=1
    )
    coarse = functional.avg_pool2d(found, window[1:], window[1:], ceil_mode=True, count_include_pad=False)
    return functional.interpolate(coarse, x.shape[2:], mode="bilinear")


REFERENCES: Mapping[str, Attribution] = {
    "saliency": _saliency,
    "integrated": _integrated,
    "occlusion": _occlusion,
}
"""Attributions of the margin by Captum: the size of its gradient, gradients integrated from the mean colour, and what
is lost without each window.

Each takes the margin as a function of normalised images ``[b, C, H, W]`` and their pairs of classes ``[b, 2]``, and
both; it returns ``[b, C, H, W]``.
"""


def need_captum() -> None:
    """Make sure that Captum is installed.

    Raises:
        UsageError: If it is not.
    """
    if find_spec("captum") is None:
        raise UsageError(
            "the references are from Captum, which is not installed; leave references out of --measures, or run: "
            + install_command(_EXTRA)
        )


def need_maps(model: ImageModel) -> None:
    """Make sure that a model has feature maps.

    Raises:
        UsageError: If it has not.
    """
    if not model.head.has_feature_maps:
        raise UsageError(f"the features of {a_head(model.head.family)} have no places; leave pixels out of --measures")
    try:
        model.trunk()
    except UsageError as error:
        raise UsageError(f"{error}; leave pixels out of --measures") from error
