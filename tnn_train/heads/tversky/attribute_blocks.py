"""The attributes of a Tversky head in a report: a tree where they are nested, else a table."""

from __future__ import annotations

from collections.abc import Sequence

from tnn_runtime.explain.attributes import attribute_name
from tnn_train.heads.description import Block, Node, Table, Text, Tree
from tnn_train.heads.tversky.attributes import Attribute
from tnn_train.heads.tversky.config import TverskyConfig
from tnn_train.heads.tversky.editing import names_of_features

__all__ = ["attribute_blocks", "attribute_tree", "feature_titles"]

_MOST_OPEN = 40
"""A tree with more nodes than this starts folded, below its first level."""

_MOST_NAMED = 12
"""Beside groups, more classes than this are folded."""

_MOST_COLUMNS = 16
_MOST_ROWS = 60


def feature_titles(config: TverskyConfig, class_names: Sequence[str], num_features: int) -> tuple[str, ...]:
    """Return what a report calls each feature: its name in quotes, or ``"#53"`` where it has none.

    Args:
        config: The form of the head.
        class_names: One name for each class.
        num_features: F.
    """
    names = names_of_features(config, class_names, num_features)
    return tuple(f"'{name}'" if name else f"#{index}" for index, name in enumerate(names))


def attribute_blocks(attributes: Sequence[Attribute], class_names: Sequence[str]) -> list[Block]:
    """Return what there is to say of attributes: which groups of classes share one, and how these are nested."""
    shared = [attribute for attribute in attributes if attribute.name or len(attribute.classes) > 1]
    single = [class_names[attribute.classes[0]] for attribute in attributes if attribute not in shared]
    about = (
        "Features are attributes of the classes, each with an opposite feature. An attribute without a name of its own "
        "is called after the classes that have it. "
    )
    if len(single) == len(class_names):
        own = "Each class is an attribute"
    elif len(single) == 1:
        own = f"The class {single[0]} is an attribute"
    else:
        own = f"{len(single)} of {len(class_names)} classes are attributes"
    if not shared:
        return [Text(f"{about}{own}.")]
    about += f"{own}, and so are these groups:" if single else "These groups are all:"
    tree = attribute_tree(shared, class_names)
    return [Text(about), *(_table(shared, class_names) if tree is None else [tree])]


def attribute_tree(attributes: Sequence[Attribute], class_names: Sequence[str]) -> Tree | None:
    """Return attributes as a tree of groups of classes; ``None`` if two of them overlap and neither holds the other.

    Attributes of the same classes share a node. A group whose name spells all of its classes has none below it.
    """
    titles: dict[tuple[int, ...], list[str]] = {}
    for attribute in sorted(attributes, key=lambda attribute: (-len(attribute.classes), attribute.classes)):
        titles.setdefault(attribute.classes, []).extend([attribute.name] if attribute.name else [])
    everything = tuple(range(len(class_names)))
    innermost = dict.fromkeys(everything, everything)
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {everything: []}
    for classes in titles:
        holders = {innermost[index] for index in classes}
        if len(holders) > 1:
            return None
        groups[holders.pop()].append(classes)
        groups[classes] = []
        innermost |= dict.fromkeys(classes, classes)
    is_small = len(groups) <= _MOST_OPEN

    def below(group: tuple[int, ...], depth: int) -> list[Node]:
        nodes = [node(part, depth) for part in groups[group]]
        rest = [class_names[index] for index in group if innermost[index] == group]
        if nodes and len(rest) > _MOST_NAMED:
            return [*nodes, Node(f"{len(rest)} classes", children=[Node(", ".join(rest))])]
        return [*nodes, Node(", ".join(rest))] if rest else nodes

    def node(group: tuple[int, ...], depth: int) -> Node:
        names = [class_names[index] for index in group]
        title = ", ".join(titles[group]) or attribute_name(names)
        if len(group) == 1:
            return Node(title, names[0])
        if not groups[group] and title.endswith(names[-1]):
            return Node(title)
        return Node(title, f"{len(group)} classes", below(group, depth + 1), is_small or depth == 1)

    return Tree([Node(f"all {len(everything)} classes", "", below(everything, 1), is_open=True)])


def _table(attributes: Sequence[Attribute], class_names: Sequence[str]) -> list[Block]:
    """Return attributes and the classes that have them: a column for each class, or a list if there are many."""
    listed = attributes[:_MOST_ROWS]
    rows: list[tuple[str, ...]] = []
    for attribute in listed:
        names = [class_names[index] for index in attribute.classes]
        if len(class_names) <= _MOST_COLUMNS:
            cells = tuple("yes" if index in attribute.classes else "\N{EN DASH}" for index in range(len(class_names)))
        else:
            more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            cells = (str(len(names)), ", ".join(names[:_MOST_NAMED]) + more)
        rows.append((attribute.name or attribute_name(names), *cells))
    header = class_names if len(class_names) <= _MOST_COLUMNS else ("classes", "which")
    table = Table(rows, ("attribute", *header), prose=() if header is class_names else (2,))
    if len(listed) == len(attributes):
        return [table]
    return [table, Text(f"Shown are {len(listed)} of {len(attributes)} attributes.", is_aside=True)]
