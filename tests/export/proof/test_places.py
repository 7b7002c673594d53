"""Outputs that are the place of the smallest value in another one: of equal values, either place is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lvq_forms import SIZE, random_head
from numpy.typing import NDArray

from tnn_export.lowering import lower_head
from tnn_export.proof.parity import check_parity
from tnn_export.proof.reference import Reference
from tnn_export.proof.report import ParityReport
from tnn_export.proof.running import Ran
from tnn_export.proof.samples import Samples
from tnn_train import LvqConfig, LvqHead

Outputs = dict[str, NDArray[Any]]


def judged(head: LvqHead, x: torch.Tensor, change: Callable[[Outputs], Any]) -> ParityReport:
    """Compare the lowered head with the eager one, after a change of its outputs."""
    samples = Samples(x.numpy(), ("real",) * len(x), np.full(len(x), -1, np.int64))
    lowered = lower_head(head, parts=True)

    def run(batches: Sequence[NDArray[Any]]) -> Ran:
        outputs = []
        for batch in batches:
            found = {name: value.numpy().copy() for name, value in lowered(torch.from_numpy(batch)).items()}
            change(found)
            outputs.append({**found, "embedding": batch})
        return Ran(outputs)

    return check_parity(Reference(head, samples, x, parts=True), {"it": run}, batch_sizes=(len(x),))


def tied() -> tuple[LvqHead, torch.Tensor]:
    """Return a head with two prototypes of a class at nearly the same place, and images near them."""
    head, _ = random_head(LvqConfig(prototypes=2))
    with torch.no_grad():
        head.prototypes[1] = head.prototypes[0] + 1e-6
    return head, head.prototypes[:1].detach() + 0.3 * torch.randn(9, SIZE, generator=torch.Generator().manual_seed(0))


def other(outputs: Outputs) -> None:
    outputs["nearest"] = 1 - outputs["nearest"]


def test_of_two_equal_distances_either_place_is_right() -> None:
    head, x = tied()
    assert set(head.evidence(x)["nearest"].flatten().tolist()) <= {0.0, 1.0}
    for change in (lambda outputs: None, other):
        assert judged(head, x, change).passed


@pytest.mark.parametrize("place", [2.0, 7.0, -1.0, 8.0, 0.5, np.nan, np.inf])
def test_a_wrong_place_is_refused(place: float) -> None:
    head, x = tied()

    def wrong(outputs: Outputs) -> None:
        outputs["nearest"][0] = place

    report = judged(head, x, wrong)
    assert not report.passed
    assert "1 of 9 samples differ" in report.summary()


def test_a_wrong_place_of_a_right_minimum_does_not_hide_wrong_distances() -> None:
    head, x = tied()

    def wrong(outputs: Outputs) -> None:
        outputs["distances"][0, 3] *= 1.01

    assert not judged(head, x, wrong).passed
