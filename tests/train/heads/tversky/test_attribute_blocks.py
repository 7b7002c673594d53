from __future__ import annotations

import pytest
import torch

from tnn_train import TverskyConfig
from tnn_train.heads.description import Node, Table, Text, Tree
from tnn_train.heads.tversky.attribute_blocks import attribute_blocks, attribute_tree, feature_titles
from tnn_train.heads.tversky.attributes import Attribute, class_attributes, hierarchy

NAMES = ("cat", "dog", "deer", "car", "ship")
PETS, ANIMALS, VEHICLES = (0, 1), (0, 1, 2), (3, 4)


def drawn(nodes: list[Node] | tuple[Node, ...], indent: str = "") -> list[str]:
    """Return a tree as lines."""
    lines = []
    for node in nodes:
        lines += [f"{indent}{node.title}{f' ({node.note})' if node.note else ''}", *drawn(node.children, indent + " ")]
    return lines


def tree_of(*attributes: Attribute, names: tuple[str, ...] = NAMES) -> list[str]:
    tree = attribute_tree(attributes, names)
    assert tree is not None
    return drawn(tree.nodes)


def test_features_are_called_after_their_attributes() -> None:
    config = TverskyConfig(6, opposites=1.0, attributes=(Attribute(PETS), Attribute(ANIMALS, "alive")))
    assert feature_titles(config, NAMES, 6) == (
        *("'cat or dog'", "'alive'", "#2"),
        *("'not cat or dog'", "'not alive'", "#5"),
    )


def test_features_without_attributes_have_numbers() -> None:
    assert feature_titles(TverskyConfig(3), NAMES, 3) == ("#0", "#1", "#2")
    assert feature_titles(TverskyConfig(4, opposites=1.0), NAMES, 4) == ("#0", "#1", "#2", "#3")
    assert feature_titles(TverskyConfig(2, attributes=(Attribute(PETS),)), NAMES, 2) == ("#0", "#1")


def test_groups_stand_below_those_that_hold_them() -> None:
    assert tree_of(Attribute(VEHICLES), Attribute(PETS), Attribute(ANIMALS)) == [
        "all 5 classes",
        " cat, dog or deer (3 classes)",
        "  cat or dog",
        "  deer",
        " car or ship",
    ]


def test_groups_that_a_person_named_list_their_classes() -> None:
    assert tree_of(Attribute(ANIMALS, "alive"), Attribute((4,), "swims"), Attribute(PETS)) == [
        "all 5 classes",
        " alive (3 classes)",
        "  cat or dog",
        "  deer",
        " swims (ship)",
        " car",
    ]


def test_attributes_of_the_same_classes_share_a_node() -> None:
    assert tree_of(Attribute(PETS, "pet"), Attribute(PETS), Attribute(PETS, "barks or mews")) == [
        "all 5 classes",
        " pet, barks or mews (2 classes)",
        "  cat, dog",
        " deer, car, ship",
    ]


def test_long_names_are_spelled_out_below_the_group() -> None:
    names = tuple(f"class {index}" for index in range(7))
    assert tree_of(Attribute((0, 1, 2, 3, 4)), names=names) == [
        "all 7 classes",
        " class 0, class 1, class 2 or 2 more (5 classes)",
        "  class 0, class 1, class 2, class 3, class 4",
        " class 5, class 6",
    ]


def test_attributes_that_overlap_are_no_tree() -> None:
    assert attribute_tree([Attribute((0, 1)), Attribute((1, 2))], NAMES) is None
    assert attribute_tree([Attribute((0, 1, 2)), Attribute((2, 3))], NAMES) is None


def test_a_hierarchy_is_a_tree() -> None:
    blocks = attribute_blocks(hierarchy(torch.tensor([[0.0, 9], [0, 8], [0, 5], [9, 0], [8, 0]])), NAMES)
    about, tree = blocks
    assert isinstance(about, Text)
    assert about.text.endswith("Each class is an attribute, and so are these groups:")
    assert isinstance(tree, Tree)
    assert drawn(tree.nodes) == ["all 5 classes", " cat or dog", " car or ship", " deer"]


@pytest.mark.parametrize("count", [200, 1000])
def test_the_tree_of_many_classes_is_folded(count: int) -> None:
    weight = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    tree = attribute_blocks(hierarchy(weight), [f"class {index}" for index in range(count)])[1]
    assert isinstance(tree, Tree)
    (root,) = tree.nodes
    assert root.is_open
    shown = [*root.children, *(node for group in root.children if group.is_open for node in group.children)]
    assert not any(node.is_open for group in root.children for node in group.children)
    assert sum(len(node.title) for node in shown) < 2000
    below = drawn(tree.nodes)
    assert len(below) < 200
    assert all(any(f"class {index}" in line for line in below) for index in range(count))


def test_a_table_of_few_classes_has_a_column_for_each() -> None:
    attributes = [Attribute(ANIMALS, "alive"), Attribute((0, 2, 4), "silent"), Attribute((3,))]
    about, table = attribute_blocks(attributes, NAMES)
    assert isinstance(about, Text)
    assert about.text.endswith("The class car is an attribute, and so are these groups:")
    assert isinstance(table, Table)
    assert table.header == ("attribute", *NAMES)
    assert [[cell == "yes" for cell in row[1:]] for row in table.rows] == [[1, 1, 1, 0, 0], [1, 0, 1, 0, 1]]
    assert [row[0] for row in table.rows] == ["alive", "silent"]


def test_a_table_of_many_attributes_and_classes_is_bounded() -> None:
    names = [f"class {index}" for index in range(1000)]
    attributes = [Attribute(tuple(range(start, start + 500)), f"attribute {start}") for start in range(100)]
    _, table, note = attribute_blocks(attributes, names)
    assert isinstance(table, Table)
    assert len(table.rows) == 60
    assert table.rows[1] == (
        *("attribute 1", "500"),
        ", ".join(names[1:13]) + ", and 488 more",
    )
    assert note == Text("Shown are 60 of 100 attributes.", is_aside=True)


@pytest.mark.parametrize(
    ("count", "ending"), [(5, "Each class is an attribute."), (2, "The class cat is an attribute.")]
)
def test_classes_that_share_nothing_need_no_drawing(count: int, ending: str) -> None:
    (about,) = attribute_blocks(class_attributes(count), NAMES[:count])
    assert isinstance(about, Text)
    assert about.text.endswith(ending)


def test_attributes_that_a_person_wrote_may_be_all() -> None:
    about, tree = attribute_blocks([Attribute(PETS, "pet"), Attribute(VEHICLES, "moves")], NAMES)
    assert isinstance(about, Text)
    assert about.text.endswith("These groups are all:")
    assert isinstance(tree, Tree)
