from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RECIPE
from shallow import SHALLOW
from torch import Tensor, nn
from torch.nn import functional

from tnn_export import export_bundle
from tnn_runtime import Classifier, UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, ModelConfig, build_model, load_checkpoint, load_data, save_checkpoint, train
from tnn_train.model.backbones import (
    BACKBONES,
    build_backbone,
    check_backbone,
    check_image_size,
    embedding_size,
    has_resnet_stem,
)
from tnn_train.model.image_model import Normalize
from tnn_train.model.state_dicts import last_layer

FAMILIES = {
    "alexnet": 4096,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "efficientnet_b0": 1280,
    "maxvit_t": 512,
    "mnasnet0_5": 1280,
    "mobilenet_v2": 1280,
    "mobilenet_v3_small": 1024,
    "regnet_y_400mf": 440,
    "resnext50_32x4d": 2048,
    "shufflenet_v2_x0_5": 1024,
    "swin_t": 768,
    "swin_v2_t": 768,
    "vgg11": 4096,
    "vit_b_16": 768,
    "wide_resnet50_2": 2048,
}


def on_meta(config: ModelConfig) -> tuple[nn.Module, int]:
    if config.backbone.startswith("regnet"):
        return build_backbone(config)
    with torch.device("meta"):
        return build_backbone(config)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_embeddings_of_grey_and_colour(name: str, channels: int) -> None:
    backbone, features = on_meta(ModelConfig(name, in_channels=channels, stem="imagenet"))
    images = torch.empty(2, channels, 224, 224, device=next(backbone.parameters()).device)
    with torch.inference_mode():
        assert backbone.eval()(images).shape == (2, features)
    assert features == FAMILIES[name]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_an_embedding_and_a_map(channels: int) -> None:
    config = ModelConfig("pixels", in_channels=channels).for_size(6, 5)
    images = torch.randn(2, channels, 6, 5)
    backbone, features = build_backbone(config)
    assert torch.equal(backbone(images), images.flatten(1))
    assert features == embedding_size(config) == channels * 30
    backbone, features = build_backbone(config, "map")
    assert torch.equal(backbone(images), images)
    assert features == channels


def test_pixels_are_trained_on_and_served(photos: Path, tmp_path: Path) -> None:
    train(str(photos), tmp_path / "run", ModelConfig("pixels", head="linear"), RECIPE)
    assert load_checkpoint(tmp_path / "run" / "best").config.image_size == (16, 16)
    images = load_data(str(photos)).test.sample(8)
    export_bundle(tmp_path / "run" / "best", tmp_path / "bundle")
    with Classifier.load(tmp_path / "bundle") as classifier:
        served = classifier.logits(list(images))
    model = load_checkpoint(tmp_path / "run" / "best")
    with torch.inference_mode():
        expected = model.model(Normalize(model.preprocessing)(torch.from_numpy(images)))
    np.testing.assert_allclose(served, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": ModelConfig("pixels", stem="small")}, "backbone pixels has no stem"),
        ({"weights": "imagenet"}, "torchvision has no weights for backbone pixels"),
    ],
)
def test_what_pixels_do_not_have(options: dict[str, Any], reason: str, photos: Path, tmp_path: Path) -> None:
    model = options.pop("model", ModelConfig("pixels"))
    with pytest.raises(UsageError, match=f"^{reason}"):
        train(str(photos), tmp_path / "run", model, replace(RECIPE, **options))
    assert not (tmp_path / "run").exists()


