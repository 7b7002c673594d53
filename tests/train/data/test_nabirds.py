from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnn_runtime import InputError
from tnn_train import load_data
from tnn_train.data import load as load_module
from tnn_train.errors import DataError

CLASSES = {
    "0": "Birds",
    "2": "Ducks, Geese, and Swans",
    "9": "Snow Goose",
    "10": "Oldsquaw  (Breeding male)",
    "295": "Dark-eyed Junco (Oregon)",
}
USED = ("9", "10", "295")


def write(path: Path, rows: dict[str, object]) -> None:
    path.write_text("".join(f"{key} {value}\n" for key, value in rows.items()))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small NABirds: a bright bird in a box of its own in each image, 13 images of each of 3 classes."""
    folder = tmp_path / "nabirds"
    random = np.random.default_rng(0)
    files, labels, parts, boxes = {}, {}, {}, {}
    for class_id in USED:
        place = folder / "images" / f"{int(class_id):04d}"
        place.mkdir(parents=True)
        for number in range(13):
            name = f"{class_id}-{number}"
            left, upper = (int(value) for value in random.integers(0, 12, 2))
            pixels = np.zeros((20, 24, 3), dtype=np.uint8)
            pixels[upper : upper + 8, left : left + 12] = 250
            Image.fromarray(pixels).save(place / f"{name}.jpg", quality=95)
            files[name] = f"{place.name}/{name}.jpg"
            labels[name], parts[name] = class_id, int(number < 10)
            boxes[name] = f"{left} {upper} 12 8"
    write(folder / "classes.txt", CLASSES)
    write(folder / "images.txt", files)
    write(folder / "image_class_labels.txt", labels)
    write(folder / "train_test_split.txt", parts)
    write(folder / "bounding_boxes.txt", boxes)
    return folder


def replace(path: Path, number: int, line: str) -> None:
    """Replace a line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines))


def test_classes_are_the_labels_in_order_and_splits_are_the_official_ones(archive: Path) -> None:
    data = load_data("nabirds", root=archive.parent)
    assert data.class_names == tuple(CLASSES[class_id] for class_id in USED)
    assert data.preprocessing.shape == (20, 20, 3)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 9)
    for part, numbers in ((data.train, range(10)), (data.val, range(10)), (data.test, range(10, 13))):
        for source, label in zip(part.sources, part.labels, strict=True):
            class_id, _, number = source.stem.partition("-")
            assert class_id == USED[label]
            assert int(number) in numbers
    assert np.array_equal(load_data("nabirds", root=archive).train.pixels, data.train.pixels)


def test_images_are_cropped_to_their_boxes_on_request(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cropped = load_data("nabirds", root=archive, crop_to_boxes=True)
    assert cropped.preprocessing.shape == (16, 16, 3)
    assert cropped.train.pixels.min() > 200
    assert load_data("nabirds", root=archive).train.pixels.min() < 50
    monkeypatch.setattr(load_module, "CACHE_BYTES", 0)
    lazy = load_data("nabirds", root=archive, crop_to_boxes=True)
    assert lazy.test.pixels is None
    assert np.array_equal(lazy.test.sample(100), cropped.test.pixels)


def test_a_box_is_cut_off_at_the_edge_and_turned_with_its_image(archive: Path) -> None:
    pixels = np.zeros((20, 24, 3), dtype=np.uint8)
    pixels[:10, 16:] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(archive / "images" / "0009" / "9-10.jpg", quality=95, exif=exif)
    replace(archive / "bounding_boxes.txt", 11, "9-10 16 -5 30 15")
    data = load_data("nabirds", root=archive, crop_to_boxes=True)
    first = next(source for source in data.test.sources if isinstance(source, Image.Image))
    assert first.size == (8, 10)
    assert data.test.decoded(0).min() > 200


def test_other_sets_do_not_need_the_boxes(archive: Path) -> None:
    (archive / "bounding_boxes.txt").unlink()
    assert len(load_data("nabirds", root=archive).test) == 9
    with pytest.raises(DataError, match="bounding_boxes.txt cannot be read .*unpack the archive of NABirds again"):
        load_data("nabirds", root=archive, crop_to_boxes=True)


@pytest.mark.parametrize(
    "name", ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"]
)
@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.encode("utf-8-sig"),
        lambda text: (text + "\n \n").encode(),
        lambda text: text.replace("\n", "\n\n").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode("utf-16"),
    ],
    ids=["a byte order mark", "trailing blank lines", "blank lines", "lines of Windows", "UTF-16"],
)
def test_a_file_that_an_editor_has_saved_again_is_the_same(
    rewrite: Callable[[str], bytes], name: str, archive: Path
) -> None:
    (archive / name).write_bytes(rewrite((archive / name).read_text()))
    data = load_data("nabirds", root=archive, crop_to_boxes=True)
    assert data.class_names == tuple(CLASSES[class_id] for class_id in USED)
    assert (len(data.train), len(data.val), len(data.test)) == (24, 6, 9)


