"""The Tversky head as one matrix product after the projection.

Measures are affine functions of few quantities of the input (see `tnn_export.lowering.tversky.affine`), so the whole
head folds into one GEMM over ``[a+, m, sqrt(a+)]``, or those of them that the form needs, and at most one pairwise sum
for each kind of minimum. What follows the head's similarities, a logit scale or a linear map, is folded in where it can
be.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_export.lowering.tversky import affine
from tnn_export.lowering.tversky.affine import Affine, Prototypes
from tnn_export.lowering.tversky.columns import affine_map
from tnn_train.heads import TverskyHead
from tnn_train.heads.tversky.layer import SHORTEST

__all__ = ["lower_tversky"]

BLOCK_VALUES = 1 << 14
"""How many values of prototypes a block of a pairwise sum has; measured, see ``docs/results/head.md``."""


def lower_tversky(head: TverskyHead, *, parts: bool = False) -> nn.Module:
    """Fold the prototype side of a trained head into constants.

    The algebra runs in float64, but on the prototypes' features as the head itself computes them: which of them are
    present must not depend on the precision.

    Args:
        head: The trained head.
        parts: Whether to return a dictionary with `TverskyHead.evidence` beside the logits, and not these alone.
    """
    with torch.no_grad():
        b = head.prototype_values.cpu().double()
        membership, salience = head.features(b)
        weight = b.new_ones(b.shape[1]) if head.feature_weight is None else _constant(head.feature_weight)
        prototypes = Prototypes(membership, salience, weight, head.config.membership == "hard")
        alpha, beta, theta, scale = map(_constant, (head.alpha, head.beta, head.theta, head.logit_scale))
        common, input_only, prototype_only = _measures(head, prototypes)
        input_only, prototype_only = alpha * input_only, beta * prototype_only
        if head.config.model == "contrast":
            common = theta * common
        if parts:
            return _LoweredParts(head, prototypes, [common, input_only, prototype_only])
        if head.config.model == "contrast":
            return _Functions(head, prototypes, [common - input_only - prototype_only], head.linear)
        offset = prototypes.affine(constant=theta)
        numerator, denominator = common, common + input_only + prototype_only + offset
        if head.config.smooth:
            numerator = numerator + offset
        if head.linear is None:
            return _LoweredRatio(_Functions(head, prototypes, [scale * numerator, denominator]), nn.Identity())
        return _LoweredRatio(_Functions(head, prototypes, [numerator, denominator]), _scaled(head.linear, scale))


def _measures(head: TverskyHead, prototypes: Prototypes) -> tuple[Affine, Affine, Affine]:
    config = head.config
    intersection = affine.INTERSECTIONS[config.intersection]
    if config.model == "ratio" and config.intersection == "softmin":
        intersection = affine.softmin_of_means
    return intersection(prototypes), *affine.DIFFERENCES[config.difference](prototypes)


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _scaled(linear: nn.Linear, scale: Tensor) -> nn.Linear:
    """Return the linear map of values that are still to be multiplied by ``scale``."""
    scaled = nn.Linear(linear.in_features, linear.out_features, device="meta")
    scaled.weight = nn.Parameter((scale * _constant(linear.weight)).float())
    scaled.bias = nn.Parameter(_constant(linear.bias).float())
    return scaled


class _LoweredRatio(nn.Module):
    """Embeddings ``[N, D]`` to quotients of affine functions, or to a linear map of them: logits ``[N, C]``."""

    def __init__(self, quotients: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.quotients = quotients
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        numerator, denominator = self.quotients(x).chunk(2, dim=-1)
        logits: Tensor = self.linear(numerator / denominator)
        return logits


class _LoweredParts(nn.Module):
    """Embeddings ``[N, D]`` to logits ``[N, C]`` and what they are made of, ``[N, P]`` each."""

    theta: Tensor

    def __init__(self, head: TverskyHead, prototypes: Prototypes, parts: list[Affine]) -> None:
        super().__init__()
        self.parts = _Functions(head, prototypes, parts)
        self.is_ratio, self.is_smooth = head.config.model == "ratio", head.config.smooth
        self.register_buffer("theta", _constant(head.theta).float())
        scale = _constant(head.logit_scale)
        self.linear: nn.Module = nn.Identity()
        if head.linear is not None:
            self.linear = _scaled(head.linear, scale)
        elif self.is_ratio:
            self.linear = _Scale(scale)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        common, input_only, prototype_only = self.parts(x).chunk(3, dim=-1)
        if self.is_ratio:
            numerator = common + self.theta if self.is_smooth else common
            similarities = numerator / (common + input_only + prototype_only + self.theta)
        else:
            similarities = common - input_only - prototype_only
        return {
            "logits": self.linear(similarities),
            "similarities": similarities,
            "common": common,
            "input_only": input_only,
            "prototype_only": prototype_only,
        }


class _Scale(nn.Module):
    """A logit scale without a linear map."""

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())

    def forward(self, similarities: Tensor) -> Tensor:
        return self.scale * similarities


class _Functions(nn.Module):
    """Embeddings ``[N, D]`` to the values of affine functions, ``[N, K]``, or to a linear map of them, ``[N, C]``.

    What none of the functions uses is left out.
    """

    def __init__(
        self, head: TverskyHead, prototypes: Prototypes, functions: list[Affine], linear: nn.Linear | None = None
    ) -> None:
        super().__init__()
        stacked = Affine.stack(functions)
        self.features = _InputFeatures(head)
        self.uses_present, self.uses_root = bool(stacked.present.any()), bool(stacked.root.any())
        self.uses_positive = bool(stacked.positive.any()) or not (self.uses_present or self.uses_root)
        uses = (self.uses_positive, self.uses_present, self.uses_root)
        blocks = (stacked.positive, stacked.present, stacked.root)
        weight, constant = (
            torch.cat([block for block, used in zip(blocks, uses, strict=True) if used], 1),
            stacked.constant,
        )
        if linear is not None:
            weight = _constant(linear.weight) @ weight
            constant = _constant(linear.weight) @ constant + _constant(linear.bias)
        self.map = affine_map(weight, constant)
        sums = (
            (_MinimaBlock, stacked.minima),
            (_SoftMinimaBlock, stacked.soft_minima),
            (_SharedMinimaBlock, stacked.shared_minima),
        )
        self.sums = nn.ModuleList(
            _Multiples(block, prototypes, factors, linear) for block, factors in sums if factors.any()
        )

    def forward(self, x: Tensor) -> Tensor:
        positive, present = self.features(x)
        inputs: list[Tensor] = []
        if self.uses_positive:
            inputs.append(positive)
        if self.uses_present:
            inputs.append(present)
        if self.uses_root:
            inputs.append(positive.sqrt())
        joined = torch.cat(inputs, dim=-1) if len(inputs) > 1 else inputs[0]
        values: Tensor = self.map(joined)
        for multiples in self.sums:
            values = values + multiples(positive, present)
        return values


class _InputFeatures(nn.Module):
    """Embeddings ``[N, D]`` to saliences a+ and memberships m, ``[N, F]`` each."""

    bank: Tensor
    bias: Tensor

    def __init__(self, head: TverskyHead) -> None:
        super().__init__()
        self.normalize, self.opposites = head.config.normalize, head.config.opposites
        self.is_diagonal = head.feature_bank is None
        self.is_hard = head.config.membership == "hard"
        self.sharpness = head.config.sharpness
        self.shortest = SHORTEST
        bank = torch.empty(0) if head.feature_bank is None else _constant(head.feature_bank).float()
        self.register_buffer("bank", bank)
        self.has_bias = head.thresholds is not None
        bias = torch.empty(0) if head.thresholds is None else -_constant(head.thresholds).float()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.normalize:
            x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(self.shortest)
        if self.is_diagonal:
            a = x.abs() + self.bias if self.has_bias else x.abs()
        else:
            a = functional.linear(x, self.bank, self.bias if self.has_bias else None)
        if self.opposites:
            a = torch.cat([a, -self.opposites * a], dim=-1)
        value = a if self.is_diagonal and not self.has_bias else a.relu()
        if self.is_hard:
            return value, (value > 0).to(value.dtype)
        membership = (self.sharpness * a).sigmoid()
        return value * membership, membership


class _Multiples(nn.Module):
    """Multiples of a pairwise sum for K functions, ``[N, K]``, or a linear map of them, ``[N, C]``.

    Args:
        block: The kind of sum.
        prototypes: The constant side.
        factors: Of the sums, ``[K]``.
        linear: The map.
    """

    factors: Tensor
    weight: Tensor

    def __init__(
        self,
        block: "type[_MinimaBlock | _SoftMinimaBlock | _SharedMinimaBlock]",
        prototypes: Prototypes,
        factors: Tensor,
        linear: nn.Linear | None,
    ) -> None:
        super().__init__()
        count, features = prototypes.salience.shape
        size = max(1, BLOCK_VALUES // features)
        self.blocks = nn.ModuleList(block(prototypes, slice(start, start + size)) for start in range(0, count, size))
        self.functions = len(factors) // count
        self.is_mapped = linear is not None
        self.register_buffer("factors", factors.float())
        weight = torch.empty(0) if linear is None else (factors * _constant(linear.weight)).float()
        self.register_buffer("weight", weight)

    def forward(self, positive: Tensor, present: Tensor) -> Tensor:
        pieces = [block(positive, present) for block in self.blocks]
        sums = torch.cat(pieces, dim=-1) if len(pieces) > 1 else pieces[0]
        if self.is_mapped:
            return functional.linear(sums, self.weight)
        if self.functions > 1:
            sums = torch.cat([sums] * self.functions, dim=-1)
        return self.factors * sums


class _MinimaBlock(nn.Module):
    """M of some prototypes: saliences ``[N, F]`` to the sums of their minima with those of the prototypes."""

    salience: Tensor
    weight: Tensor

    def __init__(self, prototypes: Prototypes, rows: slice) -> None:
        super().__init__()
        self.register_buffer("salience", prototypes.salience[rows].float())
        self.register_buffer("weight", prototypes.weight.float())
        self.is_weighted = bool((prototypes.weight != 1).any())

    def forward(self, positive: Tensor, present: Tensor) -> Tensor:
        minima = torch.minimum(positive.unsqueeze(-2), self.salience)
        return minima @ self.weight if self.is_weighted else minima.sum(-1)


class _SoftMinimaBlock(nn.Module):
    """S of some prototypes: the sums of -log(e^-a + e^-b) over the features of both.

    As min(a, b) - log(1 + exp(-abs(a - b))), the logarithm cannot overflow.
    """

    salience: Tensor
    presence: Tensor

    def __init__(self, prototypes: Prototypes, rows: slice) -> None:
        super().__init__()
        self.register_buffer("salience", prototypes.salience[rows].float())
        self.register_buffer("presence", (prototypes.weight * prototypes.membership[rows]).float())

    def forward(self, positive: Tensor, present: Tensor) -> Tensor:
        a, b = positive.unsqueeze(-2), self.salience
        soft_minima = torch.minimum(a, b) - torch.log1p(torch.exp(-(a - b).abs()))
        return (soft_minima * self.presence @ present.unsqueeze(-1)).squeeze(-1)


class _SharedMinimaBlock(nn.Module):
    """The sums of min(a+ m, b+ n) of some prototypes: M of saliences that are times their memberships."""

    def __init__(self, prototypes: Prototypes, rows: slice) -> None:
        super().__init__()
        salience = prototypes.salience * prototypes.membership
        self.minima = _MinimaBlock(dataclasses.replace(prototypes, salience=salience), rows)

    def forward(self, positive: Tensor, present: Tensor) -> Tensor:
        minima: Tensor = self.minima(positive * present, present)
        return minima