def test_torchvisions_classifiers_are_there_but_for_those_that_cannot_be_used() -> None:
    assert len(BACKBONES) >= 76
    assert {"resnet152", "resnext101_64x4d", "wide_resnet101_2", "vit_h_14", *FAMILIES} <= set(BACKBONES)
    assert not [name for name in BACKBONES if name.startswith(("squeezenet", "googlenet", "inception", "quantized"))]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_the_embedding_is_what_the_last_layer_got(name: str) -> None:
    torch.manual_seed(0)
    classifier = BACKBONES[name]().eval()
    torch.manual_seed(0)
    backbone, _ = build_backbone(ModelConfig(name, stem="imagenet"))
    seen: list[Tensor] = []
    list(classifier.modules())[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        classifier(images)
        torch.testing.assert_close(backbone.eval()(images), seen[0])


def test_a_grey_backbone_is_the_colour_one_on_three_equal_channels() -> None:
    backbones = []
    for channels in (1, 3):
        torch.manual_seed(0)
        backbones.append(build_backbone(ModelConfig("mobilenet_v3_small", in_channels=channels))[0].eval())
    grey, colour = backbones
    first = [next(part for part in backbone.modules() if isinstance(part, nn.Conv2d)) for backbone in backbones]
    assert first[0].in_channels == first[0].weight.shape[1] == 1
    images = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(grey(images), colour(images.expand(-1, 3, -1, -1)))


def test_the_stem_that_is_not_chosen_is_the_small_one_where_it_can_be() -> None:
    assert build_backbone(ModelConfig("resnet18"))[0].conv1.kernel_size == (3, 3)
    assert build_backbone(ModelConfig("shufflenet_v2_x0_5"))[0].conv1[0].stride == (2, 2)
    assert has_resnet_stem("resnext50_32x4d")
    assert not has_resnet_stem("shufflenet_v2_x0_5")
    assert not has_resnet_stem("regnet_y_400mf")


class TestImageSize:
    @pytest.mark.parametrize(
        ("name", "side"), [("vit_b_16", 224), ("maxvit_t", 224), ("resnet18", 8), ("convnext_tiny", 32), ("vgg11", 40)]
    )
    def test_what_fits_is_taken(self, name: str, side: int) -> None:
        check_image_size(ModelConfig(name), side, side)

    @pytest.mark.parametrize(
        ("name", "size", "expected"),
        [
            ("vit_b_16", (32, 32), "of 32x32 pixels; expected 224x224: choose another --image-size"),
            ("vit_b_16", (224, 32), "of 224x32 pixels; expected 224x224: "),
            ("maxvit_t", (256, 256), "of 256x256 pixels; expected 224x224: "),
            ("alexnet", (28, 28), "of 28x28 pixels; expected 64x64 or larger: "),
            ("vgg11", (16, 16), "of 16x16 pixels; expected 32x32 or larger: "),
        ],
    )
    def test_what_does_not_is_refused_with_what_does(self, name: str, size: tuple[int, int], expected: str) -> None:
        with pytest.raises(UsageError, match=f"^backbone {name} does not take images {expected}"):
            check_image_size(ModelConfig(name), *size)

    def test_the_check_leaves_the_random_state_alone(self) -> None:
        torch.manual_seed(0)
        check_image_size(ModelConfig("regnet_y_400mf", in_channels=1), 32, 32)
        drawn = torch.rand(3)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.rand(3))

    def test_a_backbone_that_takes_nothing_says_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Broken(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 3)
                self.fc = nn.Linear(5, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(functional.pixel_shuffle(self.conv(x), 3))  # type: ignore[no-any-return]

        monkeypatch.setitem(BACKBONES, "broken", Broken)
        with pytest.raises(UsageError, match="expected a size that it takes .*pixel_shuffle"):
            check_image_size(ModelConfig("broken"), 32, 32)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("squeezenet1_1", "backbone squeezenet1_1 cannot be used: its last layer is a convolution"),
            ("inception_v3", "backbone inception_v3 cannot be used: its auxiliary classifiers"),
            ("quantized_resnet18", "quantized_resnet18 is quantised or does not classify single images"),
            ("r3d_18", "r3d_18 is quantised or does not classify single images"),
            ("eficientnet_b0", "unknown backbone 'eficientnet_b0'; the nearest are efficientnet_b0"),
            ("mnasnet", "unknown backbone 'mnasnet'; the nearest are mnasnet"),
            ("gpt", "unknown backbone 'gpt'; choose pixels or a classifier of torchvision$"),
        ],
    )
    def test_names(self, name: str, reason: str) -> None:
        with pytest.raises(UsageError, match=f"^{reason}"):
            check_backbone(name)
        with pytest.raises(UsageError, match=f"^{reason}"):
            build_model(ModelConfig(name))

    @pytest.mark.parametrize("name", ["vit_b_16", "shufflenet_v2_x0_5"])
    def test_a_small_stem_where_there_is_none(self, name: str) -> None:
        with (
            torch.device("meta"),
            pytest.raises(UsageError, match=f"^backbone {name} has no small stem, only ResNets have; choose the stem"),
        ):
            build_backbone(ModelConfig(name, stem="small"))

    def test_a_backbone_without_a_linear_last_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(BACKBONES, "pooling", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
        with pytest.raises(UsageError, match="pooling ends with Flatten and starts with Conv2d.*expected a Linear"):
            build_model(ModelConfig("pooling"))


def trained(name: str, images: np.ndarray) -> Checkpoint:
    config = ModelConfig(name, num_classes=3, stem="imagenet")
    torch.manual_seed(0)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 128 - 1
    functional.cross_entropy(model(pixels), torch.arange(len(images)) % 3).backward()
    before = [parameter.detach().clone() for parameter in model.backbone.parameters()]
    optimizer.step()
    assert all(not torch.equal(*pair) for pair in zip(before, model.backbone.parameters(), strict=True))
    half = (0.5, 0.5, 0.5)
    return Checkpoint(model.eval(), config, Preprocessing(*images.shape[1:], half, half), ("a", "b", "c"), images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("mobilenet_v3_small", "whole"),
        *((name, "shallow") for name in ("efficientnet_b0", "swin_t")),
        *(pytest.param(name, "whole", marks=pytest.mark.exhaustive) for name in ("efficientnet_b0", "swin_t")),
    ],
)
def test_from_a_training_step_to_the_runtime(
    name: str, depth: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if depth == "shallow":
        monkeypatch.setitem(BACKBONES, name, SHALLOW[name])
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    save_checkpoint(tmp_path / "last", trained(name, images))
    assert export_bundle(tmp_path / "last", tmp_path / "bundle").passed
    with Classifier.load(tmp_path / "bundle", "cpu") as classifier:
        assert classifier.logits(images).shape == (6, 3)


def test_a_checkpoint_of_a_backbone_with_versions(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    saved = trained("mnasnet0_5", images)
    save_checkpoint(tmp_path / "last", saved)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load_checkpoint(tmp_path / "last").model(pixels), saved.model(pixels))


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "regnet_y_400mf", "efficientnet_b0"])
def test_the_mean_of_a_map_over_all_places_is_the_embedding(name: str) -> None:
    config = ModelConfig(name, stem="imagenet")
    whole, size = build_backbone(config)
    unpooled, channels = build_backbone(config, "map")
    assert channels == size
    assert unpooled.state_dict().keys() == whole.state_dict().keys()
    unpooled.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps, embeddings = unpooled.eval()(images), whole.eval()(images)
    assert maps.shape[:2] == (2, size)
    assert maps.shape[2] < maps.shape[3]
    torch.testing.assert_close(maps.mean((2, 3)), embeddings)