class TestBadInput:
    def test_an_archive_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="NABirds cannot be read under .*has images.txt.*pass --data-root FOLDER"):
            load_data("nabirds", root=tmp_path)

    @pytest.mark.parametrize(
        ("name", "line", "message"),
        [
            ("images.txt", "9-1", "got '9-1'; expected IMAGE PATH"),
            ("images.txt", "9-0 0009/9-0.jpg", "got '9-0'; expected once only"),
            ("image_class_labels.txt", "9-1 11", "got '9-1 11'; expected IMAGE CLASS with a class of classes.txt"),
            ("image_class_labels.txt", "8-1 9", "got '8-1'; expected an image of images.txt"),
            ("train_test_split.txt", "9-1 2", r"got '9-1 2'; expected IMAGE 1 \(training\) or IMAGE 0 \(test\)"),
            ("bounding_boxes.txt", "9-1 1 2 3", "got '9-1 1 2 3'; expected IMAGE X Y WIDTH HEIGHT in whole pixels"),
            ("bounding_boxes.txt", "9-1 1 2 3 x", "got '9-1 1 2 3 x'; expected IMAGE X Y WIDTH HEIGHT"),
        ],
    )
    def test_a_broken_line_is_named(self, name: str, line: str, message: str, archive: Path) -> None:
        replace(archive / name, 2, line)
        with pytest.raises(DataError, match=rf"nabirds/{name}, line 2: {message}"):
            load_data("nabirds", root=archive, crop_to_boxes=True)

    @pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"])
    def test_a_missing_line_is_named(self, name: str, archive: Path) -> None:
        lines = (archive / name).read_text().splitlines()
        (archive / name).write_text("\n".join(lines[:-1]))
        with pytest.raises(DataError, match=f"{name} has no line for 295-12; expected lines of IMAGE"):
            load_data("nabirds", root=archive, crop_to_boxes=True)

    @pytest.mark.parametrize("name", ["classes.txt", "train_test_split.txt"])
    @pytest.mark.parametrize("content", [None, b"\xff\xfe"])
    def test_a_missing_or_unreadable_file_is_named(self, name: str, content: bytes | None, archive: Path) -> None:
        (archive / name).unlink()
        if content is not None:
            (archive / name).write_bytes(content)
        with pytest.raises(DataError, match=f"nabirds/{name} cannot be read"):
            load_data("nabirds", root=archive)

    @pytest.mark.parametrize("name", ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"])
    @pytest.mark.parametrize("content", ["", "\n\n", "\ufeff\r\n"])
    def test_an_empty_file_is_named(self, name: str, content: str, archive: Path) -> None:
        (archive / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=rf"nabirds/{name} cannot be read \(it is empty\); expected lines of "):
            load_data("nabirds", root=archive)

    def test_a_box_outside_of_its_image(self, archive: Path) -> None:
        replace(archive / "bounding_boxes.txt", 1, "9-0 30 2 5 6")
        with pytest.raises(
            DataError, match=r"the box of .*9-0.jpg is 5x6 pixels at \(30, 2\); expected one within the 24x20 pixels"
        ):
            load_data("nabirds", root=archive, crop_to_boxes=True)

    def test_a_missing_image_is_named(self, archive: Path) -> None:
        (archive / "images" / "0010" / "10-4.jpg").unlink()
        with pytest.raises(InputError, match=r"0010/10-4.jpg does not exist"):
            load_data("nabirds", root=archive)

    @pytest.mark.parametrize("crop", [False, True])
    def test_a_truncated_image_is_named(self, crop: bool, archive: Path) -> None:
        path = archive / "images" / "0010" / "10-4.jpg"
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match=r"0010/10-4.jpg cannot be decoded"):
            load_data("nabirds", root=archive, crop_to_boxes=crop)

    def test_one_set_only(self, archive: Path) -> None:
        path = archive / "train_test_split.txt"
        path.write_text(path.read_text().replace(" 0\n", " 1\n"))
        with pytest.raises(DataError, match="train_test_split.txt has images of one set only"):
            load_data("nabirds", root=archive)

    def test_one_class_only(self, archive: Path) -> None:
        path = archive / "image_class_labels.txt"
        write(path, {line.split()[0]: 9 for line in path.read_text().splitlines()})
        with pytest.raises(DataError, match="nabirds has 1 classes; expected at least 2"):
            load_data("nabirds", root=archive)


@pytest.mark.parametrize("twice", [("9", "10"), ("9", "295"), ("10", "295"), USED])
def test_classes_of_one_name_are_refused(twice: tuple[str, ...], archive: Path) -> None:
    write(archive / "classes.txt", {**CLASSES, **dict.fromkeys(twice, "Mallard")})
    message = f"classes.txt calls both class {twice[0]} and class {twice[1]} 'Mallard'; expected another name for each"
    with pytest.raises(DataError, match=message):
        load_data("nabirds", root=archive)


def test_classes_without_images_may_have_the_name_of_another(archive: Path) -> None:
    write(archive / "classes.txt", {**CLASSES, "0": "Snow Goose", "2": "Snow Goose"})
    assert load_data("nabirds", root=archive).class_names[0] == "Snow Goose"
