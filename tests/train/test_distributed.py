"""Several processes give what one gives."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked
import killable
import pytest
import torch
from plain_loop import train_plainly

from tnn_train import ModelConfig, TrainConfig, evaluate, load_checkpoint, load_data
from tnn_train.__main__ import main

SCRIPT = Path(__file__).parents[1] / "tiny_train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


RECIPE = TrainConfig(
    epochs=3, batch_size=13, optimizer="sgd", learning_rate=0.05, schedule="cosine", threads=1, augment=()
)
"""Of the 22 images of `uneven`, each epoch makes a batch of 13 and one of 9, in parts of 7 and 6, and of 5 and 4."""


def options(photos: Path, out: Path, recipe: TrainConfig, *more: str) -> list[str]:
    """Return the command line of a training; options that are not as ever are those of the recipe."""
    words = []
    for name, value in vars(recipe).items():
        if value != getattr(TrainConfig(), name):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return ["--data", str(photos), "--out", str(out), *words, *more]


def run(arguments: list[str], *, processes: int = 2) -> str:
    """Train in one process or in two, and return what they print."""
    launched = (forked.torchrun, main) if processes == 2 else (main,)
    result = forked.run(*launched, arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_learn_the_images_that_one_does(uneven: Path, tmp_path: Path) -> None:
    words = ("--backbone", "plain", "--tversky.domain", "image", "--tversky.num-features", "4")
    for name, processes in (("one", 1), ("two", 2)):
        run(options(uneven, tmp_path / name, RECIPE, *words), processes=processes)
    one, two = (load_checkpoint(tmp_path / name / "last").model.state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"ema_decay": 0.9, "accumulate": 2, "augment": ("crop", "flip")},
        pytest.param({"augment": ("mixup",)}, marks=pytest.mark.exhaustive),
        {"augment": ("mixup", "cutmix"), "class_weights": "balanced", "accumulate": 2},
        pytest.param({"class_weights": "balanced", "label_smoothing": 0.1}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_two_processes_give_the_metrics_of_one(more: dict[str, Any], uneven: Path, tmp_path: Path) -> None:
    recipe, plain = dataclasses.replace(RECIPE, **more), ("--backbone", "plain")
    run(options(uneven, tmp_path / "one", recipe, *plain), processes=1)
    printed = run(options(uneven, tmp_path / "two", recipe, *plain))
    assert printed.count("test accuracy") == 1
    for ours, theirs in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert [result["processes"] for result in results] == [1, 2]
    states = [load_checkpoint(tmp_path / name / "last").model.state_dict() for name in ("one", "two")]
    torch.testing.assert_close(states[0], states[1], rtol=1e-3, atol=1e-4)
    folders = [sorted(path.name for path in (tmp_path / name / "last").iterdir()) for name in ("one", "two")]
    assert folders[0] == folders[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "distance", "optimizer"),
    [
        ("fp32", 1e-3, "sgd"),
        ("bf16", 0.1, "adamw"),
        ("fp16", 0.02, "adamw"),
        pytest.param("fp32", 1e-3, "adamw", marks=pytest.mark.exhaustive),
        pytest.param("bf16", 0.1, "sgd", marks=pytest.mark.exhaustive),
        pytest.param("fp16", 0.02, "sgd", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_do_what_the_plain_loop_does(
    precision: str, distance: float, optimizer: str, uneven: Path, tmp_path: Path
) -> None:
    rest = {"class_weights": "balanced", "schedule": "constant", "weight_decay": 0.0, "batch_size": 8}
    rest |= {"precision": precision, "accumulate": 2, "learning_rate": {"sgd": 0.05, "adamw": 0.01}[optimizer]}
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, **rest)
    model = ModelConfig(backbone="plain", head="linear")
    expected = train_plainly(load_data(uneven, image_size=8), model, recipe)
    more = ("--backbone", "plain", "--head", "linear", "--image-size", "8")
    run(options(uneven, tmp_path / "two", recipe, *more))
    # The rounding of half precision hangs on the size of a batch.
    assert expected.distance(load_checkpoint(tmp_path / "two" / "last").model) <= distance
    assert [row["train_loss"] for row in history(tmp_path / "two")] == pytest.approx(expected.losses, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "head"),
    [
        ({}, ()),
        pytest.param({"ema_decay": 0.9}, (), marks=pytest.mark.exhaustive),
        ({"accumulate": 2, "augment": ("mixup",)}, ()),
        ({}, ("--head", "lvq", "--lvq.prototypes", "2", "--lvq.relevances", "matrix")),
        pytest.param({}, ("--head", "parts", "--parts.per-class", "2"), marks=pytest.mark.exhaustive),
        ({}, ("--head", "parts", "--parts.kind", "pipnet")),
        pytest.param({}, ("--head", "logic"), marks=pytest.mark.exhaustive),
        ({}, ("--head", "matching")),
    ],
    ids=str,
)
def test_what_is_validated_is_what_is_saved(
    more: dict[str, Any], head: tuple[str, ...], uneven: Path, tmp_path: Path
) -> None:
    """Batch norm of the CPU has other statistics in each process."""
    recipe = dataclasses.replace(RECIPE, **more)
    run(options(uneven, tmp_path / "run", recipe, "--backbone", "tiny", *head))
    data = load_data(uneven)
    for name in ("last", "best"):
        checkpoint = load_checkpoint(tmp_path / "run" / name)
        assert evaluate(checkpoint.model, data.val).loss == pytest.approx(checkpoint.metrics["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_two_and_with_batch_norm(photos: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, learning_rate=0.1, save_steps=2)
    arguments = options(photos, tmp_path / "run", recipe, "--backbone", "tiny")
    subprocess.run([*TORCHRUN, str(SCRIPT), *arguments], capture_output=True, check=True)
    whole = load_checkpoint(tmp_path / "run" / "last").model.state_dict()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_accuracy"] >= 0.9
    parts = options(photos, tmp_path / "parts", recipe, "--backbone", "tiny")
    result = forked.run(forked.torchrun, killable.stopped, parts)
    assert result.returncode != 0
    assert "last holds epoch 2, step 2: repeat the command with --resume" in result.stderr
    run([*parts, "--resume"])
    state = load_checkpoint(tmp_path / "parts" / "last").model.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in whole)
