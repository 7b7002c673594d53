"""Checkpoints of other layers: each is trained with the layer itself, and what comes out is compared with it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyNet
from definitions import measures
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tnn_export import ExportError, export_bundle, lower_head
from tnn_export.__main__ import main
from tnn_export.commands.importing import make_parser
from tnn_export.importers import IMPORTERS, SOURCES, import_state_dict
from tnn_runtime import ArtifactError, Classifier, UsageError
from tnn_runtime.images.folders import find_images
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import Checkpoint, load_checkpoint
from tnn_train.model.image_model import Normalize

PREPROCESSING = Preprocessing(16, 20, 3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))
D, F = 24, 8

MakeLayer = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def images(photos: Path) -> NDArray[np.uint8]:
    return PREPROCESSING.batch(find_images(photos))


@pytest.fixture
def tversky_nn(monkeypatch: pytest.MonkeyPatch) -> MakeLayer:
    """The layer of tversky-nn, without what else its package imports."""
    spec = importlib.util.find_spec("tnn")
    if spec is None:
        pytest.skip("tversky-nn is not installed; run: pip install --no-deps 'tversky-nn>=0.1.2,<0.2'")
    package = types.ModuleType("tnn")
    package.__path__ = list(spec.submodule_search_locations or [])
    monkeypatch.setitem(sys.modules, "tnn", package)
    from tnn.layers import TverskyProjectionLayer

    return TverskyProjectionLayer


@pytest.fixture
def verskyt() -> MakeLayer:
    from verskyt.layers import TverskyProjectionLayer

    return TverskyProjectionLayer


def trained(layer: nn.Module, images: NDArray[np.uint8], steps: int = 4) -> nn.Module:
    """Return a tiny classifier that ends with a layer, after a few steps."""
    torch.manual_seed(1)
    net = TinyNet()
    net.fc = layer
    x, labels = Normalize(PREPROCESSING)(torch.from_numpy(images)), torch.arange(len(images)) % 2
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(10 * net(x), labels).backward()
        optimizer.step()
    return net.eval()


def answers(net: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return np.asarray(net(Normalize(PREPROCESSING)(torch.from_numpy(images))).numpy())


def save(state: Any, tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def imported(
    path: Path, source: str, images: NDArray[np.uint8], form: Mapping[str, Any] | None = None, **options: Any
) -> Checkpoint:
    options = {"backbone": "tiny", "stem": "imagenet", "class_names": ["cat", "dog"], **options}
    return import_state_dict(path, source, preprocessing=PREPROCESSING, samples=images, options=form, **options)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    scale = np.maximum(1, np.abs(expected).max(1, keepdims=True))
    assert (np.abs(found - expected) / scale).max() < 1e-4
    assert np.ptp(expected) > 1e-3


class TestTverskyNN:
    @pytest.mark.parametrize("intersection", ["product", "mean", "gmean", "min"])
    @pytest.mark.parametrize("theta", [0.0, 0.02, 3.0])
    def test_it_gives_what_the_layer_gives(
        self, intersection: str, theta: float, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        weights = {"alpha": 0.3, "beta": 0.9, "theta": theta}
        net = trained(tversky_nn(D, 2, intersection_reduction=intersection, **weights), images)
        form = {"intersection": intersection, **weights}
        checkpoint = imported(save(net.state_dict(), tmp_path), "tversky-nn", images, form)
        assert_close(answers(checkpoint.model, images), answers(net, images))
        assert checkpoint.metrics["import_max_abs_diff"] < 1e-4

    @pytest.mark.parametrize("difference", ["ignorematch", "subtractmatch"])
    def test_the_bundle_gives_what_the_layer_gives(
        self, difference: str, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        net = trained(tversky_nn(D, 2, difference_reduction=difference), images)
        checkpoint = imported(save(net.state_dict(), tmp_path), "tversky-nn", images, {"difference": difference})
        assert export_bundle(checkpoint, tmp_path / "bundle", formats=("onnx",)).passed
        with Classifier.load(tmp_path / "bundle") as classifier:
            assert_close(classifier.logits(images), answers(net, images))

    def test_weights_of_features_are_clamped_as_the_layer_does(
        self, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        layer = tversky_nn(D, 2)
        with torch.no_grad():
            layer.similarity_fn.feature_bank.copy_(torch.linspace(-7, 7, D))
        net = trained(layer, images, steps=0)
        checkpoint = imported(save(net.state_dict(), tmp_path), "tversky-nn", images)
        assert_close(answers(checkpoint.model, images), answers(net, images))

    def test_means_of_values_that_are_zero(
        self, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        net = dead(trained(tversky_nn(D, 2, intersection_reduction="mean"), images))
        checkpoint = imported(save(net.state_dict(), tmp_path), "tversky-nn", images, {"intersection": "mean"})
        assert_close(answers(checkpoint.model, images), answers(net, images))

    def test_what_differs_on_the_images_is_refused(
        self, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        net = trained(tversky_nn(D, 2, intersection_reduction="gmean"), images)
        with torch.no_grad():
            net.norm.weight *= 1e-7  # The layer adds 1e-8 to each value of the embedding.
            net.norm.bias *= 1e-7
        path = save(net.state_dict(), tmp_path)
        with pytest.raises(
            ExportError,
            match=r"on (\d+) of \1 samples the head differs from TverskyProjectionLayer of .* the layer adds 1e-08 to "
            ".*; check that the images, --mean and --std are those of the training",
        ):
            imported(path, "tversky-nn", images, {"intersection": "gmean"}, logit_scale=1e4)

    @pytest.mark.filterwarnings("ignore:The parameter 'pretrained' is deprecated:UserWarning")
    @pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning")
    def test_the_whole_model_of_the_package(
        self, tversky_nn: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        from tnn.models import TverskyResNet

        torch.manual_seed(0)
        net = TverskyResNet("resnet18", num_classes=3, pretrained=False, num_prototypes=5).eval()
        path = save({"epoch": 3, "model_state_dict": net.state_dict(), "config": {"lr": 0.1}}, tmp_path)
        few = images[::8]
        checkpoint = imported(
            path, "tversky-nn", few, {"theta": 1e-5}, backbone="resnet18", stem="auto", class_names="abc"
        )
        assert checkpoint.config.stem == "imagenet"
        assert checkpoint.config.tversky.num_prototypes == 5
        assert_close(answers(checkpoint.model, few), answers(net, few))

    @pytest.mark.parametrize("intersection", ["softmin", "max"])
    def test_forms_that_cannot_be_had(self, intersection: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
        state = {"fc.prototypes": torch.ones(2, D), "fc.similarity_fn.feature_bank": torch.ones(D)}
        with pytest.raises(UsageError, match=f"intersection {intersection} .* train with product, mean, gmean, min"):
            imported(save(state, tmp_path), "tversky-nn", images, {"intersection": intersection})

    def test_separate_banks_are_refused(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        state = {"fc.prototypes": torch.ones(2, D)}
        state |= {f"fc.similarity_fns.{index}.feature_bank": torch.ones(D) for index in range(2)}
        with pytest.raises(UsageError, match="the layer 'fc' cannot be imported: it has a feature bank for each "):
            imported(save(state, tmp_path), "tversky-nn", images)


def dead(net: nn.Module) -> nn.Module:
    """Return the classifier with a third of its embedding at 0, as behind a ReLU."""
    with torch.no_grad():
        net.norm.bias[::3], net.norm.weight[::3] = -1, 0
    return net


def without(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.filterwarnings("ignore:Visualization dependencies not available:ImportWarning")
class TestVerskyt:
    @pytest.mark.parametrize("intersection", ["product", "min"])
    @pytest.mark.parametrize("difference", ["ignorematch", "substractmatch"])
    @pytest.mark.parametrize("theta", [1e-7, 0.02, 3.0])
    @pytest.mark.parametrize("normalize", [{}, {"normalize_features": True, "normalize_prototypes": True}])
    def test_it_gives_what_the_layer_gives(
        self,
        intersection: str,
        difference: str,
        theta: float,
        normalize: dict[str, bool],
        verskyt: MakeLayer,
        images: NDArray[np.uint8],
        tmp_path: Path,
    ) -> None:
        form = {"intersection": intersection, "difference": difference}
        options = {f"{name}_reduction": value for name, value in form.items()} | normalize
        net = trained(verskyt(D, 2, F, alpha=0.2, beta=0.7, theta=theta, **options), images)
        path = save(net.state_dict(), tmp_path)
        checkpoint = imported(path, "verskyt", images, {**form, **normalize, "theta": theta})
        assert_close(answers(checkpoint.model, images), answers(net, images))

    @pytest.mark.parametrize("form", [{}, {"difference": "subtractmatch"}, {"theta": 1e-12}])
    def test_the_bundle_of_the_defaults_gives_what_the_layer_gives(
        self, form: dict[str, Any], verskyt: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        net = trained(verskyt(D, 2, F), images)
        checkpoint = imported(save(net.state_dict(), tmp_path), "verskyt", images, form)
        assert checkpoint.training["imported"]["difference"] == "substractmatch"
        assert export_bundle(checkpoint, tmp_path / "bundle", formats=("onnx",)).passed
        with Classifier.load(tmp_path / "bundle") as classifier:
            logits, expected = classifier.logits(images), answers(net, images)
            assert_close(logits, expected)
            for row, (best, other) in zip(expected, classifier.explain(images, top_k=2), strict=True):
                for explanation in (best, other):
                    assert explanation.logit == pytest.approx(row[explanation.index], rel=1e-4, abs=1e-5)

    @pytest.mark.parametrize("theta", [1e-7, 0.5])
    @pytest.mark.parametrize("difference", ["ignorematch", "substractmatch"])
    def test_an_image_without_features_is_like_a_prototype_without(
        self, theta: float, difference: str, verskyt: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        """Neither has a feature: the similarity is theta / theta."""
        net = trained(verskyt(D, 2, F, theta=theta, difference_reduction=difference), images)
        with torch.no_grad():
            net.fc.feature_bank.copy_(net.fc.feature_bank.abs())
            net.fc.prototypes[0], net.fc.prototypes[1] = -1, 1
        checkpoint = imported(
            save(net.state_dict(), tmp_path), "verskyt", images, {"theta": theta, "difference": difference}
        )
        embeddings = torch.cat([torch.zeros(1, D), -torch.rand(3, D), torch.rand(3, D)])
        for head in (checkpoint.model.head, lower_head(checkpoint.model.head)):
            with torch.inference_mode():
                found, expected = head(embeddings).numpy(), net.fc(embeddings).numpy()
            assert_close(found, expected)
            np.testing.assert_allclose(found[:4, 0], 1, rtol=1e-6)

    @pytest.mark.parametrize(
        ("form", "message"),
        [
            ({"intersection": "gmean"}, "intersection gmean of verskyt adds 1e-4 .*: train with product or min"),
            ({"intersection": "mean"}, "intersection mean of verskyt also counts .*: train with product or min"),
            ({"intersection": "sum"}, "unknown intersection of verskyt 'sum'; choose from product, min"),
            ({"difference": "sum"}, "unknown difference of verskyt 'sum'; choose from ignorematch, substractmatch"),
            ({"theta": 0.0}, "theta is 0, with which verskyt gives no number .*; pass a small one, such as 1e-7"),
        ],
    )
    def test_forms_that_cannot_be_had(
        self, form: dict[str, str], message: str, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        state = {"fc.prototypes": torch.ones(2, D), "fc.feature_bank": torch.ones(F, D)}
        state |= {"fc.alpha": torch.tensor(0.5), "fc.beta": torch.tensor(0.5)}
        with pytest.raises(UsageError, match=message):
            imported(save(state, tmp_path), "verskyt", images, form)

    @pytest.mark.parametrize("linear", [None, nn.Linear(5, 2)])
    def test_a_bias_is_kept(
        self, linear: nn.Module | None, verskyt: MakeLayer, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        layer = verskyt(D, 5 if linear else 2, F, theta=0.5, bias=True)
        with torch.no_grad():
            layer.bias.uniform_(-1, 1)
        net = trained(nn.Sequential(layer, linear or nn.Identity()), images)
        path = save(net.state_dict(), tmp_path)
        checkpoint = imported(path, "verskyt", images, {"theta": 0.5})
        assert checkpoint.config.tversky.num_prototypes == (5 if linear else 2)
        assert_close(answers(checkpoint.model, images), answers(net, images))
        assert export_bundle(checkpoint, tmp_path / "bundle", formats=("onnx",)).passed
        with Classifier.load(tmp_path / "bundle") as classifier:
            logits, explained = classifier.logits(images), classifier.explain(images, top_k=1)
        for row, (best,) in zip(logits, explained, strict=True):
            assert best.logit == pytest.approx(row[best.index], rel=1e-4, abs=1e-5)

    def test_a_negative_weight_counts_as_0(self, verskyt: MakeLayer, images: NDArray[np.uint8], tmp_path: Path) -> None:
        net = trained(verskyt(D, 2, F, alpha=-0.5, difference_reduction="ignorematch"), images)
        checkpoint = imported(save(net.state_dict(), tmp_path), "verskyt", images, {"difference": "ignorematch"})
        assert_close(answers(checkpoint.model, images), answers(net, images))


SCALARS = {"alpha": torch.tensor(0.4), "beta": torch.tensor([1.2]), "theta": torch.tensor(0.7)}


def made_up(place: str = "fc.", prototypes: int = 2, **changed: Tensor | None) -> dict[str, Tensor]:
    """Return a state dict of the tiny classifier with the authors' layer."""
    torch.manual_seed(2)
    layer = {"prototypes.weight": torch.randn(prototypes, D), "feature_bank.weight": torch.randn(F, D), **SCALARS}
    layer |= {name.replace("_weight", ".weight"): value for name, value in changed.items()}
    state = trained(nn.Identity(), np.zeros((4, *PREPROCESSING.shape), np.uint8), steps=0).state_dict()
    return {**state, **{place + name: value for name, value in layer.items() if value is not None}}


