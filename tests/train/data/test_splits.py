from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from tnn_runtime import UsageError
from tnn_train import DataConfig, load_data
from tnn_train.data.splits import Members, NoSplit, split
from tnn_train.errors import DataError

SETS = ("train", "val", "test")


def members(counts: Sequence[int], groups: Sequence[int] | None = None, origin: str = "train") -> Members:
    labels = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(labels))
    return Members(origin, places, labels, places if groups is None else np.array(groups))


def table(parts: dict[str, Members], classes: int) -> dict[str, list[int]]:
    """Return how many images of each class are in each set."""
    return {name: np.bincount(parts[name].labels, minlength=classes).tolist() for name in SETS}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize(
    ("counts", "limit"),
    [([20, 20], None), ([178, 182, 177], None), ([60, 13, 40], 50), ([20] * 10, 120), ([100, 8], 108)],
)
def test_splits_that_scikit_learn_makes_stay_as_they_are(counts: list[int], limit: int | None, seed: int) -> None:
    whole = members(counts)

    def cut(places: np.ndarray, away: int) -> list[np.ndarray]:
        return train_test_split(
            places,
            train_size=len(places) - away,
            test_size=away,
            stratify=whole.labels[places],
            random_state=seed,
        )

    rest, test = map(np.sort, cut(whole.places, round(0.2 * sum(counts))))
    if limit is not None:
        rest, test = (np.sort(cut(part, limit)[1]) if len(part) > limit else part for part in (rest, test))
    train, val = map(np.sort, cut(rest, round(0.2 * len(rest))))
    parts = split({"train": whole}, DataConfig("x", limit=limit, seed=seed))
    for name, expected in (("train", train), ("val", val), ("test", test)):
        assert np.array_equal(parts[name].places, expected), name


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([60, 3], {"train": [39, 1], "val": [9, 1], "test": [12, 1]}),
        ([60, 2], {"train": [39, 1], "val": [10, 0], "test": [11, 1]}),
        ([60, 1], {"train": [38, 1], "val": [10, 0], "test": [12, 0]}),
        ([4] * 300, {"train": [2] * 300, "val": [1] * 300, "test": [1] * 300}),
        ([6] * 15, {"train": [3] * 3 + [4] * 12, "val": [1] * 15, "test": [2] * 3 + [1] * 12}),
        ([3] * 5, {"train": [1] * 5, "val": [1] * 5, "test": [1] * 5}),
    ],
    ids=["60 and 3", "60 and 2", "60 and 1", "300 of 4", "15 of 6", "5 of 3"],
)
def test_each_set_has_each_class_where_there_are_enough(counts: list[int], expected: dict[str, list[int]]) -> None:
    parts = split({"train": members(counts)}, DataConfig("x"))
    assert table(parts, len(counts)) == expected
    assert sorted(np.concatenate([parts[name].places for name in SETS]).tolist()) == list(range(sum(counts)))


