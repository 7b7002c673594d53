from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest, multinomial

from tnn_export.formats.precision import PRECISIONS
from tnn_export.proof.agreement import ERROR, Agreement, Share, judge_classes


def judged(precision: str, total: int, other: int, lost: int | None = None, won: int = 0) -> Agreement:
    """Judge an artifact with so many other classes, and so many that only eager PyTorch, or only it, has right."""
    same, right, eager_right = np.ones((3, total), bool)
    same[:other] = False
    if lost is None:
        return judge_classes(PRECISIONS[precision], same, right[:0], right[:0])
    right[:lost] = False
    eager_right[lost : lost + won] = False
    return judge_classes(PRECISIONS[precision], same, right, eager_right)


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (0, 29), (1, 29), (10, 512), (512, 512), (3, 100_000)])
def test_the_bounds_are_those_of_clopper_and_pearson(count: int, total: int) -> None:
    low, high = binomtest(count, total).proportion_ci(1 - 2 * ERROR, "exact")
    assert Share(count, total).bounds == pytest.approx((low, high), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("precision", "total", "other", "outcome", "needed"),
    [
        ("int8", 29, 0, "undecided", 99),
        ("int8", 29, 1, "undecided", 157),
        ("int8", 98, 0, "undecided", 99),
        ("int8", 99, 0, "shown", None),
        ("int8", 512, 8, "shown", None),
        ("int8", 512, 20, "undecided", None),
        ("int8", 512, 30, "refused", None),
        ("int8", 8, 4, "refused", None),
        ("fp16", 298, 0, "undecided", 299),
        ("fp16", 299, 0, "shown", None),
        ("fp16", 100, 2, "undecided", 628),
        ("fp16", 100, 6, "refused", None),
        ("bf16", 148, 0, "undecided", 149),
        ("bf16", 149, 0, "shown", None),
        ("fp32", 1, 1, "shown", None),
    ],
)
def test_other_classes_are_decided_on_when_there_are_enough_images(
    precision: str, total: int, other: int, outcome: str, needed: int | None
) -> None:
    found = judged(precision, total, other)
    assert (len(found.problems), len(found.undecided)) == (outcome == "refused", outcome == "undecided")
    assert found.top1 == pytest.approx(1 - other / total)
    seen = f"the best class is the same on {total - other} of {total} real images"
    for line in found.problems:
        assert line.startswith(seen)
        assert line.endswith("; try another precision, or more images for calibration")
    for line in found.undecided:
        assert line.startswith(f"too few images to tell: {seen}")
        assert needed is None or line.endswith(f"; {needed:,} images with no more differences would tell")


@pytest.mark.parametrize(
    ("precision", "total", "lost", "won", "outcome", "needed"),
    [
        ("int8", 29, 1, 0, "undecided", 555),
        ("int8", 367, 0, 0, "undecided", 368),
        ("int8", 368, 0, 0, "shown", None),
        ("int8", 512, 20, 0, "refused", None),
        ("int8", 512, 20, 18, "undecided", None),
        ("bf16", 30, 30, 0, "refused", None),
        ("fp16", 735, 0, 0, "undecided", 736),
        ("fp16", 736, 0, 0, "shown", None),
        ("fp16", 50, 0, 10, "shown", None),
        ("fp32", 3, 3, 0, "shown", None),
    ],
)
def test_a_loss_of_accuracy_is_decided_on_when_there_are_enough_images(
    precision: str, total: int, lost: int, won: int, outcome: str, needed: int | None
) -> None:
    found = judged(precision, total, 0, lost, won)
    lines = [line for line in (*found.problems, *found.undecided) if "right class" in line]
    assert len(lines) == (outcome != "shown")
    assert any("right class" in line for line in found.problems) == (outcome == "refused")
    assert found.accuracy == pytest.approx(1 - lost / total)
    assert found.eager_accuracy == pytest.approx(1 - won / total)
    for line in lines:
        assert f"{total - lost} of {total} real images get the right class, and {total - won} in eager float32" in line
        assert needed is None or line.endswith(f"; {needed:,} images with no more differences would tell")


@pytest.mark.parametrize("allowed", [0.01, 0.02, 0.03, 0.2])
@pytest.mark.parametrize("total", [8, 29, 111, 512])
def test_a_share_that_is_just_allowed_is_hardly_ever_refused_and_one_beyond_hardly_ever_shown(
    total: int, allowed: float
) -> None:
    counts = np.arange(total + 1)
    bounds = np.array([Share(int(count), total).bounds for count in counts])
    chances = binom.pmf(counts, total, allowed)
    assert chances[bounds[:, 0] > allowed].sum() <= ERROR
    assert chances[bounds[:, 1] < allowed].sum() <= ERROR


@pytest.mark.parametrize("total", [20, 60])
@pytest.mark.parametrize("won", [0.0, 0.02, 0.1])
def test_so_is_a_difference_of_shares(total: int, won: float) -> None:
    allowed = 0.05
    refused = shown = 0.0
    for lost in range(total + 1):
        for against in range(total + 1 - lost):
            low, high = Share(lost, total, against).bounds
            chance = multinomial.pmf(
                [lost, against, total - lost - against], total, [won + allowed, won, 0.95 - 2 * won]
            )
            refused += chance * (low > allowed)
            shown += chance * (high < allowed)
    assert refused <= ERROR
    assert shown <= ERROR


@pytest.mark.parametrize("share", [Share(0, 1), Share(4, 9), Share(0, 1, 0), Share(7, 20, 2), Share(1, 20, 9)], ids=str)
@pytest.mark.parametrize("allowed", [0.005, 0.03, 0.2])
def test_the_fewest_images_that_tell_are_told(share: Share, allowed: float) -> None:
    fewest = share.fewest(allowed)
    assert Share(share.count, fewest, share.against).bounds[1] <= allowed
    if fewest > share.count + (share.against or 0):
        assert Share(share.count, fewest - 1, share.against).bounds[1] > allowed
