"""What pictures and pages show: titles inside of them, legends that say what is drawn, pages that fit a phone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tnn_runtime.bench.plots import _latency_figure, _ratio_figure
from tnn_train.evaluation.metrics import Evaluation
from tnn_train.report.plots import plot_reliability

ROOT = Path(__file__).parents[1]


def latency(milliseconds: float) -> Any:
    return SimpleNamespace(**{name: SimpleNamespace(value=milliseconds) for name in ("p50", "p90", "p99")})


def bench_report(a: str, b: str) -> Any:
    """A comparison of two bundles at these paths, with what the plots look at."""
    ratio = SimpleNamespace(value=1.0, low=0.9, high=1.1, upper95=1.08)
    comparison = SimpleNamespace(
        threads=1,
        batch=1,
        place="1 thread, batch 1",
        a=latency(1.0),
        b=latency(1.1),
        ratio=ratio,
        control=ratio,
        claim=SimpleNamespace(outcome="not shown"),
    )
    cpu = "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz"
    return SimpleNamespace(a=a, b=b, machine={"cpu": cpu}, device="cpu", comparisons=[comparison], margin=0.02)


@pytest.mark.parametrize("draw", [_latency_figure, _ratio_figure])
@pytest.mark.parametrize("length", [5, 38, 80, 300])
@pytest.mark.parametrize("letter", ["a", "W", "$"])
def test_the_title_of_a_benchmark_lies_inside_of_the_picture(draw: Any, length: int, letter: str) -> None:
    figure = draw(bench_report(letter * length, letter * length))
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)
    title = figure._suptitle.get_window_extent(renderer)
    assert figure.bbox.x0 <= title.x0 < title.x1 <= figure.bbox.x1


@pytest.mark.parametrize("seed", range(3))
def test_the_dots_of_the_calibration_are_called_what_they_are(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 2, (60, 3)), random.integers(0, 3, 60)
    calibration = Evaluation.of(torch.from_numpy(logits), torch.from_numpy(labels)).calibration()
    figure = plot_reliability(calibration)
    (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert np.array_equal(dots.get_ydata(), calibration.accuracy, equal_nan=True)
    assert dots.get_label() == "accuracy at mean confidence"
    assert "accuracy" in [text.get_text() for text in figure.legends[0].get_texts()]


PAGES = ("tnn_train/report/base.html.jinja", "examples/demo/report.html.jinja")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "rule", ['name="viewport" content="width=device-width', "img { max-width: 100%", "overflow-x: auto"]
)
def test_a_page_fits_a_phone(page: str, rule: str) -> None:
    assert rule in (ROOT / page).read_text()
