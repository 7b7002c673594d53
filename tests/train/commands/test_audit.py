from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import RECIPE

from tnn_train import DataConfig, ModelConfig, load_data, train
from tnn_train.__main__ import main
from tnn_train.audit import figures, pixels
from tnn_train.audit.measures import MEASURES, measures_of
from tnn_train.heads import HEADS, LinearHead
from tnn_train.training.loop import TrainResult


@pytest.fixture(scope="session")
def seeds(photos: Path, once) -> list[Path]:  # type: ignore[no-untyped-def]
    """Runs of a linear head from two seeds; read only."""

    def make(folder: Path) -> list[Path]:
        data = load_data(DataConfig(str(photos)))
        model = ModelConfig(backbone="tiny", head="linear")
        for seed in (0, 1):
            train(data, folder / str(seed), model, dataclasses.replace(RECIPE, epochs=1, seed=seed))
        return [folder / "0", folder / "1"]

    return once("seeds", make)


@pytest.fixture
def without_captum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "find_spec", lambda name: None)
    # It looks the extra up in what was installed, which may be older than the sources.
    monkeypatch.setattr(pixels, "install_command", lambda extra: f"pip install '.[{extra}]'")


def audit(*words: object) -> int:
    return main(["audit", *map(str, words)])


def test_heads_are_audited_side_by_side(
    runs: dict[str, TrainResult], seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    names = ["features", "explanations", "shifts", "pixels", "prototypes", "seeds"]
    assert audit(runs["tversky"].folder, *seeds, "--measures", *names, "-o", out) == 0
    printed, content = capsys.readouterr().out, json.loads(out.read_text())
    wanted = {name for section in names for name in measures_of(section)}
    assert {*content["definitions"]} == wanted
    tversky, linear = content["groups"]
    assert [len(group["runs"]) for group in (tversky, linear)] == [1, 2]
    assert {*linear["means"]} == wanted
    assert {*tversky["means"]} == wanted - {*measures_of("seeds")}
    assert 0 <= linear["means"]["named_win"] <= 1
    assert linear["runs"][0]["curves"]["deletion"][0] == pytest.approx(1)
    assert all(MEASURES[name].title in printed for name in wanted)


def test_a_page_has_the_tables_and_what_they_mean(seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "audit.html"
    assert audit(*seeds, "--measures", "features", "seeds", "--images", 5, "-o", out) == 0
    page = out.read_text()
    for measure in (MEASURES["named_win"], MEASURES["stability"]):
        assert measure.title in page
        assert measure.definition in page


@pytest.mark.usefixtures("without_captum")
def test_what_cannot_be_had_is_left_out_with_a_note(seeds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(seeds[0], "--images", 3) == 0
    printed = capsys.readouterr().out
    assert "note: seeds is left out: no two of the runs differ" in printed
    assert "note: references is left out: the references are from Captum" in printed
    assert "pip install '.[audit]'" in printed
    assert MEASURES["map_win"].title in printed


@pytest.mark.usefixtures("without_captum")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--measures", "seeds"], "no two of the runs differ in nothing but their seeds; give runs of one recipe"),
        (["--measures", "features", "seed"], "unknown --measures 'seed'; choose from features, explanations"),
        (
            ["--measures", "references"],
            "Captum, which is not installed; leave references out of --measures, or run: pip",
        ),
        (["--images", "0"], "got '0'; expected an integer of at least 1"),
        (["-o", "audit.csv"], "expected a file that ends with .json or .html"),
        (["-o", "nowhere/audit.json"], "has no folder to lie in"),
        (["--data", "digits"], "knows the classes cat, dog, and digits has 0, 1"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    words: list[str], message: str, seeds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(seeds[0], *words) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_file_is_not_overwritten_by_accident(seeds: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    out.write_text("mine")
    quick = (seeds[0], "--measures", "explanations", "--images", 2, "-o", out)
    assert audit(*quick) == 1
    assert out.read_text() == "mine"
    assert audit(*quick, "--overwrite") == 0
    assert json.loads(out.read_text())["schema_version"] == 1


def test_nothing_is_written_of_an_audit_that_fails(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "remove_features", lambda explained: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        audit(seeds[0], "--measures", "features", "-o", tmp_path / "audit.json")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("damage", ["no run", "unfinished", "no checkpoint"])
def test_a_run_that_is_not_whole_is_refused(
    damage: str, seeds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if damage == "no run":
        folder.mkdir()
    else:
        shutil.copytree(seeds[0], folder)
        if damage == "unfinished":
            (folder / "results.json").unlink()
        else:
            shutil.rmtree(folder / "best")
    assert audit(folder) == 1
    assert str(folder) in capsys.readouterr().err


class Unexplained(LinearHead):
    family = "unexplained"


@pytest.mark.parametrize("name", ["features", "explanations", "shifts", "pixels"])
def test_a_head_without_explanations_is_refused(
    name: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEADS, Unexplained.family, Unexplained)
    model = ModelConfig(backbone="tiny", head=Unexplained.family)
    train(load_data(photos), tmp_path / "run", model, dataclasses.replace(RECIPE, epochs=1))
    assert audit(tmp_path / "run", "--measures", name) == 1
    assert (
        "heads of the family unexplained have no explanations to audit; expected one of the families"
        in capsys.readouterr().err
    )
