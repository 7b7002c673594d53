"""ONNX Runtime on the CPU or on CUDA. What was asked for is what runs, or it is an error."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.backends import CRASHING_OPTIMIZERS, PROBE, BackendOptions, Device, TimedRun
from tnn_runtime.backends.batches import bucket_sizes
from tnn_runtime.backends.binding import BoundSlot, failed_run
from tnn_runtime.backends.cuda import Cuda
from tnn_runtime.backends.failures import complaint
from tnn_runtime.backends.ort import ort
from tnn_runtime.backends.providers import CPU, CUDA, TENSORRT, chosen_providers, cuda_problems, require_providers
from tnn_runtime.backends.slots import AT_ONCE, Slots
from tnn_runtime.bundle.manifest import FEATURE_MAPS, ONNX_FILE, Manifest
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.errors import (
    ArtifactError,
    ClassifierClosed,
    NotAnswered,
    ProviderUnavailable,
    RunError,
    TnnError,
    UsageError,
)

__all__ = [
    "OnnxRuntimeBackend",
    "cuda_problems",
    "device_timer",
    "node_counts",
    "open_session",
    "probe",
    "require_cuda",
]

_LOG = logging.getLogger(__name__)

_FATAL = 4
_ALWAYS = ("logits", "embedding")
_WITH_MAPS = (*_ALWAYS, FEATURE_MAPS)
_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
_UNKNOWN_OPTION = "provider option"
_BAD_MODEL = ("InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")


class OnnxRuntimeBackend:
    """The ONNX model of a bundle in an ONNX Runtime session.

    On the CPU one call at a time uses all its threads, and any batch size is as good as another. On CUDA, batches have
    one of a few sizes (`bucket_sizes`), go through page-locked memory, and two calls overlap. With CUDA graphs all
    calls go through one thread, as ONNX Runtime demands, and one call at a time is as good as several. Without
    cuda-bindings, batches of any size go through pageable memory, and `details` says so; runs that return feature maps
    do that always, and are not recorded.

    Args:
        bundle: The bundle, with whose manifest the graph must agree.
        device: The CPU or a GPU.
        options: How to run it.

    Raises:
        UsageError: If options contradict each other, or ONNX Runtime does not know one.
        ProviderUnavailable: If a provider that was asked for does not work, or another one would run the model.
        ArtifactError: If the bundle has no ONNX model, another one than the manifest says, or one that ONNX Runtime
            refuses.
    """

    def __init__(self, bundle: Bundle, device: Device, options: BackendOptions) -> None:
        folder, manifest = bundle.folder, bundle.manifest
        if ONNX_FILE not in manifest.files:
            raise ArtifactError(f"{folder} lists no {ONNX_FILE}, which the runtime needs; export with --formats onnx")
        self.device = str(device)
        self.threads = options.threads
        self.batch_sizes: tuple[int, ...] = ()
        self.concurrency = 1
        self.versions = {"onnxruntime": ort.__version__}
        self._shapes = {spec.name: spec.shape[1:] for spec in manifest.outputs}
        providers = chosen_providers(device, manifest, options)
        without = CRASHING_OPTIMIZERS.get(manifest.precision, ())
        self._session: Any = _bundle_session(bundle, device, providers, options.threads, options.spin, without)
        self.details: dict[str, Any] = {
            "providers": self._session.get_providers(),
            "provider_options": {name: self._session.get_provider_options().get(name, {}) for name, _ in providers},
            "nodes": node_counts(self._session),
        }
        self._check_interface(folder, manifest)
        self._run: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]] = self._run_unbound
        self._run_with_maps: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]] = partial(
            self._run_unbound, names=_WITH_MAPS
        )
        self._close = contextlib.ExitStack()
        if device.kind == "cuda":
            self._bind(device, manifest, options)

    def run(self, images: NDArray[np.uint8], maps: bool = False) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``, with feature maps if these are asked for.

        Raises:
            RunError: If the model does not run.
            DeviceLost: If the device failed for good.
            ArtifactError: If the model gives something else than the manifest says.
        """
        names, run = (_WITH_MAPS, self._run_with_maps) if maps else (_ALWAYS, self._run)
        outputs = run(images)
        found = [output.shape for output in outputs]
        expected = [(len(images), *self._shapes[name]) for name in names]
        if found != expected:
            raise ArtifactError(f"the model gives {found} where the manifest has {expected}; export the bundle again")
        return Outputs(*outputs)

    def close(self) -> None:
        """Release the session, after the calls that run. Closing twice is fine."""
        self._close.close()
        self._session = None

    def _run_unbound(
        self, images: NDArray[np.uint8], names: Sequence[str] = _ALWAYS, options: Any = None
    ) -> Sequence[NDArray[Any]]:
        session = self._session
        if session is None:
            raise ClassifierClosed("this backend is closed; load the bundle again")
        try:
            outputs: Sequence[NDArray[Any]] = session.run(names, {"images": images}, options)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
            raise failed_run(len(images), error) from error
        return outputs

    def _bind(self, device: Device, manifest: Manifest, options: BackendOptions) -> None:
        """Prepare buffers at fixed addresses, and for CUDA graphs the one thread that may use them."""
        self.concurrency = 1 if options.cuda_graphs else AT_ONCE
        try:
            cuda = Cuda(device.index)
        except ProviderUnavailable as error:
            if options.cuda_graphs:
                raise
            self.details["memory"] = f"pageable: {error}"
            _LOG.warning("%s copies through pageable memory, which is slower: %s", self.device, error)
            return
        self.details |= {"memory": "page-locked", "gpu": cuda.name(), "cuda_graphs": options.cuda_graphs}
        self.versions |= cuda.versions()
        self.batch_sizes = bucket_sizes(manifest.batch, options.max_batch_size)
        run: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]
        made: list[BoundSlot] = []
        try:
            for _ in range(self.concurrency):
                made.append(BoundSlot(self._session, cuda, manifest, self.batch_sizes, graphs=options.cuda_graphs))
        except NotAnswered as error:
            Slots(made).close()
            raise ProviderUnavailable(
                f"device {self.device!r} has no room for batches of {self.batch_sizes[-1]} ({error}); choose a smaller "
                "max_batch_size"
            ) from error
        slots = Slots(made)
        self._close.callback(slots.close)
        run = slots.run
        if options.cuda_graphs:
            alone = ThreadPoolExecutor(1, "tnn-cuda-graphs")
            self._close.callback(alone.shutdown)
            run = _in_thread(alone, run)
            # What is not bound has no fixed address, so that it is not recorded.
            unrecorded = ort.RunOptions()
            unrecorded.log_severity_level = _FATAL
            unrecorded.add_run_config_entry("gpu_graph_id", "-1")
            with_maps = partial(self._run_unbound, names=_WITH_MAPS, options=unrecorded)
            self._run_with_maps = _in_thread(alone, with_maps)
        self._run = run

    def _check_interface(self, folder: Path, manifest: Manifest) -> None:
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


