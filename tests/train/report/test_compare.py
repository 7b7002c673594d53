from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tnn_runtime import ArtifactError, UsageError
from tnn_runtime.console import run
from tnn_train import ModelConfig, TrainConfig, TverskyConfig
from tnn_train.commands.compare import command
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.report.compare import Comparison, compare_runs, write_comparison

LINEAR = ModelConfig(head="linear")
TVERSKY = ModelConfig()


def write_run(
    folder: Path,
    model: ModelConfig,
    seed: int = 0,
    accuracy: float = 0.9,
    recipe: TrainConfig | None = None,
    epochs: int = 2,
    **others: Any,
) -> Path:
    """Write what a finished training leaves behind; ``epochs`` is how many it ran."""
    recipe = dataclasses.replace(recipe or TrainConfig(epochs=2), seed=seed)
    folder.mkdir()
    rows = [{"epoch": epoch + 1, "val_accuracy": accuracy - 0.1 / (epoch + 1)} for epoch in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = {
        "schema_version": 1,
        "config": {
            "data": {"source": "digits", "seed": seed},
            "model": dataclasses.asdict(model),
            "train": dataclasses.asdict(recipe),
        },
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "ece": 0.02,
        "best_epoch": 2,
        "val_accuracy": accuracy - 0.05,
        "images": {"train": 100, "val": 20, "test": 30},
        "class_names": ["a", "b"],
        "confusion": [[15, 0], [0, 15]],
        "parameters": 1234,
        "seconds": 75.0,
        "images_per_second": 100.0 + seed,
        "device": "cpu",
        "threads": 2,
        "processes": 1,
        "versions": {"torch": "2"},
    }
    (folder / "results.json").write_text(json.dumps({**results, **others}))
    return folder


ACCURACIES = {"linear": [0.90, 0.92, 0.91], "tversky": [0.93, 0.94, 0.95]}


@pytest.fixture
def six(tmp_path: Path) -> list[Path]:
    """Three seeds of each head."""
    return [
        write_run(tmp_path / f"{model.head}-{seed}", model, seed, accuracy)
        for model in (LINEAR, TVERSKY)
        for seed, accuracy in enumerate(ACCURACIES[model.head])
    ]


def names(comparison: Comparison) -> list[str]:
    return [group.name for group in comparison.groups]


def test_runs_that_differ_in_seeds_only_are_one_group(six: list[Path]) -> None:
    comparison = compare_runs(six)
    assert names(comparison) == ["head=linear", "head=tversky"]
    assert [len(group.runs) for group in comparison.groups] == [3, 3]
    assert comparison.warnings == ()


def test_the_interval_is_that_of_scipy(six: list[Path]) -> None:
    group = compare_runs(six).groups[1]
    estimate = group.estimate("test_loss")
    values = [1 - accuracy for accuracy in ACCURACIES["tversky"]]
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert estimate.values == tuple(values)
    assert estimate.mean == pytest.approx(np.mean(values))
    assert estimate.interval == pytest.approx(expected)


def test_the_interval_of_a_share_is_that_of_its_log_odds(six: list[Path]) -> None:
    values = np.array(ACCURACIES["tversky"])
    odds = values.mean() / (1 - values.mean())
    factor = np.exp(stats.t.ppf(0.975, 2) * stats.sem(values) / (values.mean() * (1 - values.mean())))
    expected = [odds / factor / (1 + odds / factor), odds * factor / (1 + odds * factor)]
    assert compare_runs(six).groups[1].estimate("test_accuracy").interval == pytest.approx(expected)


@pytest.mark.parametrize(
    "values",
    [(0.9, 1.0), (0.98, 0.999, 1.0), (0.0, 0.01), (0.0, 0.0, 0.1), (0.5, 0.1), (1e-12, 0.0), (1.0, 1 - 1e-12)],
)
def test_no_interval_leaves_what_is_possible(values: tuple[float, ...], tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{head}-{seed}", ModelConfig(head=head), seed, value, test_loss=value, ece=value)
        for head, given in (("linear", values), ("tversky", values[::-1]))
        for seed, value in enumerate(given)
    ]
    linear, tversky = compare_runs(runs).groups
    for measure, highest in (("test_accuracy", 1.0), ("ece", 1.0), ("test_loss", np.inf)):
        low, high = linear.estimate(measure).interval
        assert 0 <= low <= np.mean(values) <= high <= highest
        difference = tversky.difference(linear, measure)
        assert difference is not None
        low, high = difference.interval or (0, 0)
        assert -highest <= low <= difference.mean <= high <= highest


@pytest.mark.parametrize(
    ("ours", "theirs", "difference"),
    [
        ((0.9, 0.9), (0.9, 0.9), "+0.0000 (all equal)"),
        ((0.5, 0.9, 0.8), (0.5, 0.9, 0.8), "+0.0000 (all equal)"),
        ((0.5, 0.75), (0.625, 0.875), "-0.1250 (all equal)"),
        ((0.5, 0.75), (0.5 + 1e-9, 0.75 - 1e-9), "+0.0000 (all equal)"),
        ((0.5, 0.75), (0.5, 0.5), "+0.1250 (-1.0000 to +1.0000)"),
        ((0.9,), (0.8,), "+0.1000 (-)"),
    ],
)
def test_equal_values_say_so_in_place_of_an_interval(
    ours: tuple[float, ...], theirs: tuple[float, ...], difference: str, tmp_path: Path
) -> None:
    runs = [
        write_run(tmp_path / f"{head}-{seed}", ModelConfig(head=head), seed, value)
        for head, values in (("linear", theirs), ("tversky", ours))
        for seed, value in enumerate(values)
    ]
    comparison = compare_runs(runs)
    means, differences = comparison.tables()
    assert differences.rows[0][2] == difference
    if len(set(ours)) < len(ours):
        assert means.rows[1][2] == f"{ours[0]:.4f} (all equal)"
    write_comparison(tmp_path / "page.html", comparison)
    assert "(all equal) for seeds that gave the same" in (tmp_path / "page.html").read_text()


def test_differences_are_paired_by_seed(six: list[Path]) -> None:
    first, second = compare_runs(six[1:]).groups
    found = second.difference(first, "test_accuracy")
    assert found is not None
    pairs = [b - a for a, b in zip(ACCURACIES["linear"][1:], ACCURACIES["tversky"][1:], strict=True)]
    assert found.values == pytest.approx(pairs)
    assert found.interval == pytest.approx(tuple(stats.ttest_1samp(pairs, 0).confidence_interval(0.95)))


def test_groups_without_a_seed_in_common_have_no_difference(six: list[Path]) -> None:
    comparison = compare_runs([six[0], six[4]])
    assert comparison.groups[1].difference(comparison.groups[0], "test_accuracy") is None
    assert len(comparison.tables()) == 1


@pytest.mark.parametrize(
    ("seeds", "note"),
    [
        (
            {"linear": [0], "tversky": [1]},
            "there is no difference of head=tversky from head=linear, as no run of one has",
        ),
        ({"linear": [0, 1], "tversky": [2, 3, 4]}, "there is no difference of head=tversky from head=linear"),
        ({"linear": [0, 1]}, "there are no differences: all runs are of one group"),
        ({"linear": [0, 1], "tversky": [1]}, None),
    ],
)
def test_a_table_that_is_left_out_says_why(seeds: dict[str, list[int]], note: str | None, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"{head}-{seed}", ModelConfig(head=head), seed)
        for head, own in seeds.items()
        for seed in own
    ]
    comparison = compare_runs(runs)
    assert len(comparison.tables()) == (2 if note is None else 1)
    assert (f"\nnote: {note}" in comparison.table()) == (note is not None)
    write_comparison(tmp_path / "page.html", comparison)
    assert (f"Note: {note}" in (tmp_path / "page.html").read_text()) == (note is not None)


