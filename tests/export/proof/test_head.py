from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tnn_export.proof.head import compare_heads
from tnn_export.proof.reference import Reference
from tnn_export.proof.samples import Samples
from tnn_train import TverskyConfig, TverskyHead


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(
    "form", [{}, {"model": "ratio"}, {"intersection": "min"}, {"intersection": "max"}, {"num_prototypes": 7}], ids=str
)
def test_heads_with_prototypes_of_any_size_are_proven_with_their_parts(form: dict[str, Any], scale: float) -> None:
    torch.manual_seed(0)
    head = TverskyHead(128, 20, TverskyConfig(512, **form)).eval()
    with torch.no_grad():
        head.prototypes *= scale
    samples = Samples(np.zeros((12, 1, 1, 1), np.uint8), ("real",) * 12, np.full(12, -1))
    parity = compare_heads(head, Reference(head, samples, torch.randn(12, 128).relu(), parts=True))
    assert parity.problems == ()
    assert parity.max_rel_diff < 2e-5