@contextmanager
def device_timer(bundle: Bundle, device: Device, options: BackendOptions) -> Iterator[TimedRun]:
    """Run the model on a stream of ours, whose time can be taken; see `open_device_timer`."""
    manifest, cuda = bundle.manifest, Cuda(device.index)
    cuda.use()
    stream = cuda.stream()
    try:
        ours = {"user_compute_stream": str(int(stream))}
        providers = [(name, asked | ours) for name, asked in chosen_providers(device, manifest, options)]
        sizes = bucket_sizes(manifest.batch, options.max_batch_size)
        slot = BoundSlot(
            _bundle_session(bundle, device, providers, options.threads, options.spin),
            cuda,
            manifest,
            sizes,
            graphs=options.cuda_graphs,
            stream=stream,
        )
        try:
            yield slot.timed_run
        finally:
            slot.close()  # and with it the session, which must not outlive its stream
    finally:
        cuda.destroy(stream)


def open_session(model: str | bytes, device: str, threads: int, spin: bool = False) -> Any:
    """Open a session on exactly the device that was asked for, with nothing on that changes results.

    Args:
        model: Path or bytes of an ONNX model.
        device: ``"cpu"`` or ``"cuda:N"``.
        threads: CPU threads of one call.
        spin: Whether idle CPU threads wait actively.

    Raises:
        ProviderUnavailable: If CUDA was asked for and does not work.
        ArtifactError: If ONNX Runtime refuses the model.
    """
    kind, _, index = device.partition(":")
    asked: tuple[str, dict[str, str]] = (
        (CPU, {}) if kind == "cpu" else (CUDA, {"device_id": index or "0", "use_tf32": "0"})
    )
    return _session(model, Device(kind, int(index or 0)), [asked], threads, spin)


def probe(device: Device) -> str:
    """Run a tiny model on a device and return what ran it.

    Raises:
        TnnError: If that does not work.
    """
    session = open_session(PROBE.read_bytes(), str(device), threads=1)
    try:
        (result,) = session.run(None, {"x": np.ones(2, np.float32)})
    except Exception as error:  # as in `_session`
        raise failed_run(2, error) from error
    if result.tolist() != [2.0, 2.0]:
        raise RunError(f"device {str(device)!r} computed 1 + 1 = {result.tolist()}; do not use it")
    return f"runs a model with {session.get_providers()[0]}"


