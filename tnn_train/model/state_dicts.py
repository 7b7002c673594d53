"""State dicts of other programs: how they are read, unwrapped and compared with a module's own."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tnn_runtime.errors import ArtifactError, UsageError
from tnn_train.model.weight_files import SAVE, refused

__all__ = [
    "check_fit",
    "check_values",
    "last_layer",
    "load_tensors",
    "read_state",
    "refuse_without_backbone",
    "stem_of",
    "take_backbone",
    "unwrap",
]

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_NAMED = 3


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a file that holds nothing but tensors, as `unwrap` returns them.

    Raises:
        ArtifactError: If it cannot be read, would run code, or holds no state dict, or as `check_values`.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with warnings.catch_warnings():  # what torch warns of is in the error
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged pickle can raise anything.
        raise refused(path, error) from error
    return unwrap(content, str(path))


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """Return what a file holds as tensors by their names in torchvision's model of today.

    Args:
        content: A state dict, also below ``state_dict``, ``model_state_dict`` or ``model``, and with the prefix
            ``module.``.
        source: What to call it in an error.

    Raises:
        ArtifactError: If it is no state dict, or as `check_values`.
    """
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise ArtifactError(
            f"{source} holds no state dict; expected tensors by name, at the top or below 'state_dict': {SAVE}"
        )
    state = dict(content)
    if any(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    check_values(state, source)
    # DenseNets of 2017 wrote norm.1 for norm1.
    return {re.sub(r"(denselayer\d+\.[a-z]+)\.([12])\.", r"\1\2.", name): value for name, value in state.items()}


_RAW = "raw_"
"""How the names begin of what stands behind positive values; behind 0 it is minus infinity."""


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Make sure that weights can be computed with: all are finite in float32, and no running variance is below 0.

    Args:
        state: The tensors by their names, buffers among them.
        source: What to call the state dict in an error.

    Raises:
        ArtifactError: If they are not; the message names the first tensor with such values, and counts them.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        values = value.detach().float()
        if name.rpartition(".")[2].startswith(_RAW):
            values = values[values != -math.inf]
        if broken := int((~values.isfinite()).sum()):
            what = "NaN or infinite in float32"
        elif broken := int((values < 0).sum()) if name.endswith("running_var") else 0:
            what = "below 0, which no variance is"
        else:
            continue
        raise ArtifactError(
            f"{source} cannot be used: {broken} of {values.numel()} values of {name} are {what}; train it again, or "
            "give the weights of an earlier epoch"
        )


def last_layer(backbone: nn.Module) -> str:
    """Return the name of the layer of torchvision's model that the head stands for."""
    names: list[str] = [name for name, _ in backbone.named_modules()]
    return names[-1]


def take_backbone(state: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Remove the backbone's tensors from a state dict and return them by their names in the backbone.

    They may stand below any one name, and under the numbers of ``nn.Sequential(*list(model.children())[:-1])``.

    Args:
        state: The state dict.
        backbone: The backbone; what the state dict lacks of it is not returned.
    """
    names = list(backbone.state_dict())
    numbers = {child: str(number) for number, (child, _) in enumerate(backbone.named_children())}
    parts = [name.partition(".") for name in names]
    spellings = [names, [numbers.get(child, child) + dot + rest for child, dot, rest in parts]]
    best: dict[str, str] = {}
    for spelling in spellings:
        first = spelling[0]
        roots = [name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")]
        for root in sorted(roots, key=len):
            places = {name: root + place for name, place in zip(names, spelling, strict=True) if root + place in state}
            best = max(best, places, key=len)
    return {name: state.pop(place) for name, place in best.items()}


def refuse_without_backbone(state: Mapping[str, Tensor], source: str, backbone_weights: str | Path | None) -> None:
    """Refuse a state dict that has no weights of a backbone, such as that of a last layer alone.

    Each backbone of torchvision has convolutions, and no last layer has a tensor of more than two dimensions.

    Args:
        state: What the files hold.
        source: What to call the classifier's file.
        backbone_weights: The file of the backbone, if there is one.

    Raises:
        UsageError: If it has none.
    """
    if any(value.ndim > 2 for value in state.values()):
        return
    if backbone_weights is None:
        raise UsageError(
            f"{source} has the weights of a layer alone, and none of a backbone; give the file with those of the "
            "backbone that the layer was trained on, with --backbone-weights (backbone_weights=)"
        )
    raise UsageError(
        f"{backbone_weights} has no weights of a backbone; expected the state dict of the backbone that the layer was "
        "trained on"
    )


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


def load_tensors(module: nn.Module, found: Mapping[str, Tensor], complaint: str) -> None:
    """Give a module all of its tensors; if they do not fit, it is not changed.

    Raises:
        UsageError: As `check_fit`.
    """
    own: dict[str, Tensor] = module.state_dict()
    check_fit(found, own, complaint)
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)