def test_one_seed_has_a_dash_and_no_interval(six: list[Path]) -> None:
    comparison = compare_runs([six[0], six[3]])
    assert comparison.groups[0].estimate("test_accuracy").interval is None
    means, differences = comparison.tables()
    assert means.rows[0] == ("head=linear", "1", "0.9000 (-)", "0.1000 (-)", "0.0200 (-)", "100.0 (-)", "1,234")
    assert differences.rows == (("head=tversky", "1", "+0.0300 (-)", "-0.0300 (-)", "+0.0000 (-)"),)


def test_attributes_that_differ_are_counted(tmp_path: Path) -> None:
    forms = [TverskyConfig(attributes=tuple(Attribute((index,)) for index in range(count))) for count in (2, 3)]
    runs = [write_run(tmp_path / str(number), ModelConfig(tversky=form)) for number, form in enumerate(forms)]
    assert names(compare_runs(runs)) == ["tversky.attributes=2 of them", "tversky.attributes=3 of them"]


def test_groups_are_named_by_what_differs(tmp_path: Path) -> None:
    forms = [TverskyConfig(alpha=alpha, fixed=fixed) for alpha, fixed in ((0.1, ()), (0.5, ("beta", "theta")))]
    runs = [
        write_run(tmp_path / str(number), model)
        for number, model in enumerate([*(ModelConfig(tversky=form) for form in forms), LINEAR])
    ]
    assert names(compare_runs(runs)) == [
        "head=tversky, tversky.alpha=0.1, tversky.fixed=none",
        "head=tversky, tversky.alpha=0.5, tversky.fixed=beta+theta",
        "head=linear",
    ]
    assert names(compare_runs(runs[::2])) == ["head=tversky", "head=linear"]
    assert names(compare_runs(runs[:1])) == ["head=tversky"]


