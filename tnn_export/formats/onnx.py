"""The ONNX artifact."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import torch

from tnn_export.errors import ExportError
from tnn_export.formats.job import ExportJob, first_line
from tnn_export.formats.opsets import CONVERTED, set_smallest_ir, with_opset
from tnn_export.formats.quantization import quantize
from tnn_runtime.bundle.manifest import ONNX_FILE

__all__ = ["export_onnx", "write_graph"]

_INLINE_BYTES = 2_000_000_000
"""A larger graph, which protobuf could not read, has its weights in a file of their own."""


def export_onnx(job: ExportJob, folder: Path) -> Path:
    """Write ONNX with the input ``images`` and the model's outputs, the same bytes every time.

    Raises:
        ExportError: If the model has something that ONNX has no operators for.
    """
    path, program = folder / ONNX_FILE, job.program
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=list(job.model.outputs),
                opset_version=max(job.opset, CONVERTED.stop),
                verbose=False,
            )
        except Exception as error:  # the exporter has no common base of its errors
            raise ExportError(
                f"ONNX has no operators for the model ({first_line(error)}); change what is named there, or export "
                "with --formats torchscript pt2"
            ) from error
    assert exported is not None
    proto = exported.model_proto
    _strip_provenance(proto)
    if job.opset in CONVERTED:
        proto = _converted(proto, job.opset)
    _name_batch(proto.graph)
    if job.calibration is not None:
        low, high = job.batch
        proto = quantize(proto, job.calibration, max(low, min(16, high or 16)))
    write_graph(proto, path, job.metadata)
    return path


def write_graph(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph that is whole, and check it.

    Args:
        proto: The graph, which is changed.
        path: The file; the weights of a graph that is too large for it lie beside it.
        metadata: What the file says about itself.
    """
    set_smallest_ir(proto)
    onnx.helper.set_model_props(proto, dict(metadata))
    if proto.ByteSize() > _INLINE_BYTES:
        onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save(proto, path)
    onnx.checker.check_model(path, full_check=True)


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return with_opset(proto, opset)
    except Exception as error:  # the converter raises classes without a common base
        reason = " ".join(str(error).rpartition("failed:")[2].split())[:300]
        raise ExportError(
            f"the model cannot be had in opset {opset} ({reason}); choose a newer one: --opset {CONVERTED.stop} needs "
            "no conversion"
        ) from error


def _strip_provenance(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the machine it ran on, such as source paths in stack traces."""
    graph = proto.graph
    for entry in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        if not isinstance(entry, onnx.ModelProto):
            entry.ClearField("doc_string")


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the dimension that varies ``batch``; the exporter numbers it."""
    name = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(name, "batch")


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
