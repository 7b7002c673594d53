from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import FIXTURES
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tnn_export.__main__ import main
from tnn_export.triton import repository as module
from tnn_export.triton.configs import Configs
from tnn_export.triton.options import TritonOptions
from tnn_export.triton.repository import export_triton
from tnn_runtime import Manifest, OutputExistsError, ProviderUnavailable, UsageError
from tnn_runtime.bundle.claim import claimed
from tnn_runtime.bundle.manifest import BatchBounds, TensorSpec
from tnn_runtime.bundle.storage import describe_files
from tnn_runtime.engines import spec as engine_spec

BUNDLE = FIXTURES / "bundle-v5"
MODELS = ("photos", "photos_decode", "photos_onnx", "photos_rank")
TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}


def config(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def signature(tensors: Any) -> dict[str, tuple[str, list[int]]]:
    return {one.name: (model_config_pb2.DataType.Name(one.data_type), list(one.dims)) for one in tensors}


@pytest.mark.parametrize("version", range(1, 6))
def test_the_network_has_the_tensors_of_its_graph(version: int, tmp_path: Path) -> None:
    export_triton(FIXTURES / f"bundle-v{version}", tmp_path, name="photos")
    found = config(tmp_path / "photos_onnx")
    graph = onnx.load(tmp_path / "photos_onnx" / "1" / "model.onnx").graph

    def declared(values: Any) -> dict[str, tuple[str, list[int]]]:
        types = {one.name: one.type.tensor_type for one in values}
        assert all(one.shape.dim[0].dim_param for one in types.values()), "each has a dimension of the batch"
        return {
            name: (TYPES[one.elem_type], [size.dim_value for size in one.shape.dim[1:]]) for name, one in types.items()
        }

    assert signature(found.input) == declared(graph.input)
    assert signature(found.output) == declared(graph.output)
    assert (found.backend, found.platform, found.default_model_filename) == (
        "onnxruntime",
        "onnxruntime_onnx",
        "model.onnx",
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (TritonOptions(), (64, "KIND_CPU", 1, "1", 2, 2000, 2)),
        (
            TritonOptions("cuda", 3, 4, 5, 16, 0.25, 1),
            (16, "KIND_GPU", 3, "4", 5, 250, 1),
        ),
        (TritonOptions(max_batch_size=1, max_queue_delay_ms=0, top_k=9), (1, "KIND_CPU", 1, "1", 2, 0, 2)),
    ],
)
def test_options_are_in_the_configurations(options: TritonOptions, expected: tuple[Any, ...], tmp_path: Path) -> None:
    names = export_triton(BUNDLE, tmp_path, name="photos", version=7, options=options)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir()) == list(MODELS)
    assert names[0] == "photos"
    found = {name: config(tmp_path / name) for name in names}
    network, ranks = found["photos_onnx"], signature(found["photos_rank"].output)
    (group,) = network.instance_group
    assert expected == (
        network.max_batch_size,
        model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind),
        group.count,
        network.parameters["intra_op_thread_count"].string_value,
        found["photos_decode"].instance_group[0].count,
        network.dynamic_batching.max_queue_delay_microseconds,
        ranks["labels"][1][0],
    )
    for name, one in found.items():
        assert one.name == name
        assert one.max_batch_size == network.max_batch_size
        assert list(one.version_policy.specific.versions) == [7]
        assert all(tensor.dims for tensor in (*one.input, *one.output))
        assert sorted(path.name for path in (tmp_path / name).iterdir() if path.is_dir()) == ["7"]
        labels = {tensor.name: tensor.label_filename for tensor in one.output if tensor.label_filename}
        assert set(labels.values()) <= {"labels.txt"}
        assert bool(labels) == (tmp_path / name / "labels.txt").exists() == (name in ("photos", "photos_onnx"))
    assert (tmp_path / "photos" / "labels.txt").read_text() == "cat\ndog\n"


def test_the_ensemble_connects_its_steps(tmp_path: Path) -> None:
    export_triton(BUNDLE, tmp_path, name="photos", version=2)
    ensemble = config(tmp_path / "photos")
    there = signature(ensemble.input)
    for step in ensemble.ensemble_scheduling.step:
        model = config(tmp_path / step.model_name)
        assert step.model_version == 2
        inputs, outputs = signature(model.input), signature(model.output)
        assert {name: there[tensor] for name, tensor in step.input_map.items()} == inputs
        there |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
    assert signature(ensemble.output).items() <= there.items()
    # Else Triton leaves the network out where a client does not ask for all that it gives.
    between = {tensor for step in ensemble.ensemble_scheduling.step for tensor in step.input_map.values()}
    assert not between & signature(ensemble.output).keys()


