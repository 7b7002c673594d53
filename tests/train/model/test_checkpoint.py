from __future__ import annotations

import json
from pathlib import Path

import forked
import killable
import numpy as np
import pytest
import torch

from tnn_export import export_bundle
from tnn_runtime import ArtifactError, OutputExistsError
from tnn_train import Checkpoint, ModelConfig, load_checkpoint, save_checkpoint
from tnn_train.model.checkpoint import load_trainer_state
from tnn_train.training.loop import TrainResult

FILES = ("config.json", "model.safetensors", "samples.npz", "trainer_state.pt")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_checkpoint_holds_what_was_saved(runs: dict[str, TrainResult], tmp_path: Path) -> None:
    for run in runs.values():
        one = load_checkpoint(run.best)
        save_checkpoint(tmp_path / "copy", one, overwrite=True)
        other = load_checkpoint(tmp_path / "copy")
        assert (one.config, one.preprocessing, one.class_names) == (
            other.config,
            other.preprocessing,
            other.class_names,
        )
        assert one.metrics == other.metrics
        assert np.array_equal(one.samples, other.samples)
        images = torch.randn(3, 3, 16, 16)
        assert torch.equal(one.model(images), other.model(images))
        assert not other.model.training


def test_it_is_weights_and_readable_json(checkpoint: Path) -> None:
    assert sorted(path.name for path in checkpoint.iterdir()) == sorted(FILES)
    content = json.loads((checkpoint / "config.json").read_text())
    assert content["class_names"] == ["cat", "dog"]
    assert content["model"]["head"] == "tversky"
    assert set(content["metrics"]) >= {"epoch", "val_accuracy"}
    assert torch.__version__.startswith(content["versions"]["torch"])


def test_an_existing_folder_is_kept_unless_overwriting(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    with pytest.raises(OutputExistsError, match="already exists; choose another output folder or pass --overwrite"):
        save_checkpoint(checkpoint, loaded)


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_checkpoint(checkpoint)

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tnn_train.model.checkpoint.torch.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(checkpoint, loaded, {"epoch": 1}, overwrite=True)
    load_checkpoint(checkpoint)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_kill_between_the_two_renames_leaves_the_old_checkpoint(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    checkpoint.rename(checkpoint.parent / f".{checkpoint.name}.previous")
    assert load_checkpoint(checkpoint).metrics == loaded.metrics
    save_checkpoint(checkpoint, loaded, overwrite=True)
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(checkpoint: Path) -> None:
    result = forked.run(killable.save_again, checkpoint)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 20


class TestBadInput:
    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(
            ArtifactError, match=r"nowhere does not exist; expected a checkpoint folder with config.json"
        ):
            load_checkpoint(tmp_path / "nowhere")

    def test_another_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"has no config.json"):
            load_checkpoint(tmp_path)

    @pytest.mark.parametrize("name", FILES[1:])
    def test_missing_file(self, checkpoint: Path, name: str) -> None:
        (checkpoint / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name} is missing"):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", FILES[1:])
    def test_truncated_file(self, checkpoint: Path, name: str) -> None:
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(content[:-7])
        with pytest.raises(
            ArtifactError, match=f"{name} has {len(content) - 7} bytes where {len(content)} were recorded"
        ):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize("name", FILES[1:])
    def test_altered_file(self, checkpoint: Path, name: str) -> None:
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name} does not match its recorded SHA-256"):
            load_checkpoint(checkpoint)

    def test_newer_schema(self, checkpoint: Path) -> None:
        edit(checkpoint, schema_version=99)
        with pytest.raises(ArtifactError, match="schema version 99, and this installation reads up to 2; upgrade"):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema_version": "1"}', '{"schema_version": 1}'])
    def test_config_that_is_none(self, checkpoint: Path, content: str) -> None:
        (checkpoint / "config.json").write_text(content)
        with pytest.raises(ArtifactError):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": {"backbone": "resnet18"}},
            {"model": None},
            {"preprocessing": {"height": 16}},
            {"class_names": None},
            {"class_names": ["cat"]},
            {"class_names": "ab"},
            {"model": ["backbone", "head"]},
            {"metrics": 3},
            {"files": {"../model.safetensors": {"size": 1, "sha256": ""}}},
            {"files": {"model.safetensors": 3, "samples.npz": 4}},
        ],
        ids=str,
    )
    def test_edited_config(self, checkpoint: Path, changes: dict[str, object]) -> None:
        edit(checkpoint, **changes)
        with pytest.raises(ArtifactError):
            load_checkpoint(checkpoint)

    @pytest.mark.parametrize(
        ("part", "name", "value"),
        [
            ("model", "tversky", None),
            ("model", "tversky", "x"),
            ("model", "num_classes", 3),
            ("model", "num_classes", True),
            ("model", "in_channels", 1),
            ("model", "backbone", "vgg"),
            ("preprocessing", "height", 16.0),
            ("preprocessing", "height", 17),
            ("preprocessing", "std", [1e-300] * 3),
            ("preprocessing", "mean", [10**400] * 3),
        ],
    )
    def test_edited_fields(self, checkpoint: Path, part: str, name: str, value: object) -> None:
        content = json.loads((checkpoint / "config.json").read_text())
        edit(checkpoint, **{part: {**content[part], name: value}})
        with pytest.raises(ArtifactError, match="not a checkpoint that this version can read"):
            load_checkpoint(checkpoint)

    def test_weights_of_another_model(self, runs: dict[str, TrainResult], tmp_path: Path) -> None:
        linear = load_checkpoint(runs["linear"].best)
        wrong = ModelConfig(backbone="tiny", num_classes=2)
        save_checkpoint(
            tmp_path / "wrong",
            Checkpoint(linear.model, wrong, linear.preprocessing, linear.class_names, linear.samples),
        )
        with pytest.raises(ArtifactError, match="not a checkpoint that this version can read"):
            load_checkpoint(tmp_path / "wrong")

    def test_best_has_no_trainer_state(self, runs: dict[str, TrainResult]) -> None:
        with pytest.raises(ArtifactError, match=r"was saved without trainer_state.pt; this training cannot be resumed"):
            load_trainer_state(runs["tversky"].best)


def test_a_checkpoint_from_before_an_option_has_its_default(checkpoint: Path) -> None:
    expected = load_checkpoint(checkpoint)
    model = json.loads((checkpoint / "config.json").read_text())["model"]
    for name in ("membership", "num_prototypes", "fixed", "normalize"):
        del model["tversky"][name]
    edit(checkpoint, model=model)
    assert load_checkpoint(checkpoint).config == expected.config
    edit(checkpoint, model={**model, "tversky": {**model["tversky"], "colour": 1}})
    with pytest.raises(ArtifactError, match="config.model.tversky: unknown name 'colour'; known are num_features, "):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("conv2.weight", float("nan"), "NaN or infinite"),
        ("running_var", float("inf"), "NaN or infinite"),
        ("running_var", -1.0, "below 0"),
    ],
)
def test_weights_that_nothing_can_be_computed_with_are_named(
    name: str, value: float, what: str, runs: dict[str, TrainResult], tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(runs["linear"].best)
    state = checkpoint.model.state_dict()
    place = next(full for full in state if full.endswith(name))
    with torch.no_grad():
        state[place].view(-1)[0] = value
    save_checkpoint(tmp_path / "broken", checkpoint)
    for refuse in (lambda: load_checkpoint(tmp_path / "broken"), lambda: export_bundle(checkpoint, tmp_path / "out")):
        with pytest.raises(ArtifactError, match=f"cannot be used: 1 of .* values of {place} are {what}"):
            refuse()
