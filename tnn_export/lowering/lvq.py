"""Learning vector quantisation as one matrix product, and the largest value of each class."""

import torch
from torch import Tensor, nn

from tnn_export.errors import ExportError
from tnn_train.heads import LvqHead
from tnn_train.heads.lvq.config import MIXTURE

__all__ = ["lower_lvq", "lower_lvq_maps"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "selu": nn.SELU,
}


def lower_lvq(head: LvqHead, *, parts: bool = False) -> nn.Module:
    """Return a module whose first layer after the network is ``l_p`` of all prototypes, folded in float64.

    Where parts are asked for, images are mapped to the space of the distances first, and ``l_p`` follows from there.
    """
    return _WithDistances(head) if parts else _Logits(head)


def lower_lvq_maps(head: LvqHead) -> nn.Module:
    """Return what makes feature maps: those of the backbone, if the features are the values of the embedding.

    Raises:
        ExportError: If they are latent values.
    """
    if head.network is not None:
        raise ExportError(
            "the features of an lvq head with a network (--lvq.latent) are no means over the places of an image; leave "
            "the output feature_maps out"
        )
    return _Channels()


class _Channels(nn.Module):
    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        return maps


def _network(head: LvqHead) -> nn.Sequential:
    """Return the network before the prototypes; nothing if there is none."""
    layers: list[nn.Module] = []
    if head.network is not None:
        last = len(head.network.layers) - 1
        for place, layer in enumerate(head.network.layers):
            assert isinstance(layer, nn.Linear)
            assert layer.bias is not None
            layers.append(_linear(layer.weight.detach(), layer.bias.detach()))
            if place < last or head.network.activate_last:
                layers.append(_ACTIVATIONS[head.network.activation]())
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.cpu().float().clone(memory_format=torch.contiguous_format))
    layer.bias = nn.Parameter(bias.cpu().float().clone())
    return layer


class _Folded:
    """The constants of a head, float64 on the CPU: the centre, prototypes from it, and Omega without what is left out.

    Attributes:
        omega: What maps vectors less the centre, ``[R, L]``.
        prototypes: What it makes of the prototypes less the centre, ``[P, R]``.
    """

    def __init__(self, head: LvqHead) -> None:
        prototypes = head.prototypes.detach().cpu().double()
        self.centre = head.centre.detach().cpu().double()
        omega = torch.eye(head.size, dtype=torch.float64)
        if head.omega is not None:
            learned = head.omega.detach().cpu().double()
            omega = torch.diag(learned) if learned.ndim == 1 else learned
        self.prototypes = (prototypes - self.centre) @ omega.T
        self.omega = omega * head.kept.cpu()
        self.temperature = head.temperature.detach().cpu()


class _Classes(nn.Module):
    """From ``l_p`` of the prototypes, ``[N, P]``, to logits ``[N, C]``."""

    places: Tensor
    log_copies: Tensor

    def __init__(self, head: LvqHead) -> None:
        super().__init__()
        index = head.places.cpu()
        self.register_buffer("places", index.flatten())
        self.register_buffer("log_copies", head.log_copies.cpu().float())
        self.count, self.most = index.shape
        self.is_sorted = self.count * self.most == head.num_prototypes
        self.has_copies = bool((self.log_copies > 0).any())
        self.is_mixture = head.config.pooling == MIXTURE

    def grouped(self, values: Tensor) -> Tensor:
        if not self.is_sorted:
            values = values.index_select(1, self.places)
        return values.reshape(-1, self.count, self.most)

    def smallest(self, values: Tensor) -> Tensor:
        return values if self.most == 1 else self.grouped(values).amin(2)

    def forward(self, values: Tensor) -> Tensor:
        if self.most == 1:
            return values
        grouped = self.grouped(values)
        if not self.is_mixture:
            return grouped.amax(2)
        if self.has_copies:
            grouped = grouped - self.log_copies
        most = grouped.amax(2, keepdim=True)
        pooled: Tensor = (grouped - most).exp().sum(2).log() + most.squeeze(2)
        return pooled


class _Logits(nn.Module):
    def __init__(self, head: LvqHead) -> None:
        super().__init__()
        folded = _Folded(head)
        weight = 2 * folded.prototypes @ folded.omega
        bias = -folded.prototypes.square().sum(1) - weight @ folded.centre
        self.network = _network(head)
        self.leads = _linear(weight / folded.temperature, bias / folded.temperature)
        self.classes = _Classes(head)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.leads(self.network(x)))
        return logits


class _WithDistances(nn.Module):
    prototypes: Tensor
    lengths: Tensor

    def __init__(self, head: LvqHead) -> None:
        super().__init__()
        folded = _Folded(head)
        self.logits = _Logits(head)
        self.map = _linear(folded.omega, -folded.omega @ folded.centre)
        self.register_buffer("prototypes", (-2 * folded.prototypes.T).float().contiguous())
        self.register_buffer("lengths", folded.prototypes.square().sum(1).float())
        self.smallest = torch.finfo(torch.float32).tiny

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        vectors = self.logits.network(x)
        images = self.map(vectors)
        products = torch.matmul(images, self.prototypes)
        distances = (images.square().sum(1, keepdim=True) + self.lengths + products).clamp_min(0.0)
        nearest = self.logits.classes.smallest(distances)
        two, _ = torch.topk(nearest, 2, dim=1, largest=False)
        best, other = two[:, 0:1], two[:, 1:2]
        return {
            "logits": self.logits.classes(self.logits.leads(vectors)),
            "distances": distances,
            "nearest": distances.argmin(1, keepdim=True).to(torch.float32),
            "confidence": (other - best) / (other + best).clamp_min(self.smallest),
        }
