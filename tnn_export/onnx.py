"""The ONNX artifact."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from tnn_export.serving import ServingModel

__all__ = ["export_onnx"]

OPSET = 20


def export_onnx(model: ServingModel, path: Path) -> None:
    """Write ``model`` as ONNX with a dynamic batch size, input ``images`` and outputs ``logits`` and ``embedding``."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (model.example(),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["logits", "embedding"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip_provenance(proto)
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def _strip_provenance(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the machine it ran on, such as source paths in stack traces."""
    graph = proto.graph
    for entry in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        if not isinstance(entry, onnx.ModelProto):
            entry.ClearField("doc_string")


@contextlib.contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
