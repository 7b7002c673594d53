"""What the recording of CUDA graphs keeps away from.

ONNX Runtime records in CUDA's global mode: while it does, a call of any other thread of the process that allocates,
frees or waits fails, on any GPU, and breaks the recording. So nothing of ours uses a GPU meanwhile: models are opened
one after another, and the runs of those that serve pause for the moment of a recording.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["GPU", "OPENING", "Gate"]


class Gate:
    """Lets any number of threads in, or one alone: ``with gate:`` and ``with gate.alone():``.

    Whoever wants to be alone goes first: nobody comes in after it, and it waits for those that are inside. A thread
    that is inside must not come in again.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False

    def __enter__(self) -> None:
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody is inside, and let nobody in meanwhile."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._alone = True
        try:
            with self._changed:
                while self._inside:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


GPU = Gate()
"""Runs on the GPUs of this process, and the end of what they ran on, are inside; each recording is alone."""

OPENING = threading.Lock()
"""Held while a model is opened on a GPU, with its recordings: an engine may be built for minutes, and does not keep
those that serve from running."""
