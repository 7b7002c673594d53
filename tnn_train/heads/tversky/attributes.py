"""Attributes of classes: which class has which, given one by one, found in the weights, or written by a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.errors import UsageError
from tnn_runtime.explain.attributes import attribute_description
from tnn_train.text_files import Row, read_rows

__all__ = [
    "Attribute",
    "class_attributes",
    "code_of",
    "completed",
    "group_lines",
    "hierarchy",
    "num_of_hierarchy",
    "read_attributes",
    "tells_apart",
]

MOST_GROUPS = 64
"""How many groups of classes `hierarchy` returns at most: of many classes, only the largest groups."""

_WORDS = {"1": True, "yes": True, "true": True, "x": True, "0": False, "no": False, "false": False, "": False}


@dataclass(frozen=True)
class Attribute:
    """What some classes have and the others lack.

    Args:
        classes: The indices of the classes that have it, in ascending order.
        name: What a person calls it; ``None`` for the names of the classes.
    """

    classes: tuple[int, ...]
    name: str | None = None


def class_attributes(num_classes: int) -> tuple[Attribute, ...]:
    """Return one attribute for each class: to be that class. Of two classes, the second is what the first is not."""
    return tuple(Attribute((index,)) for index in range(num_classes if num_classes > 2 else 1))


def hierarchy(weight: ArrayLike) -> tuple[Attribute, ...]:
    """Return the attributes of a tree of classes, by Ward linkage of their rows in a linear layer.

    Each node of the tree is an attribute of the classes below it, groups from the largest to the smallest, then single
    classes. The root is none, and of its two branches only the smaller one is: the other is its opposite. Of many
    groups, the largest `MOST_GROUPS` are kept.

    Args:
        weight: ``[C, D]``.
    """
    from sklearn.cluster import ward_tree

    rows = np.asarray(weight, np.float64)
    groups: list[tuple[int, ...]] = [(index,) for index in range(len(rows))]
    merges = ward_tree(rows)[0].tolist()
    for one, other in merges:
        groups.append(tuple(sorted(groups[one] + groups[other])))
    del groups[-1]
    del groups[max(merges[-1], key=lambda node: (len(groups[node]), groups[node]))]
    groups.sort(key=lambda group: (-len(group), group))
    leaves = [group for group in groups if len(group) == 1]
    return tuple(Attribute(group) for group in (*groups[: len(groups) - len(leaves)][:MOST_GROUPS], *leaves))


def num_of_hierarchy(num_classes: int) -> int:
    """Return how many attributes `hierarchy` finds: a tree of C classes has C - 2 groups, and one is an opposite."""
    return 1 if num_classes == 2 else num_classes + min(num_classes - 3, MOST_GROUPS)


def code_of(attributes: Sequence[Attribute], num_classes: int) -> Tensor:
    """Return which class has which attribute, float64 ``[C, K]`` of 1 and 0."""
    code = torch.zeros(num_classes, len(attributes), dtype=torch.float64)
    for column, attribute in enumerate(attributes):
        code[list(attribute.classes), column] = 1
    return code


def tells_apart(attributes: Sequence[Attribute], num_classes: int) -> bool:
    """Return whether any linear layer can be unfolded into these attributes.

    It can where the code and a column of ones have the rank C: logits may all be moved by the same number.
    """
    code = code_of(attributes, num_classes)
    return int(torch.linalg.matrix_rank(code - code.mean(0))) == num_classes - 1


def completed(attributes: Sequence[Attribute], num_classes: int) -> tuple[Attribute, ...]:
    """Return attributes that tell any classes apart: these, and one for each class where they are too few."""
    if tells_apart(attributes, num_classes):
        return tuple(attributes)
    known = {attribute.classes for attribute in attributes}
    return (*attributes, *(own for own in class_attributes(num_classes) if own.classes not in known))


def group_lines(attributes: Sequence[Attribute], class_names: Sequence[str], most: int = 8) -> list[str]:
    """Return the largest groups of classes that share an attribute in words, each indented below one that holds it.

    Args:
        attributes: Of any number of classes; those of one class are no groups.
        class_names: One name for each class.
        most: How many groups to name at most.
    """
    groups = [attribute for attribute in attributes if len(attribute.classes) > 1]
    groups = sorted(groups, key=lambda group: -len(group.classes))[:most]
    lines: list[str] = []

    def add(inside: set[int] | None, depth: int) -> None:
        while fitting := [group for group in groups if inside is None or inside.issuperset(group.classes)]:
            group = fitting[0]
            groups.remove(group)
            names = [class_names[index] for index in group.classes]
            lines.append("  " * depth + attribute_description(group.name, names))
            add(set(group.classes), depth + 1)

    add(None, 0)
    return lines


def read_attributes(path: Path, class_names: Sequence[str]) -> tuple[Attribute, ...]:
    """Read a table of attributes that a person wrote.

    Args:
        path: A CSV file. The first row names the attributes, after one cell for the column of classes; each other row
            has the name of a class, and for each attribute 1, yes, true or x if the class has it, and 0, no, false or
            nothing if it lacks it.
        class_names: The classes, each of which needs a row.

    Raises:
        UsageError: If the file cannot be read, does not have these rows, has other values, or has an attribute that
            all classes have, or none.
    """
    expected = "classes, hierarchy, or a CSV file with a row for each class and a column for each attribute"
    (_, header), *body = read_rows(path, expected) or [Row(1, [])]
    names = header[1:]
    if not names or len(set(names)) < len(names) or not all(names):
        raise UsageError(f"the first row of {path} is {header}; expected a cell and then the names of the attributes")
    table: dict[str, list[bool]] = {}
    for line, row in body:
        if row[0] not in class_names:
            raise UsageError(
                f"{path}, line {line}: the table has a row for {row[0]!r}, which is none of the classes"
                f"{nearest(row[0], class_names)}"
            )
        if row[0] in table:
            raise UsageError(f"{path}, line {line}: the table has two rows for {row[0]!r}; expected one for each class")
        unknown = [cell for cell in row[1:] if cell.lower() not in _WORDS]
        if len(row) != len(header) or unknown:
            raise UsageError(
                f"the row of {row[0]!r} in {path}, line {line}, has "
                + (f"the value {unknown[0]!r}" if unknown else f"{len(row) - 1} values for {len(names)} attributes")
                + "; expected 1, yes, true or x where the class has the attribute, else 0, no, false or nothing"
            )
        table[row[0]] = [_WORDS[cell.lower()] for cell in row[1:]]
    if missing := [name for name in class_names if name not in table]:
        raise UsageError(f"{path} has no row for {', '.join(map(repr, missing[:5]))}; expected one for each class")
    attributes = []
    for column, name in enumerate(names):
        classes = tuple(index for index, label in enumerate(class_names) if table[label][column])
        if len(classes) in (0, len(class_names)):
            raise UsageError(
                f"{'all classes have' if classes else 'no class has'} the attribute {name!r} of {path}; leave it out, "
                "it tells no classes apart"
            )
        attributes.append(Attribute(classes, name))
    return tuple(attributes)