def test_maps_and_names_are_as_the_manifest_has_them(tmp_path: Path) -> None:
    manifest = Manifest.read(BUNDLE)[0]
    logits, _, *others = manifest.outputs
    outputs = (logits, TensorSpec("embedding", "float32", (None, 24, 3, 2)), *others)
    configs = Configs("m", 1, dataclasses.replace(manifest, outputs=outputs, reject=None), TritonOptions())
    for text in (configs.onnx("model.onnx"), configs.ensemble(), configs.rank()):
        found = text_format.Parse(text, ModelConfig())
        tensors = signature(found.output) | signature(found.input)
        assert tensors["embedding"] == ("TYPE_FP32", [24, 3, 2])
        assert "reject" not in tensors


def test_names_of_classes_take_a_line_each(small_bundle: Path, tmp_path: Path) -> None:
    path = small_bundle / "manifest.json"
    names = ["a\nb", "größe \u202e"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "class_names": names}))
    export_triton(small_bundle, tmp_path / "repository", name="photos")
    assert (tmp_path / "repository" / "photos" / "labels.txt").read_text() == "'a\\nb'\n'größe \\u202e'\n"
    for step in ("photos_rank", "photos_decode"):
        assert json.loads((tmp_path / "repository" / step / "1" / "manifest.json").read_text())["class_names"] == names


@pytest.mark.parametrize("fault", ["dimz: 3", "data_type: TYPE_FLOAT", "dims: many", "kind: KIND_TPU", "{"])
def test_the_parser_of_the_tests_finds_faults(fault: str, tmp_path: Path) -> None:
    export_triton(BUNDLE, tmp_path, name="photos")
    path = tmp_path / "photos_onnx" / "config.pbtxt"
    before = {"dimz: 3": "dims: 3", "data_type: TYPE_FLOAT": "data_type: TYPE_FP32", "dims: many": "dims: 3"}
    before |= {"kind: KIND_TPU": "kind: KIND_CPU", "{": "}"}
    assert before[fault] in path.read_text()
    path.write_text(path.read_text().replace(before[fault], fault))
    with pytest.raises(text_format.ParseError):
        config(tmp_path / "photos_onnx")


def test_bundles_lie_side_by_side_and_replace_themselves_alone(tmp_path: Path) -> None:
    export_triton(BUNDLE, tmp_path, name="photos")
    export_triton(FIXTURES / "bundle-v1", tmp_path, name="older")
    (tmp_path / "resnet" / "1").mkdir(parents=True)
    (tmp_path / "README.txt").write_text("models")
    before = content(tmp_path)
    with pytest.raises(OutputExistsError, match="photos.* already exists; .* pass --overwrite"):
        export_triton(BUNDLE, tmp_path, name="photos", version=2)
    assert content(tmp_path) == before
    export_triton(BUNDLE, tmp_path, name="photos", version=2, overwrite=True)
    after = content(tmp_path)
    kept = {name: data for name, data in before.items() if not name.startswith("photos")}
    assert kept.items() <= after.items()
    assert {name.split("/")[1] for name in after if name.startswith("photos") and name.count("/") > 1} == {"2"}


@pytest.mark.parametrize("fails_at", range(4))
@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_is_half_written(
    is_there: bool, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    if is_there:
        export_triton(FIXTURES / "bundle-v1", repository, name="photos")
    before = content(tmp_path)
    write, seen = module._write, []

    def fail(folder: Path, *others: Any) -> None:
        seen.append(folder)
        write(folder, *others)
        assert not [path for path in repository.iterdir() if path.name.startswith(".")] if is_there else True
        if len(seen) > fails_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", fail)
    with pytest.raises(OSError, match="No space left"):
        export_triton(BUNDLE, repository, name="photos", overwrite=True)
    assert content(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"repository"}


def test_what_a_kill_left_is_removed(tmp_path: Path) -> None:
    repository, workshop = tmp_path / "repository", tmp_path / ".repository.partial"
    for name in (".photos.abc123.partial", ".photos_onnx.abc123.partial", ".photos_onnx.previous"):
        (workshop / name / "1").mkdir(parents=True)
    export_triton(BUNDLE, repository, name="photos")
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    assert sorted(path.name for path in repository.iterdir()) == list(MODELS)


def with_engine(bundle: Path, library: str) -> Path:
    """Add an engine to a bundle; nothing in it is looked at here."""
    about = ("0" * 64, library, "10.13.2", "sm90", "images", (8, 8, 3), (1, 8, 16), False)
    spec = engine_spec.EngineSpec(*about)
    engine = bundle / spec.name
    engine.write_bytes(b"an engine")
    record = describe_files(bundle, [engine.name])[engine.name]
    text = {"schema_version": 1, "spec": dataclasses.asdict(spec), "file": record}
    engine.with_suffix(".json").write_text(json.dumps(text))
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] |= describe_files(bundle, [engine.name, engine.with_suffix(".json").name])
    manifest["batch"] = {"smallest": 1, "largest": 16}
    path.write_text(json.dumps(manifest))
    return bundle


