from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RECIPE
from torch import nn
from waiting import Clock

from tnn_runtime import UsageError
from tnn_train import ImageData, ModelConfig, TrainConfig, build_model, load_checkpoint, load_data, train
from tnn_train.commands import reporting
from tnn_train.commands.reporting import report_on
from tnn_train.model.image_model import Normalize
from tnn_train.report import RunSummary
from tnn_train.training import embeddings as embeddings_module
from tnn_train.training.embeddings import cache_folder, embed, recall
from tnn_train.training.loop import TrainResult

CPU = torch.device("cpu")
TINY = ModelConfig(backbone="tiny", num_classes=2)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call had to embed."""
    counts: list[int] = []
    compute = embeddings_module._compute
    monkeypatch.setattr(
        embeddings_module,
        "_compute",
        lambda backbone, images, *how: counts.append(len(images)) or compute(backbone, images, *how),
    )
    return counts


def test_embeddings_are_what_the_backbone_gives_in_evaluation_mode(data: ImageData, tmp_path: Path) -> None:
    model = build_model(TINY).train()
    embedded = embed(model.backbone, data.test, CPU, None)
    with torch.no_grad():
        expected = model.backbone.eval()(Normalize(data.preprocessing)(torch.from_numpy(data.test.pixels)))
    torch.testing.assert_close(embedded.embeddings, expected)
    assert torch.equal(embedded[3][0], embedded[(7, 3)][0])
    assert embedded[3][1] == data.test.labels[3]
    assert len(embedded) == len(data.test)


def test_they_are_computed_once_and_again_when_anything_changes(
    data: ImageData, photos: Path, tmp_path: Path, computed: list[int]
) -> None:
    model = build_model(TINY)
    for _ in range(2):
        first = embed(model.backbone, data.test, CPU, tmp_path)
    assert computed == [8]
    second = embed(model.backbone, data.test, CPU, tmp_path)
    assert torch.equal(first.embeddings, second.embeddings)
    embed(model.backbone, data.val, CPU, tmp_path)
    assert computed == [8, 6]
    other = data.normalized((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    embed(model.backbone, other.test, CPU, tmp_path)
    assert computed == [8, 6, 8]
    with torch.no_grad():
        model.backbone.conv2.bias += 1e-3
    embed(model.backbone, data.test, CPU, tmp_path)
    assert computed == [8, 6, 8, 8]
    assert len(list(tmp_path.iterdir())) == 4


def test_files_are_known_by_name_size_and_age(
    photos: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tnn_train.data import load as load_module

    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    model = build_model(TINY)
    lazy = load_data(photos)
    assert lazy.test.pixels is None
    for _ in range(2):
        embed(model.backbone, lazy.test, CPU, tmp_path)
    assert computed == [8]
    touched = Path(str(lazy.test.sources[0]))
    touched.touch()
    embed(model.backbone, lazy.test, CPU, tmp_path)
    assert computed == [8, 8]


def test_a_damaged_file_is_computed_again(
    data: ImageData, tmp_path: Path, computed: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(TINY)
    embed(model.backbone, data.test, CPU, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    embed(model.backbone, data.test, CPU, tmp_path)
    embed(model.backbone, data.test, CPU, tmp_path)
    assert computed == [8, 8]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the embeddings in {file} are damaged (")


def full(path: Path, content: bytes) -> int:
    path.open("wb").close()
    raise OSError(errno.ENOSPC, "No space left on device")


def not_writable(path: Path, **options: object) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda cache, patch: patch.setattr(Path, "write_bytes", full), "No space left on device"),
        (lambda cache, patch: patch.setattr(Path, "mkdir", not_writable), "Permission denied"),
        (lambda cache, patch: cache.write_text("a file"), "File exists"),
    ],
    ids=["full", "not writable", "a file"],
)
def test_a_cache_that_cannot_be_written_does_not_end_a_training(
    spoil: Callable[[Path, pytest.MonkeyPatch], object],
    reason: str,
    data: ImageData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        spoil(cache, patch)
        embeddings = embed(build_model(TINY).backbone, data.test, CPU, cache)
    assert len(embeddings) == len(data.test)
    message = caplog.messages[-1]
    assert message.startswith(f"the embeddings are not kept in {cache} ({reason})"), message
    assert message.endswith("choose another folder with --embedding-cache (embedding_cache=)")
    assert not cache.is_dir() or list(cache.iterdir()) == []


def test_a_user_without_a_home_has_no_cache(
    data: ImageData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder(None) is None
    assert "no home folder to keep embeddings in" in caplog.text
    backbone = build_model(TINY).backbone
    assert len(embed(backbone, data.test, CPU, cache_folder(None))) == len(data.test)
    assert recall(backbone, data.test, cache_folder(None)) is None


@pytest.mark.parametrize("head", ["tversky", "linear"])
def test_a_frozen_backbone_is_left_as_it_is(
    head: str, runs: dict[str, TrainResult], data: ImageData, tmp_path: Path, computed: list[int]
) -> None:
    recipe = TrainConfig(
        epochs=20,
        batch_size=16,
        learning_rate=1e-2,
        weights=str(runs["linear"].best),
        freeze_backbone=True,
        embedding_cache=str(tmp_path / "cache"),
    )
    model = ModelConfig(backbone="tiny", head=head)
    run = train(data, tmp_path / "run", model, recipe)
    assert run.test.accuracy >= 0.9
    theirs = load_checkpoint(runs["linear"].best)
    ours = load_checkpoint(run.best)
    for name, value in theirs.model.backbone.state_dict().items():
        assert torch.equal(ours.model.backbone.state_dict()[name], value), name
    with torch.no_grad():
        logits = ours.model(Normalize(ours.preprocessing)(torch.from_numpy(data.test.pixels)))
    np.testing.assert_allclose(logits.numpy(), run.test.logits, rtol=1e-4, atol=1e-4)
    assert sorted(computed) == [6, 8, 26]
    train(data, tmp_path / "again", model, dataclasses.replace(recipe, seed=1))
    assert len(computed) == 3
    assert json.loads((run.folder / "results.json").read_text())["config"]["train"]["freeze_backbone"] is True


@pytest.mark.parametrize("kept", [True, False])
def test_the_report_takes_the_embeddings_that_are_kept(
    kept: bool, data: ImageData, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[RunSummary] = []
    monkeypatch.setattr(reporting, "_EMBEDDED_IMAGES", 5)
    monkeypatch.setattr(reporting, "write_report", lambda path, summary: shown.append(summary))
    recipe = dataclasses.replace(RECIPE, epochs=1, freeze_backbone=True, embedding_cache=str(tmp_path / "cache"))
    run = train(data, tmp_path / "run", TINY, recipe)
    computed.clear()
    if not kept:
        shutil.rmtree(tmp_path / "cache")
    report_on(run, data, CPU)
    assert computed == []
    assert len(shown[0].sample.embeddings) == 5
    assert computed == ([] if kept else [5])
    backbone = load_checkpoint(run.best).model.backbone
    assert shown[0].sample_indices is not None
    expected = embed(backbone, data.train.subset(shown[0].sample_indices), CPU, None).embeddings
    torch.testing.assert_close(shown[0].sample.embeddings, expected)


def test_the_speed_on_embeddings_is_called_so(
    data: ImageData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=1, freeze_backbone=True, embedding_cache=str(tmp_path / "cache"))
    run = train(data, tmp_path / "run", TINY, recipe)
    printed = capsys.readouterr()
    assert " embeddings/s; validation" in printed.out
    assert "images/s" not in printed.out + printed.err
    assert run.history[0]["images_per_second"] > 0
    report_on(run, data, CPU)
    assert "embeddings/s in training" in (run.folder / "report.html").read_text()


def test_a_frozen_backbone_takes_no_augmentation(data: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with freeze_backbone, where each image is embedded once"):
        dataclasses.replace(RECIPE, augment=("flip",), freeze_backbone=True)


def test_short_epochs_are_not_saved_each(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of epochs of 2 s, each third is saved, which is the first one after 5 s; and the last one."""
    from tnn_train.training import run_folder as run_module

    saved: list[Path] = []
    write, save, clock = run_module.save_checkpoint, run_module.RunFolder.save, Clock(monkeypatch, run_module)

    def save_later(run: run_module.RunFolder, *, is_urgent: bool) -> None:
        clock.now += 2.0
        save(run, is_urgent=is_urgent)

    monkeypatch.setattr(run_module.RunFolder, "save", save_later)
    monkeypatch.setattr(
        run_module,
        "save_checkpoint",
        lambda folder, *rest, **more: saved.append(folder) or write(folder, *rest, **more),
    )
    recipe = TrainConfig(epochs=30, freeze_backbone=True, embedding_cache=str(tmp_path / "cache"))
    run = train(data, tmp_path / "run", TINY, recipe)
    assert saved.count(run.folder / "last") == 11
    best = max(run.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert load_checkpoint(run.best).metrics == best
    assert load_checkpoint(run.folder / "last").metrics == run.history[-1]
    assert isinstance(load_checkpoint(run.best).model.backbone, nn.Module)
