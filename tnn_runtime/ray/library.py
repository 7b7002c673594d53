"""Ray itself: what to do where it is missing, and what it allots to a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tnn_runtime.errors import UsageError
from tnn_runtime.installation import install_command
from tnn_runtime.options import environment_number

__all__ = ["allotted", "needs_ray"]


@contextmanager
def needs_ray() -> Iterator[None]:
    """Import Ray, or what comes with it, within.

    Raises:
        UsageError: If it cannot be imported; the message has the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(f"Ray cannot be imported ({error}); run: {install_command('ray')}") from error


def allotted() -> dict[str, int]:
    """Return the options of `Classifier.load` for the cores that Ray has allotted to this worker; none elsewhere.

    Workers of Ray may use all cores of their machine, whatever they were allotted: several classifiers with a thread
    for each core would get in each other's way. ``TNN_THREADS`` and ``TNN_DECODERS`` come first.
    """
    with needs_ray():
        import ray
    worker: Any = ray.get_runtime_context() if ray.is_initialized() else None
    if worker is None or worker.get_actor_id() is None:
        return {}
    cores = max(1, int(worker.get_assigned_resources().get("CPU", 0)))
    return {
        "threads": environment_number("TNN_THREADS", cores),
        "decoders": environment_number("TNN_DECODERS", cores),
    }
