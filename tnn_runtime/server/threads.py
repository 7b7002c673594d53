"""Work that would keep the event loop from others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["LARGE", "off_loop"]

LARGE = 1 << 16
"""What has more bytes is not worked on in the event loop, which others wait for."""

P = ParamSpec("P")
R = TypeVar("R")


async def off_loop(is_large: bool, work: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Return what some work gives, which is done in a thread if it is large."""
    if is_large:
        return await asyncio.to_thread(work, *arguments, **options)
    return work(*arguments, **options)
