"""Whose folder it is: one training writes to it, and deletes only what trainings wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import RECIPE

from tnn_runtime import OutputExistsError, UsageError
from tnn_runtime.bundle.claim import claimed, is_claimed
from tnn_train import ImageData, ModelConfig, load_data, train
from tnn_train.training.trainer import Trainer

TINY = ModelConfig(backbone="tiny", head="linear")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits", limit=60)


@pytest.fixture(scope="module")
def finished(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(digits, tmp_path_factory.mktemp("finished") / "run", TINY, RECIPE).folder


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=["new", "overwrite", "resume"])
def test_two_trainings_do_not_share_a_folder(
    options: dict[str, bool], digits: ImageData, finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    if options:
        shutil.copytree(finished, run)
    before = {path.name for path in run.iterdir()} if options else set()
    with claimed(run):
        with pytest.raises(OutputExistsError, match="another process is writing to .*run; wait until it has ended"):
            train(digits, run, TINY, RECIPE, **options)
        assert {path.name for path in run.iterdir()} == before


def test_a_training_holds_its_folder_to_the_end(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    evaluate = Trainer.evaluate
    monkeypatch.setattr(
        Trainer, "evaluate", lambda *arguments: (held.append(is_claimed(tmp_path / "run")), evaluate(*arguments))[1]
    )
    train(digits, tmp_path / "run", TINY, RECIPE)
    assert all(held)
    assert not is_claimed(tmp_path / "run")


@pytest.mark.parametrize("strange", ["photos", "notes.txt", "bundle", "best/notes.txt", "last/cat"])
def test_what_no_training_wrote_is_not_deleted(strange: str, digits: ImageData, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    precious = run / strange if strange.endswith(".txt") else run / strange / "1.jpg"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    folder, name = (run / strange).parent, (run / strange).name
    with pytest.raises(OutputExistsError, match=f"{folder} has {name} in it, which --overwrite would delete"):
        train(digits, run, TINY, RECIPE, overwrite=True)
    assert precious.read_text() == "precious"
    assert (run / "results.json").exists()


def test_a_run_with_all_that_belongs_to_it_is_replaced(digits: ImageData, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").write_text("old")
    (run / "tensorboard").mkdir()
    (run / ".best.abc.partial").mkdir()
    (run / ".DS_Store").write_text("")
    train(digits, run, TINY, RECIPE, overwrite=True)
    assert {path.name for path in run.iterdir()} == {"best", "last", "metrics.jsonl", "results.json"}


@pytest.mark.parametrize("place", ["", "run", "cat", "cat/run", "train/run"])
def test_a_run_among_the_images_is_refused(place: str, photos: Path) -> None:
    with pytest.raises(UsageError, match=f"lies among the images, in {photos}, where it would be taken for a class"):
        train(photos, photos / place, TINY, RECIPE)


def test_what_a_kill_in_the_first_save_left_is_no_run(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "run" / ".last.abc.partial").mkdir(parents=True)
    train(digits, tmp_path / "run", TINY, RECIPE)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"best", "last", "metrics.jsonl", "results.json"}


def test_a_training_that_fails_leaves_no_folder(
    digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(Trainer, "start", broken)
    with pytest.raises(RuntimeError):
        train(digits, tmp_path / "run", TINY, RECIPE)
    assert list(tmp_path.iterdir()) == []