@pytest.mark.parametrize("name", ["densenet121", "swin_t", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny"])
def test_a_map_of_one_place_is_the_embedding(name: str) -> None:
    config = ModelConfig(name, stem="imagenet")
    whole, size = build_backbone(config)
    mapped, channels = build_backbone(config, "map")
    assert channels == size
    assert mapped.state_dict().keys() == whole.state_dict().keys()
    assert last_layer(mapped) == last_layer(whole)
    mapped.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps, embeddings = mapped.eval()(images), whole.eval()(images)
    assert maps.shape == (2, size, 1, 1)
    torch.testing.assert_close(maps.flatten(1), embeddings)


def test_what_follows_the_pooling_acts_at_each_place() -> None:
    backbone, size = build_backbone(ModelConfig("mobilenet_v3_small"), "map")
    whole, _ = build_backbone(ModelConfig("mobilenet_v3_small"))
    backbone.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        places = whole.eval().features(images)
        expected = whole.classifier(places.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(backbone.eval()(images), expected)
    assert expected.shape == (2, size, 2, 3)


def test_the_map_of_a_vision_transformer_is_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "vit_b_16", SHALLOW["vit_b_16"])
    backbone, size = build_backbone(ModelConfig("vit_b_16"), "map")
    whole, _ = build_backbone(ModelConfig("vit_b_16"))
    backbone.load_state_dict(whole.state_dict())
    tokens: list[Tensor] = []
    whole.encoder.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        whole.eval()(images)
        maps = backbone.eval()(images)
    assert maps.shape == (2, size, 14, 14)
    torch.testing.assert_close(maps[:, :, 3, 5], tokens[0][:, 1 + 3 * 14 + 5])


def test_what_is_random_in_training_is_so_in_a_backbone_with_a_map() -> None:
    backbone, _ = build_backbone(ModelConfig("efficientnet_b0"), "map")
    images = torch.randn(4, 3, 32, 32)
    assert backbone.training
    backbone.apply(lambda part: part.eval() if isinstance(part, nn.BatchNorm2d) else None)
    with torch.no_grad():
        assert not torch.equal(backbone(images), backbone(images))
        assert torch.equal(backbone.eval()(images), backbone(images))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vgg11", "its last layers mix the places of an image: it ends with a layer AdaptiveAvgPool2d"),
        ("alexnet", "its last layers mix the places of an image: it ends with a layer AdaptiveAvgPool2d"),
        ("maxvit_t", "torch.fx cannot follow it without other names of its weights"),
    ],
)
def test_a_backbone_without_a_map_is_refused(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"the head takes maps, and backbone {name} has none \({reason}.*a ResNet, "):
        build_backbone(ModelConfig(name, stem="imagenet"), "map")
