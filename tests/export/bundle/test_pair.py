from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tnn_export.__main__ import main
from tnn_export.bundle import pair
from tnn_runtime import Classifier, Manifest
from tnn_train import ModelConfig, TverskyConfig, load_checkpoint
from tnn_train.model.image_model import Normalize

ARGUMENTS = ["pair", "--backbone", "tiny", "--size", "16", "--formats", "onnx"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with its checkpoints; read only."""
    folder = tmp_path_factory.mktemp("pair") / "pair"
    form = ["--classes", "5", "--num-features", "12", "--difference", "ignorematch"]
    assert main([*ARGUMENTS, *form, "--keep-checkpoints", "-o", str(folder)]) == 0
    return folder


def test_both_have_the_same_backbone_and_their_own_heads(made: Path) -> None:
    names = {"tversky", "linear", "tversky-checkpoint", "linear-checkpoint", "pair.json"}
    assert {path.name for path in made.iterdir()} == names
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    embeddings, logits = {}, {}
    for head in ("tversky", "linear"):
        with Classifier.load(made / head, "cpu") as classifier:
            assert classifier.info["head"] == head
            embeddings[head], logits[head] = classifier.embed(images), classifier.logits(images)
        manifest, _ = Manifest.read(made / head)
        assert manifest.parity["onnx"]["passed"]
        assert "real" not in manifest.parity["onnx"]["samples"]
        assert sum(manifest.parity["onnx"]["samples"].values()) > 10
    np.testing.assert_array_equal(embeddings["tversky"], embeddings["linear"])
    assert logits["linear"].shape == (4, 5)
    assert np.abs(logits["tversky"] - logits["linear"]).max() > 0.1
    form = Manifest.read(made / "tversky")[0].model["tversky"]
    assert (form["num_features"], form["difference"], form["intersection"]) == (12, "ignorematch", "product")
    content = json.loads((made / "pair.json").read_text())
    assert (content["seed"], content["size"], content["model"]["head"]) == (0, 16, ["tversky", "linear"])


def test_the_checkpoints_are_what_was_exported(made: Path) -> None:
    for head in ("tversky", "linear"):
        checkpoint = load_checkpoint(made / f"{head}-checkpoint")
        with np.load(made / head / "golden.npz") as golden, torch.no_grad():
            found = checkpoint.model(Normalize(checkpoint.preprocessing)(torch.from_numpy(golden["images"])))
            np.testing.assert_allclose(found.numpy(), golden["logits"], rtol=1e-5, atol=1e-5)


def test_the_card_says_that_the_weights_are_untrained(made: Path) -> None:
    for head in ("tversky", "linear"):
        card = (made / head / "README.md").read_text()
        assert "**The weights are untrained**: they were drawn with the seed 0." in card
        assert Manifest.read(made / head)[0].training == {"untrained": True, "seed": 0}


def test_the_seed_decides_all_weights() -> None:
    config = ModelConfig("tiny", num_classes=3)
    before = torch.random.get_rng_state()
    states = [pair.make_pair(config, 16, seed)["tversky"].model.state_dict() for seed in (0, 0, 1)]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.feature_bank"], states[2]["head.feature_bank"])


def test_deep_networks_neither_explode_nor_vanish() -> None:
    for checkpoint in pair.make_pair(ModelConfig("resnet50", num_classes=20, stem="imagenet"), 64).values():
        assert not any(module.training for module in checkpoint.model.modules())
        images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
        inputs = Normalize(checkpoint.preprocessing)(torch.from_numpy(images))
        with torch.no_grad():
            embeddings = checkpoint.model.backbone(inputs)
            logits = checkpoint.model.head(embeddings)
            moved = checkpoint.model.backbone(inputs + 1e-3 * torch.randn_like(inputs))
        assert 0.1 < embeddings.abs().mean() < 10
        assert 0.05 < logits.std(1).mean() < 50
        assert (moved - embeddings).norm() < 2e-3 * embeddings.norm()


def test_an_existing_pair_is_kept_unless_overwriting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*ARGUMENTS, "--classes", "2", "-o", str(tmp_path / "pair")]
    assert main(arguments) == 0
    assert f"next: tnn-runtime bench {tmp_path / 'pair' / 'tversky'}" in capsys.readouterr().out
    assert not (tmp_path / "pair" / "tversky-checkpoint").exists()
    assert main(arguments) == 1
    assert "already exists; choose another output folder or pass --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--seed", "1"]) == 0
    assert json.loads((tmp_path / "pair" / "pair.json").read_text())["seed"] == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "tversky").touch()
    assert main([*arguments[:-1], str(other), "--overwrite"]) == 1
    assert "has no pair.json, so it is something else and is not overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --backbone, --classes, -o/--out"),
        (["--backbone", "resnet51", "--classes", "2"], "unknown backbone 'resnet51'; the nearest are"),
        (["--backbone", "tiny", "--classes", "1"], "--classes is 1; expected an integer of at least 2"),
        (["--backbone", "tiny", "--classes", "2", "--channels", "2"], "unknown --channels 2; choose from 1, 3"),
        (["--backbone", "tiny", "--classes", "2", "--num-features", "0"], "--num-features is 0; expected an integer"),
        (["--backbone", "tiny", "--classes", "2", "--num-prototypes", "0"], "--num-prototypes is 0; expected"),
        (["--backbone", "tiny", "--classes", "2", "--intersection", "sum"], "unknown --intersection 'sum'; choose"),
        (["--backbone", "tiny", "--classes", "2", "--stem", "big"], "unknown --stem 'big'; choose from"),
        (
            ["--backbone", "tiny", "--classes", "2", "--size", "0"],
            "has the size 0x0; expected 1x1 up to 50000000 pixels",
        ),
        (
            ["--backbone", "tiny", "--classes", "2", "--size", "99999"],
            "has the size 99999x99999; expected 1x1 up to 50000000",
        ),
        (["--backbone", "tiny", "--classes", "2", "--seed", "-1"], "the seed is -1; expected an integer of at least 0"),
        (["--backbone", "tiny", "--classes", "2", "--size", "2"], "does not take images of 2x2 pixels; expected"),
        (["--backbone", "tiny", "--classes", "2", "--precision", "fp8"], "unknown precision 'fp8'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_1(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pair", *arguments, *(["-o", str(tmp_path / "pair")] if arguments else [])]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-export: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pair", "--help"])
    assert "tnn-export pair --backbone resnet50 --classes 1000 -o runs/pair" in capsys.readouterr().out


def test_a_head_has_the_form_that_a_training_from_scratch_leaves() -> None:
    unfolded = pair.make_pair(ModelConfig("tiny", num_classes=12), 16)["tversky"]
    assert len(unfolded.config.tversky.attributes) == 21
    assert unfolded.config.tversky == unfolded.model.head.options
    chosen = TverskyConfig(num_features=10, intersection="min")
    other = pair.make_pair(ModelConfig("tiny", num_classes=12, tversky=chosen), 16)["tversky"]
    assert other.config.tversky == dataclasses.replace(chosen, start="random")
