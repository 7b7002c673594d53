"""The artifacts of an ensemble in PyTorch: the members as they were exported, and the mean of their probabilities."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from tnn_export.ensemble.member import Member
from tnn_export.lowering.graph import Served

__all__ = ["LOADERS", "ServedEnsemble"]


class _Aligned(nn.Module):
    """A member with its temperature, and with its classes in the order of the ensemble."""

    has_order: Final[bool]
    order: Tensor

    def __init__(self, model: nn.Module, member: Member) -> None:
        super().__init__()
        self.model = model
        self.temperature = member.temperature or 1.0
        self.has_order = member.order is not None
        self.register_buffer("order", torch.tensor(member.order or (), dtype=torch.int64))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithms of its probabilities, ``[N, C]``, and its embedding, ``[N, D]``."""
        found: dict[str, Tensor] = self.model(images)
        logits = found["logits"] / self.temperature
        if self.has_order:
            logits = torch.index_select(logits, 1, self.order)
        return torch.log_softmax(logits, 1), found["embedding"].flatten(1)


class ServedEnsemble(Served):
    """Exported models side by side, which returns the logarithm of the mean of their probabilities as logits.

    Args:
        models: The members, loaded from artifacts of one format.
        members: What is known of each.
        input_shape: Height, width and channels of the images.
        outputs: What to return.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        members: Sequence[Member],
        input_shape: tuple[int, int, int],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.models = nn.ModuleList(_Aligned(model, member) for model, member in zip(models, members, strict=True))
        self.logarithm = math.log(len(members))
        self.input_shape = input_shape
        self.outputs = list(outputs)
        # Programs of torch.export, which have no other mode, refuse to be told so.
        self.training = False
        for model in self.models:
            model.training = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the outputs, each ``[N, ...]``, by their names."""
        logarithms: list[Tensor] = []
        embeddings: list[Tensor] = []
        for model in self.models:
            found, embedding = model(images)
            logarithms.append(found)
            embeddings.append(embedding)
        each = torch.stack(logarithms, 1)
        logits = torch.logsumexp(each, 1) - self.logarithm
        values = {
            "logits": logits,
            "embedding": torch.cat(embeddings, 1),
            "probabilities": torch.softmax(logits, 1),
            "member_probabilities": torch.exp(each),
        }
        return {name: values[name] for name in self.outputs}


def _load_torchscript(file: Path) -> nn.Module:
    with warnings.catch_warnings():
        # Torch announces the end of TorchScript at every module it loads; services that run libtorch still need it.
        warnings.simplefilter("ignore")
        loaded: nn.Module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    return loaded


def _load_pt2(file: Path) -> nn.Module:
    program: Any = torch.export.load(file)
    loaded: nn.Module = program.module()
    return loaded


LOADERS = {"torchscript": _load_torchscript, "pt2": _load_pt2}
"""The formats whose artifacts are modules of PyTorch, each with what loads one."""
