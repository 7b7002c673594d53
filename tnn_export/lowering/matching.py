"""The similarity matching head: a linear circuit folded to one matrix product, a non-negative one unrolled."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_export.errors import ExportError
from tnn_export.lowering.linear import lower_linear
from tnn_train.heads import MatchingHead

__all__ = ["lower_matching", "lower_matching_maps"]

_MOST_CONDITION = 1e5
"""Beyond this condition number, rounding alone moves what a linear circuit gives by more than a proof allows."""


def lower_matching(head: MatchingHead, *, parts: bool = False) -> nn.Module:
    """Return a module of matrix products, and for a non-negative circuit of the ReLU after each.

    Raises:
        ExportError: If the circuit does not settle, or is too ill-conditioned for a proof.
    """
    _refuse_divergence(head)
    if head.config.is_rectified:
        circuit: nn.Module = _Unrolled(head)
    else:
        drive, rest = _folded(head)
        if not parts:
            weight, bias = (value.detach().cpu().double() for value in (head.classifier.weight, head.classifier.bias))
            return _linear(weight @ drive, weight @ rest + bias)
        circuit = _linear(drive, rest)
    return _WithUnits(circuit, head) if parts else nn.Sequential(circuit, lower_linear(head.classifier))


def lower_matching_maps(head: MatchingHead) -> nn.Module:
    """Return what makes feature maps: a linear circuit at each place.

    Raises:
        ExportError: If the circuit is not linear, or as for `lower_matching`.
    """
    if head.config.is_rectified:
        raise ExportError(
            "a non-negative circuit has no feature maps: its units are not linear in the mean over the places of an "
            "image; leave the output feature_maps out, or train with a linear one (--matching.activation linear)"
        )
    _refuse_divergence(head)
    return _Places(*_folded(head))


def _refuse_divergence(head: MatchingHead) -> None:
    """Refuse a circuit that does not settle."""
    lateral = head.circuit.lateral.detach().cpu().double()
    if not all(bool(value.isfinite().all()) for value in head.state_dict().values()):
        raise ExportError(
            "a weight of the matching head is no finite number; train it again with a lower learning rate"
        )
    values = torch.linalg.eigvalsh(lateral)
    smallest, largest, pace = float(values[0]), float(values[-1]), head.circuit.pace
    if smallest <= 0:
        raise ExportError(
            f"the lateral weights of the matching head are not positive definite, their smallest eigenvalue is "
            f"{smallest:.3g}, so that its circuit does not settle; train it again with a lower learning rate or a "
            "larger leak (--matching.leak)"
        )
    if head.config.is_rectified and pace * largest >= 2:
        raise ExportError(
            f"the circuit of the matching head diverges with the step {pace:.3g}, since the largest eigenvalue of its "
            f"lateral weights is {largest:.3g}; expected a step below {2 / largest:.3g}: train it again without a "
            "step of its own (--matching.step)"
        )
    if not head.config.is_rectified and largest / smallest > _MOST_CONDITION:
        raise ExportError(
            f"the lateral weights of the matching head have the condition number {largest / smallest:.2g}; a linear "
            f"circuit can be proven up to {_MOST_CONDITION:.0g}: train it again with fewer units or a larger leak "
            "(--matching.leak)"
        )


def _folded(head: MatchingHead) -> tuple[Tensor, Tensor]:
    """Return the weight ``[K, D]`` and the bias ``[K]`` that a linear circuit is, float64 on the CPU."""
    drive = head.projection.detach().cpu() * head.scaling.factor.cpu().double()
    return drive, -drive @ head.scaling.center.cpu().double()


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    plain.weight = nn.Parameter(weight.float().contiguous())
    plain.bias = nn.Parameter(bias.float())
    return plain


class _Unrolled(nn.Module):
    """``y <- max(y (1 - step M) + step b, 0)``, as often as the head does it in evaluation, from 0."""

    kept: Tensor

    def __init__(self, head: MatchingHead) -> None:
        super().__init__()
        circuit = head.circuit
        lateral = circuit.lateral.detach().cpu().double()
        drive = circuit.pace * head.encoder.detach().cpu().double() * head.scaling.factor.cpu().double()
        self.drive = _linear(drive, -drive @ head.scaling.center.cpu().double())
        kept = torch.eye(len(lateral), dtype=torch.float64) - circuit.pace * lateral
        self.register_buffer("kept", kept.float())
        self.more = int(head.settled) - 1

    def forward(self, x: Tensor) -> Tensor:
        drive = self.drive(x)
        y = torch.relu(drive)
        for _ in range(self.more):
            y = torch.relu(torch.addmm(drive, y, self.kept))
        return y


class _WithUnits(nn.Module):
    def __init__(self, circuit: nn.Module, head: MatchingHead) -> None:
        super().__init__()
        self.circuit, self.classifier = circuit, lower_linear(head.classifier)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        units = self.circuit(x)
        return {"logits": self.classifier(units), "units": units}


class _Places(nn.Module):
    """Maps ``[N, D, h, w]`` to the activities of a linear circuit at each place, ``[N, K, h, w]``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight[:, :, None, None].float().contiguous())
        self.register_buffer("bias", bias.float())

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        return functional.conv2d(maps, self.weight, self.bias)
