from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tnn_export import export_bundle
from tnn_runtime import UsageError
from tnn_runtime.benchmark import compare_bundles, interleave, machine, median_ratio
from tnn_train import ModelConfig, TrainConfig, load_data, train


def test_bundles_are_compared_with_a_control(bundles: dict[str, Path]) -> None:
    rounds = []
    results = compare_bundles(
        bundles["tversky"], bundles["linear"], (1, 4), threads=1, blocks=5, progress=lambda: rounds.append(1)
    )
    assert len(rounds) == 10
    assert [result.batch for result in results] == [1, 4]
    for result in results:
        assert set(result.samples_ms) == {"a", "b", "control"}
        assert {len(blocks) for blocks in result.samples_ms.values()} == {5}
        everything = np.concatenate(result.samples_ms["a"])
        assert result.a_ms["p50"] == pytest.approx(np.median(everything))
        assert result.a_ms["p50"] <= result.a_ms["p90"] <= result.a_ms["p99"]
        assert result.ratio == pytest.approx(result.a_ms["p50"] / result.b_ms["p50"])
        assert result.ratio_ci95[0] <= result.ratio <= result.ratio_ci95[1]
        assert result.aa_ratio_ci95[0] <= result.aa_ratio <= result.aa_ratio_ci95[1]


def test_a_real_difference_shows_and_an_equal_pair_does_not() -> None:
    def spin(seconds: float):
        def call(batch: np.ndarray) -> None:
            stop = time.perf_counter() + seconds
            while time.perf_counter() < stop:
                pass

        return call

    random = np.random.default_rng(0)
    calls = {"a": spin(3e-3), "b": spin(1e-3), "control": spin(1e-3)}
    samples = interleave(calls, [np.zeros(1, np.uint8)], 20, random)
    ratio, (low, high) = median_ratio(samples["a"], samples["b"], random)
    assert low <= ratio <= high
    assert 2 < ratio < 4
    control, _ = median_ratio(samples["control"], samples["b"], random)
    assert 0.7 < control < 1.4


def test_turns_are_interleaved_in_changing_order_on_distinct_inputs() -> None:
    seen: list[tuple[str, int]] = []
    calls = {name: lambda batch, name=name: seen.append((name, int(batch[0]))) or time.sleep(0.004) for name in "abc"}
    inputs = [np.full(1, value, np.uint8) for value in range(4)]
    samples = interleave(calls, inputs, 6, np.random.default_rng(0))
    repeats = len(samples["a"][0])
    timed = seen[-3 * 6 * repeats :]
    turns = ["".join(name for name, _ in timed[start::repeats][:3]) for start in range(0, len(timed), 3 * repeats)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert {value for _, value in timed} == set(range(min(4, repeats)))


def test_bundles_of_different_sizes_are_refused(bundles: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    small = load_data(photos, image_size=12)
    run = train(small, tmp_path / "run", ModelConfig(backbone="tiny"), TrainConfig(epochs=1))
    export_bundle(run.best, tmp_path / "bundle", formats=["onnx"])
    with pytest.raises(UsageError, match=r"takes images of shape \[12, 12, 3\] and .* of \[16, 16, 3\]"):
        compare_bundles(tmp_path / "bundle", bundles["linear"])


def test_numbers_out_of_range(bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"batch sizes are \[0\] and blocks 30; expected at least 1"):
        compare_bundles(bundles["tversky"], bundles["linear"], (0,))


def test_the_machine_is_described() -> None:
    assert set(machine()) == {"cpu", "cores", "system", "python", "numpy"}
