from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from forms import name

from tnn_export import ExportError, ExportOptions, ParityError, Reference, export_bundle, lower_model
from tnn_export.bundle import finish as bundle_module
from tnn_export.bundle.finish import reject_rule
from tnn_export.lowering import graph
from tnn_export.proof.samples import Samples
from tnn_runtime import ArtifactError, Classifier, Manifest, OutputExistsError, UsageError
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import Reject
from tnn_runtime.bundle.manifest import SCHEMA_VERSION
from tnn_train import ImageData, TverskyConfig, build_model, evaluate, load_checkpoint, save_checkpoint
from tnn_train.model.image_model import ImageModel, Normalize
from tnn_train.training.loop import TrainResult


def test_a_bundle_holds_what_the_runtime_needs(bundles: dict[str, Path]) -> None:
    files = {"README.md", "exemplars.npz", "golden.npz", "head.npz", "manifest.json", "proof.npz"}
    files |= {"model.onnx", "model.ts"}
    for head in ("linear", "tversky"):
        assert {path.name for path in bundles[head].iterdir()} == files
    manifest, _ = Manifest.read(bundles["tversky"])
    assert set(manifest.files) == files - {"manifest.json"}
    assert manifest.class_names == ("cat", "dog")
    assert manifest.inputs[0].shape == (None, 16, 16, 3)
    assert [spec.name for spec in manifest.outputs] == ["logits", "embedding"]
    assert manifest.outputs[1].shape == (None, 24)
    assert manifest.model["head"] == "tversky"
    assert manifest.versions["onnx"] == onnx.__version__
    assert set(manifest.parity) == {"lowered head", "onnx", "torchscript"}
    assert all(parity["passed"] for parity in manifest.parity.values())
    assert manifest.parity["onnx"]["batch_sizes"] == [1, 7, 64]
    assert manifest.parity["onnx"]["library"] == f"onnxruntime {onnxruntime.__version__}"
    assert manifest.metrics["test_accuracy"] == 1
    assert manifest.training["train"]["epochs"] == 3
    assert manifest.training["data"]["source"] == "photos"


def test_the_graph_takes_any_batch_of_uint8_images(bundles: dict[str, Path]) -> None:
    graph = onnx.load(bundles["tversky"] / "model.onnx").graph
    image = graph.input[0]
    assert (image.name, image.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    dims = image.type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 16, 16, 3]
    first = [node.op_type for node in graph.node[:2]]
    assert first == ["Cast", "Transpose"]


def test_no_trace_of_the_machine_or_of_pickle_is_in_the_files(bundles: dict[str, Path]) -> None:
    for path in bundles["tversky"].iterdir():
        content = path.read_bytes()
        assert str(Path(__file__).parents[3]).encode() not in content, path
        assert b"site-packages" not in content, path
        assert str(bundles["tversky"].parents[1]).encode() not in content, path
    with np.load(bundles["tversky"] / "head.npz", allow_pickle=False) as head:
        assert head["feature_bank"].shape == (16, 24)
        assert head["prototypes"].shape == (2, 24)
        assert head["prototype_features"].shape == (2, 16)


def test_artifacts_run_without_this_project(
    bundles: dict[str, Path], runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    images = data.test.pixels
    session = onnxruntime.InferenceSession(bundles["tversky"] / "model.onnx", providers=["CPUExecutionProvider"])
    logits, _ = session.run(["logits", "embedding"], {"images": images})
    assert np.array_equal(
        logits.argmax(1), evaluate(load_checkpoint(runs["tversky"].best).model, data.test).predictions
    )
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, warnings, numpy, torch; warnings.simplefilter('ignore'); "
        "model = torch.jit.load(sys.argv[1]); images = torch.from_numpy(numpy.load(sys.argv[2])); "
        "numpy.save(sys.argv[3], model(images)['logits'].numpy()); "
        "assert not any(name.startswith('tnn_') for name in sys.modules)"
    )
    arguments = [bundles["tversky"] / "model.ts", tmp_path / "images.npy", tmp_path / "logits.npy"]
    subprocess.run([sys.executable, "-c", program, *map(str, arguments)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), logits, rtol=1e-4, atol=1e-4)


