"""ONNX Runtime on the CPU or on CUDA. What was asked for is what runs, or it is an error."""

from __future__ import annotations

import contextlib
import ctypes
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.backends import BackendOptions, Outputs
from tnn_runtime.errors import ArtifactError, ProviderUnavailable, RunError
from tnn_runtime.manifest import ONNX_FILE, Manifest

try:
    import onnxruntime as ort
except ImportError as error:
    raise ProviderUnavailable(
        f"ONNX Runtime cannot be imported ({error}); install it with: pip install 'tnn-deploy[cpu]' or "
        "'tnn-deploy[gpu]'"
    ) from error

__all__ = ["OnnxRuntimeBackend", "cuda_problems", "open_session", "require_cuda"]

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_FATAL = 4
_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}


class OnnxRuntimeBackend:
    """The ONNX model of a bundle in an ONNX Runtime session.

    Args:
        folder: The bundle folder.
        manifest: Its manifest, which the graph must agree with.
        device: ``"cpu"`` or ``"cuda:N"``.
        options: How to run it.

    Raises:
        ProviderUnavailable: If CUDA was asked for and does not work.
        ArtifactError: If the bundle has no ONNX model, another one than the manifest says, or one that ONNX Runtime
            refuses.
    """

    def __init__(self, folder: Path, manifest: Manifest, device: str, options: BackendOptions) -> None:
        if ONNX_FILE not in manifest.files:
            raise ArtifactError(f"{folder} lists no {ONNX_FILE}, which the runtime needs; export with --formats onnx")
        self.device = device
        self.threads = options.threads
        self.batch_sizes: tuple[int, ...] = ()
        self.concurrency = 1
        self.versions = {"onnxruntime": ort.__version__}
        self._sizes = [spec.shape[1] for spec in manifest.outputs[:2]]
        self._session: Any = open_session(str(folder / ONNX_FILE), device, options.threads, options.spin)
        self.details = {"providers": self._session.get_providers()}
        for found, expected in (
            (self._session.get_inputs(), manifest.inputs),
            (self._session.get_outputs(), manifest.outputs),
        ):
            graph = [(value.name, value.type, *value.shape[1:]) for value in found]
            listed = [(spec.name, _TYPES.get(spec.dtype), *spec.shape[1:]) for spec in expected]
            if graph != listed:
                raise ArtifactError(
                    f"{folder / ONNX_FILE} has {graph} where the manifest has {listed}; export the bundle again"
                )

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``.

        Raises:
            RunError: If the model does not run.
            ArtifactError: If it gives something else than the manifest says.
        """
        try:
            logits, embedding = self._session.run(["logits", "embedding"], {"images": images})
        except Exception as error:  # as in `open_session`
            raise RunError(
                f"ONNX Runtime {ort.__version__} cannot run the model on {len(images)} images ({_line(error)}); use a "
                "smaller batch if memory is short, or export the bundle again"
            ) from error
        expected = [(len(images), size) for size in self._sizes]
        if [logits.shape, embedding.shape] != expected:
            raise ArtifactError(
                f"the model gives {[logits.shape, embedding.shape]} where the manifest has {expected}; export the "
                "bundle again"
            )
        return Outputs(logits, embedding)

    def close(self) -> None:
        """Release the session."""
        self._session = None


def open_session(model: str | bytes, device: str, threads: int, spin: bool = False) -> Any:
    """Open a session on exactly the device that was asked for.

    Raises:
        ProviderUnavailable: If CUDA was asked for and does not work.
        ArtifactError: If ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle workers would otherwise burn the cores that the rest of a service, or a second session, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    if device == "cpu":
        try:
            return ort.InferenceSession(model, options, providers=[_CPU])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} refuses the model ({_line(error)}); export the bundle again"
            ) from error
    require_cuda(device)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(
            model, options, providers=[(_CUDA, {"device_id": device.removeprefix("cuda:"), "use_tf32": "0"})]
        )
    except Exception as error:
        raise ProviderUnavailable(
            f"device {device!r} does not run this model ({_line(error)}); choose device 'cpu'"
        ) from error
    if session.get_providers()[0] != _CUDA:
        raise ProviderUnavailable(
            f"device {device!r} was asked for, and ONNX Runtime chose {session.get_providers()}; choose device 'cpu'"
        )
    return session


def require_cuda(device: str) -> None:
    """Make sure that the CUDA provider works.

    Raises:
        ProviderUnavailable: If not, with what is missing.
    """
    if problems := cuda_problems():
        raise ProviderUnavailable(
            f"device {device!r} does not work here: {'; '.join(problems)}; or choose device 'cpu'"
        )


def cuda_problems() -> list[str]:
    """Return what keeps the CUDA provider from working, each with its remedy; empty where it works."""
    if _CUDA not in ort.get_available_providers():
        return [
            f"onnxruntime {ort.__version__} is a CPU-only build (pip uninstall onnxruntime, then pip install "
            "'tnn-deploy[gpu]')"
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    problems = []
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    for library, remedy in (
        ("libcuda.so.1", "install the NVIDIA driver on a machine with an NVIDIA GPU"),
        (str(provider), "pip install 'onnxruntime-gpu[cuda,cudnn]'"),
    ):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            problems.append(f"{str(error).removesuffix(': No such file or directory')} ({remedy})")
    return problems


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
