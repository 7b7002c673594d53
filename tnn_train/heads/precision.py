"""How a head stays in float32, or wider, while the backbone before it computes in half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["full_precision", "precise"]


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast: whether a feature is present must not hang on a few bits."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def precise(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or in its own dtype if that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
