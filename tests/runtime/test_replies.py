"""What a caller may ask to know about an image that is submitted."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import threading
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from conftest import FIXTURES
from waiting import FOREVER

from tnn_runtime import Answer, Classifier, Manifest, Prediction, Predictions, RunError, UsageError
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.replies import AnswerName

GOLDEN = FIXTURES / "bundle-v4" / "golden.npz"


@pytest.fixture
def images() -> np.ndarray:
    with np.load(GOLDEN) as golden:
        return np.asarray(golden["images"])


def with_threshold(bundle: Path, threshold: float) -> Path:
    manifest, _ = Manifest.read(bundle)
    assert manifest.reject is not None
    rule = dataclasses.replace(manifest.reject, threshold=threshold)
    Manifest(**{**vars(manifest), "reject": rule}).write(bundle)
    return bundle


def test_each_answer_is_that_of_the_method_and_takes_one_run(small_bundle: Path, images: np.ndarray) -> None:
    with Classifier.load(small_bundle, "cpu", max_batch_size=1) as classifier:
        predictions, logits, embeddings = (
            classifier.predict(images, 2),
            classifier.logits(images),
            classifier.embed(images),
        )
        explanations, scores = classifier.explain(images, 2, 4, 1), classifier.reject_scores(images)
        for row, image in enumerate(images):
            before = classifier.metrics.images
            found = classifier.submit(image, 2, answer="all", num_features=4, num_prototypes=1).result(FOREVER)
            assert classifier.metrics.images == before + 1
            assert isinstance(found, Answer)
            alone = Answer(
                classifier.submit(image, 2, answer="prediction").result(FOREVER),
                classifier.submit(image, answer="logits").result(FOREVER),
                classifier.submit(image, answer="embedding").result(FOREVER),
                classifier.submit(image, 2, answer="explanation", num_features=4, num_prototypes=1).result(FOREVER),
            )
            for answer in (found, alone):
                assert [one.index for one in answer.predictions] == [one.index for one in predictions[row]]
                np.testing.assert_allclose(answer.logits, logits[row], atol=1e-5)
                np.testing.assert_allclose(answer.embedding, embeddings[row], atol=1e-5)
                for kept in (answer.logits, answer.embedding):
                    assert kept.base is None or kept.base.size == kept.size, "the rest of the batch is kept"
                assert answer.predictions.reject_score == pytest.approx(scores[row], abs=1e-4)
                assert answer.explanations is not None
                assert [one.label for one in answer.explanations] == [one.label for one in explanations[row]]
                for one, other in zip(answer.explanations, explanations[row], strict=True):
                    assert one.logit == pytest.approx(other.logit, abs=1e-4)
                    assert len(one.to_dict()) == len(other.to_dict())


def test_a_bundle_that_cannot_be_explained_gives_all_the_rest(images: np.ndarray) -> None:
    with Classifier.load(FIXTURES / "bundle-v2", "cpu") as classifier:
        classifier._replies._explainer = None
        found = classifier.submit(images[0], answer="all").result(FOREVER)
        assert found.explanations is None
        assert found.predictions
        with pytest.raises(UsageError, match="export it again"):
            classifier.submit(images[0], answer="explanation")


@pytest.mark.parametrize("name", ["predictions", "", None, 3, ["all"]])
def test_another_answer(name: Any, images: np.ndarray) -> None:
    with (
        Classifier.load(FIXTURES / "bundle-v4", "cpu") as classifier,
        pytest.raises(
            UsageError, match="answer is .*; expected one of prediction, logits, embedding, explanation, all"
        ),
    ):
        classifier.submit(images[0], answer=name)
    assert classifier.metrics.requests == 0


def test_a_batch_does_not_wait_for_explanations(
    small_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, names = threading.Event(), []
    with Classifier.load(small_bundle, "cpu", max_batch_size=1, decoders=1) as classifier:
        explain = classifier._replies._explainer
        assert explain is not None

        def slow(*arguments: Any) -> Any:
            names.append(threading.current_thread().name)
            assert go.wait(FOREVER)
            return explain(*arguments)

        monkeypatch.setattr(classifier._replies, "_explainer", slow)
        first = classifier.submit(images[0], answer="explanation")
        assert classifier.submit(images[1]).result(FOREVER)
        assert not first.done()
        assert classifier.health.open_requests == 1
        go.set()
        assert first.result(FOREVER)
        assert names[0].startswith("tnn-decode")


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, ZeroDivisionError])
def test_an_explanation_that_fails_is_an_answer(
    error: type[BaseException], small_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise error("at the worst moment")

    with Classifier.load(small_bundle, "cpu") as classifier:
        monkeypatch.setattr(classifier._replies, "_explainer", fail)
        expected = error if issubclass(error, Exception) else RunError
        with pytest.raises(expected, match="at the worst moment"):
            classifier.submit(images[0], answer="all").result(FOREVER)
        assert classifier.submit(images[0]).result(FOREVER)
        assert classifier.metrics.failures == {expected.__name__: 1}


def test_rejected_images_say_so(small_bundle: Path, images: np.ndarray) -> None:
    with Classifier.load(small_bundle, "cpu") as classifier:
        scores = classifier.reject_scores(images)
    middle = float(np.median(scores))
    with Classifier.load(with_threshold(small_bundle, middle), "cpu") as classifier:
        answers = classifier.predict(images, reject=True)
        answers += [classifier.submit(image, reject=True).result(FOREVER) for image in images]
        answers += [classifier.submit(image, reject=True, answer="all").result(FOREVER).predictions for image in images]
        assert classifier.metrics.rejected == sum(answer.rejected for answer in answers) > 0
        for answer, score in zip(answers, [*scores, *scores, *scores], strict=True):
            assert answer.rejected == (score < middle) == (answer == [])
            assert answer.reject_score == pytest.approx(float(score), abs=1e-4)
        assert not any(answer.rejected for answer in classifier.predict(images))


def test_predictions_are_a_list() -> None:
    one = Prediction("cat", 0.5, 0)
    kept, rejected = Predictions([one], False, 0.25), Predictions((), True, 0.125)
    assert kept == [one]
    assert repr(kept) == repr([one])
    assert (rejected, bool(rejected), repr(rejected)) == ([], False, "<rejected, reject_score=0.125>")
    assert json.loads(json.dumps(rejected)) == []
    for copied in (pickle.loads(pickle.dumps(rejected)), copy.copy(rejected), copy.deepcopy(rejected)):
        assert (copied.rejected, copied.reject_score) == (True, 0.125)
    assert Predictions().reject_score is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_no_numbers_fail_every_call(
    value: float, small_bundle: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Classifier.load(small_bundle, "cpu") as classifier:
        (replica,) = classifier._replicas
        run = replica.backend.run

        def broken(given: np.ndarray) -> Outputs:
            outputs = run(given)
            outputs.embedding[-1, 0] = value
            return outputs

        monkeypatch.setattr(replica.backend, "run", broken)
        for answer in get_args(AnswerName):
            with pytest.raises(RunError, match="values that are no finite numbers"):
                classifier.submit(images[0], answer=answer).result(FOREVER)
        for call in (classifier.predict, classifier.logits, classifier.embed, classifier.explain):
            with pytest.raises(RunError, match="values that are no finite numbers"):
                call(images[:3])
        read = classifier.metrics
        assert (read.not_finite, read.requests, read.failures) == (9, 9, {"RunError": 9})
