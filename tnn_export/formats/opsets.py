"""Versions of ONNX: those that are written, how a graph gets an older one, and which ONNX Runtime reads it."""

from __future__ import annotations

import onnx
from onnx import defs, helper, version_converter

__all__ = ["CONVERTED", "OPSETS", "oldest_runtime", "set_smallest_ir", "with_opset"]

OPSETS = range(13, 24)
"""From the oldest whose quantised operators have a scale for each channel to the newest that the oldest runtime allowed
here reads (1.23)."""

CONVERTED = range(13, 18)
"""Those that the exporter does not write itself: made from the next one."""

_RUNTIMES = {
    "opset": {13: 6, 14: 8, 15: 9, 16: 11, 17: 12, 18: 14, 19: 16, 20: 17, 21: 18, 22: 21, 23: 23},
    "ir": {7: 6, 8: 9, 9: 15, 10: 18, 11: 23},
}
"""The minor version of the oldest ONNX Runtime 1.x that loads a version; measured, see ``docs/results/runtimes.md``."""

_NEEDLESS = {"allowzero", "num_outputs"}
"""Attributes that say nothing where no tensor is empty, and where all parts of a Split are equal. Beside the first one
ONNX Runtime 1.8 to 1.10 take no unknown size."""

_KEPT = "kept"


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a graph in an older version of ONNX's operators.

    The converter of the package ``onnx`` changes those operators that were another one in the old version. It refuses
    some that merely had fewer types, or attributes that are not used: these are kept from it.

    Args:
        model: The graph, which is changed.
        opset: The version to have.

    Raises:
        RuntimeError: If an operator cannot be had in it.
        ValidationError: If the graph is not valid in it.
    """
    (newer,) = model.opset_import
    _drop_needless_attributes(model.graph, newer.version, opset)
    for node in model.graph.node:
        if _is_as_in(node, newer.version, opset):
            node.domain = _KEPT
    model.opset_import.append(helper.make_opsetid(_KEPT, 1))
    converted = version_converter.convert_version(model, opset)
    for node in converted.graph.node:
        node.domain = ""
    del converted.opset_import[:]
    converted.opset_import.append(helper.make_opsetid("", opset))
    _drop_needless_attributes(converted.graph, newer.version, opset)
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _drop_needless_attributes(graph: onnx.GraphProto, newer: int, older: int) -> None:
    """Remove attributes that an older version of an operator lacks, where it does without them what they ask for."""
    for node in graph.node:
        if defs.has(node.op_type, older):
            known, defaults = (defs.get_schema(node.op_type, version).attributes for version in (older, newer))
            for one in list(node.attribute):
                is_default = one.name in defaults and defaults[one.name].default_value == one
                if one.name in _NEEDLESS or (is_default and one.name not in known):
                    node.attribute.remove(one)


def _is_as_in(node: onnx.NodeProto, newer: int, older: int) -> bool:
    """Return whether an operator takes and gives the same in an older version, and has no attribute that it lacks."""
    if not defs.has(node.op_type, older):
        return False
    new, old = (defs.get_schema(node.op_type, version) for version in (newer, older))
    names = [
        ([value.name for value in schema.inputs], [value.name for value in schema.outputs]) for schema in (new, old)
    ]
    return names[0] == names[1] and all(attribute.name in old.attributes for attribute in node.attribute)


def set_smallest_ir(model: onnx.ModelProto) -> None:
    """Give a model the format that came with its operators, where the exporter gave it a newer one."""
    model.ir_version = min(model.ir_version, helper.find_min_ir_version_for(list(model.opset_import), True))


def oldest_runtime(model: onnx.ModelProto) -> str | None:
    """Return the oldest version of ONNX Runtime that loads a model; ``None`` if that is not known."""
    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    minors = [_RUNTIMES["opset"].get(versions.pop("ai.onnx", 0)), _RUNTIMES["ir"].get(max(model.ir_version, 7))]
    known = [minor for minor in minors if minor is not None]
    return None if versions or len(known) < len(minors) else f"1.{max(known)}"