def require_cuda(device: str) -> None:
    """Make sure that the CUDA provider can be loaded.

    Raises:
        ProviderUnavailable: If not, with what is missing.
    """
    require_providers(device, [CUDA])


def node_counts(session: Any) -> dict[str, int]:
    """Return how many nodes of its graph each provider of a session has got; empty where it cannot tell."""
    try:
        parts = session.get_provider_graph_assignment_info()
    except (AttributeError, RuntimeError):  # before ONNX Runtime 1.24, or not recorded
        return {}
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def _bundle_session(bundle: Bundle, *how: Any) -> Any:
    """Open a session of the model of a bundle; ``how`` is what `_session` takes beside the model."""
    if not bundle.weights:
        return _session(bundle.contents[ONNX_FILE], *how)
    with bundle.model_on_disk() as path:
        return _session(str(path), *how)


def _session(
    model: str | bytes,
    device: Device,
    providers: Sequence[tuple[str, dict[str, str]]],
    threads: int,
    spin: bool,
    without: Sequence[str] = (),
) -> Any:
    """Open a session; on the CPU it does without some optimizers."""
    names = [name for name, _ in providers]
    require_providers(device, names)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle workers would otherwise burn the cores that the rest of a service, or a second session, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if CPU not in names:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        # Without enable_fallback=0 a session that fails on a GPU is made again on the CPU, now or in a later run.
        left_out = {"disabled_optimizers": list(without)} if without and CPU in names else {}
        session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0, **left_out)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        raise _refusal(device, names, error) from error
    _check_providers(device, providers, session)
    return session


def _refusal(device: Device, names: Sequence[str], error: Exception) -> TnnError:
    reason = complaint(error)
    if _UNKNOWN_OPTION in reason.lower() and "device_id" not in reason:
        return UsageError(f"{names[0]} of ONNX Runtime {ort.__version__} refuses its options ({reason}); correct them")
    if device.kind == "cpu" or type(error).__name__ in _BAD_MODEL:
        return ArtifactError(f"ONNX Runtime {ort.__version__} refuses the model ({reason}); export the bundle again")
    return ProviderUnavailable(
        f"device {str(device)!r} does not run this model with {', '.join(names)} ({reason}); choose device 'cpu'"
    )


def _check_providers(device: Device, providers: Sequence[tuple[str, dict[str, str]]], session: Any) -> None:
    """Make sure that the live session has the providers that were asked for, and they the nodes and the options."""
    names, live = [name for name, _ in providers], list(session.get_providers())
    if live[: len(names)] != names or set(live) - {*names, CPU}:
        raise ProviderUnavailable(
            f"device {str(device)!r} was asked for with {names}, and ONNX Runtime chose {live}; choose device 'cpu'"
        )
    counts = node_counts(session)
    strangers = {name: count for name, count in counts.items() if name not in names}
    if strangers:
        raise ProviderUnavailable(
            f"{names} were asked for on device {str(device)!r}, and other providers run a part of this model: {counts} "
            f"nodes; add {', '.join(strangers)} to the providers to accept that, or choose device 'cpu'"
        )
    if device.kind == "cuda":
        if not counts:
            raise ProviderUnavailable(
                f"ONNX Runtime {ort.__version__} does not tell which provider runs which node; install 1.31 or newer"
            )
        if not counts.keys() - {CPU}:
            raise ProviderUnavailable(
                f"{names} were asked for on device {str(device)!r}, and the CPU runs all of this model ({counts}); "
                "choose device 'cpu'"
            )
    for name, asked in providers:
        taken = session.get_provider_options().get(name, {})
        # CUDA's and TensorRT's refuse by themselves what they do not know; others forget it.
        if name in (CUDA, TENSORRT):
            continue
        if lost := sorted(asked.keys() - taken.keys()):
            raise UsageError(f"{name} did not take its options {', '.join(lost)}; it has {', '.join(taken) or 'none'}")


def _in_thread(
    executor: ThreadPoolExecutor, run: Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]
) -> Callable[[NDArray[np.uint8]], Sequence[NDArray[Any]]]:
    """Return a function that runs in the one thread of an executor."""

    def in_thread(images: NDArray[np.uint8]) -> Sequence[NDArray[Any]]:
        try:
            return executor.submit(run, images).result()
        except RuntimeError as error:
            raise ClassifierClosed("this backend is closed; load the bundle again") from error

    return in_thread
