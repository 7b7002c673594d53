from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from explanations import NAMES_OF_CLASSES
from forms import CLASSES, COVERING, head_with, random_head

from tnn_train import TverskyConfig, TverskyHead
from tnn_train.heads.description import Block, Card, Cards, Sample, Section, Table, Text, Tree
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.section import prototype_section

NAMES = ("cat", "dog", "car")
PARTS, ATTRIBUTES, IDLE = "What tells the classes apart", "Attributes", "What lies idle"
IMAGES = torch.tensor([[3.0, 1, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1]])
LABELS = np.array([0, 0, 1, 2])
SIMPLE: dict[str, object] = {"difference": "ignorematch", "alpha": 1.0, "theta": 1.0}


def described(
    head: TverskyHead, x: torch.Tensor = IMAGES, labels: np.ndarray = LABELS, names: Sequence[str] = NAMES
) -> dict[str, Section]:
    """Return the sections of the section by their titles."""
    section = prototype_section(head, Sample(labels, names, lambda: x))
    return {block.title: block for block in section.blocks if isinstance(block, Section)}


def only(blocks: list[Block] | Section, kind: type) -> list:
    return [block for block in (blocks.blocks if isinstance(blocks, Section) else blocks) if isinstance(block, kind)]


def cards(sections: dict[str, Section]) -> list[Card]:
    (found,) = only(list(sections.values())[-1], Cards)
    return list(found.cards)


def unfolded(**options: object) -> TverskyHead:
    """Return a head with the attributes "cat or dog", a person's "purrs", and one of no name."""
    attributes = (Attribute((0, 1)), Attribute((0,), "purrs"))
    head = head_with(
        [[8, 8, 1, -8, -8, 0], [8, -8, -1, -8, 1, 0], [-8, -8, 0, 1, 1, 1]],
        [[1.0, 1, -1], [1, -1, -1], [0, 0, 1]],
        size=3,
        opposites=1.0,
        prototype_space="feature",
        **SIMPLE | {"beta": 0.0, "fixed": ("beta",)} | options,
    )
    head.config = dataclasses.replace(head.config, attributes=attributes)
    return head


def test_shares_come_with_what_they_mean() -> None:
    head = head_with([[1, 0, 0], [0, 1, 0], [0, 0, 1]], beta=0, fixed=("beta",), **SIMPLE)
    table, centrality = only(described(head)[PARTS], Table)
    assert [row[0] for row in table.rows] == ["common", "input only", "prototype only"]
    # Common is (3, 1, 0), (1, 0, 0), (0, 2, 0), (0, 0, 1): the squares are 16, those of the class means 22 / 3.
    assert table.rows[0] == ("common", "0.67", "0.85", "54%", "tells classes apart")
    # Input-only is (1, 3, 4), (0, 1, 1), (2, 0, 2), (1, 1, 0): the squares are 38, those of the class means 88 / 3.
    assert table.rows[1] == ("input only", "1.33", "0.85", "23%", "tells classes apart")
    assert table.rows[2] == ("prototype only", "", "", "", "not used: beta is fixed at 0")
    assert centrality.rows[0][0] == "mean centrality of the prototypes"


def test_a_part_that_is_nearly_the_same_for_all_classes_is_called_so() -> None:
    head = head_with([[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1]], theta=1, alpha=1, beta=0.0, difference="ignorematch")
    rows = {row[0]: row for row in only(described(head)[PARTS], Table)[0].rows}
    assert rows["common"][4] == "nearly the same for all classes"
    assert rows["prototype only"] == ("prototype only", "0", "", "", "0 everywhere")


@pytest.mark.parametrize(
    ("options", "unit"),
    [({}, "the logits"), ({"model": "ratio"}, "the denominator"), ({"num_prototypes": 3}, "the logits")],
)
def test_the_unit_of_the_parts_is_named(options: dict[str, object], unit: str) -> None:
    head = head_with([[1, 0, 0], [0, 1, 0], [0, 0, 1]], classes=3, **options)
    assert f"in units of {unit}. " in only(described(head)[PARTS], Text)[0].text


@pytest.mark.parametrize(
    ("options", "model", "theta"),
    [
        ({}, "contrast model", "weight of what both have"),
        ({"model": "ratio"}, "ratio model", "offset of the denominator"),
        ({"model": "ratio", "smooth": True}, "smooth ratio model", "offset of numerator and denominator"),
    ],
)
def test_the_model_and_its_theta_are_named(options: dict[str, object], model: str, theta: str) -> None:
    head = head_with([[1, 0, 0], [0, 1, 0], [0, 0, 1]], **options)
    section = prototype_section(head, Sample(LABELS, NAMES, lambda: IMAGES))
    assert f", {model}, " in only(section, Text)[1].text
    assert {row[0]: row[3] for row in only(section, Table)[0].rows}["theta"] == theta


def test_centrality_stands_on_each_card_that_has_one() -> None:
    head = head_with([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    found = cards(described(head, IMAGES[:3], LABELS[:3]))
    assert "Centrality 0.97." in found[0].summary
    assert "Centrality" not in found[2].summary
    sections = described(head, IMAGES[:2], LABELS[:2])
    assert len(only(sections[PARTS], Table)) == 1


def test_features_have_names_wherever_they_are_mentioned() -> None:
    sections = described(unfolded())
    assert [item.split(" (")[0] for item in cards(sections)[0].items] == ["'cat or dog'", "'purrs'", "#2"]
    assert {item.split(" (")[0] for item in cards(sections)[2].items} == {"'not cat or dog'", "'not purrs'"}
    rows = {row[0]: row[1:] for row in only(sections[IDLE], Table)[0].rows}
    assert rows["Features that no prototype has"] == ("0", "none")
    (tree,) = only(sections[ATTRIBUTES], Tree)
    assert tree.nodes[0].children[0].title == "cat or dog"


def test_a_feature_and_its_opposite_do_not_coincide() -> None:
    head = unfolded()
    assert head.feature_bank is not None
    with torch.no_grad():
        head.feature_bank[1] = -2 * head.feature_bank[0]
    rows = {row[0]: row[1:] for row in only(described(head)[IDLE], Table)[0].rows}
    assert rows["Features that nearly coincide"] == ("1", "'cat or dog' and 'not purrs' (1.000)")


def test_features_of_older_heads_have_numbers() -> None:
    sections = described(head_with([[1, 0, 0], [0, 1, 0], [0, 0, 1]], fixed=("beta",), beta=0.0))
    assert ATTRIBUTES not in sections
    assert [item.split(" (")[0] for item in cards(sections)[0].items] == ["#0"]
    rows = {row[0]: row[1:] for row in only(sections[IDLE], Table)[0].rows}
    assert rows["Features that no image has"] == ("0", "none")


@pytest.mark.parametrize("config", COVERING[::4])
def test_every_form_can_be_described(config: TverskyConfig) -> None:
    head, x = random_head(config)
    sections = described(head, x, np.arange(len(x)) % CLASSES, NAMES_OF_CLASSES)
    assert PARTS in sections
