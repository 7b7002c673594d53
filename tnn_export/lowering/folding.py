"""Batch norm folded into the convolutions before it."""

from __future__ import annotations

import copy

from torch import nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse

__all__ = ["folded"]


def folded(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone, in evaluation mode on the CPU, without the batch norms that follow a convolution.

    In a lower precision this also keeps the statistics of the batch norms from being rounded. A backbone that
    `torch.fx` cannot trace is copied as it is: exporters then fold what they can, and say what they cannot export.
    """
    backbone = copy.deepcopy(backbone).cpu().eval()
    try:
        fused = fuse(backbone)
    except Exception:  # torch.fx raises whatever the code that it traces does with its proxies
        return backbone
    assert isinstance(fused, GraphModule)
    for node in fused.graph.nodes:
        node.type = None  # TorchScript would read annotations that only their own file understands.
    fused.recompile()
    return fused.eval()
