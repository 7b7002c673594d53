"""Linear classifiers of other programs, imported as Tversky ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNet
from torch import Tensor, nn

from tnn_export.__main__ import main
from tnn_export.importers import import_state_dict
from tnn_runtime import Classifier, UsageError
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import TverskyHead, load_checkpoint
from tnn_train.model.image_model import Normalize

PREPROCESSING = Preprocessing(16, 20, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(1)
    net = TinyNet()
    net.fc = nn.Linear(24, 2)
    return net.eval()


@pytest.fixture
def file(net: nn.Module, tmp_path: Path) -> Path:
    torch.save(net.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def arguments(file: Path, photos: Path, *more: str) -> list[str]:
    words = f"import {file} --from linear --backbone tiny --stem imagenet --images {photos} --image-size 16 20"
    return [*words.split(), "-o", str(file.parent / "out"), *more]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_logits_stay_but_for_a_number_that_all_classes_share(
    scale: float, net: nn.Module, file: Path, photos: Path
) -> None:
    images = PREPROCESSING.batch(find_images(photos))
    checkpoint = import_state_dict(
        file,
        "linear",
        backbone="tiny",
        stem="imagenet",
        preprocessing=PREPROCESSING,
        class_names=["cat", "dog"],
        samples=images,
        logit_scale=scale,
        options={"code": "classes"},
    )
    assert isinstance(checkpoint.model.head, TverskyHead)
    x = Normalize(PREPROCESSING)(torch.from_numpy(images))
    with torch.inference_mode():
        one, other = (_centred(model(x)) for model in (net, checkpoint.model))
    torch.testing.assert_close(other, scale * one, rtol=1e-5, atol=1e-5)


def test_the_command_makes_a_checkpoint_that_exports_and_explains(
    net: nn.Module, file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(file, photos)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2 classes, 1 attribute (code hierarchy)")
    assert "the logits, less their mean, differ from those of the linear head by at most" in printed[1]
    assert printed[2:] == [f"wrote {tmp_path}/out", f"next: tnn-export {tmp_path}/out -o BUNDLE"]
    checkpoint = load_checkpoint(tmp_path / "out")
    assert checkpoint.training["imported"] == {"file": "net.pth", "source": "linear"}
    assert checkpoint.training["unfolded"]["code"] == "hierarchy"
    assert main([str(tmp_path / "out"), "-o", str(tmp_path / "bundle"), "--formats", "onnx"]) == 0
    with Classifier.load(tmp_path / "bundle") as classifier:
        images = checkpoint.preprocessing.batch(find_images(photos))
        with torch.inference_mode():
            expected = net(Normalize(checkpoint.preprocessing)(torch.from_numpy(images))).argmax(1)
        assert np.array_equal(classifier.logits(images).argmax(1), expected.numpy())
        assert "'" in classifier.explain([images[0]], top_k=1)[0][0].summary


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--code", "nowhere.csv"), "nowhere.csv cannot be read"),
        (("--alpha", "0.2"), "linear has no option 'alpha'; it has code"),
        (("--logit-scale", "0"), "logit_scale is 0.0; expected a positive number"),
        (("--backbone", "resnet18"), "is [2, 24], and backbone resnet18 gives embeddings of 512 values"),
        (("--prefix", "head"), "expected head.weight [classes, features]"),
        (("--from", "verskyt"), "no layer was found; expected tensors named prototypes"),
        (("--from", "tversky-nn", "--code", "classes"), "tversky-nn has no option 'code'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(
    more: tuple[str, ...], message: str, file: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(file, photos, *more)) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (file.parent / "out").exists()


def test_class_names_that_do_not_fit(file: Path) -> None:
    samples = np.zeros((1, *PREPROCESSING.shape), np.uint8)
    with pytest.raises(UsageError, match=r"got 3 class names for the 2 rows of fc\.weight"):
        import_state_dict(
            file, "linear", backbone="tiny", preprocessing=PREPROCESSING, class_names="abc", samples=samples
        )
    with pytest.raises(UsageError, match=r"class_names has two classes called 'a'; expected a name of its own"):
        import_state_dict(
            file, "linear", backbone="tiny", preprocessing=PREPROCESSING, class_names="aa", samples=samples
        )


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(1, keepdim=True)
