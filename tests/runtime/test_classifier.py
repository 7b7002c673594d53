from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tnn_runtime
from tnn_runtime import Classifier, ClassifierClosed, InputError, Prediction, SelfCheckError, UsageError
from tnn_runtime import classifier as module
from tnn_train import ImageData, evaluate, load_checkpoint
from tnn_train.training.loop import TrainResult


@pytest.fixture(scope="module")
def classifier(bundles: dict[str, Path]) -> Iterator[Classifier]:
    with Classifier.load(bundles["tversky"], "cpu") as loaded:
        yield loaded


def test_predictions_are_those_of_eager_pytorch(
    bundles: dict[str, Path], runs: dict[str, TrainResult], data: ImageData
) -> None:
    for name, bundle in bundles.items():
        expected = evaluate(load_checkpoint(runs[name].best).model, data.test)
        with Classifier.load(bundle, "cpu") as loaded:
            answers = loaded.predict(data.test.sources, top_k=2)
        assert [ranked[0].index for ranked in answers] == expected.predictions.tolist()


def test_predictions_are_ranked_probabilities(classifier: Classifier, data: ImageData) -> None:
    for ranked in classifier.predict(data.test.sources, top_k=99):
        assert [prediction.label for prediction in ranked] == [data.class_names[p.index] for p in ranked]
        assert sum(prediction.score for prediction in ranked) == pytest.approx(1)
        assert ranked[0].score >= ranked[1].score
    assert isinstance(classifier.predict([data.test.sources[0]], top_k=1)[0][0], Prediction)


def test_every_kind_of_image_gives_the_same_logits(classifier: Classifier, data: ImageData) -> None:
    path = data.test.sources[0]
    assert isinstance(path, Path)
    array = np.asarray(Image.open(path).convert("RGB"))
    images = [path, str(path), path.read_bytes(), Image.open(path), array]
    logits = classifier.logits(images)
    assert logits.shape == (5, 2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, logits[[0] * 5], rtol=1e-6)
    np.testing.assert_allclose(classifier.logits(data.test.pixels[:1]), logits[:1], rtol=1e-6)
    np.testing.assert_allclose(classifier.logits(array[None]), logits[:1], rtol=1e-6)


def test_what_it_is_can_be_seen(bundles: dict[str, Path]) -> None:
    with Classifier.load(bundles["tversky"], "cpu") as classifier:
        assert list(classifier.class_names) == classifier.info["class_names"]
        assert repr(classifier) == f"<Classifier {bundles['tversky']} on cpu>"
    assert tnn_runtime.__version__ == version("tnn-deploy")
    with pytest.raises(UsageError, match="bundle is a int; expected the path of a bundle folder"):
        Classifier.load(3)  # type: ignore[arg-type]


def test_many_images_are_split_and_joined_in_order(bundles: dict[str, Path], data: ImageData, monkeypatch) -> None:
    with Classifier.load(bundles["tversky"], "cpu", max_batch_size=3) as loaded:
        sizes = []
        (replica,) = loaded._replicas
        run = replica.backend.run
        monkeypatch.setattr(replica.backend, "run", lambda images: (sizes.append(len(images)), run(images))[1])
        logits = loaded.logits(data.test.pixels)
        assert sizes == [3, 3, 2]
        single = np.concatenate([loaded.logits(image[None]) for image in data.test.pixels])
    np.testing.assert_allclose(logits, single, rtol=1e-5, atol=1e-5)


def test_no_images_give_no_answers(classifier: Classifier) -> None:
    assert classifier.predict([]) == []
    assert classifier.logits([]).shape == (0, 2)
    assert classifier.embed([]).shape == (0, 24)


def test_threads_get_their_own_answers(classifier: Classifier, data: ImageData) -> None:
    expected = classifier.logits(data.test.pixels)
    with ThreadPoolExecutor(8) as pool:
        numbers = [number % 8 for number in range(200)]
        answers = list(pool.map(lambda number: classifier.logits(data.test.pixels[number][None]), numbers))
    np.testing.assert_allclose(np.concatenate(answers), expected[numbers], rtol=1e-5, atol=1e-5)


