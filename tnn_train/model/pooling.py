"""Where a backbone takes the mean over all places of a map, and the backbone without it."""

from __future__ import annotations

import copy
import operator

import torch
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from torch.nn import functional

from tnn_runtime.errors import UsageError

__all__ = ["unpooled"]

_KEEPS = (nn.Identity, nn.Dropout, nn.Flatten, torch.flatten, torch.squeeze, functional.dropout, "flatten", "squeeze")
"""What may follow the mean: nothing of it changes a value."""

_MEANS = (torch.mean, "mean")
_POOLINGS = (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d)
_CHANNELS_FIRST, _CHANNELS_LAST = {2, 3}, {1, 2}
_DIMENSIONS = 4


def unpooled(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone that gives maps ``[N, D, h, w]``, whose means over all places are its embeddings.

    Args:
        backbone: The backbone; it is not changed.

    Raises:
        UsageError: If it takes no such mean at its end.
    """
    try:
        traced = symbolic_trace(copy.deepcopy(backbone).eval())
    except Exception as error:  # torch.fx raises whatever the code that it traces does with its proxies
        raise _no_maps(backbone, f"torch.fx cannot follow it, {type(error).__name__}") from error
    output = next(iter(reversed(traced.graph.nodes)))
    node = output.args[0]
    while isinstance(node, Node) and _kind(traced, node) in _KEEPS:
        node = node.args[0]
    if not isinstance(node, Node) or not (dimensions := _pooled_dimensions(traced, node)):
        raise _no_maps(backbone, f"it ends with {_shown(traced, node)}")
    maps = node.args[0]
    assert isinstance(maps, Node)
    if dimensions == _CHANNELS_LAST:
        with traced.graph.inserting_after(maps):
            maps = traced.graph.call_function(torch.permute, (maps, (0, 3, 1, 2)))
    output.args = (maps,)
    for node in traced.graph.nodes:
        node.type = None  # as in `folded`
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _kind(traced: GraphModule, node: Node) -> object:
    """Return the class of the layer, the function, or the name of the method that a node calls."""
    return type(traced.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _pooled_dimensions(traced: GraphModule, node: Node) -> set[int]:
    """Return the two dimensions that a node takes the mean over; none if it does something else."""
    kind = _kind(traced, node)
    if kind in _POOLINGS:
        is_layer = node.op == "call_module"
        size = traced.get_submodule(str(node.target)).output_size if is_layer else _argument(node, "output_size")
        return _CHANNELS_FIRST if size in (1, (1, 1), [1, 1]) else set()
    dimensions = _argument(node, "dim") if kind in _MEANS else None
    found = {place % _DIMENSIONS for place in dimensions} if isinstance(dimensions, tuple | list) else set()
    return found if found in (_CHANNELS_FIRST, _CHANNELS_LAST) else set()


def _argument(node: Node, name: str) -> object:
    return node.kwargs.get(name, node.args[1] if len(node.args) > 1 else None)


def _shown(traced: GraphModule, node: object) -> str:
    if not isinstance(node, Node):
        return "several outputs"
    kind = _kind(traced, node)
    if kind is operator.getitem:
        return "one token of many"
    return f"a layer {kind.__name__}" if isinstance(kind, type) else str(getattr(kind, "__name__", kind))


def _no_maps(backbone: nn.Module, reason: str) -> UsageError:
    return UsageError(
        f"a backbone of the kind {type(backbone).__name__} has no feature maps: its embedding is not the mean of a map "
        f"over all places ({reason})"
    )
