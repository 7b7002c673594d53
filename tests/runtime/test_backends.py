from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tnn_runtime import ArtifactError, Classifier, Manifest, ProviderUnavailable, RunError
from tnn_runtime.backends import BackendOptions
from tnn_runtime.backends import onnxruntime as module

needs_no_gpu = pytest.mark.skipif(module.cuda_problems() == [], reason="this machine has a working GPU")


@needs_no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_without_cuda_is_an_error_with_the_reason_and_the_remedy(bundles: dict[str, Path], device: str) -> None:
    with pytest.raises(
        ProviderUnavailable, match=r"device 'cuda:\d' does not work here: .*\(.*install.*choose device 'cpu'"
    ):
        Classifier.load(bundles["tversky"], device)


@needs_no_gpu
def test_auto_says_why_it_took_the_cpu(bundles: dict[str, Path]) -> None:
    with Classifier.load(bundles["tversky"], "auto") as classifier:
        info = classifier.info
    assert info["device"] == "cpu"
    assert info["reason"].startswith("auto: no CUDA (device 'cuda:0' does not work here: ")


def test_every_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(library: str) -> None:
        raise OSError(f"{Path(library).name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    driver, provider = module.cuda_problems()
    assert driver == (
        "libcuda.so.1: cannot open shared object file (install the NVIDIA driver on a machine with an NVIDIA GPU)"
    )
    assert "libonnxruntime_providers_cuda.so" in provider
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in provider


def test_a_cpu_only_build_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    (problem,) = module.cuda_problems()
    assert "is a CPU-only build (pip uninstall onnxruntime, then pip install 'tnn-deploy[gpu]')" in problem


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries load, and ONNX Runtime still answers with a CPU session, as it does by default."""
    monkeypatch.setattr(module, "cuda_problems", list)
    fallen = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: fallen)
    with pytest.raises(ProviderUnavailable, match=r"device 'cuda:0' was asked for, and ONNX Runtime chose \['CPU"):
        Classifier.load(bundles["tversky"], "cuda")


@needs_no_gpu
def test_onnxruntime_itself_refuses_to_fall_back(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cuda_problems", list)
    with pytest.raises(ProviderUnavailable, match="device 'cuda:0' does not run this model"):
        Classifier.load(bundles["tversky"], "cuda")


def test_a_model_that_onnxruntime_refuses(bundle: Path) -> None:
    manifest, _ = Manifest.read(bundle)
    (bundle / "model.onnx").write_bytes(b"\x08\x0anonsense")
    with pytest.raises(ArtifactError, match="refuses the model"):
        module.OnnxRuntimeBackend(bundle, manifest, "cpu", BackendOptions())
    unlisted = dataclasses.replace(manifest, files={})
    with pytest.raises(ArtifactError, match=r"lists no model.onnx, which the runtime needs; export with --formats"):
        module.OnnxRuntimeBackend(bundle, unlisted, "cpu", BackendOptions())


def test_a_model_that_does_not_run_or_gives_something_else(small_bundle: Path) -> None:
    manifest, _ = Manifest.read(small_bundle)
    backend = module.OnnxRuntimeBackend(small_bundle, manifest, "cpu", BackendOptions())
    with pytest.raises(RunError, match=r"cannot run the model on 2 images \(.*\); use a smaller batch"):
        backend.run(np.zeros((2, 9, 9, 3), np.uint8))
    backend._session = SimpleNamespace(run=lambda names, feed: (np.zeros((2, 3), np.float32), np.zeros((2, 24))))
    with pytest.raises(ArtifactError, match=r"gives \[\(2, 3\), \(2, 24\)\] where the manifest has \[\(2, 2\), "):
        backend.run(np.zeros((2, 8, 8, 3), np.uint8))


@pytest.mark.gpu
def test_cuda_gives_the_logits_of_the_cpu(bundles: dict[str, Path]) -> None:
    for bundle in bundles.values():
        images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
        with Classifier.load(bundle, "cuda") as cuda, Classifier.load(bundle, "cpu") as cpu:
            assert cuda.info["device"] == "cuda:0"
            np.testing.assert_allclose(cuda.logits(images), cpu.logits(images), rtol=1e-3, atol=1e-3)