def test_options_of_a_tversky_head_do_not_split_linear_runs(tmp_path: Path) -> None:
    models = [LINEAR, dataclasses.replace(LINEAR, tversky=TverskyConfig(alpha=0.9))]
    runs = [write_run(tmp_path / str(seed), model, seed) for seed, model in enumerate(models)]
    assert [len(group.runs) for group in compare_runs(runs).groups] == [2]


def test_an_option_that_older_runs_lack_counts_as_not_set(tmp_path: Path) -> None:
    new, old = (write_run(tmp_path / name, TVERSKY, seed) for seed, name in enumerate(("new", "old")))
    results = json.loads((old / "results.json").read_text())
    del results["config"]["model"]["tversky"]["num_prototypes"]
    (old / "results.json").write_text(json.dumps(results))
    assert names(compare_runs([new, old])) == ["head=tversky"]
    del results["config"]["model"]["tversky"]["sharpness"]
    (old / "results.json").write_text(json.dumps(results))
    assert names(compare_runs([new, old])) == ["tversky.sharpness=10.0", "tversky.sharpness=not set"]


def test_runs_of_the_same_seed_count_as_one(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(number), LINEAR, 0, accuracy) for number, accuracy in enumerate((0.8, 0.9))]
    comparison = compare_runs([*runs, runs[0]])
    assert comparison.groups[0].estimate("test_accuracy").values == pytest.approx((0.85,))
    assert comparison.warnings == ("head=linear has several runs of the same seed, which count as one: their mean",)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"class_names": ["a", "c"]}, r"the runs saw different data \(.*one: 2 classes, images .*two: 2 classes"),
        ({"images": {"train": 90, "val": 20, "test": 30}}, r"the runs saw different data \(.*'train': 90"),
        ({"recipe": TrainConfig(epochs=2, learning_rate=0.1)}, r"but also train\.learning_rate; a difference may"),
        ({"device": "cuda"}, r"images/s were measured in different places \(cpu, 2 threads; cuda, 2 threads\)"),
    ],
)
def test_what_is_not_fair_is_said(change: dict[str, Any], warning: str, tmp_path: Path) -> None:
    comparison = compare_runs([write_run(tmp_path / "one", LINEAR), write_run(tmp_path / "two", TVERSKY, **change)])
    assert len(comparison.warnings) == 1
    assert re.search(warning, comparison.warnings[0])
    assert f"\nwarning: {comparison.warnings[0]}" in comparison.table()


def test_the_speed_of_frozen_runs_is_that_of_embeddings(tmp_path: Path) -> None:
    frozen = TrainConfig(epochs=2, freeze_backbone=True)
    runs = [write_run(tmp_path / "one", LINEAR), write_run(tmp_path / "two", TVERSKY, recipe=frozen)]
    assert "| images/s " in compare_runs(runs[:1]).table()
    assert "| embeddings/s " in compare_runs(runs[1:]).table()
    assert "| images/s or embeddings/s " in compare_runs(runs).table()


