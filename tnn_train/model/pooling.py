"""Where a backbone takes the mean over all places of a map, and the backbone without it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
from torch.nn import functional
from torchvision.ops import StochasticDepth

from tnn_train.errors import NoMapsError

__all__ = ["at_each_place", "unpooled"]

_FLATTENS = (nn.Flatten, torch.flatten, torch.squeeze, "flatten", "squeeze")
_DROPS = (nn.Identity, nn.Dropout, functional.dropout)
_KEEPS = (*_FLATTENS, *_DROPS)
"""What may follow the mean: nothing of it changes a value."""

_OF_CHANNELS = (nn.Linear, nn.LayerNorm)
_OF_VALUES = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid)
_NORMS = (functional.layer_norm, torch.permute, "permute")
"""What torchvision's LayerNorm2d does, which `torch.fx` sees through."""

_MEANS = (torch.mean, "mean")
_POOLINGS = (nn.AdaptiveAvgPool2d, functional.adaptive_avg_pool2d)
_CHANNELS_FIRST, _CHANNELS_LAST = {2, 3}, {1, 2}
_DIMENSIONS = 4
_CLASS_TOKEN = (slice(None), 0)
"""How a vision transformer takes the first of its tokens ``[N, 1 + h w, D]``."""


def unpooled(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone that gives maps ``[N, D, h, w]``, whose means over all places are its embeddings.

    Args:
        backbone: The backbone; it is not changed.

    Raises:
        NoMapsError: If it takes no such mean at its end.
    """
    traced = _traced(copy.deepcopy(backbone).eval())
    pooling, _ = _ending(traced, _KEEPS)
    dimensions = _pooled_dimensions(traced, pooling)
    if not dimensions:
        raise _no_maps(backbone, f"it ends with {_shown(traced, pooling)}")
    return _ended(traced, _maps_before(traced, pooling, dimensions))


def at_each_place(backbone: nn.Module) -> nn.Module:
    """Return a backbone that gives maps ``[N, D, h, w]``: what it computes at each place before it pools them.

    Layers after the pooling that act on each value or on the channels, such as a normalisation, act at each place. Of a
    vision transformer these are its tokens without that of the class. Where an image has but one place, its map is its
    embedding. Weights are those of the backbone and keep their names.

    Args:
        backbone: The backbone, which is of no use by itself any more.

    Raises:
        NoMapsError: If its places are not pooled at its end.
    """
    is_training, names = backbone.training, backbone.state_dict().keys()
    traced = _traced(backbone.eval())
    pooling, after = _ending(traced, (*_KEEPS, *_OF_CHANNELS, *_OF_VALUES, *_NORMS))
    graph = traced.graph
    if isinstance(pooling, Node) and pooling.target is operator.getitem and pooling.args[1] == _CLASS_TOKEN:
        patches = next((node for node in graph.nodes if _kind(traced, node) is nn.Conv2d), None)
        with graph.inserting_before(pooling):
            maps = graph.call_function(_token_map, (pooling.args[0], patches))
        is_flat = True
    elif dimensions := _pooled_dimensions(traced, pooling):
        assert isinstance(pooling, Node)
        maps = _maps_before(traced, pooling, dimensions)
        is_flat = _kind(traced, pooling) in _MEANS
    else:
        raise NoMapsError(f"its last layers mix the places of an image: it ends with {_shown(traced, pooling)}")
    ended = _ended(traced, _moved_before(traced, after, maps, is_flat=is_flat))
    if ended.state_dict().keys() != names:
        raise NoMapsError("torch.fx cannot follow it without other names of its weights")
    return ended.train(is_training)


class _Tracer(Tracer):
    """Leaves what is random in training as it is, for what is traced in evaluation to be trained."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticDepth) or super().is_leaf_module(m, module_qualified_name)


def _traced(backbone: nn.Module) -> GraphModule:
    try:
        return GraphModule(backbone, _Tracer().trace(backbone), type(backbone).__name__)
    except Exception as error:  # torch.fx raises whatever the code that it traces does with its proxies
        raise _no_maps(backbone, f"torch.fx cannot follow it, {type(error).__name__}") from error


def _ending(traced: GraphModule, kinds: Sequence[object]) -> tuple[object, list[Node]]:
    """Return what is before the last nodes of some kinds, and these, first to last."""
    after: list[Node] = []
    node = _output(traced.graph).args[0]
    while isinstance(node, Node) and _kind(traced, node) in kinds:
        after.insert(0, node)
        node = node.args[0]
    return node, after


def _output(graph: Graph) -> Node:
    output: Node = next(iter(reversed(graph.nodes)))
    return output


def _maps_before(traced: GraphModule, pooling: object, dimensions: set[int]) -> Node:
    """Return the node with the map ``[N, D, h, w]`` that a node takes the mean of."""
    assert isinstance(pooling, Node)
    maps = pooling.args[0]
    assert isinstance(maps, Node)
    if dimensions == _CHANNELS_LAST:
        with traced.graph.inserting_before(pooling):
            maps = traced.graph.call_function(torch.permute, (maps, (0, 3, 1, 2)))
    return maps


def _moved_before(traced: GraphModule, after: Sequence[Node], maps: Node, *, is_flat: bool) -> Node:
    """Let what follows a pooling act at each place of a map, and return the node with the map that it gives.

    Args:
        traced: The backbone.
        after: What follows the pooling.
        maps: The map.
        is_flat: Whether the pooling gives ``[N, D]``, and not ``[N, D, 1, 1]``.
    """
    graph, value, is_last = traced.graph, maps, False
    for node in after:
        kind = _kind(traced, node)
        if kind in _FLATTENS:
            is_flat = True
        else:
            if is_flat and kind in _OF_CHANNELS and not is_last:
                with graph.inserting_before(node):
                    value = graph.call_function(torch.permute, (value, (0, 2, 3, 1)))
                is_last = True
            node.args = (value, *node.args[1:])
            value = node
    if is_last:
        with graph.inserting_before(_output(graph)):
            value = graph.call_function(torch.permute, (value, (0, 3, 1, 2)))
    return value


def _token_map(tokens: Tensor, patches: Tensor) -> Tensor:
    """Return tokens ``[N, 1 + h w, D]`` but the first as a map ``[N, D, h, w]``, as large as that of the patches."""
    rows, columns = patches.shape[2:]
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], rows, columns)


def _ended(traced: GraphModule, maps: Node) -> GraphModule:
    """Return a backbone that ends with a node."""
    _output(traced.graph).args = (maps,)
    for node in traced.graph.nodes:
        node.type = None  # as in `folded`
    traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _kind(traced: GraphModule, node: Node) -> object:
    """Return the class of the layer, the function, or the name of the method that a node calls."""
    return type(traced.get_submodule(str(node.target))) if node.op == "call_module" else node.target


def _pooled_dimensions(traced: GraphModule, node: object) -> set[int]:
    """Return the two dimensions that a node takes the mean over; none if it does something else."""
    if not isinstance(node, Node):
        return set()
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


def _no_maps(backbone: nn.Module, reason: str) -> NoMapsError:
    return NoMapsError(
        f"a backbone of the kind {type(backbone).__name__} has no feature maps: its embedding is not the mean of a map "
        f"over all places ({reason}); ResNets, EfficientNets and Swin transformers have them"
    )