def test_info_says_what_runs_where_and_why(bundles: dict[str, Path]) -> None:
    with Classifier.load(bundles["linear"], "cpu", threads=1) as loaded:
        info = loaded.info
    assert (info["device"], info["threads"], info["head"], info["backbone"]) == ("cpu", 1, "linear", "tiny")
    assert info["class_names"] == ["cat", "dog"]
    assert info["input_shape"] == [16, 16, 3]
    assert info["reason"] == "as asked"
    assert set(info["versions"]) == {"onnxruntime"}


def test_a_closed_classifier_says_so(bundles: dict[str, Path], data: ImageData) -> None:
    with Classifier.load(bundles["tversky"]) as loaded:
        pass
    loaded.close()
    with pytest.raises(ClassifierClosed, match="load the bundle again"):
        loaded.predict(data.test.sources)


def test_golden_samples_are_replayed_at_load(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.open_backend

    def wrong_device(*arguments: object) -> object:
        backend, reason = original(*arguments)
        run = backend.run
        backend.run = lambda images: run(images)._replace(logits=run(images).logits + 0.01)
        return backend, reason

    monkeypatch.setattr(module, "open_backend", wrong_device)
    with pytest.raises(
        SelfCheckError, match=r"does not reproduce its golden samples on cpu: logits differ by up to 0.01"
    ):
        Classifier.load(bundles["tversky"], "cpu")
    Classifier.load(bundles["tversky"], "cpu", self_check=False)


class TestBadInput:
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            ("photo.png", r"got one str; expected a list of images: pass \[image\]"),
            (Path("photo.png"), "got one PosixPath; expected a list of images"),
            (b"\x89PNG", "got one bytes; expected a list of images"),
            (None, "got one NoneType; expected a list of images"),
            (Image.new("RGB", (4, 4)), "got one Image; expected a list of images"),
            (np.zeros((16, 16, 3), np.uint8), r"shape \[16, 16, 3\]; expected uint8 \[N, H, W, C\]"),
            (np.zeros((2, 16, 16, 3), np.float32), "got an array of dtype float32"),
            (np.zeros((2, 16, 16, 3, 1), np.uint8), r"shape \[2, 16, 16, 3, 1\]; expected uint8 \[N, H, W, C\]"),
            (np.zeros((2, 0, 16, 3), np.uint8), "expected at least one pixel"),
            ([3], "got an image of type int"),
            ({"image": 1}, "got one dict; expected a list of images"),
            ([np.zeros((16, 16, 3), np.int64)], "got an array of dtype int64"),
            (["photo.png"], "photo.png does not exist"),
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_images(self, classifier: Classifier, images: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            classifier.predict(images)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"device": "tpu"},
                "unknown device 'tpu'; choose auto, cpu, compiled, cuda, cuda:N, tensorrt or tensorrt:N",
            ),
            ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
            ({"threads": 0}, "threads is 0; expected an integer of at least 1"),
            ({"threads": 10**12}, "threads is 1000000000000; expected an integer"),
            ({"device": None}, "unknown device None"),
            ({"max_batch_size": 0}, "max_batch_size is 0; expected an integer of at least 1"),
        ],
    )
    def test_options(self, bundles: dict[str, Path], options: dict, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            Classifier.load(bundles["tversky"], **options)

    def test_top_k(self, classifier: Classifier, data: ImageData) -> None:
        with pytest.raises(UsageError, match="top_k is 0; expected an integer of at least 1"):
            classifier.predict(data.test.sources, top_k=0)
        with pytest.raises(UsageError, match="top_k is 0; expected an integer of at least 1"):
            classifier.explain(data.test.sources, top_k=0)
        with pytest.raises(UsageError, match="num_features is -1; expected an integer of at least 1"):
            classifier.explain(data.test.sources, num_features=-1)
        with pytest.raises(UsageError, match="top_k is '3'; expected an integer of at least 1"):
            classifier.predict(data.test.sources, top_k="3")  # type: ignore[arg-type]
