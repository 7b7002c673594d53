"""What a report says of prototypes and relevances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lvq_forms import random_head
from oracles import lvq as oracle

from tnn_train import LvqConfig, LvqHead
from tnn_train.heads.description import Cards, Sample, Section, Table, Text
from tnn_train.heads.lvq.section import relevances, sections

NAMES = ("cat", "dog", "car", "ship")
LABELS = np.array([0, 1, 2, 3, 0, 1, 2])


def described(head: LvqHead, x: torch.Tensor) -> list[Section]:
    return sections(head, Sample(LABELS, NAMES, lambda: x))


def test_each_prototype_comes_with_the_images_that_it_is_nearest_to() -> None:
    head, x = random_head(LvqConfig(prototypes=2))
    (section,) = described(head, x)
    (cards,) = (block for block in section.blocks if isinstance(block, Cards))
    distances = oracle.distances(head, x.double().numpy())
    nearest = distances.argmin(1)
    assert len(cards.cards) == 8
    for place, card in enumerate(cards.cards):
        count = int((nearest == place).sum())
        assert card.title == f"Prototype {place}, class {NAMES[place // 2]}"
        assert card.summary.startswith(f"Nearest to {count} of 7 images")
        assert bool(card.warning) == (count == 0)
        assert [image.place for image in card.images] == np.argsort(distances[:, place])[:5].tolist()
        for image in card.images:
            assert image.caption[0] == NAMES[LABELS[image.place]]
            assert image.is_marked == (LABELS[image.place] != place // 2)


@pytest.mark.parametrize("form", ["vector", "matrix"])
def test_relevances_are_the_diagonal_of_lambda(form: str) -> None:
    head, x = random_head(LvqConfig(relevances=form, rank=2 if form == "matrix" else None))
    diagonal = np.diag(oracle.lambda_of(head))
    expected = diagonal / diagonal.sum()
    np.testing.assert_allclose(relevances(head).numpy(), expected, rtol=1e-6)
    _, section = described(head, x)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    order = np.argsort(-expected)
    assert [row[0] for row in table.rows] == [f"feature {k}" for k in order]
    assert table.rows[0][1] == f"{100 * expected[order[0]]:.2f}%"
    texts = " ".join(block.text for block in section.blocks if isinstance(block, Text))
    assert ("rank 2" in texts) == (form == "matrix")


def test_without_images_there_is_still_something_to_say() -> None:
    head, _ = random_head(LvqConfig(latent=3))
    (section,) = sections(head, None)
    assert "4 prototypes in a space of 3 dimensions behind a network" in section.blocks[0].text
    assert relevances(head).tolist() == pytest.approx([1 / 3] * 3)


def test_prototypes_are_beside_images_in_the_space_of_the_distances() -> None:
    head, x = random_head(LvqConfig(relevances="matrix", rank=3, prototypes=2))
    with torch.no_grad():
        view = head.prototype_view(x)
        torch.testing.assert_close(
            torch.cdist(view.images, view.prototypes).square(), head.distances(x), rtol=1e-3, atol=1e-3
        )
    assert view.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert view.images.shape == (7, 3)