def test_an_engine_is_a_model_of_its_own(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    words = ["triton", str(with_engine(small_bundle, "tensorrt")), "-o", str(repository), "--name", "photos"]
    assert main(words) == 0
    assert "runs with TensorRT 10.13.2 on sm90 alone" in capsys.readouterr().err
    found, network = config(repository / "photos_tensorrt"), config(repository / "photos_onnx")
    assert (found.backend, found.default_model_filename, found.max_batch_size) == ("tensorrt", "model.plan", 16)
    assert (signature(found.input), signature(found.output)) == (signature(network.input), signature(network.output))
    assert (repository / "photos_tensorrt" / "1" / "model.plan").read_bytes() == b"an engine"
    for name in MODELS:
        shutil.rmtree(repository / name)
    with pytest.raises(OutputExistsError, match="photos_tensorrt already exists"):
        export_triton(BUNDLE, repository, name="photos")
    export_triton(BUNDLE, repository, name="photos", overwrite=True)
    assert sorted(path.name for path in repository.iterdir()) == list(MODELS)


def test_an_engine_for_rtx_is_left_out_with_a_note(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "repository" / "photos_tensorrt").mkdir(parents=True)
    (tmp_path / "repository" / "photos_tensorrt" / "mine.txt").write_text("of somebody else")
    bundle = with_engine(small_bundle, "tensorrt_rtx")
    assert main(["triton", str(bundle), "-o", str(tmp_path / "repository"), "--name", "photos", "--overwrite"]) == 0
    assert "is of TensorRT for RTX, which Triton does not have; it is left out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "repository" / "photos_tensorrt").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "out"], "nowhere does not exist; expected a bundle folder"),
        (["BUNDLE"], "the following arguments are required: -o/--out"),
        (["BUNDLE", "-o", "out", "--name", "a/b"], "the model cannot be called 'a/b'; give a --name of letters"),
        (["BUNDLE", "-o", "out", "--name", ""], "the model cannot be called ''; give a --name of letters"),
        (["BUNDLE", "-o", "out", "--name", ".."], "the model cannot be called '..'; give a --name"),
        (["BUNDLE", "-o", "out", "--name", "größe"], "the model cannot be called 'größe'; give a --name"),
        (["BUNDLE", "-o", "out", "--name", "x" * 201], "; give a --name of letters"),
        (["my photos", "-o", "out"], "the model cannot be called 'my photos'; give a --name"),
        (["BUNDLE", "-o", "out", "--version", "0"], "argument --version: got '0'; expected an integer of at least 1"),
        (["BUNDLE", "-o", "out", "--version", "new"], "argument --version: got 'new'; expected an integer"),
        (["BUNDLE", "-o", "out", "--device", "gpu"], "unknown device 'gpu'; choose from cpu, cuda"),
        (["BUNDLE", "-o", "out", "--threads", "0"], "argument --threads: got '0'; expected an integer of at least 1"),
        (["BUNDLE", "-o", "out", "--max-queue-delay-ms", "-1"], "max_queue_delay_ms is -1.0; expected a number of"),
        (["BUNDLE", "-o", "out", "--max-queue-delay-ms", "nan"], "max_queue_delay_ms is nan; expected a number of"),
        (["BUNDLE", "-o", "file"], "file is a file; choose a folder for the repository"),
        (["BUNDLE", "-o", "file/out"], "cannot be made in"),
        (["BUNDLE", "-o", "BUNDLE"], "has manifest.json in it, so it is a bundle and no repository"),
        (["BUNDLE", "-o", "there/photos"], "has config.pbtxt in it, so it is a model and no repository"),
        (["BUNDLE", "-o", "there", "--name", "photos"], "photos already exists; choose another output folder or pass"),
        (["BUNDLE", "-o", "there", "--name", "mine"], "mine already exists and has no tnn-export.json, so it is some"),
        (["BUNDLE", "-o", "there", "--name", "mine", "--overwrite"], "mine already exists and has no tnn-export.json"),
        (
            ["BUNDLE", "-o", "there", "--name", "photos_onnx", "--overwrite"],
            "photos_onnx belongs to the bundle 'photos'; choose another --name",
        ),
        (["BUNDLE", "-o", "/"], "is a mount point, beside which nothing can be made; choose a folder in it"),
        (["SMALL", "-o", "out", "--max-batch-size", "9"], "max_batch_size is 9, and this bundle takes batches of 8"),
        (["LARGE", "-o", "out"], "takes batches of 4 images at least, and Triton does not fill batches up"),
        (["TORCH", "-o", "out"], "has no model.onnx; export its checkpoint again with --formats onnx"),
        (["DAMAGED", "-o", "out"], "model.onnx has 3 bytes where"),
        (["BUNDLE", "-o", "out", "--public-key", "file"], "file"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundles = {"BUNDLE": "bundle", "SMALL": "small", "LARGE": "large", "TORCH": "torch", "DAMAGED": "damaged"}
    for name in (*bundles.values(), "my photos"):
        shutil.copytree(BUNDLE, name)
    for name, changes in (
        ("small", {"batch": BatchBounds(1, 8)}),
        ("large", {"batch": BatchBounds(4, 8)}),
    ):
        dataclasses.replace(Manifest.read(name)[0], **changes).write(Path(name))
    (tmp_path / "torch" / "model.onnx").rename(tmp_path / "torch" / "model.ts")
    manifest = Manifest.read(BUNDLE)[0]
    files = {name.replace("model.onnx", "model.ts"): entry for name, entry in manifest.files.items()}
    dataclasses.replace(manifest, files=files).write(tmp_path / "torch")
    (tmp_path / "damaged" / "model.onnx").write_bytes(b"abc")
    (tmp_path / "file").write_text("")
    export_triton(BUNDLE, "there", name="photos")
    (tmp_path / "there" / "mine").mkdir()
    (tmp_path / "there" / "mine" / "config.pbtxt").write_text("")
    before = content(tmp_path)
    assert main(["triton", *(bundles.get(word, word) for word in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert content(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a", "photos.v2", "0", "_x", "A-b_c.d", "x" * 200])
def test_names_that_can_be_had(name: str, tmp_path: Path) -> None:
    assert export_triton(BUNDLE, tmp_path / "repository", name=name)[0] == name


@pytest.mark.parametrize("version", [1, 20261128, (1 << 63) - 1])
def test_versions_that_can_be_had(version: int, tmp_path: Path) -> None:
    export_triton(BUNDLE, tmp_path / "repository", name="a", version=version)
    assert (tmp_path / "repository" / "a_onnx" / str(version) / "model.onnx").exists()
    with pytest.raises(UsageError, match="version is -?[0-9]+; expected an integer of at least 1 and below 9223"):
        export_triton(BUNDLE, tmp_path / "repository", name="b", version=version - (1 << 63) + 1 or 1 << 63)


def test_the_name_is_that_of_the_bundle_unless_one_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shutil.copytree(BUNDLE, tmp_path / "flowers"))
    assert export_triton(".", "../repository")[0] == "flowers"


def test_a_writer_keeps_others_away(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / ".repository.partial"),
        pytest.raises(OutputExistsError, match="another process is writing"),
    ):
        export_triton(BUNDLE, tmp_path / "repository", name="photos")


@pytest.mark.parametrize("missing", ["tritonclient.grpc.model_config_pb2", "google.protobuf"])
def test_without_tritonclient_one_line_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tnn_export.triton.configs")
    monkeypatch.delitem(sys.modules, "tnn_export.triton.repository")
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("tnn_runtime.installation.requires", lambda name: ['tritonclient[grpc]>=2; extra == "triton"'])
    with pytest.raises(ProviderUnavailable, match=r"need the package tritonclient, .* run: pip install .*tritonclient"):
        from tnn_export.triton.repository import export_triton  # noqa: F401


@pytest.mark.parametrize("delay", [0, 0.0004, 1e9, 1e300])
def test_any_delay_can_be_written(delay: float, tmp_path: Path) -> None:
    export_triton(BUNDLE, tmp_path, name="photos", options=TritonOptions(max_queue_delay_ms=delay))
    found = config(tmp_path / "photos_onnx").dynamic_batching.max_queue_delay_microseconds
    assert found <= 1000 * delay
    assert (found > 0) == (delay > 1)


@pytest.mark.parametrize(
    "changes", [{"instances": 0}, {"threads": True}, {"decoders": 1.5}, {"top_k": -1}, {"max_batch_size": 0}]
)
def test_options_out_of_their_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))} is "):
        TritonOptions(**changes)
