"""The examples that measure: each runs, small, and prints what it promises."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import shutil
import sys
from functools import partialmethod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from tnn_export import export_bundle
from tnn_runtime.answers.reject import ALL_SCORES
from tnn_runtime.bench import timing
from tnn_runtime.explain import EXPLAINERS
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train import (
    Checkpoint,
    LogicConfig,
    ModelConfig,
    TrainConfig,
    build_model,
    load_checkpoint,
    load_data,
    save_checkpoint,
    train,
)
from tnn_train.heads import HEADS
from tnn_train.heads.tversky.similarity import DIFFERENCES, INTERSECTIONS, MEMBERSHIPS, MODELS
from tnn_train.model.backbones import BACKBONES
from tnn_train.training.loop import TrainResult

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their module up by its name.
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured in this process is measured for a moment, stable or not."""
    monkeypatch.setattr(timing, "_TOLERANCE", np.inf)
    monkeypatch.setattr(timing, "_WINDOW_SECONDS", 0.001)
    monkeypatch.setattr(timing, "_BLOCK_SECONDS", 0.005)


class TestXor:
    @pytest.fixture
    def xor(self) -> ModuleType:
        return load("xor")

    def test_it_is_solved_and_drawn(self, xor: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        xor.command(["--seeds", "3", "--first-seed", "40", "--out", str(tmp_path)])
        printed = capsys.readouterr().out
        assert "four points: solved 3/3" in printed
        assert "at least 99%: 3/3" in printed
        assert (tmp_path / "xor.png").stat().st_size > 10_000

    def test_what_is_not_solved_is_named(
        self, xor: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(xor, "STEPS", 1)
        xor.command(["--seeds", "2", "--first-seed", "7", "--no-plots"])
        assert "not solved: seeds 7, 8" in capsys.readouterr().out

    def test_the_bayes_rate_is_that_of_the_quadrants(self, xor: ModuleType) -> None:
        x, y = xor.draw(200_000, 0.6, torch.Generator().manual_seed(0))
        quadrants = (x[:, 0] * x[:, 1] < 0).long()
        assert (quadrants == y).double().mean().item() == pytest.approx(xor.bayes_rate(0.6), abs=0.003)

    def test_the_table_has_every_form(
        self, xor: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(xor, "STEPS", 2)
        xor.command(["--seeds", "1", "--table"])
        rows = capsys.readouterr().out.strip().splitlines()
        assert len(rows) == 2 + len(MODELS) * len(INTERSECTIONS) * len(DIFFERENCES) * len(MEMBERSHIPS)

    @pytest.mark.parametrize("arguments", [["--noise", "0"], ["--first-seed", "-1"], ["--noise", "nan"]])
    def test_wrong_numbers_are_refused(
        self, xor: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert xor.run("xor", xor.command, arguments) == 1
        assert "expected --first-seed from 0 to 2^62 and a finite --noise" in capsys.readouterr().err


@pytest.mark.slow
def test_the_cost_of_the_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load("benchmark_head")
    monkeypatch.setattr(benchmark, "SIZES", ((8, 32, 48, 20), (4, 16, 8, 3)))
    benchmark.command(["--threads", str(torch.get_num_threads()), "--blocks", "1", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for form in ("product/ignorematch", "product/subtractmatch"):
        assert f"| 8, 32, 48, 20 | {form} |" in printed
    assert "| 8, 32, 74, 20 | unfolded |" in printed, "it has as many features as its classes have attributes"
    rows = json.loads((tmp_path / "benchmark_head.json").read_text())["rows"]
    assert len(rows) == 6
    for row in rows:
        assert set(row["forward_ms"]) == {"linear", "control", "eager", "broadcast", "lowered", "bare products"}
        assert set(row["measures_peak_mib"]) == {"eager", "broadcast"}
    assert (tmp_path / "benchmark_head.png").exists()
    head, x = torch.nn.Linear(100, 300), torch.randn(50, 100)
    gradients = 4 * (300 * 100 + 300 + 50 * 100 + 2 * 50 * 300)
    assert gradients / 2**20 <= benchmark._peak_mib(benchmark._step(head), x) <= 3 * gradients / 2**20


@pytest.mark.slow
def test_heads_where_they_are_served(
    runs: dict[str, TrainResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = load("heads/served")
    words = [str(runs[head].folder) for head in ("linear", "tversky")]
    options = ["--out", str(tmp_path), "--processes", "2", "--blocks", "2", "--batch", "2"]
    assert served.run("served", served.command, [*words, *options]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    assert header == ["head", "seeds", "accuracy in %", "ECE", "KiB", "difference in points", "latency, batch 2"]
    assert [row[0] for row in rows] == ["linear", "tversky"]
    assert [float(row[2]) for row in rows] == [
        pytest.approx(100 * runs[head].test.accuracy, abs=0.01) for head in ("linear", "tversky")
    ]
    assert rows[0][5:] == ["", ""]
    assert " (control " in rows[1][6]
    assert served.run("served", served.command, [words[1], *options]) == 1
    assert "none of the 1 runs has a linear head; give one to compare with" in capsys.readouterr().err


@pytest.mark.slow
def test_the_broadcast_head_is_the_same_head() -> None:
    benchmark = load("benchmark_head")
    for config in benchmark.FORMS.values():
        torch.manual_seed(0)
        head, other = (kind(16, 5, config) for kind in (benchmark.TverskyHead, benchmark.BroadcastHead))
        other.load_state_dict(head.state_dict())
        x = torch.randn(7, 16)
        torch.testing.assert_close(other(x), head(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--amp", "--compile"]])
def test_the_cost_of_a_training_step(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load("benchmark_step")
    monkeypatch.setattr(benchmark, "BACKBONE", "tiny")
    monkeypatch.setattr(benchmark, "SIZES", ((4, 8, "small"), (2, 12, "imagenet"))[: 1 if options else 2])
    # Three models go through Inductor in half a minute; that it takes them is tested elsewhere.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    threads = str(torch.get_num_threads())
    benchmark.command(["--threads", threads, "--rounds", "2", *options, "--out", str(tmp_path)])
    assert "| 4 of 8x8, small |" in capsys.readouterr().out
    report = json.loads((tmp_path / "benchmark_step.json").read_text())
    assert report["machine"]["amp"] == report["machine"]["compile"] == bool(options)
    assert [row["side"] for row in report["rows"]] == ([8] if options else [8, 12])
    for row in report["rows"]:
        for estimate in (row["ratio"], row["control"]):
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert {len(turns) for turns in row["samples_ms"].values()} == {2}
    assert benchmark.run("benchmark_step", benchmark.command, ["--rounds", "0"]) == 1
    assert "argument --rounds: got '0'; expected an integer of at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained checkpoint that processes without the backbones of the tests can load."""
    preprocessing = Preprocessing(16, 16, 3, (0.5,) * 3, (0.25,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (8, *preprocessing.shape), np.uint8)
    config = ModelConfig(backbone="resnet18", num_classes=5, stem="small")
    torch.manual_seed(0)
    model = build_model(config).eval()
    folder = tmp_path_factory.mktemp("engines") / "checkpoint"
    save_checkpoint(folder, Checkpoint(model, config, preprocessing, tuple("abcde"), images))
    return folder


@pytest.mark.slow
def test_ours_against_other_engines(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = load("benchmark_engines")
    options = ["--batch", "2", "--threads", "1", "--processes", "2", "--blocks", "2"]
    against = ["--against", "eager", "onnxruntime", "openvino"]
    engines.command([str(small), *options, *against, "--json", str(tmp_path / "engines.json")])
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "engines.json").read_text())
    assert [row["engine"] for row in content["rows"]] == ["ours", "control", "eager", "onnxruntime", "openvino"]
    assert set(content["versions"]) == {"onnxruntime", "torch", "openvino"}
    for row in content["rows"]:
        assert len(row["samples_ms"]) == 2
        assert f"{row['latency']['p50']['value']:.3f}" in printed
        assert (row["ours_over_it"] is None) == (row["engine"] == "ours")
    assert all(
        sorted(run["load_order"]) == sorted(engines.ENGINES.keys() - {"compile"} | {"ours", "control"})
        for run in content["runs"]
    )

    assert engines.run("benchmark_engines", engines.command, [str(small), "--blocks", "0"]) == 1
    assert "argument --blocks: got '0'; expected an integer of at least 1" in capsys.readouterr().err
    monkeypatch.setitem(engines.ENGINES, "openvino", (engines.openvino, "no_such_package"))
    assert engines.run("benchmark_engines", engines.command, [str(small), "--against", "openvino"]) == 1
    assert "openvino needs no_such_package, which is not installed" in capsys.readouterr().err


@pytest.mark.slow
def test_engines_that_do_not_run_the_same_model_are_not_timed(
    small: Path, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engines = load("benchmark_engines")
    other = [str(small), "--bundle", str(bundles["linear"]), "--against", "eager", "--batch", "2", "--threads", "1"]
    assert engines.run("benchmark_engines", engines.command, other) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "gives other logits than ours at batch 2" in captured.err.splitlines()[-1]


@pytest.mark.slow
def test_heads_on_a_frozen_backbone(
    runs: dict[str, TrainResult],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen = load("frozen_heads")
    monkeypatch.setattr(frozen, "BATCH_SIZE", 8)
    arguments = [str(runs["linear"].best), "--data", str(photos), "--seeds", "2", "--epochs", "3"]
    frozen.command([*arguments, "--out", str(tmp_path)])
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "frozen_heads.json").read_text())
    assert set(results) == set(frozen.HEADS)
    assert all(len(result["test"]) == 2 for result in results.values())
    assert len(list((tmp_path / "cache").iterdir())) == 3
    monkeypatch.setattr("tnn_train.training.embeddings._compute", None)
    frozen.command([*arguments, "--out", str(tmp_path)])
    assert capsys.readouterr().out == first
    assert frozen.run("frozen_heads", frozen.command, [*arguments[:-4], "--seeds", "1"]) == 1
    assert "expected --seeds of 2 to 10" in capsys.readouterr().err


@pytest.mark.slow
def test_the_size_of_blocks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = load("benchmark_blocks")
    monkeypatch.setattr(blocks, "SIZES", ((48, 20),))
    monkeypatch.setattr(blocks, "LOWERED", (96, 2048))
    monkeypatch.setattr(blocks, "EAGER", (4, 16))
    before = (blocks.tversky.BLOCK_VALUES, blocks.similarity.BLOCK)
    blocks.command(["--rounds", "1", "--threads", str(torch.get_num_threads())])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 48 x 20")]
    assert len(rows) == 4
    assert all("1.00" in row for row in rows)
    assert before == (blocks.tversky.BLOCK_VALUES, blocks.similarity.BLOCK)


class TestBenchmarkGpu:
    @pytest.fixture
    def benchmark(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        module = load("benchmark_gpu")
        monkeypatch.setattr(module, "THROUGHPUT_SECONDS", 0.02)
        return module

    def test_the_tables_have_every_contender_and_batch(
        self,
        benchmark: ModuleType,
        bundles: dict[str, Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """On the CPU, which goes the same way."""
        ways = [benchmark.Contender("cpu"), benchmark.Contender("cpu", torch="eager")]
        monkeypatch.setattr(benchmark, "contenders", lambda devices, with_torch: ways)
        pair = [str(bundles["tversky"]), str(bundles["linear"])]
        samples = tmp_path / "samples.json"
        benchmark.command([*pair, "--devices", "cpu", "--batch", "1", "3", "--blocks", "2", "--json", str(samples)])
        printed = capsys.readouterr().out
        assert printed.count("| | 1 | 3 |") == 4
        for way in ways:
            assert printed.count(f"\n| {way} | ") == 5
        first, *_ = printed.split("\nMedian latency")
        assert "mean of the medians of batches of 1, 3:" in first
        measured = json.loads(samples.read_text())
        ways_too = [row["contender"] for row in measured["alternating"]]
        assert ways_too == ["one session on cpu", "cpu", "torch eager on cpu"]
        assert all(f"\n| {way} | " in first for way in ways_too)
        rows = measured["rows"]
        assert [(row["contender"], row["batch"]) for row in rows] == [
            ("cpu", 1),
            ("cpu", 3),
            ("torch eager on cpu", 1),
            ("torch eager on cpu", 3),
        ]
        assert all(row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2] for row in rows)

    def test_pytorch_computes_what_the_bundle_is(self, benchmark: ModuleType, bundles: dict[str, Path]) -> None:
        images = np.zeros((3, 16, 16, 3), np.uint8)
        with benchmark.Contender("cpu", torch="eager").opened(bundles["tversky"], [3]) as (call, _):
            assert call(images).shape == (3, 2)

    def test_gpus_are_measured_with_and_without_graphs(self, benchmark: ModuleType) -> None:
        assert [str(way) for way in benchmark.contenders(["cuda", "tensorrt"], True)] == [
            "cuda",
            "cuda + graphs",
            "tensorrt",
            "tensorrt + graphs",
            "torch eager on cuda",
            "torch compile on cuda",
        ]

    @pytest.mark.parametrize("arguments", [["--batch", "0"], ["--blocks", "0"]])
    def test_wrong_numbers_are_refused(
        self, benchmark: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert benchmark.run("benchmark_gpu", benchmark.command, ["a", "b", *arguments]) == 1
        assert "got '0'; expected an integer of at least 1" in capsys.readouterr().err

    @pytest.mark.gpu
    @pytest.mark.slow
    def test_on_a_gpu(
        self, benchmark: ModuleType, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        pair = [str(bundles["tversky"]), str(bundles["linear"])]
        benchmark.command([*pair, "--devices", "cuda", "--batch", "1", "8", "--blocks", "2"])
        printed = capsys.readouterr().out
        assert printed.count("\n| one session on cuda | ") == 1
        assert printed.count("\n| cuda + graphs | ") == 5
        assert printed.count("\n| torch compile on cuda | ") == 4


class TestReject:
    @pytest.fixture
    def checkpoint(self, runs: dict[str, TrainResult], tmp_path: Path) -> Path:
        """An untrained model, which is not always right, with enough samples for a threshold."""
        torch.manual_seed(0)
        trained = load_checkpoint(runs["tversky"].best)
        samples = np.random.default_rng(0).integers(0, 256, (120, *trained.preprocessing.shape), dtype=np.uint8)
        untrained = dataclasses.replace(trained, model=build_model(trained.config), samples=samples, labels=None)
        save_checkpoint(tmp_path / "checkpoint", untrained)
        return tmp_path / "checkpoint"

    def test_it_prints_both_tables(self, checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        reject = load("reject")
        arguments = ["--data", str(photos), "--outside", str(photos / "cat"), "--limit", "4"]
        reject.command([str(checkpoint), str(checkpoint), *arguments])
        lines = capsys.readouterr().out.splitlines()
        rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
        covered = [f"{score}, coverage {coverage}" for score in ALL_SCORES for coverage in (0.95, 0.99)]
        assert rows == ["score", *ALL_SCORES, "share rejected", *covered]
        kinds = ["wrong", "the folder", "noise", "inverted", "turned around"]
        assert [cell.strip() for cell in lines[1].split("|")[2:-1]] == kinds
        assert all(0 <= float(cell.split()[0]) <= 1 for line in lines[3:7] for cell in line.split("|")[2:-1])

    def test_bad_input(
        self, runs: dict[str, TrainResult], checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        reject = load("reject")
        for options, message in (
            (["--outside", "nowhere"], "nowhere has no files; expected a folder of images for --outside"),
            (
                ["--outside", str(photos), "--limit", "0"],
                "argument --limit: got '0'; expected an integer of at least 1",
            ),
        ):
            assert reject.run("reject", reject.command, [str(checkpoint), "--data", str(photos), *options]) == 1
            assert message in capsys.readouterr().err
        arguments = [str(runs["tversky"].best), "--data", str(photos), "--outside", str(photos)]
        assert reject.run("reject", reject.command, arguments) == 1
        assert "test images are alike, right or wrong; give a larger --limit" in capsys.readouterr().err


class TestCalibration:
    def test_it_prints_a_row_for_each_bundle(
        self, bundles: dict[str, Path], bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        (bundle / "manifest.json").write_text(json.dumps({**manifest, "temperature": 4.0}))
        calibration = load("calibration")
        calibration.command([str(bundles["linear"]), str(bundle), "--data", str(photos), "--limit", "6"])
        header, _, *rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
        ]
        assert tuple(header) == calibration.HEADER
        plain, scaled = (dict(zip(header, row, strict=True)) for row in rows)
        assert (plain["bundle"], plain["images"], plain["temperature"]) == ("linear", "6", "none")
        assert (plain["ECE before"], plain["NLL before"]) == (plain["ECE after"], plain["NLL after"])
        assert (scaled["bundle"], scaled["temperature"]) == ("bundle", "4.000")
        assert scaled["NLL before"] != scaled["NLL after"]


class TestAnyRuntime:
    """Bundles in the ONNX Runtime that there is."""

    @pytest.fixture
    def any_runtime(self) -> ModuleType:
        return load("any_runtime")

    def test_it_compares_golden_samples(
        self, any_runtime: ModuleType, bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert any_runtime.main([str(bundles["linear"]), str(bundles["tversky"])]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[1] for line in lines] == [str(bundles["linear"]), str(bundles["tversky"])]
        assert all("  passed, logits differ by up to " in line for line in lines)

    @pytest.mark.parametrize("fault", ["model", "golden"])
    def test_what_does_not_load_or_differs_fails(
        self, fault: str, any_runtime: ModuleType, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if fault == "model":
            (bundle / "model.onnx").write_bytes(b"no model")
        else:
            with np.load(bundle / "golden.npz") as golden:
                np.savez(bundle / "golden.npz", images=golden["images"], logits=golden["logits"] + np.float32(0.1))
        assert any_runtime.main([str(bundle)]) == 1
        assert f"{bundle}  FAILED, " in capsys.readouterr().out


class TestWhere:
    @pytest.fixture
    def where(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        module = load("where")
        monkeypatch.setitem(BACKBONES, module.BACKBONE, None)
        return module

    @pytest.mark.slow
    def test_it_trains_exports_and_explains(
        self, where: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        small = ["--side", "32", "--blocks", "1", "--per-class", "6", "--epochs", "1", "--images", "13"]
        where.command(["--out", str(tmp_path), "--heads", "linear", *small])
        rows = capsys.readouterr().out.strip().splitlines()[-2:]
        assert [row.split(" | ")[:2] for row in rows] == [["| linear", "strongest feature"], ["| linear", "logit"]]
        assert all(0 < float(row.split(" | ")[2].partition("%")[0]) < 100 for row in rows)

    @pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 1), (1, 0), (1, 1)])
    def test_mass_is_what_is_above_0_in_the_quadrant(self, where: ModuleType, row: int, column: int) -> None:
        places = np.full((4, 4), -1.0, np.float32)
        places[0, 0], places[0, 3], places[3, 0], places[3, 3] = 1, 2, 3, 4
        share, is_hit = where.inside(places, (row, column))
        assert share == pytest.approx((1 + 2 * row + column) / 10)
        assert is_hit == ((row, column) == (1, 1))
        assert where.inside(-np.abs(places), (row, column)) == (0.25, False)

    def test_objects_lie_in_their_quadrant_alone(self, where: ModuleType) -> None:
        draws = np.random.default_rng(0)
        for label in where.CLASSES * 5:
            image, (row, column) = where.draw(draws, label, 32)
            pixels = np.asarray(image).astype(int)
            coloured = (pixels == where.COLOURS[label.split()[0]]).all(2)
            inside = coloured[16 * row : 16 * (row + 1), 16 * column : 16 * (column + 1)]
            assert inside.sum() == coloured.sum() > 20

    @pytest.mark.parametrize("wrong", [["--side", "36"], ["--side", "24"], ["--images", "1"]])
    def test_wrong_numbers_are_refused(
        self, where: ModuleType, wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert where.run("where", where.command, ["--out", str(tmp_path / "out"), *wrong]) == 1
        assert "expected a multiple of 8 from 32 on" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_cosine_head_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (HEADS, EXPLAINERS):
        monkeypatch.setitem(table, "cosine", None)  # to be as it was afterwards
    example = load("audit_heads")
    torch.manual_seed(0)
    head, x, labels = example.CosineHead(5, 3), torch.randn(30, 5), torch.arange(30) % 3
    with torch.no_grad():
        head.start([(x, labels)])
        assert torch.allclose(head.prototypes, torch.stack([x[labels == one].mean(0) for one in range(3)]))
        logits = head(x).numpy()
        np.savez(tmp_path / "head.npz", **{name: tensor.numpy() for name, tensor in head.arrays().items()})
    explain = example.CosineExplainer(tmp_path / "head.npz", None, ("a", "b", "c"), 5)
    for row, found in zip(logits, explain(x.numpy(), logits, 3), strict=True):
        assert [one.logit for one in found] == pytest.approx([row[one.index] for one in found], abs=1e-4)


class TestPixels:
    @pytest.mark.slow
    def test_it_trains_and_removes_pixels(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.syspath_prepend(str(EXAMPLES))
        module = load("pixels")
        monkeypatch.setitem(BACKBONES, module.BACKBONE, None)
        small = ["--image-size", "8", "--limit", "60", "--epochs", "1", "--images", "20", "--heads", "tversky"]
        module.command(["--out", str(tmp_path), *small])
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| tversky"))
        cells = row.split(" | ")
        assert cells[2] == "4x4"
        assert len(cells) == len(module.COLUMNS)
        assert 0 <= float(cells[3].partition("%")[0]) <= 100


@pytest.fixture(scope="module")
def logic(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A small logic head on the pixels of digits; read only."""
    recipe = TrainConfig(epochs=1, augment=(), exemplars=0)
    model = ModelConfig("pixels", "logic", logic=LogicConfig(bits=1, layers=1))
    return train(load_data("digits", limit=300), tmp_path_factory.mktemp("logic") / "run", model, recipe)


def test_logic_heads_relaxed_and_discrete(logic: TrainResult, capsys: pytest.CaptureFixture[str]) -> None:
    program = load("heads/logic_accuracy")
    program.command([str(logic.folder)])
    assert re.search(r"relaxed 0\.\d{4}, discrete 0\.\d{4} on 359 test images", capsys.readouterr().out)
    assert program.run("logic_accuracy", program.command, [str(logic.folder / "no")]) == 1


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this system")
def test_compiled_logic_against_onnxruntime(
    logic: TrainResult, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    export_bundle(logic.best, tmp_path / "bundle", ("onnx",))
    program = load("heads/logic_speed")
    program.command([str(tmp_path / "bundle"), "--batch", "3", "--blocks", "2"])
    printed = capsys.readouterr().out
    assert "359 images and as many of random pixels: logits and embeddings are the same bits" in printed
    assert all(re.search(rf"3 +{name} ", printed) for name in (program.OURS, program.CONTROL, program.ORT))
