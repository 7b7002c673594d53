from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import TinyNet
from safetensors.torch import save_file
from torch import Tensor

from tnn_train import TverskyHead, load_checkpoint
from tnn_train.__main__ import main
from tnn_train.model.classifiers import read_published
from tnn_train.training.loop import TrainResult

SMALLEST = "shufflenet_v2_x0_5"
FILE = "shufflenetv2_x0.5-f707e7126e.pth"


@pytest.fixture
def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = TinyNet()
    net.fc = torch.nn.Linear(24, 2)
    return dict(net.state_dict())


@pytest.fixture
def smallest(hub: Path) -> Path:
    """A file with random weights where torchvision would put those of its smallest classifier."""
    torch.manual_seed(2)
    torch.save(torchvision.models.get_model(SMALLEST).state_dict(), hub / FILE)
    return hub / FILE


def of_file(path: Path, photos: Path, out: Path, *more: str) -> list[str]:
    words = f"unfold {path} --backbone tiny --stem imagenet --image-size 16 20 -o {out}"
    return [*words.split(), *([] if "--images" in more else ["--images", str(photos)]), *more]


def error(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert text.startswith("tnn-train: error: ")
    assert text.count("\n") == 1
    return text


class TestCheckpoints:
    def test_it_writes_a_checkpoint_and_says_what_to_do_next(
        self, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "unfolded"
        assert main(["unfold", str(runs["linear"].best), "-o", str(out), "--code", "classes"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith("2 classes, 1 attribute (code classes)")
        assert printed[-3] == f"wrote {out}"
        assert printed[-2] == f"next: tnn-export {out} -o BUNDLE"
        assert "--backbone tiny" in printed[-1]
        assert f"--weights {out} --keep-head" in printed[-1]
        assert isinstance(load_checkpoint(out).model.head, TverskyHead)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("{linear}", "is a run; give one of its checkpoints: {linear}/best"),
            ("{tversky}/best", "{tversky}/best has a tversky head, which is no linear map of the embedding"),
            ("nowhere", "nowhere does not exist; expected a checkpoint folder, torchvision:NAME, or a .pth"),
            ("{linear}/best --backbone resnet18", "got --backbone with {linear}/best: a checkpoint tells that itself"),
            ("{linear}/best --images photos", "got --images with"),
            ("{linear}/best --code nowhere.csv", "nowhere.csv cannot be read"),
            ("{linear}/best -o .", ". already exists and has no config.json"),
            ("{linear}/best -o {linear}/best", "already exists; choose another output folder or pass --overwrite"),
            (
                "torchvision:resnet50 --mean 0.5",
                "got --mean with torchvision:resnet50: torchvision's weights tell that",
            ),
            ("torchvision:resnet51", "unknown backbone 'resnet51'; the nearest are"),
            ("torchvision:vit_h_14", "have a licence of their own"),
        ],
    )
    def test_bad_input_gets_one_line(
        self,
        words: str,
        message: str,
        runs: dict[str, TrainResult],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "other").mkdir()
        folders = {name: str(run.folder) for name, run in runs.items()}
        assert main(["unfold", "-o", "out", *words.format(**folders).split()]) == 1
        assert message.format(**folders) in error(capsys)
        assert not Path("out").exists()


class TestFiles:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {f"module.{name}": value for name, value in state.items()},
            lambda state: {f"net.{name}": value for name, value in state.items()},
            lambda state: {name.replace("fc.", "classifier."): value for name, value in state.items()},
            lambda state: {name: value.half() if "fc" in name else value for name, value in state.items()},
        ],
        ids=["state_dict", "DDP", "wrapped", "renamed", "half"],
    )
    def test_a_file_is_read_however_it_is_wrapped(
        self, wrap: Callable[[dict[str, Tensor]], object], state: dict[str, Tensor], photos: Path, tmp_path: Path
    ) -> None:
        torch.save(wrap(state), tmp_path / "net.pth")
        assert main(of_file(tmp_path / "net.pth", photos, tmp_path / "out")) == 0
        checkpoint = load_checkpoint(tmp_path / "out")
        assert checkpoint.class_names == ("cat", "dog")
        assert checkpoint.labels is not None
        assert checkpoint.training["imported"] == {"file": "net.pth", "source": "linear"}
        net = TinyNet()
        net.fc = torch.nn.Linear(24, 2)
        net.load_state_dict(state)
        x = torch.randn(6, 3, 16, 20)
        with torch.inference_mode():
            one, other = (model(x).diff() for model in (net.eval(), checkpoint.model))
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)

    def test_safetensors_names_and_random_images(
        self, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_file(state, tmp_path / "net.safetensors")
        (tmp_path / "names.txt").write_text("hound\ntabby\n")
        words = f"unfold {tmp_path}/net.safetensors --backbone tiny --stem imagenet --image-size 16 -o {tmp_path}/out"
        assert main([*words.split(), "--class-names", str(tmp_path / "names.txt")]) == 0
        assert "note: no images were given, so that this proof and those of exports" in capsys.readouterr().err
        assert load_checkpoint(tmp_path / "out").class_names == ("hound", "tabby")

    def test_the_last_layer_alone(self, state: dict[str, Tensor], photos: Path, tmp_path: Path) -> None:
        torch.save({"weight": state["fc.weight"], "bias": state["fc.bias"]}, tmp_path / "head.pth")
        torch.save(state, tmp_path / "net.pth")
        more = ("--backbone-weights", str(tmp_path / "net.pth"))
        assert main(of_file(tmp_path / "head.pth", photos, tmp_path / "out", *more)) == 0

    @pytest.mark.parametrize(
        ("spoil", "more", "message"),
        [
            (
                {"fc.weight": torch.ones(3, 24), "fc.bias": torch.ones(3)},
                (),
                "got 2 class names for the 3 rows of fc.w",
            ),
            (
                {"fc.weight": torch.ones(2, 7)},
                (),
                "fc.weight of {file} is [2, 7], and backbone tiny gives embeddings of 24",
            ),
            (
                {"fc.weight": torch.ones(1, 24), "fc.bias": torch.ones(1)},
                (),
                "a single logit; expected a row for each of",
            ),
            ({"fc.bias": torch.ones(5)}, (), "fc.bias of {file} is [5], and fc.weight [2, 24]; expected one value for"),
            (
                {"fc.weight": torch.full((2, 24), torch.nan)},
                (),
                "48 of 48 values of fc.weight are NaN",
            ),
            (
                {"fc.bias": torch.full((2,), torch.inf)},
                (),
                "2 of 2 values of fc.bias are NaN",
            ),
            (
                {"fc.weight": None},
                (),
                "has no linear layer that may be its last (besides the backbone it holds: fc.bias)",
            ),
            ({"fc.prototypes": torch.ones(2, 24), "fc.weight": None}, (), "has no linear layer that may be its last"),
            (
                {"one.weight": torch.ones(2, 24), "two.weight": torch.ones(2, 24), "fc.weight": None, "fc.bias": None},
                (),
                "has 2 linear layers that may be its last (besides the backbone it holds: one.weight, two.weight); "
                "expected fc.weight [classes, features]; name the layer with --prefix",
            ),
            ({}, ("--prefix", "head"), "has no linear layer that may be its last"),
            ({"conv2.bias": None}, (), "do not fit backbone tiny (1 missing: conv2.bias)"),
            ({"other": torch.ones(3)}, (), "(1 unexpected: other)"),
            ({}, ("--images", "nowhere"), "nowhere does not exist; expected a folder of images"),
            ({}, ("--class-names", "nowhere"), "nowhere cannot be read"),
            ({}, ("--mean", "0.5"), "--mean is given without --std; give both"),
            (
                {},
                ("--backbone-weights", "nowhere"),
                "nowhere does not exist; expected a .pth, .pt or .safetensors file",
            ),
            ({}, ("--backbone", "tinny"), "unknown backbone 'tinny'; the nearest are"),
        ],
    )
    def test_bad_input_gets_one_line(
        self,
        spoil: dict[str, Tensor | None],
        more: tuple[str, ...],
        message: str,
        state: dict[str, Tensor],
        photos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        spoilt = {name: value for name, value in {**state, **spoil}.items() if value is not None}
        torch.save(spoilt, tmp_path / "net.pth")
        assert main(of_file(tmp_path / "net.pth", photos, tmp_path / "out", *more)) == 1
        assert message.replace("{file}", str(tmp_path / "net.pth")) in error(capsys)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("", "does not tell which classifier its weights belong to"),
            ("--backbone tiny", "the names of the classes are not known; give --class-names FILE"),
        ],
    )
    def test_what_a_file_does_not_tell_has_to_be_said(
        self, words: str, message: str, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save(state, tmp_path / "net.pth")
        assert main(["unfold", str(tmp_path / "net.pth"), "-o", str(tmp_path / "out"), *words.split()]) == 1
        assert message in error(capsys)

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors", "samples.npz"])
    def test_a_file_of_a_checkpoint_leads_to_the_checkpoint(
        self, name: str, runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        best = runs["linear"].best
        assert main(["unfold", str(best / name), "-o", str(tmp_path / "out")]) == 1
        assert f"belong to; give the checkpoint that it is a part of: {best}" in error(capsys)


class TestTorchvision:
    def test_its_weights_bring_names_and_preprocessing_along(
        self, smallest: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = f"unfold torchvision:{SMALLEST} --images {photos} -o {tmp_path}/out --code classes"
        assert main(words.split()) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("1000 classes, 1000 attributes (code classes), 2000 features")
        assert (
            "note: torchvision scales the shorter side of an image to 256 pixels (bilinear) and crops" in captured.err
        )
        checkpoint = load_checkpoint(tmp_path / "out")
        assert checkpoint.class_names[0] == "tench"
        assert checkpoint.preprocessing.shape == (224, 224, 3)
        assert checkpoint.preprocessing.mean == (0.485, 0.456, 0.406)
        assert checkpoint.training["imported"] == {"source": f"torchvision:{SMALLEST}"}
        assert checkpoint.metrics["unfolded_difference"] <= 1e-5

    def test_another_kind_of_preprocessing_is_refused(
        self, smallest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preset = torchvision.models.get_model_weights(SMALLEST).DEFAULT
        monkeypatch.setattr(type(preset), "transforms", property(lambda self: dict))
        assert main(["unfold", f"torchvision:{SMALLEST}", "-o", str(tmp_path / "out")]) == 1
        assert "with dict; expected ImageClassification, a resize, a crop" in error(capsys)

    def test_what_resnet50_takes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        preset = torchvision.models.get_model_weights("resnet50").DEFAULT
        monkeypatch.setattr(type(preset), "get_state_dict", lambda self, **options: {"fc.weight": torch.ones(1)})
        found = read_published("resnet50")
        assert found.preprocessing.shape == (224, 224, 3)
        assert found.note is not None
        assert "to 232 pixels" in found.note
        assert len(found.class_names) == 1000

    def test_without_internet_the_error_says_which_file_goes_where(
        self, hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["unfold", f"torchvision:{SMALLEST}", "-o", str(tmp_path / "out")]) == 1
        assert f"put it at {hub / FILE}" in error(capsys)
