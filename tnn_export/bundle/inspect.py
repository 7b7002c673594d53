"""What is inside a bundle, for people and for programs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tnn_export.ensemble.member import MEMBERS
from tnn_export.formats.opsets import oldest_runtime
from tnn_runtime.bundle.json_values import decode
from tnn_runtime.bundle.manifest import MANIFEST_FILE, ONNX_FILE, SCHEMA_VERSION, Manifest
from tnn_runtime.bundle.reading import read_json
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.text import printable
from tnn_train.model.editing import EDITS

__all__ = ["describe_bundle", "inspect_bundle"]

_MOST_CLASSES = 8


def inspect_bundle(bundle: str | Path) -> dict[str, Any]:
    """Return what is inside a bundle, as plain values.

    Every file is hashed on the way.

    Raises:
        ArtifactError: If the bundle is missing or damaged.
    """
    manifest, folder = Manifest.read(bundle)
    content = read_json(folder / MANIFEST_FILE, "bundle", SCHEMA_VERSION)
    content["bundle"] = str(folder)
    content["left_out"] = [name for name in content["files"] if name not in manifest.files]
    if ONNX_FILE in manifest.files:
        content["onnx"] = _graph(folder / ONNX_FILE)
    return content


def _graph(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(path, load_external_data=False)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "onnxruntime": oldest_runtime(model),
        "nodes": len(model.graph.node),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
    }


def describe_bundle(content: dict[str, Any]) -> str:
    """Return what `inspect_bundle` found as lines to read."""
    model, preprocessing = content["model"], decode(Preprocessing, content["preprocessing"], "preprocessing")
    names = content["class_names"]
    more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    batch = content.get("batch", {"smallest": 1, "largest": None})
    size = "x".join(map(str, preprocessing.shape))
    lines = [
        ("bundle", f"{printable(content['bundle'])} (schema {content['schema_version']})"),
        ("model", f"{model['backbone']}, {model['head']} head, {content['precision']}, images {size}"),
        ("images", "; ".join((*preprocessing.steps, _normalisation(preprocessing)))),
        ("classes", f"{len(names)}: {', '.join(map(printable, names[:_MOST_CLASSES]))}{more}"),
        ("batch", f"{batch['smallest']} to {batch['largest'] or 'any'}"),
        ("outputs", ", ".join(map(_tensor, content["outputs"]))),
    ]
    if "onnx" in content:
        graph = content["onnx"]
        opset = ", ".join(f"{name} {number}" for name, number in graph["opset"].items())
        runtime = f"ONNX Runtime {graph['onnxruntime']} or newer" if graph["onnxruntime"] else "ONNX Runtime unknown"
        lines.append(("opset", f"{opset}, IR {graph['ir_version']}: {runtime}"))
        operators = ", ".join(f"{count} {name}" for name, count in graph["operators"].items())
        lines.append(("operators", f"{graph['nodes']}: {operators}"))
    lines += [("member", _member(member)) for member in model.get(MEMBERS, ())]
    for name, entry in content["files"].items():
        text = f"{entry['size']:,} bytes, sha256 {entry['sha256']}"
        optional = ", not needed to serve" if name in content.get("optional", ()) else ""
        lines.append((f"file {name}", "left out" if name in content["left_out"] else f"{text}{optional}"))
    for stage, parity in content["parity"].items():
        lines.append((f"proof {stage}", _parity(parity)))
        lines += [(f"proof {stage}", line) for line in (*parity.get("undecided", ()), *parity.get("notes", ()))]
    lines.append(("scores", _scores(content.get("temperature"))))
    lines += [("note", line) for line in content.get("notes", ())]
    lines.append(("made with", ", ".join(f"{name} {number}" for name, number in content["versions"].items())))
    data = content.get("training", {}).get("data", {})
    if data:
        lines.append(("trained on", ", ".join(f"{name} {value}" for name, value in data.items() if value)))
    for edit in content.get("training", {}).get(EDITS, ()):
        lines.append(("edited", f"checkpoint {edit['checkpoint']}"))
        lines += [("edited", printable(line)) for line in (*edit["changes"], *edit["results"])]
    numbers = {name: value for name, value in content.get("metrics", {}).items() if isinstance(value, int | float)}
    if numbers:
        lines.append(("metrics", ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _normalisation(preprocessing: Preprocessing) -> str:
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return f"mean {mean}, std {std}"


def _scores(temperature: float | None) -> str:
    return "softmax(logits)" if temperature is None else f"softmax(logits / {temperature:.4g})"


def _member(member: dict[str, Any]) -> str:
    model = member["model"]
    kind = f"{model['backbone']}, {model['head']} head, {member['precision']}, {_scores(member['temperature'])}"
    return f"{printable(member['name'])}: {kind}, manifest sha256 {member['digest']}"


def _tensor(spec: dict[str, Any]) -> str:
    return f"{spec['name']} [{', '.join(['batch', *map(str, spec['shape'][1:])])}]"


def _parity(parity: dict[str, Any]) -> str:
    count = parity["samples"] if isinstance(parity["samples"], int) else sum(parity["samples"].values())
    verdict = "passed" if parity["passed"] else "FAILED"
    text = f"{verdict}, {count} samples, relative difference {parity['max_rel_diff']:.1e}"
    if parity.get("explained"):
        text += f", {parity['explained']} explained by membership flips"
    if parity.get("top1_agreement") is not None:
        text += f", same best class {parity['top1_agreement']:.2%}{_interval(parity.get('agreement_interval'))}"
    if parity.get("accuracy") is not None:
        text += f", accuracy {parity['accuracy']:.2%} ({parity['eager_accuracy']:.2%} in eager float32)"
    return text


def _interval(interval: list[float] | None) -> str:
    return f" ({interval[0]:.2%} to {interval[1]:.2%} of all such images)" if interval else ""
