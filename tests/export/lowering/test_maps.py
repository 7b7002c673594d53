"""Feature maps: the mean over all places is the value of the feature, in every form and of every backbone with maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import definitions
import numpy as np
import onnxruntime
import pytest
import torch
from forms import CHOICES, CLASSES, SIZE, each_form, forms, random_head
from torch import Tensor, nn
from toy.head import NearestMeanHead
from toy.map_head import BestPlaceHead

from tnn_export import ExportError
from tnn_export.lowering import lower_maps
from tnn_export.lowering.folding import folded
from tnn_export.lowering.pooling import unpooled
from tnn_train import LinearHead, TverskyConfig
from tnn_train.model.backbones import BACKBONES, build_backbone
from tnn_train.model.config import ModelConfig


@each_form()
def test_the_mean_over_all_places_is_the_feature(config: TverskyConfig) -> None:
    head, x = random_head(config)
    maps = torch.randn(len(x), SIZE, 3, 2)
    maps += (x - maps.mean((2, 3)))[:, :, None, None]
    with torch.no_grad():
        found, eager = lower_maps(head)(maps, x), head.feature_maps(maps, x)
    torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
    expected = definitions.feature_values(head, x.double().numpy())
    np.testing.assert_allclose(found.mean((2, 3)), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(head.feature_values(x).detach(), expected, rtol=1e-5, atol=1e-5)


class Each(nn.Module):
    """Several feature maps of the same map: one export for all of them."""

    def __init__(self, maps: list[nn.Module]) -> None:
        super().__init__()
        self.maps = nn.ModuleList(maps)

    def forward(self, maps: Tensor, x: Tensor) -> list[Tensor]:
        return [one(maps, x) for one in self.maps]


def test_they_run_in_onnx_and_torchscript(tmp_path: Path) -> None:
    choices = ("normalize", "feature_bank", "thresholds", "opposites")
    heads = [random_head(config)[0] for config in forms(**{name: CHOICES[name] for name in choices})]
    assert len(heads) == 12
    lowered = Each([lower_maps(head) for head in heads]).eval()
    maps = torch.randn(3, SIZE, 3, 2)
    x = maps.mean((2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, names = str(tmp_path / "maps.onnx"), ["maps", "x"]
        torch.onnx.export(lowered, (maps, x), path, input_names=names, dynamo=True, verbose=False, external_data=False)
        scripted = torch.jit.freeze(torch.jit.script(lowered))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = [head.feature_maps(maps, x) for head in heads]
    for found in (session.run(None, {"maps": maps.numpy(), "x": x.numpy()}), scripted(maps, x)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(np.asarray(one), other.numpy(), rtol=1e-4, atol=1e-5)


def test_the_features_of_a_linear_head_are_the_channels() -> None:
    maps = torch.randn(2, SIZE, 3, 2)
    assert torch.equal(lower_maps(LinearHead(SIZE, CLASSES))(maps, maps.mean((2, 3))), maps)


@pytest.mark.parametrize(("head", "family"), [(NearestMeanHead, "nearest-mean"), (BestPlaceHead, "best-place")])
def test_heads_without_feature_maps_are_refused(head: type, family: str) -> None:
    with pytest.raises(ExportError, match=f"a {family} head has no feature maps: .*; leave the output feature_maps"):
        lower_maps(head(SIZE, CLASSES))


class Net(nn.Module):
    """A backbone that ends as it is told."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(torch.relu(self.norm(self.conv(x))))


class Calls(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


MEANS = {
    "layer": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)),
    "layer of two sizes": nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(1)),
    "function": Calls(lambda x: nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)),
    "keyword": Calls(lambda x: torch.flatten(nn.functional.adaptive_avg_pool2d(x, output_size=(1, 1)), 1)),
    "method": Calls(lambda x: x.mean([2, 3])),
    "negative": Calls(lambda x: x.mean(dim=(-2, -1))),
    "kept dimensions": Calls(lambda x: x.mean((3, 2), keepdim=True).squeeze(3).squeeze(2)),
    "tokens": Calls(lambda x: _tokens(x).mean((1, 2))),
    "function on tokens": Calls(lambda x: torch.mean(_tokens(x), dim=[1, 2])),
}


@pytest.mark.parametrize("end", MEANS.values(), ids=MEANS)
def test_every_spelling_of_the_mean_is_found(end: nn.Module) -> None:
    torch.manual_seed(0)
    backbone = Net(end).eval()
    x = torch.randn(2, 3, 9, 11)
    with torch.no_grad():
        nn.init.normal_(backbone.norm.running_mean)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.script(folded(unpooled(backbone)))
        for one in (unpooled(backbone), folded(unpooled(backbone)), scripted):
            assert one(x).shape == (2, 8, 4, 5)
            torch.testing.assert_close(one(x).mean((2, 3)), backbone(x), rtol=1e-5, atol=1e-5)


NO_MEANS = {
    "largest": (Calls(lambda x: x.amax((2, 3))), "it ends with amax"),
    "sum": (Calls(lambda x: x.sum((2, 3))), "it ends with sum"),
    "several places": (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), "it ends with a layer AdaptiveAvgPool2d"),
    "one dimension": (Calls(lambda x: x.mean(3).flatten(1)), "it ends with mean"),
    "all": (Calls(lambda x: x.mean((1, 2, 3))), "it ends with mean"),
    "layers after it": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)),
        "it ends with a layer Linear",
    ),
    "one token": (Calls(lambda x: x.flatten(2).mT[:, 0]), "it ends with one token of many"),
    "branches": (Calls(lambda x: x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))), "torch.fx cannot follow it"),
}


@pytest.mark.parametrize(("end", "reason"), NO_MEANS.values(), ids=NO_MEANS)
def test_backbones_without_such_a_mean_are_refused_with_the_reason(end: nn.Module, reason: str) -> None:
    with pytest.raises(ExportError, match=rf"kind Net has no feature maps: .* \({reason}.*\); leave the output"):
        unpooled(Net(end))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "regnet_y_400mf",
        "efficientnet_b0",
        "mobilenet_v2",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
        pytest.param("densenet121", marks=pytest.mark.slow),
        pytest.param("swin_t", marks=pytest.mark.slow),
    ],
)
def test_backbones_of_torchvision_that_end_with_a_mean(name: str) -> None:
    torch.manual_seed(0)
    backbone, size = build_backbone(ModelConfig(name, stem="imagenet"))
    maps = unpooled(backbone.eval())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        places, embedding = maps(x), backbone(x)
    assert places.shape == (1, size, 2, 2)
    torch.testing.assert_close(places.mean((2, 3)), embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_b_16", "one token of many"), ("mobilenet_v3_small", "Hardswish"), ("convnext_tiny", "permute")],
)
def test_backbones_of_torchvision_that_do_not(name: str, reason: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
    backbone.set_submodule(list(dict(backbone.named_modules()))[-1], nn.Identity())
    with pytest.raises(ExportError, match=f"has no feature maps: .*{reason}"):
        unpooled(backbone)
