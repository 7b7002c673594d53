from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from tnn_runtime import ArtifactError, UsageError
from tnn_train import ModelConfig, build_model, load_checkpoint
from tnn_train.model.backbones import BACKBONES
from tnn_train.model.image_model import ImageModel
from tnn_train.model.weights import load_weights, resolve_stem
from tnn_train.statistics import IMAGENET, Statistics
from tnn_train.training.loop import TrainResult

TINY = ModelConfig("tiny", stem="imagenet")
SMALLEST = "shufflenet_v2_x0_5"


def weights(name: str = "tiny", seed: int = 1) -> dict[str, Tensor]:
    """Return what a training of the whole classifier would have saved, its last layer included."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = BACKBONES[name]().state_dict()
    return {key: value + torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def write(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def assert_loaded(model: ImageModel, expected: dict[str, Tensor]) -> None:
    state = model.backbone.state_dict()
    assert state
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


class TestFiles:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: state,
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"model": state, "args": ["resnet"]},
            lambda state: {f"module.{name}": value for name, value in state.items()},
            lambda state: {"model": {f"module.backbone.{name}": value for name, value in state.items()}},
            lambda state: {**{f"backbone.{name}": value for name, value in state.items()}, "head.bank": torch.ones(2)},
            lambda state: {name: value for name, value in state.items() if "num_batches_tracked" not in name},
            lambda state: {name: value for name, value in state.items() if not name.startswith("fc.")},
        ],
    )
    def test_a_file_is_read_however_it_is_wrapped(
        self, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
    ) -> None:
        model, state = build_model(TINY), weights()
        head = {name: value.clone() for name, value in model.head.state_dict().items()}
        assert load_weights(model, TINY, write(tmp_path / "weights.pth", wrap(state))) == IMAGENET
        assert_loaded(model, state)
        assert all(torch.equal(value, head[name]) for name, value in model.head.state_dict().items())

    def test_safetensors(self, tmp_path: Path) -> None:
        model, state = build_model(TINY), weights()
        save_file(state, tmp_path / "weights.safetensors")
        assert load_weights(model, TINY, str(tmp_path / "weights.safetensors")) == IMAGENET
        assert_loaded(model, state)

    def test_the_file_of_a_checkpoint(self, runs: dict[str, TrainResult]) -> None:
        best, config = runs["ratio"].best, ModelConfig("tiny")
        model = build_model(config)
        load_weights(model, config, str(best / "model.safetensors"))
        assert_loaded(model, dict(load_checkpoint(best).model.backbone.state_dict()))

    def test_a_torchvision_resnet_gives_the_same_embeddings(self, tmp_path: Path) -> None:
        torch.manual_seed(1)
        classifier = torchvision.models.resnet18()
        config = ModelConfig("resnet18", stem="imagenet", num_classes=4)
        model = build_model(config)
        load_weights(model, config, write(tmp_path / "resnet18.pth", classifier.state_dict()))
        classifier.fc = nn.Identity()
        images = torch.randn(2, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(model.backbone.eval()(images), classifier.eval()(images))

    def test_grey_images_get_the_sum_of_the_channels(self, tmp_path: Path) -> None:
        source = write(tmp_path / "weights.pth", weights())
        grey = ModelConfig("tiny", stem="imagenet", in_channels=1)
        models = {1: build_model(grey).eval(), 3: build_model(TINY).eval()}
        load_weights(models[1], grey, source)
        load_weights(models[3], TINY, source)
        images = torch.randn(2, 1, 16, 16)
        with torch.inference_mode():
            embeddings = models[1].backbone(images)
            torch.testing.assert_close(embeddings, models[3].backbone(images.expand(-1, 3, -1, -1)))

    def test_densenets_of_old(self, tmp_path: Path) -> None:
        state = weights("densenet121")
        old = {
            name.replace("norm1", "norm.1").replace("conv2", "conv.2") if "denselayer" in name else name: value
            for name, value in state.items()
            if "num_batches" not in name
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        config = ModelConfig("densenet121")
        model = build_model(config)
        load_weights(model, config, write(tmp_path / "densenet.pth", old))
        assert_loaded(model, state)


class TestCheckpoints:
    def test_another_count_of_classes(self, runs: dict[str, TrainResult]) -> None:
        config = ModelConfig("tiny", num_classes=7)
        model = build_model(config)
        checkpoint = load_checkpoint(runs["linear"].best)
        statistics = load_weights(model, config, str(runs["linear"].best))
        assert statistics == Statistics(checkpoint.preprocessing.mean, checkpoint.preprocessing.std)
        assert_loaded(model, dict(checkpoint.model.backbone.state_dict()))

    def test_another_backbone(self, runs: dict[str, TrainResult]) -> None:
        with pytest.raises(UsageError, match="best has the backbone tiny; expected resnet18"):
            load_weights(build_model(ModelConfig()), ModelConfig(), str(runs["linear"].best))

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"has no config\.json; expected a checkpoint folder"):
            load_weights(build_model(TINY), TINY, str(tmp_path))


class TestImageNet:
    @pytest.mark.parametrize("name", [SMALLEST, "mnasnet0_5"])
    def test_a_file_that_lies_where_the_download_would(self, hub: Path, name: str) -> None:
        file = torchvision.models.get_model_weights(name).DEFAULT.url.rpartition("/")[-1]
        state = weights(name)
        write(hub / file, state)
        config = ModelConfig(name, num_classes=3)
        model = build_model(config)
        assert load_weights(model, config, "imagenet") == Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert_loaded(model, state)

    def test_the_statistics_of_grey_images(self, hub: Path) -> None:
        write(hub / "shufflenetv2_x0.5-f707e7126e.pth", weights(SMALLEST))
        config = ModelConfig(SMALLEST, in_channels=1)
        statistics = load_weights(build_model(config), config, "imagenet")
        assert statistics is not None
        assert statistics.mean == pytest.approx((0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406,))
        assert statistics.std == pytest.approx((0.299 * 0.229 + 0.587 * 0.224 + 0.114 * 0.225,))

    def test_the_download_is_checked_and_runs_no_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def load(url: str, **options: Any) -> dict[str, Tensor]:
            asked.update(options)
            return weights(SMALLEST)

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
        load_weights(build_model(ModelConfig(SMALLEST)), ModelConfig(SMALLEST), "imagenet")
        assert asked["check_hash"] is True
        assert asked["weights_only"] is True

    def test_without_internet_the_error_says_which_file_goes_where(self, hub: Path) -> None:
        place = hub / "shufflenetv2_x0.5-f707e7126e.pth"
        for reason in ("no route to host", "EOFError"):
            with pytest.raises(ArtifactError, match=f"{place.name} could not be loaded .*{reason}.* put it at {place}"):
                load_weights(build_model(ModelConfig(SMALLEST)), ModelConfig(SMALLEST), "imagenet")
            place.write_bytes(b"")

    @pytest.mark.parametrize("stem", ["small", "auto"])
    def test_the_small_stem_is_refused_before_the_download(self, hub: Path, stem: str) -> None:
        config = ModelConfig(stem=stem)
        with pytest.raises(UsageError, match=r"do not fit the small stem; choose --stem imagenet"):
            load_weights(build_model(config), config, "imagenet")

    def test_weights_with_a_licence_of_their_own(self) -> None:
        config = ModelConfig("vit_h_14")
        with torch.device("meta"):
            model = build_model(config)
        with pytest.raises(UsageError, match="vit_h_14 have a licence of their own .*SWAG.*download them and give the"):
            load_weights(model, config, "imagenet")

    def test_a_backbone_that_torchvision_does_not_have(self) -> None:
        config = ModelConfig("tiny", stem="imagenet")
        model = build_model(config)
        model.backbone.conv1 = nn.Conv2d(3, 64, 5)
        with pytest.raises(UsageError, match="torchvision has no weights for backbone tiny"):
            load_weights(model, config, "imagenet")


class TestRefusals:
    def test_a_run_is_no_checkpoint(self, runs: dict[str, TrainResult]) -> None:
        folder = runs["linear"].folder
        with pytest.raises(UsageError, match="is a run; give one of its checkpoints: .*linear/best"):
            load_weights(build_model(TINY), TINY, str(folder))

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            ({"conv2.weight": None}, r"\(1 missing: conv2.weight\); choose the backbone and the stem"),
            (
                {name: torch.ones(1) for name in ("a", "b", "c", "d")},
                r"\(4 unexpected: a, b, c, \.\.\.\)",
            ),
            (
                {"conv1.bias": torch.ones(3), "norm.bias": None},
                r"\(1 missing: norm.bias; 1 of another shape: conv1.bias \[3\] for \[64\]\)",
            ),
        ],
    )
    def test_weights_that_do_not_fit_leave_the_model_as_it_was(
        self, spoil: dict[str, Tensor | None], message: str, tmp_path: Path
    ) -> None:
        model = build_model(TINY)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        state = {name: value for name, value in {**weights(), **spoil}.items() if value is not None}
        with pytest.raises(UsageError, match=f"weights.pth do not fit backbone tiny {message}"):
            load_weights(model, TINY, write(tmp_path / "weights.pth", state))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_grey_weights_for_colour(self, tmp_path: Path) -> None:
        state = {**weights(), "conv1.weight": torch.ones(64, 1, 3, 3)}
        with pytest.raises(UsageError, match=r"1 of another shape: conv1.weight \[64, 1, 3, 3\] for \[64, 3, 3, 3\]"):
            load_weights(build_model(TINY), TINY, write(tmp_path / "weights.pth", state))

    def test_what_does_not_exist(self) -> None:
        with pytest.raises(UsageError, match=r"weights 'imagenet1k' do not exist; expected imagenet, a \.pth, "):
            load_weights(build_model(TINY), TINY, "imagenet1k")

    @pytest.mark.parametrize(
        ("name", "content"),
        [("a.pth", b""), ("a.pth", b"text"), ("a.pt", b"PK\x03\x04" + bytes(99)), ("a.safetensors", b"\x08" * 20)],
    )
    def test_what_is_no_file_of_weights(self, name: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=f"{name} cannot be read .*nothing but tensors"):
            load_weights(build_model(TINY), TINY, str(tmp_path / name))

    def test_a_file_that_would_run_code(self, tmp_path: Path) -> None:
        source = write(tmp_path / "model.pth", BACKBONES["tiny"]())
        with pytest.raises(ArtifactError, match=r"objects of .*TinyNet, which are not loaded"):
            load_weights(build_model(TINY), TINY, source)

    @pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"conv1.weight": 1}}])
    def test_a_file_without_a_state_dict(self, content: Any, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match="holds no state dict; expected tensors by name"):
            load_weights(build_model(TINY), TINY, write(tmp_path / "weights.pth", content))


class TestStem:
    @pytest.mark.parametrize(
        ("config", "side", "source", "expected"),
        [
            (ModelConfig(), 95, None, "small"),
            (ModelConfig(), 96, None, "imagenet"),
            (ModelConfig(), 32, "imagenet", "imagenet"),
            (ModelConfig(stem="small"), 224, "imagenet", "small"),
            (ModelConfig("mobilenet_v3_small"), 32, None, "imagenet"),
        ],
    )
    def test_auto_follows_the_weights_and_then_the_size(
        self, config: ModelConfig, side: int, source: str | None, expected: str
    ) -> None:
        assert resolve_stem(config, side, 20, source) == expected

    @pytest.mark.parametrize("stem", ["small", "imagenet"])
    def test_a_file_tells_its_own_stem(self, stem: str, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            state = build_model(ModelConfig(stem=stem)).backbone.state_dict()
        source = write(tmp_path / "weights.pth", {"conv1.weight": state["conv1.weight"]})
        assert resolve_stem(ModelConfig(), 32, 32, source) == stem
