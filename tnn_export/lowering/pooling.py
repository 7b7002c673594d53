"""The backbone without the mean that it takes over all places of a map."""

from __future__ import annotations

from torch import nn

from tnn_export.errors import ExportError
from tnn_runtime.errors import UsageError
from tnn_train.model import pooling

__all__ = ["unpooled"]


def unpooled(backbone: nn.Module) -> nn.Module:
    """Return a copy of a backbone that gives maps: see `tnn_train.model.pooling.unpooled`.

    Raises:
        ExportError: If it takes no such mean at its end.
    """
    try:
        return pooling.unpooled(backbone)
    except UsageError as error:
        raise ExportError(
            f"{error}; leave the output feature_maps out, or train a ResNet, an EfficientNet or a Swin transformer"
        ) from error
