"""Writes ``tnn_runtime/probe.onnx``, the model that ``tnn-runtime doctor`` runs: y = x + x."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def probe() -> bytes:
    """Return the model, serialised."""
    value = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"}
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [value["x"]], [value["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    Path("tnn_runtime/probe.onnx").write_bytes(probe())
