"""The heads of an ensemble taken together: from the embeddings of all members to the mean of their probabilities.

With the logits z_k of member k and its temperature T_k, the logits of the ensemble are

    log((1 / K) sum_k softmax(z_k / T_k))

so that their softmax is the mean of the members' probabilities, the linear opinion pool (Stone 1961, "The Opinion
Pool"; for neural networks Lakshminarayanan et al. 2017, arXiv 1612.01474, section 2.4). They are computed as the
logarithm of a sum of exponentials of logarithms, which neither overflows nor loses small probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tnn_export.ensemble.member import ENSEMBLE, MEMBERS, Member
from tnn_runtime.bundle.json_values import decode
from tnn_train.heads import HEADS, Head, build_head
from tnn_train.model.config import ModelConfig

__all__ = ["EnsembleHead", "exported_head", "meanings_of"]

_MEANINGS = {
    "logits": "one for each class: the logarithm of the mean of the members' probabilities",
    "embedding": "the embeddings of all members, one after another",
    "probabilities": "the mean of the members' probabilities, without a temperature of the ensemble",
}


class EnsembleHead(Head):
    """The heads of all members, on their embeddings one after another, ``[N, D_1 + … + D_K]``.

    Args:
        heads: The trained head of each member.
        members: What is known of each.
    """

    family: ClassVar[str] = ENSEMBLE
    evidence_meanings: ClassVar[Mapping[str, str]] = {
        "member_probabilities": "of each member, with its own temperature"
    }
    reject_score: ClassVar[str] = "probability"

    def __init__(self, heads: Sequence[Head], members: Sequence[Member]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.members = tuple(members)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ensemble, float32 ``[N, C]``."""
        return self._mean([head(part) for head, part in self._parts(x)])

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return ``member_probabilities``, float32 ``[N, K, C]``."""
        values = self.switches(x) if switches is None else switches
        logits = [head(part) for head, part in self._parts(x)] if values is None else self._scores(values)
        return {"member_probabilities": self._logarithms(logits).exp().float()}

    def switches(self, x: Tensor) -> Tensor | None:
        """Return the switches of all members, one after another; those of a member without any are its logits.

        Such a logit never crosses 0: it stands as the logarithm of a probability, less 1.
        """
        found = [head.switches(part) for head, part in self._parts(x)]
        if all(values is None for values in found):
            return None
        pairs = zip(self._parts(x), found, strict=True)
        return torch.cat([_settled(head(part)) if values is None else values for (head, part), values in pairs], 1)

    def score(self, switches: Tensor) -> Tensor:
        """Return the logits of the ensemble that follow from values of `switches`."""
        return self._mean(self._scores(switches))

    def reach(self, x: Tensor) -> Tensor:
        """Return how large the `switches` can be; 0 where they are logits, which are sure of their side."""
        return torch.cat(
            [
                head.reach(part) if head.switches(part[:1]) is not None else torch.zeros_like(head(part))
                for head, part in self._parts(x)
            ],
            1,
        )

    def _parts(self, x: Tensor) -> list[tuple[Head, Tensor]]:
        """Return the head of each member with what it takes."""
        parts = torch.split(x, [math.prod(member.embedding) for member in self.members], 1)
        shaped = [part.reshape(-1, *member.embedding) for part, member in zip(parts, self.members, strict=True)]
        return list(zip(self.heads, shaped, strict=True))  # type: ignore[arg-type]

    def _scores(self, switches: Tensor) -> list[Tensor]:
        """Return the logits of each member that follow from values of `switches`."""
        nothing = [torch.zeros(1, *member.embedding) for member in self.members]
        empty = [head.switches(one) for head, one in zip(self.heads, nothing, strict=True)]  # type: ignore[operator]
        counts = [self._num_classes if values is None else values.shape[1] for values in empty]
        return [
            part + 1 if values is None else head.score(part)  # type: ignore[operator]
            for head, values, part in zip(self.heads, empty, torch.split(switches, counts, 1), strict=True)
        ]

    @property
    def _num_classes(self) -> int:
        return int(self.members[0].model["num_classes"])

    def _logarithms(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the logarithms of the members' probabilities, float64 ``[N, K, C]``, from the logits of each."""
        found = []
        for member, values in zip(self.members, logits, strict=True):
            values = values.double() / (member.temperature or 1.0)
            found.append(torch.log_softmax(values if member.order is None else values[:, list(member.order)], 1))
        return torch.stack(found, 1)

    def _mean(self, logits: Sequence[Tensor]) -> Tensor:
        return (torch.logsumexp(self._logarithms(logits), 1) - math.log(len(logits))).float()


def _settled(logits: Tensor) -> Tensor:
    """Return logits with the same softmax that are all below 0, by 1 at least."""
    return torch.log_softmax(logits, 1) - 1


def exported_head(model: Mapping[str, Any], in_features: int) -> Head:
    """Build the untrained head of what was exported, an ensemble or not.

    Args:
        model: ``model`` of its manifest.
        in_features: The size of its embedding, or of its map at each place.

    Raises:
        ArtifactError, TypeError, UsageError: If there is no such head.
    """
    if model.get("head") == ENSEMBLE:
        members = decode(tuple[Member, ...], model[MEMBERS], MEMBERS)
        return EnsembleHead([exported_head(member.model, member.embedding[0]) for member in members], members)
    config: ModelConfig = decode(ModelConfig, model, "model")
    return build_head(config.head, in_features, config.num_classes, config.options)


def meanings_of(family: str) -> Mapping[str, str]:
    """Return what outputs mean for a family of heads, beside those that mean the same for all."""
    if family == ENSEMBLE:
        return {**_MEANINGS, **EnsembleHead.evidence_meanings}
    return HEADS[family].evidence_meanings
