"""From an ONNX file to the bytes of an engine, with one TensorRT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tnn_runtime.engines.library import Library, collecting_logger, one_line
from tnn_runtime.engines.spec import EngineSpec
from tnn_runtime.errors import EngineError, ProviderUnavailable

__all__ = ["serialize"]

_LOG = logging.getLogger(__name__)
_ELSEWHERE = "or serve the model with ONNX Runtime (device 'cuda' or 'cpu')"


def serialize(
    library: Library, model: Path, spec: EngineSpec, timings: bytes | None
) -> tuple[memoryview, bytes | None]:
    """Build an engine in memory.

    Args:
        library: The TensorRT to build with.
        model: The ONNX file; weights that it keeps in other files are read from where it lies.
        spec: What to build.
        timings: Kernel timings of earlier builds, or nothing for a library that takes none.

    Returns:
        The engine, and the timings with those of this build.

    Raises:
        EngineError: If TensorRT refuses the model, or has no engine for it.
        ProviderUnavailable: If TensorRT does not work on this machine.
    """
    trt = library.module
    complaints: list[str] = []
    logger = collecting_logger(trt, complaints)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind11 raises TypeError where the library returns nothing
        raise ProviderUnavailable(
            f"{library} does not work here ({'; '.join(complaints) or error}); install a driver and a TensorRT that "
            "fit each other"
        ) from error
    # TensorRT 10 must be told; later ones build nothing else and ignore it.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise _refusal(library, model, [parser.get_error(index) for index in range(parser.num_errors)])
    _check_interface(network, model, spec)
    profile = builder.create_optimization_profile()
    profile.set_shape(spec.input_name, *((size, *spec.shape) for size in spec.batch))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    if not spec.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if timings is not None:
        _use_timings(config, timings)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(
            f"{library} builds no engine of {model} ({'; '.join(complaints) or 'no reason given'}); choose other batch "
            f"sizes than {spec.batch}, {_ELSEWHERE}"
        )
    for complaint in complaints:
        _LOG.warning("%s built an engine of %s and said: %s", library, model, complaint)
    return memoryview(engine), None if timings is None else bytes(config.get_timing_cache().serialize())


def _refusal(library: Library, model: Path, errors: list[Any]) -> EngineError:
    nodes = [error for error in errors if error.node() >= 0]
    problems = [
        f"node {error.node_name() or error.node()!r} ({error.node_operator()}): {_reason(error)}" for error in nodes
    ]
    problem = "; ".join(problems or map(_reason, errors))
    way_out = (
        f"export it again without {'these nodes' if len(nodes) > 1 else 'this node'}"
        if nodes
        else "export or copy it again"
    )
    return EngineError(f"{library} does not take {model}: {problem}; {way_out}, {_ELSEWHERE}")


def _reason(error: Any) -> str:
    text = one_line(error.desc())
    return f"neither an operator nor a plugin of TensorRT: {text}" if "Plugin not found" in text else text


def _check_interface(network: Any, model: Path, spec: EngineSpec) -> None:
    inputs = {tensor.name: tuple(tensor.shape) for tensor in map(network.get_input, range(network.num_inputs))}
    if list(inputs) != [spec.input_name]:
        raise EngineError(f"{model} has the inputs {list(inputs)}, expected {spec.input_name!r} alone; export it again")
    batch, *shape = inputs[spec.input_name]
    if tuple(shape) != spec.shape:
        raise EngineError(
            f"{model} takes {spec.input_name!r} of shape {inputs[spec.input_name]}, expected a batch of {spec.shape}; "
            "export it again"
        )
    if batch != -1 and set(spec.batch) != {batch}:
        raise EngineError(
            f"{model} takes batches of {batch} alone, and an engine for {spec.batch} was asked for; export it again "
            f"with a dynamic batch size or ask for {(batch,) * 3}"
        )


def _use_timings(config: Any, timings: bytes) -> None:
    """Start from earlier timings; those that are damaged or of another library are forgotten."""
    cache = config.create_timing_cache(timings)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
