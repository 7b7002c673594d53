"""Every head form x format x precision through export and proof: `python examples/export_table.py CHECKPOINT`.

The backbone of the checkpoint is frozen, a head of each form is trained on its embeddings, and each model is
exported in every precision. The table that is printed is the one in docs/results/export.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tnn_export import ExportOptions, ParityError, ParityReport, export_bundle
from tnn_export.bundle.inspect import inspect_bundle
from tnn_export.formats import FORMATS
from tnn_export.formats.precision import PRECISIONS
from tnn_runtime import Manifest
from tnn_runtime.bundle.manifest import BatchBounds
from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.console import Parser, run
from tnn_train import ModelConfig, TrainConfig, TverskyConfig, load_data, train

HEADS = {
    "linear": ModelConfig(head="linear"),
    **{
        name: ModelConfig(tversky=form)
        for name, form in {
            "product, subtractmatch (default)": TverskyConfig(),
            "product, ignorematch": TverskyConfig(difference="ignorematch"),
            "mean, ignorematch": TverskyConfig(intersection="mean", difference="ignorematch"),
            "gmean, subtractmatch": TverskyConfig(intersection="gmean"),
            "min, subtractmatch": TverskyConfig(intersection="min"),
            "max, ignorematch": TverskyConfig(intersection="max", difference="ignorematch"),
            "softmin, subtractmatch": TverskyConfig(intersection="softmin"),
            "ratio, product, subtractmatch": TverskyConfig(model="ratio"),
            "ratio, min, ignorematch": TverskyConfig(model="ratio", intersection="min", difference="ignorematch"),
            "product, ignorematch, sigmoid": TverskyConfig(difference="ignorematch", membership="sigmoid"),
            "product, subtractmatch, normalised": TverskyConfig(normalize=True),
            "product, subtractmatch, diagonal": TverskyConfig(feature_bank="diagonal"),
            "product, subtractmatch, 20 prototypes": TverskyConfig(num_prototypes=20),
        }.items()
    },
}
COLUMNS = "head | format | precision | proof | worst relative difference | explained flips | top-1 | nodes | MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example and return its exit code."""
    return run("export_table", _table, arguments)


def _table(arguments: Sequence[str]) -> None:
    parser = Parser("export_table", "Export every head form in every format and precision.")
    parser.add_argument("checkpoint", type=Path, help="whose backbone to freeze")
    parser.add_argument("--data", default="digits", help="as in tnn-train")
    parser.add_argument("--data-root", default="data", help="as in tnn-train")
    parser.add_argument("--limit", type=int, help="use at most so many images for training and validation")
    parser.add_argument("--epochs", type=int, default=10, help="of each head")
    parser.add_argument("--images", type=int, default=128, help="real images for the proof")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), metavar="HEAD", help="some of the forms")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_file(options.json, "--json")
    data = load_data(options.data, root=options.data_root, limit=options.limit)
    recipe = TrainConfig(
        epochs=options.epochs, weights=str(options.checkpoint), freeze_backbone=True, learning_rate=1e-2
    )
    step = max(1, len(data.test) // options.images)
    proof = data.test.subset(np.arange(0, len(data.test), step)[: options.images])
    images, labels = proof.sample(len(proof)), proof.labels
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(options.heads) * len(PRECISIONS)) as progress:
        for number, name in enumerate(options.heads):
            result = train(data, Path(folder) / f"run-{number}", HEADS[name], recipe)
            for precision in PRECISIONS:
                formats = tuple(form for form in FORMATS if precision not in FORMATS[form].refused)
                bundle = Path(folder) / f"bundle-{number}-{precision}"
                how = ExportOptions(formats, precision, batch=BatchBounds(1, 64))
                try:
                    report = export_bundle(result.best, bundle, options=how, images=images, labels=labels)
                except ParityError as error:
                    report = error.report
                rows += _rows(name, report, bundle)
                progress.update()
    print(f"| {COLUMNS} |\n|{'---|' * len(COLUMNS.split('|'))}")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    print(f"{sum(row['proof'] != 'passed' for row in rows)} of {len(rows)} without a passed proof")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _rows(name: str, report: ParityReport, bundle: Path) -> Iterator[dict[str, Any]]:
    manifest = Manifest.read(bundle)[0] if bundle.exists() else None
    for form, stage in list(report.stages.items())[1:]:
        file = bundle / FORMATS[form].file
        yield {
            "head": name,
            "format": form,
            "precision": stage.precision,
            "proof": "passed" if stage.passed else "FAILED",
            "worst": f"{stage.max_rel_diff:.1e}",
            "explained": f"{stage.explained} of {sum(stage.samples.values())}",
            "top-1": "-" if stage.top1_agreement is None else f"{stage.top1_agreement:.2%}",
            "nodes": _nodes(form, bundle) if manifest else "-",
            "MB": f"{file.stat().st_size / 1e6:.1f}" if manifest else "-",
        }
    for engine in report.unproven:
        size = f"{(bundle / engine).stat().st_size / 1e6:.1f}"
        precision = manifest.precision if manifest else ""
        yield {
            "head": name,
            "format": "tensorrt_rtx" if "-tensorrt_rtx-" in engine else "tensorrt",
            "precision": precision,
            "proof": "built, not run",
            **dict.fromkeys(("worst", "explained", "top-1", "nodes"), "-"),
            "MB": size,
        }


def _nodes(form: str, bundle: Path) -> int:
    """Return how many operators an artifact has."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "onnx":
            return int(inspect_bundle(bundle)["onnx"]["nodes"])
        if form == "torchscript":
            module: Any = torch.jit.load(bundle / "model.ts")  # type: ignore[no-untyped-call]
            return sum(node.kind().startswith("aten::") for node in module.inlined_graph.nodes())
        program = torch.export.load(bundle / "model.pt2")
        return sum(node.op == "call_function" for node in program.graph.nodes)


if __name__ == "__main__":
    sys.exit(main())
