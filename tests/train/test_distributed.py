"""Several processes give what one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tnn_train import load_checkpoint

SCRIPT = Path(__file__).parents[1] / "tiny_train.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def options(photos: Path, out: Path, *more: str) -> list[str]:
    recipe = "--epochs 3 --batch-size 13 --optimizer sgd --learning-rate 0.1 --schedule cosine --threads 1"
    return [str(SCRIPT), "--data", str(photos), "--out", str(out), *recipe.split(), *more]


def run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("--ema-decay", "0.9", "--accumulate", "2", "--augment", "crop", "flip")], ids=str
)
def test_two_processes_give_the_metrics_of_one(more: tuple[str, ...], photos: Path, tmp_path: Path) -> None:
    more = ("--backbone", "plain", *more)
    run([sys.executable, *options(photos, tmp_path / "one", *more)])
    printed = run([*TORCHRUN, *options(photos, tmp_path / "two", *more)])
    assert printed.count("test accuracy") == 1
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    for ours, theirs in zip(one, two, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert results[0]["confusion"] == results[1]["confusion"]
    assert [result["processes"] for result in results] == [1, 2]
    states = [load_checkpoint(tmp_path / name / "last").model.state_dict() for name in ("one", "two")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-3, atol=1e-4)
    folders = [sorted(path.name for path in (tmp_path / name / "last").iterdir()) for name in ("one", "two")]
    assert folders[0] == folders[1]


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_two_and_with_batch_norm(photos: Path, tmp_path: Path) -> None:
    arguments = options(photos, tmp_path / "run", "--backbone", "tiny", "--save-steps", "2")
    run([*TORCHRUN, *arguments])
    whole = load_checkpoint(tmp_path / "run" / "last").model.state_dict()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["test_accuracy"] >= 0.9
    stopping = SCRIPT.parent / "tiny_train_stopped.py"
    parts = options(photos, tmp_path / "parts", "--backbone", "tiny", "--save-steps", "2")
    stopped = subprocess.run([*TORCHRUN, str(stopping), *parts[1:]], capture_output=True, text=True, check=False)
    assert stopped.returncode != 0
    assert "last holds epoch 2, step 2: repeat the command with --resume" in stopped.stderr
    run([*TORCHRUN, *parts, "--resume"])
    state = load_checkpoint(tmp_path / "parts" / "last").model.state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in whole)