class TestShares:
    @pytest.mark.parametrize(
        ("options", "sizes"),
        [
            ({}, (640, 160, 200)),
            ({"test_share": 0.1}, (720, 180, 100)),
            ({"val_share": 0.1}, (700, 100, 200)),
            ({"test_share": 0.1, "val_share": 0.1}, (800, 100, 100)),
            ({"test_share": 0.4, "val_share": 0.5}, (100, 500, 400)),
        ],
    )
    def test_they_are_of_all_images(self, options: dict[str, float], sizes: tuple[int, int, int]) -> None:
        parts = split({"train": members([500, 500])}, DataConfig("x", **options))
        assert tuple(len(parts[name].places) for name in SETS) == sizes

    def test_a_test_set_that_comes_with_the_data_does_not_count(self) -> None:
        parts = split(
            {"train": members([50, 50]), "test": members([9, 9], origin="test")}, DataConfig("x", val_share=0.3)
        )
        assert [len(parts[name].places) for name in SETS] == [70, 30, 18]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"test_share": 0}, "test_share is 0; expected a number above 0 and below 1"),
            ({"val_share": 1.0}, "val_share is 1.0; expected a number above 0 and below 1"),
            ({"val_share": "0.1"}, "val_share is '0.1'; expected a number"),
            ({"test_share": 0.5, "val_share": 0.5}, "test_share is 0.5 and val_share is 0.5; expected less than 1"),
            ({"val_share": 0.8}, "test_share is 0.2 and val_share is 0.8; expected less than 1 together"),
            ({"groups": 3}, "groups is 3; expected text or None"),
            ({"skip_unusable": "yes"}, "skip_unusable is 'yes'; expected True or False"),
        ],
    )
    def test_out_of_range(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            DataConfig("x", **options)


class TestLimit:
    @pytest.mark.parametrize(
        ("given", "limit", "sizes"),
        [
            ({"train": [12, 12], "val": [6, 6], "test": [5, 5]}, 9, (6, 3, 9)),
            ({"train": [12, 12], "val": [6, 6]}, 24, (15, 9, 5)),
            ({"train": [30, 30], "val": [300, 300], "test": [3, 3]}, 20, (2, 18, 6)),
            ({"train": [12, 12], "val": [6, 6], "test": [5, 5]}, 100, (24, 12, 10)),
            ({"train": [4] * 300}, 890, (590, 300, 300)),
            ({"train": [40, 40], "test": [40, 40]}, 20, (16, 4, 20)),
        ],
    )
    def test_it_is_that_of_training_and_validation_together_and_of_testing(
        self, given: dict[str, list[int]], limit: int, sizes: tuple[int, int, int]
    ) -> None:
        parts = split(
            {name: members(counts, origin=name) for name, counts in given.items()}, DataConfig("x", limit=limit)
        )
        assert tuple(len(parts[name].places) for name in SETS) == sizes
        assert min(map(min, table(parts, len(given["train"])).values())) > 0

    def test_a_rare_class_is_still_in_both_sets(self) -> None:
        parts = split({"train": members([1000, 10]), "test": members([9, 9], origin="test")}, DataConfig("x", limit=50))
        assert table(parts, 2) == {"train": [39, 1], "val": [9, 1], "test": [9, 9]}

    @pytest.mark.parametrize("given", [{"train": [9] * 10}, {"train": [9] * 10, "val": [1] * 10}])
    def test_fewer_images_than_classes(self, given: dict[str, list[int]]) -> None:
        with pytest.raises(NoSplit):
            split({name: members(counts, origin=name) for name, counts in given.items()}, DataConfig("x", limit=5))


class TestGroups:
    @given(
        sizes=st.lists(st.lists(st.integers(1, 6), min_size=3, max_size=8), min_size=2, max_size=6),
        seed=st.integers(0, 99),
    )
    def test_groups_of_one_class_are_whole_and_in_each_set(self, sizes: list[list[int]], seed: int) -> None:
        numbers = iter(range(1000))
        groups = [number for counts in sizes for count in counts for number in [next(numbers)] * count]
        whole = members([sum(counts) for counts in sizes], groups)
        parts = split({"train": whole}, DataConfig("x", seed=seed))
        of = [set(parts[name].groups.tolist()) for name in SETS]
        assert sum(map(len, of)) == len(set(groups)) == len(set.union(*of))
        assert min(map(min, table(parts, len(sizes)).values())) > 0

    @given(st.lists(st.integers(0, 30), min_size=60, max_size=60), st.integers(0, 99))
    def test_groups_of_several_classes_are_whole(self, groups: list[int], seed: int) -> None:
        whole = members([20, 20, 20], groups)
        try:
            parts = split({"train": whole}, DataConfig("x", seed=seed))
        except NoSplit:
            assert len(set(groups)) < 3
            return
        of = [set(parts[name].groups.tolist()) for name in SETS]
        assert sum(map(len, of)) == len(set.union(*of))
        assert sorted(np.concatenate([parts[name].places for name in SETS]).tolist()) == list(range(60))
        assert min(table(parts, 3)["train"]) > 0

    def test_shares_are_kept_as_far_as_groups_allow(self) -> None:
        whole = members([500, 500], np.arange(1000) // 10)
        parts = split({"train": whole}, DataConfig("x"))
        assert table(parts, 2) == {"train": [320, 320], "val": [80, 80], "test": [100, 100]}


def draw(folder: Path, counts: dict[str, int]) -> Path:
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("counts", "notes"),
    [
        ({"a": 60, "b": 3}, []),
        ({"a": 60, "b": 2}, ["the validation set has no image of 1 of 2 classes, and says nothing of them: b"]),
        (
            {"a": 60, "b": 1, "c": 1},
            [
                "the test set has no image of 2 of 3 classes, and says nothing of them: b, c",
                "the validation set has no image of 2 of 3 classes, and says nothing of them: b, c",
            ],
        ),
    ],
)
def test_classes_that_a_set_lacks_are_noted(
    counts: dict[str, int], notes: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_data(draw(tmp_path / "images", counts))
    assert set(data.train.labels.tolist()) == set(range(len(counts)))
    assert sorted(record.getMessage() for record in caplog.records) == notes


@pytest.mark.parametrize("option", ["test_share", "val_share"])
def test_shares_without_effect_are_noted(option: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "images"
    for name in ("train", "val", "test"):
        draw(folder / name, {"a": 4, "b": 4})
    caplog.clear()
    load_data(folder, **{option: 0.3})
    named = [record.getMessage() for record in caplog.records if "no effect" in record.getMessage()]
    word = {"test_share": "test", "val_share": "validation"}[option]
    assert named == [f"--{option.replace('_', '-')} has no effect: {folder} comes with a {word} set"]


class TestDuplicates:
    @pytest.mark.parametrize("part", ["test", "val"])
    @pytest.mark.parametrize("kept", [True, False])
    def test_images_in_two_sets_are_noted_once(
        self, part: str, kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not kept:
            monkeypatch.setattr("tnn_train.data.load.CACHE_BYTES", 0)
        folder = tmp_path / "images"
        draw(folder / "train", {"a": 8, "b": 8})
        Image.open(folder / "train" / "a" / "0.png").save(folder / "train" / "a" / "again.png")
        for name in {"val", "test"} - {part}:
            (folder / name / "a").mkdir(parents=True)
            Image.new("RGB", (8, 8), (9, 9, 9)).save(folder / name / "a" / "0.png")
        (folder / part / "b").mkdir(parents=True)
        for number in (0, 3):
            # The same pixels in another file format.
            Image.open(folder / "train" / "a" / f"{number}.png").save(folder / part / "b" / f"{number}.bmp")
        load_data(folder)
        (note,) = [record.getMessage() for record in caplog.records if "pixel for pixel" in record.getMessage()]
        word = {"test": "test", "val": "validation"}[part]
        assert note.startswith("two sets hold the same images, pixel for pixel, ")
        assert note.endswith(
            f"2 of the {word} set are also in the training set ({folder / part / 'b' / '0.bmp'} and "
            f"{folder / 'train' / 'a' / '0.png'}); remove them from one set"
        )

    @pytest.mark.parametrize("given", [(), ("val",), ("test",)])
    def test_groups_are_offered_where_we_split(
        self, given: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder = tmp_path / "images"
        for part in ("train", *given):
            for name in ("a", "b"):
                (folder / part / name).mkdir(parents=True)
                for number in range(8):
                    shade = 0 if part == "train" else 20 * number + 9
                    Image.new("RGB", (8, 8), (shade, shade, shade)).save(folder / part / name / f"{number}.png")
        load_data(folder)
        (note,) = [record.getMessage() for record in caplog.records if "pixel for pixel" in record.getMessage()]
        assert note.endswith("; remove them from one set, or put them into one group with --groups")

    def test_sets_that_share_none_are_not(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        folder = draw(tmp_path / "images", {"a": 8, "b": 8})
        load_data(folder)
        load_data("digits")
        assert caplog.records == []


class TestGroupFiles:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return draw(tmp_path / "images", {"a": 12, "b": 12})

    @staticmethod
    def rows(folder: Path, form: str) -> list[str]:
        files = [f"{name}/{number}.png" for name in "ab" for number in range(12)]
        paths = {
            "relative": files,
            "as found": [str(folder / file) for file in files],
            "dots": [f"./{file}" for file in files],
            "backslashes": [file.replace("/", "\\") for file in files],
        }
        return [f'{path},"scene {number // 3}"' for number, path in enumerate(paths[form])]

    @pytest.mark.parametrize("form", ["relative", "as found", "dots", "backslashes"])
    @pytest.mark.parametrize("header", ["image,group\n", "\ufeffImage, Group\r\n", ""])
    def test_they_are_read_and_kept_whole(self, form: str, header: str, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "groups.csv"
        file.write_text(header + "\n\n".join(self.rows(folder, form)) + "\n", encoding="utf-8")
        data = load_data(folder, groups=file)
        of = [{(path.parent.name, int(path.stem) // 3) for path in getattr(data, name).sources} for name in SETS]
        assert sum(map(len, of)) == len(set.union(*of)) == 8
        assert [len(getattr(data, name)) for name in SETS] == [12, 6, 6]

    def test_other_columns_are_left_alone(self, folder: Path, tmp_path: Path) -> None:
        rows = [row.split(",") for row in self.rows(folder, "relative")]
        file = tmp_path / "groups.csv"
        file.write_text("group,age,image\n" + "".join(f"{group},3,{image}\n" for image, group in rows))
        assert len(load_data(folder, groups=file).test) == 6

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda rows: rows[:-2], r"groups.csv has no group for 2 of 24 images, the first is .*b/10.png; expected"),
            (
                lambda rows: [*rows, "a/0.png,other"],
                r"line 25: .*a/0.png is in the group 'other', and in 'scene 0' in a",
            ),
            (lambda rows: [*rows, "a/0.png"], "line 25: got 'a/0.png'; expected the columns image and group"),
            (lambda rows: [*rows, "a/0.png, "], "line 25: got 'a/0.png,'; expected the columns image and group"),
            (lambda rows: [], "has no group for 24 of 24 images"),
            (lambda rows: [f"{row.split(',')[0]},all" for row in rows], "cannot be split .* or smaller groups"),
        ],
    )
    def test_bad_lines(self, change: object, message: str, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "groups.csv"
        file.write_text("\n".join(change(self.rows(folder, "relative"))))
        with pytest.raises(DataError, match=message):
            load_data(folder, groups=file)

    @pytest.mark.parametrize("content", [None, b"\xff\xfe", b'"'])
    def test_files_that_cannot_be_read(self, content: bytes | None, folder: Path, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "groups.csv").write_bytes(content)
        with pytest.raises((UsageError, DataError), match=r"groups.csv"):
            load_data(folder, groups=tmp_path / "groups.csv")

    def test_images_that_are_in_no_files(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="groups in .* for images that are not in files of their own"):
            load_data("digits", groups=tmp_path / "groups.csv")

    def test_lines_without_an_image_are_noted(
        self, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = tmp_path / "groups.csv"
        file.write_text("\n".join([*self.rows(folder, "relative"), "c/0.png,x", "c/1.png,x"]))
        load_data(folder, groups=file)
        (record,) = caplog.records
        assert (
            record.getMessage() == f"{file} has lines for images that are not there: 2, the first is line 25, c/0.png"
        )

    def test_a_group_in_two_sets_that_the_data_comes_with(self, tmp_path: Path) -> None:
        for name in ("train", "test"):
            draw(tmp_path / "images" / name, {"a": 4, "b": 4})
        file = tmp_path / "groups.csv"
        file.write_text(
            "".join(
                f"{s}/{c}/{n}.png,{'x' if n == 0 else s + c + str(n)}\n"
                for s in ("train", "test")
                for c in "ab"
                for n in range(4)
            )
        )
        with pytest.raises(
            DataError, match="the group 'x' has images in the train and the test set that the data comes"
        ):
            load_data(tmp_path / "images", groups=file)
