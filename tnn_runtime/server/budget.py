"""How much memory requests may hold at the same time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tnn_runtime.errors import ResourcesExhausted
from tnn_runtime.server.threads import LARGE

__all__ = ["Budget", "Share"]

_WHOLE = 16


class Budget:
    """The bytes that large requests hold.

    Args:
        largest: How many bytes one of them may have; all together may have 16 times as many.
    """

    def __init__(self, largest: int) -> None:
        self._most = _WHOLE * largest
        self._held = 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Share]:
        """Yield the share of one request, which is given back in the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._held -= share.held

    def take(self, size: int) -> None:
        """Count more bytes.

        Raises:
            ResourcesExhausted: If too many are held already.
        """
        if self._held + size > self._most:
            raise ResourcesExhausted("too many large requests are read at the same time; send it again later")
        self._held += size


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, size: int) -> None:
        """Count all bytes that the request has by now; of one that is not `LARGE`, none.

        Raises:
            ResourcesExhausted: As `Budget.take`.
        """
        if size > max(LARGE, self.held):
            self._budget.take(size - self.held)
            self.held = size
