from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tnn_runtime import UsageError
from tnn_train.heads.tversky.attributes import (
    MOST_GROUPS,
    Attribute,
    class_attributes,
    code_of,
    completed,
    group_lines,
    hierarchy,
    num_of_hierarchy,
    read_attributes,
    tells_apart,
)

NAMES = ("frog", "cat", "dog", "car", "truck")
ROWS = [[9.0, 1.0], [9.0, 3.0], [9.0, 3.5], [-9.0, 2.0], [-9.0, 2.5]]


def test_a_hierarchy_joins_classes_with_rows_that_are_near() -> None:
    found = hierarchy(torch.tensor(ROWS))
    named = [[NAMES[index] for index in attribute.classes] for attribute in found]
    # Of the two branches of the root, animals and vehicles, only the smaller one is an attribute.
    assert named == [["cat", "dog"], ["car", "truck"], ["frog"], ["cat"], ["dog"], ["car"], ["truck"]]
    assert all(attribute.name is None for attribute in found)


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 66, 67, 68, 200])
def test_the_attributes_of_a_hierarchy_tell_all_classes_apart(classes: int) -> None:
    torch.manual_seed(classes)
    found = hierarchy(torch.randn(classes, 16))
    assert len(found) == num_of_hierarchy(classes)
    assert len(set(found)) == len(found)
    assert sum(len(attribute.classes) > 1 for attribute in found) <= MOST_GROUPS
    assert tells_apart(found, classes)
    assert completed(found, classes) == found


@pytest.mark.parametrize("rows", [torch.zeros(6, 4), torch.ones(1, 4).repeat(6, 1)], ids=["zeros", "alike"])
def test_rows_that_are_alike_have_a_hierarchy_too(rows: torch.Tensor) -> None:
    assert tells_apart(hierarchy(rows), 6)


def test_each_class_is_an_attribute_and_of_two_classes_one() -> None:
    assert class_attributes(2) == (Attribute((0,)),)
    assert class_attributes(3) == (Attribute((0,)), Attribute((1,)), Attribute((2,)))
    assert code_of(class_attributes(3), 3).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_what_does_not_tell_all_classes_apart_is_completed() -> None:
    animal, cat = Attribute((0, 1), "an animal"), Attribute((0,), "purrs")
    assert not tells_apart((animal, cat), 4)
    # A class that an attribute stands for already is not added again.
    assert completed((animal, cat), 4) == (animal, cat, Attribute((1,)), Attribute((2,)), Attribute((3,)))


def test_groups_in_words() -> None:
    assert group_lines(hierarchy(torch.tensor(ROWS)), NAMES) == ["cat or dog", "car or truck"]
    nested = (
        Attribute((1, 2)),
        Attribute((0, 1, 2), "an animal"),
        Attribute((3, 4)),
        Attribute((0,)),
        Attribute((0, 1, 2, 3, 4)),
    )
    assert group_lines(nested, NAMES, most=4) == [
        "frog, cat, dog or 2 more",
        "  an animal: frog, cat or dog",
        "    cat or dog",
        "  car or truck",
    ]
    assert group_lines(nested, NAMES, most=1) == ["frog, cat, dog or 2 more"]
    assert group_lines(class_attributes(5), NAMES) == []


class TestTables:
    def read(self, path: Path, text: str, names: tuple[str, ...] = ("cat", "dog", "ship")) -> tuple[Attribute, ...]:
        (path / "table.csv").write_text(text, encoding="utf-8")
        return read_attributes(path / "table.csv", names)

    def test_every_spelling_of_a_value(self, tmp_path: Path) -> None:
        text = "\ufeffclass,a,b,c,d\n dog ,1, yes ,TRUE,x\n\nship,0,no,False,\ncat,,0,no,x\n"
        assert self.read(tmp_path, text) == (
            Attribute((1,), "a"),
            Attribute((1,), "b"),
            Attribute((1,), "c"),
            Attribute((0, 1), "d"),
        )

    def test_names_with_commas(self, tmp_path: Path) -> None:
        text = 'class,"big, heavy"\n"crane, bird",0\n"crane, machine",1\n'
        found = self.read(tmp_path, text, ("crane, bird", "crane, machine"))
        assert found == (Attribute((1,), "big, heavy"),)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"the first row of .*table.csv is \[\]; expected a cell and then the names of the attributes"),
            ("class\ncat\n", r"the first row of .* is \['class'\]"),
            ("class,a,a\n", "the first row of"),
            ("class,a,\n", "the first row of"),
            ("class,a\ncow,1\n", "has a row for 'cow', which is none of the classes"),
            ("class,a\ndgo,1\n", "has a row for 'dgo', which is none of the classes; did you mean 'dog'"),
            ("class,a\ncat,1\ncat,1\n", "has two rows for 'cat'; expected one for each class"),
            ("class,a\ncat,maybe\n", "the row of 'cat' in .* has the value 'maybe'; expected 1, yes, true or x"),
            ("class,a,b\ncat,1\n", "the row of 'cat' in .* has 1 values for 2 attributes; expected"),
            ("class,a\ncat,1,1\n", "the row of 'cat' in .* has 2 values for 1 attributes; expected"),
            ("class,a\ncat,1\n", "has no row for 'dog', 'ship'; expected one for each"),
            ("class,a\ncat,1\ndog,1\nship,1\n", "all classes have the attribute 'a' of .*; leave it out"),
            ("class,a\ncat,0\ndog,0\nship,0\n", "no class has the attribute 'a' of .*; leave it out"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=message):
            self.read(tmp_path, text)

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
        for name in ("nowhere.csv", "bytes.csv", "."):
            with pytest.raises(UsageError, match="cannot be read .*expected classes, hierarchy, or a CSV file"):
                read_attributes(tmp_path / name, ("cat", "dog"))
