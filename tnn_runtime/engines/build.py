"""Engines that are built once and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.reading import OpenFolder, read_json
from tnn_runtime.bundle.storage import FolderKind, describe_files, write_bytes, write_json
from tnn_runtime.engines.builder import serialize
from tnn_runtime.engines.cache import OTHER_FOLDER
from tnn_runtime.engines.hardware import build_target
from tnn_runtime.engines.library import INSTALL, Library, find_tensorrt
from tnn_runtime.engines.spec import EngineSpec, fingerprint
from tnn_runtime.errors import ArtifactError, EngineError, ProviderUnavailable, TnnError, UsageError

__all__ = ["build_engine", "read_engine", "read_spec"]

SCHEMA_VERSION = 1
LOCK_FILE = "engines.lock"
_KIND = FolderKind("engine", LOCK_FILE, ())
_LOG = logging.getLogger(__name__)


def build_engine(
    onnx_path: str | Path,
    folder: str | Path,
    *,
    input_name: str,
    shape: Sequence[int],
    batch: tuple[int, int, int],
    library: Library | None = None,
    tf32: bool = False,
    gpu: int = 0,
) -> Path:
    """Return an engine of an ONNX model; it is built if ``folder`` has none that fits.

    An engine fits if it was built from this model by this version of this library for this GPU, with these batch
    sizes and options, and if its bytes are those that were written; a ``.json`` file beside it tells all this. One
    process at a time builds in a folder, so that nothing is built twice and no timing is disturbed; a killed one holds
    nobody up. TensorRT may take minutes for a large model.

    Args:
        onnx_path: The model, with one input. Its types are those of the engine.
        folder: Where engines are kept; it is made if need be. Engines of other models may lie there.
        input_name: Name of the input.
        shape: Shape of one sample of it, without the batch.
        batch: Smallest batch size, the one to optimise for, and the largest.
        library: The TensorRT to build with; by default the one that is installed.
        tf32: Whether float32 products may round their factors to 10 bits, which is faster and less exact.
        gpu: The GPU that the engine is for, as CUDA counts; CUDA must have been told to use it in this thread.

    Raises:
        UsageError: On batch sizes or a shape that cannot be.
        EngineError: If the model is missing, TensorRT refuses it, or the engine cannot be written.
        ProviderUnavailable: If there is no TensorRT here that builds engines, or no GPU where it needs one.
    """
    model, folder = Path(onnx_path).absolute(), Path(folder)
    library = library or find_tensorrt()
    spec = EngineSpec(
        model=fingerprint(model),
        library=library.kind,
        version=library.version,
        target=build_target(library, gpu),
        input_name=input_name,
        shape=tuple(shape),
        batch=tuple(batch),  # type: ignore[arg-type]
        tf32=tf32,
    )
    engine = folder / spec.name
    if not _fits(engine, spec):
        with _alone(folder):
            if not _fits(engine, spec):
                _LOG.info("building %s of %s with %s", engine, model, library)
                _build(library, model, spec, engine)
    return engine


def read_engine(engine: Path) -> bytes:
    """Return the content of an engine that `build_engine` made, if it is what was written.

    Raises:
        EngineError: If it is missing or another file.
    """
    return _read_made(engine)[0]


def read_spec(engine: Path) -> EngineSpec:
    """Return what an engine that `build_engine` made is built from and for.

    Raises:
        EngineError: If the engine is missing or another file, or what was noted of it cannot be used.
    """
    try:
        return decode(EngineSpec, _read_made(engine)[1], "spec")
    except (TypeError, UsageError) as error:
        raise EngineError(
            f"{engine.with_suffix('.json')} says nothing of use ({error}); build the engine again"
        ) from error


def _read_made(engine: Path) -> tuple[bytes, Any]:
    try:
        return _read(engine)
    except ArtifactError as error:
        raise EngineError(f"{error}; if another process builds engines there, try again") from error


def _fits(engine: Path, spec: EngineSpec) -> bool:
    try:
        return decode(EngineSpec, _read(engine)[1], "spec") == spec
    except (TnnError, TypeError):
        return False


def _read(engine: Path) -> tuple[bytes, Any]:
    """Return the content of an engine, and what was noted of it."""
    record = read_json(engine.with_suffix(".json"), "engine", SCHEMA_VERSION)
    try:
        with contextlib.closing(OpenFolder(engine.parent, _KIND)) as folder:
            return folder.read_verified(engine.name, record.get("file")), record.get("spec")
    except OSError as error:
        raise ArtifactError(f"{engine.parent} cannot be read ({error.strerror}); make it readable") from error


def _build(library: Library, model: Path, spec: EngineSpec, engine: Path) -> None:
    timings = engine.parent / spec.timings_name
    keeps_timings = library.kind == "tensorrt"
    known = (timings.read_bytes() if timings.is_file() else b"") if keeps_timings else None
    content, learnt = serialize(library, model, spec, known)
    try:
        write_bytes(engine, content)
        record = describe_files(engine.parent, [engine.name])[engine.name]
        spec_json = dataclasses.asdict(spec)
        write_json(engine.with_suffix(".json"), {"schema_version": SCHEMA_VERSION, "spec": spec_json, "file": record})
        if learnt is not None:
            write_bytes(timings, learnt)
    except OSError as error:
        raise EngineError(
            f"{engine} of {content.nbytes / 2**20:.1f} MiB cannot be written ({error.strerror}); make room, or "
            f"{OTHER_FOLDER}"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        from filelock import FileLock
    except ImportError as error:
        raise ProviderUnavailable(
            f"engines are built under a lock of filelock ({error}); install it with {INSTALL}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE)
        lock.acquire()
    except OSError as error:
        raise EngineError(
            f"engines cannot be written to {folder} ({error.strerror}); make it writable, or {OTHER_FOLDER}"
        ) from error
    try:
        yield
    finally:
        lock.release()
