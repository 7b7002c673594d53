"""The command that draws why images get their classes: a page or pictures, whole or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import exemplars
from PIL import Image

from tnn_runtime import Classifier, UsageError
from tnn_runtime.__main__ import main
from tnn_runtime.answers.reject import Reject


@pytest.fixture
def images(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two cats and a dog, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)
    folder = Path("images")
    folder.mkdir()
    for name, label in (("a", "cat"), ("b", "dog"), ("c", "cat")):
        shutil.copy(photos / label / "0.png", folder / f"{name}.png")
    return folder


def explain(*words: object) -> int:
    return main(["explain", *map(str, words), "--device", "cpu"])


@pytest.mark.parametrize("name", ["page.html", "page.HTM", "why not.html"])
def test_all_images_are_on_one_page(
    name: str, images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(small_bundle, images, "-o", name) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [f"images/{letter}.png" for letter in "abc"]
    assert all(" rather than " in line for line in lines[:-1])
    assert lines[-1] == f"wrote {name}"
    text = Path(name).read_text()
    assert text.count("<article") == 3
    assert sorted(os.listdir()) == sorted(["images", name, "small"])


@pytest.mark.parametrize("head", ["tversky", "ratio", "linear"])
def test_maps_are_drawn_where_the_bundle_has_them(
    head: str, images: Path, mapped: dict[str, Path], bundles: dict[str, Path]
) -> None:
    for folder, maps in ((mapped, True), (bundles, False)):
        assert explain(folder[head], images, "-o", "why.html", "--overwrite") == 0
        text = Path("why.html").read_text()
        assert (text.count(" comes from. ") >= 3) == maps  # a map of the class for each image
        assert ("<figcaption>in this image</figcaption>" in text) == maps
        assert "training images that have them most" in text


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        (["images/a.png"], "why.png", ["why.png"]),
        (["images/a.png"], "why.PNG", ["why.PNG"]),
        (["images"], "why.png", ["why-1.png", "why-2.png", "why-3.png"]),
        (["images"] * 4, "why.png", [f"why-{number:02}.png" for number in range(1, 13)]),
    ],
)
def test_each_image_has_a_picture(
    given: list[str], name: str, expected: list[str], images: Path, small_bundle: Path
) -> None:
    assert explain(small_bundle, *given, "-o", name) == 0
    assert sorted(file.name for file in Path().glob("why*")) == expected
    for file in expected:
        with Image.open(file) as picture:
            assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("name", "there"), [("page.html", "page.html"), ("why.png", "why-2.png"), ("page.html", "page.html/")]
)
def test_what_is_there_is_kept(
    name: str, there: str, images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if there.endswith("/"):
        Path(there).mkdir()
    else:
        Path(there).write_text("precious")
    before = sorted(os.listdir())
    assert explain(small_bundle, images, "-o", name) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: {there.rstrip('/')} " in captured.err
    assert "choose another file for -o" in captured.err
    assert sorted(os.listdir()) == before
    if not there.endswith("/"):
        assert Path(there).read_text() == "precious"
        assert explain(small_bundle, images, "-o", name, "--overwrite") == 0
        assert Path(there).read_bytes() != b"precious"


@pytest.mark.parametrize("name", ["page.html", "why.png"])
def test_images_that_cannot_be_used_do_not_stop_the_others(
    name: str, images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "b.png").write_text("no image")
    assert explain(small_bundle, images, "gone.png", "-o", name) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("tnn-runtime: images/b.png is not an image that can be read")
    assert last.startswith("tnn-runtime: error: gone.png does not exist")
    assert last.endswith("; 2 of 4 files cannot be used")
    if name == "page.html":
        assert Path(name).read_text().count("<article") == 2
    else:
        assert sorted(file.name for file in Path().glob("why*")) == ["why-1.png", "why-3.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["images", "-o", "why.jpg"], "got -o why.jpg; expected a name that ends with .html for a page, or with .png"),
        (["images", "-o", "why"], "got -o why; expected a name that ends with .html"),
        (["images"], "the following arguments are required: -o/--out"),
        (["images", "-o", "nowhere/why.html"], "nowhere/why.html has no folder to lie in; make nowhere"),
        (
            ["images", "-o", "why.html", "--against", "dgo"],
            "against is 'dgo'; expected 'runner-up' or the name of a class",
        ),
        (["images", "-o", "why.html", "--top-k", "0"], "top_k is 0; expected an integer of at least 1"),
        (["images", "-o", "why.png", "--num-features", "0"], "num_features is 0; expected an integer of at least 1"),
        (["empty", "-o", "why.html"], "empty has no files; expected images"),
        (["gone.png", "-o", "why.html"], "gone.png does not exist; expected an image file"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    words: list[str], message: str, images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    before = sorted(os.listdir())
    assert main(["explain", str(small_bundle), *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(os.listdir()) == before


def test_images_of_the_class_to_compare_with_are_named(
    images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Classifier.load(small_bundle, "cpu") as classifier:
        labels = [ranked[0].label for ranked in classifier.predict(sorted(images.iterdir()))]
    assert explain(small_bundle, images, "-o", "page.html", "--against", labels[0]) == 1
    captured = capsys.readouterr()
    assert captured.err.count(f"against is '{labels[0]}', and '{labels[0]}' is the best class") == labels.count(
        labels[0]
    )
    assert captured.out.count(f" rather than {labels[0]}: ") == len(labels) - labels.count(labels[0])


def test_rejected_images_say_so(images: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, count in ((False, 0), (True, 3)):
        monkeypatch.setattr(Reject, "rejects", lambda rule, scores, value=value: np.full(len(scores), value))
        assert explain(small_bundle, images, "-o", "page.html", "--reject", "--overwrite") == 0
        assert Path("page.html").read_text().count("<h2>Rejected: ") == count


@pytest.mark.parametrize("has_them", [True, False])
def test_exemplars_are_shown_where_the_bundle_has_them(
    has_them: bool, images: Path, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(classifier: Classifier, *, feature: int) -> Any:
        if not has_them:
            raise UsageError("the bundle has no exemplars; export it again with them")
        return exemplars()

    monkeypatch.setattr(Classifier, "exemplars", find, raising=False)
    assert explain(small_bundle, images / "a.png", "-o", "page.html") == 0
    assert ("training image of the class 7" in Path("page.html").read_text()) == has_them


def test_a_page_has_no_more_images_than_a_browser_shows(
    images: Path, small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tnn_runtime.commands.explain._MOST", 2)
    assert explain(small_bundle, images, "-o", "page.html") == 1
    assert "got 3 images; a page shows at most 2: name fewer of them, or draw pictures (-o page.png)" in (
        capsys.readouterr().err
    )
