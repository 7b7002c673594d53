"""State dicts of other programs: how they are read, unwrapped and compared with a module's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tnn_runtime.errors import ArtifactError, UsageError

__all__ = ["check_fit", "last_layer", "read_state", "stem_of", "unwrap"]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_NAMED = 3


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file that holds nothing but tensors, as `unwrap` returns them.

    Raises:
        ArtifactError: If it cannot be read, would run code, or holds no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle can raise anything.
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}); expected a .pth, .pt or .safetensors file that holds "
            "nothing but tensors"
        ) from error
    return unwrap(content, str(path))


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Return what a file holds as tensors by their names in torchvision's model of today.

    Args:
        content: A state dict, also below ``state_dict``, ``model_state_dict`` or ``model``, and with the prefix
            ``module.``.
        source: What to call it in an error.

    Raises:
        ArtifactError: If it is no state dict.
    """
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise ArtifactError(f"{source} holds no state dict; expected tensors by name, at the top or below 'state_dict'")
    state = dict(content)
    if any(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    # DenseNets of 2017 wrote norm.1 for norm1.
    return {re.sub(r"(denselayer\d+\.[a-z]+)\.([12])\.", r"\1\2.", name): value for name, value in state.items()}


def last_layer(backbone: nn.Module) -> str:
    """Return the name of the layer of torchvision's model that the head stands for."""
    names: list[str] = [name for name, _ in backbone.named_modules()]
    return names[-1]


def stem_of(weights: Mapping[str, Tensor]) -> str:
    """Return ``"small"`` for the weights of a ResNet with the small stem, and else ``"imagenet"``."""
    return "small" if "conv1.weight" in weights and weights["conv1.weight"].shape[2:] == (3, 3) else "imagenet"


def check_fit(found: Mapping[str, Tensor], own: Mapping[str, Tensor], complaint: str) -> None:
    """Make sure that tensors have the names and shapes of a module's own.

    Raises:
        UsageError: With the complaint and the first names that are missing, unexpected or of another shape.
    """
    # How many batches a norm has seen is no weight, and files of before 2018 lack it.
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in own]
    misshapen = [
        f"{name} {list(value.shape)} for {list(own[name].shape)}"
        for name, value in found.items()
        if name in own and value.shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
            for what, names in problems.items()
            if names
        )
        raise UsageError(f"{complaint} ({told}); choose the backbone and the stem that they were trained with")