def test_another_backbone_is_not_the_head(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, dataclasses.replace(TVERSKY, backbone=name)) for name in ("resnet18", "tiny")]
    assert "model.backbone" in compare_runs(runs).warnings[0]


def test_the_table_is_markdown(six: list[Path]) -> None:
    lines = compare_runs(six).table().splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == (2 + 2) + (2 + 1)
    assert len(set(map(len, rows[:4]))) == 1
    assert rows[3].startswith("| head=tversky | 3     | 0.9400 (0.9098 to 0.9605) |")
    assert "Differences from head=linear, paired by seed:" in lines


def damage_results(folder: Path) -> None:
    (folder / "results.json").write_text("{")


def older_results(folder: Path) -> None:
    (folder / "results.json").write_text('{"test_accuracy": 1}')


def lost_value(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    del results["ece"]
    (folder / "results.json").write_text(json.dumps(results))


def damage_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"epoch": 1, "val_acc')


def empty_metrics(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("")


def unfinished(folder: Path) -> None:
    (folder / "results.json").unlink()


def not_a_run(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unfinished, "run has no results.json: its training was not finished; repeat its command with --resume, or"),
        (not_a_run, "run is not a run: it has no results.json; give folders that tnn-train has made"),
        (shutil.rmtree, "run is not a run: it has no results.json; give folders that tnn-train has made"),
        (damage_results, "results.json cannot be read as JSON"),
        (older_results, "results.json has schema_version None"),
        (lost_value, r"results.json is not what tnn-train writes \(results: expected a value for ece"),
        (damage_metrics, "metrics.jsonl cannot be read as lines of JSON"),
        (empty_metrics, "metrics.jsonl lacks epochs with their val_accuracy"),
    ],
)
def test_a_folder_that_cannot_be_compared_is_named(damage: Any, message: str, tmp_path: Path) -> None:
    good, bad = write_run(tmp_path / "good", LINEAR), write_run(tmp_path / "run", LINEAR)
    damage(bad)
    with pytest.raises(ArtifactError, match=message):
        compare_runs([good, bad])


def test_no_runs_are_refused() -> None:
    with pytest.raises(UsageError, match="there are no runs to compare"):
        compare_runs([])


def test_the_page_needs_nothing_else_and_shows_everything(tmp_path: Path) -> None:
    odd = dataclasses.replace(TVERSKY, backbone="<b>$x")
    runs = [
        write_run(tmp_path / f"{name}-{seed}", model, seed)
        for seed in (0, 1)
        for name, model in (("a", LINEAR), ("b", odd))
    ]
    write_comparison(tmp_path / "page.html", compare_runs(runs))
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="(?!data:image/|#)|<(script|link)|url\(|https?://', page)
    assert page.count("data:image/png;base64,") == 2
    assert "<b>$x" not in page
    assert page.count("&lt;b&gt;$x") >= 2
    assert "<b>Warning:</b> not only the head differs, but also model.backbone" in page
    assert "paired by seed" in page
    for folder in runs:
        assert str(folder) in page


def test_the_command_prints_and_writes(six: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    arguments = [*map(str, six), "--out", str(page)]
    assert run("tnn-train compare", command, arguments) == 0
    assert "| head=tversky | 3     | +0.0300" in capsys.readouterr().out
    written = page.read_text()
    assert run("tnn-train compare", command, arguments) == 1
    assert "page.html already exists; choose another file for --out or pass --overwrite" in capsys.readouterr().err
    assert run("tnn-train compare", command, [*arguments, "--overwrite"]) == 0
    assert page.read_text()[:1000] == written[:1000]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: RUN; see tnn-train compare --help"),
        (["nowhere"], "nowhere is not a run: it has no results.json"),
        (["nowhere", "--out", "."], ". is a folder; choose another file for --out"),
        (
            ["nowhere", "--out", "no/page.html"],
            "page.html has no folder to lie in; make no, or choose another file for --out",
        ),
    ],
)
def test_bad_input_gets_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("tnn-train compare", command, arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []
