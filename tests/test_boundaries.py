"""What each package may import, and what it offers."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from rooms import ROOMS, ROOT, floors, imports

import tnn_export
import tnn_runtime
import tnn_train

OTHERS = {
    "tnn_runtime": set(),
    "tnn_train": {
        "tnn_runtime.answers.calibration",
        "tnn_runtime.bundle.claim",
        "tnn_runtime.bundle.json_values",
        "tnn_runtime.bundle.manifest",
        "tnn_runtime.bundle.outputs",
        "tnn_runtime.bundle.reading",
        "tnn_runtime.bundle.storage",
        "tnn_runtime.console",
        "tnn_runtime.errors",
        "tnn_runtime.explain",
        "tnn_runtime.file_kinds",
        "tnn_runtime.images.files",
        "tnn_runtime.images.folders",
        "tnn_runtime.images.limits",
        "tnn_runtime.images.preprocess",
        "tnn_runtime.images.reading",
        "tnn_runtime.installation",
        "tnn_runtime.lazy",
        "tnn_runtime.text",
    },
    "tnn_export": {
        "tnn_runtime",
        "tnn_train.errors",
        "tnn_train.fields",
        "tnn_train.heads",
        "tnn_train.model",
        "tnn_train.run_files",
    },
}
"""What each package may import of the others: a module, or a room with all that is in it."""

LAZY = ("tnn_runtime", "tnn_runtime.bench", "tnn_train", "tnn_export")
"""The packages whose names are loaded when they are used."""


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_floor(package: str) -> None:
    found = {
        path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found == set(floors(package))


@pytest.mark.parametrize("package", ROOMS)
def test_no_import_runs_up_or_along_a_floor(package: str) -> None:
    floor = floors(package)
    wrong = [
        f"{found.file.relative_to(ROOT)} imports {found.module}"
        for found in imports(package)
        if found.module.startswith(f"{package}.")
        for ours, theirs in [found.rooms]
        if ours != theirs and floor[ours] <= floor[theirs]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ROOMS)
def test_no_imports_run_in_a_circle(package: str) -> None:
    needs: dict[str, set[str]] = {}
    for found in imports(package):
        name = found.importer
        if name == package:
            continue  # The public names are imported when they are first used.
        # An import of a module runs the folders that it lies in, but for those that the importing one lies in, too.
        parts = found.module.split(".")
        whole = {".".join(parts[:count]) for count in range(2, len(parts) + 1)}
        needs.setdefault(name, set()).update(module for module in whole if not f"{name}.".startswith(f"{module}."))
    TopologicalSorter(needs).prepare()  # raises a CycleError with the modules of a circle


@pytest.mark.parametrize("package", ROOMS)
def test_packages_import_no_more_of_each_other_than_they_may(package: str) -> None:
    wrong = [
        f"{found.file.relative_to(ROOT)} imports {found.module}"
        for found in imports(package)
        if not any(f"{found.module}.".startswith(f"{allowed}.") for allowed in {package, *OTHERS[package]})
    ]
    assert not wrong, "\n".join(wrong)


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_runtime_works_where_torch_cannot_be_imported(bundles: dict[str, Path], photos: Path) -> None:
    program = f"""
import json, sys
for name in ("torch", "torchvision", "onnx", "sklearn", "scipy", "safetensors", "tnn_train", "tnn_export"):
    sys.modules[name] = None
from tnn_runtime import Classifier
from tnn_runtime.__main__ import main
with Classifier.load({str(bundles["tversky"])!r}) as classifier:
    answers = classifier.predict([{str(photos / "cat" / "0.png")!r}], top_k=1)
    classifier.explain([{str(photos / "cat" / "0.png")!r}])
