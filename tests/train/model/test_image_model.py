from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from tnn_runtime import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import LinearHead, ModelConfig, TverskyHead, build_model
from tnn_train.model.image_model import Normalize


def test_normalisation_is_torchvisions() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8))
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    ours = Normalize(Preprocessing(5, 4, 3, mean, std))(images)
    theirs = functional.normalize(images.permute(0, 3, 1, 2).float() / 255, list(mean), list(std))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.shape == (2, 3, 5, 4)


@pytest.mark.parametrize(("stem", "side", "downsampling"), [("small", 16, 8), ("imagenet", 64, 32)])
@pytest.mark.parametrize("channels", [1, 3])
def test_stems_take_grey_and_colour(stem: str, side: int, downsampling: int, channels: int) -> None:
    model = build_model(ModelConfig(num_classes=7, in_channels=channels, stem=stem)).eval()
    seen = []
    model.backbone.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert model(torch.zeros(2, channels, side, side)).shape == (2, 7)
    assert seen == [(2, 512, side // downsampling, side // downsampling)]


def test_the_twins_differ_in_the_head_only() -> None:
    torch.manual_seed(0)
    tversky = build_model(ModelConfig(head="tversky"))
    torch.manual_seed(0)
    linear = build_model(ModelConfig(head="linear"))
    assert isinstance(tversky.head, TverskyHead)
    assert isinstance(linear.head, LinearHead)
    for ours, theirs in zip(tversky.backbone.parameters(), linear.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_unknown_parts_list_the_choices() -> None:
    with pytest.raises(UsageError, match="unknown backbone 'resnet19'; the nearest are resnet18, "):
        build_model(ModelConfig(backbone="resnet19"))
    with pytest.raises(UsageError, match="unknown stem 'large'; choose from auto, imagenet, small"):
        ModelConfig(stem="large")
    with pytest.raises(UsageError, match="num_classes is 1; expected an integer of at least 2"):
        ModelConfig(num_classes=1)
