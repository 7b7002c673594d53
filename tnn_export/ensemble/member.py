"""What a bundle records of each model that it is an ensemble of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ENSEMBLE", "MEMBERS", "Member"]

ENSEMBLE = "ensemble"
"""What stands for the family of the head of an ensemble, in manifests."""

MEMBERS = "members"
"""The entry of ``model`` in a manifest, and the stage of a proof, that is about the members."""


@dataclass(frozen=True)
class Member:
    """A model of an ensemble, as its own bundle has it.

    Args:
        name: What the folder of its bundle was called, for people to read.
        digest: SHA-256 of the manifest of its bundle.
        model: ``model`` of that manifest.
        precision: What it computes in.
        embedding: The shape of its embedding of one image.
        temperature: What its logits are divided by before their softmax; ``None`` for nothing.
        order: For each class of the ensemble its place among the logits of the member; ``None`` where it is the same.
    """

    name: str
    digest: str
    model: dict[str, Any]
    precision: str
    embedding: tuple[int, ...]
    temperature: float | None = None
    order: tuple[int, ...] | None = None
