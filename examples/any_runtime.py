"""Bundles in the ONNX Runtime of this Python, however old: `python examples/any_runtime.py runs/photos-bundle`.

Imports nothing but NumPy and ONNX Runtime, so that it runs in an environment of an older one. Loads the ONNX model of
each bundle and compares the logits of the golden samples with those of eager PyTorch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime


def check(bundle: Path) -> tuple[bool, str]:
    """Return whether a bundle gives the logits that it should, and what it gives in words."""
    allowed = np.array(json.loads((bundle / "manifest.json").read_text())["golden_tolerance"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
        with np.load(str(bundle / "golden.npz")) as golden:
            found = session.run(["logits"], {"images": golden["images"]})[0]
            worst = np.abs(found - golden["logits"]).max(axis=1)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes here
        return False, " ".join(str(error).split())[-200:]
    return bool((worst <= allowed).all()), f"logits differ by up to {worst.max():.1e}, allowed {allowed.min():.1e}"


def main(arguments: Sequence[str]) -> int:
    """Check bundles, print a line for each, and return the exit code."""
    results = [(name, *check(Path(name))) for name in arguments]
    for name, passed, text in results:
        print(f"onnxruntime {onnxruntime.__version__}  {name}  {'passed' if passed else 'FAILED'}, {text}")
    return int(not all(passed for _, passed, _ in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
