"""The ONNX graph of an ensemble: the members' graphs side by side, and the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper

from tnn_export.ensemble.member import Member
from tnn_export.errors import ExportError
from tnn_export.formats.job import first_line
from tnn_export.formats.onnx import write_graph
from tnn_export.formats.opsets import with_opset
from tnn_runtime.bundle.manifest import ONNX_FILE, TensorSpec

__all__ = ["write_ensemble"]

_TYPES = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}


def write_ensemble(
    folder: Path,
    files: Sequence[Path],
    members: Sequence[Member],
    inputs: TensorSpec,
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> Path:
    """Write the graph of an ensemble, the same bytes every time.

    The graph has the oldest opset of the members: graphs in a newer one are converted.

    Args:
        folder: Where to write it.
        files: The graph of each member.
        members: What is known of each.
        inputs: What it takes, ``None`` in the shape for the batch size if that varies.
        outputs: What it returns, likewise.
        metadata: What the file says about itself.

    Raises:
        ExportError: If a member's graph cannot be converted.
    """
    graphs = _in_one_opset([onnx.load(file) for file in files], members)
    prefixed = [compose.add_prefix(graph, f"member_{number}/") for number, graph in enumerate(graphs)]
    for model in prefixed:
        _rename_input(model.graph, inputs.name)
    tail = _Tail(members)
    graph = helper.make_graph(
        [*(node for model in prefixed for node in model.graph.node), *tail.nodes_for([spec.name for spec in outputs])],
        "ensemble",
        [_described(inputs)],
        [_described(spec) for spec in outputs],
        [*(tensor for model in prefixed for tensor in model.graph.initializer), *tail.initializers],
    )
    versions = {entry.domain: entry.version for model in prefixed for entry in model.opset_import}
    whole = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(versions.items())],
        functions=[function for model in prefixed for function in model.functions],
        producer_name="tnn-deploy",
        ir_version=max(model.ir_version for model in prefixed),
    )
    path = folder / ONNX_FILE
    write_graph(whole, path, metadata)
    return path


def _in_one_opset(graphs: Sequence[onnx.ModelProto], members: Sequence[Member]) -> list[onnx.ModelProto]:
    """Return the graphs in the oldest opset among them."""
    versions = [next(entry.version for entry in graph.opset_import if not entry.domain) for graph in graphs]
    oldest, converted = min(versions), []
    for graph, version, member in zip(graphs, versions, members, strict=True):
        try:
            converted.append(graph if version == oldest else with_opset(graph, oldest))
        except Exception as error:  # the converter raises classes without a common base
            raise ExportError(
                f"{member.name} has opset {version} and cannot be had in opset {oldest}, that of another member "
                f"({first_line(error)}); export all with the same --opset"
            ) from error
    return converted


def _rename_input(graph: onnx.GraphProto, name: str) -> None:
    """Let a graph with prefixes take what all of them take."""
    own = graph.input[0].name
    for node in graph.node:
        for place, value in enumerate(node.input):
            if value == own:
                node.input[place] = name


def _described(spec: TensorSpec) -> onnx.ValueInfoProto:
    shape = ["batch" if size is None else size for size in spec.shape]
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], shape)


class _Tail:
    """What follows the members, in operators that mean the same in every opset.

    The largest and the sum are taken element by element over the members: where they lie along an axis of their own,
    an older opset has the axis elsewhere, and some runtimes overflow in their ReduceLogSumExp.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self.initializers: list[onnx.TensorProto] = []
        self._nodes: list[onnx.NodeProto] = []

    def nodes_for(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """Return the nodes that compute the outputs."""
        count = len(self._members)
        each = [self._logarithms(number, member) for number, member in enumerate(self._members)]
        most = self._add("Max", each, "ensemble/most")
        parts = [
            self._add("Exp", [self._add("Sub", [one, most], f"ensemble/less_{number}")], f"ensemble/share_{number}")
            for number, one in enumerate(each)
        ]
        total = self._add("Log", [self._add("Sum", parts, "ensemble/sum")], "ensemble/log")
        mean = self._add("Sub", [total, self._constant("count", np.float32(math.log(count)))], "ensemble/mean")
        self._add("Add", [most, mean], "logits")
        flat = [
            self._add("Flatten", [f"member_{number}/embedding"], f"ensemble/embedding_{number}", axis=1)
            for number in range(count)
        ]
        self._add("Concat", flat, "embedding", axis=1)
        if "probabilities" in outputs:
            self._add("Softmax", ["logits"], "probabilities", axis=1)
        if "member_probabilities" in outputs:
            axis = self._constant("axis", np.array([1], np.int64))
            shares = [self._add("Exp", [one], f"ensemble/probabilities_{number}") for number, one in enumerate(each)]
            rows = [
                self._add("Unsqueeze", [share, axis], f"ensemble/row_{number}") for number, share in enumerate(shares)
            ]
            self._add("Concat", rows, "member_probabilities", axis=1)
        return self._nodes

    def _logarithms(self, number: int, member: Member) -> str:
        """Return the name of the logarithms of a member's probabilities, ``[N, C]``."""
        name = f"member_{number}/logits"
        if member.temperature is not None:
            value = self._constant(f"temperature_{number}", np.float32(member.temperature))
            name = self._add("Div", [name, value], f"ensemble/scaled_{number}")
        if member.order is not None:
            order = self._constant(f"order_{number}", np.array(member.order, np.int64))
            name = self._add("Gather", [name, order], f"ensemble/ordered_{number}", axis=1)
        return self._add("LogSoftmax", [name], f"ensemble/log_{number}", axis=1)

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(value), f"ensemble/{name}"))
        return f"ensemble/{name}"
