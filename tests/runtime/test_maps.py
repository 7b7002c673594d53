"""Where in an image an explanation comes from: from the export to the answers of a service."""

from __future__ import annotations

import asyncio
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import MAPPED
from torch import Tensor, nn
from waiting import FOREVER

from tnn_export import Reference, check_bundle
from tnn_export.lowering.graph import ServingModel
from tnn_export.proof.parity import compare
from tnn_export.proof.running import Ran
from tnn_export.proof.samples import make_samples
from tnn_runtime import ArtifactError, Classifier, Deployment, Explanation, Manifest, RunError, UsageError
from tnn_runtime.answers.outputs import Outputs
from tnn_train import ImageData, load_checkpoint
from tnn_train.model.image_model import Normalize
from tnn_train.model.pooling import unpooled
from tnn_train.training.loop import TrainResult


def assert_same(found: Explanation, expected: Explanation) -> None:
    assert (found.label, [one.index for one in found.features]) == (
        expected.label,
        [one.index for one in expected.features],
    )
    assert found.maps is not None
    assert expected.maps is not None
    for name in ("logit", "parts", "features"):
        np.testing.assert_allclose(getattr(found.maps, name), getattr(expected.maps, name), rtol=1e-4, atol=1e-5)


def outputs_of(folder: Path, images: Any) -> dict[str, dict[str, Any]]:
    """Return the outputs of each artifact of a bundle, run by its library alone."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = {"onnx": dict(zip(names, session.run(names, {"images": images}), strict=True))}
    loaders = {
        "torchscript": ("model.ts", torch.jit.load),
        "pt2": ("model.pt2", lambda file: torch.export.load(file).module()),
    }
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        for name, (file, load) in loaders.items():
            if (folder / file).exists():
                outputs = load(str(folder / file))(torch.from_numpy(images))
                found[name] = {key: value.numpy() for key, value in outputs.items()}
    return found


@pytest.mark.parametrize("head", MAPPED)
def test_maps_agree_in_onnx_torchscript_pt2_and_eager(
    head: str, mapped: dict[str, Path], runs: dict[str, TrainResult], data: ImageData
) -> None:
    folder, images = mapped[head], data.test.pixels
    found = outputs_of(folder, images)
    assert tuple(found) == MAPPED[head]
    checkpoint = load_checkpoint(runs[head].best)
    model, pixels = checkpoint.model.eval(), Normalize(data.preprocessing)(torch.from_numpy(images))
    with torch.no_grad():
        embedding = model.backbone(pixels)
        eager = model.head.feature_maps(unpooled(model.backbone)(pixels), embedding).numpy()
        values = model.head.feature_values(embedding).numpy()
    for outputs in found.values():
        assert outputs["feature_maps"].dtype == np.float32
        np.testing.assert_allclose(outputs["feature_maps"], eager, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs["feature_maps"].mean((2, 3)), values, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs["embedding"], embedding.numpy(), rtol=1e-4, atol=1e-4)
    proof = Manifest.read(folder)[0].parity
    assert all(proof[name]["max_mean_diff"] <= 1e-4 and proof[name]["max_map_diff"] <= 1e-4 for name in found)
    assert check_bundle(folder).passed


@pytest.mark.parametrize("head", MAPPED)
def test_the_means_are_what_is_explained_in_every_way_to_ask(
    head: str, mapped: dict[str, Path], data: ImageData
) -> None:
    images = data.test.pixels
    with Deployment(mapped[head], "cpu", max_batch_size=3) as classifier:
        plain = classifier.explain(images, 2, 4)
        explained = classifier.explain(images, 2, 4, maps=True)
        submitted = [classifier.submit(image, 2, answer="explanation", num_features=4, maps=True) for image in images]
        everything = classifier.submit(images[0], 2, answer="all", num_features=4, maps=True).result(FOREVER)
        awaited = asyncio.run(classifier.explain_async(images, 2, 4, maps=True))
        assert classifier.explain([], maps=True) == []
    for row, one, without, future, later in zip(range(8), explained, plain, submitted, awaited, strict=True):
        for place, explanation in enumerate(one):
            assert_same(future.result(FOREVER)[place], explanation)
            assert_same(later[place], explanation)
            if row == 0:
                assert_same(everything.explanations[place], explanation)
            assert without[place].maps is None
            assert without[place].logit == pytest.approx(explanation.logit, rel=1e-4, abs=1e-5)
            maps = explanation.maps
            assert maps.logit.mean() == pytest.approx(explanation.logit - explanation.bias, rel=1e-4, abs=1e-4)
            for part, places in zip(explanation.parts, maps.parts, strict=True):
                assert places.mean() == pytest.approx(part.value, rel=1e-4, abs=1e-4)


def test_they_are_copied_only_if_they_are_asked_for(
    mapped: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    run = onnxruntime.InferenceSession.run

    def watched(self: Any, names: Any, *arguments: Any) -> Any:
        asked.append(tuple(names))
        return run(self, names, *arguments)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", watched)
    image = data.test.pixels[0]
    with Classifier.load(mapped["tversky"], "cpu") as classifier:
        classifier.predict([image])
        classifier.explain([image])
        classifier.submit(image, answer="all").result(FOREVER)
        assert set(asked) == {("logits", "embedding")}
        classifier.explain([image], maps=True)
        classifier.submit(image, answer="explanation", maps=True).result(FOREVER)
        assert asked[-2:] == [("logits", "embedding", "feature_maps")] * 2


def test_one_batch_answers_those_who_ask_for_maps_and_those_who_do_not(
    mapped: dict[str, Path], data: ImageData
) -> None:
    with Classifier.load(mapped["tversky"], "cpu", max_queue_delay_ms=10_000, max_batch_size=3) as classifier:
        image, *_ = data.test.pixels
        label, plain, found = (
            classifier.submit(image),
            classifier.submit(image, answer="explanation"),
            classifier.submit(image, answer="explanation", maps=True),
        )
        assert label.result(FOREVER)[0].label == found.result(FOREVER)[0].label
        assert plain.result(FOREVER)[0].maps is None
        assert found.result(FOREVER)[0].maps is not None
        assert classifier.metrics.images == 3


ASKING: dict[str, Callable[[Classifier, Any], object]] = {
    "explain": lambda classifier, image: classifier.explain([image], maps=True),
    "explain_async": lambda classifier, image: asyncio.run(classifier.explain_async([image], maps=True)),
    "submit": lambda classifier, image: classifier.submit(image, answer="explanation", maps=True),
    "submit all": lambda classifier, image: classifier.submit(image, answer="all", maps=True),
}


@pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
def test_a_bundle_without_them_says_how_to_get_them(
    ask: Callable[[Classifier, Any], object], bundles: dict[str, Path], data: ImageData
) -> None:
    with Classifier.load(bundles["linear"], "cpu") as classifier:
        with pytest.raises(
            UsageError, match="without the output feature_maps; export it again with --outputs feature_"
        ):
            ask(classifier, data.test.pixels[0])
        assert classifier.explain(data.test.pixels[:1])[0][0].maps is None


def test_an_image_without_numbers_is_named_by_its_place(
    mapped: dict[str, Path], data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(mapped["linear"], "cpu", max_batch_size=2) as classifier:
        (replica,) = classifier._replicas
        run, batches = replica.backend.run, []

        def broken(images: Any, extra: tuple[str, ...]) -> Outputs:
            batches.append(len(images))
            outputs = run(images, extra)
            return outputs if len(batches) < 3 else outputs._replace(embedding=np.full_like(outputs.embedding, np.nan))

        monkeypatch.setattr(replica.backend, "run", broken)
        with pytest.raises(RunError, match=r"images\[4\]: the model gives values that are no finite numbers"):
            classifier.explain(data.test.pixels, maps=True)
        assert classifier.metrics.not_finite == 2


class Wrong(nn.Module):
    """Feature maps with a fault."""

    def __init__(self, maps: nn.Module, fault: str) -> None:
        super().__init__()
        self.maps = maps
        self.fault = fault

    def forward(self, maps: Tensor, embedding: Tensor) -> Tensor:
        found = self.maps(maps, embedding)
        if self.fault == "none":
            return found
        if self.fault == "turned":
            return found.flip(2)
        if self.fault == "transposed":
            return found.mT
        return found + 0.001 if self.fault == "moved" else found * 1.001


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("none", None),
        ("turned", "the feature maps by up to"),
        ("transposed", "the feature maps by up to"),
        ("moved", "the feature maps, pooled, from the features by up to"),
        ("scaled", "the feature maps, pooled, from the features by up to"),
    ],
)
@pytest.mark.parametrize("head", ["tversky", "linear"])
def test_wrong_maps_do_not_pass_the_proof(
    head: str, fault: str, what: str | None, runs: dict[str, TrainResult], data: ImageData
) -> None:
    checkpoint = load_checkpoint(runs[head].best)
    model, preprocessing = checkpoint.model, checkpoint.preprocessing
    serving = ServingModel(model, preprocessing, ("feature_maps",))
    serving.maps = Wrong(serving.maps, fault)

    def run(batches: Sequence[Any]) -> Ran:
        with torch.inference_mode():
            return Ran([{k: v.numpy() for k, v in serving(torch.from_numpy(batch)).items()} for batch in batches])

    samples = make_samples(preprocessing, data.test.pixels)
    found = compare(Reference.of(model, preprocessing, samples, maps=True), run, "fp32", (1, 7))
    assert found.passed == (what is None)
    assert what is None or what in found.problems[0]
    assert (found.max_map_diff <= 1e-4, found.max_mean_diff <= 1e-4) == (
        what is None,
        what is None or "maps by" in what,
    )


def test_a_manifest_with_maps_of_another_kind_is_refused(mapped: dict[str, Path], tmp_path: Path) -> None:
    manifest, _ = Manifest.read(mapped["tversky"])
    *others, maps = manifest.outputs
    (tmp_path / "bundle").mkdir()
    for path in mapped["tversky"].iterdir():
        (tmp_path / "bundle" / path.name).write_bytes(path.read_bytes())
    flat = dataclasses.replace(maps, shape=maps.shape[:3])
    dataclasses.replace(manifest, outputs=(*others, flat)).write(tmp_path / "bundle")
    with pytest.raises(ArtifactError, match="contradicts itself about the input shape, the outputs"):
        Manifest.read(tmp_path / "bundle")
