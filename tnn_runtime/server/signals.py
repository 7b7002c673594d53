"""What the signals of a process that serves mean: an end, the sooner the more there are, and bundles to load again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator

from tnn_runtime.errors import TnnError
from tnn_runtime.server.models import Models

__all__ = ["Ending", "handled"]

_LOG = logging.getLogger(__name__)


class Ending:
    """How soon the end is to be: each signal makes it sooner.

    Attributes:
        told: Set once the process is told to end.
        hurried: Set once it is told not to wait for others to notice.
        forced: Set once it is told to end at once.
    """

    def __init__(self) -> None:
        self.told, self.hurried, self.forced = self._stages = [asyncio.Event() for _ in range(3)]

    def advance(self, steps: int) -> None:
        """Go on by some stages."""
        for stage in [stage for stage in self._stages if not stage.is_set()][:steps]:
            stage.set()


@contextlib.contextmanager
def handled(models: Models) -> Iterator[Ending]:
    """Handle the signals of this process within; the handlers of before come back."""
    loop, ending = asyncio.get_running_loop(), Ending()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        _LOG.info("loading all bundles again")
        task = loop.create_task(_reload(models))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[int, tuple[Callable[..., object], tuple[int, ...]]] = {
        signal.SIGTERM: (ending.advance, (1,)),
        signal.SIGINT: (ending.advance, (2,)),
        signal.SIGHUP: (reload, ()),
    }
    before = {number: signal.getsignal(number) for number in handlers}
    for number, (handler, arguments) in handlers.items():
        loop.add_signal_handler(number, handler, *arguments)
    try:
        yield ending
    finally:
        for number, handler_before in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler_before)


async def _reload(models: Models) -> None:
    with contextlib.suppress(TnnError):  # logged there
        await models.reload_async()