def test_the_same_checkpoint_gives_the_same_onnx_bytes(
    bundles: dict[str, Path], runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    export_bundle(runs["tversky"].best, tmp_path / "again", formats=["onnx"])
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (bundles["tversky"] / "model.onnx").read_bytes()
    assert not (tmp_path / "again" / "model.ts").exists()


def test_golden_samples_are_eager_logits(bundles: dict[str, Path], runs: dict[str, TrainResult]) -> None:
    with np.load(bundles["ratio"] / "golden.npz", allow_pickle=False) as golden:
        images, logits = golden["images"], golden["logits"]
    assert images.dtype == np.uint8
    checkpoint = load_checkpoint(runs["ratio"].best)
    samples = Samples(images, ("real",) * len(images), np.full(len(images), -1))
    reference = Reference.of(checkpoint.model, checkpoint.preprocessing, samples)
    np.testing.assert_allclose(reference.logits, logits, rtol=1e-5, atol=1e-5)


def test_a_failed_parity_writes_nothing(
    runs: dict[str, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "lower_model", lambda model, **options: _halved(lower_model(model, **options)))
    with pytest.raises(ParityError, match=r"from eager PyTorch, so nothing was written: onnx: \d+ of") as caught:
        export_bundle(runs["tversky"].best, tmp_path / "bundle")
    assert not caught.value.report.passed
    assert list(tmp_path.iterdir()) == []


def _halved(model: ImageModel) -> ImageModel:
    model.head.map.weight /= 2
    return model


def test_an_existing_bundle_is_kept_unless_overwriting(
    runs: dict[str, TrainResult], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(OutputExistsError):
        export_bundle(runs["linear"].best, bundle)
    with monkeypatch.context() as patch:
        patch.setattr(bundle_module, "compare", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(runs["linear"].best, bundle, overwrite=True)
    assert (bundle / "manifest.json").read_bytes() == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    export_bundle(runs["linear"].best, bundle, formats=["onnx"], overwrite=True)
    assert Classifier.load(bundle).info["head"] == "linear"


def _interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


class TestBadInput:
    def test_unknown_format(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown format 'coreml'; choose from onnx, torchscript"):
            export_bundle(runs["linear"].best, tmp_path / "out", formats=["coreml"])

    def test_no_format(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="choose from onnx, torchscript"):
            export_bundle(runs["linear"].best, tmp_path / "out", formats=[])

    def test_unknown_precision(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="unknown precision 'int3'; choose from fp32"):
            export_bundle(runs["linear"].best, tmp_path / "out", precision="int3")

    def test_no_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="does not exist; expected a checkpoint folder"):
            export_bundle(tmp_path / "nowhere", tmp_path / "out")

    @pytest.mark.parametrize(
        "images",
        [np.zeros((3, 16, 16, 3), np.float32), np.zeros((3, 8, 8, 3), np.uint8), np.zeros((0, 16, 16, 3), np.uint8)],
        ids=["dtype", "shape", "none"],
    )
    def test_unusable_parity_images(self, images: np.ndarray, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"expected uint8 \[N, 16, 16, 3\] with N > 0"):
            export_bundle(runs["linear"].best, tmp_path / "out", images=images)
        assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_readable_json(bundles: dict[str, Path]) -> None:
    content = json.loads((bundles["tversky"] / "manifest.json").read_text())
    assert content["schema_version"] == SCHEMA_VERSION
    assert content["parity"]["onnx"]["explained"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        TverskyConfig(16, intersection="softmin", difference="ignorematch", num_prototypes=5),
        TverskyConfig(16, model="ratio", intersection="max", membership="sigmoid", normalize=True),
        TverskyConfig(16, model="ratio", intersection="softmin", num_prototypes=7, fixed=("alpha",)),
        TverskyConfig(feature_bank="diagonal", intersection="gmean"),
        TverskyConfig(feature_bank="diagonal", model="ratio", intersection="min", num_prototypes=3, normalize=True),
    ],
    ids=name,
)
def test_other_forms_go_the_whole_way(
    form: TverskyConfig, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    trained = load_checkpoint(runs["tversky"].best)
    torch.manual_seed(0)
    config = dataclasses.replace(trained.config, tversky=form)
    model = build_model(config).eval()
    model.backbone.load_state_dict(trained.model.backbone.state_dict())
    save_checkpoint(tmp_path / "checkpoint", dataclasses.replace(trained, model=model, config=config))
    report = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", images=data.test.pixels)
    assert report.passed
    with torch.no_grad():
        expected = model(Normalize(trained.preprocessing)(torch.from_numpy(data.test.pixels))).numpy()
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        np.testing.assert_allclose(classifier.logits(data.test.pixels), expected, rtol=1e-4, atol=1e-4)
        for row, explanations in zip(expected, classifier.explain(data.test.pixels, top_k=2), strict=True):
            for e in explanations:
                assert e.logit == pytest.approx(row[e.index], rel=1e-4, abs=1e-4)


def test_a_threshold_to_reject_by_follows_from_the_real_images(
    bundles: dict[str, Path], runs: dict[str, TrainResult], data: ImageData, tmp_path: Path
) -> None:
    few, _ = Manifest.read(bundles["tversky"])
    assert few.reject == Reject("lead", None, 0.99, 6)
    assert Manifest.read(bundles["linear"])[0].reject == Reject("probability", None, 0.99, 6)
    card = (bundles["tversky"] / "README.md").read_text()
    assert "**no threshold**: 6 held-out images are too few for a coverage of 0.99, which needs 99." in card
    options = ExportOptions(("onnx",), reject_score="logit", coverage=0.75)
    export_bundle(runs["tversky"].best, tmp_path / "bundle", options=options, images=data.test.pixels)
    manifest, _ = Manifest.read(tmp_path / "bundle")
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        largest = np.sort(classifier.logits(data.test.pixels).max(1))
        assert len(largest) == 8
        assert manifest.reject is not None
        assert (manifest.reject.score, manifest.reject.coverage, manifest.reject.samples) == ("logit", 0.75, 8)
        assert manifest.reject.threshold == pytest.approx(largest[1], abs=1e-4)
        np.testing.assert_allclose(np.sort(classifier.reject_scores(data.test.pixels)), largest)
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"where it is below {manifest.reject.threshold:.4g}; at least 75% of images like the 8 held-out ones" in card


@pytest.mark.parametrize(("silent", "is_noted"), [(1, False), (2, True), (3, True), (10, True)])
def test_a_threshold_that_rejects_nothing_has_a_note(
    silent: int, is_noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logits = np.maximum(np.arange(10, dtype=np.float32) - silent + 1, 0)[:, None] * np.ones(3, np.float32)
    samples = SimpleNamespace(is_real=np.ones(10, bool))
    reference = SimpleNamespace(samples=samples, logits=logits, embeddings=torch.zeros(10, 2))
    rule = reject_rule(reference, "logit", 0.8)  # type: ignore[arg-type]
    assert rule is not None
    assert rule.rejects(rule.scores(Outputs(logits, logits))).any() != is_noted
    note = f"the reject threshold 0 rejects none of the held-out images: {silent} of 10 have this score"
    assert [message[: len(note)] for message in caplog.messages] == [note] * is_noted


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reject_score": "margin"}, UsageError, "unknown reject score 'margin'; choose from lead, probability, logit"),
        ({"coverage": 1.0}, ExportError, "got a coverage of 1; expected a share between 0 and 1"),
        ({"coverage": 0.0}, ExportError, "got a coverage of 0; expected a share between 0 and 1"),
    ],
)
def test_an_unusable_way_to_reject(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExportOptions(**options)


STRANGE_NAMES = (
    *("cat", "a, b", "two\nlines", "carriage\rreturn", "\x1b[31mred", '"quoted"', "`code`", "```", " space "),
    *("| pipe |", "# title", "{{ x }}", "ä ö", "\u202e", "=cmd|' /C'!A0", "\ud800"),
)


@pytest.mark.parametrize(
    "names",
    [
        STRANGE_NAMES,
        ("cat, dog", "cat", " dog"),
        ("| a |", "```", "## Classes"),
        ("\u2028", "a\u0085b", "é", "e\u0301"),
    ],
)
def test_the_classes_of_a_card_can_be_read_back(
    names: tuple[str, ...], runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(runs["linear"].best)
    config = dataclasses.replace(checkpoint.config, num_classes=len(names))
    strange = dataclasses.replace(
        checkpoint, model=build_model(config).eval(), config=config, class_names=names, labels=None
    )
    export_bundle(strange, tmp_path / "bundle", ("onnx",))
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    lines = card.split("## Classes\n", 1)[1].split("```\n")[1].split("\n")[:-1]
    assert tuple(json.loads(line) if line.startswith('"') else line for line in lines) == names
    assert "a line in quotes is a JSON string" in card
    assert Manifest.read(tmp_path / "bundle")[0].class_names == names
