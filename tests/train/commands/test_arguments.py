from __future__ import annotations

import io
import re
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tnn_runtime import UsageError
from tnn_train import TrainConfig, TverskyConfig
from tnn_train.commands.arguments import _IN_SHORT_HELP, Configuration, option, parse
from tnn_train.data import DataConfig
from tnn_train.fields import Field


@dataclass(frozen=True, kw_only=True)
class Options(Configuration):
    """Some command.

    Args:
        config: A file.
    """

    config: Path | None = None


def read(*arguments: str) -> Options:
    return parse(Options, "tnn-train", "Train.", arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "photos.toml"
    path.write_text(
        """
        [data]
        source = "photos"
        limit = 100

        [model]
        head = "linear"

        [model.tversky]
        num_features = 8
        fixed = ["alpha"]
        alpha = 1

        [train]
        epochs = 3
        clip_norm = 1
        augment = ["crop", "flip"]
        compile = true
        """
    )
    return path


def test_a_file_replaces_the_defaults(file: Path) -> None:
    options = read("--config", str(file))
    assert (options.data.source, options.data.limit, options.data.root) == ("photos", 100, "data")
    assert options.model.head == "linear"
    assert options.model.tversky == TverskyConfig(num_features=8, fixed=("alpha",), alpha=1.0)
    assert options.train == TrainConfig(epochs=3, clip_norm=1.0, augment=("crop", "flip"), compile=True)
    assert options.config == file


def test_options_come_before_the_file(file: Path) -> None:
    options = read(
        *("--config", str(file), "--data", "digits", "--epochs", "7", "--tversky.num-features", "9", "--no-compile"),
        *("--augment", "None", "--head", "tversky", "--clip-norm", "None"),
    )
    assert (options.data.source, options.data.limit) == ("digits", 100)
    assert options.model.head == "tversky"
    assert options.model.tversky == TverskyConfig(num_features=9, fixed=("alpha",), alpha=1.0)
    assert options.train == TrainConfig(epochs=7)


def test_a_file_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\x8c\x00\xff")
    with pytest.raises(UsageError, match=r"bytes.toml cannot be read \(line 1 is not UTF-8"):
        read("--config", str(tmp_path / "bytes.toml"), "--data", "digits")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\); expected a TOML file"):
        read("--config", str(tmp_path), "--data", "digits")


def test_every_option_of_a_field_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help-all")
    text = capsys.readouterr().out
    for config in (DataConfig, TrainConfig, TverskyConfig):
        for field in fields(config):
            if field.name in ("attributes", "dropped", "names"):
                continue  # found by the training, or given by an edit
            assert f"{option(Field(config, field.name))} " in text.replace(",", " "), field.name
    for config, names in _IN_SHORT_HELP.items():
        assert {field.name for field in fields(config)} > set(names)
    assert option(Field(DataConfig, "source")) == "--data"
    assert option(Field(DataConfig, "root")) == "--data-root"


