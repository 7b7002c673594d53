"""One process among several, started by ``torchrun``; or the only one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tnn_runtime.errors import UsageError

__all__ = ["Processes", "join"]


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as one of them sees them.

    Args:
        rank: The number of this process; process 0 writes files and talks.
        count: How many there are.
        device: Where this process computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a module with the same forward pass, whose gradients are averaged over the processes.

        On GPUs, batch norm takes its statistics over all processes; on the CPU, where torch has no such layer, over the
        images of its own process, and those of process 0 are kept.
        """
        if self.count == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of ``values`` over the processes."""
        if self.count > 1:
            values = values.to(self.device)
            distributed.all_reduce(values)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give a module the buffers that it has in process 0, such as the statistics of batch norm."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag))) > 0) if self.count > 1 else flag

    def interleave(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, where process r of n has rows r, r + n, r + 2n and so on of the whole."""
        if self.count == 1:
            return rows
        shares: list[Any] = [None] * self.count
        distributed.all_gather_object(shares, rows.cpu())
        whole = rows.new_empty((sum(map(len, shares)), *rows.shape[1:]), device="cpu")
        for rank, share in enumerate(shares):
            whole[rank :: self.count] = share
        return whole

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def join(device: torch.device) -> Iterator[Processes]:
    """Yield the processes that ``torchrun`` has started, or this one alone.

    Args:
        device: What was asked for; of several GPUs, each process of a machine takes its own.

    Raises:
        UsageError: If there are more processes than GPUs.
    """
    count = int(os.environ["WORLD_SIZE"]) if distributed.is_torchelastic_launched() else 1
    if count == 1:
        yield Processes(0, 1, device)
        return
    if device.type == "cuda":
        number = int(os.environ["LOCAL_RANK"])
        if number >= torch.cuda.device_count():
            raise UsageError(
                f"process {number} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; start "
                "fewer with --nproc-per-node, or pass --device cpu"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(distributed.get_rank(), count, device)
    finally:
        distributed.destroy_process_group()
