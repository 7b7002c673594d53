"""What a proof is made on: real images, random ones, and those that are known to bring faults to light."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.errors import ExportError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import Head

__all__ = ["REAL", "Samples", "make_embeddings", "make_samples"]

REAL = "real"
_RANDOM = 4
_BOUNDARY_SWITCHES = 4
_NEWTON_STEPS = 3
_BESIDE = 1e-7


@dataclass(frozen=True)
class Samples:
    """What to compare an artifact with eager PyTorch on.

    Args:
        images: Distinct images, uint8 ``[N, H, W, C]``; or, for a head alone, embeddings, float32 ``[N, ...]``.
        kinds: For each, ``"real"`` or how it was made.
        labels: For each its class, int64 ``[N]``, -1 where it is not known.
    """

    images: NDArray[Any]
    kinds: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def is_real(self) -> NDArray[np.bool_]:
        """Which of them are real images, ``[N]``."""
        return np.array([kind == REAL for kind in self.kinds])

    def __len__(self) -> int:
        return len(self.kinds)


def make_samples(
    preprocessing: Preprocessing,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    *,
    needs_real: bool = True,
) -> Samples:
    """Return real images without repetitions, followed by random and adversarial ones.

    Args:
        preprocessing: Of the model, for the size of the images.
        images: Real images, uint8 ``[n, H, W, C]``.
        labels: Their classes, int64 ``[n]``; ``None`` where they are not known.
        needs_real: Whether there must be a real one.

    Raises:
        ExportError: If there is no image where one is needed, or they are of another type or size.
    """
    shape = preprocessing.shape
    if images.dtype != np.uint8 or images.shape[1:] != shape or (needs_real and len(images) == 0):
        raise ExportError(
            f"got parity images of dtype {images.dtype} and shape {list(images.shape)}; expected uint8 [N, "
            f"{', '.join(map(str, shape))}] with N > 0"
        )
    if labels is not None and labels.shape != images.shape[:1]:
        raise ExportError(f"got {len(labels)} labels for {len(images)} parity images; expected one for each")
    _, firsts = np.unique(images, axis=0, return_index=True)
    firsts = np.sort(firsts)
    made = _made(shape)
    known = np.full(len(images), -1, np.int64) if labels is None else labels
    return Samples(
        np.concatenate([images[firsts], *made.values()]),
        (REAL,) * len(firsts) + tuple(kind for kind, group in made.items() for _ in group),
        np.concatenate([known[firsts], np.full(sum(map(len, made.values())), -1, np.int64)]),
    )


def _made(shape: tuple[int, int, int]) -> dict[str, NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    height, width, channels = shape
    rows, columns = np.indices((height, width))
    checkers = ((rows + columns) % 2 * 255).astype(np.uint8)[:, :, None].repeat(channels, 2)
    halves = np.where(columns < width / 2, 0, 255).astype(np.uint8)[:, :, None].repeat(channels, 2)
    one_channel = np.zeros((channels, *shape), np.uint8)
    one_channel[range(channels), :, :, range(channels)] = 255
    return {
        "random": random.integers(0, 256, (_RANDOM, *shape), dtype=np.uint8),
        "zeros": np.zeros((1, *shape), np.uint8),
        "constant": np.stack([np.full(shape, value, np.uint8) for value in (1, 128)]),
        "saturated": np.unique(np.concatenate([np.full((1, *shape), 255, np.uint8), one_channel]), axis=0),
        "pattern": np.stack([checkers, halves]),
    }


def make_embeddings(head: Head, embeddings: Tensor) -> Samples:
    """Return embeddings to compare a lowered head on: those of images, random and extreme ones, and the boundary.

    For a head whose logits jump, the last ones put single switches on either side of 0, by a ten-millionth of what the
    switch could reach.

    Args:
        head: The trained head.
        embeddings: Of images, float32 ``[n, D]`` or ``[n, D, h, w]``.
    """
    generator = torch.Generator().manual_seed(0)
    scale = embeddings.abs().mean().clamp_min(1e-3)
    size = embeddings.shape[1:]
    groups = {
        REAL: embeddings,
        "random": scale * torch.randn(8, *size, generator=generator),
        "zeros": torch.zeros(1, *size),
        "tiny": torch.full((1, *size), 1e-30),
        "opposite": -embeddings[:1],
        "large": 100 * embeddings[:1],
    }
    with torch.no_grad():
        jumps = head.switches(embeddings[:1]) is not None
    if jumps:
        groups["boundary"] = _around_the_boundary(head, embeddings[0])
    return Samples(
        torch.cat(list(groups.values())).numpy(),
        tuple(kind for kind, group in groups.items() for _ in group),
        np.full(sum(map(len, groups.values())), -1, np.int64),
    )


def _around_the_boundary(head: Head, x: Tensor) -> Tensor:
    """Return an embedding moved to either side of 0 of each of the first switches, ``[2 k, ...]``.

    Newton's method finds the places: exact in one step where a switch is linear in the embedding.
    """
    head, x = copy.deepcopy(head).cpu().double(), x.double()
    moved = []
    for side in (-1.0, 1.0):
        for switch in range(min(_BOUNDARY_SWITCHES, _values(head, x).shape[0])):
            place = x
            for _ in range(_NEWTON_STEPS):
                place = place.detach().requires_grad_()
                value = _values(head, place)[switch]
                (slope,) = torch.autograd.grad(value, place)
                distance = value.detach() - side * _BESIDE * head.reach(place.detach()[None])[0, switch].detach()
                place = place - distance / slope.square().sum().clamp_min(1e-30) * slope
            moved.append(place.detach().float())
    return torch.stack(moved)


def _values(head: Head, x: Tensor) -> Tensor:
    switches = head.switches(x[None])
    assert switches is not None
    return switches[0]
