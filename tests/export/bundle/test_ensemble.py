"""One bundle of several: its graph against the definition, what goes together, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import Once
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from tnn_export import ExportError, ExportOptions, ParityError, check_bundle, export_bundle
from tnn_export.__main__ import main
from tnn_export.bundle.ensemble import export_ensemble
from tnn_export.bundle.inspect import inspect_bundle
from tnn_export.bundle.members import read_members
from tnn_export.bundle.slim import slim_bundle
from tnn_export.ensemble import onnx as onnx_module
from tnn_export.ensemble.graph import LOADERS
from tnn_export.ensemble.head import EnsembleHead
from tnn_export.ensemble.member import Member
from tnn_runtime import Classifier, Deployment, Manifest
from tnn_runtime.__main__ import main as runtime
from tnn_runtime.bundle.manifest import SCHEMA_VERSION, BatchBounds
from tnn_runtime.bundle.onnx_file import external_files
from tnn_runtime.server.models import Model
from tnn_runtime.server.requests import InferRequest, Wanted
from tnn_runtime.server.statuses import BadRequest
from tnn_train import ImageData, ModelConfig, load_checkpoint
from tnn_train.heads import LinearHead, TverskyHead
from tnn_train.training.loop import TrainResult

OUTPUTS = ("probabilities", "member_probabilities")


def mean_of(logits: Sequence[NDArray[Any]], temperatures: Sequence[float | None]) -> NDArray[np.float64]:
    """Return the mean of the probabilities by its definition, in float64."""
    each = []
    for values, temperature in zip(logits, temperatures, strict=True):
        wide = values.astype(np.float64) / (temperature or 1.0)
        shares = np.exp(wide - wide.max(axis=1, keepdims=True))
        each.append(shares / shares.sum(axis=1, keepdims=True))
    return np.mean(each, axis=0)


@pytest.fixture(scope="session")
def members(bundles: dict[str, Path], runs: dict[str, TrainResult], once: Once) -> list[Path]:
    """Bundles that differ in head, temperature, precision, opset, bounds of the batch and order of the classes."""

    def make(folder: Path) -> list[Path]:
        checkpoint = load_checkpoint(runs["linear"].best)
        head = checkpoint.model.head
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter.flip(0))
        turned = dataclasses.replace(
            checkpoint, class_names=checkpoint.class_names[::-1], labels=1 - checkpoint.labels, exemplars=None
        )
        export_bundle(turned, folder / "turned", options=ExportOptions(temperature=0.5, batch=BatchBounds(2, 32)))
        export_bundle(
            runs["ratio"].best, folder / "old", options=ExportOptions(("onnx", "torchscript"), "fp16", opset=17)
        )
        return [bundles["jumping"], folder / "turned", folder / "old"]

    return once("members", make)


@pytest.fixture(scope="session")
def ensemble(members: list[Path], once: Once) -> Path:
    """An ensemble of `members`; read only."""

    def make(folder: Path) -> Path:
        export_ensemble(members, folder / "together", outputs=OUTPUTS)
        return folder / "together"

    return once("ensemble", make)


def answers(bundle: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def test_the_probabilities_are_the_mean_of_those_of_the_members(
    ensemble: Path, members: list[Path], data: ImageData
) -> None:
    images = data.test.pixels
    found = [answers(member, images) for member in members]
    logits = [one["logits"] for one in found]
    logits[1] = logits[1][:, ::-1]
    temperatures = [Manifest.read(member)[0].temperature for member in members]
    expected = mean_of(logits, temperatures)
    together = answers(ensemble, images)
    assert list(together) == ["logits", "embedding", *OUTPUTS]
    np.testing.assert_allclose(np.exp(together["logits"].astype(np.float64)), expected, rtol=1e-4)
    np.testing.assert_allclose(together["probabilities"], expected, rtol=1e-4)
    np.testing.assert_allclose(together["member_probabilities"].mean(1), expected, rtol=1e-4)
    embeddings = np.concatenate([one["embedding"] for one in found], 1)
    np.testing.assert_allclose(together["embedding"], embeddings, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        scripted = LOADERS["torchscript"](ensemble / "model.ts")(torch.from_numpy(images))
    for name, value in together.items():
        np.testing.assert_allclose(scripted[name].numpy(), value, rtol=2e-2, atol=2e-2)


def test_the_manifest_says_what_it_is_made_of(ensemble: Path, members: list[Path]) -> None:
    manifest, _ = Manifest.read(ensemble)
    assert (manifest.model["backbone"], manifest.model["head"]) == ("tiny", "ensemble")
    records = manifest.model["members"]
    assert [record["name"] for record in records] == ["jumping", "turned", "old"]
    assert [record["model"]["head"] for record in records] == ["tversky", "linear", "tversky"]
    assert [record["order"] for record in records] == [None, [1, 0], None]
    assert [record["temperature"] for record in records] == [None, 0.5, None]
    assert [record["precision"] for record in records] == ["fp32", "fp32", "fp16"]
    with Classifier.load(members[0], "cpu") as classifier:
        assert records[0]["digest"] == classifier.info["digest"]
    assert (manifest.precision, manifest.batch) == ("fp16", BatchBounds(2, 32))
    assert manifest.outputs[1].shape == (None, 72)
    assert manifest.outputs[3].shape == (None, 3, 2)
    assert manifest.class_names == ("cat", "dog")
    assert set(manifest.parity) == {"members", "onnx", "torchscript"}
    assert all(parity["passed"] for parity in manifest.parity.values())
    assert manifest.reject is not None
    assert manifest.reject.score == "probability"
    assert manifest.metrics["ensemble_accuracy"] >= min(manifest.metrics["member_accuracies"])
    assert any("held-out images" in note for note in manifest.notes)
    content = inspect_bundle(ensemble)["onnx"]
    assert content["opset"]["ai.onnx"] == 17
    card = (ensemble / "README.md").read_text()
    assert "An ensemble of 3 models (tiny)" in card
    assert "| turned | tiny | linear | fp32 | 0.5 |" in card
    assert "the members, each run by itself" in card
    assert "Together they have" in card


def test_the_manifest_fits_its_schema(ensemble: Path) -> None:
    schema = json.loads((files("tnn_runtime") / "bundle" / "schemas" / f"manifest-{SCHEMA_VERSION}.json").read_text())
    content = json.loads((ensemble / "manifest.json").read_text())
    validator = Draft202012Validator(schema)
    assert list(validator.iter_errors(content)) == []
    properties = schema["$defs"]["member"]["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(Member)}
    del content["model"]["members"][0]["digest"]
    assert list(validator.iter_errors(content))


def test_the_graph_is_the_same_every_time_and_says_nothing_of_the_machine(members: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_ensemble(members, tmp_path / name, ["onnx"])
    content = (tmp_path / "a" / "model.onnx").read_bytes()
    assert content == (tmp_path / "b" / "model.onnx").read_bytes()
    for path in (tmp_path / "a").iterdir():
        assert str(members[0].parent).encode() not in path.read_bytes(), path


def test_the_runtime_serves_it(
    ensemble: Path, members: list[Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(ensemble)]) == 0
    assert main(["inspect", str(ensemble)]) == 0
    out = capsys.readouterr().out
    assert "tiny, ensemble head" in out
    assert "turned: tiny, linear head, fp32, softmax(logits / 0.5), manifest sha256 " in out
    assert runtime(["predict", str(ensemble), str(photos / "cat"), "--format", "csv"]) == 0
    assert "cat" in capsys.readouterr().out
    assert runtime(["explain", str(ensemble), str(photos / "cat" / "0.png"), "-o", str(tmp_path / "why.html")]) == 1
    members_told = "explain with the bundles of its members: jumping, turned, old"
    assert members_told in capsys.readouterr().err
    with Deployment(ensemble, "cpu") as deployment:
        images = np.zeros((2, 16, 16, 3), np.uint8)
        model = Model("abc", 1, deployment)
        for name in ("explanation", "summary", "parts", "map"):
            with pytest.raises(BadRequest, match=f"unknown output '{name}': .*{members_told}; expected some of logits"):
                asyncio.run(model.infer(InferRequest(images, outputs=(Wanted(name),))))
        assert deployment.outputs(images, "member_probabilities")["member_probabilities"].shape == (2, 3, 2)
    quick = ["--blocks", "1", "--batch", "2", "--threads", "1", "--processes", "1"]
    assert runtime(["bench", str(ensemble), str(members[0]), *quick]) == 0
    slim_bundle(ensemble, tmp_path / "slim", ["onnx"])
    with Classifier.load(tmp_path / "slim", "cpu") as classifier:
        assert classifier.predict([photos / "dog" / "0.png"])[0][0].label == "dog"
        assert classifier.info["head"] == "ensemble"


def test_an_ensemble_may_be_a_member(ensemble: Path, bundles: dict[str, Path], tmp_path: Path, data: ImageData) -> None:
    export_ensemble([ensemble, bundles["tversky"]], tmp_path / "out", ["onnx"], outputs=OUTPUTS)
    assert check_bundle(tmp_path / "out").passed
    images = data.test.pixels
    each = [answers(bundle, images)["logits"] for bundle in (ensemble, bundles["tversky"])]
    temperatures = [Manifest.read(bundle)[0].temperature for bundle in (ensemble, bundles["tversky"])]
    expected = mean_of(each, temperatures)
    np.testing.assert_allclose(np.exp(answers(tmp_path / "out", images)["logits"]), expected, rtol=1e-3, atol=1e-6)


def test_a_member_of_a_member_does_not_count_twice(ensemble: Path, members: list[Path], tmp_path: Path) -> None:
    for bundles in ([ensemble, members[0]], [members[0], ensemble]):
        with pytest.raises(ExportError, match=r"the same bundle as .*, or one of its members; expected each one once"):
            export_ensemble(bundles, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pt2", "torchscript"])
def test_other_formats(kind: str, runs: dict[str, TrainResult], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("tversky", "linear")]
    for folder in folders:
        export_bundle(runs[folder.name].best, folder, [kind])
    report = export_ensemble(folders, tmp_path / "out")
    assert list(report.stages) == ["members", kind]
    assert report.passed
    assert check_bundle(tmp_path / "out").passed


def test_int8_members(runs: dict[str, TrainResult], bundles: dict[str, Path], tmp_path: Path) -> None:
    export_bundle(runs["linear"].best, tmp_path / "int8", ["onnx"], "int8")
    report = export_ensemble([bundles["tversky"], tmp_path / "int8"], tmp_path / "out")
    assert list(report.stages) == ["members", "onnx"]
    assert Manifest.read(tmp_path / "out")[0].precision == "int8"
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert classifier.logits(np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 2)


@pytest.mark.parametrize(
    "values", [[[1000.0, -1000.0], [-1000.0, 1000.0]], [[-800.0, 0.0], [-900.0, 0.0]], [[3e4, 3e4], [0.0, -5e4]]]
)
def test_extreme_logits_stay_exact(values: list[list[float]]) -> None:
    records = [Member(str(number), "", {"num_classes": 2}, "fp32", (2,), 0.5) for number in range(2)]
    heads = [LinearHead(2, 2) for _ in records]
    with torch.no_grad():
        for head in heads:
            head.weight.copy_(torch.eye(2))
            head.bias.zero_()
    embeddings = torch.tensor(values).reshape(1, 4)
    with torch.inference_mode():
        found = EnsembleHead(heads, records)(embeddings).numpy()
    wide = np.array(values) / 0.5
    logarithms = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
    expected = np.logaddexp.reduce(logarithms, axis=0) - np.log(2)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    tail = onnx_module._Tail(records)
    nodes = tail.nodes_for(["logits", "embedding"])
    names = [f"member_{number}/{name}" for number in range(2) for name in ("logits", "embedding")]
    graph = onnx.helper.make_graph(
        nodes,
        "tail",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in names],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, 2])],
        tail.initializers,
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=7)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {name: np.array([values[int(name[7])]], np.float32) for name in names}
    np.testing.assert_allclose(session.run(["logits"], feed)[0][0], expected, rtol=1e-6)


def test_the_head_splits_into_switches_and_back() -> None:
    torch.manual_seed(0)
    config = ModelConfig(num_classes=3)
    heads = [TverskyHead.from_config(4, 3, config.tversky), LinearHead(5, 3)]
    records = [
        Member("a", "", {"num_classes": 3}, "fp32", (4,)),
        Member("b", "", {"num_classes": 3}, "fp32", (5,), 2.0),
    ]
    head, x = EnsembleHead(heads, records).eval(), torch.randn(6, 9)
    with torch.inference_mode():
        switches = head.switches(x)
        assert switches is not None
        assert head.reach(x).shape == switches.shape
        torch.testing.assert_close(head.score(switches), head(x))
        torch.testing.assert_close(head.evidence(x)["member_probabilities"].mean(1), head(x).exp())
        torch.testing.assert_close(
            head.evidence(x, switches)["member_probabilities"], head.evidence(x)["member_probabilities"]
        )


def without_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    make = onnx_module._Tail._logarithms
    monkeypatch.setattr(
        onnx_module._Tail,
        "_logarithms",
        lambda self, number, member: make(self, number, dataclasses.replace(member, temperature=None)),
    )


def without_order(monkeypatch: pytest.MonkeyPatch) -> None:
    make = onnx_module._Tail._logarithms
    monkeypatch.setattr(
        onnx_module._Tail,
        "_logarithms",
        lambda self, number, member: make(self, number, dataclasses.replace(member, order=None)),
    )


def another_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_module, "math", SimpleNamespace(log=lambda count: 0.5))


@pytest.mark.parametrize("fault", [without_temperature, without_order, another_count])
def test_a_fault_in_the_graph_writes_nothing(
    fault: Callable[[pytest.MonkeyPatch], None], members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(ParityError, match="nothing was written"):
        export_ensemble(members, tmp_path / "out", ["onnx"])
    assert list(tmp_path.iterdir()) == []


def altered(bundle: Path) -> Path:
    with (bundle / "model.onnx").open("ab") as file:
        file.write(b"x")
    return bundle


def with_manifest(bundle: Path, **changes: Any) -> Path:
    content = json.loads((bundle / "manifest.json").read_text())
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (bundle / "manifest.json").write_text(json.dumps(content))
    return bundle


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda bundle, other: [bundle], "got 1 bundle for an ensemble; expected 2 or more"),
        (lambda bundle, other: [bundle, bundle], "is the same bundle as"),
        (lambda bundle, other: [other, bundle, other.parent / "copy"], "is the same bundle as"),
        (lambda bundle, other: [other, altered(bundle)], "truncated or altered"),
        (lambda bundle, other: [other, bundle / "nothing"], "does not exist"),
        (lambda bundle, other: [other, bundle.parent], "has no manifest.json"),
        (lambda bundle, other: [other, with_manifest(bundle, class_names=["cat", "cow"])], "has the class 'cow', and"),
        (lambda bundle, other: [other, with_manifest(bundle, preprocessing={"fit": "squash"})], "images of fit crop"),
        (lambda bundle, other: [other, with_manifest(bundle, preprocessing={"background": [0]})], "background"),
        (lambda bundle, other: [bundle, other, "--formats", "pt2"], "has no model.pt2"),
        (lambda bundle, other: [bundle, other, "--formats", "coreml"], "unknown format 'coreml'"),
        (lambda bundle, other: [bundle, other, "--outputs", "feature_maps"], "unknown output 'feature_maps'"),
        (lambda bundle, other: [bundle, other, "--reject-score", "energy"], "choose one of lead, probability, logit"),
        (lambda bundle, other: [bundle, other, "--reject-score", "vmf"], "choose one of lead, probability, logit"),
        (lambda bundle, other: [bundle, other, "--coverage", "1"], "got a coverage of 1"),
        (lambda bundle, other: [bundle, other, "--temperature", "0"], "got the temperature 0"),
        (lambda bundle, other: [bundle, other, "--sign", "nothing.pem"], "nothing.pem"),
    ],
)
def test_what_is_refused_in_one_line(
    make: Callable[[Path, Path], list[Any]],
    expected: str,
    bundle: Path,
    bundles: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = Path(shutil.copytree(bundles["linear"], tmp_path / "other"))
    shutil.copytree(other, tmp_path / "copy")
    words = [str(word) for word in make(bundle, other)]
    assert main(["ensemble", *words, "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_batches_that_no_size_fits(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    for name, bounds in (("few", BatchBounds(1, 4)), ("many", BatchBounds(8, 16))):
        export_bundle(runs["linear"].best, tmp_path / name, options=ExportOptions(("onnx",), batch=bounds))
    with pytest.raises(ExportError, match="few takes at most 4 images at once, and .*many at least 8"):
        read_members([tmp_path / "few", tmp_path / "many"])


def test_members_of_a_fixed_batch(runs: dict[str, TrainResult], bundles: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(("onnx",), batch=BatchBounds(4, 4))
    export_bundle(runs["linear"].best, tmp_path / "four", options=options)
    export_ensemble([tmp_path / "four", bundles["tversky"]], tmp_path / "out")
    shape = onnx.load(tmp_path / "out" / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [size.dim_value for size in shape.dim] == [4, 16, 16, 3]
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert classifier.logits(np.zeros((3, 16, 16, 3), np.uint8)).shape == (3, 2)


def test_a_slim_member_lacks_its_proof(bundles: dict[str, Path], tmp_path: Path) -> None:
    slim_bundle(bundles["linear"], tmp_path / "slim")
    with pytest.raises(Exception, match="has no proof.npz, which was left out"):
        export_ensemble([bundles["tversky"], tmp_path / "slim"], tmp_path / "out")


def test_no_member_is_overwritten(bundles: dict[str, Path], bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (bundle / "manifest.json").read_bytes()
    words = ["ensemble", str(bundles["linear"]), str(bundle), "-o", str(bundle), "--overwrite"]
    assert main(words) == 1
    assert "is one of the members, which would be lost" in capsys.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_images_that_a_member_may_have_seen_are_told(
    bundles: dict[str, Path],
    runs: dict[str, TrainResult],
    data: ImageData,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export_bundle(runs["linear"].best, tmp_path / "other", ["onnx"], images=data.test.pixels, labels=data.test.labels)
    words = ["ensemble", str(bundles["tversky"]), str(tmp_path / "other")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert "images of the proof are not among those that other was proven on" in capsys.readouterr().out
    assert main([*words, "-o", str(tmp_path / "out"), "--images", str(photos), "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "are not among those" not in out
    assert "accuracy on 40 held-out images" in out


def test_weights_in_a_file_of_their_own(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnn_export.formats.onnx._INLINE_BYTES", 1000)
    export_ensemble([bundles["linear"], bundles["tversky"]], tmp_path / "out", ["onnx"])
    assert external_files(tmp_path / "out" / "model.onnx") == ["model.onnx.data"]
    assert main(["triton", str(tmp_path / "out"), "-o", str(tmp_path / "repository")]) == 0
    with Classifier.load(tmp_path / "out", "cpu") as classifier:
        assert classifier.logits(np.zeros((1, 16, 16, 3), np.uint8)).shape == (1, 2)
