"""Logic heads on pixels as a C program, which the compiler of this machine makes: 64 images a machine word."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.ranking import softmax
from tnn_runtime.backends import BackendOptions, Device
from tnn_runtime.bundle.manifest import HEAD_FILE
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.circuits import PixelCircuit, c_source, circuit_of
from tnn_runtime.circuits.source import ENTRY
from tnn_runtime.engines.compiler import load_program
from tnn_runtime.errors import ArtifactError, ClassifierClosed, ProviderUnavailable, RunError, UsageError
from tnn_runtime.text import a_head

__all__ = ["CompiledBackend", "probe"]

_PROBE = "int run(int one) { return one + one; }\n"


class CompiledBackend:
    """The circuit of a bundle as a shared library.

    The program is generated from ``head.npz``, whose hash the manifest has, compiled once, and kept. One call runs in
    one thread; as many as there are threads run at once.

    Args:
        bundle: A bundle whose backbone is ``pixels`` and whose head is ``logic``.
        device: ``"compiled"``.
        options: How to run it. ``providers`` and ``provider_options`` are ONNX Runtime's, and refused here.

    Raises:
        UsageError: If an option is not for compiled programs.
        ProviderUnavailable: If there is no C compiler, or it fails; if the bundle has outputs that a program lacks.
        ArtifactError: If the bundle is no circuit on pixels, or its arrays cannot be used.
    """

    def __init__(self, bundle: Bundle, device: Device, options: BackendOptions) -> None:
        manifest = bundle.manifest
        if not manifest.is_circuit:
            found = f"{a_head(manifest.model['head'])} on {manifest.model['backbone']}"
            raise ArtifactError(
                f"device 'compiled' runs logic heads on pixels, and {bundle.folder} has {found}; choose device 'cpu', "
                "or train with --backbone pixels --head logic"
            )
        if options.providers is not None or options.provider_options:
            raise UsageError(
                "device 'compiled' has no execution providers; leave providers and their options out, or choose device "
                "'cpu'"
            )
        if options.cuda_graphs:
            raise UsageError("cuda_graphs=True needs a GPU, and device 'compiled' is a CPU; leave it out")
        if others := [spec.name for spec in manifest.extra_outputs if spec.name != "probabilities"]:
            raise ProviderUnavailable(
                f"device 'compiled' does not compute {', '.join(others)}, which {bundle.folder} has; choose device "
                "'cpu'"
            )
        pixels = _pixel_circuit(bundle)
        library, path, compiler = load_program(c_source(pixels), options.cache_dir)
        self._function: Any = getattr(library, ENTRY)
        self._function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
        self._function.restype = ctypes.c_int
        self._shape = pixels.shape
        self._sizes = len(manifest.class_names), int(np.prod(pixels.shape))
        self.device = str(device)
        self.threads = 1
        self.batch_sizes: tuple[int, ...] = ()
        self.concurrency = options.threads
        self.versions = {"compiler": compiler.version}
        gates = pixels.circuit.size - len(pixels.circuit.bits)
        self.details = {"program": str(path), "flags": " ".join(compiler.flags), "gates": gates}
        self._is_closed = False

    def run(self, images: NDArray[np.uint8], extra: tuple[str, ...] = ()) -> Outputs:
        """Return the outputs for images ``[N, H, W, C]``; beside logits and embedding there are ``probabilities``.

        Raises:
            RunError: If there is no memory.
        """
        if self._is_closed:
            raise ClassifierClosed("this backend is closed; load the bundle again")
        if images.dtype != np.uint8 or images.shape[1:] != self._shape:
            raise RunError(f"got {images.dtype} {list(images.shape)}; expected uint8 [N, {self._shape}]")
        images = np.ascontiguousarray(images)
        logits, embedding = (np.empty((len(images), size), np.float32) for size in self._sizes)
        if self._function(images.ctypes.data, len(images), logits.ctypes.data, embedding.ctypes.data):
            raise RunError(f"there is no memory to run {len(images)} images; use a smaller batch")
        return Outputs(logits, embedding, {name: softmax(logits).astype(np.float32) for name in extra})

    def warm_up(self) -> None:
        """Run one image."""
        self.run(np.zeros((1, *self._shape), np.uint8))

    def close(self) -> None:
        """Let go of the program; it stays loaded, for others may run it."""
        self._is_closed = True


def probe(device: Device) -> str:
    """Compile and run a tiny program and return what made it.

    Raises:
        ProviderUnavailable: If that does not work.
    """
    library, _, compiler = load_program(_PROBE)
    if library.run(1) != 2:
        raise ProviderUnavailable(f"a program that {compiler} made computes 1 + 1 = {library.run(1)}; do not use it")
    return f"runs a program made by {compiler}"


def _pixel_circuit(bundle: Bundle) -> PixelCircuit:
    manifest, path = bundle.manifest, bundle.folder / HEAD_FILE
    names = ("thresholds", "left", "right", "tables", "temperature")
    found = read_arrays(path, *names, content=bundle.contents[HEAD_FILE])
    thresholds, left, right, tables, temperature = (found[name] for name in names)
    shape, classes = manifest.preprocessing.shape, len(manifest.class_names)
    wanted = (int(np.prod(shape)),)
    if (
        thresholds.ndim != 2
        or thresholds.shape[:1] != wanted
        or left.ndim != 2
        or not left.shape == right.shape == tables.shape
        or temperature.shape
        or not (np.isfinite(thresholds).all() and 0 < temperature < np.inf)
    ):
        shapes = {name: list(array.shape) for name, array in found.items()}
        raise ArtifactError(f"{path} has the arrays {shapes} for images of {shape}; export the bundle again")
    circuit = circuit_of(found, classes)
    preprocessing = manifest.preprocessing
    return PixelCircuit.of(
        circuit,
        thresholds.astype(np.float32),
        np.float32(temperature),
        shape,
        preprocessing.mean,
        preprocessing.std,
        manifest.precision,
    )