PLAIN = {"model": "contrast", "intersection": "product", "difference": "ignorematch"}


def by_definition(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], images: NDArray[np.uint8], **scalars: float
) -> Any:
    """Return the similarities of the paper from a state dict of `made_up`."""
    with torch.inference_mode():
        x = checkpoint.model.backbone(Normalize(PREPROCESSING)(torch.from_numpy(images))).double().numpy()
    prototypes, bank = (state[f"fc.{name}.weight"].double().numpy() for name in ("prototypes", "feature_bank"))
    if checkpoint.config.tversky.normalize:
        x, prototypes = (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (x, prototypes))
    common, input_only, prototype_only = measures(x @ bank.T, prototypes @ bank.T, checkpoint.config.tversky)
    values = {name: float(value) for name, value in SCALARS.items()} | scalars
    distinctive = values["alpha"] * input_only + values["beta"] * prototype_only
    if checkpoint.config.tversky.model == "contrast":
        return values["theta"] * common - distinctive
    return common / (common + distinctive + values["theta"])


class TestTversky:
    @pytest.mark.parametrize("normalize", [False, True])
    @pytest.mark.parametrize("difference", ["ignorematch", "substractmatch"])
    @pytest.mark.parametrize(
        ("model", "intersection"),
        [("contrast", "softmin"), ("contrast", "max"), ("ratio", "mean"), ("ratio", "product")],
    )
    def test_it_gives_what_the_paper_says(
        self,
        model: str,
        intersection: str,
        difference: str,
        normalize: bool,
        images: NDArray[np.uint8],
        tmp_path: Path,
    ) -> None:
        state = made_up()
        form = {"model": model, "intersection": intersection, "difference": difference, "normalize": normalize}
        checkpoint = imported(save(state, tmp_path), "tversky", images, form, logit_scale=3.0)
        assert_close(answers(checkpoint.model, images), 3 * by_definition(checkpoint, state, images))

    def test_the_bundle_gives_what_the_paper_says(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        state = made_up()
        checkpoint = imported(save(state, tmp_path), "tversky", images, PLAIN)
        assert export_bundle(checkpoint, tmp_path / "bundle", formats=("onnx",)).passed
        with Classifier.load(tmp_path / "bundle") as classifier:
            assert_close(classifier.logits(images), by_definition(checkpoint, state, images))

    def test_a_negative_weight_is_kept_in_the_contrast_model(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        path = save(state := made_up(alpha=torch.tensor(-0.3)), tmp_path)
        checkpoint = imported(path, "tversky", images, PLAIN)
        assert_close(answers(checkpoint.model, images), by_definition(checkpoint, state, images, alpha=-0.3))
        with pytest.raises(UsageError, match=r"alpha is -0\.3.*; expected a finite number of at least 0"):
            imported(path, "tversky", images, {**PLAIN, "model": "ratio"})

    def test_the_softmin_of_the_ratio_model_is_refused(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        form = {**PLAIN, "model": "ratio", "intersection": "softmin"}
        with pytest.raises(UsageError, match="the paper's softmin is negative .* such as min"):
            imported(save(made_up(), tmp_path), "tversky", images, form)

    def test_what_the_state_dict_does_not_tell_is_required(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        with pytest.raises(
            UsageError, match="of tversky does not tell model, difference; say what it was trained with"
        ):
            imported(save(made_up(), tmp_path), "tversky", images, {"intersection": "min"})


class TestLayouts:
    """Where the layer and the backbone stand in a file."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"state_dict": state, "epoch": 3},
            lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
            lambda state: {f"net.{name}": value for name, value in state.items()},
            lambda state: {f"{'' if name[:3] == 'fc.' else 'trunk.'}{name}": value for name, value in state.items()},
        ],
        ids=["state_dict", "DDP", "wrapped", "apart"],
    )
    def test_wrapped(self, wrap: Callable[[dict[str, Tensor]], Any], images: NDArray[np.uint8], tmp_path: Path) -> None:
        expected = imported(save(made_up(), tmp_path), "tversky", images, PLAIN)
        checkpoint = imported(save(wrap(made_up()), tmp_path), "tversky", images, PLAIN)
        assert_same(checkpoint, expected)

    def test_safetensors(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        expected = imported(save(made_up(), tmp_path), "tversky", images, PLAIN)
        save_file(made_up(), tmp_path / "net.safetensors")
        assert_same(imported(tmp_path / "net.safetensors", "tversky", images, PLAIN), expected)

    def test_the_layer_alone(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        state = made_up("")
        trunk = {name: state.pop(name) for name in list(state) if name in TinyNet().state_dict()}
        expected = imported(save(made_up(), tmp_path), "tversky", images, PLAIN)
        torch.save({**trunk, "fc.weight": torch.ones(9, D), "fc.bias": torch.ones(9)}, tmp_path / "trunk.pth")
        checkpoint = imported(save(state, tmp_path), "tversky", images, PLAIN, backbone_weights=tmp_path / "trunk.pth")
        assert_same(checkpoint, expected)

    @pytest.mark.parametrize("source", [*IMPORTERS, "linear"])
    def test_the_layer_alone_without_a_backbone(self, source: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
        layers = {
            "tversky-nn": {"prototypes": torch.ones(2, D), "similarity_fn.feature_bank": torch.ones(D)},
            "verskyt": {"prototypes": torch.ones(2, D), "feature_bank": torch.ones(F, D)}
            | {name: torch.tensor(0.5) for name in ("alpha", "beta")},
            "tversky": {name: value for name, value in made_up("").items() if name not in TinyNet().state_dict()},
            "linear": {"weight": torch.ones(2, D), "bias": torch.ones(2)},
        }
        form = PLAIN if source == "tversky" else None
        for start in ("", "fc.", "module.fc."):
            path = save({start + name: value for name, value in layers[source].items()}, tmp_path)
            with pytest.raises(UsageError, match=r"net\.pth has the weights of a layer alone.*--backbone-weights"):
                imported(path, source, images, form)
            torch.save({"fc.weight": torch.ones(2, D)}, tmp_path / "other.pth")
            with pytest.raises(UsageError, match=r"other\.pth has no weights of a backbone; expected"):
                imported(path, source, images, form, backbone_weights=tmp_path / "other.pth")
            torch.save({"conv1.weight": torch.ones(64, 3, 5, 5)}, tmp_path / "other.pth")
            with pytest.raises(UsageError, match=r"weights of \S*other\.pth do not fit backbone tiny"):
                imported(path, source, images, form, backbone_weights=tmp_path / "other.pth")

    def test_the_backbone_of_a_classifier_with_another_layer(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        """Of the file of the backbone, all of the last layer is left out."""
        expected = imported(save(made_up(), tmp_path), "tversky", images, PLAIN)
        state = {name: value for name, value in made_up().items() if name.startswith("fc.")}
        whole = {
            **without(made_up(), *state),
            "fc.prototypes": torch.ones(3, D),
            "fc.inner.feature_bank": torch.ones(D),
        }
        torch.save(whole, tmp_path / "whole.pth")
        checkpoint = imported(save(state, tmp_path), "tversky", images, PLAIN, backbone_weights=tmp_path / "whole.pth")
        assert_same(checkpoint, expected)

    def test_one_of_several_layers(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        expected = imported(save(made_up(), tmp_path), "tversky", images, PLAIN)
        state = {**made_up(prototypes=3), **made_up("fc.1.")}
        with pytest.raises(
            UsageError, match="there are 2 layers of the authors' tversky, 'fc', 'fc.1'; choose .*--prefix"
        ):
            imported(save(state, tmp_path), "tversky", images, PLAIN)
        state = {name: value for name, value in state.items() if name[:5] == "fc.1." or name[:3] != "fc."}
        assert_same(imported(save(state, tmp_path), "tversky", images, PLAIN, prefix="fc.1"), expected)
        with pytest.raises(UsageError, match="there is no layer 'fc' of the authors' tversky; there are 'fc.1'"):
            imported(save(state, tmp_path), "tversky", images, PLAIN, prefix="fc")


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    ours, theirs = found.model.state_dict(), expected.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


class TestBadInput:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"theta": None, "beta": None},
                r"the layer 'fc' lacks beta, theta; expected prototypes\.weight, feature_bank",
            ),
            (
                {"gamma": torch.ones(())},
                "the layer 'fc' has gamma, which the authors' tversky has not; expected [^;]*$",
            ),
            (
                {"feature_bank_weight": torch.ones(F, D + 1)},
                r"has the shape \[8, 25\]; expected \[F, D\] with P = 2, D = 24",
            ),
            ({"alpha": torch.ones(2)}, r"alpha of the layer 'fc' has the shape \[2\]; expected a single number"),
            (
                {"prototypes_weight": torch.ones(2, 7), "feature_bank_weight": torch.ones(F, 7)},
                "the layer takes embeddings of 7 values, and backbone tiny gives 24; choose the one",
            ),
        ],
    )
    def test_layers(
        self, changed: dict[str, Tensor | None], message: str, images: NDArray[np.uint8], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageError, match=message):
            imported(save(made_up(**changed), tmp_path), "tversky", images, PLAIN)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda state: state.pop("conv2.bias"), r"net.pth do not fit backbone tiny \(1 missing: conv2.bias\)"),
            (lambda state: state.update(other=torch.ones(3)), r"\(1 unexpected: other\)"),
            (
                lambda state: state.update({"conv2.bias": torch.ones(3)}),
                r"\(1 of another shape: conv2.bias \[3\] for \[24\]\); choose the backbone",
            ),
        ],
    )
    def test_backbones(
        self,
        spoil: Callable[[dict[str, Tensor]], object],
        message: str,
        images: NDArray[np.uint8],
        tmp_path: Path,
    ) -> None:
        state = made_up()
        spoil(state)
        with pytest.raises(UsageError, match=message):
            imported(save(state, tmp_path), "tversky", images, PLAIN)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_names": ["cat"]}, "got 1 class names for 2 logits; expected one for each"),
            ({"class_names": ["cat", "cat"]}, "class_names has two classes called 'cat'; expected a name of its own"),
            ({"logit_scale": 0.0}, r"logit_scale is 0\.0; expected a positive number"),
            ({"backbone": "tinny"}, "unknown backbone 'tinny'; the nearest are .*tiny"),
            ({"form": {**PLAIN, "normalise": True}}, "tversky has no option 'normalise'; did you mean 'normalize'"),
            ({"form": {**PLAIN, "intersection": "maximum"}}, "unknown intersection 'maximum'; choose from product"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=message):
            imported(save(made_up(), tmp_path), "tversky", images, **{"form": PLAIN, **options})

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            (
                "verskytt",
                "unknown source 'verskytt'; did you mean 'verskyt'.*; choose from tversky-nn, verskyt, tversky",
            ),
            (
                "verskyt",
                "no layer was found; expected tensors named prototypes, .*; there is a layer as of tversky: pass",
            ),
        ],
    )
    def test_sources(self, source: str, message: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=message):
            imported(save(made_up(), tmp_path), source, images)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (TinyNet(), r"objects of .*TinyNet, which .* nothing but tensors"),
            ({"epoch": 3}, "holds no state dict; expected tensors by name"),
        ],
    )
    def test_files(self, content: Any, message: str, images: NDArray[np.uint8], tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=message):
            imported(save(content, tmp_path), "tversky", images, PLAIN)

    def test_samples(self, images: NDArray[np.uint8], tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"shape \[40, 8, 20, 3\]; expected uint8 \[N, 16, 20, 3\]"):
            imported(save(made_up(), tmp_path), "tversky", images[:, :8], PLAIN)


class TestCommand:
    def arguments(self, path: Path, photos: Path, out: Path, *more: str) -> list[str]:
        words = f"import {path} --from tversky --backbone tiny --stem imagenet --images {photos} -o {out}"
        return [*words.split(), "--image-size", "16", "20", *more]

    FORM = ("--model", "contrast", "--intersection", "product", "--difference", "ignorematch", "--normalize")

    def test_it_makes_a_checkpoint_that_exports(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "imported"
        assert main(self.arguments(save(made_up(), tmp_path), photos, out, *self.FORM)) == 0
        assert capsys.readouterr().out.splitlines() == [f"wrote {out}", f"next: tnn-export {out} -o BUNDLE"]
        checkpoint = load_checkpoint(out)
        assert checkpoint.class_names == ("cat", "dog")
        assert checkpoint.config.tversky.normalize
        assert checkpoint.training["imported"]["source"] == "tversky"
        assert checkpoint.labels is not None
        assert checkpoint.labels.tolist() == [0] * 20 + [1] * 20
        assert main([str(out), "-o", str(tmp_path / "bundle"), "--formats", "onnx"]) == 0

    def test_it_says_how_near_it_came(
        self, images: NDArray[np.uint8], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = made_up("unused.")
        state = {name: value for name, value in state.items() if not name.startswith("unused.")}
        state |= {"fc.prototypes": torch.randn(2, D), "fc.similarity_fn.feature_bank": torch.ones(D)}
        (tmp_path / "names.txt").write_text("hound\ntabby\n")
        arguments = self.arguments(save(state, tmp_path), photos, tmp_path / "out", "--from", "tversky-nn")
        assert main([*arguments, "--class-names", str(tmp_path / "names.txt"), "--alpha", "0.2"]) == 0
        printed = capsys.readouterr().out
        assert " images the logits differ from those of TverskyProjectionLayer of tversky-nn by at most" in printed
        assert load_checkpoint(tmp_path / "out").class_names == ("hound", "tabby")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ((), "a state dict of tversky does not tell model, intersection, difference"),
            ((*FORM, "--image-size", "1", "2", "3"), "--image-size got 3 numbers; expected one, or height and width"),
            ((*FORM, "--mean", "0.5"), "--mean is given without --std; give both"),
            ((*FORM, "--images", "nowhere"), "nowhere does not exist; expected a folder of images"),
            ((*FORM, "--class-names", "nowhere"), "nowhere cannot be read"),
            ((*FORM, "-o", "."), ". already exists and has no config.json"),
        ],
    )
    def test_bad_input_gets_one_line_and_exit_code_1(
        self,
        more: tuple[str, ...],
        message: str,
        photos: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(self.arguments(save(made_up(), tmp_path), photos, tmp_path / "out", *more)) == 1
        error = capsys.readouterr().err
        assert error.startswith("tnn-export: error: ")
        assert error.count("\n") == 1
        assert message in error
        assert not (tmp_path / "out").exists()

    def test_help_names_every_source_and_option(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["import", "--help"])
        text = capsys.readouterr().out
        for name, source in IMPORTERS.items():
            assert f"--from {name}" in text
            assert all(f"--{option.replace('_', '-')}" in text for option in source.options)
        assert "verskyt: substractmatch" in " ".join(text.split())

    def test_the_documented_commands_exist(self) -> None:
        page = (Path(__file__).parents[3] / "docs" / "importing.md").read_text()
        lines = re.findall(r"^tnn-export import (.*)$", page, flags=re.MULTILINE)
        parsed = [make_parser().parse_args(shlex.split(line)) for line in lines]
        assert {options.source for options in parsed} == set(SOURCES)
