"""Static quantisation of a graph's backbone to int8, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["quantize"]

_WEIGHTED = {"Conv", "Gemm", "MatMul"}


def quantize(model: onnx.ModelProto, images: NDArray[np.uint8], batch: int) -> onnx.ModelProto:
    """Return a graph whose backbone computes in int8, between pairs of QuantizeLinear and DequantizeLinear.

    Weights have one scale a channel, activations one a tensor, from their smallest and largest values on ``images``.
    Everything is symmetric and biases stay as they are, as TensorRT asks for, and weights use 7 of the 8 bits, so that
    x86 processors without VNNI do not saturate. What comes before the first weights, the normalisation of the pixels,
    and after the embedding, the head, is left alone.

    Args:
        model: The float32 graph.
        images: Calibration images, uint8 ``[N, H, W, C]``.
        batch: How many of them to run at once.
    """
    from tnn_runtime.backends.ort import ort  # noqa: F401 - first, for it turns telemetry off

    # isort: split
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            order = np.resize(np.arange(len(images)), (-(-len(images) // batch), batch))
            self._batches = ({"images": images[rows]} for rows in order)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder, _without_advice():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model), source)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=_outside_the_backbone(model.graph),
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )
        return onnx.load(target)


def _outside_the_backbone(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the nodes before the first weights, and of those that the embedding does not depend on."""
    makers = {name: node for node in graph.node for name in node.output}
    needed: set[str] = set()
    open_values = ["embedding"]
    while open_values:
        node = makers.get(open_values.pop())
        if node is not None and node.name not in needed:
            needed.add(node.name)
            open_values += node.input
    weighted: set[str] = set()
    for node in graph.node:
        if node.op_type in _WEIGHTED or weighted & set(node.input):
            weighted |= set(node.output)
    return [node.name for node in graph.node if node.name not in needed or not weighted & set(node.output)]


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the root logger, on which the quantiser recommends a preprocessing that the exporter has done."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logging.root.setLevel(level)
