"""What images cost to decode is bounded by the pixels that they declare and the bytes that they have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="memory is limited by POSIX means")

import costs


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the kernel tells the largest memory of a process"
)
@pytest.mark.parametrize("count", [132, pytest.param(20_000, marks=pytest.mark.exhaustive)])
def test_no_image_costs_more_than_its_pixels_and_bytes_allow(count: int) -> None:
    command = [sys.executable, costs.__file__, "0", str(count)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace", timeout=7200)
    assert result.returncode == 0, (result.stdout, result.stderr[-3000:])
    assert f"0 of {count} over the bound" in result.stdout


@pytest.mark.parametrize(
    ("form", "time", "memory", "is_over"),
    [
        ("JPEG", 33, 1, True),
        ("PNG", 1, 65, True),
        ("WebP", 33, 33, False),
        ("WebP", 129, 1, True),
        ("none", 1, 1, False),
    ],
)
def test_what_is_over_the_bound_is_found(form: str, time: float, memory: float, is_over: bool) -> None:
    cost = costs.Cost(0, form, "honest", "answered", (1, 1), time, memory, 1.0, 1.0)
    assert costs.over([cost]) == [cost] * is_over
