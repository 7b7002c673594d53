from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tnn_runtime import DeviceLost, ProviderUnavailable, UsageError, backends
from tnn_runtime.backends import BACKENDS, Backend, BackendOptions, Device, open_backend, parse_device
from tnn_runtime.backends.batches import bucket_sizes
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_runtime.bundle.opened import Bundle, open_bundle


@pytest.mark.parametrize(
    ("name", "device", "shown"),
    [
        ("auto", Device("auto"), "auto"),
        ("cpu", Device("cpu"), "cpu"),
        ("compiled", Device("compiled"), "compiled"),
        ("cuda", Device("cuda", 0), "cuda:0"),
        ("cuda:12", Device("cuda", 12), "cuda:12"),
        ("tensorrt", Device("tensorrt", 0), "tensorrt:0"),
        ("tensorrt:1", Device("tensorrt", 1), "tensorrt:1"),
    ],
)
def test_names_of_devices(name: str, device: Device, shown: str) -> None:
    assert parse_device(name) == device
    assert str(device) == shown


@pytest.mark.parametrize(
    "name",
    [
        "",
        "CPU",
        "cpu:0",
        "auto:0",
        "compiled:0",
        "gpu",
        "cuda:",
        "cuda:-1",
        "cuda:x",
        "cuda: 1",
        "cuda:٣",
        "tpu",
        None,
        0,
        b"cpu",
    ],
)
def test_what_names_no_device_is_refused(name: object) -> None:
    with pytest.raises(
        UsageError, match=r"unknown device .*; choose auto, cpu, compiled, cuda, cuda:N, tensorrt or tensorrt:N"
    ):
        parse_device(name)


@pytest.mark.parametrize(
    ("bounds", "largest", "sizes"),
    [
        (BatchBounds(), 64, (1, 2, 4, 8, 16, 32, 64)),
        (BatchBounds(), 48, (1, 2, 4, 8, 16, 32, 48)),
        (BatchBounds(), 1, (1,)),
        (BatchBounds(2), 9, (2, 4, 8, 9)),
        (BatchBounds(1, 5), 64, (1, 2, 4, 5)),
        (BatchBounds(8, 8), 64, (8,)),
        (BatchBounds(8), 3, (8,)),
    ],
)
def test_batch_sizes_are_few_and_cover_what_comes(bounds: BatchBounds, largest: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(bounds, largest) == sizes


# Opening


class Recorded:
    """A backend that remembers how it was opened, and fails as it is told."""

    opened: list[Recorded]
    at_open: Exception | None = None
    at_run: Exception | None = None

    def __init__(self, bundle: Bundle, device: Device, options: BackendOptions) -> None:
        self.device, self.options, self.runs, self.closed = str(device), options, [], False
        Recorded.opened.append(self)
        if device.kind == "cuda" and self.at_open:
            raise self.at_open

    def run(self, images: Any) -> None:
        self.runs.append(images.shape)
        if self.at_run:
            raise self.at_run

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    monkeypatch.setattr(backends.importlib, "import_module", lambda name: SimpleNamespace(OnnxRuntimeBackend=Recorded))
    Recorded.opened, Recorded.at_open, Recorded.at_run = [], None, None
    return Recorded.opened


def opened(folder: Path, device: str, **options: Any) -> tuple[Backend, str]:
    return open_backend(open_bundle(folder), device, BackendOptions(**options))


def test_every_kind_of_device_has_a_backend_that_exists() -> None:
    import importlib

    assert BACKENDS.keys() | {"auto"} == {"auto", "cpu", "compiled", "cuda", "tensorrt"}
    for module, name in BACKENDS.values():
        assert hasattr(importlib.import_module(f"tnn_runtime.backends.{module}"), name)


def test_auto_takes_cuda_after_a_run_there(small_bundle: Path, recorded: list[Recorded]) -> None:
    backend, reason = opened(small_bundle, "auto", cuda_graphs=True)
    assert backend.device == "cuda:0"
    assert recorded[0].runs == [(1, 8, 8, 3)]
    assert recorded[0].options.cuda_graphs
    assert reason.startswith("auto: CUDA works")


@pytest.mark.parametrize("when", ["at_open", "at_run"])
def test_auto_takes_the_cpu_and_says_what_cuda_did(small_bundle: Path, recorded: list[Recorded], when: str) -> None:
    error: Exception = ProviderUnavailable("no driver") if when == "at_open" else DeviceLost("error 700")
    setattr(Recorded, when, error)
    backend, reason = opened(small_bundle, "auto", cuda_graphs=True, threads=3)
    assert (backend.device, reason) == ("cpu", f"auto: no CUDA ({error})")
    assert recorded[1].options == dataclasses.replace(recorded[0].options, cuda_graphs=False)
    assert recorded[0].closed == (when == "at_run")


def test_what_was_asked_for_is_opened_or_an_error(small_bundle: Path, recorded: list[Recorded]) -> None:
    assert opened(small_bundle, "cuda:2")[0].device == "cuda:2"
    assert opened(small_bundle, "cpu")[1] == "as asked"
    Recorded.at_open = ProviderUnavailable("no driver")
    with pytest.raises(ProviderUnavailable, match="no driver"):
        opened(small_bundle, "cuda")


@pytest.mark.parametrize("options", [{"providers": ["CUDAExecutionProvider"]}, {"provider_options": {"a": "b"}}])
def test_auto_chooses_providers_itself(small_bundle: Path, recorded: list[Recorded], options: Any) -> None:
    with pytest.raises(UsageError, match=r"device 'auto' chooses them itself; name the device"):
        opened(small_bundle, "auto", **options)
    assert np.size(recorded) == 0
