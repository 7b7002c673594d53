from __future__ import annotations

import asyncio
import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.special import logsumexp, softmax
from waiting import FOREVER

from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main
from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import SCORES, Reject, calibrate, fewest_samples
from tnn_runtime.bundle.manifest import SCHEMA_VERSION

BUNDLE = FIXTURES / f"bundle-v{SCHEMA_VERSION}"
LOGITS = np.random.default_rng(0).normal(0, 3, (500, 5)).astype(np.float32)


def of(logits: np.ndarray) -> Outputs:
    return Outputs(logits, np.zeros((len(logits), 1), np.float32))


def set_rule(bundle: Path, **changes: object) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    content["reject"] = content["reject"] | changes if changes else None
    (bundle / "manifest.json").write_text(json.dumps(content))


def test_scores_are_what_they_are_called() -> None:
    extreme = np.concatenate([LOGITS, LOGITS * 1e4, np.full((1, 5), -1e30, np.float32)])
    expected = {
        "probability": softmax(extreme.astype(np.float64), axis=1).max(1),
        "logit": extreme.max(1),
        "lead": 2.0 * np.sort(extreme.astype(np.float64))[:, -1] - np.sort(extreme.astype(np.float64))[:, -2],
        "energy": logsumexp(extreme.astype(np.float64), axis=1),
    }
    assert set(expected) == set(SCORES)
    for name, values in expected.items():
        found = SCORES[name](extreme)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values, rtol=1e-6)
        assert SCORES[name](LOGITS[:0]).shape == (0,)


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
@given(
    logits=arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(width=32) | st.just(3e38)
    )
)
def test_scores_are_exactly_those_that_thresholds_in_released_bundles_were_found_with(logits: np.ndarray) -> None:
    most = logits.max(axis=1, keepdims=True)
    total = np.exp(logits.astype(np.float64) - most).sum(axis=1)
    for name, expected in (("probability", 1 / total), ("energy", most[:, 0] + np.log(total))):
        np.testing.assert_array_equal(SCORES[name](logits), expected.astype(np.float32))


@pytest.mark.parametrize("score", SCORES)
@given(count=st.integers(1, 400), coverage=st.sampled_from([0.5, 0.75, 0.9, 0.95, 0.99, 0.999]))
def test_at_most_the_stated_share_of_the_samples_is_rejected(score: str, count: int, coverage: float) -> None:
    rule = calibrate(of(LOGITS[:count]), score, coverage)
    assert (rule.score, rule.coverage, rule.samples) == (score, coverage, count)
    assert (rule.threshold is None) == (count < fewest_samples(coverage))
    if rule.threshold is not None:
        rejected = int(rule.rejects(rule.scores(of(LOGITS[:count]))).sum())
        assert rejected < (count + 1) * (1 - coverage) + 1e-9
        assert rejected >= (count + 1) * (1 - coverage) - 2


def test_unseen_images_of_the_same_kind_are_covered() -> None:
    """Over many draws of 199 samples, 5% of others are rejected, on average."""
    random = np.random.default_rng(1)
    shares = []
    for _ in range(300):
        logits = random.normal(0, 3, (1199, 5)).astype(np.float32)
        rule = calibrate(of(logits[:199]), "energy", 0.95)
        shares.append(rule.rejects(rule.scores(of(logits[199:]))).mean())
    assert np.mean(shares) == pytest.approx(0.05 - 0.05 / 200, abs=0.004)


def test_what_is_no_number_is_rejected() -> None:
    logits = np.array([[np.nan, 1], [1, 2], [np.inf, np.inf], [3e38, 3e38]], np.float32)
    for score in SCORES:
        rule = Reject(score, -1e30, 0.9, 10)
        rejected = rule.rejects(rule.scores(of(logits)))
        assert rejected[:2].tolist() == [True, False]
        assert rejected.shape == (4,)


@pytest.mark.parametrize(("coverage", "count"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.999, 999)])
def test_the_fewest_samples(coverage: float, count: int) -> None:
    assert fewest_samples(coverage) == count


def test_rejected_images_have_no_predictions(small_bundle: Path) -> None:
    with np.load(BUNDLE / "golden.npz") as golden:
        images = golden["images"]
    with Classifier.load(small_bundle, "cpu") as classifier:
        scores = classifier.reject_scores(images)
        np.testing.assert_array_equal(scores, SCORES[classifier.info["reject"]["score"]](classifier.logits(images)))
        assert all(classifier.predict(images))
    middle = float(np.median(scores))
    set_rule(small_bundle, threshold=middle)
    with Classifier.load(small_bundle, "cpu") as classifier:
        assert classifier.info["reject"]["threshold"] == middle
        answers = classifier.predict(images, reject=True)
        assert [bool(ranked) for ranked in answers] == (scores >= middle).tolist()
        assert 0 < sum(map(bool, answers)) < len(images)
        kept = [ranked for ranked in classifier.predict(images) if ranked in answers]
        assert kept == [ranked for ranked in answers if ranked]
        assert classifier.predict([], reject=True) == []
        queued = [classifier.submit(image, reject=True).result(FOREVER) for image in images]
        waited = asyncio.run(classifier.predict_async(images, reject=True))
        assert [bool(ranked) for ranked in queued] == [bool(ranked) for ranked in waited] == (scores >= middle).tolist()


def test_the_command_prints_rejected(small_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", str(small_bundle), str(photos / "cat" / "0.png"), "--device", "cpu"]
    set_rule(small_bundle, threshold=1e9)
    assert main(arguments) == 0
    assert "rejected" not in capsys.readouterr().out
    assert main([*arguments, "--reject"]) == 0
    assert capsys.readouterr().out.split() == [str(photos / "cat" / "0.png"), "rejected"]
    assert main([*arguments, "--reject", "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["rank"], row["label"], row["score"]) == ("", "rejected", "")
    assert main([*arguments, "--reject", "--format", "jsonl"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["predictions"], answer["rejected"]) == ([], True)
    assert answer["reject_score"] < 1e9


def test_a_bundle_that_cannot_reject_says_why(small_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((1, 8, 8, 3), np.uint8)
    set_rule(small_bundle, threshold=None, coverage=0.99)
    with Classifier.load(small_bundle, "cpu") as classifier:
        with pytest.raises(UsageError, match=r"made with 6 held-out images, and a coverage of 0.99 needs 99; "):
            classifier.predict(images, reject=True)
        assert classifier.reject_scores(images).shape == (1,)
    for bundle in (small_bundle, FIXTURES / "bundle-v2"):
        if bundle == small_bundle:
            set_rule(bundle)
        with Classifier.load(bundle, "cpu") as classifier:
            assert classifier.info["reject"] is None
            with pytest.raises(UsageError, match="this bundle has no reject score; export its checkpoint again"):
                classifier.reject_scores(images)
            with pytest.raises(UsageError, match="this bundle has no reject score"):
                classifier.predict(images, reject=True)
    assert main(["predict", str(small_bundle), "x.png", "--reject"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tnn-runtime: error: this bundle has no reject score")
    assert error.count("\n") == 1


def test_the_rule_is_a_plain_value() -> None:
    rule = calibrate(of(LOGITS), "logit", 0.99)
    assert Reject(**json.loads(json.dumps(dataclasses.asdict(rule)))) == rule
