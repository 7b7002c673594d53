"""A trained head of learning vector quantisation without some features or prototypes, or with one more class."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor

from tnn_runtime.errors import UsageError
from tnn_train.heads.lvq.layer import LvqLayer

__all__ = ["with_class", "without"]

H = TypeVar("H", bound=LvqLayer)


def without(head: H, features: Collection[int], prototypes: Collection[int]) -> H:
    """Return a head as it is without some features and prototypes; see `tnn_train.heads.Head.without`.

    Without a feature, every image has that of the centre. The centre stays where it was.
    """
    config = head.config
    if again := {*config.dropped} & {*features}:
        raise UsageError(f"feature {min(again)} is left out already")
    dropped = tuple(sorted({*config.dropped, *features}))
    if len(dropped) == head.size:
        raise UsageError(f"all {len(dropped)} features are left out; leave at least one")
    owners = head.owners.tolist()
    left = [place for place in range(len(owners)) if place not in prototypes]
    for place in sorted(prototypes):
        if owners[place] not in {owners[other] for other in left}:
            last = sum(owner == owners[place] for owner in owners) == 1
            raise UsageError(
                f"prototype {place} is {'the only one' if last else 'one of those'} of its class, which nothing could "
                "be without " + ("it; leave it in" if last else "any; leave one of them in")
            )
    return _made(head, head.num_classes, head.prototypes[left], [owners[place] for place in left], dropped)


def with_class(head: H, examples: Tensor, place: int) -> H:
    """Return a head with one more class; see `tnn_train.heads.Head.with_class`.

    Its prototype is the mean of the images. Distances need no more: the new logit is on the scale of the others.
    """
    mean = head.latent(examples).mean(0, keepdim=True)
    owners = [owner + (owner >= place) for owner in head.owners.tolist()]
    before = sum(owner < place for owner in owners)
    prototypes = torch.cat([head.prototypes[:before], mean.to(head.prototypes), head.prototypes[before:]])
    return _made(
        head, head.num_classes + 1, prototypes, [*owners[:before], place, *owners[before:]], head.config.dropped
    )


@torch.no_grad()
def _made(head: H, num_classes: int, prototypes: Tensor, owners: Collection[int], dropped: tuple[int, ...]) -> H:
    config = dataclasses.replace(head.config, owners=tuple(owners), dropped=dropped, has_centre=True)
    made = type(head)(head.in_features, num_classes, config).to(head.prototypes)
    made.load_state_dict({**head.state_dict(), "prototypes": prototypes, "own_centre": head.centre})
    return made.train(head.training)
