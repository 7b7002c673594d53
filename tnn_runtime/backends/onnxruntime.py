"""ONNX Runtime on the CPU or on CUDA. What was asked for is what runs, or it is an error."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.backends import CRASHING_OPTIMIZERS, PROBE, BackendOptions, Device, TimedRun
from tnn_runtime.backends.batches import bucket_sizes
from tnn_runtime.backends.binding import ALWAYS, BoundSlot, failed_run
from tnn_runtime.backends.capture import OPENING
from tnn_runtime.backends.cuda import Cuda
from tnn_runtime.backends.failures import complaint
from tnn_runtime.backends.ort import ort
from tnn_runtime.backends.providers import CPU, CUDA, TENSORRT, chosen_providers, cuda_problems, require_providers
from tnn_runtime.backends.runs import Bound, Runs, Unbound
from tnn_runtime.backends.slots import AT_ONCE, Slots
from tnn_runtime.backends.weights import shared_weights
from tnn_runtime.bundle.manifest import ONNX_FILE, Manifest
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.errors import ArtifactError, NotAnswered, ProviderUnavailable, RunError, TnnError, UsageError

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
_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)"}
_UNKNOWN_OPTION = "provider option"
_NO_FALLBACK = "session.disable_cpu_ep_fallback"
_NEEDS_FALLBACK = "fallback to cpu ep has been explicitly disabled"
_BAD_MODEL = ("InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")


class OnnxRuntimeBackend:
    """The ONNX model of a bundle in an ONNX Runtime session.

    On the CPU one call at a time uses all its threads, and any batch size is as good as another. On CUDA, batches have
    one of a few sizes (`bucket_sizes`), go through page-locked memory, and two calls overlap. A session plans its
    convolutions again whenever the batch size changes: each of the two places where calls run has a session for each
    size, and the weights are in the memory of the GPU once. With CUDA graphs, which are recorded when it is opened, all
    calls go through one thread, as ONNX Runtime demands, and one call at a time is as good as several. Without
    cuda-bindings, batches go through pageable memory, and `details` says so; runs that return more than logits and
    embedding do that always, and are not recorded. The TensorRT provider has one engine for all sizes, and one session.

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
        if device.kind == "cuda":
            self.batch_sizes = bucket_sizes(manifest.batch, options.max_batch_size)
        one = providers[0][0] != CUDA
        self._weights, told = ({}, {}) if one else _share(bundle, device)
        how = device, providers, options.threads, options.spin, without, self._weights
        sessions = _Sessions(partial(_bundle_session, bundle, *how), self.batch_sizes, one)
        first = sessions.first
        self.details: dict[str, Any] = told | {
            "providers": first.get_providers(),
            "provider_options": {name: first.get_provider_options().get(name, {}) for name, _ in providers},
            "nodes": node_counts(first),
        }
        _check_interface(first, folder, manifest)
        self._runs: Runs
        if device.kind == "cpu":
            shape = manifest.preprocessing.shape
            self._runs = Unbound({None: first}, [manifest.batch.smallest], shape, on_gpu=False)
        else:
            self._runs = self._on_gpu(device, manifest, options, sessions)

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``, with those that are asked for.

        Raises:
            RunError: If the model does not run.
            DeviceLost: If the device failed for good.
            ArtifactError: If the model gives something else than the manifest says.
        """
        outputs = self._runs.run(images, extra)
        found = [output.shape for output in outputs]
        expected = [(len(images), *self._shapes[name]) for name in ALWAYS + extra]
        if found != expected:
            raise ArtifactError(f"the model gives {found} where the manifest has {expected}; export the bundle again")
        logits, embedding, *others = outputs
        return Outputs(logits, embedding, dict(zip(extra, others, strict=True)))

    def warm_up(self) -> None:
        """Run each batch size everywhere where it may run; on the CPU, which takes any, the smallest.

        Errors are those of `run`.
        """
        self._runs.warm_up()

    def close(self) -> None:
        """Release the sessions, after the calls that run. Closing twice is fine."""
        self._runs.close()
        self._weights = {}

    def _on_gpu(self, device: Device, manifest: Manifest, options: BackendOptions, sessions: _Sessions) -> Runs:
        """Prepare buffers at fixed addresses, or do without where there is no cuda-bindings."""
        self.concurrency = 1 if options.cuda_graphs else AT_ONCE
        sizes = self.batch_sizes
        try:
            cuda = Cuda(device.index)
        except ProviderUnavailable as error:
            if options.cuda_graphs:
                raise
            self.details["memory"] = f"pageable: {error}"
            _LOG.warning("%s copies through pageable memory, which is slower: %s", self.device, error)
            return Unbound(sessions.by_size(), sizes, manifest.preprocessing.shape, on_gpu=True)
        self.details |= {"memory": "page-locked", "gpu": cuda.name(), "cuda_graphs": options.cuda_graphs}
        self.versions |= cuda.versions()

        def slot() -> BoundSlot:
            return BoundSlot(sessions.by_size(), cuda, manifest, graphs=options.cuda_graphs)

        try:
            return Bound(slot, self.concurrency, options.cuda_graphs)
        except NotAnswered as error:
            raise ProviderUnavailable(
                f"device {self.device!r} cannot be prepared for batches of {sizes[0]} to {sizes[-1]} ({error}); choose "
                "a smaller max_batch_size"
            ) from error


def _share(bundle: Bundle, device: Device) -> tuple[Mapping[str, Any], dict[str, str]]:
    """Return weights on the GPU for all sessions, or none if ONNX Runtime cannot put them there, and what to tell."""
    require_cuda(str(device))
    try:
        weights = shared_weights(bundle.contents[ONNX_FILE], "cuda", device.index)
    except Exception as error:  # as in `_session`, which tells whether the device works
        return {}, {"weights": f"in each session: {complaint(error)}"}
    return weights, {"weights": f"{len(weights)} shared by all sessions"}


class _Sessions:
    """Sessions of a model, one for each batch size or one for all.

    Args:
        opener: Opens a session for a batch size, or with ``None`` for any.
        sizes: The batch sizes; empty for any.
        one: Whether one session is enough for all of them.
    """

    def __init__(self, opener: Callable[[int | None], Any], sizes: Sequence[int], one: bool) -> None:
        self._opener, self._sizes, self._one = opener, sizes, one
        self.first = opener(None if one else sizes[0])
        """The session for all sizes, or one for the smallest."""
        self._unused = [self.first]

    def by_size(self) -> Mapping[Any, Any]:
        """Return a session for each batch size, which nobody else has unless it is the one for all of them."""
        if self._one:
            return dict.fromkeys(self._sizes, self.first)
        return {size: self._unused.pop() if self._unused else self._opener(size) for size in self._sizes}


def _check_interface(session: Any, folder: Path, manifest: Manifest) -> None:
    for found, expected in ((session.get_inputs(), manifest.inputs), (session.get_outputs(), manifest.outputs)):
        graph = [(value.name, value.type, *value.shape[1:]) for value in found]
        listed = [(spec.name, _TYPES.get(spec.dtype), *spec.shape[1:]) for spec in expected]
        if graph != listed:
            raise ArtifactError(
                f"{folder / ONNX_FILE} has {graph} where the manifest has {listed}; export the bundle again"
            )


@contextmanager
def device_timer(bundle: Bundle, device: Device, options: BackendOptions) -> Iterator[TimedRun]:
    """Run the model on a stream of ours, whose time can be taken; see `open_device_timer`."""
    manifest = bundle.manifest
    sizes = bucket_sizes(manifest.batch, options.max_batch_size)
    with contextlib.ExitStack() as opened:
        with OPENING:
            cuda = Cuda(device.index)
            cuda.use()
            stream = cuda.stream()
            opened.callback(cuda.destroy, stream)
            ours = {"user_compute_stream": str(int(stream))}
            providers = [(name, asked | ours) for name, asked in chosen_providers(device, manifest, options)]
            weights, _ = _share(bundle, device)
            how = device, providers, options.threads, options.spin, (), weights
            # The slot has the only hold on the sessions, which must not outlive their stream.
            slot = BoundSlot(
                {size: _bundle_session(bundle, *how, size) for size in sizes},
                cuda,
                manifest,
                graphs=options.cuda_graphs,
                stream=stream,
            )
            opened.callback(Slots([slot]).close)
            slot.warm_up()
        yield slot.timed_run


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


def _operators(session: Any, provider: str) -> dict[str, int]:
    """Return how many nodes of each operator a provider of a session has got."""
    parts = session.get_provider_graph_assignment_info()
    return dict(Counter(node.op_type for part in parts if part.ep_name == provider for node in part.get_nodes()))


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
    weights: Mapping[str, Any] | None = None,
    batch: int | None = None,
) -> Any:
    """Open a session, on the CPU without some optimizers, with weights that are on the device already, for one size.

    For one batch size ONNX Runtime works out all shapes beforehand. It would leave that to the CPU in every run, which
    vision transformers could not go without.
    """
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
        options.add_session_config_entry(_NO_FALLBACK, "1")
    if names[0] == CUDA:
        # It has no products of 8 bits: quantised weights become float32 now instead of in every run.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if batch is not None:
        options.add_free_dimension_override_by_name("batch", batch)
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    # Without enable_fallback=0 a session that fails on a GPU is made again on the CPU, now or in a later run.
    left_out = {"disabled_optimizers": list(without)} if without and CPU in names else {}
    opener = partial(ort.InferenceSession, model, options, providers=list(providers), enable_fallback=0, **left_out)
    try:
        try:
            session = opener()
        except Exception as error:
            if _NEEDS_FALLBACK not in str(error).lower():
                raise
            options.add_session_config_entry(_NO_FALLBACK, "0")  # only to see which nodes are on the CPU, and refuse
            session = opener()
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
    strangers = {name: _operators(session, name) for name in counts if name not in names}
    if strangers:
        raise ProviderUnavailable(
            f"{names} were asked for on device {str(device)!r}, and other providers run a part of this model: {counts} "
            f"nodes, {strangers}; add {', '.join(strangers)} to the providers to accept that, or choose device 'cpu'"
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