assert main(["predict", {str(bundles["tversky"])!r}, {str(photos / "cat")!r}, "--format", "jsonl"]) == 0
quick = ["--blocks", "1", "--batch", "1", "--threads", "1", "--processes", "1"]
assert main(["bench", {str(bundles["tversky"])!r}, {str(bundles["linear"])!r}, *quick]) == 0
assert main(["doctor"]) == 0
print(json.dumps(answers[0][0].label))
"""
    assert json.loads(run(program).splitlines()[-1]) == "cat"


@pytest.mark.parametrize(
    "module",
    [
        "tnn_runtime",
        "tnn_runtime.engines",
        "tnn_runtime.commands.predict",
        "tnn_runtime.bench",
        "tnn_runtime.bench.worker",
    ],
)
def test_importing_the_runtime_is_light(module: str) -> None:
    program = f"import sys, {module}; print(' '.join(sys.modules))"
    loaded = {name.split(".")[0] for name in run(program).split()}
    assert not loaded & {"torch", "onnxruntime", "onnx", "tqdm", "scipy", "matplotlib", "tnn_train", "tnn_export"}
    assert not loaded & {"tensorrt", "tensorrt_rtx_bindings", "filelock", "cryptography"}


@pytest.mark.parametrize("what", ["from tnn_export import *", "import tnn_export.commands.export"])
def test_importing_the_export_loads_neither_the_loop_nor_the_data(what: str) -> None:
    loaded = set(run(f"import sys; {what}; print(' '.join(sys.modules))").split())
    assert "tnn_train.heads" in loaded
    trains = {
        "tnn_train.training.loop",
        "tnn_train.training.trainer",
        "tnn_train.training.recipe",
        "tnn_train.data",
        "tnn_train.report",
    }
    assert not loaded & {*trains, "sklearn", "matplotlib", "jinja2"}


def test_public_names() -> None:
    assert sorted(tnn_train.__all__) == [
        "Checkpoint",
        "DataConfig",
        "ImageData",
        "LinearHead",
        "ModelConfig",
        "PartsConfig",
        "TrainConfig",
        "TverskyConfig",
        "TverskyHead",
        "TverskySimilarity",
        "build_model",
        "evaluate",
        "load_checkpoint",
        "load_data",
        "save_checkpoint",
        "train",
    ]
    assert sorted(tnn_export.__all__) == [
        "ExportError",
        "ExportOptions",
        "ParityError",
        "ParityReport",
        "Reference",
        "StageParity",
        "check_bundle",
        "check_parity",
        "export_bundle",
        "lower_head",
        "lower_model",
    ]
    assert sorted(tnn_runtime.__all__) == [
        "Answer",
        "ArtifactError",
        "Classifier",
        "ClassifierClosed",
        "Contrast",
        "DeadlineExceeded",
        "Deployment",
        "DeviceLost",
        "Distribution",
        "EngineError",
        "Explanation",
        "FeatureParts",
        "Health",
        "InputError",
        "Limits",
        "Manifest",
        "Maps",
        "MetricsSnapshot",
        "NearPrototype",
        "NotAnswered",
        "OutputExistsError",
        "Part",
        "Prediction",
        "Predictions",
        "ProviderUnavailable",
        "QueueFull",
        "ResourcesExhausted",
        "RunError",
        "SelfCheckError",
        "SignatureError",
        "TnnError",
        "TverskyExplanation",
        "UsageError",
        "__version__",
    ]
    for package in (tnn_train, tnn_export, tnn_runtime):
        assert all(getattr(package, name).__doc__ for name in package.__all__)


def seen_by_type_checkers(package: str) -> dict[str, str]:
    """Return the public names that a package imports for type checkers, each with the module that it comes from."""
    found: dict[str, str] = {}
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            if alias.name == "*":
                found |= dict.fromkeys(importlib.import_module(node.module).__all__, node.module)
            else:
                assert alias.asname == alias.name, f"{package}: {alias.name} is not exported to type checkers"
                found[alias.name] = node.module
    return found


def test_every_lazy_package_is_looked_at() -> None:
    lazy = {entry.importer for package in ROOMS for entry in imports(package) if entry.module == "tnn_runtime.lazy"}
    assert lazy == set(LAZY)


@pytest.mark.parametrize("package", LAZY)
def test_type_checkers_see_the_names_that_are_loaded(package: str) -> None:
    module, seen = importlib.import_module(package), seen_by_type_checkers(package)
    assert sorted(seen) == module.__all__ == dir(module)
    for name, home in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    everything: dict[str, object] = {}
    exec(f"from {package} import *", everything)
    assert seen.keys() <= everything.keys()
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_names_are_loaded_when_they_are_used_and_kept() -> None:
    program = """
import sys, tnn_runtime
assert "Prediction" in dir(tnn_runtime) and "Prediction" not in vars(tnn_runtime)
assert not {"numpy", "tnn_runtime.answers.results"} & sys.modules.keys()
from tnn_runtime import Prediction
assert vars(tnn_runtime)["Prediction"] is Prediction is sys.modules["tnn_runtime.answers.results"].Prediction
"""
    run(program)


def test_public_values_can_be_sent_to_a_process() -> None:
    for value in (tnn_runtime.Prediction("cat", 0.5, 1), tnn_runtime.Classifier, tnn_train.TrainConfig(epochs=3)):
        assert pickle.loads(pickle.dumps(value)) == value
    error = pickle.loads(pickle.dumps(tnn_runtime.QueueFull("full")))
    assert (type(error), error.args) == (tnn_runtime.QueueFull, ("full",))


def test_every_package_is_typed() -> None:
    assert all((ROOT / package / "py.typed").exists() for package in ROOMS)
