"""Workers that the machine does not let work: what is told is the machine's fault, with a remedy that holds."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tnn_train import DataConfig, TrainConfig, train
from tnn_train.data.loader import EpochBatches, evaluation_loader, training_loader
from tnn_train.data.worker_faults import deaths_told
from tnn_train.errors import WorkerError
from tnn_train.training import loop

TORCH = "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)"


def fail(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


FAULTS = {
    "no room": (fail(RuntimeError(TORCH)), "too little shared memory.*--shm-size"),
    "older torch": (fail(RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)")), "--shm-"),
    "bus error": (lambda: os.kill(os.getpid(), signal.SIGBUS), "shared memory.*--shm-size"),
    "descriptors": (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5)), "too many files open.*ulimit -n"),
    "ancdata": (fail(RuntimeError("received 0 items of ancdata")), "too many files open.*ulimit -n"),
    "opening": (fail(OSError(errno.EMFILE, "Too many open files", "cat.png")), "too many files open.*ulimit -n"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended by the system"),
}


class Items:
    """Images in files, whose reading does something else first."""

    is_in_memory = False

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: Any, /) -> tuple[Tensor, int]:
        self._act()
        return torch.zeros(4, 4, 3, dtype=torch.uint8), 1


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("is_training", [True, False])
def test_a_fault_of_the_machine_is_told_as_one(name: str, is_training: bool) -> None:
    act, told = FAULTS[name]
    items = Items(act)
    loader = (
        training_loader(items, EpochBatches(8, 4, 0), workers=1)
        if is_training
        else evaluation_loader(items, 4, workers=1)
    )
    with pytest.raises(WorkerError, match=f"the processes that decode images.*{told}.*--workers 0") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    assert "model" not in str(caught.value)


def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.utils.data.DataLoader, "__iter__", fail_with(OSError(errno.ENOSPC, "No space left on device"))
    )
    with pytest.raises(WorkerError, match="too little shared memory.*--shm-size"):
        list(evaluation_loader(Items(lambda: None), 4, workers=1))


def fail_with(error: Exception) -> Callable[..., Any]:
    def act(*arguments: Any) -> Any:
        raise error

    return act


def test_without_workers_nothing_is_said_of_them() -> None:
    with pytest.raises(OSError, match="Too many open files"):
        list(evaluation_loader(Items(FAULTS["opening"][0]), 4, workers=0))


def test_other_errors_of_a_worker_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="a bug"):
        list(evaluation_loader(Items(fail(ValueError("a bug"))), 4, workers=1))


@pytest.mark.parametrize(
    "raised", [RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), OSError(28, "full")]
)
def test_a_death_is_told_wherever_torch_raises_it(raised: Exception) -> None:
    with pytest.raises(WorkerError if isinstance(raised, RuntimeError) else OSError), deaths_told():
        raise raised


def test_the_remedy_holds_for_every_loader_of_a_training(
    photos: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnn_train.data.load.CACHE_BYTES", 0)
    monkeypatch.setattr(
        "torch.utils.data.dataloader._MultiProcessingDataLoaderIter", fail_with(AssertionError("a worker was started"))
    )
    for frozen in (False, True):
        config = TrainConfig(
            epochs=1, workers=0, augment=(), freeze_backbone=frozen, embedding_cache=str(tmp_path / "c")
        )
        model = loop.ModelConfig(backbone="tiny")
        train(DataConfig(str(photos)), tmp_path / f"run-{frozen}", model, config)
