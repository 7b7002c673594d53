"""The compiled backend: bit-equal to ONNX Runtime, built once, and told plainly where it cannot be."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tnn_export import ExportOptions, export_bundle
from tnn_runtime import ArtifactError, Classifier, ProviderUnavailable, UsageError
from tnn_runtime.__main__ import main as tnn_runtime
from tnn_runtime.backends import parse_device, probe_device
from tnn_runtime.bundle.storage import describe_files
from tnn_runtime.engines.compiler import load_program
from tnn_runtime.errors import EngineError
from tnn_train import DataConfig, ModelConfig, TrainConfig, load_data, train

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this system")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A logic head on the pixels of digits; read only."""
    folder = tmp_path_factory.mktemp("compiled")
    recipe = TrainConfig(epochs=3, batch_size=64, augment=())
    run = train(load_data(DataConfig("digits")), folder / "run", ModelConfig("pixels", "logic"), recipe)
    assert export_bundle(run.best, folder / "bundle", options=ExportOptions(outputs=("probabilities",))).passed
    return folder / "bundle"


@pytest.fixture
def digits() -> np.ndarray:
    """Real digits and random pixels, more than two blocks of words, uint8."""
    data = load_data(DataConfig("digits"))
    pixels = np.asarray(data.test.pixels)
    random = np.random.default_rng(0).integers(0, 256, (300, *pixels.shape[1:]), dtype=np.uint8)
    return np.concatenate([pixels, random])


def test_it_gives_the_bits_of_onnx_runtime(bundle: Path, digits: np.ndarray, cache: Path) -> None:
    with (
        Classifier.load(bundle, "cpu", max_batch_size=512) as ort,
        Classifier.load(bundle, "compiled", cache_dir=cache, max_batch_size=512) as compiled,
    ):
        assert compiled.info["device"] == "compiled"
        for images in (digits, digits[:1], digits[:65], digits[:0]):
            np.testing.assert_array_equal(compiled.logits(images), ort.logits(images))
            np.testing.assert_array_equal(compiled.embed(images), ort.embed(images))
            shares = [classifier.outputs(images, "probabilities")["probabilities"] for classifier in (ort, compiled)]
            np.testing.assert_allclose(*shares, rtol=1e-5)
        one, other = (classifier.explain(digits[:3]) for classifier in (ort, compiled))
        assert [e.to_dict() for row in one for e in row] == [e.to_dict() for row in other for e in row]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            many = list(pool.map(lambda start: compiled.logits(digits[start::4]), range(4)))
        for start, found in enumerate(many):
            np.testing.assert_array_equal(found, ort.logits(digits[start::4]))


def test_auto_takes_it_and_it_is_built_once(bundle: Path, digits: np.ndarray, tmp_path: Path) -> None:
    with Classifier.load(bundle, cache_dir=tmp_path) as classifier:
        assert classifier.info["device"] == "compiled"
    (program,) = tmp_path.glob("*.so")
    built = program.stat().st_mtime_ns
    Classifier.load(bundle, "compiled", cache_dir=tmp_path).close()
    assert program.stat().st_mtime_ns == built
    program.unlink()  # it is loaded, and must not change in place
    program.write_bytes(b"not what was built")
    with Classifier.load(bundle, "compiled", cache_dir=tmp_path) as classifier:
        assert len(classifier.logits(digits)) == len(digits)
    assert program.stat().st_size > 1000


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("no-such-compiler", "there is no C compiler 'no-such-compiler' on this machine"),
        ("false", "the C compiler false fails (exit code 1)"),
        ("cc --nonsense", "the C compiler cc --nonsense fails ("),
        ("true", "makes no program, so it is no C compiler"),
        ("'cc", "which is no command"),
    ],
)
def test_without_a_compiler_it_is_an_error_and_auto_serves_with_onnx_runtime(
    bundle: Path, digits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(ProviderUnavailable, match=re.escape(reason) + ".*; correct the environment variable CC"):
        Classifier.load(bundle, "compiled", cache_dir=tmp_path)
    with Classifier.load(bundle, cache_dir=tmp_path) as classifier:
        assert classifier.info["device"] == "cpu"
        assert "no compiled program (" in str(classifier.info)
        assert len(classifier.logits(digits)) == len(digits)
    assert not list(tmp_path.iterdir())


def test_where_none_is_installed_it_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderUnavailable, match="no C compiler 'cc' on this machine; install one, such as apt inst"):
        load_program("", tmp_path)


def test_a_compiler_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=r"the C compiler .*cc fails .*error.*; install one") as caught:
        load_program("int run(void) { return nothing; }", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="rights are told otherwise there")
def test_a_folder_that_others_can_write_to_is_refused(bundle: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(
        EngineError,
        match="others can write to it, and programs in it are .* run; .* .chmod go-w.*XDG_CACHE_HOME",
    ):
        Classifier.load(bundle, "compiled", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be kept in .* choose another folder with .* XDG_CACHE_HOME"):
        Classifier.load(bundle, "compiled", cache_dir=tmp_path / "file")


def test_other_bundles_and_options_are_refused(bundles: dict[str, Path], bundle: Path, cache: Path) -> None:
    with pytest.raises(ArtifactError, match="runs logic heads on pixels, and .* has a linear head on tiny"):
        Classifier.load(bundles["linear"], "compiled", cache_dir=cache)
    with pytest.raises(UsageError, match="'compiled' has no execution providers"):
        Classifier.load(bundle, "compiled", providers=["CPUExecutionProvider"], cache_dir=cache)
    with pytest.raises(UsageError, match="cuda_graphs=True needs a GPU"):
        Classifier.load(bundle, "compiled", cuda_graphs=True, cache_dir=cache)


def test_what_is_compiled_has_the_hash_of_the_manifest(bundle: Path, tmp_path: Path, cache: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    with np.load(copy / "head.npz") as arrays:
        changed = dict(arrays)
    changed["tables"] = 15 - changed["tables"]
    np.savez(copy / "head.npz", **changed)
    with pytest.raises(ArtifactError, match=r"head.npz"):
        Classifier.load(copy, "compiled", cache_dir=cache)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] |= describe_files(copy, ["head.npz"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="golden"):
        Classifier.load(copy, "compiled", cache_dir=cache)


def test_the_commands_know_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "runs a program made by" in probe_device(parse_device("compiled"))
    data = load_data(DataConfig("digits"))
    from PIL import Image

    Image.fromarray(np.asarray(data.test.pixels)[0, :, :, 0]).save(tmp_path / "digit.png")
    for device in ("compiled", "cpu"):
        assert tnn_runtime(["predict", str(bundle), str(tmp_path / "digit.png"), "--device", device]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
