"""Runs of one recipe are one group, however the recipe was given."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tnn_train import DataConfig, ModelConfig, TrainConfig, TverskyConfig
from tnn_train.report.compare import Comparison, compare_runs


def compared(folder: Path, *configs: dict[str, Any]) -> Comparison:
    """Compare runs of other seeds with these sections in their configurations, each an option or a whole section."""
    runs = []
    for seed, sections in enumerate(configs):
        config = {
            "data": dataclasses.asdict(DataConfig("photos", seed=seed)),
            "model": dataclasses.asdict(ModelConfig()),
            "train": dataclasses.asdict(TrainConfig(seed=seed)),
        }
        for name, values in sections.items():
            config[name] |= values
        results = {
            "schema_version": 1,
            "config": config,
            "class_names": ["a", "b"],
            "images": {"train": 100, "val": 20, "test": 30},
            "confusion": [[15, 0], [0, 15]],
            "test_accuracy": 0.9,
            "test_loss": 0.3,
            "ece": 0.02,
            "best_epoch": 1,
            "val_accuracy": 0.9,
            "parameters": 1,
            "seconds": 1.0,
            "images_per_second": 100.0,
            "device": "cpu",
            "threads": 1,
            "processes": 1,
            "versions": {},
        }
        run = folder / str(seed)
        run.mkdir()
        (run / "results.json").write_text(json.dumps(results))
        (run / "metrics.jsonl").write_text('{"epoch": 1, "val_accuracy": 0.9}\n')
        runs.append(run)
    return compare_runs(runs)


def tversky(**options: Any) -> dict[str, Any]:
    return {"model": dataclasses.asdict(ModelConfig(tversky=TverskyConfig(**options)))}


SAME: dict[str, list[dict[str, Any]]] = {
    "a relative and an absolute folder": [
        {"data": {"source": source}} for source in ("photos", "./photos/", "../photos", "/abs/photos", "x/../photos")
    ],
    "where data sets lie": [{"data": {"source": "mnist", "root": root}} for root in ("data", "/abs/data", "../data")],
    "how they came there": [{"data": {"download": download}} for download in (True, False)],
    "a checkpoint": [{"train": {"weights": weights}} for weights in ("runs/a/best", "/home/me/runs/a/best", "a/best")],
    "a table of attributes": [tversky(code=code) for code in ("birds.csv", "/abs/birds.csv")],
    "the default augmentation": [{"train": {"augment": augment}} for augment in (None, ["crop"])],
    "no augmentation of embeddings": [{"train": {"augment": one, "freeze_backbone": True}} for one in (None, [])],
    "the order of augmentations": [{"train": {"augment": both}} for both in (["crop", "flip"], ["flip", "crop"])],
    "one learning rate": [{"train": {"head_learning_rate": rate}} for rate in (None, 1e-3)],
    "one start": [tversky(start="random", prototype_init=init) for init in (None, "uniform")],
    "whole numbers": [{"train": {"clip_norm": norm}} for norm in (1, 1.0)],
    "a size that follows": [{"model": {"image_size": size}} for size in ([], [8, 8], [16, 16])],
    "threads": [{"train": {"threads": threads, "workers": threads}} for threads in (None, 1, 2)],
}
OTHER: dict[str, tuple[list[dict[str, Any]], str]] = {
    "folders of one name": ([{"data": {"source": source}} for source in ("/a/photos", "/b/photos")], "data.source"),
    "a name between two folders": (
        [{"data": {"source": source}} for source in ("photos", "/a/photos", "/b/photos")],
        "data.source",
    ),
    "a data set and a folder": ([{"data": {"source": one}} for one in ("digits", "/abs/digits")], "data.source"),
    "weights and a folder": ([{"train": {"weights": one}} for one in ("imagenet", "/abs/imagenet")], "train.weights"),
    "checkpoints": ([{"train": {"weights": one}} for one in ("runs/a/best", "runs/b/best")], "train.weights"),
    "augmentations": ([{"train": {"augment": augment}} for augment in (None, ["flip"])], "train.augment"),
    "rates": ([{"train": {"head_learning_rate": rate}} for rate in (None, 1e-2)], "train.head_learning_rate"),
    "flags": ([{"train": {"compile": compiled}} for compiled in (False, True)], "train.compile"),
}


@pytest.mark.parametrize("which", SAME)
def test_one_recipe_is_one_group(which: str, tmp_path: Path) -> None:
    comparison = compared(tmp_path, *SAME[which])
    assert [len(group.runs) for group in comparison.groups] == [len(SAME[which])]
    assert comparison.warnings == ()


@pytest.mark.parametrize("which", OTHER)
def test_other_recipes_are_other_groups(which: str, tmp_path: Path) -> None:
    configs, name = OTHER[which]
    comparison = compared(tmp_path, *configs)
    assert len(comparison.groups) == len(configs)
    assert comparison.warnings == (f"not only the head differs, but also {name}; a difference may come from there",)


@pytest.mark.parametrize(("written", "count"), [(16, 1), (32, 2)])
def test_the_size_of_the_images_is_that_of_the_model(written: int, count: int, tmp_path: Path) -> None:
    best = tmp_path / "0" / "best"

    def sizes(folder: Path) -> Comparison:
        return compared(folder, {"data": {"image_size": None}}, {"data": {"image_size": written}})

    sizes(tmp_path)
    best.mkdir()
    (best / "config.json").write_text('{"preprocessing": {"height": 16, "width": 16}}')
    assert len(compare_runs([tmp_path / "0", tmp_path / "1"]).groups) == count


def test_sizes_are_told_as_rows_and_columns(tmp_path: Path) -> None:
    comparison = compared(tmp_path, *({"data": {"image_size": size}} for size in (16, [8, 24])))
    assert [group.name for group in comparison.groups] == ["data.image_size=16", "data.image_size=8x24"]


def test_other_spellings_of_the_data_do_not_hide_the_heads(tmp_path: Path) -> None:
    linear = {"model": dataclasses.asdict(ModelConfig(head="linear"))}
    same = {"data": {"seed": 0}, "train": {"seed": 0}}
    one = {**linear, "data": {"source": "photos", "seed": 0}, "train": {"seed": 0}}
    comparison = compared(tmp_path, one, {**same, "data": {"source": "/abs/photos", "seed": 0}})
    assert [group.name for group in comparison.groups] == ["head=linear", "head=tversky"]
    assert comparison.warnings == ()
    assert len(comparison.tables()) == 2
