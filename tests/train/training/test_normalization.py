"""Which mean and deviation a training takes, and what it says of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tnn_runtime import UsageError
from tnn_train import ImageData, ModelConfig, load_checkpoint, load_data, train
from tnn_train.data import DataConfig
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.inputs import make_preprocessing
from tnn_train.model.weights import published_statistics
from tnn_train.training.identity import identity, refuse_other
from tnn_train.training.loop import TrainResult
from tnn_train.training.recipe import TrainConfig

MODEL = ModelConfig("tiny", stem="imagenet", head="linear")
ONE_EPOCH = TrainConfig(epochs=1, batch_size=8, learning_rate=0.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = ((0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2],) for rgb in (MEAN, STD))


def state_dict(folder: Path, *, channels: int = 3) -> dict[str, str]:
    """Write the weights of another program, and return the files by their kind."""
    torch.manual_seed(0)
    state = BACKBONES["tiny"]().state_dict()
    if channels == 1:
        state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, folder / "net.pth")
    save_file(state, folder / "net.safetensors")
    return {"pth": str(folder / "net.pth"), "safetensors": str(folder / "net.safetensors")}


def measured(data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    values = data.train.sample(2000).astype(np.float64).reshape(-1, data.preprocessing.channels) / 255
    return values.mean(0), values.std(0)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [
        ({}, MEAN, STD),
        ({"normalize": "imagenet"}, MEAN, STD),
        ({"normalize": "dataset"}, None, None),
        ({"mean": (0.5,), "std": (0.25,)}, (0.5,) * 3, (0.25,) * 3),
        ({"mean": (0.1, 0.2, 0.3), "std": (1.0,)}, (0.1, 0.2, 0.3), (1.0,) * 3),
    ],
)
def test_a_state_dict_gets_what_torchvision_takes_unless_a_person_says_otherwise(
    options: Mapping[str, Any], mean: Any, std: Any, suffix: str, photos: Path, tmp_path: Path, caplog: Any
) -> None:
    data = load_data(photos, image_size=16, limit=20, **options)
    recipe = dataclasses.replace(ONE_EPOCH, weights=state_dict(tmp_path)[suffix])
    run = train(data, tmp_path / "run", MODEL, recipe)
    expected = measured(data) if mean is None else (mean, std)
    used = load_checkpoint(run.best).preprocessing
    np.testing.assert_allclose((used.mean, used.std), expected, rtol=1e-6)
    told = json.loads((run.folder / "results.json").read_text())["normalization"]
    assert (tuple(told["mean"]), tuple(told["std"])) == (used.mean, used.std)
    (note,) = [line for line in caplog.messages if line.startswith("images are normalised with")]
    assert told["origin"] in note
    assert ("give --mean and --std" in note) is (not options)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_checkpoint_brings_its_own(file: str, runs: dict[str, TrainResult], photos: Path, tmp_path: Path) -> None:
    best = runs["linear"].best
    data = load_data(photos, image_size=16, limit=20).normalized((0.1,) * 3, (0.9,) * 3)
    run = train(data, tmp_path / "run", ModelConfig("tiny"), dataclasses.replace(ONE_EPOCH, weights=str(best / file)))
    theirs = load_checkpoint(best).preprocessing
    ours = load_checkpoint(run.best).preprocessing
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)


@pytest.mark.parametrize(
    ("channels", "options", "mean", "std"),
    [
        (3, {}, GREY_MEAN, GREY_STD),
        (3, {"normalize": "imagenet"}, GREY_MEAN, GREY_STD),
        (1, {}, None, None),
        (1, {"mean": (0.5,), "std": (0.5,)}, (0.5,), (0.5,)),
    ],
)
def test_grey_images(channels: int, options: Any, mean: Any, std: Any, tmp_path: Path, caplog: Any) -> None:
    data = load_data("digits", limit=100, **options)
    recipe = dataclasses.replace(ONE_EPOCH, weights=state_dict(tmp_path, channels=channels)["pth"])
    used = load_checkpoint(train(data, tmp_path / "run", MODEL, recipe).best).preprocessing
    expected = measured(data) if mean is None else (mean, std)
    np.testing.assert_allclose((used.mean, used.std), expected, rtol=1e-6)
    assert any("as" in line and "net.pth does not tell" in line for line in caplog.messages) is (not options)


def test_a_backbone_for_which_torchvision_takes_others() -> None:
    """EfficientNetV2-L was trained with 0.5, all others with ImageNet's."""
    assert published_statistics("efficientnet_v2_l").mean == (0.5, 0.5, 0.5)
    assert published_statistics("resnet18").mean == MEAN
    assert make_preprocessing(backbone="efficientnet_v2_l").std == (0.5, 0.5, 0.5)
    assert make_preprocessing(backbone="resnet18").std == STD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,)}, "mean is given without std; give both"),
        ({"std": (0.5, 0.5, 0.5)}, "std is given without mean; give both"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean has 2 values; expected one value, or one for each of 3 channels"),
        ({"mean": (), "std": (0.5,)}, "mean has 0 values; expected one value"),
        ({"mean": (0.5,), "std": (0.5,) * 4}, "std has 4 values; expected one value"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "mean is 123.7 116.3 103.5; expected 0 to 1, in"),
        ({"mean": (0.5,), "std": (0.0,)}, "std is 0.0; expected 1e-06 to 1"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "mean is nan; expected 0 to 1"),
        ({"mean": (0.5,), "std": (0.5,), "normalize": "imagenet"}, "normalize and mean are given; give one of them"),
        ({"normalize": "caffe"}, "unknown normalize 'caffe'; choose from imagenet, dataset"),
        ({"fit": "stretch"}, "unknown fit 'stretch'; choose from crop, pad, squash"),
        ({"fit": "pad", "background": None}, "background is None with fit pad; give a colour to pad with"),
        ({"background": (0, 0)}, "background is 0 0; expected 0 to 255, one value or red, green and blue"),
        ({"background": (256,)}, "background is 256; expected 0 to 255"),
        ({"image_size": (8, 8, 3)}, "image_size has 3 numbers; expected one, or height and width"),
        ({"image_size": (8, 0)}, "image_size is 0; expected 1 to 7071"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataConfig("photos", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (0.5,) * 3, "std": (0.5,)}, "mean has 3 values; expected one value for grey images"),
        ({"background": (1, 2, 3)}, "background has 3 values; expected one value for grey images"),
    ],
)
def test_colours_are_refused_for_grey_images(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_data("digits", **options)


@pytest.mark.parametrize(
    ("words", "options", "background"),
    [
        (None, {}, (255,)),
        (["none"], {}, None),
        (["None"], {"fit": "squash"}, None),
        (["0", "128", "255"], {"fit": "pad"}, (0, 128, 255)),
        (["7"], {"mean": [0.5], "std": [0.5]}, (7,)),
    ],
)
def test_an_import_takes_fit_and_background(words: Any, options: dict[str, Any], background: Any) -> None:
    made = make_preprocessing([8, 12], background=words, **options)
    assert (made.height, made.width, made.background, made.fit) == (8, 12, background, options.get("fit", "crop"))
    assert made.channels == (1 if "mean" in options else 3)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["256"], {}, "--background is 256; expected 0 to 255, one value, or red, green and blue, or none"),
        (["white"], {}, "--background is white; expected 0 to 255"),
        (["1", "2"], {}, "--background is 1 2; expected 0 to 255"),
        (
            ["1", "2", "3"],
            {"mean": [0.5], "std": [0.5]},
            "--background is 1 2 3; expected 0 to 255, one value for grey",
        ),
        (["none"], {"fit": "pad"}, "got --fit pad and --background none; give a colour to pad with"),
    ],
)
def test_an_import_refuses_other_backgrounds(words: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_preprocessing(background=words, **options)


def test_frozen_embeddings_are_kept_by_normalisation(photos: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    recipe = dataclasses.replace(
        ONE_EPOCH, weights=state_dict(tmp_path)["pth"], freeze_backbone=True, embedding_cache=str(cache)
    )
    counts = []
    for number, mean in enumerate((0.5, 0.4, 0.5)):
        data = load_data(photos, image_size=16, limit=20, mean=(mean,), std=(0.5,))
        train(data, tmp_path / f"run-{number}", MODEL, recipe)
        counts.append(len(list(cache.iterdir())))
    assert counts == [3, 6, 6]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"background": None}, ""),
        ({}, r"data.background: was None, now \[255\]"),
        ({"background": None, "fit": "squash"}, "data.fit: was crop, now squash"),
        ({"background": None, "mean": (0.5,), "std": (0.5,)}, r"data.mean: was \[0"),
    ],
)
def test_a_run_of_an_earlier_version_is_resumed_with_the_pixels_that_it_saw(
    options: dict[str, Any], changed: str, photos: Path
) -> None:
    def of(**options: Any) -> str:
        return identity(load_data(photos, image_size=16, limit=20, **options), MODEL, ONE_EPOCH)

    earlier = json.loads(of(background=None))
    for name in ("fit", "background"):
        del earlier["preprocessing"][name]
    if not changed:
        refuse_other(of(**options), json.dumps(earlier), "run")
        return
    with pytest.raises(UsageError, match=changed):
        refuse_other(of(**options), json.dumps(earlier), "run")