def test_no_file_is_needed() -> None:
    options = read("--data", "digits", "--split-seed", "3", "--seed", "4", "--data-root", "x")
    assert (options.data.source, options.data.seed, options.data.root, options.train.seed) == ("digits", 3, "x", 4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[data]\nsource = 'x'\nsplit_seed = 3", DataConfig("x", seed=3)),
        ("[data]\nsource = 'x'\nsplit-seed = 3", DataConfig("x", seed=3)),
        ("[data]\ndata = 'x'", DataConfig("x")),
        ("[data]\ndata = 'x'\ndata_root = 'y'", DataConfig("x", "y")),
        ("data.data = 'x'\ndata.data-root = 'y'", DataConfig("x", "y")),
        ("[data]\nsource = 'x'\nroot = 'y'\nseed = 3", DataConfig("x", "y", seed=3)),
    ],
)
def test_a_file_has_the_names_of_options_or_of_fields(content: str, expected: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "names.toml").write_text(content)
    assert read("--config", str(tmp_path / "names.toml")).data == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model]\nnum_classes = 7", r"model.num_classes follows from the images and the training; leave it out"),
        ("[model]\nin_channels = 1", "model.in_channels follows from"),
        ("[model.tversky]\nattributes = []", "model.tversky.attributes follows from"),
        ("epochs = 3", "unknown name 'epochs'; did you mean 'train.epochs'?; known are data, model, train"),
        ("[model]\nepochs = 3", "model: unknown name 'epochs'; did you mean 'train.epochs'?; known are backbone, head"),
        ("[tversky]\nalpha = 3", "unknown name 'tversky'; did you mean 'model.tversky'?"),
        ("[data]\nsplit_sed = 3", "data: unknown name 'split_sed'; did you mean 'split_seed'?"),
        ("[data]\nseed = 3\nsplit_seed = 3", "data: 'seed' and 'split_seed' are names of one option; give one of them"),
        ("[train]\nbatch_size = 4\nbatch-size = 4", "'batch_size' and 'batch-size' are names of one option"),
    ],
)
def test_a_name_that_means_nothing_there_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read("--config", str(tmp_path / "bad.toml"), "--data", "digits")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nepoch = 3", "train: unknown name 'epoch'; did you mean 'epochs'"),
        ("[training]\nepochs = 3", "did you mean 'train'"),
        ("[train]\nepochs = 'three'", "train.epochs: expected int, got 'three'"),
        ("[train]\nlearning_rate = 'x'", "train.learning_rate: expected a number, got 'x'"),
        ("[train]\nclip_norm = 'x'", "train.clip_norm: expected a number, got 'x'"),
        ("[train]\naugment = 'crop'", "train.augment: expected a list, got 'crop'"),
        ("[train]\nepochs = 0", "train.epochs is 0; expected an integer of at least 1"),
        ("[model.tversky]\nmodel = 'x'", r"bad.toml cannot be used \(unknown model.tversky.model 'x'; choose from"),
        ("[data]\nsource = 'x'\nseed = -1", "data.seed is -1; expected 0 to"),
        ("[data]\nlimit = 5", "data: expected a value for source"),
        ("train = 3", "train: expected an object"),
        ("[train", "bad.toml cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        read("--config", str(path), "--data", "digits")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "expected one argument; see tnn-train --help"),
        (["--config", "nowhere.toml"], "nowhere.toml cannot be read (No such file or directory); expected a TOML file"),
        (["--data", "x", "--epocs", "3"], "Unrecognized options: --epocs, 3 Perhaps you meant: --epochs INT; see"),
        (["--data", "x", "--epochs", "3", "4"], "'4' belongs to no option; the option before it takes fewer values"),
        (["--data", "x", "y z"], "'y z' belongs to no option"),
        (["--data", "x", "--limit", "5", "6", "7"], "'6, 7' belongs to no option"),
        (["--data", "x", "--alpha", "3"], "Perhaps you meant: --tversky.alpha"),
        ([], "Missing from tnn-train: --data STR; see tnn-train --help"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_options_that_cannot_be_used(
    arguments: list[str], message: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    with pytest.raises(UsageError) as error:
        read(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


PIXELS = [
    ("--image-size 24 48", "image_size = [24, 48]", {"image_size": (24, 48)}),
    ("--image-size 24 24", "image_size = 24", {"image_size": 24}),
    ("--background 0 9 255", "background = [0, 9, 255]", {"background": (0, 9, 255)}),
    ("--background 7 --fit pad", 'background = [7]\nfit = "pad"', {"background": (7,), "fit": "pad"}),
    ("--mean 0.5 --std 0.1 0.2 1", "mean = [0.5]\nstd = [0.1, 0.2, 1]", {"mean": (0.5,), "std": (0.1, 0.2, 1.0)}),
    ("--normalize imagenet", 'normalize = "imagenet"', {"normalize": "imagenet"}),
    ("--limit 9", "limit = 9", {"limit": 9, "fit": "crop", "background": (255,)}),
]


@pytest.mark.parametrize(("options", "content", "expected"), PIXELS)
def test_pixels_are_chosen_on_the_command_line_and_in_a_file(
    options: str, content: str, expected: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "photos.toml").write_text(f'[data]\nsource = "photos"\n{content}\n')
    given = read("--data", "photos", *options.split()).data
    assert given == read("--config", str(tmp_path / "photos.toml")).data == DataConfig("photos", **expected)
