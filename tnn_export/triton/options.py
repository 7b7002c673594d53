"""How Triton is to run a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.errors import UsageError
from tnn_runtime.options import at_least_one, seconds
from tnn_train.fields import choose

__all__ = ["KINDS", "TritonOptions"]

KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
"""The devices, each with what Triton calls instances there."""

_MOST_IMAGES = 64


@dataclass(frozen=True)
class TritonOptions:
    """How Triton is to run a bundle.

    Args:
        device: Where the network runs, one of `KINDS`.
        instances: How many batches of the network run at once; on CUDA, on each GPU.
        threads: CPU threads of each of them.
        decoders: How many requests are decoded at once.
        max_batch_size: Images a batch, at most; by default 64, or what the bundle takes if that is less.
        max_queue_delay_ms: How long a request waits for others to share a batch with, in milliseconds.
        top_k: How many classes ``labels`` and ``scores`` have; all if there are fewer.

    Raises:
        UsageError: If a value is out of its range.
    """

    device: str = "cpu"
    instances: int = 1
    threads: int = 1
    decoders: int = 2
    max_batch_size: int | None = None
    max_queue_delay_ms: float = 2.0
    top_k: int = 5

    def __post_init__(self) -> None:
        choose("device", self.device, KINDS)
        at_least_one(instances=self.instances, threads=self.threads, decoders=self.decoders, top_k=self.top_k)
        if self.max_batch_size is not None:
            at_least_one(max_batch_size=self.max_batch_size)
        _ = self.max_queue_delay_us

    @property
    def max_queue_delay_us(self) -> int:
        """The same in microseconds, as Triton has it, and no longer than the system can wait."""
        return round(1000 * seconds(self.max_queue_delay_ms, "max_queue_delay_ms", "milliseconds"))

    def batch_for(self, manifest: Manifest) -> int:
        """Return the largest batch for a bundle.

        Raises:
            UsageError: If the bundle does not take it, or takes no single image.
        """
        low, high = manifest.batch.smallest, manifest.batch.largest
        if low > 1:
            raise UsageError(
                f"this bundle takes batches of {low} images at least, and Triton does not fill batches up; export its "
                "checkpoint again with --min-batch 1"
            )
        asked = self.max_batch_size or min(_MOST_IMAGES, high or _MOST_IMAGES)
        if high is not None and asked > high:
            raise UsageError(
                f"max_batch_size is {asked}, and this bundle takes batches of {high} images at most; give no more, or "
                f"export its checkpoint again with --max-batch {asked}"
            )
        return asked
