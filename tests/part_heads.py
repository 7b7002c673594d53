"""Parts heads in every form, on small maps."""

from __future__ import annotations

import torch
from covering import covering_array, full_product
from torch import Tensor, nn

from tnn_train import PartsConfig
from tnn_train.heads.parts.head import PartsHead

SIZE, CLASSES, PLACES = 6, 4, (3, 5)

_PROTOPNET = {
    "kind": ("protopnet",),
    "add_on": (True, False),
    "similarity": ("log", "linear"),
    "per_class": (1, 3),
    "depth": (None, 4),
    "epsilon": (1e-4, 1e-2),
}
_PIPNET = {"kind": ("pipnet",), "num_parts": (None, 7), "fires_above": (0.0, 0.1, 0.4), "alignment": (0.0, 2.5)}

COVERING = [PartsConfig(**row) for choices in (_PROTOPNET, _PIPNET) for row in covering_array(choices, 2)]  # type: ignore[arg-type]
"""Forms with every combination of the values of any two options."""

ALL = [PartsConfig(**row) for choices in (_PROTOPNET, _PIPNET) for row in full_product(choices)]  # type: ignore[arg-type]


def name(config: PartsConfig) -> str:
    """Return a short name of a form."""
    if config.kind == "pipnet":
        return f"pipnet-{config.num_parts}-{config.fires_above}-{config.alignment}"
    return f"protopnet-{config.add_on}-{config.similarity}-{config.per_class}-{config.depth}-{config.epsilon}"


def random_parts(config: PartsConfig, seed: int = 0) -> tuple[PartsHead, Tensor]:
    """Return a head in evaluation mode with random weights, and maps ``[5, SIZE, *PLACES]`` to try it on."""
    torch.manual_seed(seed)
    head = PartsHead(SIZE, CLASSES, config).eval()
    nn.init.normal_(head.weight)
    if head.bias is not None:
        nn.init.normal_(head.bias)
    return head, torch.randn(5, SIZE, *PLACES)
