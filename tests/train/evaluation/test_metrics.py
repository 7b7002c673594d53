from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch.nn import functional

from tnn_train.evaluation.metrics import Coverage, Evaluation, paired_difference, wilson_interval


def of_probabilities(rows: list[list[float]], labels: list[int]) -> Evaluation:
    return Evaluation.of(torch.tensor(rows).log(), torch.tensor(labels))


@pytest.fixture
def random_answers() -> Evaluation:
    torch.manual_seed(0)
    return Evaluation.of(2 * torch.randn(200, 5), torch.randint(0, 5, (200,)))


def test_loss_accuracy_and_types(random_answers: Evaluation) -> None:
    test = random_answers
    logits, labels = torch.from_numpy(test.logits), torch.from_numpy(test.labels)
    assert test.loss == float(functional.cross_entropy(logits, labels))
    assert test.accuracy == (test.predictions == test.labels).mean()
    assert (test.logits.dtype, test.labels.dtype, test.predictions.dtype) == (np.float32, np.int64, np.int64)
    assert test.probabilities.dtype == np.float32
    np.testing.assert_allclose(test.probabilities, logits.softmax(1).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(test.confidence, test.probabilities.max(1))


def test_logits_of_any_dtype_with_gradients_are_taken() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.bfloat16, requires_grad=True)
    test = Evaluation.of(logits, torch.tensor([0, 0], dtype=torch.int32))
    assert test.accuracy == 0.5
    assert test.logits.dtype == np.float32


def test_rows_of_the_confusion_are_right_classes() -> None:
    test = of_probabilities([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]], [0, 0, 1])
    assert test.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert test.confusion.dtype == np.int64
    assert test.confusions.tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_calibration_by_hand() -> None:
    """Four bins: (0.5, 0.75] holds 0.6 right and 0.7 wrong, (0.75, 1] holds 0.8 and 0.9, both right."""
    test = of_probabilities([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.1, 0.9]], [0, 1, 0, 1])
    calibration = test.calibration(bins=4)
    np.testing.assert_allclose(calibration.share, [0, 0, 0.5, 0.5])
    np.testing.assert_allclose(calibration.accuracy, [np.nan, np.nan, 0.5, 1])
    np.testing.assert_allclose(calibration.confidence, [np.nan, np.nan, 0.65, 0.85], rtol=1e-6)
    assert calibration.ece == pytest.approx(0.5 * 0.15 + 0.5 * 0.15, rel=1e-6)


def test_bins_are_closed_above_and_certainty_lies_in_the_last() -> None:
    test = of_probabilities([[0.5, 0.5], [1.0, 0.0]], [0, 0])
    assert test.calibration(bins=2).share.tolist() == [0.5, 0.5]
    assert test.calibration(bins=1).share.tolist() == [1]
    assert len(test.calibration().share) == 15


def test_classes_are_scored_as_by_sklearn(random_answers: Evaluation) -> None:
    test = random_answers
    expected = precision_recall_fscore_support(test.labels, test.predictions)
    scores = test.per_class
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_class_without_images_or_answers_has_no_score_and_no_warning() -> None:
    test = of_probabilities([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], [0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = test.per_class
    assert scores.support.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(scores.precision, [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(scores.recall, [1, 0, np.nan])
    assert np.isnan(scores.f1[2])


def test_the_interval_is_wilsons(random_answers: Evaluation) -> None:
    right, count, z = 90, 100, 1.959963984540054
    middle = (right + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(right * (count - right) / count + z**2 / 4)
    assert wilson_interval(right, count) == pytest.approx((middle - half, middle + half))
    assert wilson_interval(3, 3)[1] == 1
    low, high = random_answers.accuracy_interval
    assert low < random_answers.accuracy < high


def test_the_paired_interval_is_that_of_bonett_and_price() -> None:
    first = np.array([True] * 30 + [True] * 8 + [False] * 2 + [False] * 10)
    second = np.array([True] * 30 + [False] * 8 + [True] * 2 + [False] * 10)
    p, q = 9 / 52, 3 / 52
    half = 1.959963984540054 * np.sqrt((p + q - (p - q) ** 2) / 52)
    assert paired_difference(first, second) == pytest.approx((6 / 50, p - q - half, p - q + half))
    assert paired_difference(second, first) == pytest.approx((-6 / 50, q - p - half, q - p + half))


def test_the_paired_interval_of_equal_answers_has_a_width() -> None:
    right = np.ones(100, bool)
    value, low, high = paired_difference(right, right)
    assert value == 0
    assert low == -high < 0


def test_coverage_is_the_accuracy_of_the_surest_answers(random_answers: Evaluation) -> None:
    found = Coverage.of(np.array([0.2, 0.9, 0.5, 0.5, 0.7]), np.array([False, True, True, False, True]))
    np.testing.assert_allclose(found.share, [0.2, 0.4, 0.8, 1.0])  # two equal scores come together
    np.testing.assert_allclose(found.accuracy, [1, 1, 0.75, 0.6])
    assert [found.at(share) for share in (0.2, 0.3, 0.4, 0.5, 1.0)] == [1, 1, 1, 0.75, 0.6]
    whole = random_answers.coverage("probability")
    assert whole.at(1.0) == pytest.approx(random_answers.accuracy)
    surest = np.argsort(-random_answers.confidence)[:100]
    right = (random_answers.predictions == random_answers.labels)[surest]
    assert whole.at(0.5) == pytest.approx(right.mean(), abs=0.02)
